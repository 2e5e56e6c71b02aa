"""Checks drawings from elsewhere before they are rendered.

A renderer follows the references in a drawing, even to files on this machine.
Only shapes are allowed, and references to parts of the same drawing.
"""

from collections.abc import Sequence
import math
import re
from xml.etree import ElementTree

_SHAPES = {
  'circle',
  'clipPath',
  'defs',
  'ellipse',
  'g',
  'line',
  'linearGradient',
  'mask',
  'path',
  'pattern',
  'polygon',
  'polyline',
  'radialGradient',
  'rect',
  'stop',
  'symbol',
  'use',
  # Filters that read nothing but the shape; feImage reads files.
  'feBlend',
  'feColorMatrix',
  'feComposite',
  'feFlood',
  'feGaussianBlur',
  'feMerge',
  'feMergeNode',
  'feOffset',
  'filter',
}
# The largest of the emoji has 170,000 characters, and none nests this deep.
_MAX_LENGTH = 1 << 20
_MAX_DEPTH = 50
# With all that each `use` repeats, and repeats of repeats.
_MAX_DRAWN = 100_000
_MAX_SIDE = 4096

_ROOT = (
  '<svg xmlns="http://www.w3.org/2000/svg"'
  ' xmlns:xlink="http://www.w3.org/1999/xlink">'
)
_OTHER_URL = re.compile(r'url\(\s*["\']?\s*(?!["\'\s#])', re.IGNORECASE)


def check_box(box: Sequence[object]) -> None:
  """Raises a ValueError unless left, top, width and height make a canvas."""
  numbers = [
    x
    for x in box
    if isinstance(x, int | float) and math.isfinite(x) and abs(x) <= _MAX_SIDE
  ]
  if len(numbers) != 4 or min(numbers[2:]) <= 0:
    raise ValueError(
      f'box {box} must be left, top, width and height, four numbers of at most'
      f' {_MAX_SIDE}, the last two above 0'
    )


def check_body(body: object) -> None:
  """Raises a ValueError unless the body of an <svg> is plain shapes."""
  if not isinstance(body, str) or len(body) > _MAX_LENGTH:
    raise ValueError(f'must be text of at most {_MAX_LENGTH} characters')
  if match := re.search('<[!?]', body):
    raise ValueError(f'{body[match.start() :][:30]!r} must not be there')
  try:
    root = ElementTree.fromstring(f'{_ROOT}{body}</svg>')
  except ElementTree.ParseError as error:
    raise ValueError(f'is not SVG: {error}') from error
  by_id: dict[str, ElementTree.Element] = {}
  for element in root.iter():
    if element is not root:
      _check_element(element)
    by_id.setdefault(element.get('id', ''), element)
  _Counter(by_id).count(root)


def _check_element(element: ElementTree.Element) -> None:
  tag = _local(element.tag)
  if tag not in _SHAPES:
    raise ValueError(f'<{tag}> must not be there, only shapes')
  for name, value in element.attrib.items():
    if _local(name) == 'href' and not value.startswith('#'):
      raise ValueError(f'<{tag} href={value!r}> must refer to a #part of it')
    if _OTHER_URL.search(value) or '\\' in value:
      raise ValueError(f'<{tag} {name}={value!r}> must refer to a #part of it')


class _Counter:
  """Counts the shapes that are finally drawn: a few `use` can make billions."""

  def __init__(self, by_id: dict[str, ElementTree.Element]) -> None:
    self._by_id = by_id
    self._known: dict[ElementTree.Element, int] = {}

  def count(self, element: ElementTree.Element, depth: int = 0) -> int:
    if depth > _MAX_DEPTH:
      raise ValueError(
        f'must not nest, or refer to itself, {_MAX_DEPTH} times or more'
      )
    if element not in self._known:
      parts = list(element)
      for name, value in element.attrib.items():
        target = self._by_id.get(value.removeprefix('#'))
        if _local(name) == 'href' and target is not None:
          parts.append(target)
      self._known[element] = 1 + sum(
        self.count(part, depth + 1) for part in parts
      )
    if self._known[element] > _MAX_DRAWN:
      raise ValueError(f'must not draw more than {_MAX_DRAWN} shapes')
    return self._known[element]


def _local(name: str) -> str:
  """Returns a name without its namespace."""
  return name.rpartition('}')[2]
