"""Rules that split one pool of labelled examples among clients, in NumPy."""

from collections.abc import Callable, Sequence

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import amounts, skews
from fedjax_tune.data.shares import Shares, even

_DRAWS = 100  # Of the Dirichlet rule, before the best draw is repaired.

# Takes labels [n] of a pool; returns one array of positions for each client.
Rule = Callable[
  [np.ndarray, config.Clients, np.random.Generator], Sequence[np.ndarray]
]


def _dirichlet(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Divides with label skew as FedRA's authors do (datasets/DomainNet.py).

  Each class is cut by proportions from Dir(alpha), and clients that already
  hold their even share get nothing. The authors draw until the smallest client
  has enough; here the best of a bounded number of draws is repaired instead.
  """
  best = None
  for _ in range(_DRAWS):
    drawn = _draw_dirichlet(labels, cfg, rng)
    if best is None or drawn.sizes.min() > best.sizes.min():
      best = drawn
    if best.sizes.min() >= cfg.min_examples:
      return best
  assert best is not None
  return _repair(best, cfg.min_examples)


def _draw_dirichlet(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  dealt, owners = [], []
  sizes = np.zeros(cfg.count, int)
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    share = rng.dirichlet(np.full(cfg.count, cfg.alpha))
    share = np.where(sizes < len(labels) / cfg.count, share, 0.0)
    if not share.sum() > 0:  # A tiny alpha left nothing to those still open.
      share[np.argmin(sizes)] = 1.0
    cuts = np.cumsum(share / share.sum()) * len(members)
    ends = np.append(cuts.astype(int)[:-1], len(members))
    counts = np.diff(ends, prepend=0)
    dealt.append(members)
    owners.append(np.repeat(np.arange(cfg.count), counts))
    sizes += counts
  return Shares.owned(np.concatenate(dealt), np.concatenate(owners), cfg.count)


def _repair(parts: Shares, least: int) -> Shares:
  """Moves examples one by one from the largest client to those too small.

  A client gives away its last examples; of equally large clients the first
  gives.
  """
  lacking = np.maximum(least - parts.sizes, 0)
  spare = np.maximum(parts.sizes - least, 0)
  donors = np.repeat(np.arange(len(parts)), spare)
  # From the last example of each down to those that it keeps.
  nth = np.arange(len(donors)) - np.repeat(np.cumsum(spare) - spare, spare)
  left = parts.sizes[donors] - nth
  first = np.lexsort((donors, -left))[: lacking.sum()]
  owners = parts.owners
  owners[parts.offsets[donors[first]] + left[first] - 1] = np.repeat(
    np.arange(len(parts)), lacking
  )
  return Shares.owned(parts.positions, owners, len(parts))


def _pathological(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Gives each client only k classes (after arXiv 1602.05629, section 3)."""
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
  clients, dealt, owners = rng.permutation(cfg.count), [], []
  for i, label in enumerate(classes):
    holders = clients[np.arange(i, slots, k) // cfg.classes_per_client]
    members = rng.permutation(np.flatnonzero(labels == label))
    dealt.append(members)
    owners.append(np.repeat(holders, even(len(members), len(holders))))
  parts = Shares.owned(np.concatenate(dealt), np.concatenate(owners), cfg.count)
  if (smallest := parts.sizes.min()) < cfg.min_examples:
    raise ValueError(
      f'clients.min_examples={cfg.min_examples}: a client whose'
      f' {cfg.classes_per_client} classes are small holds only {smallest}'
    )
  return parts


def _k_shot(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Gives every client the same number of examples of each class.

  Examples are disjoint as long as a class lasts; then it is dealt out again
  (RaFFM's authors draw with replacement if a set is small, fl_cv.py).
  """
  shots = []
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    passes = -(-cfg.count * cfg.shots // len(members))
    dealt = np.concatenate([rng.permutation(members) for _ in range(passes)])
    shots.append(dealt[: cfg.count * cfg.shots].reshape(cfg.count, cfg.shots))
  each = np.concatenate(shots, axis=1)
  return Shares.sized(each.reshape(-1), np.full(cfg.count, each.shape[1]))


# Divides by a number, which `partition.py` takes in place of labels.
CONTINUOUS = 'continuous'

RULES: dict[str, Rule] = {
  'iid': amounts.iid,
  'dirichlet': _dirichlet,
  'pathological': _pathological,
  'quantity': amounts.quantity,
  'k_shot': _k_shot,
  'shard': skews.shard,
  'inner_dirichlet': skews.inner_dirichlet,
  'linear': amounts.linear,
  'square': amounts.square,
  'exponential': amounts.exponential,
  'sizes': amounts.listed,
  'distribution': skews.distribution,
  CONTINUOUS: skews.continuous,
  'domain': amounts.iid,
  'domain_dirichlet': _dirichlet,
}

# Divides by what the set names, not by a rule of labels.
NATURAL = 'natural'

# Those that look at labels.
NEED_CLASSES = {
  'dirichlet', 'pathological', 'k_shot', 'domain_dirichlet', 'shard',
  'inner_dirichlet', 'distribution',
}  # fmt: skip


# Where clients may draw with replacement.
_SIZED = ('sizes', 'inner_dirichlet')


def may_repeat(cfg: config.Clients) -> bool:
  """Whether clients may share examples, and so outnumber them."""
  if cfg.partition in _SIZED:
    return cfg.replace
  return cfg.partition == 'k_shot'


def hint(cfg: config.Clients) -> str:
  """Says which settings allow more clients than examples."""
  more = '; clients.replace=True draws with replacement'
  return more if cfg.partition in _SIZED else ''


def names() -> tuple[str, ...]:
  """Names all known ways to divide examples."""
  return (*RULES, NATURAL)
