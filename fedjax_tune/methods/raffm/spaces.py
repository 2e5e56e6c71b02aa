"""Which subnetworks RaFFM may cut: an elastic space of sizes."""

from collections.abc import Iterator, Mapping
import dataclasses
import itertools

import numpy as np

from fedjax_tune import config

# Field of a space -> the axes that shrink with it.
AXES = {
  'head_dim': ('qk_dim', 'v_dim'),
  'heads': ('heads',),
  'ffn': ('ffn',),
  'embed': ('embed',),
  'layers': ('layer',),
}


@dataclasses.dataclass(frozen=True)
class Space:
  """Shares of the full model that a subnetwork can have, field by field.

  One draw serves all layers. The released code draws the MLP's width for each
  layer separately, which stacked layers of one shape cannot hold. Mode 'mask'
  draws by layer.
  """

  head_dim: tuple[float, ...] = (1.0,)
  heads: tuple[float, ...] = (1.0,)
  ffn: tuple[float, ...] = (1.0,)
  embed: tuple[float, ...] = (1.0,)
  layers: tuple[float, ...] = (1.0,)

  def choices(self) -> list[tuple[float, ...]]:
    """Returns every subnetwork as shares, in the order of the fields."""
    return list(itertools.product(*dataclasses.astuple(self)))

  def smallest(self) -> tuple[float, ...]:
    """Returns the subnetwork that is least in every field."""
    return tuple(min(shares) for shares in dataclasses.astuple(self))

  def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
    """Draws each field uniformly."""
    fields = dataclasses.astuple(self)
    return tuple(float(rng.choice(shares)) for shares in fields)


# RaFFM's released default (raffm/model_scaling.py, December 2023) and the
# spaces of its successor (github.com/yusx-swapp/OFM, scripts), as shares of
# the models that they were written for.
SPACES = {
  'released': Space(ffn=(1.0, 1920 / 3072, 1280 / 3072)),
  'ofm_bert': Space(ffn=(1.0, 960 / 3072, 600 / 3072), embed=(1.0, 600 / 768)),
  'ofm_vit': Space(ffn=(1.0, 1280 / 3072, 960 / 3072), embed=(1.0, 648 / 768)),
}


def make_space(options: config.Raffm) -> Space:
  """Returns the space that a configuration names.

  Raises:
    ValueError: There is no such preset, or fields of a custom space are set in
      addition to one.
  """
  own = Space(**{f: tuple(getattr(options, f)) for f in AXES})
  if options.space == 'custom':
    return own
  if options.space not in SPACES:
    raise ValueError(
      f'raffm.space={options.space!r} must be one of'
      f' {", ".join([*SPACES, "custom"])}.'
    )
  if own != Space():
    raise ValueError(
      f"raffm.space={options.space!r} must be 'custom' where raffm.head_dim,"
      ' heads, ffn, embed or layers are given.'
    )
  return SPACES[options.space]


def row_of(
  shares: tuple[float, ...], sizes: Mapping[str, int]
) -> dict[str, int]:
  """Returns what a subnetwork holds, at least one index of each axis.

  Raises:
    ValueError: The subnetwork narrows the heads of a model with rotary
      positions, whose queries and keys are not cut.
  """
  row = {'layer': sizes['layer']}
  for axis, share in _by_axis(shares):
    if axis == 'qk_dim' and 'rotary' in sizes:
      if share != 1:
        raise ValueError(
          f'head_dim={share:g} must be 1 for this model: its rotary positions'
          ' tie the channels of queries and keys to frequencies.'
        )
      continue
    row[axis] = max(1, round(share * sizes[axis]))
  return {a: n for a, n in row.items() if a == 'layer' or n < sizes[a]}


def _by_axis(shares: tuple[float, ...]) -> Iterator[tuple[str, float]]:
  for axes, share in zip(AXES.values(), shares, strict=True):
    yield from ((axis, share) for axis in axes)
