"""FedRA and its baselines on six drawing styles, one style a client."""

from fedjax_tune import config


def get_config() -> config.Experiment:
  """Returns the experiment."""
  return config.Experiment(
    method='fedra',
    rounds=100,
    eval_every=5,
    data=config.Data(name='emoji_styles', image_size=56),
    clients=config.Clients(
      partition='domain',
      count=1,
      divide_objects=True,
      budgets=(12, 10, 8, 6, 4, 3),
      cohort='one_per_domain',
    ),
    local=config.Local(lr=0.01, steps=8, batch_size=16),
  )
