import dataclasses
import hashlib
import importlib.metadata
import io
import json
import string
import tarfile

import numpy as np
import pytest

from fedjax_tune import config
from fedjax_tune.data import (
  builders,
  corpus,
  emoji_styles,
  examples,
  fetch,
  outlines,
)

_SIZE = 8
_NAMES = [f'object-{letter}' for letter in string.ascii_lowercase]


def _icons(style: int) -> dict:
  """Each object is a square in the middle, of its own grey in each style."""
  icons = {
    name: {
      'body': f'<path fill="rgb({i},{style},0)" d="M4 4h8v8h-8z"/>',
    }
    for i, name in enumerate(_NAMES)
  }
  icons['flag'] = {'body': '<path d="M0 0h1v1h-1z"/>'}
  icons[f'only-in-{style}'] = {'body': '<path d="M0 0h1v1h-1z"/>'}
  return {'icons': icons, 'width': 16, 'height': 16}


def _write_tarball(path, icons: dict) -> str:
  categories = {'Flags': ['flag'], 'Objects': _NAMES[:13]}
  categories['Symbols'] = _NAMES[13:]
  members = {
    'package/icons.json': icons,
    'package/metadata.json': {'categories': categories},
  }
  with tarfile.open(path, 'w:gz') as archive:
    for name, content in members.items():
      data = json.dumps(content).encode()
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
  """A data folder where six tiny packages are downloaded already."""
  downloads = tmp_path / 'downloads'
  downloads.mkdir()
  styles = {}
  for i, (name, style) in enumerate(emoji_styles.STYLES.items()):
    package, version = style.package[1:].replace('/', '-').split('@')
    path = downloads / f'{package}-{version}.tgz'
    digest = _write_tarball(path, _icons(i))
    styles[name] = dataclasses.replace(style, sha256=digest)
  monkeypatch.setattr(emoji_styles, 'STYLES', styles)

  def no_network(*_args, **_kwargs):
    raise AssertionError('a package was fetched')

  monkeypatch.setattr(fetch, '_npm', no_network)
  return tmp_path


def _load(data_dir, **fields):
  cfg = config.Data(data_dir=str(data_dir), image_size=_SIZE, **fields)
  for domain in outlines.domain_names(cfg):
    builders.build(emoji_styles.make_builder(domain, _SIZE, data_dir))
  return corpus.load(cfg)


def _read(data_dir):
  return corpus.load(config.Data(data_dir=str(data_dir), image_size=_SIZE))


def test_styles_are_domains_in_budget_order():
  assert tuple(emoji_styles.STYLES) == (
    'noto',
    'noto_v1',
    'twemoji',
    'openmoji',
    'fluent_flat',
    'fluent_high_contrast',
  )


def test_every_object_is_in_every_style_and_in_one_split(data_dir):
  train, test = _load(data_dir)
  seen = set()
  for split in (train, test):
    assert split.groups is not None
    per_domain = [sorted(split.groups[split.domains == d]) for d in range(6)]
    assert all(names == per_domain[0] for names in per_domain)
    assert len(per_domain[0]) == len(set(per_domain[0])) > 0
    seen |= set(per_domain[0])
  assert seen == set(_NAMES)  # No flag, nothing that one style lacks.
  assert len(train) + len(test) == 6 * len(_NAMES)


def test_images_and_labels_belong_to_their_rows(data_dir):
  for split in _load(data_dir):
    images = split.read(np.arange(len(split)))
    assert images.shape == (len(split), _SIZE, _SIZE, 3)
    assert images.dtype == np.uint8
    assert split.groups is not None
    number = [_NAMES.index(name) for name in split.groups]
    centre = images[:, _SIZE // 2, _SIZE // 2]
    expected = np.stack([number, split.domains, np.zeros(len(split))], axis=1)
    np.testing.assert_array_equal(centre, expected)
    assert (images[:, 0] == 255).all()
    classes = [split.class_names[k] for k in split.labels]
    assert classes == ['Objects' if n < 13 else 'Symbols' for n in number]


def test_second_load_renders_nothing(data_dir, monkeypatch):
  first, _ = _load(data_dir, domains=('twemoji', 'noto'))

  def fail(*_args):
    raise AssertionError('rendered again')

  monkeypatch.setattr(emoji_styles, 'render', fail)
  second, _ = _load(data_dir, domains=('twemoji', 'noto'))
  assert second.domain_names == ('twemoji', 'noto')
  rows = np.arange(len(first))
  np.testing.assert_array_equal(first.read(rows), second.read(rows))


def test_large_sets_are_read_lazily_and_equal(data_dir, monkeypatch):
  eager, _ = _load(data_dir)
  monkeypatch.setattr(examples, '_IN_MEMORY_BYTES', 0)
  lazy, _ = _load(data_dir)
  assert not isinstance(lazy.inputs, np.ndarray)
  rows = np.array([5, 0, len(lazy) - 1, 5])
  np.testing.assert_array_equal(lazy.read(rows), eager.read(rows))


def test_num_classes_must_leave_two_classes(data_dir):
  message = r"all \d+ train examples have the label 6, 'Objects'"
  with pytest.raises(ValueError, match=message):
    _load(data_dir, num_classes=7)
  with pytest.raises(ValueError, match=r"'noto'.*no train.*num_classes=3"):
    _load(data_dir, num_classes=3)


def test_metadata_names_every_author_and_licence(data_dir):
  for name, style in emoji_styles.STYLES.items():
    info = emoji_styles.make_builder(name, _SIZE, data_dir).info
    assert style.license in info.redistribution_info.license
    assert style.author in info.citation
    for other in emoji_styles.STYLES.values():
      assert f'{other.author}, {other.license}' in info.description


def test_corrupt_tarball_is_refused(data_dir):
  path = next((data_dir / 'downloads').glob('*openmoji*'))
  path.write_bytes(b'half a file')
  with pytest.raises(ValueError, match=r'openmoji.*corrupt.*Delete it'):
    _load(data_dir)


def test_truncated_records_are_refused_and_made_anew(data_dir):
  whole, _ = _load(data_dir)
  path = next(data_dir.glob(f'*/twemoji_{_SIZE}/*/*test.array_record*'))
  path.write_bytes(path.read_bytes()[:1000])
  message = r'twemoji.*corrupt.* has 1000 bytes; must have \d+. Prepare it with'
  with pytest.raises(ValueError, match=message):
    _read(data_dir)
  again, _ = _load(data_dir)
  assert again.fingerprint() == whole.fingerprint()


def test_another_renderer_is_told_and_the_copy_made_anew(data_dir, monkeypatch):
  _load(data_dir)
  monkeypatch.setattr(importlib.metadata, 'version', lambda _: '99.0')
  message = r'its renderer changed: resvg_py \S+ then, resvg_py 99.0 now. Prep'
  with pytest.raises(ValueError, match=message):
    _read(data_dir)
  _load(data_dir)
  _read(data_dir)


@pytest.mark.parametrize(
  ('icon', 'expected'),
  [
    # One colour is black on white.
    ({'body': '<path fill="currentColor" d="M0 0h16v16h-16z"/>'}, [0] * 8),
    # A flat icon's box is centred: two rows of white above and below.
    (
      {'body': '<path fill="#000" d="M0 0h16v8h-16z"/>', 'height': 8},
      [255, 255, 0, 0, 0, 0, 255, 255],
    ),
    # The box may begin elsewhere.
    (
      {'body': '<path fill="#000" d="M4 0h16v8h-16z"/>', 'left': 4},
      [0, 0, 0, 0, 255, 255, 255, 255],
    ),
  ],
)
def test_render(icon, expected):
  icons = {'icons': {'it': icon}, 'width': 16, 'height': 16}
  image = np.asarray(emoji_styles.render(icons, 'it', 8))
  assert image.shape == (8, 8, 3)
  np.testing.assert_array_equal(image[:, 3, 0], expected)


def test_names_that_share_a_drawing_share_a_leader():
  def icons(**bodies):
    return {'icons': {name: {'body': b} for name, b in bodies.items()}}

  sets = [icons(a='1', b='2', c='2', d='3'), icons(a='5', b='6', c='7', d='7')]
  leaders = emoji_styles.group_by_drawing('abcd', sets)
  assert leaders == {'a': 'a', 'b': 'b', 'c': 'b', 'd': 'b'}


@pytest.mark.slow
def test_real_packages(tmp_path):
  builder = builders.make_builder('emoji_styles', 'noto', 56, tmp_path)
  assert builders.build(builder)
  counts = {k: v.num_examples for k, v in builder.info.splits.items()}
  assert counts == {'train': 925, 'test': 236}
  assert not builders.build(builder)
