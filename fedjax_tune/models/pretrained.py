"""Loads the backbone that `config.Model.weights` names."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import TypeVar

from flax import traverse_util

from fedjax_tune.config import meanings
from fedjax_tune.files import paths
from fedjax_tune.models import backbone, huggingface, packaged, positions
from fedjax_tune.models.sizes import (
  Config,
  DecoderConfig,
  TextConfig,
  ViTConfig,
)

Pretrained = backbone.Pretrained
T = TypeVar('T')

# depth, embed, heads, ffn, patch, pixels of a side; the last three as in arXiv
# 2012.12877.
_IMAGE = {
  'random:vit_test': (4, 16, 2, 32, 8, 16),
  'random:vit_tiny': (12, 192, 3, 768, 16, 224),
  'random:vit_tiny4': (12, 192, 3, 768, 4, 32),
  'random:vit_small': (12, 384, 6, 1536, 16, 224),
  'random:vit_base': (12, 768, 12, 3072, 16, 224),
}
# depth, embed, heads, ffn, vocab, positions; MiniLM-L6 as packaged, BERT-mini
# of arXiv 1908.08962.
_TEXT = {
  'random:text_test': (4, 16, 2, 32, 64, 32),
  'random:bert_mini': (4, 256, 4, 1024, 30522, 512),
  'random:minilm': (6, 384, 12, 1536, 30522, 512),
}
# depth, embed, heads, ffn, vocab, positions, group, head_dim; SmolLM2 as packaged.
_DECODER = {
  'random:llama_test': (4, 16, 2, 32, 64, 32, 2, 4),
  'random:smollm2_135m': (30, 576, 3, 1536, 49152, 8192, 3, 64),
}
_DRAWN: dict[str, Config] = {
  **{name: ViTConfig(*own) for name, own in _IMAGE.items()},
  **{name: TextConfig(*own) for name, own in _TEXT.items()},
  **{name: DecoderConfig(*own) for name, own in _DECODER.items()},
}
RANDOM = tuple(_DRAWN)
_OF_THE_HUB = (
  '. A model of the Hub must be in a folder here; nothing fetches it.'
)


def load_pretrained(
  weights: str, data_dir: str | pathlib.Path, image_size: int
) -> Pretrained:
  """Loads a backbone, with positions fitted to the run's images.

  Args:
    weights: One of `packaged.PACKAGED` or `RANDOM`, or a Hugging Face folder.
    data_dir: Where fetched weights are kept; '' is the user's cache.
    image_size: Pixels of a side, a multiple of the patch size; a text model
      does not read it.

  Raises:
    FileNotFoundError: If packaged weights were not fetched, or a file of the
      Hugging Face folder is missing.
    ValueError: If `weights` is no such name, the image size does not fit, or
      the weights are corrupt or not supported.
  """
  if weights in packaged.PACKAGED:
    return _fit(packaged.load_packaged(weights, data_dir), image_size)
  if weights not in _DRAWN:
    return _fit(_of_folder(weights, huggingface.load_huggingface), image_size)
  config = _DRAWN[weights]
  if isinstance(config, ViTConfig):
    _check(config, image_size)
    config = dataclasses.replace(config, image_size=image_size)
  tokenizer = _find_tokenizer(weights, data_dir)
  return dataclasses.replace(_random(config, weights), tokenizer=tokenizer)


def read_sizes(weights: str) -> Config:
  """Returns a model's sizes, which are known before its weights are there.

  The image size is the one that the model is made for.

  Raises:
    FileNotFoundError, ValueError: See `load_pretrained`.
  """
  if weights in packaged.PACKAGED:
    return packaged.PACKAGED[weights].sizes
  if weights in _DRAWN:
    return _DRAWN[weights]
  return _of_folder(weights, huggingface.read_sizes)


def _of_folder(weights: str, read: Callable[[pathlib.Path], T]) -> T:
  """Reads something from a Hugging Face folder; refuses any other folder."""
  folder = paths.here('model.weights', weights)
  if not folder.is_dir():
    names = [*packaged.PACKAGED, *RANDOM]
    near = meanings.nearest(weights, names)
    hint = meanings.hint(near and repr(near)) or _OF_THE_HUB
    raise ValueError(
      f'model.weights={weights!r} is neither one of {", ".join(names)} nor the'
      f' path of a Hugging Face folder{hint}'
    )
  try:
    return read(folder)
  except (FileNotFoundError, ValueError) as error:
    raise type(error)(f'model.weights={weights!r}: {error}') from error


def _find_tokenizer(weights: str, data_dir: str | pathlib.Path) -> str | None:
  """Returns MiniLM's tokenizer for weights with its sizes."""
  if weights != 'random:minilm':
    return None
  return str(packaged.find_packaged('minilm_l6', data_dir))


def _check(config: ViTConfig, image_size: int) -> None:
  if image_size < 1 or image_size % config.patch:
    near = max(1, round(image_size / config.patch)) * config.patch
    raise ValueError(
      f'data.image_size={image_size} must be a positive multiple of the patch '
      f"size {config.patch}, such as {near}; 0 takes the model's own size."
    )


def _fit(pretrained: Pretrained, image_size: int) -> Pretrained:
  """Resizes an image model's positions to `image_size`."""
  config = pretrained.config
  if not isinstance(config, ViTConfig):
    return pretrained
  _check(config, image_size)
  embed = pretrained.params['embed']
  position = positions.resize_positions(
    embed['position'], config.num_prefix, image_size // config.patch
  )
  return dataclasses.replace(
    pretrained,
    config=dataclasses.replace(config, image_size=image_size),
    params=pretrained.params | {'embed': embed | {'position': position}},
  )


def _random(config: Config, source: str) -> Pretrained:
  """Draws weights that depend only on the sizes; see `backbone.draw`."""
  found = backbone.pretrained_variables(config)
  params = {p: backbone.draw(p, v.shape) for p, v in found.items()}
  return Pretrained(config, traverse_util.unflatten_dict(params), source)
