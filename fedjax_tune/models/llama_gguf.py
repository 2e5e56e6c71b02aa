"""A Llama and its tokenizer from a GGUF file, the format of llama.cpp.

The format: github.com/ggml-org/ggml, docs/gguf.md. Quantised weights become
float32, as llama.cpp would compute with them. Its converter
(convert_hf_to_gguf.py, `LlamaModel.permute`) interleaves the two halves of each
head's queries and keys, on which rotary positions work in pairs; here the
halves are separated again, as in Hugging Face's files.
"""

from collections.abc import Collection
import dataclasses
import os
import pathlib
from typing import Any

import gguf
import numpy as np

from fedjax_tune.models import (
  backbone,
  gguf_header,
  gguf_tokens,
  hub_fields,
  hub_llama,
  sizes,
)
from fedjax_tune.typing import Record

_SUPPORTED = {
  'general.architecture': 'llama',
  'llama.rope.scaling.type': 'none',
  'tokenizer.ggml.model': 'gpt2',
  'tokenizer.ggml.pre': 'smollm',
  'tokenizer.ggml.add_bos_token': False,
  'tokenizer.ggml.add_eos_token': False,
  'tokenizer.ggml.add_space_prefix': False,
}
# What config.json calls the fields.
_FIELDS = {
  'num_hidden_layers': 'llama.block_count',
  'hidden_size': 'llama.embedding_length',
  'intermediate_size': 'llama.feed_forward_length',
  'num_attention_heads': 'llama.attention.head_count',
  'num_key_value_heads': 'llama.attention.head_count_kv',
  'head_dim': 'llama.attention.key_length',
  'max_position_embeddings': 'llama.context_length',
  'rms_norm_eps': 'llama.attention.layer_norm_rms_epsilon',
  'rope_theta': 'llama.rope.freq_base',
  'eos_token_id': 'tokenizer.ggml.eos_token_id',
  'pad_token_id': 'tokenizer.ggml.padding_token_id',
}
# Without these there is no model, or only a guess at one.
_REQUIRED = (
  'general.architecture',
  *(_FIELDS[name] for name in list(_FIELDS)[:4]),
  _FIELDS['max_position_embeddings'],
  _FIELDS['rms_norm_eps'],
  *gguf_tokens.REQUIRED,
)
# Fields of the architecture that change nothing where they agree with others.
_CHECKED = (
  'llama.rope.dimension_count',
  'llama.attention.value_length',
  'llama.vocab_size',
)
# What Hugging Face calls the tensors, after 'layers.{}.' those of a block.
_BLOCK = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_OTHERS = {
  'token_embd': 'embed_tokens',
  'output_norm': 'norm',
  'output': 'lm_head',
}


def load_gguf(path: str | os.PathLike[str]) -> backbone.Pretrained:
  """Loads a Llama; writes its tokenizer.json beside the file, once.

  Args:
    path: The GGUF file.

  Raises:
    ValueError: The file is corrupt, of another architecture, or its tokenizer
      is not the byte-level one of SmolLM.
  """
  path = pathlib.Path(path)
  gguf_header.check(path)
  try:
    reader = gguf.GGUFReader(path)
    found = {name: field.contents() for name, field in reader.fields.items()}
  except (ValueError, KeyError, IndexError, TypeError) as error:
    raise ValueError(f'{path} is not a sound GGUF file: {error}') from error
  hub_fields.check_supported(found, _SUPPORTED, path)
  names = {tensor.name for tensor in reader.tensors}
  config = _config(found, names, path)
  tensors = {}
  for tensor in reader.tensors:
    stem, _, parameter = tensor.name.rpartition('.')
    value = _dequantise(tensor, path)
    if stem.endswith(('attn_q', 'attn_k')):
      value = _pair_halves(value, config.head_dim, f'{path}: {tensor.name!r}')
    tensors[f'{_find_name(stem, path)}.{parameter}'] = value
  loaded = backbone.assemble(tensors, config, str(path))
  if not (path.parent / 'tokenizer.json').exists():
    gguf_tokens.write(found, path.parent)
  return dataclasses.replace(loaded, tokenizer=str(path.parent))


def _config(
  found: Record, names: Collection[str], path: pathlib.Path
) -> sizes.DecoderConfig:
  """Reads the sizes; an unknown field is refused."""
  for name in _REQUIRED:
    if name not in found:
      raise ValueError(f'{path}: the field {name!r} is missing.')
  if found.get('split.count', 1) not in (0, 1):
    raise ValueError(
      f'{path} is one of {found["split.count"]} parts; join them first '
      '(llama-gguf-split --merge).'
    )
  known = {*_SUPPORTED, *_FIELDS.values(), *_CHECKED}
  for name in found:
    if name.startswith('llama.') and name not in known:
      raise ValueError(
        f'{path}: the field {name}={found[name]!r} is not supported.'
      )
  gguf_tokens.check(found, path)
  raw = {ours: found[name] for ours, name in _FIELDS.items() if name in found}
  if not {'eos_token_id', 'pad_token_id'} & raw.keys():
    raise ValueError(
      f'{path}: neither {_FIELDS["pad_token_id"]!r} nor '
      f'{_FIELDS["eos_token_id"]!r} is there: nothing can fill up a batch.'
    )
  raw['vocab_size'] = len(found['tokenizer.ggml.tokens'])
  raw['tie_word_embeddings'] = 'output.weight' not in names
  config = hub_llama.parse(raw, path)
  wants = (config.head_dim, config.head_dim, config.vocab)
  for name, want in zip(_CHECKED, wants, strict=True):
    if found.get(name, want) != want:
      raise ValueError(
        f'{path}: {name}={found[name]!r} is not supported, only {want}.'
      )
  return config


def _dequantise(tensor: Any, path: pathlib.Path) -> np.ndarray:
  kind = tensor.tensor_type
  if kind.name in ('I8', 'I16', 'I32', 'I64'):
    raise ValueError(
      f'{path}: tensor {tensor.name!r} is of type {kind.name}; weights must be '
      'floating-point, or quantised in blocks that have scales.'
    )
  try:
    return gguf.dequantize(tensor.data, kind)
  except NotImplementedError as error:
    raise ValueError(
      f'{path}: tensor {tensor.name!r} is quantised as {kind.name}, which is not '
      'read here.'
    ) from error


def _find_name(stem: str, path: pathlib.Path) -> str:
  """Returns Hugging Face's name of a tensor such as 'blk.0.attn_q'."""
  block, _, part = stem.rpartition('.')
  if part in _BLOCK:
    return f'layers.{block.removeprefix("blk.")}.{_BLOCK[part]}'
  if stem in _OTHERS:
    return _OTHERS[stem]
  raise ValueError(f'{path}: tensor {stem!r} is not one of a plain Llama.')


def _pair_halves(weight: np.ndarray, head_dim: int, what: str) -> np.ndarray:
  """Undoes llama.cpp's order of a head's rows: (0, 0'), (1, 1'), ..."""
  if weight.ndim != 2 or weight.shape[0] % head_dim:
    raise ValueError(
      f'{what} has shape {weight.shape}; it must have rows for whole heads of '
      f'width {head_dim}.'
    )
  outs, ins = weight.shape
  pairs = weight.reshape(outs // head_dim, head_dim // 2, 2, ins)
  return pairs.swapaxes(1, 2).reshape(outs, ins)
