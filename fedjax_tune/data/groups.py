"""Groups that a set names: natural clients, and objects of several domains."""

from collections.abc import Sequence

import numpy as np

from fedjax_tune import config
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.data.shares import Shares


def natural(
  cfg: config.Clients,
  corpus: Corpus,
  reserved: Sequence[int] | np.ndarray = (),
) -> Shares:
  """Makes the groups with the most examples the clients, e.g. speakers.

  With `group_size` the largest groups are dealt to the clients in turn, so that
  sizes differ little. No client gets the reserved examples.
  """
  if corpus.groups is None:
    raise ValueError(
      "clients.partition='natural': the set does not say whose an example is."
    )
  _, owner = np.unique(corpus.groups, return_inverse=True)
  free = np.ones(len(corpus), bool)
  free[np.asarray(reserved, int)] = False
  sizes = np.bincount(owner[free], minlength=owner.max() + 1)
  wanted = cfg.count * cfg.group_size
  largest = np.argsort(-sizes, kind='stable')[:wanted]
  # One of several need not have the least number by itself.
  least = cfg.min_examples if cfg.group_size == 1 else 1
  fit = int(np.sum(sizes >= least))
  if fit < wanted:
    each = f' of clients.group_size={cfg.group_size}' * (cfg.group_size > 1)
    raise ValueError(
      f'clients.count={cfg.count}{each}: only {fit} groups have'
      f' {"clients.min_examples=" * (least > 1)}{least} examples.'
    )
  client = np.full(len(sizes), -1)
  client[largest] = np.arange(wanted) % cfg.count
  chosen = np.flatnonzero((client[owner] >= 0) & free)
  parts = Shares.owned(chosen, client[owner[chosen]], cfg.count)
  if (smallest := parts.sizes.min()) < cfg.min_examples:
    raise ValueError(
      f'clients.min_examples={cfg.min_examples}: a client of'
      f' clients.group_size={cfg.group_size} has only {smallest} examples.'
    )
  return parts


def left_out(cfg: config.Clients, corpus: Corpus, made: Shares) -> str:
  """Says how many groups are not clients; '' if all are.

  Args:
    cfg: How the groups were chosen.
    corpus: The examples.
    made: The examples of each client, from `natural`.
  """
  assert corpus.groups is not None
  there, taken = len(np.unique(corpus.groups)), cfg.count * cfg.group_size
  if taken >= there:
    return ''
  fields = f'clients.count={cfg.count}'
  if cfg.group_size > 1:
    fields += f', clients.group_size={cfg.group_size}'
  return (
    f'{taken} of {there} natural clients take part, with {made.sizes.sum()} of'
    f' {len(corpus)} examples ({fields}).'
  )


def names(corpus: Corpus, made: Shares) -> tuple[str, ...]:
  """Names each natural client by its group and the number of further groups."""
  assert corpus.groups is not None
  found = [np.unique(corpus.groups[held]) for held in made]
  more = lambda own: f' and {len(own) - 1} more' * (len(own) > 1)
  return tuple(f'{own[0]}{more(own)}' for own in found)


def divide_objects(cfg: config.Clients, corpus: Corpus) -> np.ndarray:
  """Returns for each example the one domain that may use its object, int[N].

  Objects are shuffled within each label and dealt to the domains in turn, so
  each domain gets an equal number of each label, to within one. If the set
  names no objects, each example is an object.
  """
  if corpus.groups is None:
    return corpus.domains
  rng = np.random.default_rng((cfg.seed, len(corpus.domain_names)))
  _, first, inverse = np.unique(
    corpus.groups, return_index=True, return_inverse=True
  )
  shuffled = rng.permutation(len(first))
  order = shuffled[np.argsort(corpus.labels[first][shuffled], kind='stable')]
  owner = np.empty(len(first), int)
  owner[order] = np.arange(len(first)) % len(corpus.domain_names)
  return rng.permutation(len(corpus.domain_names))[owner][inverse]
