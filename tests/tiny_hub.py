"""Tiny folders as transformers writes them, and changes to them."""

from collections.abc import Callable, Mapping
import json
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import transformers

_TEXT: Any = {
  'vocab_size': 40,
  'hidden_size': 12,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 20,
  'max_position_embeddings': 16,
}
_IMAGE: Any = {
  'hidden_size': 12,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'image_size': 16,
  'patch_size': 4,
}
_DISTILBERT: Any = {
  'vocab_size': 40, 'dim': 12, 'n_layers': 2, 'n_heads': 2, 'hidden_dim': 20,
  'max_position_embeddings': 16,
}  # fmt: skip
# For each family its configuration, its model and one with a head.
FAMILIES: dict[str, tuple[Callable[[], Any], Any, Any]] = {
  'bert': (
    lambda: transformers.BertConfig(**_TEXT),
    transformers.BertModel,
    transformers.BertForMaskedLM,
  ),
  'roberta': (
    lambda: transformers.RobertaConfig(**_TEXT),
    transformers.RobertaModel,
    transformers.RobertaForMaskedLM,
  ),
  'distilbert': (
    lambda: transformers.DistilBertConfig(**_DISTILBERT),
    transformers.DistilBertModel,
    transformers.DistilBertForMaskedLM,
  ),
  'vit': (
    lambda: transformers.ViTConfig(**_IMAGE, intermediate_size=20),
    transformers.ViTModel,
    transformers.ViTForMaskedImageModeling,
  ),
  'deit': (
    lambda: transformers.DeiTConfig(**_IMAGE, intermediate_size=20),
    transformers.DeiTModel,
    transformers.DeiTForImageClassificationWithTeacher,
  ),
  'dinov2': (
    lambda: transformers.Dinov2Config(**_IMAGE, mlp_ratio=2),
    transformers.Dinov2Model,
    transformers.Dinov2ForImageClassification,
  ),
  'llama': (
    lambda: transformers.LlamaConfig(**_TEXT, pad_token_id=0),
    transformers.LlamaModel,
    transformers.LlamaForCausalLM,
  ),
}


def write(
  folder: pathlib.Path, family: str, *, head: bool = False
) -> pathlib.Path:
  """Writes a model as it is drawn; returns its folder."""
  config, *classes = FAMILIES[family]
  torch.manual_seed(0)
  classes[head](config()).save_pretrained(folder)
  return folder


def edit_config(folder: pathlib.Path, **changes: Any) -> None:
  """Changes fields of config.json."""
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a folder's one file."""
  return safetensors.numpy.load_file(folder / 'model.safetensors')


def write_tensors(
  folder: pathlib.Path, tensors: Mapping[str, np.ndarray | None]
) -> None:
  """Writes the tensors of a folder's one file, without those that are None."""
  safetensors.numpy.save_file(
    {k: np.ascontiguousarray(v) for k, v in tensors.items() if v is not None},
    folder / 'model.safetensors',
  )


def edit_tensors(folder: pathlib.Path, **changes: np.ndarray | None) -> None:
  """Changes tensors, and removes those that are None."""
  write_tensors(folder, read_tensors(folder) | changes)
