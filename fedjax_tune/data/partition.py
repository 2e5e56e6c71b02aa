"""Which client holds which examples: partitions and budgets of clients.

A rule splits the labels of one pool of examples among clients. The plain
partitions have one pool; the domain partitions have one pool for each domain.
All of this is NumPy and depends only on the configuration's seed.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import groups, partitioners, shares
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.data.shares import Shares


@dataclasses.dataclass(frozen=True)
class Partition:
  """The clients' examples.

  Attributes:
    indices: For each client, sorted positions in the corpus.
    domains: int32[C], each client's domain; -1 if it may hold several.
  """

  indices: Shares
  domains: np.ndarray

  def __len__(self) -> int:
    return len(self.indices)

  def sizes(self) -> np.ndarray:
    """Returns the number of examples of each client, int64[C]."""
    return self.indices.sizes

  def histogram(
    self, corpus: Corpus, clients: Sequence[int] | None = None
  ) -> np.ndarray:
    """Returns how often clients hold each label, int64[C, K].

    Args:
      corpus: The examples.
      clients: Ids of the clients to count; None takes all.
    """
    classes = len(corpus.class_names)
    held = self.indices
    if clients is not None:
      held = Shares.of([held[k] for k in clients])
    at = held.owners * classes + corpus.labels[held.positions]
    return np.bincount(at, minlength=len(held) * classes).reshape(-1, classes)

  def present(self, corpus: Corpus) -> Callable[[int], np.ndarray] | None:
    """Returns client -> which labels it has, bool[K]; None without classes."""
    if not (classes := len(corpus.class_names)):
      return None
    return lambda client: (
      np.bincount(corpus.labels[self.indices[client]], minlength=classes) > 0
    )


def partition(
  cfg: config.Clients,
  corpus: Corpus,
  reserved: Sequence[int] | np.ndarray = (),
) -> Partition:
  """Divides the examples of a corpus among clients.

  All examples but the reserved ones are dealt out, each to one client, except
  with k_shot, natural, sizes and clients.replace. With `divide_objects` an
  object's images in other domains are left out.

  Args:
    cfg: How to divide them.
    corpus: The examples.
    reserved: Positions of examples that no client gets.

  Raises:
    ValueError: The settings are impossible; the message names the field and the
      rule.
  """
  _check(cfg)
  if not corpus.class_names and cfg.partition in partitioners.NEED_CLASSES:
    raise ValueError(
      f'clients.partition={cfg.partition!r} needs classes, which the data set'
      ' does not have.'
    )
  if cfg.partition == partitioners.NATURAL:
    domains = client_domains(cfg, len(corpus.domain_names))
    return Partition(groups.natural(cfg, corpus, reserved), domains)
  by_domain = cfg.partition.startswith('domain')
  rule, values = partitioners.RULES[cfg.partition], corpus.labels
  if cfg.partition == partitioners.CONTINUOUS:
    values = _numbers(corpus)
  owners = corpus.domains
  if cfg.divide_objects and by_domain:
    owners = groups.divide_objects(cfg, corpus)
  parts = []
  for domain, name in enumerate(corpus.domain_names if by_domain else ('all',)):
    pool = np.arange(len(corpus))
    if by_domain:
      pool = np.flatnonzero((corpus.domains == domain) & (owners == domain))
    pool = np.setdiff1d(pool, reserved) if len(reserved) else pool
    _check_pool(cfg, name, len(pool))
    rng = np.random.default_rng((cfg.seed, domain))
    parts.append(_of_pool(pool, rule(values[pool], cfg, rng)))
  domains = client_domains(cfg, len(corpus.domain_names))
  return Partition(shares.join(parts), domains)


def _of_pool(pool: np.ndarray, parts: Sequence[np.ndarray]) -> Shares:
  """Returns sorted positions in the corpus for parts of one of its pools."""
  if not isinstance(parts, Shares):  # A rule of the user's own.
    return Shares.of([np.sort(pool[part]) for part in parts])
  return dataclasses.replace(parts, positions=pool[parts.positions]).sorted()


def of(
  parts: Sequence[np.ndarray], cfg: config.Clients, corpus: Corpus
) -> Partition:
  """Returns a partition that the user has made.

  Args:
    parts: For each client the positions of its examples.
    cfg: Says how many clients there are, in which domains.
    corpus: The examples.

  Raises:
    ValueError: There are not as many parts as clients, or a part is empty, or
      a position is outside the corpus, twice in a part, or of another domain.
  """
  domains = client_domains(cfg, len(corpus.domain_names))
  if len(parts) != len(domains):
    raise ValueError(
      f'partition has {len(parts)} parts; must have {len(domains)}, one for each'
      ' client (clients.count).'
    )
  made = []
  for client, (part, domain) in enumerate(zip(parts, domains, strict=True)):
    at, own = np.asarray(part), f'partition[{client}]'
    if at.ndim != 1 or not np.issubdtype(at.dtype, np.integer) or not at.size:
      raise ValueError(f'{own} must be whole numbers [n], one at least.')
    if at.min() < 0 or at.max() >= len(corpus):
      raise ValueError(
        f'{own}: positions from {at.min()} to {at.max()} must lie in'
        f' [0, {len(corpus)}).'
      )
    if len(np.unique(at)) < len(at):
      raise ValueError(f'{own} must have each example once.')
    if domain >= 0 and np.any(corpus.domains[at] != domain):
      raise ValueError(
        f'{own} must have examples of {corpus.domain_names[domain]!r} alone, the'
        " client's domain."
      )
    made.append(np.sort(at).astype(np.int64))
  return Partition(Shares.of(made), domains)


def client_domains(cfg: config.Clients, num_domains: int) -> np.ndarray:
  """Returns each client's domain, int32[C]; -1 if it may hold several."""
  if cfg.partition.startswith('domain'):
    return np.repeat(np.arange(num_domains, dtype=np.int32), cfg.count)
  return np.full(cfg.count, -1, np.int32)


def expand_budgets(
  budgets: tuple[float, ...], domains: np.ndarray, depth: int
) -> np.ndarray:
  """Returns the budget of each client, int32[C].

  Args:
    budgets: One number per client, or one per domain, in blocks; without
      domains clients take them in turn; () for the whole model on every client.
    domains: Each client's domain, from `client_domains`.
    depth: Blocks of the whole model.

  Raises:
    ValueError: A budget is not in 1..depth, or their number fits neither the
      clients nor the domains.
  """
  for budget in dict.fromkeys(budgets):
    if not 1 <= budget <= depth:
      raise ValueError(
        f'clients.budgets={budgets}: {budget} is not from 1 to {depth}, the'
        " model's depth"
      )
  each = np.array(budgets or (depth,), np.int32)
  if not budgets:
    each = np.resize(each, len(domains))
  num_domains = int(domains.max()) + 1
  if len(each) == len(domains):
    return each
  if not num_domains and len(each) < len(domains):
    return np.resize(each, len(domains))
  if len(each) == num_domains:
    return each[domains]
  per_domain = f' or {num_domains} (one per domain)' if num_domains else ''
  raise ValueError(
    f'clients.budgets={budgets}: has {len(each)} numbers, must have'
    f' {len(domains)} (one per client){per_domain}'
  )


def _numbers(corpus: Corpus) -> np.ndarray:
  """Returns a number per example: a regression's label, a text's length."""
  if corpus.task.kind == 'regression':
    return corpus.labels
  if corpus.lengths is None:
    raise ValueError(
      "clients.partition='continuous' needs numbers: a regression's labels, or"
      " texts' lengths, and the data set has pictures."
    )
  return corpus.lengths


def _check(cfg: config.Clients) -> None:
  if cfg.partition not in partitioners.names():
    raise ValueError(
      f'clients.partition={cfg.partition!r}: must be one of'
      f' {", ".join(partitioners.names())}'
    )
  for field in ('count', 'min_examples', 'classes_per_client', 'shards'):
    if getattr(cfg, field) < 1:
      raise ValueError(
        f'clients.{field}={getattr(cfg, field)}: must be at least 1'
      )
  if not cfg.alpha > 0:
    raise ValueError(f'clients.alpha={cfg.alpha}: must be above 0')


def _check_pool(cfg: config.Clients, name: str, size: int) -> None:
  if not size:
    raise ValueError(f'domain {name!r} has no examples to give to its clients')
  if partitioners.may_repeat(cfg):
    return
  if cfg.min_examples * cfg.count > size:
    raise ValueError(
      f'clients.min_examples={cfg.min_examples}: {cfg.count} clients of domain'
      f' {name!r} would need {cfg.min_examples * cfg.count} examples, it has'
      f' {size}{partitioners.hint(cfg)}'
    )
