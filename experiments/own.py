r"""Your own data: five unequal clients tune one model by FedRA.

  python -m launch.prepare --source=folder:PATH --weights=dinov2_vits14
  python -m launch.train --config=experiments/own.py \
    --config.data.name=folder:PATH --workdir=runs/own

  python -m launch.prepare --source=csv:FILE.csv --weights=minilm_l6
  python -m launch.train --config=experiments/own.py:texts \
    --config.data.name=csv:FILE.csv --workdir=runs/own

Data may also be jsonl:, parquet: or npz:. Pictures are tuned on DINOv2 ViT-S/14,
`texts` on MiniLM-L6. The clients get Dirichlet shares of the classes, mildly
skewed, and hold all blocks down to a quarter of them. --config.clients.alpha=0.5
is hard: of 90 pictures of three classes FedRA then stays at chance for 16 rounds,
with 5 it knows all after two. A table with a client column has clients of
its own: --config.clients.partition=natural, and --config.clients.count= as many
of the largest ones as you like. A minute or two on a CPU for a few hundred
examples.
"""

from fedjax_tune import config

# Of 12 blocks 12, 9, 6, 4 and 3; of 6 blocks 6, 5, 4, 3 and 2.
_PICTURES = (1.0, 3 / 4, 1 / 2, 1 / 3, 1 / 4)
_TEXTS = (1.0, 5 / 6, 2 / 3, 1 / 2, 1 / 3)


def get_config(kind: str = 'pictures') -> config.Experiment:
  """Returns the experiment for pictures, or for texts."""
  if kind not in ('pictures', 'texts'):
    raise ValueError(f'KIND={kind!r} must be pictures or texts.')
  texts = kind == 'texts'
  experiment = config.Experiment(
    method='fedra',
    rounds=20,
    eval_every=2,
    data=config.Data(name='csv:PATH' if texts else 'folder:PATH'),
    clients=config.Clients(
      partition='dirichlet',
      count=5,
      alpha=5.0,
      min_examples=1,
      budgets=_TEXTS if texts else _PICTURES,
      cohort='uniform',
      cohort_size=5,
    ),
    local=config.Local(optimizer='adamw', lr=0.001, steps=4, batch_size=16),
  )
  if texts:
    experiment.model.weights = 'minilm_l6'
  return experiment
