"""Rules that split one pool of labelled examples among clients, in NumPy."""

from collections.abc import Callable

import numpy as np

from fedjax_tune import config

_DRAWS = 100  # Of the Dirichlet rule, before the best draw is repaired.

# Takes labels [n] of a pool; returns one array of positions for each client.
Parts = list[np.ndarray]
Rule = Callable[[np.ndarray, config.Clients, np.random.Generator], Parts]


def _iid(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Parts:
  return np.array_split(rng.permutation(len(labels)), cfg.count)


def _dirichlet(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Parts:
  """Label skew as FedRA's authors draw it (datasets/DomainNet.py, partition).

  Each class is cut by proportions from Dir(alpha), where clients that already
  hold their even share get nothing. They draw until the smallest client has
  enough; here the best of a bounded number of draws is repaired instead.
  """
  best: Parts = []
  for _ in range(_DRAWS):
    parts = _draw_dirichlet(labels, cfg, rng)
    if not best or min(map(len, parts)) > min(map(len, best)):
      best = parts
    if min(map(len, best)) >= cfg.min_examples:
      return best
  return _repair(best, cfg.min_examples)


def _draw_dirichlet(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Parts:
  parts: list[list[np.ndarray]] = [[] for _ in range(cfg.count)]
  sizes = np.zeros(cfg.count, int)
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    share = rng.dirichlet(np.full(cfg.count, cfg.alpha))
    share = np.where(sizes < len(labels) / cfg.count, share, 0.0)
    if not share.sum() > 0:  # A tiny alpha left nothing to those still open.
      share[np.argmin(sizes)] = 1.0
    cuts = np.cumsum(share / share.sum()) * len(members)
    for part, piece in zip(
      parts, np.split(members, cuts.astype(int)[:-1]), strict=True
    ):
      part.append(piece)
    sizes = np.array([sum(map(len, part)) for part in parts])
  return [np.concatenate(part) for part in parts]


def _repair(parts: Parts, least: int) -> Parts:
  """Moves examples one by one from the largest client to those too small."""
  pools = [part.tolist() for part in parts]
  for pool in pools:
    while len(pool) < least:
      pool.append(max(pools, key=len).pop())
  return [np.array(pool, int) for pool in pools]


def _pathological(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Parts:
  """Each client holds just k classes (after arXiv 1602.05629, section 3)."""
  classes = rng.permutation(np.unique(labels))
  slots, k = cfg.count * cfg.classes_per_client, len(classes)
  if not slots / cfg.count <= k <= slots:
    raise ValueError(
      f'clients.classes_per_client={cfg.classes_per_client}: must be at most'
      f' the number of classes, {k}, and give all of them to'
      f' {cfg.count} clients'
    )
  # Dealt out in turn: a client's slots are neighbours, so they never hold a
  # class twice, and each class has holders.
  parts: list[list[np.ndarray]] = [[] for _ in range(cfg.count)]
  clients = rng.permutation(cfg.count)
  for i, label in enumerate(classes):
    holders = clients[np.arange(i, slots, k) // cfg.classes_per_client]
    members = rng.permutation(np.flatnonzero(labels == label))
    for client, piece in zip(
      holders, np.array_split(members, len(holders)), strict=True
    ):
      parts[client].append(piece)
  smallest = min(sum(map(len, part)) for part in parts)
  if smallest < cfg.min_examples:
    raise ValueError(
      f'clients.min_examples={cfg.min_examples}: a client whose'
      f' {cfg.classes_per_client} classes are small holds only {smallest}'
    )
  return [np.concatenate(part) for part in parts]


def _quantity(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Parts:
  """Sizes by Dir(alpha) on top of the least size; labels iid."""
  share = rng.dirichlet(np.full(cfg.count, cfg.alpha))
  if not np.isfinite(share).all():
    share = np.eye(cfg.count)[rng.integers(cfg.count)]
  spare = len(labels) - cfg.count * cfg.min_examples
  ends = np.round(np.cumsum(share) * spare).astype(int)
  ends += cfg.min_examples * np.arange(1, cfg.count + 1)
  return np.split(rng.permutation(len(labels)), ends[:-1])


def _k_shot(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Parts:
  """The same number of examples of each class for everyone.

  Disjoint as long as a class lasts; then it is dealt out anew (RaFFM's
  authors draw with replacement where a set is small, fl_cv.py).
  """
  parts: list[list[np.ndarray]] = [[] for _ in range(cfg.count)]
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    passes = -(-cfg.count * cfg.shots // len(members))
    dealt = np.concatenate([rng.permutation(members) for _ in range(passes)])
    for part, start in zip(
      parts, range(0, cfg.count * cfg.shots, cfg.shots), strict=True
    ):
      part.append(dealt[start : start + cfg.shots])
  return [np.concatenate(part) for part in parts]


RULES: dict[str, Rule] = {
  'iid': _iid,
  'dirichlet': _dirichlet,
  'pathological': _pathological,
  'quantity': _quantity,
  'k_shot': _k_shot,
  'domain': _iid,
  'domain_dirichlet': _dirichlet,
}

# Divides by what the set names, not by a rule of labels.
NATURAL = 'natural'

# Those that look at labels.
NEED_CLASSES = {'dirichlet', 'pathological', 'k_shot', 'domain_dirichlet'}


def names() -> tuple[str, ...]:
  """Names all known ways to divide examples."""
  return (*RULES, NATURAL)
