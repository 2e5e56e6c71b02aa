"""EmojiStyles: the same objects in six drawing styles, one config per style.

This is a domain-shift set that needs only npm: six families of emoji, packed by
Iconify, are rendered from their vector drawings. Like DomainNet (arXiv
1812.01754) it has six domains, but every object exists in each of them.

It has 1,161 objects: those for which all six sets have a drawing under the
object's own name, and whose Unicode category is one of `CATEGORIES`. (Iconify's
aliases would add three; one of them, `cricket`, points to a bat and ball in one
set only.) Test objects are unseen in every style: the split is a stable hash of
the name, and names that share a drawing in any set (noto_v1 draws `man-surfing`
like `person-surfing`) are on the same side.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
from typing import ClassVar, cast

from PIL import Image
import tensorflow_datasets as tfds

from fedjax_tune.data import archive, fetch, json_files, pictures, splits, svg
from fedjax_tune.typing import Json, Record


@dataclasses.dataclass(frozen=True)
class Style:
  """One set of drawings: its npm package, the file's sha256, its terms."""

  package: str
  sha256: str
  title: str
  author: str
  license: str
  url: str


# In budget order: the first style's client holds the most blocks by default.
STYLES: Mapping[str, Style] = {
  'noto': Style(
    '@iconify-json/noto@1.2.9',
    '3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad',
    'Noto Emoji',
    'Google Inc',
    'Apache-2.0',
    'https://github.com/googlefonts/noto-emoji',
  ),
  'noto_v1': Style(
    '@iconify-json/noto-v1@1.2.5',
    '2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37',
    'Noto Emoji (v1)',
    'Google Inc',
    'Apache-2.0',
    'https://github.com/googlefonts/noto-emoji',
  ),
  'twemoji': Style(
    '@iconify-json/twemoji@1.2.5',
    '19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7',
    'Twemoji',
    'Twitter, Inc and other contributors',
    'CC-BY-4.0',
    'https://github.com/jdecked/twemoji',
  ),
  'openmoji': Style(
    '@iconify-json/openmoji@1.2.29',
    '03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5',
    'OpenMoji',
    'HfG Schwaebisch Gmuend and external authors',
    'CC-BY-SA-4.0',
    'https://github.com/hfg-gmuend/openmoji',
  ),
  'fluent_flat': Style(
    '@iconify-json/fluent-emoji-flat@1.2.6',
    '7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175',
    'Fluent Emoji Flat',
    'Microsoft Corporation',
    'MIT',
    'https://github.com/microsoft/fluentui-emoji',
  ),
  'fluent_high_contrast': Style(
    '@iconify-json/fluent-emoji-high-contrast@1.2.6',
    '0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0',
    'Fluent Emoji High Contrast',
    'Microsoft Corporation',
    'MIT',
    'https://github.com/microsoft/fluentui-emoji',
  ),
}

# Unicode's groups of emoji, less Flags (five objects).
CATEGORIES = (
  'Smileys & Emotion',
  'People & Body',
  'Animals & Nature',
  'Food & Drink',
  'Travel & Places',
  'Activities',
  'Objects',
  'Symbols',
)

_SIZES = (56, 112, 224)


@dataclasses.dataclass(eq=False)
class EmojiConfig(tfds.core.BuilderConfig):
  """A style, drawn on `size` x `size` pixels."""

  style: str = 'noto'
  size: int = 56


def _new_config(style: str, size: int) -> EmojiConfig:
  title = STYLES[style].title
  return EmojiConfig(
    name=f'{style}_{size}',
    description=f'{title} on {size} x {size} pixels.',
    style=style,
    size=size,
  )


class EmojiStyles(tfds.core.GeneratorBasedBuilder):
  """The same objects in six drawing styles; see the module."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'Six styles, eight categories.'}
  BUILDER_CONFIGS: ClassVar = [
    _new_config(s, n) for s in STYLES for n in _SIZES
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    config = cast(EmojiConfig, self.builder_config)
    size, style = config.size, STYLES[config.style]
    terms = '; '.join(
      f'{name}: {s.title} by {s.author}, {s.license}, {s.url}'
      for name, s in STYLES.items()
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'{__doc__}\nDrawings, authors and licences: {terms}.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(size, size, 3), encoding_format='png'
          ),
          'label': tfds.features.ClassLabel(names=CATEGORIES),
          'name': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage=style.url,
      license=f'{style.title} by {style.author}: {style.license}',
      citation=(
        f'@misc{{{config.style}, title={{{style.title}}},'
        f' author={{{style.author}}}, howpublished={{{style.url}, packed as'
        f' {style.package}}}, note={{{style.license}}}}}'
      ),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, object]]]]:
    sets = dict(zip(STYLES, load_sets(dl_manager.download_dir), strict=True))
    labels = find_objects(list(sets.values()))
    leaders = group_by_drawing(labels, list(sets.values()))
    config = cast(EmojiConfig, self.builder_config)
    examples: dict[str, list] = {split: [] for split in splits.NAMES}
    for name, leader in leaders.items():
      examples[splits.split_of(leader)].append((name, labels[name]))
    return {
      k: self._generate_examples(sets[config.style], v, config.size)
      for k, v in examples.items()
    }

  def _generate_examples(
    self,
    icons: Record,
    objects: Iterable[tuple[str, str]],
    size: int,
  ) -> Iterator[tuple[str, dict[str, object]]]:
    for name, category in objects:
      image = render(icons, name, size)
      yield name, {'image': image, 'label': category, 'name': name}

  def made_of(self, source: str | os.PathLike | None) -> Json:
    """Returns what a copy is made of: packages, and the renderer."""
    del source
    return {
      'packages': [style.package for style in STYLES.values()],
      'contents': [style.sha256 for style in STYLES.values()],
      'size': cast(EmojiConfig, self.builder_config).size,
      'renderer': f'resvg_py {_renderer_version()}',
    }


def _renderer_version() -> str:
  """Returns the version of the renderer.

  Raises:
    RuntimeError: The renderer is not installed.
  """
  try:
    return importlib.metadata.version('resvg_py')
  except importlib.metadata.PackageNotFoundError as error:
    raise RuntimeError(
      'emoji_styles is drawn by resvg-py, which is not installed: it is in the'
      " extra `emoji` (`pip install 'fedjax-tune[emoji]'`)."
    ) from error


def make_builder(
  style: str, size: int, data_dir: str | os.PathLike
) -> EmojiStyles:
  """Returns the builder of one style at any size, registered or not."""
  config = EmojiStyles.builder_configs.get(f'{style}_{size}')
  return EmojiStyles(
    config=config or _new_config(style, size),
    data_dir=data_dir,
    file_format='array_record',
  )


def load_sets(download_dir: str | os.PathLike) -> list[Record]:
  """Fetches all six packages into `download_dir` and returns their drawings.

  Each has the keys of Iconify's icons.json, plus 'category', by object name,
  and 'source', the tarball's name.

  Raises:
    RuntimeError: A package could not be fetched.
    ValueError: A tarball there is corrupt.
  """
  styles = list(STYLES.values())
  with concurrent.futures.ThreadPoolExecutor() as pool:
    paths = pool.map(
      lambda s: fetch.npm_pack(s.package, s.sha256, download_dir), styles
    )
    return [_load_set(p, s.sha256) for p, s in zip(paths, styles, strict=True)]


@functools.cache
def _load_set(path: pathlib.Path, sha256: str) -> Record:
  names = ('package/icons.json', 'package/metadata.json')
  members = archive.read_members(path, sha256, names)
  icons, metadata = (
    json_files.parse(members[name], f'{path}: {name}') for name in names
  )
  icons['source'] = path.name
  icons['category'] = {
    name: category
    for category, names in metadata['categories'].items()
    for name in names
  }
  return icons


def find_objects(sets: Sequence[Record]) -> dict[str, str]:
  """Returns the first set's category of each object that all sets draw."""
  names = set.intersection(*(set(s['icons']) for s in sets))
  category = sets[0]['category']
  return {
    n: category[n] for n in sorted(names) if category.get(n) in CATEGORIES
  }


def group_by_drawing(
  names: Iterable[str], sets: Sequence[Record]
) -> dict[str, str]:
  """Returns for each name the first of those linked to it by a shared drawing."""
  leaders = {name: name for name in sorted(names)}

  def find(name: str) -> str:
    while leaders[name] != name:
      name = leaders[name]
    return name

  for icons in sets:
    first: dict[str, str] = {}
    for name in leaders:
      one = find(name)
      other = find(first.setdefault(icons['icons'][name]['body'], name))
      leaders[max(one, other)] = min(one, other)
  return {name: find(name) for name in leaders}


def render(icons: Record, name: str, size: int) -> Image.Image:
  """Draws an icon on white, its own box centred in `size` x `size` pixels.

  resvg's anti-aliasing is by area, so drawing at the target size gives the same
  as drawing large and shrinking. One-colour sets (`currentColor`) are black.

  Raises:
    ValueError: The drawing is not made of plain shapes of a sane size.
  """
  icon = icons['icons'][name]
  box = [
    icon.get(key, icons.get(key, default))
    for key, default in (('left', 0), ('top', 0), ('width', 16), ('height', 16))
  ]
  try:
    svg.check_box(box)
    svg.check_body(icon['body'])
  except ValueError as error:
    source = icons.get('source', 'icons')
    raise ValueError(f'{source}: drawing {name!r}: {error}') from error
  drawing = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}"'
    f' viewBox="{" ".join(map(str, box))}" color="black">{icon["body"]}</svg>'
  )
  # Here and not above: only this set needs it, an extra of the package.
  import resvg_py

  png = resvg_py.svg_to_bytes(
    svg_string=drawing, background='white', skip_system_fonts=True
  )
  return Image.fromarray(pictures.to_rgb(bytes(png)))
