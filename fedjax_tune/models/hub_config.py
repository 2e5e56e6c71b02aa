"""config.json of Hugging Face's models, read and written."""

from collections.abc import Sequence
import pathlib

from fedjax_tune.models.families import FAMILIES
from fedjax_tune.models.sizes import Config
from fedjax_tune.typing import Json


def parse(raw: Json, path: pathlib.Path) -> Config:
  """Translates config.json.

  Args:
    raw: The content of config.json.
    path: Begins every message.

  Raises:
    ValueError: A field is missing, or belongs to a model that is not supported.
  """
  family = raw.get('model_type')
  if not isinstance(family, str) or family not in FAMILIES:
    raise ValueError(
      f'{path}: model_type={family!r} is not supported; it must be one of '
      f'{", ".join(FAMILIES)}.'
    )
  return FAMILIES[family].kind.parse(raw, path)


def render(config: Config, label_names: Sequence[str]) -> Json:
  """Returns the config.json of a model with its head."""
  family = FAMILIES[config.family]
  common = {
    'model_type': config.family,
    'architectures': [family.title + family.kind.head],
    'hidden_act': 'gelu',
    'hidden_size': config.embed,
    'num_hidden_layers': config.depth,
    'num_attention_heads': config.heads,
    'intermediate_size': config.ffn,
    'layer_norm_eps': config.eps,
  }
  if label_names:
    common |= {
      'id2label': {str(i): label for i, label in enumerate(label_names)},
      'label2id': {label: i for i, label in enumerate(label_names)},
    }
  return family.kind.render(config, common)
