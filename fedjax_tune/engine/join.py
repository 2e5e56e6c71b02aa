"""Joins the results of a round's slabs from several hosts, on each host."""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from fedjax_tune.engine import hosts
from fedjax_tune.engine.algorithm import GroupSums
from fedjax_tune.engine.slabs import Slab
from fedjax_tune.engine.step import Result
from fedjax_tune.typing import Tree


class Made(NamedTuple):
  """The results of a round from the clients of some slabs.

  Attributes:
    totals: What the clients sent, summed by group.
    reports: Sums of the clients' metrics, which add up to those of all slabs.
    rejected: For each slab which clients were left out, bool [C].
    renewed: For each slab what its clients remember, leaves [C, ...].
  """

  totals: GroupSums
  reports: list[Tree]
  rejected: list[jax.Array]
  renewed: list[Tree]


def of_hosts(slabs: Sequence[Slab], own: Made, like: Result) -> Made:
  """Joins the results of all hosts.

  What clients sent is added up across hosts once a round. This waits for
  nothing unless clients remember something.

  Args:
    slabs: The slabs of all hosts.
    own: The results of this host's slabs.
    like: The shapes of the results of a slab.
  """
  flag = like.metrics['rejected']
  shapes = {k: v for k, v in like.metrics.items() if k != 'rejected'}
  zero = jax.tree.map(lambda s: jnp.zeros((), s.dtype), shapes)
  report = jax.tree.map(lambda *xs: sum(xs), zero, *own.reports)
  places = _places(slabs)
  most = max(begin + len(s.ids) for begin, s in zip(places, slabs, strict=True))
  parts = list(zip(own.rejected, own.renewed, strict=True))
  rows = _stacked(parts, (flag, like.state), hosts.rounded(most))
  (totals, report), rows = hosts.combine((own.totals, report), rows)
  # What clients remember lies on the host.
  flags, states = rows[0], jax.tree.map(np.asarray, rows[1])
  return Made(
    totals,
    [report],
    [
      _cut(flags, jax.device_put(np.array([s.host, at], np.int32)), len(s.ids))
      for s, at in zip(slabs, places, strict=True)
    ],
    [
      jax.tree.map(
        lambda x, s=s, at=at: x[s.host, at : at + len(s.ids)], states
      )
      for s, at in zip(slabs, places, strict=True)
    ],
  )


def _places(slabs: Sequence[Slab]) -> list[int]:
  """Returns where each slab's rows begin among those of its host."""
  begin = [0] * hosts.count()
  places = []
  for slab in slabs:
    places.append(begin[slab.host])
    begin[slab.host] += len(slab.ids)
  return places


def _stacked(parts: Sequence[Tree], like: Tree, size: int) -> Tree:
  """Joins leaves [C, ...] of slabs, and pads them with zeros.

  Args:
    parts: The leaves of each slab of this host, which may have no slabs.
    like: The shapes of such a part.
    size: Number of rows in the end.
  """
  rows = jax.tree.map(lambda s: jnp.zeros((size, *s.shape[1:]), s.dtype), like)
  at = 0
  for part in parts:
    rows = _put(rows, part, jax.device_put(np.int32(at)))
    at += len(jax.tree.leaves(part)[0])
  return rows


# The places are arrays, so that a round of other slabs compiles nothing.
@jax.jit
def _put(rows: Tree, part: Tree, at: jax.Array) -> Tree:
  """Overwrites the rows from a position on with a part."""
  put = lambda x, y: lax.dynamic_update_slice_in_dim(x, y, at, 0)
  return jax.tree.map(put, rows, part)


@functools.partial(jax.jit, static_argnums=2)
def _cut(flags: jax.Array, at: jax.Array, size: int) -> jax.Array:
  """Takes some flags of a host, from a position on."""
  return lax.dynamic_slice(flags, (at[0], at[1]), (1, size))[0]
