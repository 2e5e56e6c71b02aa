r"""Why FedRA's training loss stays high: setting `feature`, one change a run.

  python -m launch.prepare --dataset=emoji_styles --image_size=42 \
    --weights=dinov2_vits14
  python -m launch.sweep --config=experiments/fedra_ablations.py --workdir=DIR \
    --methods=fedra,fixed=fedra_fixed,nested=fedra_nested,lr_0003=fedra:local.lr=0.0003,lr_003=fedra:local.lr=0.003,steps_15=fedra:local.steps=15:rounds=40 \
    --seeds=0 --last=3

The methods `fedra_fixed` and `fedra_nested` are those of _draws.py.

The setting after the colon is the blocks that each client holds, in place of
12/10/8/6/4/3: `fedra_ablations.py:9`.
"""

from experiments import _draws, fedra_emoji
from fedjax_tune import config


def get_config(blocks: str = '') -> config.Experiment:
  """Returns the experiment, `blocks` for each client where they are given."""
  experiment = fedra_emoji.get_config('feature')
  if blocks:
    experiment.clients.budgets = (int(blocks),) * 6
  experiment.imports = (_draws.__name__,)
  return experiment
