"""Files of weights that are broken, missing, out of place, or lie."""

import json
import os
import pathlib
import shutil
import struct
import time
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import safetensors.numpy
import transformers

from fedjax_tune.models import (
  bert_onnx,
  gguf_header,
  huggingface,
  onnx_tensors,
  pretrained,
)
from tests import tiny_hub, tiny_onnx

_INDEX = 'model.safetensors.index.json'
_FILE = 'model.safetensors'
_NORM = 'encoder.layer.1.output.LayerNorm.weight'


@pytest.fixture(name='whole', scope='module')
def _whole(tmp_path_factory):
  return tiny_hub.write(tmp_path_factory.mktemp('whole'), 'bert')


@pytest.fixture(name='folder')
def _folder(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'bert')


@pytest.fixture(name='sharded')
def _sharded(folder):
  """A folder of two shards, without their common file."""
  found = tiny_hub.read_tensors(folder)
  shards = {'a.safetensors': {}, 'b.safetensors': {}}
  for i, (name, value) in enumerate(sorted(found.items())):
    shards['ab'[i % 2] + '.safetensors'][name] = value
  for shard, tensors in shards.items():
    safetensors.numpy.save_file(tensors, folder / shard)
  names = {name: shard for shard, held in shards.items() for name in held}
  _write_index(folder, names)
  (folder / _FILE).unlink()
  return folder


def _write_index(folder: pathlib.Path, weight_map: Any) -> None:
  index = {'metadata': {}, 'weight_map': weight_map}
  (folder / _INDEX).write_text(json.dumps(index))


def _weight_map(folder: pathlib.Path) -> dict[str, Any]:
  return json.loads((folder / _INDEX).read_text())['weight_map']


def _refuse(folder, *parts, kind: type[Exception] = ValueError):
  with pytest.raises(kind, match=str(folder)) as caught:
    huggingface.load_huggingface(folder)
  for part in parts:
    assert part in str(caught.value), caught.value


def _word(folder) -> np.ndarray:
  return huggingface.load_huggingface(folder).params['embed']['word']


def test_shards_are_one_model(sharded, whole):
  np.testing.assert_array_equal(_word(sharded), _word(whole))


def test_one_file_wins_over_an_index(sharded, whole):
  """As in transformers; the index may be that of an older model."""
  shutil.copy(whole / _FILE, sharded)
  tiny_hub.edit_tensors(sharded, **{_NORM: np.full(12, 7, np.float32)})
  got = huggingface.load_huggingface(sharded).params['blocks']['norm2']['scale']
  np.testing.assert_array_equal(got[1], np.full(12, 7))
  theirs: Any = transformers.AutoModel.from_pretrained(sharded)
  want = theirs.encoder.layer[1].output.LayerNorm.weight.detach().numpy()
  np.testing.assert_array_equal(got[1], want)


@pytest.mark.parametrize(
  'shard',
  [
    '../other/b.safetensors',
    'sub/b.safetensors',
    '..',
    '',
    'b.bin',
    'b\0.safetensors',
  ],
)
def test_a_shard_outside_of_the_folder(sharded, shard):
  names = {
    k: shard if v[0] == 'b' else v for k, v in _weight_map(sharded).items()
  }
  other = sharded.parent / 'other'
  other.mkdir()
  shutil.copy(sharded / 'b.safetensors', other)
  _write_index(sharded, names)
  _refuse(sharded, 'weight_map', repr(shard), 'in the same folder')


def test_a_shard_with_an_absolute_path(sharded):
  names = {k: str(sharded / v) for k, v in _weight_map(sharded).items()}
  _write_index(sharded, names)
  _refuse(sharded, 'weight_map', 'in the same folder')


def test_a_link_that_leaves_the_folder(sharded):
  outside = sharded.parent / 'x.safetensors'
  (sharded / 'b.safetensors').rename(outside)
  (sharded / 'b.safetensors').symlink_to(outside)
  _refuse(sharded, "'b.safetensors'", 'in the same folder')


def test_a_snapshot_of_the_hub(sharded, whole):
  """Its files are links to blobs beside the snapshots."""
  snapshot = sharded.parent / 'models--x' / 'snapshots' / 'abc'
  blobs = snapshot.parent.parent / 'blobs'
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  for i, path in enumerate(sorted(sharded.iterdir())):
    path.rename(blobs / str(i))
    (snapshot / path.name).symlink_to(f'../../blobs/{i}')
  np.testing.assert_array_equal(_word(snapshot), _word(whole))


def test_a_weight_map_of_other_things(sharded):
  names = _weight_map(sharded)
  for wrong in (1, None, ['a.safetensors']):
    _write_index(sharded, names | {_NORM: wrong})
    _refuse(sharded, 'weight_map', repr(_NORM), repr(wrong))
  for wrong in ({}, 7, None, ['a.safetensors']):
    _write_index(sharded, wrong)
    _refuse(sharded, 'has no weight_map')


def test_names_that_differ_in_case_alone(sharded):
  shutil.copy(sharded / 'b.safetensors', sharded / 'B.safetensors')
  names = _weight_map(sharded)
  last = max(name for name, shard in names.items() if shard[0] == 'b')
  _write_index(sharded, names | {last: 'B.safetensors'})
  _refuse(sharded, "'B.safetensors' and 'b.safetensors' differ in case")


def test_a_tensor_in_two_shards(sharded):
  value = safetensors.numpy.load_file(sharded / 'a.safetensors')
  more = safetensors.numpy.load_file(sharded / 'b.safetensors')
  name = min(value)
  safetensors.numpy.save_file(
    more | {name: value[name]}, sharded / 'b.safetensors'
  )
  _refuse(sharded, 'b.safetensors', repr(name), 'in another shard')


def test_a_tensor_that_a_shard_lacks(sharded):
  held = safetensors.numpy.load_file(sharded / 'b.safetensors')
  name = min(held)
  del held[name]
  safetensors.numpy.save_file(held, sharded / 'b.safetensors')
  _refuse(sharded, 'b.safetensors', repr(name), 'is missing')


def test_a_tensor_in_another_shard_than_promised(sharded):
  names = _weight_map(sharded)
  name = min(n for n, shard in names.items() if shard[0] == 'a')
  _write_index(sharded, names | {name: 'b.safetensors'})
  _refuse(sharded, 'a.safetensors', repr(name), "says 'b.safetensors'")


def test_a_shard_that_is_missing(sharded):
  (sharded / 'b.safetensors').unlink()
  _refuse(sharded, 'b.safetensors is missing', kind=FileNotFoundError)


def test_an_index_of_a_million_entries(sharded):
  entries = ','.join(f'"t{i}":"a.safetensors"' for i in range(10**6))
  (sharded / _INDEX).write_text('{"weight_map":{' + entries + '}}')
  start = time.process_time()
  _refuse(sharded, _INDEX, 'bytes')
  assert time.process_time() - start < 0.5


@pytest.mark.parametrize('size', [0, 5, 8, 100, -1])
def test_a_file_that_is_cut_short(folder, size):
  path = folder / _FILE
  path.write_bytes(path.read_bytes()[:size])
  _refuse(folder, _FILE, 'cut short')


def _write_raw(path: pathlib.Path, header: dict[str, Any], data: bytes) -> None:
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)


@pytest.mark.parametrize(
  ('kind', 'shape', 'offsets'),
  [
    ('F32', [10**9, 10**9], [0, 8]),
    ('F32', [2**40, 2**40], [0, 8]),
    ('F32', [2], [0, 2**60]),
    ('F32', [1], [4, 8]),
    ('F32', [3], [0, 8]),
    ('F99', [2], [0, 8]),
    ('F32', [-2], [0, 8]),
  ],
)
def test_a_header_that_lies(folder, kind, shape, offsets):
  header = {'x': {'dtype': kind, 'shape': shape, 'data_offsets': offsets}}
  _write_raw(folder / _FILE, header, bytes(8))
  _refuse(folder, _FILE, 'not a safetensors file')


def test_a_header_of_nearly_all_memory(folder):
  (folder / _FILE).write_bytes(struct.pack('<Q', 2**60) + b'{}')
  _refuse(folder, _FILE, 'not a safetensors file')


def test_no_tensors_at_all(folder):
  _write_raw(folder / _FILE, {}, b'')
  _refuse(folder, 'num_hidden_layers=2 is more', '0 tensors')


@pytest.mark.parametrize('shape', [(0,), (0, 12), (20, 12), (12, 20, 1)])
def test_a_tensor_of_another_shape(folder, shape):
  name = 'encoder.layer.0.output.dense.weight'
  tiny_hub.edit_tensors(folder, **{name: np.ones(shape, np.float32)})
  _refuse(folder, repr(name), str(shape), '(12, 20)')


@pytest.mark.parametrize(
  'name', ['pytorch_model.bin', 'pytorch_model.bin.index.json', 'tf_model.h5']
)
def test_weights_in_another_format(folder, name):
  (folder / _FILE).rename(folder / name)
  _refuse(folder, f'{_FILE} is missing', name, kind=FileNotFoundError)


@pytest.mark.parametrize(
  'name', ['model.fp16.safetensors', 'model-00001-of-00001.safetensors']
)
def test_weights_under_another_name(folder, name):
  (folder / _FILE).rename(folder / name)
  _refuse(folder, f'There is {name}; the weights must', kind=FileNotFoundError)


def test_a_folder_where_a_file_should_be(folder):
  (folder / _FILE).unlink()
  (folder / _FILE).mkdir()
  _refuse(folder, f'{_FILE} is missing', kind=FileNotFoundError)


def test_a_file_where_a_folder_should_be(folder):
  with pytest.raises(
    ValueError, match=r'nor the path of a Hugging Face folder'
  ):
    pretrained.load_pretrained(str(folder / _FILE), '', 16)


@pytest.mark.parametrize(
  'name',
  ['adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin'],
)
def test_an_adapter_beside_the_model(folder, name):
  (folder / name).write_text('{}')
  _refuse(folder, name, 'merge it')


def test_a_configuration_that_says_a_field_twice(folder):
  path = folder / 'config.json'
  path.write_text(path.read_text().rstrip()[:-1] + ', "hidden_size": 14}')
  _refuse(folder, 'config.json', "'hidden_size' twice")


@pytest.mark.parametrize(
  'text', ['', '[]', '[' * 10**5, '{"a": NaN', '{"hidden_size": 1' + '0' * 5000]
)
def test_a_configuration_that_is_none(folder, text):
  (folder / 'config.json').write_text(text)
  _refuse(folder, 'config.json')


def test_a_configuration_of_many_megabytes(folder):
  with open(folder / 'config.json', 'ab') as file:
    os.truncate(file.fileno(), 2**26)
  _refuse(folder, 'config.json', 'bytes')


@pytest.fixture(name='graph')
def _graph():
  graph = tiny_onnx.Graph()
  graph.linear('model.0.auto_model.x', 4, 3)
  return graph


def _refuse_onnx(graph, tmp_path, *parts):
  path = graph.save(tmp_path / 'm.onnx')
  with pytest.raises(ValueError, match=r'm\.onnx') as caught:
    onnx_tensors.read(path, 'model.0.auto_model.')
  for part in parts:
    assert part in str(caught.value), caught.value


def test_onnx_is_read_as_it_is(graph, tmp_path):
  path = graph.save(tmp_path / 'm.onnx')
  named, nameless = onnx_tensors.read(path, 'model.0.auto_model.')
  assert sorted(named) == ['x.bias', 'x.weight']
  assert named['x.weight'].shape == (3, 4)
  assert list(nameless) == ['onnx::MatMul_0']


@pytest.mark.parametrize('place', ['/etc/hostname', '../x', 'beside.bin'])
def test_onnx_with_data_in_another_file(graph, tmp_path, place):
  (tmp_path / 'beside.bin').write_bytes(bytes(48))
  tensor = graph.tensors[0]
  tensor.ClearField('raw_data')
  tensor.data_location = onnx.TensorProto.EXTERNAL
  for key, value in (('location', place), ('offset', '0'), ('length', '48')):
    tensor.external_data.add(key=key, value=value)
  _refuse_onnx(graph, tmp_path, "'onnx::MatMul_0'", 'another file')


@pytest.mark.parametrize(
  'dims', [(-1, 3), (4, 4), (10**9, 10**9), (2**62, 2**62), (0, 3)]
)
def test_onnx_with_a_shape_that_lies(graph, tmp_path, dims):
  tensor = graph.tensors[0]
  del tensor.dims[:]
  tensor.dims.extend(dims)
  _refuse_onnx(graph, tmp_path, "'onnx::MatMul_0'", str(dims))


def test_onnx_with_two_tensors_of_one_name(graph, tmp_path):
  graph.tensors.append(graph.tensors[1])
  _refuse_onnx(graph, tmp_path, "two tensors 'model.0.auto_model.x.bias'")


@pytest.mark.parametrize('kind', ['DequantizeLinear', 'MatMulInteger'])
def test_onnx_that_is_quantised(graph, tmp_path, kind):
  graph.nodes.append(onnx.helper.make_node(kind, ['x', 'y'], ['z']))
  _refuse_onnx(graph, tmp_path, 'quantised', kind)


@pytest.mark.parametrize('dtype', [np.int8, ml_dtypes.float8_e4m3fn])
def test_onnx_of_types_that_are_no_weights(tmp_path, dtype):
  graph, stem = tiny_onnx.Graph(), 'model.0.auto_model'
  for table, rows in (('word', 9), ('position', 5), ('token_type', 2)):
    graph.add(f'{stem}.embeddings.{table}_embeddings.weight', rows, 64)
  graph.add(f'{stem}.encoder.layer.0.intermediate.dense.bias', 6)
  names = ('attention.self.query', 'attention.self.key')
  for name in names:
    graph.linear(f'{stem}.encoder.layer.0.{name}', 64, 64)
  for i, tensor in enumerate(graph.tensors):
    value = onnx.numpy_helper.to_array(tensor).astype(dtype)
    graph.tensors[i] = onnx.numpy_helper.from_array(value, tensor.name)
  path = graph.save(tmp_path / 'm.onnx')
  with pytest.raises(ValueError, match=r'm\.onnx.*must be of float16'):
    bert_onnx.load_bert_onnx(path)


def test_onnx_of_another_width(tmp_path):
  graph, stem = tiny_onnx.Graph(), 'model.0.auto_model'
  for table, rows in (('word', 9), ('position', 5), ('token_type', 2)):
    graph.add(f'{stem}.embeddings.{table}_embeddings.weight', rows, 48)
  graph.add(f'{stem}.encoder.layer.0.intermediate.dense.bias', 6)
  with pytest.raises(ValueError, match='width 48 is no multiple of 32'):
    bert_onnx.load_bert_onnx(graph.save(tmp_path / 'm.onnx'))


def _gguf(
  *, tensors: int = 1, fields: int = 0, body: bytes = b'', data: int = 64
) -> bytes:
  head = b'GGUF' + struct.pack('<IQQ', 3, tensors, fields)
  return head + body + bytes(data)


def _text(value: bytes) -> bytes:
  return struct.pack('<Q', len(value)) + value


def _tensor(shape=(4, 2), kind=0, offset=0) -> bytes:
  sides = struct.pack(f'<I{len(shape)}Q', len(shape), *shape)
  return _text(b'w') + sides + struct.pack('<IQ', kind, offset)


def test_a_sound_gguf_header(tmp_path):
  path = tmp_path / 'm.gguf'
  field = _text(b'k') + struct.pack('<IIQ', 9, 8, 2) + _text(b'a') + _text(b'b')
  path.write_bytes(_gguf(fields=1, body=field + _tensor()))
  gguf_header.check(path)


_MANY = 2**60


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'no GGUF file'),
    (b'GGUF' + bytes(8), 'under 24 bytes'),
    (b'LLMS' + bytes(60), "begins with b'LLMS'"),
    (b'GGUF' + struct.pack('>IQQ', 3, 1, 0) + bytes(60), 'little-endian'),
    (_gguf(tensors=_MANY), 'the number of tensors'),
    (_gguf(fields=_MANY), 'the number of fields'),
    (_gguf(fields=1, body=struct.pack('<Q', _MANY)), 'the name of a field'),
    (
      _gguf(fields=1, body=_text(b'k') + struct.pack('<IIQ', 9, 0, _MANY)),
      "field 'k'",
    ),
    (
      _gguf(fields=1, body=_text(b'k') + struct.pack('<IIQ', 9, 8, _MANY)),
      "field 'k' counts",
    ),
    (
      _gguf(fields=1, body=_text(b'k') + struct.pack('<IIQ', 9, 9, 1)),
      "field 'k' has the unknown type 9",
    ),
    (
      _gguf(fields=1, body=_text(b'k') + struct.pack('<IQ', 8, _MANY)),
      "field 'k'",
    ),
    (_gguf(fields=1, body=_text(b'k') + struct.pack('<I', 99)), 'type 99'),
    (_gguf(body=_tensor(kind=999)), "'w' is of the unknown quantisation type"),
    (_gguf(body=_tensor(shape=(2**31, 2**31))), 'cut short'),
    (_gguf(body=_tensor(offset=2**50)), 'cut short'),
    (_gguf(body=_tensor(shape=(4, 0))), 'none empty'),
    (_gguf(body=_tensor(shape=(31, 2), kind=2)), 'multiple of 32'),
    (_gguf(body=_text(b'w') + struct.pack('<I', 2**31)), 'sides'),
  ],
)
def test_a_gguf_header_that_lies(tmp_path, content, message):
  path = tmp_path / 'm.gguf'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'm\.gguf') as caught:
    gguf_header.check(path)
  assert message in str(caught.value)


def test_a_gguf_file_that_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'm\.gguf are missing'):
    gguf_header.check(tmp_path / 'm.gguf')
