r"""HeteroTune on six drawing styles: DINOv2 ViT-S/14 and two parts of it.

  python -m launch.prepare --dataset=emoji_styles --image_size=42 \
    --weights=dinov2_vits14
  python -m launch.sweep --config=experiments/heterotune_emoji.py \
    --methods=heterotune,late=heterotune:tiers.joins=(0,0,10),apart=heterotune:heterotune.share=False,all_small=all_small:model.tune=lora:local.lr=1e-3,inclusivefl=inclusivefl:model.tune=lora:local.lr=1e-3,fedra=fedra:model.tune=lora:local.lr=1e-3,heterofl=heterofl:model.tune=lora:local.lr=1e-3,all_large=all_large:model.tune=lora:local.lr=1e-3,late_apart=heterotune:tiers.joins=(0,0,10):heterotune.share=False,large_adapter=all_large:model.tune=adapter,small_adapter=all_small:model.tune=adapter \
    --seeds=0,1,2 --jobs=2 --workdir=DIR

The pictures and clients of raffm_emoji.py. Clients have in turn all 12 blocks,
the first 8, the first 6; HeteroFL's all heads and all of the MLP, two thirds
and half of both. `late` has its third tier join in round 10 of 20; `late_apart`,
too, but shares nothing. `large_adapter` and `small_adapter` tune one model by
HeteroTune's adapters.

Ablations, in place of `--methods` above:

  heterotune,one_branch=heterotune:heterotune.branches=(1,1,1),two=heterotune:heterotune.branches=(2,2,2),four=heterotune:heterotune.branches=(4,4,4),own=heterotune:heterotune.reading=own,width=heterotune:heterotune.reading=width:fedadapter.rank=36,token=heterotune:fedadapter.gating=token,uniform=heterotune:fedadapter.gating=uniform,cmga=heterotune:heterotune.cmga=pairwise,cmga_mean=heterotune:heterotune.cmga=mean
"""

from experiments import heterotune_reviews, raffm_emoji
from fedjax_tune import config


def get_config() -> config.Experiment:
  """Returns the experiment."""
  experiment = heterotune_reviews.get_config()
  pictures = raffm_emoji.get_config()
  experiment.model.weights = 'dinov2_vits14'
  experiment.data, experiment.clients = pictures.data, pictures.clients
  experiment.clients.devices = ''
  experiment.clients.budgets = (1.0, 2 / 3, 1 / 2) * 20
  experiment.clients.cohort_size = 12
  experiment.tiers = config.Tiers(
    weights=('dinov2_vits14',) * 3, depth=(12, 8, 6)
  )
  # After 12 rounds of seed 0: `apart` had 22.1 % at 1e-3, 27.5 at 3e-3 and 13.6
  # at 1e-2; LoRA in all_large 42.9 at 1e-3, 21.7 at 3e-3, 3.0 at 1e-2.
  experiment.local.lr = 3e-3
  experiment.lora.targets = ('attn.proj', 'mlp.fc2')
  experiment.width.rates = (1.0, 2 / 3, 1 / 2)
  return experiment
