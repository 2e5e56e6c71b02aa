"""HeteroTune: different models learn from each other through FedAdapter.

Jia et al., "HeteroTune: Efficient Federated Learning for Large Heterogeneous
Models", arXiv 2411.16796. The paper's code is not public, and what follows was
built from its public abstracts. Theirs: clients with different frozen models,
a multi-branch adapter whose cross-model aggregator joins them, a dense mixture
of adapters, and gradient alignment across models. Reconstructed: everything
else; open choices are fields of `method_config.Heterotune` and, of the adapter,
of `config.Fedadapter`. One is not built: projections and heads that each client
keeps to itself. Another method, AdaFL (arXiv 2205.10162), also calls its
adapters FedAdapter.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config, tiers
from fedjax_tune.engine.cost import Traffic, num_bytes
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.federation import tier_axis
from fedjax_tune.methods import base, cmga
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Allocation, Tree


@dataclasses.dataclass(frozen=True)
class Heterotune(base.Method):
  """HeteroTune over tiers, each a model and its clients.

  Tier m trains D, U, gates and head of its own model, averaged within the tier,
  and its part of the shared cores W_b, averaged over all who hold it:

    W_b <- W_b + sum_{k: b <= B_m(k)} n_k delta_k / sum_{k: b <= B_m(k)} n_k.

  Attributes:
    tier_of_client: The tier of each client, by name.
    rows: What a client of each tier holds.
    adapters: The bottleneck of each tier's model.
    joins: First round of each client.
    align: Aligns the tiers' updates of the cores; None does not.
    own_branches: Whether a branch learns from its own tier alone.
  """

  tier_of_client: tuple[str, ...]
  rows: Mapping[str, Row]
  adapters: Mapping[str, config.Fedadapter]
  joins: tuple[int, ...]
  align: cmga.Align | None
  own_branches: bool

  def eligible(self, rnd: int) -> np.ndarray:
    """Says whose tier has joined, bool [clients]."""
    return rnd >= np.array(self.joins)

  def tier(self, client: int) -> str:
    """Names a client's tier."""
    return self.tier_of_client[client]

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Returns what each client of the cohort holds: all of its tier's."""
    del rnd
    return [self.rows[self.tier_of_client[k]] for k in cohort]

  def view(self, sig: Signature, local: Tree, alloc: Allocation) -> Tree:
    """Stops the gradients of other tiers' branches where these are frozen.

    An optimizer's weight decay still moves them while the client trains; what
    it sends of them does not count.
    """
    del alloc
    if not self.own_branches:
      return local
    own_Bx1x1 = self._own(self._tier_of(sig))

    def stop(core):  # [site, branch, R, R]
      return jnp.where(own_Bx1x1, core, jax.lax.stop_gradient(core))

    return {**local, 'shared': jax.tree.map(stop, local['shared'])}

  def bucket(self, sig: Signature) -> Hashable:
    """Keeps the sums of tiers apart where merging tells them apart."""
    apart = self.align is not None or self.own_branches
    return self._tier_of(sig) if apart else 'all'

  def merge(
    self, theta: Tree, totals: Mapping[Any, GroupSum], memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Averages each coordinate over its holders; cores as options say."""
    if self.own_branches:
      totals = {
        name: self._only_own(total, self._own(name))
        for name, total in totals.items()
      }
    update, memory = super().merge(theta, totals, memory)
    if self.align is None:
      return update, memory
    shared = [
      GroupSum(total.num['shared'], total.den['shared'])
      for total in totals.values()
    ]
    aligned = cmga.combine(shared, self.align)
    return update._replace(delta={**update.delta, 'shared': aligned}), memory

  def evaluations(self) -> dict[str, Row]:
    """Evaluates the model of every tier."""
    return dict(self.rows)

  def headline(self) -> dict[str, float]:
    """Weighs the tiers by their clients."""
    every = self.tier_of_client
    return {name: every.count(name) / len(every) for name in self.rows}

  def traffic(
    self,
    sig: Signature,
    cohort: Sequence[Signature],
    held: Callable[[Signature], Tree],
  ) -> Traffic:
    """Leaves out of the uplink what other tiers' branches would send."""
    both = super().traffic(sig, cohort, held)
    if not self.own_branches:
      return both
    cores = num_bytes(held(sig)['shared'])
    return both._replace(uplink=both.uplink - cores + cores // len(self.rows))

  def _tier_of(self, sig: Signature) -> str:
    (name,) = (name for name in self.rows if sig[tier_axis(name)])
    return name

  def _own(self, name: str) -> jax.Array:
    """Says which branch is a tier's, bool [branch, 1, 1]."""
    names = list(self.rows)
    return jnp.arange(len(names))[:, None, None] == names.index(name)

  def _only_own(self, total: GroupSum, own_Bx1x1: jax.Array) -> GroupSum:
    """Leaves what a tier sends of other tiers' branches out of its sums."""
    # [site, branch, ...]; `den` is 1 wide where all is held, and widens.
    keep = lambda x: jnp.where(own_Bx1x1, x, 0)
    kept = lambda tree: {**tree, 'shared': jax.tree.map(keep, tree['shared'])}
    return GroupSum(kept(total.num), kept(total.den))


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> Heterotune:
  """Builds HeteroTune from an experiment.

  Args:
    experiment: The configuration.
    sizes: Of each tier, under `tier_axis`, its number of blocks.
    budgets: One per client; if they are given at all, for other methods of
      the same experiment, they must agree with the tiers.

  Raises:
    ValueError: Options contradict each other.
  """
  options = experiment.heterotune
  each = tiers.names(experiment.tiers)
  _check(experiment, each)
  unique = tuple(dict.fromkeys(each))
  branches = dict(zip(each, options.branches, strict=False))
  if not branches:
    deepest = sorted(unique, key=lambda name: -sizes[tier_axis(name)])
    branches = {name: len(unique) - i for i, name in enumerate(deepest)}
  adapters, rows = {}, {}
  for name in unique:
    held = {tier_axis(other): int(other == name) for other in unique}
    rows[name] = {'layer': sizes[tier_axis(name)], **held}
    adapter, part = _adapter(experiment, branches, name)
    adapters[name] = adapter
    rows[name] |= part
  if len(budgets) < len(each):
    raise ValueError(
      f'tiers.weights={experiment.tiers.weights} must be at most '
      f'{len(budgets)}, the number of clients.'
    )
  turn = lambda values, k: values[k % len(values)]
  clients = range(len(budgets))
  depths = tuple(rows[turn(each, k)]['layer'] for k in clients)
  if experiment.clients.budgets and budgets != depths:
    raise ValueError(
      f'clients.budgets={experiment.clients.budgets} must be () with '
      'method=heterotune, or the blocks of each tier, which clients take in '
      'turn.'
    )
  return Heterotune(
    depth=max(sizes[tier_axis(name)] for name in unique),
    budgets=depths,
    seed=experiment.seed,
    tier_of_client=tuple(turn(each, k) for k in clients),
    rows=rows,
    adapters=adapters,
    joins=tuple(turn(experiment.tiers.joins or (0,), k) for k in clients),
    align=cmga.ALIGN[options.cmga],
    own_branches=options.reading == 'own' and options.foreign == 'frozen',
  )


def _adapter(
  experiment: config.Experiment, branches: Mapping[str, int], name: str
) -> tuple[config.Fedadapter, dict[str, int]]:
  """Returns a tier's bottleneck, and which part of the cores that is."""
  cfg, options = experiment.fedadapter, experiment.heterotune
  most = max(branches.values())
  if options.reading == 'own':
    return dataclasses.replace(cfg, branches=len(branches)), {}
  if options.reading == 'nested':
    held = {'branch': branches[name]}
    return dataclasses.replace(cfg, branches=branches[name]), held
  rank, rest = divmod(cfg.rank * branches[name], most)
  if rest:
    raise ValueError(
      f'fedadapter.rank={cfg.rank} must be a multiple of {most}, the most of '
      "heterotune.branches, with heterotune.reading='width'."
    )
  return dataclasses.replace(cfg, branches=1, rank=rank), {'bottleneck': rank}


def _check(experiment: config.Experiment, each: tuple[str, ...]) -> None:
  """Raises a ValueError for fields that contradict each other."""
  options = experiment.heterotune
  if not each:
    raise ValueError(
      'tiers.weights=() must name the models of method=heterotune.'
    )
  if experiment.model.tune != 'adapter':
    raise ValueError(
      f'model.tune={experiment.model.tune!r} must be '
      "'adapter' with method=heterotune."
    )
  joins = experiment.tiers.joins
  if joins and min(joins) > 0:
    raise ValueError(
      f'tiers.joins={joins} must have a 0: somebody takes part in round 0.'
    )
  if not options.share and (options.cmga, options.reading) != ('off', 'nested'):
    raise ValueError(
      f'heterotune.share=False leaves nothing for heterotune.cmga='
      f'{options.cmga!r} and reading={options.reading!r}; they must be '
      "'off' and 'nested'."
    )
  own, frozen = options.reading == 'own', options.foreign == 'frozen'
  if own and options.branches:
    raise ValueError(
      f'heterotune.branches={options.branches} must be () with heterotune.'
      "reading='own': all tiers have all branches, one of each tier."
    )
  if own and frozen and options.cmga != 'off':
    raise ValueError(
      f"heterotune.cmga={options.cmga!r} must be 'off' with heterotune."
      "reading='own' and foreign='frozen': no two tiers train one branch."
    )
  if not own and not frozen:
    raise ValueError(
      f"heterotune.foreign={options.foreign!r} must be 'frozen' but with "
      "heterotune.reading='own'."
    )
  if options.branches and len(options.branches) != len(each):
    raise ValueError(
      f'heterotune.branches={options.branches} must have {len(each)} numbers, '
      'one for each of tiers.weights.'
    )
  pairs = set(zip(each, options.branches, strict=False))
  if len(pairs) > len(set(each)):
    raise ValueError(
      f'heterotune.branches={options.branches} must be alike where '
      'tiers.weights, depth and width are.'
    )
