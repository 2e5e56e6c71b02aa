r"""RaFFM on movie reviews: a hundred clients tune all of MiniLM-L6.

  python -m launch.prepare --dataset=movie_reviews --weights=minilm_l6
  python -m launch.sweep --config=experiments/raffm_reviews.py --workdir=DIR \
    --methods=all_large,raffm,heterofl,fedrolex,fjord,federated_dropout,prunefl,prism=prism:local.weight_decay=0.0 \
    --seeds=0,1,2 --jobs=2

The reviews of IMDB and Rotten Tomatoes, divided by Dirichlet 0.5 over labels,
10 clients a round: RaFFM's numbers (100 clients, 10 %, README of its code).
Rounds, steps and text length are cut to what two CPU cores do in minutes.
Clients' hardware is the paper's setting 'medium'. RaFFM cuts the MLP to all,
5/8 or 5/12, its released space; the other methods narrow every axis to the
rates at which a client holds as many parameters as with RaFFM.
"""

from fedjax_tune import config

# 22.7, 20.1 and 18.6 million parameters, embeddings included.
_RATES = (1.0, 0.93, 0.885)


def get_config() -> config.Experiment:
  """Returns the experiment."""
  return config.Experiment(
    method='raffm',
    rounds=30,
    eval_every=5,
    model=config.Model(weights='minilm_l6', tune='full'),
    data=config.Data(name='movie_reviews', lengths=(48,), test_examples=400),
    clients=config.Clients(
      partition='dirichlet',
      count=100,
      alpha=0.5,
      budgets=(),
      cohort='uniform',
      cohort_size=10,
      devices='medium',
    ),
    # Tuned on all_large alone, then kept for all methods.
    local=config.Local(
      optimizer='adamw',
      lr=1e-4,
      weight_decay=0.01,
      clip_norm=1.0,
      batch_size=16,
      steps=2,
    ),
    width=config.Width(rates=_RATES),
  )
