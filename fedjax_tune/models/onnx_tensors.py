"""The tensors of a torch model's ONNX export, under their names in torch."""

import pathlib

from google.protobuf import message
import numpy as np
import onnx
from onnx import numpy_helper


def read(path: str | pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
  """Reads the tensors of an ONNX file.

  The exporter folds the transposed weight of a linear map into a nameless
  constant, [in, out]. The Add behind such a MatMul has the bias, and the bias
  has the name; the weight comes back under it, as torch had it: [out, in].

  Args:
    path: The file.
    prefix: What the names of the wanted model begin with; it is removed.

  Returns:
    Its tensors by name, and the nameless ones, 'onnx::...'.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is corrupt.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'The weights {path} are missing.')
  try:
    graph = onnx.load(path).graph
  except (message.DecodeError, onnx.checker.ValidationError) as error:
    raise ValueError(
      f'{path} is not an ONNX file, or is cut short: {error}'
    ) from error
  stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
  tensors = {
    name.removeprefix(prefix): value
    for name, value in stored.items()
    if name.startswith((prefix, 'onnx::'))
  }
  kernels = {
    node.output[0]: stored[node.input[1]]
    for node in graph.node
    if node.op_type == 'MatMul' and node.input[1] in stored
  }
  for node in graph.node:
    operands = set(node.input)
    products, biases = operands & kernels.keys(), operands & stored.keys()
    if node.op_type == 'Add' and products and biases:
      stem = biases.pop().removeprefix(prefix).removesuffix('bias')
      tensors[f'{stem}weight'] = kernels[products.pop()].T
  return tensors
