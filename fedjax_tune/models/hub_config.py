"""config.json of Hugging Face's models, read and written."""

from collections.abc import Mapping, Sequence
import pathlib

from fedjax_tune.models import backbone, hub_fields, hub_llama, layouts
from fedjax_tune.models.sizes import (
  Config,
  DecoderConfig,
  TextConfig,
  ViTConfig,
)
from fedjax_tune.typing import Json

_TEXT = ('bert', 'roberta', 'distilbert')

# What this package's models compute, which is also what `transformers` takes
# where config.json is silent; anything else would run, and be wrong.
_SUPPORTED_IMAGE = {
  'hidden_act': 'gelu',
  'num_channels': 3,
  'use_swiglu_ffn': False,
}
_SUPPORTED_TEXT = {
  'hidden_act': 'gelu',
  'position_embedding_type': 'absolute',
  'is_decoder': False,
  'add_cross_attention': False,
}
# What DistilBERT calls the fields of BERT.
_DISTILBERT_NAMES = {
  'hidden_act': 'activation',
  'hidden_size': 'dim',
  'num_hidden_layers': 'n_layers',
  'num_attention_heads': 'n_heads',
  'intermediate_size': 'hidden_dim',
}
_PADDING = {'bert': 0, 'roberta': 1, 'distilbert': 0}
# What `transformers` calls the model with a head of each family.
_CLASSES = {
  'vit': 'ViTForImageClassification',
  'deit': 'DeiTForImageClassification',
  'dinov2': 'Dinov2ForImageClassification',
  'bert': 'BertForSequenceClassification',
  'roberta': 'RobertaForSequenceClassification',
  'distilbert': 'DistilBertForSequenceClassification',
  'llama': 'LlamaForSequenceClassification',
}


def parse(raw: Json, path: pathlib.Path) -> Config:
  """Translates config.json.

  Args:
    raw: What it holds.
    path: Begins every message.

  Raises:
    ValueError: A field is missing, or of a model that is not supported.
  """
  family = raw.get('model_type')
  if family not in layouts.FAMILIES:
    raise ValueError(
      f'{path}: model_type={family!r} is not supported; it must be one of '
      f'{", ".join(layouts.FAMILIES)}.'
    )
  if family in _TEXT:
    return _text_config(raw, family, path)
  if family == 'llama':
    return hub_llama.parse(raw, path)
  return _image_config(raw, family, path)


def _image_config(raw: Json, family: str, path: pathlib.Path) -> ViTConfig:
  hub_fields.check_supported(raw, _SUPPORTED_IMAGE, path)
  sizes = _block_sizes(raw, path, {})
  dinov2 = family == 'dinov2'
  if dinov2:
    raw = {'mlp_ratio': 4} | raw
    sizes['ffn'] = sizes['embed'] * hub_fields.integer(raw, 'mlp_ratio', path)
  else:
    sizes['ffn'] = hub_fields.integer(raw, 'intermediate_size', path)
  mean, std = backbone.IMAGENET_MEAN, backbone.IMAGENET_STD
  if family == 'vit':
    mean = std = (0.5, 0.5, 0.5)
  return ViTConfig(
    **sizes,
    patch=hub_fields.square(raw, 'patch_size', path),
    image_size=hub_fields.square(raw, 'image_size', path),
    num_prefix=2 if family == 'deit' else 1,
    layer_scale=dinov2,
    eps=hub_fields.epsilon(
      raw, 'layer_norm_eps', path, 1e-6 if dinov2 else 1e-12
    ),
    mean=mean,
    std=std,
  )


def _text_config(raw: Json, family: str, path: pathlib.Path) -> TextConfig:
  distilbert = family == 'distilbert'
  if distilbert:
    # Its code has no other epsilon, and no types.
    raw = raw | {'layer_norm_eps': 1e-12, 'type_vocab_size': 0}
    for other, own in _DISTILBERT_NAMES.items():
      if raw.get(other, raw.get(own)) != raw.get(own):
        raise ValueError(
          f'{path}: {other}={raw[other]!r} must be {own}={raw.get(own)!r}, as '
          'DistilBERT calls it.'
        )
  names = _DISTILBERT_NAMES if distilbert else {}
  raw = {'type_vocab_size': 2, 'pad_token_id': _PADDING[family]} | raw
  supported = {names.get(k, k): value for k, value in _SUPPORTED_TEXT.items()}
  hub_fields.check_supported(raw, supported, path)
  ffn = names.get('intermediate_size', 'intermediate_size')
  config = TextConfig(
    **_block_sizes(raw, path, names),
    ffn=hub_fields.integer(raw, ffn, path),
    vocab=hub_fields.integer(raw, 'vocab_size', path),
    positions=hub_fields.integer(raw, 'max_position_embeddings', path),
    family=family,
    types=hub_fields.integer(raw, 'type_vocab_size', path, least=0),
    pad=hub_fields.integer(raw, 'pad_token_id', path, least=0),
    eps=hub_fields.epsilon(raw, 'layer_norm_eps', path, 1e-12),
  )
  hub_fields.check_padding(config, path)
  if config.max_tokens < 1:
    raise ValueError(
      f'{path}: pad_token_id={config.pad} leaves no positions: RoBERTa counts '
      'from the one behind it, and there are max_position_embeddings='
      f'{config.positions}.'
    )
  return config


def _block_sizes(
  raw: Json, path: pathlib.Path, names: Mapping[str, str]
) -> Json:
  """Reads the sizes that every family has, under these names or BERT's."""
  width, count, blocks = (
    names.get(name, name)
    for name in ('hidden_size', 'num_attention_heads', 'num_hidden_layers')
  )
  embed = hub_fields.integer(raw, width, path)
  heads = hub_fields.integer(raw, count, path)
  if embed % heads:
    raise ValueError(
      f'{path}: {width}={embed} must be a multiple of {count}={heads}.'
    )
  wide = raw.get('head_dim', embed // heads)
  if wide != embed // heads:
    raise ValueError(
      f'{path}: head_dim={wide} is not supported, only hidden_size // '
      f'num_attention_heads = {embed // heads}.'
    )
  depth = hub_fields.integer(raw, blocks, path)
  return {'depth': depth, 'embed': embed, 'heads': heads}


def render(config: Config, label_names: Sequence[str]) -> Json:
  """Returns the config.json of a model with its head."""
  name = _CLASSES[config.family]
  common = {
    'model_type': config.family,
    'architectures': [name],
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
  if isinstance(config, ViTConfig):
    common |= {'image_size': config.image_size, 'patch_size': config.patch}
    if config.family == 'dinov2':
      del common['intermediate_size']
      common['mlp_ratio'] = config.ffn // config.embed
      common['use_mask_token'] = False
    return common
  if isinstance(config, DecoderConfig):
    del common['layer_norm_eps']
    return common | hub_llama.render(config)
  if config.span:
    name = name.replace('SequenceClassification', 'QuestionAnswering')
    common['architectures'] = [name]
  common |= {
    'vocab_size': config.vocab,
    'max_position_embeddings': config.positions,
    'pad_token_id': config.pad,
  }
  if config.family == 'distilbert':
    del common['layer_norm_eps']
    return {_DISTILBERT_NAMES.get(k, k): value for k, value in common.items()}
  return common | {'type_vocab_size': config.types}
