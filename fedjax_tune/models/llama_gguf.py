"""A Llama and its tokenizer from a GGUF file, the format of llama.cpp.

The format: github.com/ggml-org/ggml, docs/gguf.md. Quantised weights become
float32, as llama.cpp would compute with them. Its converter
(convert_hf_to_gguf.py, `LlamaModel.permute`) interleaves the two halves of
each head's queries and keys, on which rotary positions work in pairs; here
they are put side by side again, as Hugging Face has them.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import gguf
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from fedjax_tune.models import backbone, hub_fields, hub_llama

_SUPPORTED = {
  'general.architecture': 'llama',
  'llama.rope.scaling.type': 'none',
  'tokenizer.ggml.model': 'gpt2',
  'tokenizer.ggml.pre': 'smollm',
  'tokenizer.ggml.add_bos_token': False,
}
# What config.json calls the fields.
_FIELDS = {
  'num_hidden_layers': 'llama.block_count',
  'hidden_size': 'llama.embedding_length',
  'intermediate_size': 'llama.feed_forward_length',
  'num_attention_heads': 'llama.attention.head_count',
  'num_key_value_heads': 'llama.attention.head_count_kv',
  'head_dim': 'llama.rope.dimension_count',
  'max_position_embeddings': 'llama.context_length',
  'rms_norm_eps': 'llama.attention.layer_norm_rms_epsilon',
  'rope_theta': 'llama.rope.freq_base',
  'eos_token_id': 'tokenizer.ggml.eos_token_id',
  'pad_token_id': 'tokenizer.ggml.padding_token_id',
}
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
# Of tokens that no text spells: gguf's TokenType.CONTROL.
_CONTROL = 3


def load_gguf(path: str | os.PathLike[str]) -> backbone.Pretrained:
  """Loads a Llama; writes its tokenizer.json beside the file, once.

  Args:
    path: The GGUF file.

  Raises:
    ValueError: The file is corrupt, of another architecture, or its tokenizer
      is not the byte-level one of SmolLM.
  """
  path = pathlib.Path(path)
  reader = gguf.GGUFReader(path)
  found = {name: field.contents() for name, field in reader.fields.items()}
  hub_fields.check_supported(found, _SUPPORTED, path)
  raw = {ours: found[name] for ours, name in _FIELDS.items() if name in found}
  raw['vocab_size'] = len(found['tokenizer.ggml.tokens'])
  names = {tensor.name for tensor in reader.tensors}
  raw['tie_word_embeddings'] = 'output.weight' not in names
  config = hub_llama.parse(raw, path)
  tensors = {}
  for tensor in reader.tensors:
    stem, _, parameter = tensor.name.rpartition('.')
    value = gguf.dequantize(tensor.data, tensor.tensor_type)
    if stem.endswith(('attn_q', 'attn_k')):
      value = _pair_halves(value, config.head_dim)
    tensors[f'{_find_name(stem, path)}.{parameter}'] = value
  loaded = backbone.assemble(tensors, config, str(path))
  if not (path.parent / 'tokenizer.json').exists():
    _write_tokenizer(found, path.parent)
  return dataclasses.replace(loaded, tokenizer=str(path.parent))


def _find_name(stem: str, path: pathlib.Path) -> str:
  """Returns what Hugging Face calls 'blk.0.attn_q'."""
  block, _, part = stem.rpartition('.')
  if part in _BLOCK:
    return f'layers.{block.removeprefix("blk.")}.{_BLOCK[part]}'
  if stem in _OTHERS:
    return _OTHERS[stem]
  raise ValueError(f'{path}: tensor {stem!r} is not one of a plain Llama.')


def _pair_halves(weight: np.ndarray, head_dim: int) -> np.ndarray:
  """Undoes llama.cpp's order of a head's rows: (0, 0'), (1, 1'), ..."""
  outs, ins = weight.shape
  pairs = weight.reshape(outs // head_dim, head_dim // 2, 2, ins)
  return pairs.swapaxes(1, 2).reshape(outs, ins)


def _write_tokenizer(found: Mapping[str, Any], folder: pathlib.Path) -> None:
  """Writes the byte-level BPE whose digits stand alone, as SmolLM's does."""
  tokens = found['tokenizer.ggml.tokens']
  merges = [tuple(m.split(' ', 1)) for m in found['tokenizer.ggml.merges']]
  vocab = {token: number for number, token in enumerate(tokens)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  kinds = zip(tokens, found['tokenizer.ggml.token_type'], strict=True)
  tokenizer.add_special_tokens([t for t, kind in kinds if kind == _CONTROL])
  settings = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  for name, ours in (('eos', 'eos'), ('padding', 'pad')):
    number = found.get(f'tokenizer.ggml.{name}_token_id')
    if number is not None:
      settings[f'{ours}_token'] = tokens[number]
  # The tokenizer comes last and at once: where it is, all of it is.
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  unfinished = folder / '.tokenizer.json'
  tokenizer.save(str(unfinished))
  os.replace(unfinished, folder / 'tokenizer.json')
