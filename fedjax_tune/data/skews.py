"""Rules that give each client other classes, in given amounts.

They are the rules of Flower's `flwr-datasets` that `partitioners.py` lacks, in
our own code.
"""

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import amounts
from fedjax_tune.data.shares import Shares, even
from fedjax_tune.files import paths

_BLOCK = 4096  # Clients whose distributions are held at a time.


def shard(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Gives each client runs of the examples sorted by label (arXiv 1602.05629).

  Clients have equally many examples, to within one, and so do their runs.
  """
  size, each = even(len(labels), cfg.count)[:, None], cfg.shards
  sizes_CxS = size // each + (np.arange(each) < size % each)
  owners = np.repeat(np.arange(cfg.count), each)
  order = rng.permutation(len(owners))
  shuffled = rng.permutation(len(labels))
  ranked = shuffled[np.argsort(labels[shuffled], kind='stable')]
  return Shares.owned(
    ranked, np.repeat(owners[order], sizes_CxS.reshape(-1)[order]), cfg.count
  )


def inner_dirichlet(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Gives each client its own classes by Dir(alpha), with given sizes.

  The sizes are those of `clients.sizes`, or equal. Clients draw one after
  another, in random order. When a class has run out, later clients draw from
  the other classes, as FedDyn's authors do (arXiv 2111.04263). With
  `clients.replace` each client draws from all examples, so that there may be
  more clients than examples.
  """
  if cfg.sizes:
    sizes = amounts.listed_sizes(cfg)
  else:
    sizes = even(len(labels), cfg.count)
    # Where clients outnumber examples.
    sizes = np.maximum(sizes, cfg.min_examples) if cfg.replace else sizes
  _, classes = np.unique(labels, return_inverse=True)
  shuffled = rng.permutation(len(labels))
  order = shuffled[np.argsort(classes[shuffled], kind='stable')]
  held = np.bincount(classes)
  if cfg.replace:
    return _with_replacement(order, held, sizes, cfg, rng)
  amounts.check_total(cfg, int(sizes.sum()), len(labels))
  counts = np.zeros((cfg.count, len(held)), int)
  left = held.copy()
  for client in rng.permutation(cfg.count):
    share = rng.dirichlet(np.full(len(held), cfg.alpha))
    counts[client] = _draw(int(sizes[client]), share, left, rng)
    left -= counts[client]
  # Of each class, client after client takes the next ones.
  clients = np.tile(np.arange(cfg.count), len(held))
  owners = np.repeat(clients, counts.T.reshape(-1))
  begins = np.repeat(np.cumsum(held) - held, counts.sum(axis=0))
  nth = np.concatenate([np.arange(n) for n in counts.sum(axis=0)])
  return Shares.owned(order[begins + nth], owners, cfg.count)


def _draw(
  size: int, share: np.ndarray, left: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Draws how many of each class to take, at most as many as are left."""
  counts = np.zeros(len(left), int)
  while missing := size - counts.sum():
    open_ = left > counts
    # A tiny alpha may leave nothing to the classes that are there.
    chance = np.where(open_, np.nan_to_num(share), 0.0)
    chance = chance if chance.sum() > 0 else open_.astype(float)
    drawn = rng.multinomial(missing, chance / chance.sum())
    counts = np.minimum(counts + drawn, left)
  return counts


def _with_replacement(
  order: np.ndarray,
  held: np.ndarray,
  sizes: np.ndarray,
  cfg: config.Clients,
  rng: np.random.Generator,
) -> Shares:
  """Draws each client's examples from all; `order` lists class by class."""
  begins, parts = np.cumsum(held) - held, []
  for first in range(0, cfg.count, _BLOCK):
    own = sizes[first : first + _BLOCK]
    share = rng.dirichlet(np.full(len(held), cfg.alpha), len(own))
    share = np.where(np.isfinite(share), share, 1 / len(held))
    counts = rng.multinomial(own, share)
    classes = np.repeat(np.tile(np.arange(len(held)), len(own)), counts.ravel())
    parts.append(begins[classes] + rng.integers(held[classes]))
  return Shares.sized(order[np.concatenate(parts)], sizes)


def distribution(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Gives classes in the proportions of a file, `clients.distribution`.

  The file has a row for each client, or for kinds of clients in turn, and in it
  a number for each class, separated by commas: the weight by which clients
  share the examples of the class. All examples are dealt out.

  Raises:
    ValueError: The file is no such table, or a class has no weight, or a client
      gets fewer than `clients.min_examples`.
  """
  weights_CxK = _read_weights(cfg, int(labels.max()) + 1)
  dealt, owners = [], []
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    share = weights_CxK[:, label] / weights_CxK[:, label].sum()
    ends = np.round(np.cumsum(share) * len(members)).astype(int)
    ends[-1] = len(members)
    dealt.append(members)
    owners.append(np.repeat(np.arange(cfg.count), np.diff(ends, prepend=0)))
  parts = Shares.owned(np.concatenate(dealt), np.concatenate(owners), cfg.count)
  if (smallest := parts.sizes.min()) < cfg.min_examples:
    client = int(parts.sizes.argmin())
    raise ValueError(
      f'clients.distribution={cfg.distribution!r}: client {client} would have'
      f' {smallest} examples; must have clients.min_examples={cfg.min_examples}.'
    )
  return parts


def _read_weights(cfg: config.Clients, classes: int) -> np.ndarray:
  """Returns the weights of clients and classes, float64 [C, K]."""
  path, said = cfg.distribution, f'clients.distribution={cfg.distribution!r}'
  file = path and paths.here('clients.distribution', path)
  if not file or not file.is_file():
    raise ValueError(
      f'{said} must be a file with a row of weights for each client, a number for'
      ' each class, with commas between them.'
    )
  try:
    table = np.loadtxt(file, delimiter=',', ndmin=2)
  except ValueError as error:
    raise ValueError(f'{said} must hold numbers alone: {error}') from error
  if table.shape[1] < classes:
    raise ValueError(
      f'{said} has {table.shape[1]} numbers in a row; must have one for each of'
      f' {classes} classes.'
    )
  if not (np.isfinite(table).all() and table.min() >= 0):
    raise ValueError(f'{said} must not have negative or infinite numbers.')
  weights = table[np.arange(cfg.count) % len(table)]
  if not weights[:, :classes].sum(axis=0).all():
    label = int(np.argmin(weights[:, :classes].sum(axis=0)))
    raise ValueError(f'{said}: no client has a weight for class {label}.')
  return weights


def continuous(
  values: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Gives each client neighbours by a number, such as a label or a length.

  With `clients.strictness` 1 the first client has the smallest numbers, with 0
  the division is random; in between the order is blurred by noise.
  """
  spread = values.std() or 1.0
  place = (values - values.mean()) / spread
  noise = rng.normal(size=len(values))
  mixed = cfg.strictness * place + (1 - cfg.strictness) * noise
  order = np.argsort(mixed, kind='stable')
  return Shares.sized(order, even(len(values), cfg.count))
