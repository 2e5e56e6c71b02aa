r"""HeteroTune on film reviews: two language models that learn together.

  python -m launch.sweep --config=experiments/heterotune_reviews.py \
    --methods=heterotune,heterotune_cmga=heterotune:heterotune.cmga=pairwise,apart=heterotune:heterotune.share=False,all_small=all_small:model.tune=lora,inclusivefl=inclusivefl:model.tune=lora,fedra=fedra:model.tune=lora,heterofl=heterofl:model.tune=lora,all_large=all_large:model.tune=lora \
    --seeds=0,1,2 --jobs=2 --workdir=DIR

A hundred clients, Dirichlet 0.5 over labels, ten a round; every other one has
MiniLM-L3 instead of MiniLM-L6. HeteroTune's tiers are these two checkpoints.
The methods that know one model cut MiniLM-L6 instead: to its first three
blocks (AllSmall, InclusiveFL), to any three (FedRA), to half of its heads and
of its MLP (HeteroFL). `apart` trains the tiers without anything in common.
"""

from fedjax_tune import config, method_config


def get_config() -> config.Experiment:
  """Returns the experiment."""
  return config.Experiment(
    method='heterotune',
    rounds=30,
    eval_every=5,
    model=config.Model(weights='minilm_l6', tune='adapter'),
    lora=config.Lora(
      rank=8, alpha=16.0, targets=('attn.q', 'attn.v'), patch_embed=False
    ),
    tiers=method_config.Tiers(weights=('minilm_l6', 'minilm_l3')),
    data=config.Data(name='movie_reviews', lengths=(48,), test_examples=400),
    clients=config.Clients(
      partition='dirichlet',
      count=100,
      alpha=0.5,
      budgets=(6, 3),
      cohort='uniform',
      cohort_size=10,
    ),
    local=config.Local(
      optimizer='adamw',
      lr=1e-3,
      weight_decay=0.01,
      clip_norm=1.0,
      batch_size=16,
      steps=4,
    ),
    server=config.Server(weighting='examples'),
    width=method_config.Width(rates=(1.0, 0.5), axes=('heads', 'ffn')),
  )
