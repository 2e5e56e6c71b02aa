r"""RaFFM on six drawing styles: sixty clients tune all of DINOv2 ViT-S/14.

  python -m launch.prepare --dataset=emoji_styles --image_size=42 \
    --weights=dinov2_vits14
  python -m launch.sweep --config=experiments/raffm_emoji.py --workdir=DIR \
    --methods=all_large,raffm,heterofl,fedrolex,fjord,federated_dropout,prunefl,prism=prism:local.weight_decay=0.0,probe=all_large:model.tune=head:local.lr=0.001:engine.cache_frozen=True:model.dtype=bfloat16 \
    --seeds=0,1,2 --last=3 --set=engine.unroll=True --jobs=2

The pictures of fedra_emoji.py, each object in one style only; ten clients a
style with Dirichlet 0.5 over categories, ten of the sixty a round. Hardware
and comparison are those of raffm_reviews.py.
"""

from experiments import raffm_reviews
from fedjax_tune import config


def get_config() -> config.Experiment:
  """Returns the experiment."""
  experiment = raffm_reviews.get_config()
  experiment.rounds, experiment.eval_every = 150, 10
  experiment.model = config.Model(weights='dinov2_vits14', tune='full')
  experiment.data = config.Data(name='emoji_styles', image_size=42)
  experiment.clients = config.Clients(
    partition='domain_dirichlet',
    count=10,
    alpha=0.5,
    min_examples=2,
    divide_objects=True,
    budgets=(),
    cohort='uniform',
    cohort_size=10,
    devices='medium',
  )
  # 21.7, 16.4 and 13.4 million parameters, as RaFFM's three.
  experiment.width.rates = (1.0, 0.866, 0.782)
  # Tuned on all_large alone, then kept for all methods.
  experiment.local.lr = 1e-4
  return experiment
