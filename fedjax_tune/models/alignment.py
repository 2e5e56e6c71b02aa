"""Projections of different models into one space, from public inputs.

This is ours, not HeteroTune's (`bottleneck.py` says why it is needed). At each
site the deepest model is the reference. V are the first r principal directions
of what its adapter reads, S = (X - mean) V, and sigma the deviations of S. For
every model, with Q the nearest matrix with orthonormal columns to X_m^T S,

  D_m = Q / sigma    U_m = mean(sigma) Q^T

so that codes (x - mean_m) D_m agree as far as rotations allow, for any width.
For the reference, Q = V. Rows are some tokens of each input. If tokenizers
differ, they are means over stretches of text at whose ends all tokenizers end a
token (`covers.py`). If tokens of the models do not correspond (other patches or
families), they are means over all tokens. At the last site they are first
tokens, if no other is read there.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import zlib

import jax
import numpy as np

from fedjax_tune.data.public import Shown
from fedjax_tune.models import foundation, reads, spaces
from fedjax_tune.models.federation import Sites
from fedjax_tune.models.foundation import Foundation
from fedjax_tune.typing import Path, Tree

# Path -> the value of a leaf, of each tier.
Values = dict[str, dict[Path, np.ndarray]]


def align(
  tiers: Mapping[str, Foundation],
  sites: Mapping[str, Sites],
  shown: Mapping[str, Shown],
  *,
  projections: str,
  head_map: str,
  first_token: bool,
  seed: int,
) -> dict[str, Foundation]:
  """Sets the projections of models, and the maps of common heads.

  Args:
    tiers: The models, by name.
    sites: Which blocks of each share a core.
    shown: The same public inputs as each model reads them.
    projections: 'free' sets none; else see `bottleneck.Bottleneck`.
    head_map: 'procrustes' or 'ridge', if heads read a code.
    first_token: Whether heads read only the first token. Then nothing else
      passes the last block, and its site is aligned by first tokens.
    seed: Seed of random projections.

  Raises:
    ValueError: A model is narrower than a code, or the inputs are too few.
  """
  weights = reads.weigh(tiers, shown)
  found = {
    name: reads.read(tier, shown[name].inputs, weights[name])
    for name, tier in tiers.items()
  }
  # Of equally deep ones the first.
  reference = max(tiers, key=lambda name: tiers[name].depth)
  # Nothing but first tokens passes the last block of any tier.
  ends = {of.num - 1 for of in sites.values()} if first_token else set()
  values: Values = {name: {} for name in tiers}
  for sublayer in found[reference].adapters if projections != 'free' else ():
    rows = {
      name: _rows(of, sublayer, sites[name], ends) for name, of in found.items()
    }
    path = ('blocks', f'{sublayer}_adapter')
    ranks = {n: _width(t, (*path, 'down')) for n, t in tiers.items()}
    drawn_by = seed if projections == 'random' else None
    _add(values, path, _adapters(rows, sites, reference, ranks, drawn_by))
  if code := _width(tiers[reference], ('head', 'map')):
    features = {name: of.head for name, of in found.items()}
    heads = _heads(features, reference, code, head_map)
    _add(values, ('head',), heads)
  return {name: _set(tier, values[name]) for name, tier in tiers.items()}


def frozen(tier: Foundation) -> dict[str, np.ndarray]:
  """Returns the frozen parameters of a model that alignment set, by path."""
  leaves = foundation.flat(tier.base)
  names = {'mean', 'down', 'up', 'map'}
  within = lambda path: path[0] == 'head' or path[-2].endswith('_adapter')
  return {
    '/'.join(path): np.asarray(leaf)
    for path, leaf in leaves.items()
    if path[-1] in names and within(path)
  }


def restore(
  tiers: Mapping[str, Foundation], known: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Foundation]:
  """Sets the parameters that `frozen` returned for the same models.

  Raises:
    ValueError: The parameters belong to other models.
  """
  shapes = lambda leaves: {path: leaf.shape for path, leaf in leaves.items()}
  for name, tier in tiers.items():
    if shapes(known.get(name, {})) != shapes(frozen(tier)):
      raise ValueError(f'what aligns tiers is not that of tier {name!r}.')
  split = lambda leaves: {(*p.split('/'),): leaf for p, leaf in leaves.items()}
  return {name: _set(tier, split(known[name])) for name, tier in tiers.items()}


def _rows(
  found: reads.Reads, sublayer: str, sites: Sites, ends: Collection[int]
) -> list[np.ndarray]:
  """Returns the rows [M, D] by which each block of a tier is aligned.

  Args:
    found: What the tier reads.
    sublayer: The sublayer of the adapters.
    sites: The tier's sites.
    ends: Sites that are aligned by first tokens.
  """
  rows = list(found.adapters[sublayer])
  for block in np.flatnonzero(np.isin(sites.of_block, list(ends))):
    rows[block] = found.first[sublayer][block]
  return rows


def _adapters(
  rows: Mapping[str, Sequence[np.ndarray]],
  sites: Mapping[str, Sites],
  reference: str,
  ranks: Mapping[str, int],
  seed: int | None,
) -> dict[str, dict[str, np.ndarray]]:
  """Returns `mean`, `down` and `up` of each tier, stacked over its blocks.

  Args:
    rows: What each tier's adapters read, by block [M, D].
    sites: Which blocks share a core.
    reference: The tier whose principal directions are used; at each site those
      of its last block there.
    ranks: Rank of each tier; a narrower code is the beginning of a wider one.
    seed: Seed to draw directions instead; None aligns them.
  """
  rank = max(ranks.values())
  widths = {name: x[0].shape[-1] for name, x in rows.items()}
  _check_width('fedadapter.rank', rank, widths)
  places = sites[reference].of_block
  found = [
    spaces.find_space(
      rows[reference][np.flatnonzero(places == g)[-1]], rank, 'fedadapter.rank'
    )
    for g in range(sites[reference].num)
  ]
  made = {}
  for name, x in rows.items():
    depth, width = len(x), widths[name]
    mean = np.zeros((depth, width), np.float32)
    down = np.zeros((depth, width, ranks[name]), np.float32)
    up = np.zeros((depth, ranks[name], width), np.float32)
    for block, site in enumerate(sites[name].of_block):
      if site == sites[name].num:
        continue
      q, sigma = _directions(x[block], found[site], seed, (name, block))
      mean[block] = x[block].mean(0, dtype=np.float64)
      down[block] = (q / sigma)[:, : ranks[name]]
      up[block] = sigma.mean() * q.T[: ranks[name]]
    made[name] = {'mean': mean, 'down': down, 'up': up}
  return made


def _directions(
  x: np.ndarray, space: spaces.Space, seed: int | None, place: tuple[str, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns orthonormal directions [D, r], and the divisors of codes."""
  if seed is None:
    return spaces.rotation(x, space), space.sigma
  name, block = place
  rng = np.random.default_rng((seed, block, zlib.crc32(name.encode())))
  q = spaces.polar(rng.normal(size=(x.shape[1], len(space.sigma))))
  return q, np.std(spaces.centre(x) @ q, 0)


def _heads(
  features: Mapping[str, np.ndarray], reference: str, rank: int, kind: str
) -> dict[str, dict[str, np.ndarray]]:
  """Returns `mean` and `map` of each tier's head."""
  widths = {name: x.shape[-1] for name, x in features.items()}
  _check_width('tiers.head_rank', rank, widths)
  space = spaces.find_space(features[reference], rank, 'tiers.head_rank')
  made = {}
  for name, x in features.items():
    if kind == 'ridge' and name != reference:
      codes = spaces.regression(x, space)
    else:
      codes = spaces.rotation(x, space) / space.sigma
    mean = x.mean(0, dtype=np.float64)
    made[name] = {'mean': mean, 'map': codes}
  return made


def _check_width(field: str, rank: int, widths: Mapping[str, int]) -> None:
  """Raises a ValueError if a tier is narrower than a code."""
  name = min(widths, key=lambda name: widths[name])
  if rank > widths[name]:
    raise ValueError(
      f'{field}={rank} must be at most {widths[name]}, the width of tier'
      f' {name!r}, to align tiers.'
    )


def _add(
  values: Values, path: Path, found: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
  """Puts the leaves of each tier at a path in the tier's tree."""
  for name, leaves in found.items():
    for leaf, value in leaves.items():
      values[name][(*path, leaf)] = value.astype(np.float32)


def _width(tier: Foundation, path: Path) -> int:
  """Returns the last size of a leaf, trained or not; 0 without it."""
  for tree in (tier.theta, tier.base):
    leaves = foundation.flat(tree)
    if path in leaves:
      return leaves[path].shape[-1]
  return 0


def _set(tier: Foundation, values: Mapping[Path, np.ndarray]) -> Foundation:
  """Returns a model with other values in some leaves."""

  def renew(tree: Tree) -> Tree:
    leaves = foundation.flat(tree)
    own = {
      path: jax.device_put(values[path]) for path in leaves.keys() & values
    }
    return foundation.nest(leaves | own)

  return dataclasses.replace(
    tier, theta=renew(tier.theta), base=renew(tier.base)
  )
