r"""Composed clients on movie reviews: a hundred clients, three device mixes.

  python -m launch.prepare --dataset=movie_reviews --weights=minilm_l6
  python -m launch.sweep --config=experiments/composed_reviews.py:small \
    --methods=composed,fedra,raffm,heterofl,prefix=composed:composed.depth=prefix:composed.width=:composed.rank=,all_small,all_large \
    --seeds=0,1,2 --jobs=2 --workdir=DIR

The comparison of composed_emoji.py with MiniLM-L6 on the reviews of IMDB and
Rotten Tomatoes, cut to 32 tokens. A third of the width is listed too and the
deadline is longer: the least of RaFFM takes a Raspberry Pi 4 1.03 s a round. The
mixes and what else the methods cut are those of that file.
"""

from experiments import composed_emoji
from fedjax_tune import config


def get_config(mix: str = 'small') -> config.Experiment:
  """Returns the experiment.

  Args:
    mix: What devices there are: 'medium', 'small' or 'xsmall'.
  """
  experiment = composed_emoji.get_config(mix)
  experiment.model.weights = 'minilm_l6'
  experiment.lora = config.Lora(
    targets=('attn.proj', 'mlp.fc2'), patch_embed=False
  )
  experiment.data = config.Data(
    name='movie_reviews', lengths=(32,), test_examples=400
  )
  experiment.clients = config.Clients(
    partition='dirichlet',
    count=100,
    alpha=5.0,
    budgets=(),
    cohort='uniform',
    cohort_size=10,
    devices=mix,
    fit='time',
    deadline_s=1.1,
  )
  experiment.raffm.embed = (1.0, 0.75, 0.5, 0.333)
  experiment.local.lr = 3e-3
  return experiment
