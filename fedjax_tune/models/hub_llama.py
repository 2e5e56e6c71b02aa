"""config.json of Llama, read and written."""

import pathlib

from fedjax_tune.models import hub_fields, hub_rope
from fedjax_tune.models.sizes import DecoderConfig
from fedjax_tune.typing import Json

_SUPPORTED = {
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
}
_LONGEST = 'max_position_embeddings'


def parse(raw: Json, path: pathlib.Path) -> DecoderConfig:
  """Translates config.json; see `hub_config.parse`."""
  hub_fields.check_supported(raw, _SUPPORTED, path)
  queries = hub_fields.integer(raw, 'num_attention_heads', path)
  if raw.get('num_key_value_heads') is None:
    raw = raw | {'num_key_value_heads': queries}
  heads = hub_fields.integer(raw, 'num_key_value_heads', path)
  if queries % heads:
    raise ValueError(
      f'{path}: num_attention_heads={queries} must be a multiple of '
      f'num_key_value_heads={heads}.'
    )
  embed = hub_fields.integer(raw, 'hidden_size', path)
  if embed % queries:
    raise ValueError(
      f'{path}: hidden_size={embed} must be a multiple of num_attention_heads='
      f'{queries}.'
    )
  if raw.get('head_dim') is None:
    raw = raw | {'head_dim': embed // queries}
  wide = hub_fields.integer(raw, 'head_dim', path)
  if wide % 2:
    raise ValueError(f'{path}: head_dim={wide} must be even.')
  positions = hub_fields.integer({_LONGEST: 2048} | raw, _LONGEST, path)
  config = DecoderConfig(
    depth=hub_fields.integer(raw, 'num_hidden_layers', path),
    embed=embed,
    heads=heads,
    ffn=hub_fields.integer(raw, 'intermediate_size', path),
    vocab=hub_fields.integer(raw, 'vocab_size', path),
    positions=positions,
    group=queries // heads,
    head_dim=wide,
    tied=hub_fields.boolean(raw, 'tie_word_embeddings', path, False),
    rope=hub_rope.parse(raw, positions, path),
    pad=_padding(raw, path),
    eps=hub_fields.epsilon(raw, 'rms_norm_eps', path, 1e-6),
  )
  hub_fields.check_padding(config, path)
  return config


def _padding(raw: Json, path: pathlib.Path) -> int:
  """Returns the padding token, or if there is none the end of a text."""
  if raw.get('pad_token_id') is not None:
    return hub_fields.integer(raw, 'pad_token_id', path, least=0)
  end = raw.get('eos_token_id', 2)
  end = end[0] if isinstance(end, list) and end else end
  if end is None:
    raise ValueError(
      f'{path}: pad_token_id and eos_token_id are null; one of them must name the '
      'token that fills up texts.'
    )
  return hub_fields.integer(
    {'eos_token_id': end}, 'eos_token_id', path, least=0
  )


def render(config: DecoderConfig, common: Json) -> Json:
  """Adds to the fields of every family; see `hub_config.render`."""
  fields = common | {
    'hidden_act': 'silu',
    'num_attention_heads': config.heads * config.group,
    'num_key_value_heads': config.heads,
    'head_dim': config.head_dim,
    'rms_norm_eps': config.eps,
    'tie_word_embeddings': config.tied,
    **hub_rope.render(config.rope),
    'vocab_size': config.vocab,
    'max_position_embeddings': config.positions,
    'pad_token_id': config.pad,
  }
  del fields['layer_norm_eps']
  if not config.num_classes:
    fields['architectures'] = ['LlamaForCausalLM']
  return fields
