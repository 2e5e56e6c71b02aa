"""The names of tensors in a file, and those that nothing reads.

A tensor that is not read may be the head of another task, which does no harm.
Or it may show that config.json describes another model.
"""

from collections.abc import Collection, Iterable
import re

from fedjax_tune.models.families import FAMILIES, SHARED_PREFIX

# First parts of the names of heads, where they stand beside a base model.
_HEADS = frozenset(
  re.findall(
    r'\S+',
    """
  classification_head classifier cls cls_classifier decoder
  distillation_classifier head lm_head pooler pre_classifier qa_classifier
  qa_outputs score vocab_layer_norm vocab_projector vocab_transform
  """,
  )
)
# Constants that older versions wrote, and the mask token of pretraining.
_CONSTANT = re.compile(
  r'(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|mask_token)$'
)
_BLOCK = re.compile(r'(^|\.)(layers?|blocks?|h)\.\d+\.')
_QUANTISED = re.compile(
  r'\.(SCB|weight_format|qweight|qzeros|g_idx|scales|weight_packed|weight_shape'
  r'|weight_scale|weight_scale_inv|weight_zero_point|input_scale|absmax'
  r'|nested_absmax|quant_map|quant_state\..*)$'
)
_ADAPTER = re.compile(
  r'^base_model\.model\.'
  r'|\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer'
  r'|modules_to_save|original_module)\b'
)


def rename(
  names: Iterable[str], family: str, source: str
) -> tuple[dict[str, str], frozenset[str]]:
  """Removes a head's prefix, and TensorFlow's names of LayerNorm's parts.

  Args:
    names: Names of the tensors in a file.
    family: One of `families.FAMILIES`.
    source: Begins every message.

  Returns:
    The names in the file, keyed by the names of the family's base model; and
    which of these are outside of the base model, as files with a head show.

  Raises:
    ValueError: Tensors are quantised, belong to an adapter or another family,
      or two have the same name without the prefix.
  """
  found: dict[str, str] = {}
  outside = set()
  names = list(names)
  prefix = FAMILIES[family].prefix
  prefixes = {other.prefix for other in FAMILIES.values()}
  others = tuple(prefixes - {prefix, SHARED_PREFIX})
  has_head = any(name.startswith(prefix) for name in names)
  for name in names:
    _check_plain(name, source)
    if name.startswith(others):
      raise ValueError(
        f'{source}: tensor {name!r} is of another family than model_type='
        f'{family!r}.'
      )
    own = name.removeprefix(prefix)
    own = own.replace('LayerNorm.gamma', 'LayerNorm.weight')
    own = own.replace('LayerNorm.beta', 'LayerNorm.bias')
    if own in found:
      raise ValueError(
        f'{source}: tensors {found[own]!r} and {name!r} are one parameter; only '
        'one may be there.'
      )
    found[own] = name
    if has_head and not name.startswith(prefix):
      outside.add(own)
  return found, frozenset(outside)


def _check_plain(name: str, source: str) -> None:
  """Raises a ValueError for weights that encode others."""
  if _QUANTISED.search(name):
    raise ValueError(
      f'{source}: tensor {name!r} belongs to quantised weights; they must be '
      'dequantised first.'
    )
  if _ADAPTER.search(name):
    raise ValueError(
      f'{source}: tensor {name!r} belongs to an adapter of peft; it must be '
      'merged first (merge_and_unload).'
    )


def judge(
  unread: Collection[str], source: str, outside: Collection[str] = ()
) -> tuple[str, ...]:
  """Names the heads that were left out, and refuses anything else.

  Args:
    unread: Names that the base model does not have.
    source: Begins every message.
    outside: The names outside of the base model.

  Raises:
    ValueError: A tensor is part of the base model.
  """
  heads = set()
  for name in sorted(unread):
    first = name.partition('.')[0]
    if _CONSTANT.search(name):
      continue
    if (first not in _HEADS and name not in outside) or _BLOCK.search(name):
      raise ValueError(
        f'{source}: tensor {name!r} is no part of the '
        'model that the configuration describes, and no head of another task.'
      )
    heads.add(first)
  if not heads:
    return ()
  return (
    f'{source}: left, as heads of other tasks: {", ".join(sorted(heads))}.',
  )
