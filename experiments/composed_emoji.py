r"""Composed clients on six drawing styles: thirty clients, three device mixes.

  python -m launch.prepare --dataset=emoji_styles --image_size=42 \
    --weights=dinov2_vits14
  python -m launch.sweep --config=experiments/composed_emoji.py:small \
    --methods=composed,fedra,raffm,heterofl,prefix=composed:composed.depth=prefix:composed.width=:composed.rank=,hetlora,all_small,all_large \
    --seeds=0,1,2 --jobs=2 --workdir=DIR

Each client holds the most of DINOv2 ViT-S/14 that its device trains within the
deadline, sending included: by its layers (`fedra`, `prefix`), its width
(`raffm`, `heterofl`), its rank (`hetlora`), or all three (`composed`). Of the
mixes, `medium` and `small` are settings of RaFFM's paper that have devices for
the whole model; in `xsmall` nobody can hold it. `all_large` ignores devices and
deadline. LoRA alone trains; Dirichlet 1 over categories, ten clients a round.
"""

from fedjax_tune import config


def get_config(mix: str = 'small') -> config.Experiment:
  """Returns the experiment.

  Args:
    mix: What devices there are: 'medium', 'small' or 'xsmall'.
  """
  return config.Experiment(
    method='composed',
    rounds=24,
    eval_every=6,
    composed=config.Composed(depth='fedra', width='raffm', rank='fedit'),
    model=config.Model(weights='dinov2_vits14', tune='lora'),
    rank=config.Rank(ranks=(8, 4, 2)),
    width=config.Width(rates=(1.0, 0.75, 0.5, 0.25)),
    raffm=config.Raffm(
      space='custom',
      ffn=(1.0, 0.625, 0.417, 0.25),
      embed=(1.0, 0.75, 0.5),
      sampling='resource',
    ),
    data=config.Data(name='emoji_styles', image_size=42, test_examples=60),
    clients=config.Clients(
      partition='dirichlet',
      count=30,
      alpha=1.0,
      min_examples=2,
      cohort='uniform',
      cohort_size=10,
      devices=mix,
      fit='time',
      deadline_s=1.0,
    ),
    local=config.Local(
      optimizer='adamw', lr=1e-3, clip_norm=1.0, batch_size=16, steps=4
    ),
  )
