"""What clients may hold along the axes that a method cuts, for `costs.fit`.

The amounts are those that the method's own options list, from the largest to
the smallest, so that fitting picks among amounts that a user could have
written.
"""

from collections.abc import Iterable, Mapping

from fedjax_tune import config
from fedjax_tune.costs.fit import Choice, Menu
from fedjax_tune.methods.raffm import spaces
from fedjax_tune.methods.width import rates

Sizes = Mapping[str, int]


def depth(experiment: config.Experiment, sizes: Sizes) -> tuple[Menu, ...]:
  """Returns the numbers of blocks in `clients.budgets`, else all up to L."""
  whole = sizes['layer']
  listed = map(int, experiment.clients.budgets or range(1, whole + 1))
  return (_amounts('depth', 'layer', whole, (n for n in listed if n <= whole)),)


def width(experiment: config.Experiment, sizes: Sizes) -> tuple[Menu, ...]:
  """Returns the rates in `width.rates`, and the whole model."""
  options = experiment.width
  listed = sorted({1.0, *options.rates}, reverse=True)
  held = lambda rate: {a: rates.amount(rate, sizes[a]) for a in options.axes}
  return (Menu('width', tuple(Choice(r, r, held(r)) for r in listed)),)


def space(experiment: config.Experiment, sizes: Sizes) -> tuple[Menu, ...]:
  """Returns the subnetworks of `raffm.space`, by the weights of their blocks.

  None for masks, which make no client's model smaller.
  """
  if experiment.raffm.mode == 'mask':
    return ()
  found = spaces.make_space(experiment.raffm)
  whole = (1.0,) * len(spaces.AXES)
  total = _block_weights(sizes)
  choices = []
  for shares in {whole, *found.choices()}:
    held = dict(spaces.row_of(shares, sizes))
    if held['layer'] == sizes['layer']:
      del held['layer']  # Another menu may cut it.
    share = _block_weights({**sizes, **held}) / total
    choices.append(Choice(shares, share, held))
  ranked = sorted(choices, key=lambda c: (-c.share, c.value))
  return (Menu('width', tuple(ranked)),)


def _block_weights(sizes: Sizes) -> int:
  """Counts the weights of all blocks' linear maps.

  A decoder has a group of queries for each head of keys and values, and a gate
  in its MLP.
  """
  decodes = 'rotary' in sizes
  wide = sizes['rotary' if decodes else 'qk_dim'] + sizes['v_dim']
  attention = (1 + sizes.get('group', 1)) * sizes['heads'] * wide
  mlp = (3 if decodes else 2) * sizes['ffn']
  return sizes['layer'] * sizes['embed'] * (attention + mlp)


def rank(experiment: config.Experiment, sizes: Sizes) -> tuple[Menu, ...]:
  """Returns the ranks in `rank.ranks`, and the server's rank."""
  del sizes
  ranks = experiment.rank.ranks
  return (_amounts('rank', 'rank', experiment.lora.rank, ranks),)


def composed(experiment: config.Experiment, sizes: Sizes) -> tuple[Menu, ...]:
  """Returns the menu of each axis: depth, width, rank, branches."""
  options = experiment.composed
  menus: tuple[Menu, ...] = ()
  if options.depth:
    menus += depth(experiment, sizes)
  if options.width:
    cut = space if options.width == 'raffm' else width
    menus += cut(experiment, sizes)
  if options.rank:
    menus += rank(experiment, sizes)
  if options.branches:
    whole = experiment.fedadapter.branches
    menus += (_amounts('branches', 'branch', whole, options.branches),)
  return menus


def _amounts(name: str, axis: str, whole: int, listed: Iterable[int]) -> Menu:
  """Returns the menu of one axis: the listed amounts, and the whole."""
  amounts = sorted({whole, *listed}, reverse=True)
  return Menu(name, tuple(Choice(n, n / whole, {axis: n}) for n in amounts))
