"""Tiny language models in Hugging Face folders, with their tokenizers."""

import pathlib

from flax import nnx
import jax
import numpy as np
import tiny_text

from fedjax_tune.models import backbone, export, foundation, sizes

BERT = sizes.TextConfig(
  2, 16, 2, 24, vocab=128, positions=32, num_classes=2, full=True
)
LLAMA = sizes.DecoderConfig(
  3, 16, 2, 24, vocab=260, positions=32, group=2, head_dim=4,
  pad=tiny_text.ROBERTA_PAD, full=True,
)  # fmt: skip


def write_bert(folder: pathlib.Path, config: sizes.TextConfig = BERT) -> str:
  """Writes a BERT whose tokenizer knows word pieces; returns its folder."""
  return _write(folder / 'bert', config, tiny_text.write_bert(folder / 'words'))


def write_llama(
  folder: pathlib.Path, config: sizes.DecoderConfig = LLAMA
) -> str:
  """Writes a Llama whose tokens are bytes; returns its folder."""
  words = tiny_text.write_roberta(folder / 'letters')
  return _write(folder / 'llama', config, words)


def _write(folder, config, words):
  build = lambda: backbone.build_model(config, rngs=nnx.Rngs(0))
  split = foundation.split(nnx.eval_shape(build), config.depth)
  rng = np.random.default_rng(0)
  # Norms stay near the identity.
  draw = lambda x: np.float32(0.2 * rng.normal(size=x.shape) + (x.ndim < 3))
  theta = jax.tree.map(draw, split.theta)
  labels = ['no', 'yes'][: config.num_classes]
  export.save_huggingface(folder, config, theta, labels, str(words))
  return str(folder)
