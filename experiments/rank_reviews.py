r"""LoRA ranks from 64 down to 4 on movie reviews: a hundred clients, MiniLM-L6.

  python -m launch.prepare --dataset=movie_reviews --weights=minilm_l6
  python -m launch.sweep --config=experiments/rank_reviews.py --workdir=DIR \
    --methods=all_large,fedit,rbla,ffa_lora,hetlora,flexlora,flora,fedex_lora \
    --seeds=0,1,2 --jobs=2

The reviews of IMDB and Rotten Tomatoes, divided by Dirichlet 5 over labels,
10 clients a round, which count alike. They take the ranks of FLoRA's authors in
turn, with their scale of 2 for all, on queries and values, as they do; with
`all_large` everyone has rank 64. Rounds, steps and text length are cut to what
two CPU cores do in minutes.
"""

from fedjax_tune import config


def get_config() -> config.Experiment:
  """Returns the experiment."""
  return config.Experiment(
    method='flora',
    rounds=15,
    eval_every=5,
    model=config.Model(weights='minilm_l6', tune='lora'),
    lora=config.Lora(
      rank=64,
      alpha=128.0,
      dropout=0.05,
      targets=('attn.q', 'attn.v'),
      patch_embed=False,
    ),
    rank=config.Rank(ranks=(64, 32, 16, 16, 8, 8, 4, 4, 4, 4)),
    data=config.Data(name='movie_reviews', lengths=(48,), test_examples=400),
    clients=config.Clients(
      partition='dirichlet',
      count=100,
      alpha=5.0,
      budgets=(),
      cohort='uniform',
      cohort_size=10,
    ),
    # After 12 rounds of seed 0 all_large had 70.6 % at 1e-3, 70.9 at 3e-3 and
    # 48.1 at 1e-2.
    local=config.Local(
      optimizer='adamw',
      lr=3e-3,
      weight_decay=0.01,
      clip_norm=1.0,
      batch_size=16,
      steps=4,
    ),
  )
