"""Files of others run no code, read nothing outside, and take no memory."""

import ast
import hashlib
import io
import json
import os
import pathlib
import re
import sys
import tarfile
import zipfile

from matplotlib import text as mpl_text
import numpy as np
from PIL import Image
import pytest
from rich import console as rich_console
import tensorflow_datasets as tfds
import tiny_sweep
import tiny_text

from fedjax_tune import config
from fedjax_tune.data import (
  archive,
  builders,
  corpus,
  emoji_styles,
  json_files,
  metadata,
  movie_reviews,
  nico_lists,
  orange_text,
  svg,
  tokens,
)
from fedjax_tune.deploy import finished
from fedjax_tune.models import packaged
from fedjax_tune.report import partition_plot, plots, tables
from launch import sweep_plan

_MIB = 1 << 20


def _digest(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _zip(path, members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as packed:
    for name, content in members:
      packed.writestr(name, content)
  return path


def _tar(path, members):
  """Writes a .tgz of (TarInfo or name, content) pairs."""
  with tarfile.open(path, 'w:gz') as packed:
    for name, content in members:
      info = tarfile.TarInfo(name) if isinstance(name, str) else name
      info.size = len(content)
      packed.addfile(info, io.BytesIO(content))
  return path


def _tar_link(name, target, kind=tarfile.SYMTYPE):
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return info


def _zip_link(name):
  info = zipfile.ZipInfo(name)
  info.external_attr = 0o120777 << 16
  return info


_WRITERS = {'it.whl': _zip, 'it.tgz': _tar}


@pytest.mark.parametrize('name', _WRITERS)
def test_members_are_read_by_name(name, tmp_path):
  members = [('a/b', b'one'), ('../c', b'two'), ('/d', b'three')]
  path = _WRITERS[name](tmp_path / name, members)
  found = archive.read_members(path, _digest(path), ['a/b'])
  assert found == {'a/b': b'one'}
  assert os.listdir(tmp_path) == [name]
  with pytest.raises(ValueError, match=rf"{name}: has no member 'a/c'"):
    archive.read_members(path, _digest(path), ['a/b', 'a/c'])


@pytest.mark.parametrize('name', _WRITERS)
def test_an_archive_is_hashed_before_it_is_parsed(name, tmp_path, monkeypatch):
  path = _WRITERS[name](tmp_path / name, [('a', b'one')])
  for library, opener in ((zipfile, 'ZipFile'), (tarfile, 'open')):
    monkeypatch.delattr(library, opener)
  with pytest.raises(ValueError, match=rf'{name} is incomplete or corrupt'):
    archive.read_members(path, 64 * '0', ['a'])


@pytest.mark.parametrize('name', _WRITERS)
@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', b'\x1f\x8b\x08', b'x'])
def test_bytes_that_are_no_archive(name, content, tmp_path):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(ValueError, match=rf'{name}.*(not an archive|no member)'):
    archive.read_members(path, _digest(path), ['a'])


@pytest.mark.parametrize('cut', [0.3, 0.6, 0.95])
@pytest.mark.parametrize('name', _WRITERS)
def test_archives_that_end_early(name, cut, tmp_path):
  content = os.urandom(50_000)
  path = _WRITERS[name](tmp_path / name, [('a', content), ('b', b'')])
  whole = path.read_bytes()
  path.write_bytes(whole[: int(cut * len(whole))])
  with pytest.raises(ValueError, match=name):
    archive.read_members(path, _digest(path), ['a'])


@pytest.mark.parametrize(
  ('name', 'member'),
  [
    ('it.whl', _zip_link('a')),
    ('it.tgz', _tar_link('a', '/etc/passwd')),
    ('it.tgz', _tar_link('a', '../../etc/passwd')),
    ('it.tgz', _tar_link('a', 'b', tarfile.LNKTYPE)),
    ('it.tgz', _tar_link('a', '', tarfile.FIFOTYPE)),
    ('it.tgz', _tar_link('a', '', tarfile.DIRTYPE)),
  ],
)
def test_links_are_refused(name, member, tmp_path):
  content = b'/etc/passwd' if name == 'it.whl' else b''
  path = _WRITERS[name](tmp_path / name, [('b', b'two'), (member, content)])
  with pytest.raises(ValueError, match="'a' must be a file, not a link"):
    archive.read_members(path, _digest(path), ['a'])


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('name', _WRITERS)
def test_a_member_twice_is_refused(name, tmp_path):
  path = _WRITERS[name](tmp_path / name, [('a', b'one'), ('a', b'two')])
  with pytest.raises(ValueError, match="two members 'a'"):
    archive.read_members(path, _digest(path), ['a'])


@pytest.mark.parametrize('wanted', ['bomb', 'behind'])
@pytest.mark.parametrize('name', _WRITERS)
def test_bombs_are_refused(name, wanted, tmp_path):
  members = [('bomb', bytes(64 * _MIB)), ('behind', b'')]
  path = _WRITERS[name](tmp_path / name, members)
  assert path.stat().st_size < _MIB // 4
  read = lambda: archive.read_members(path, _digest(path), [wanted])
  if (name, wanted) == ('it.whl', 'behind'):
    assert read() == {'behind': b''}  # A zip archive's members are apart.
    return
  with pytest.raises(ValueError, match=r'bytes or more, which .* at most 100'):
    read()


def test_a_bomb_in_a_header_is_refused(tmp_path):
  # An extended header is read into memory whole, before any member is seen.
  header = tarfile.TarInfo('x')
  header.type = tarfile.XHDTYPE
  path = _tar(tmp_path / 'it.tgz', [(header, bytes(64 * _MIB)), ('a', b'')])
  with pytest.raises(ValueError, match=r'the tarball.* bytes or more'):
    archive.read_members(path, _digest(path), ['a'])


@pytest.mark.parametrize('name', _WRITERS)
def test_members_without_end_are_refused(name, tmp_path, monkeypatch):
  monkeypatch.setattr(archive, 'MAX_MEMBERS', 3)
  members = [(str(i), b'') for i in range(4)]
  path = _WRITERS[name](tmp_path / name, members)
  with pytest.raises(ValueError, match='more than 3 members'):
    archive.read_members(path, _digest(path), ['9'])


def test_everything_that_is_packaged_is_pinned():
  digests = [style.sha256 for style in emoji_styles.STYLES.values()]
  digests += [movie_reviews.SHA256, orange_text.SHA256]
  digests += [row.sha256 for row in packaged.PACKAGED.values()]
  assert len(digests) == len(set(digests))
  assert all(re.fullmatch('[0-9a-f]{64}', digest) for digest in digests)


_FEATURES = 'tensorflow_datasets.core.features'
_FEATURE = {'pythonClassName': f'{_FEATURES}.text_feature.Text', 'text': {}}


def _describe(folder, features, info=None):
  """Writes what a prepared set `evil` says about itself."""
  place = folder / 'evil' / '1.0.0'
  place.mkdir(parents=True)
  (place / 'features.json').write_text(json.dumps(features))
  about = {
    'name': 'evil',
    'version': '1.0.0',
    'fileFormat': 'array_record',
    'splits': [{'name': 'train', 'shardLengths': ['1']}],
  }
  (place / 'dataset_info.json').write_text(json.dumps(about | (info or {})))
  return place


def _dict_of(feature):
  return {
    'pythonClassName': f'{_FEATURES}.features_dict.FeaturesDict',
    'featuresDict': {'features': {'text': feature}},
  }


def _in_json(feature):
  # An older form: a feature as text in JSON that is JSON itself.
  content = {'text': {'type': feature, 'content': {}}}
  return {
    'pythonClassName': f'{_FEATURES}.features_dict.FeaturesDict',
    'jsonFeature': {'json': json.dumps(content)},
  }


@pytest.fixture
def evil(tmp_path, monkeypatch):
  """A module that must not be imported; returns the name of a class in it."""
  (tmp_path / 'code').mkdir()
  (tmp_path / 'code' / 'evil_features.py').write_text('raise SystemExit\n')
  monkeypatch.syspath_prepend(tmp_path / 'code')
  yield 'evil_features.Feature'
  assert 'evil_features' not in sys.modules


@pytest.mark.parametrize(
  'features',
  [
    lambda c: {'pythonClassName': c, 'text': {}},
    lambda c: _dict_of({'pythonClassName': c, 'text': {}}),
    lambda c: _dict_of({'python_class_name': c, 'text': {}}),
    lambda c: {'type': c, 'content': {}},
    _in_json,
  ],
)
def test_a_set_runs_no_module(features, evil, tmp_path):
  place = _describe(tmp_path, features(evil))
  # It would, if it came as far as TFDS.
  with pytest.raises(SystemExit):
    tfds.features.FeatureConnector.from_config(str(place))
  message = r"features.json: \w+='evil_features.Feature' must be a class of"
  with pytest.raises(ValueError, match=message):
    builders.make_builder('evil', 'evil', 0, tmp_path)


def test_a_set_runs_no_module_by_its_other_file(evil, tmp_path):
  feature = {'pythonClassName': evil, 'text': {}}
  _describe(tmp_path, _dict_of(_FEATURE), {'features': feature})
  with pytest.raises(
    ValueError, match=r'dataset_info\.json: .* must be a class'
  ):
    builders.make_builder('evil', 'evil', 0, tmp_path)


@pytest.mark.parametrize(
  'info',
  [
    {'name': '../other'},
    {'configName': '/etc'},
    {'splits': [{'name': '../../x', 'shardLengths': ['1']}]},
    {'splits': [{'name': 'train', 'filepathTemplate': '/etc/passwd'}]},
    {'splits': [{'name': 'train', 'filepath_template': '../{SPLIT}'}]},
  ],
)
def test_a_set_reads_nothing_outside(info, tmp_path):
  _describe(tmp_path, _dict_of(_FEATURE), info)
  with pytest.raises(ValueError, match=r'dataset_info.json: .* not a path'):
    builders.make_builder('evil', 'evil', 0, tmp_path)


def test_a_set_has_no_config_outside(tmp_path):
  _describe(tmp_path, _dict_of(_FEATURE))
  (tmp_path / 'evil' / '.config').mkdir()
  file = tmp_path / 'evil' / '.config' / 'metadata.json'
  file.write_text('{"default_config_name": "../../other"}')
  with pytest.raises(ValueError, match=r'metadata.json: default_config_name='):
    builders.make_builder('evil', 'evil', 0, tmp_path)


def test_code_in_the_data_folder_is_not_run(tmp_path, monkeypatch):
  place = _describe(tmp_path, _dict_of(_FEATURE))
  for folder in (tmp_path, place.parent, place):
    for name in ('evil.py', 'evil_dataset_builder.py', '__init__.py'):
      (folder / name).write_text('raise SystemExit\n')
  monkeypatch.chdir(tmp_path)
  builder = builders.make_builder('evil', 'evil', 0, tmp_path)
  assert list(builder.info.features) == ['text']


@pytest.mark.parametrize(
  'name',
  [
    'huggingface:glue',
    'kaggle:titanic',
    'other:mnist',
    '../evil',
    '/etc/evil',
    'evil/../../x',
    'evil/..',
    'evil,x=1',
    'gs://bucket/evil',
    'evil\n',
    '',
    '.',
  ],
)
def test_names_that_lead_elsewhere(name, tmp_path):
  with pytest.raises(ValueError, match=r'data\.name=.*: must be the name'):
    corpus.load(config.Data(name=name, data_dir=str(tmp_path)))
  with pytest.raises(ValueError, match=r'data\.name=.*: must be the name'):
    builders.make_builder(name, name, 0, tmp_path)


@pytest.mark.parametrize('name', ['glue/cola', 'squad/v1.1', 'c4:3.0.1'])
def test_names_of_the_catalogue(name):
  metadata.check_name(name)


def test_json_without_end(tmp_path):
  path = tmp_path / 'it.json'
  path.write_text(100_000 * '[')
  with pytest.raises(ValueError, match=r'it\.json is nested too deeply'):
    json_files.read(path)
  path.write_text('{"a": 1, }')
  with pytest.raises(ValueError, match=r'it\.json is not valid JSON'):
    json_files.read(path)
  path.write_text('[1]')
  with pytest.raises(ValueError, match='must hold a JSON object'):
    json_files.read_object(path)
  with pytest.raises(ValueError, match='has 3 bytes; must be at most 2'):
    json_files.read(path, 2)


def test_metadata_without_end(tmp_path):
  place = _describe(tmp_path, _dict_of(_FEATURE))
  deep = 200 * '{"a":' + '1' + 200 * '}'
  for text in (deep, 100_000 * '{"a":'):
    (place / 'features.json').write_text(text)
    with pytest.raises(ValueError, match=r'features\.json is nested'):
      builders.make_builder('evil', 'evil', 0, tmp_path)


@pytest.fixture
def lists(tmp_path):
  """A folder of NICO++ with one picture; returns a writer of its lists."""
  folder = tmp_path / 'nico'
  (folder / nico_lists.FOLDER).mkdir(parents=True)
  Image.new('RGB', (4, 4)).save(folder / 'in.jpg')
  Image.new('RGB', (4, 4)).save(tmp_path / 'out.jpg')
  (folder / 'link.jpg').symlink_to(tmp_path / 'out.jpg')
  (folder / 'inside.jpg').symlink_to('in.jpg')
  (folder / 'up').symlink_to(tmp_path)

  def write(*lines):
    file = folder / nico_lists.FOLDER / 'autumn_train.txt'
    file.write_text('\n'.join(lines))
    return folder

  return write


@pytest.mark.parametrize(
  'name', ['../out.jpg', '{}/out.jpg', 'link.jpg', 'up/out.jpg', 'up/nico/x/..']
)
def test_a_list_of_pictures_names_nothing_outside(name, lists, tmp_path):
  folder = lists('in.jpg 0', 'inside.jpg 1', f'{name.format(tmp_path)} 2')
  message = r'autumn_train\.txt:3: .* must be a path inside .*nico'
  with pytest.raises(ValueError, match=message):
    nico_lists.read(folder, 'autumn', 'train')
  assert len(
    nico_lists.read(lists('in.jpg 0', 'inside.jpg 1'), 'autumn', 'train')
  )


_BILLION = '<g id="a0"><path d="M0 0"/></g>' + ''.join(
  f'<g id="a{i}">' + f'<use href="#a{i - 1}"/>' * 10 + '</g>'
  for i in range(1, 10)
)


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ('<image href="/etc/passwd"/>', '<image> must not be there'),
    ('<IMAGE href="#a"/>', '<IMAGE> must not'),
    ('<s:image xmlns:s="http://www.w3.org/2000/svg" href="#a"/>', '<image>'),
    ('<feImage href="/x.png"/>', '<feImage> must not'),
    ('<use href="file:///x.svg#a"/>', r"<use href='file:.*must refer to a #"),
    ('<use xlink:href="x.svg"/>', r"<use href='x.svg'> must refer to a #part"),
    ('<use href="&#47;x.svg"/>', r"href='/x.svg'> must refer"),
    ('<path fill="url(http://x/y)" d="M0"/>', r'fill=.*must refer'),
    ('<path fill="url(\'x.svg#a\')" d="M0"/>', r'fill=.*must refer'),
    ('<path style="fill:url( file:/x )" d="M0"/>', r'style=.*must refer'),
    ('<path style="fill:\\75rl(x)" d="M0"/>', r'style=.*must refer'),
    ('<style>@import url(x)</style>', '<style> must not be there'),
    ('<script>x</script>', '<script> must not'),
    ('<text>x</text>', '<text> must not'),
    ('<foreignObject/>', '<foreignObject> must not'),
    ('<!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]>', '<!DOCTYPE'),
    ('<!ENTITY b "c">', '<!ENTITY'),
    ('<?xml-stylesheet href="x"?>', '<.xml-stylesheet'),
    ('&b;', 'is not SVG: undefined entity'),
    ('</svg><svg>', 'is not SVG'),
    ('<path', 'is not SVG'),
    (100 * '<g>' + 100 * '</g>', 'must not nest'),
    ('<g id="a"><use href="#a"/></g>', 'must not nest, or refer to itself'),
    (_BILLION, 'must not draw more than'),
    (_MIB * ' ' + ' ', 'must be text of at most'),
    (None, 'must be text'),
  ],
)
def test_a_drawing_refers_to_nothing_outside(body, message):
  icons = {'icons': {'it': {'body': body}}, 'source': 'noto.tgz'}
  with pytest.raises(
    ValueError, match=rf"^noto\.tgz: drawing 'it': .*{message}"
  ):
    emoji_styles.render(icons, 'it', 8)


def test_a_drawing_may_refer_to_itself():
  svg.check_body(
    '<defs><path id="a" d="M0 0"/><linearGradient id="b"><stop/>'
    '</linearGradient></defs><use xlink:href="#a" fill="url(#b)"/>'
  )


@pytest.mark.parametrize(
  'box',
  [
    {'width': 1e9},
    {'width': 0},
    {'height': float('nan')},
    {'left': '0"/><image href="x"/>'},
    {'top': None},
  ],
)
def test_a_drawing_has_a_sane_size(box):
  icons = {'icons': {'it': {'body': '<path d="M0 0"/>'} | box}}
  with pytest.raises(
    ValueError, match=r"drawing 'it': box .* must be left, top"
  ):
    emoji_styles.render(icons, 'it', 8)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'__class__': {'rounds': 1}}, "config.json: '__class__' is not a field"),
    (
      {'data': {'__init__': {'__globals__': {'x': 1}}}},
      "config.json: data: '__init__' is not a field",
    ),
    ({'data': 1}, "config.json: 'data' must be like Data"),
    ({'rounds': {'__class__': 1}}, "config.json: 'rounds' must be like 100"),
    ({'rounds': '5'}, "config.json: rounds='5' must be of type int"),
    ({'rounds': None}, 'config.json: rounds=None must be of type int'),
    ({'local': {'lr': 'x'}}, "config.json: local.lr='x' must be a finite"),
  ],
)
def test_a_run_sets_nothing_but_its_fields(fields, message, tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  (tmp_path / 'summary.json').write_text('{"rounds": 100}')
  with pytest.raises(ValueError, match=message):
    finished.load(tmp_path)


@pytest.mark.parametrize('name', ['config.json', 'summary.json'])
@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (100_000 * '[', 'nested too deeply'),
    ('{', 'not valid JSON'),
    ('[]', 'must hold a JSON object'),
  ],
)
def test_a_run_whose_files_are_not_its_own(name, text, message, tmp_path):
  for file in ('config.json', 'summary.json'):
    (tmp_path / file).write_text('{}')
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=f'{name}.*{message}'):
    finished.load(tmp_path)


def test_vocabulary_with_settings_without_end(tmp_path):
  folder = tiny_text.write_vocab(tmp_path)
  (folder / 'tokenizer_config.json').write_text(100_000 * '[')
  with pytest.raises(ValueError, match=r'tokenizer_config\.json is nested'):
    tokens.load(folder)
  (folder / 'tokenizer_config.json').unlink()
  (folder / 'tokenizer.json').write_text(100_000 * '[')
  with pytest.raises(ValueError, match=r'tokenizer\.json is nested'):
    tokens.load(folder)


@pytest.mark.parametrize(
  'label', ['..', '.', '../x', '/x', '-x', 'a/b', '.x', 'a\n', '$(x)', 'a b']
)
def test_labels_of_a_sweep_stay_in_its_folder(label, tmp_path):
  with pytest.raises(ValueError, match=r'must read|cannot name'):
    sweep_plan.plan(
      'x.py', f'{label}=fedra', ['0'], [], tmp_path, tiny_sweep.resolve
    )


# Markup of rich, of mathtext and of Markdown, a label that matplotlib leaves
# out, and what steers a terminal.
_NAMES = ['[red]a', '[/]', '$\\frac$', '_b_$c$', 'd|e', '\x1b[2Jf\ng']


def test_names_are_no_markup_in_tables():
  table = tables.Terminal('', ['name', 'n'], [[name, '1'] for name in _NAMES])
  console = rich_console.Console(width=80)
  with console.capture() as captured:
    console.print(table)
  shown = captured.get()
  for name in _NAMES[:-1]:
    assert name in shown
  assert '\x1b[2J' not in shown
  assert '\ufffd[2Jf\ufffdg' in shown
  markdown = tables.markdown(['name', 'n'], [[name, '1'] for name in _NAMES])
  assert len(markdown.splitlines()) == 2 + len(_NAMES)
  for line in markdown.splitlines():
    assert len(re.findall(r'(?<!\\)\|', line)) == 3


def test_names_are_no_markup_in_plots(tmp_path, monkeypatch):
  drawn = []
  draw = mpl_text.Text.draw
  monkeypatch.setattr(
    mpl_text.Text,
    'draw',
    lambda self, *args: drawn.append(self.get_text()) or draw(self, *args),
  )
  clients = partition_plot.Clients(
    np.full(2, len(_NAMES)), np.ones(2, int), np.array([0, 1]), _NAMES[:2]
  )
  ones = np.ones((2, len(_NAMES)), int)
  partition_plot.plot_partition(
    ones, clients, _NAMES, tmp_path / 'partition.png'
  )
  plots.plot_comparison(
    {name: [([1, 2], [0.4, 0.5])] for name in _NAMES},
    tmp_path / 'comparison.png',
  )
  shown = [*_NAMES[:-1], '\ufffd[2Jf\ufffdg']
  assert set(shown) <= set(drawn)
  assert {f'{name}  50.0' for name in shown} <= set(drawn)


_ROOT = pathlib.Path(__file__).parents[2]
# What makes code of data, or of a file's name.
_UNSAFE = {'pickle', 'dill', 'joblib', 'marshal', 'shelve', 'yaml'}
# What processes of one run send each other comes from that run alone.
_MESSAGES = 'fedjax_tune/engine/hosts.py'


@pytest.mark.parametrize('folder', ['fedjax_tune', 'launch', 'experiments'])
def test_data_never_becomes_code(folder):
  for path in (_ROOT / folder).rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      where = f'{path}:{getattr(node, "lineno", 0)}'
      if isinstance(node, ast.Import | ast.ImportFrom):
        names = [getattr(node, 'module', None) or '']
        names += [alias.name for alias in node.names]
        found = {n.partition('.')[0] for n in names} & _UNSAFE
        allowed = {'pickle'} if path == _ROOT / _MESSAGES else set()
        assert found <= allowed, where
      if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        assert called not in ('eval', 'exec', 'os.system', 'torch.load'), where
        for keyword in node.keywords:
          unsafe = keyword.arg in ('shell', 'allow_pickle')
          assert not unsafe or ast.unparse(keyword.value) == 'False', where
