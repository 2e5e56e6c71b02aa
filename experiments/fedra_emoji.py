r"""FedRA and its baselines on six drawing styles, in four settings.

  python -m launch.prepare --dataset=emoji_styles --image_size=42 \
    --weights=dinov2_vits14
  python -m launch.train --config=experiments/fedra_emoji.py:SETTING \
    [--config.method=NAME] --workdir=DIR

The clients draw the same kinds of things in six styles, as DomainNet's six
domains do; every object is known to the clients of one style only. DINOv2
ViT-S/14 is tuned with LoRA; accuracy is that of the full model on objects that
no client has, the mean of the six styles.

SETTING is
  feature        one client a style (the default), budgets 12/10/8/6/4/3;
  feature_label  five clients a style, Dirichlet 0.5 over labels within it,
                 one of them a round (the second skew of FedRA's authors);
  six            as `feature`, but nobody holds more than 6 of 12 blocks;
  four           as `feature`, but nobody holds more than 4.

Results, commands and minutes: experiments/README.md.
"""

from fedjax_tune import config

_SETTINGS = {
  'feature': {'partition': 'domain', 'count': 1},
  'feature_label': {'partition': 'domain_dirichlet', 'count': 5, 'alpha': 0.5},
  'six': {'partition': 'domain', 'count': 1, 'budgets': (6,) * 6},
  'four': {'partition': 'domain', 'count': 1, 'budgets': (4,) * 6},
}


def get_config(setting: str = 'feature') -> config.Experiment:
  """Returns the experiment in one setting."""
  if setting not in _SETTINGS:
    raise ValueError(
      f'SETTING={setting!r} must be one of {", ".join(_SETTINGS)}.'
    )
  return config.Experiment(
    method='fedra',
    rounds=150,
    eval_every=10,
    data=config.Data(name='emoji_styles', image_size=42),
    clients=config.Clients(
      **_SETTINGS[setting], min_examples=4, divide_objects=True
    ),
    # Tuned on AllLarge alone, then kept for all methods.
    local=config.Local(optimizer='adamw', lr=0.001, steps=4, batch_size=32),
  )
