"""RaFFM on movie reviews: MiniLM-L6, 100 clients of unequal hardware."""

from fedjax_tune import config


def get_config(setting: str = 'table') -> config.Experiment:
  """Returns the experiment in one setting."""
  del setting
  return config.Experiment(
    method='raffm',
    rounds=30,
    eval_every=5,
    model=config.Model(weights='minilm_l6', tune='full'),
    data=config.Data(name='movie_reviews', lengths=(32, 64)),
    clients=config.Clients(
      partition='dirichlet',
      count=100,
      alpha=0.5,
      budgets=(6,) * 100,
      cohort='uniform',
      cohort_size=10,
    ),
    local=config.Local(
      optimizer='adamw', lr=5e-5, weight_decay=0.01, clip_norm=1.0,
      batch_size=16, steps=2,
    ),
    lora=config.Lora(patch_embed=False),
  )
