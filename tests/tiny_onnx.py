"""ONNX files by hand."""

import itertools
import pathlib

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Graph:
  """Writes an ONNX file as the exporter does: MatMul weights lose names."""

  def __init__(self) -> None:
    self.rng = np.random.default_rng(0)
    self.count = itertools.count()
    self.tensors, self.nodes, self.values = [], [], {}

  def add(self, name: str, *shape: int) -> str:
    value = self.rng.normal(size=shape).astype(np.float32)
    self.values[name] = value
    self.tensors.append(numpy_helper.from_array(value, name))
    return name

  def linear(self, stem: str, fan_in: int, fan_out: int) -> None:
    product = f'/{stem}/MatMul_output_0'
    kernel = self.add(f'onnx::MatMul_{next(self.count)}', fan_in, fan_out)
    bias = self.add(f'{stem}.bias', fan_out)
    self.values[f'{stem}.kernel'] = self.values[kernel]
    self.nodes += [
      helper.make_node('MatMul', ['x', kernel], [product]),
      helper.make_node('Add', [bias, product], [f'/{stem}/Add_output_0']),
    ]

  def save(self, path: pathlib.Path) -> pathlib.Path:
    graph = helper.make_graph(self.nodes, 'g', [], [], self.tensors)
    onnx.save(helper.make_model(graph), path)
    return path
