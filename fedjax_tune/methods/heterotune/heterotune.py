"""HeteroTune: different models learn from each other through FedAdapter.

Jia et al., "HeteroTune: Efficient Federated Learning for Large Heterogeneous
Models", arXiv 2411.16796. The paper's code is not public, and this was built
from its public abstracts. From the paper: clients with different frozen models,
a multi-branch adapter whose cross-model aggregator joins them, a dense mixture
of adapters, and gradient alignment across models. Everything else is
reconstructed. Open choices are fields of `config.Heterotune` and, for the
adapter, of `config.Fedadapter`; `keeping.py` has projections and heads that
each client keeps for itself. Two parts are ours, and the default where models
differ: projections aligned on public inputs, which make cores mean the same in
every model (`models/alignment.py`), and a common head
(`models/common_head.py`). Another method, AdaFL (arXiv 2205.10162), also calls
its adapters FedAdapter.
"""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
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
from fedjax_tune.methods.depth import classifiers
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.heterotune import cmga, keeping, leaving
from fedjax_tune.methods.heterotune.alternating import in_turn
from fedjax_tune.methods.heterotune.membership import Tiers, make_tiers, turn
from fedjax_tune.models import alignment, bottleneck
from fedjax_tune.models.federation import SHARED, federate, find_sites
from fedjax_tune.models.foundation import Foundation, num_bytes
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Tree


def client(
  task: Task, each: Tiers, *, own_branches: bool, alternating: bool = False
) -> Client:
  """Returns the client of a tier.

  Args:
    task: What is learned.
    each: The tiers.
    own_branches: Whether to stop the gradients of other tiers' branches. An
      optimizer's weight decay still changes these while the client trains, but
      the server ignores what the client sends for them.
    alternating: Whether to train shared and own parts in turn.
  """
  inner = fedavg_client(task)
  if alternating:
    inner = dataclasses.replace(inner, around=in_turn)
  if not own_branches:
    return inner

  def params(local: Tree, context: Context) -> Tree:
    name = each.name(context.sig)
    stop = lambda x: each.only_own(name, x, jax.lax.stop_gradient(x))
    return {**local, SHARED: _of_branches(stop, local[SHARED])}

  return dataclasses.replace(inner, params=params)


def aggregator(
  each: Tiers, align: cmga.Align | None, *, own_branches: bool
) -> Aggregator:
  """Averages each coordinate over its holders, and cores as the options say.

  Args:
    each: The tiers.
    align: Aligns the tiers' updates of the cores; None does not align.
    own_branches: Whether a branch learns only from its own tier.
  """

  def merge_cores(
    theta: Tree, sums: GroupSums, memory: Tree
  ) -> tuple[Update, Tree]:
    if own_branches:
      keep = lambda name: lambda x: each.only_own(name, x, jnp.zeros_like(x))
      sums = {
        name: GroupSum(*(_of_branches(keep(name), part) for part in total))
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
  cores = compose.partition({SHARED: Aggregator(merge_cores)}, Aggregator())
  return compose.by_group(each.name, cores)


def _of_branches(
  change: Callable[[jax.Array], jax.Array], shared: Tree
) -> Tree:
  """Changes the shared parameters that have branches, not the head."""
  blocks = jax.tree.map(change, shared['blocks'])
  return {**shared, 'blocks': blocks}


def build(facts: Facts) -> Algorithm:
  """Builds HeteroTune over tiers, each a model and its clients.

  Tier m trains D, U, gates and head of its own model, averaged within the tier,
  and its part of the shared cores W_b, averaged over all clients that hold it:

    W_b <- W_b + sum_{k: b <= B_m(k)} n_k delta_k / sum_{k: b <= B_m(k)} n_k.

  Projections that are not free stay out of theta, or start in a common space of
  all tiers; the same holds for the code of a common head. A common head is
  averaged like cores. The model of every tier is evaluated; the headline
  weights them by their clients.
  """
  e, clients = facts.experiment, range(len(facts.budgets))
  options, each = e.heterotune, make_tiers(e, facts.sizes, len(facts.budgets))
  own_branches = options.reading == 'own' and options.foreign == 'frozen'
  shared = (*bottleneck.SHARED, *common_head(e)) if options.share else ()
  joins = np.array([turn(e.tiers.joins or (0,), k) for k in clients])
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
    cores = num_bytes(held(sig)[SHARED]['blocks'])
    return both._replace(uplink=both.uplink - cores + cores // len(each.held))

  models = _build_models(facts, each)
  model = federate(
    models,
    shared,
    options.sites,
    every_block=options.every_block,
    by_index=options.mapping == 'index',
  )

  leaves = leaving.Leaving(e, model, each)
  made = Algorithm(
    model=model,
    rule=each,
    client=client(
      facts.task,
      each,
      own_branches=own_branches,
      alternating=is_alternating(e),
    ),
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
    ending=lambda theta, _: leaves.tiers(theta),
  )
  if not options.personal:
    return made
  classifiers.require_classes('heterotune', facts.task)
  return keeping.keep(made, each, leaves)


def common_head(experiment: config.Experiment) -> tuple[str, ...]:
  """Names the common head, if tiers have one."""
  return () if experiment.tiers.head == 'own' else ('head',)


def is_aligned(experiment: config.Experiment) -> bool:
  """Whether tiers are aligned, so that public inputs are needed."""
  adapted = experiment.model.tune == 'adapter'
  free = not adapted or experiment.fedadapter.projections == 'free'
  return not free or bool(common_head(experiment))


def is_alternating(experiment: config.Experiment) -> bool:
  """Whether clients train shared and own parts in turn."""
  adapted = experiment.model.tune == 'adapter'
  return adapted and experiment.fedadapter.projections == 'alternating'


def _build_models(facts: Facts, each: Tiers) -> dict[str, Foundation]:
  """Builds the tiers' models, aligned if the options ask for it."""
  e = facts.experiment
  models = {n: facts.tiers[n](a) for n, a in each.adapters.items()}
  if not is_aligned(e):
    return models
  if facts.aligned:
    return alignment.restore(models, facts.aligned)
  options = e.heterotune
  sites = find_sites(
    models,
    options.sites,
    every_block=options.every_block,
    by_index=options.mapping == 'index',
  )
  return alignment.align(
    models,
    sites,
    {name: facts.public(name) for name in models},
    projections=e.fedadapter.projections,
    head_map=e.tiers.head_map,
    first_token=facts.task.kind in ('classification', 'regression'),
    seed=e.seed,
  )
