"""The one colour, dash and marker of each method, in every picture."""

from collections.abc import Mapping
import hashlib
from typing import NamedTuple

from matplotlib import colors as mpl_colors

from fedjax_tune.report import figure

_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY, _BROWN, _GREY = figure.COLORS
_SOLID, _DASHED, _DOTTED, _DASH_DOT = (
  '-', (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)),
)  # fmt: skip
_MARKERS = 'os^DvPX'


class Style(NamedTuple):
  """How a method is drawn.

  Attributes:
    color: Colour of lines, markers and labels.
    dash: Dashes of lines.
    marker: Marker of points.
  """

  color: str
  dash: figure.Dash
  marker: str


# Methods that papers compare with one another differ in colour, and families
# of methods in dashes; baselines are black and grey.
_FAMILIES: tuple[tuple[figure.Dash, dict[str, str]], ...] = (
  (
    _SOLID,
    {
      'fedra': _BLUE,
      'inclusivefl': _ORANGE,
      'depthfl': _GREEN,
      'raffm': _RED,
      'heterotune': _PINK,
      'composed': _BROWN,
      'fedper': _SKY,
      'all_large': figure.INK,
    },
  ),
  (
    _DASHED,
    {
      'fedit': _BLUE,
      'rbla': _ORANGE,
      'flexlora': _GREEN,
      'hetlora': _RED,
      'flora': _PINK,
      'fedex_lora': _BROWN,
      'ffa_lora': _SKY,
      'all_small': _GREY,
    },
  ),
  (
    _DASH_DOT,
    {
      'fjord': _BLUE,
      'federated_dropout': _ORANGE,
      'heterofl': _GREEN,
      'fedrolex': _RED,
      'prunefl': _PINK,
      'prism': _SKY,
      'exclusivefl': _GREY,
    },
  ),
  (_DOTTED, {'scaffold': _BLUE, 'feddyn': _RED, 'local_only': figure.INK}),
)
METHODS = {
  name: Style(color, dash, _MARKERS[i % len(_MARKERS)])
  for dash, colors in _FAMILIES
  for i, (name, color) in enumerate(colors.items())
}
# How variants of a method differ from it, one after another: shade and dash.
_SHADES = (0.0, -0.35, 0.4)
_DASHES: tuple[figure.Dash, ...] = (
  _SOLID, _DASHED, _DASH_DOT, (0, (8, 2, 1.2, 2, 1.2, 2)), (0, (2.5, 2.5)),
)  # fmt: skip
_VARIANTS = [(shade, dash) for dash in _DASHES for shade in _SHADES]


def of(methods: Mapping[str, str]) -> dict[str, Style]:
  """Returns how the runs of a picture are drawn.

  Args:
    methods: For each label the name of its method.

  Guarantees:
    - A run labelled with its method's name looks the same in every picture.
    - A variant has a shade of its method's colour and dashes; both follow from
      its label. If another run in the picture has the same ones, it takes the
      next.
    - No two runs in a picture look alike, up to a hundred variants of a method:
      beyond fifteen they have other methods' colours.
  """
  found = {
    label: METHODS.get(label) or _of_users(label)
    for label, method in methods.items()
    if label == method
  }
  for label in sorted(methods):
    if label not in found:
      found[label] = _variant(label, methods[label], set(found.values()))
  return {label: found[label] for label in methods}


def _variant(label: str, method: str, taken: set[Style]) -> Style:
  base = METHODS.get(method) or _of_users(method)
  first = _number(label) % len(_VARIANTS)
  others = [color for color in figure.COLORS if color != base.color]
  for color in (base.color, *others):
    for shade, dash in _VARIANTS[first:] + _VARIANTS[:first]:
      style = Style(_shaded(color, shade), dash, base.marker)
      if style not in taken:
        return style
  return base


def _of_users(method: str) -> Style:
  number = _number(method)
  return Style(
    figure.COLORS[number % len(figure.COLORS)],
    _DOTTED,
    _MARKERS[number % len(_MARKERS)],
  )


def _number(name: str) -> int:
  """Returns a number that depends on a name alone, in every process."""
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


def _shaded(color: str, shade: float) -> str:
  """Mixes a colour with white above 0, with black below."""
  if not shade:
    return color
  other = 1.0 if shade > 0 else 0.0
  mix = lambda part: (1 - abs(shade)) * part + abs(shade) * other
  red, green, blue = mpl_colors.to_rgb(color)
  return mpl_colors.to_hex((mix(red), mix(green), mix(blue)))
