"""The tensors of a torch model's ONNX export, under their names in torch."""

import math
import pathlib

from google.protobuf import message
import numpy as np
import onnx
from onnx import numpy_helper

_NAMELESS = 'onnx::'
# Operators that stand before or instead of a product of quantised weights.
_QUANTISED = ('DequantizeLinear', 'MatMulInteger', 'QLinearMatMul')
_QUANTISED += ('DynamicQuantizeLinear', 'MatMulNBits')

Tensors = dict[str, np.ndarray]


def read(path: str | pathlib.Path, prefix: str) -> tuple[Tensors, Tensors]:
  """Reads the tensors of an ONNX file.

  The exporter folds the transposed weight of a linear map into a nameless
  constant, [in, out]. The Add after such a MatMul has the bias, and the bias
  has a name; the weight is returned under the map's name in torch's layout,
  [out, in].

  Args:
    path: The file.
    prefix: What the names of the wanted model begin with; it is removed.

  Returns:
    Its tensors by name, and the constants without one, 'onnx::...'.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is corrupt or quantised, keeps weights in other files, has
      two tensors with the same name, or a tensor whose shape does not fit its
      data.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'The weights {path} are missing.')
  try:
    # Data in other files is never followed: a name could lead anywhere.
    graph = onnx.load(path, load_external_data=False).graph
  except (message.DecodeError, onnx.checker.ValidationError) as error:
    raise ValueError(
      f'{path} is not an ONNX file, or is cut short: {error}'
    ) from error
  stored: Tensors = {}
  for tensor in graph.initializer:
    if tensor.name in stored:
      raise ValueError(f'{path} has two tensors {tensor.name!r}.')
    stored[tensor.name] = _to_array(tensor, path)
  for node in graph.node:
    if node.op_type in _QUANTISED:
      raise ValueError(
        f'{path} is quantised: it has the operator {node.op_type}. Weights must '
        'be floating-point.'
      )
  named = {
    name.removeprefix(prefix): value
    for name, value in stored.items()
    if name.startswith(prefix)
  }
  nameless = {n: v for n, v in stored.items() if n.startswith(_NAMELESS)}
  return named | _kernels(graph, stored, prefix, path), nameless


def _to_array(tensor: onnx.TensorProto, path: pathlib.Path) -> np.ndarray:
  if tensor.data_location == onnx.TensorProto.EXTERNAL:
    raise ValueError(
      f'{path}: tensor {tensor.name!r} lies in another file; weights must lie '
      'in this one.'
    )
  shape = tuple(tensor.dims)
  # A side of -1 would be guessed.
  if min(shape, default=0) < 0 or math.prod(shape) > tensor.ByteSize() * 8:
    raise ValueError(
      f'{path}: tensor {tensor.name!r} has shape {shape}, but only '
      f'{tensor.ByteSize()} bytes.'
    )
  try:
    return numpy_helper.to_array(tensor)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f'{path}: tensor {tensor.name!r} of shape {shape} can not be read: {error}'
    ) from error


def _kernels(
  graph: onnx.GraphProto, stored: Tensors, prefix: str, path: pathlib.Path
) -> Tensors:
  """Returns the weights of linear maps, under the names of their biases."""
  kernels = {
    node.output[0]: stored[node.input[1]]
    for node in graph.node
    if node.op_type == 'MatMul'
    and len(node.input) == 2
    and node.input[1] in stored
    and node.output
  }
  found: Tensors = {}
  for node in graph.node:
    operands = set(node.input)
    products, biases = operands & kernels.keys(), operands & stored.keys()
    if node.op_type == 'Add' and products and biases:
      bias = biases.pop()
      name = f'{bias.removeprefix(prefix).removesuffix("bias")}weight'
      if name in found:
        raise ValueError(f'{path}: two products add the bias {bias!r}.')
      if bias.startswith(prefix):
        found[name] = kernels[products.pop()].T
  return found


def shape(
  tensors: Tensors, name: str, sides: int, export: str
) -> tuple[int, ...]:
  """Returns the shape of a tensor from which sizes are read.

  Args:
    tensors: The tensors by name.
    name: The tensor's name.
    sides: Number of dimensions that it must have.
    export: What the file should be, for messages: 'm.onnx, an export of ...'.

  Raises:
    ValueError: The tensor is missing, has another number of dimensions, or is
      empty.
  """
  if name not in tensors:
    raise ValueError(f'{export}: it lacks {name}.')
  found = tensors[name].shape
  if len(found) != sides or 0 in found:
    raise ValueError(
      f'{export}: tensor {name!r} has shape {found}, and must have {sides} '
      'sides, none of them empty.'
    )
  return found
