"""config.json of BERT, RoBERTa and DistilBERT, read and written."""

import pathlib

from fedjax_tune.models import hub_fields
from fedjax_tune.models.sizes import TextConfig
from fedjax_tune.typing import Json

# What these models compute here, which is also what `transformers` takes where
# config.json is silent; anything else would run, and be wrong.
_SUPPORTED = {
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


def parse(raw: Json, path: pathlib.Path) -> TextConfig:
  """Translates config.json; see `hub_config.parse`."""
  family = raw['model_type']
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
  padding = 1 if family == 'roberta' else 0
  raw = {'type_vocab_size': 2, 'pad_token_id': padding} | raw
  supported = {names.get(k, k): value for k, value in _SUPPORTED.items()}
  hub_fields.check_supported(raw, supported, path)
  ffn = names.get('intermediate_size', 'intermediate_size')
  config = TextConfig(
    **hub_fields.block_sizes(raw, path, names),
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


def render(config: TextConfig, common: Json) -> Json:
  """Adds to the fields of every family; see `hub_config.render`."""
  fields = common | {
    'vocab_size': config.vocab,
    'max_position_embeddings': config.positions,
    'pad_token_id': config.pad,
  }
  if config.span:
    (name,) = common['architectures']
    name = name.replace('SequenceClassification', 'QuestionAnswering')
    fields['architectures'] = [name]
  if config.family == 'distilbert':
    del fields['layer_norm_eps']
    return {_DISTILBERT_NAMES.get(k, k): value for k, value in fields.items()}
  return fields | {'type_vocab_size': config.types}
