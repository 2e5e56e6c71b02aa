"""HeteroTune: different models learn from each other through FedAdapter.

Jia et al., "HeteroTune: Efficient Federated Learning for Large Heterogeneous
Models", arXiv 2411.16796. The paper's code is not public, and what follows was
built from its public abstracts. Theirs: clients with different frozen models,
a multi-branch adapter whose cross-model aggregator joins them, a dense mixture
of adapters, and gradient alignment across models. Reconstructed: everything
else; open choices are fields of `config.Heterotune` and, of the adapter,
of `config.Fedadapter`. One is not built: projections and heads that each client
keeps to itself. Another method, AdaFL (arXiv 2205.10162), also calls its
adapters FedAdapter.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Alone,
  Client,
  Context,
  Evaluation,
  GroupSums,
  Traffic,
  Update,
  average_held,
  fedavg_client,
  theta_both_ways,
)
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods import compose
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.heterotune import cmga
from fedjax_tune.models import bottleneck, tiers
from fedjax_tune.models.federation import federate, tier_axis
from fedjax_tune.models.foundation import num_bytes
from fedjax_tune.selection import GroupSum, Selection, select
from fedjax_tune.typing import Tree

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Tiers:
  """Which client has which model, and what it holds; itself the rule.

  Attributes:
    of_client: The tier of each client, by name.
    held: What a client of each tier holds: all of its tier's.
    adapters: The bottleneck of each tier's model.
  """

  of_client: tuple[str, ...]
  held: Mapping[str, Selection]
  adapters: Mapping[str, config.Fedadapter]

  @property
  def axes(self) -> frozenset[str]:
    """The axes of the tiers, of blocks and of branches."""
    return frozenset().union(*self.held.values())

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns what each client of the cohort holds."""
    del rnd
    return [self.held[self.of_client[k]] for k in cohort]

  def name(self, sig: Signature) -> str:
    """Names the tier of a signature's clients."""
    (name,) = (name for name in self.held if sig[tier_axis(name)])
    return name

  def own_branch(self, name: str) -> jax.Array:
    """Says which branch is a tier's, bool [branch, 1, 1]."""
    names = list(self.held)
    return jnp.arange(len(names))[:, None, None] == names.index(name)


def client(task: Task, each: Tiers, *, own_branches: bool) -> Client:
  """Returns the client of a tier.

  Args:
    task: What is learned.
    each: The tiers.
    own_branches: Whether to stop the gradients of other tiers' branches. An
      optimizer's weight decay still moves them while the client trains; what
      it sends of them does not count.
  """
  inner = fedavg_client(task)
  if not own_branches:
    return inner

  def params(local: Tree, context: Context) -> Tree:
    own_Bx1x1 = each.own_branch(each.name(context.sig))

    def stop(core):  # [site, branch, R, R]
      return jnp.where(own_Bx1x1, core, jax.lax.stop_gradient(core))

    return {**local, 'shared': jax.tree.map(stop, local['shared'])}

  return dataclasses.replace(inner, params=params)


def aggregator(
  each: Tiers, align: cmga.Align | None, *, own_branches: bool
) -> Aggregator:
  """Averages each coordinate over its holders; cores as options say.

  Args:
    each: The tiers.
    align: Aligns the tiers' updates of the cores; None does not.
    own_branches: Whether a branch learns from its own tier alone.
  """

  def merge_cores(
    theta: Tree, sums: GroupSums, memory: Tree
  ) -> tuple[Update, Tree]:
    if own_branches:
      sums = {
        name: _only(total, each.own_branch(name))
        for name, total in sums.items()
      }
    update, memory = average_held(theta, sums, memory)
    if align is None:
      return update, memory
    aligned = cmga.combine(list(sums.values()), align)
    return update._replace(delta=aligned), memory

  if align is None and not own_branches:
    return Aggregator()
  # Sums are kept apart, for cores tell tiers apart.
  cores = compose.partition({'shared': Aggregator(merge_cores)}, Aggregator())
  return compose.by_group(each.name, cores)


def _only(total: GroupSum, own_Bx1x1: jax.Array) -> GroupSum:
  """Leaves what a tier sends of other tiers' branches out of its sums."""
  # [site, branch, ...]; `den` is 1 wide where all is held, and widens.
  keep = lambda x: jnp.where(own_Bx1x1, x, 0)
  return jax.tree.map(keep, total)


def build(facts: Facts) -> Algorithm:
  """Builds HeteroTune over tiers, each a model and its clients.

  Tier m trains D, U, gates and head of its own model, averaged within the tier,
  and its part of the shared cores W_b, averaged over all who hold it:

    W_b <- W_b + sum_{k: b <= B_m(k)} n_k delta_k / sum_{k: b <= B_m(k)} n_k.

  The model of every tier is evaluated; the headline weighs them by their
  clients.
  """
  e, clients = facts.experiment, range(len(facts.budgets))
  options, each = e.heterotune, make_tiers(e, facts.sizes, len(facts.budgets))
  own_branches = options.reading == 'own' and options.foreign == 'frozen'
  models = {n: facts.tiers[n](a) for n, a in each.adapters.items()}
  shared = bottleneck.CORES if options.share else ()
  joins = np.array([_turn(e.tiers.joins or (0,), k) for k in clients])
  count = each.of_client.count

  def traffic(
    sig: Signature,
    cohort: Sequence[Signature],
    held: Callable[[Signature], Tree],
  ) -> Traffic:
    """Leaves out of the uplink what other tiers' branches would send."""
    both = theta_both_ways(sig, cohort, held)
    if not own_branches:
      return both
    cores = num_bytes(held(sig)['shared'])
    return both._replace(uplink=both.uplink - cores + cores // len(each.held))

  model = federate(
    models, shared, options.sites, every_block=options.every_block
  )

  def ending(theta: Tree, clients: Mapping[int, Tree]) -> dict[str, Alone]:
    """Returns the model of each tier."""
    del clients
    return {
      name: Alone(
        model.own(select(theta, model.axes, held), name),
        {'layer': models[name].depth},
        name,
      )
      for name, held in each.held.items()
    }

  return Algorithm(
    model=model,
    rule=each,
    client=client(facts.task, each, own_branches=own_branches),
    aggregator=aggregator(
      each, cmga.ALIGN[options.cmga], own_branches=own_branches
    ),
    evaluation=Evaluation(
      facts.task,
      each.held,
      headline={name: count(name) / len(each.of_client) for name in each.held},
    ),
    eligible=lambda rnd: rnd >= joins,
    tier=lambda k: each.of_client[k],
    traffic=traffic,
    ending=ending,
  )


def make_tiers(
  experiment: config.Experiment, sizes: Mapping[str, int], clients: int
) -> Tiers:
  """Says which client has which model.

  Args:
    experiment: The configuration.
    sizes: Of each tier, under `tier_axis`, its number of blocks.
    clients: How many there are.
  """
  names = tiers.names(experiment.tiers)
  unique = tuple(dict.fromkeys(names))
  branches = dict(zip(names, experiment.heterotune.branches, strict=False))
  if not branches:
    deepest = sorted(unique, key=lambda name: -sizes[tier_axis(name)])
    branches = {name: len(unique) - i for i, name in enumerate(deepest)}
  adapters, held = {}, {}
  for name in unique:
    adapters[name], part = _adapter(experiment, branches, name)
    membership = {tier_axis(other): int(other == name) for other in unique}
    held[name] = Selection.of(
      {'layer': sizes[tier_axis(name)], **membership, **part}
    )
  of_client = tuple(_turn(names, k) for k in range(clients))
  return Tiers(of_client, held, adapters)


def _turn(values: Sequence[T], client: int) -> T:
  """Returns what a client has where clients take values in turn."""
  return values[client % len(values)]


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


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Args:
    experiment: The configuration.
    sizes: Of each tier, under `tier_axis`, its number of blocks.
    budgets: One per client; if they are given at all, for other methods of
      the same experiment, they must agree with the tiers.

  Raises:
    ValueError: Options contradict each other.
  """
  names = tiers.names(experiment.tiers)
  _check(experiment, names)
  if len(budgets) < len(names):
    raise ValueError(
      f'tiers.weights={experiment.tiers.weights} must be at most '
      f'{len(budgets)}, the number of clients.'
    )
  each = make_tiers(experiment, sizes, len(budgets))
  depths = tuple(each.held[name]['layer'] for name in each.of_client)
  if experiment.clients.budgets and budgets != depths:
    raise ValueError(
      f'clients.budgets={experiment.clients.budgets} must be () with '
      'method=heterotune, or the blocks of each tier, which clients take in '
      'turn.'
    )


def _check(experiment: config.Experiment, each: tuple[str, ...]) -> None:
  """Raises a ValueError for fields that contradict each other."""
  options = experiment.heterotune
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
