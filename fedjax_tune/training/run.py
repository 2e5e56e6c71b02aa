"""A setup with its engine: its costs, its start and its evaluation."""

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np

from fedjax_tune import endings, selection
from fedjax_tune.costs import capacity, table
from fedjax_tune.costs.cost import Cost, client_cost, held_shapes, step_flops
from fedjax_tune.engine import (
  batches,
  gradient,
  local_optimizer,
  server,
  server_optimizer,
  store,
)
from fedjax_tune.engine.algorithm import Traffic
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.cohort import Member
from fedjax_tune.engine.plan import RoundPlan
from fedjax_tune.engine.round import Engine
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.models.federation import tier_axis
from fedjax_tune.training import build, checkpoint, evaluation, snapshot
from fedjax_tune.typing import Tree


class Run:
  """A setup with its engine, its costs and its evaluation.

  Attributes:
    setup: Everything that the run needs.
    engine: Its rounds, compiled.
    widths: For each signature that has a program, the clients per slab. The
      planner's signatures come first; others are added when they first occur.
    batch_shapes: For each, the shapes of the batches [S, B, ...] of one client.
    costs: For each, the cost of a client; what it computes is in `work`.
  """

  def __init__(self, setup: build.Setup) -> None:
    _check_axes(setup)
    e = setup.experiment
    self.setup = setup
    self.engine = Engine(
      setup.algorithm,
      local_optimizer.build(e.local),
      server_optimizer.build(e.server),
      schedule=local_optimizer.schedule(e.local),
      lengths=setup.planner.feed.lengths,
    )
    self.widths: dict[Signature, int] = {}
    self.batch_shapes: dict[Signature, Batch] = {}
    self.costs: dict[Signature, Cost] = {}
    self._held: dict[Signature, Tree] = {}
    self._part_flops: dict[Signature, list[int]] = {}
    self._add(
      setup.planner.widths,
      lambda widths: self.engine.compile(
        widths,
        self.batch_shapes.__getitem__,
        setup.planner.info_shapes,
        e.engine.mode,
        e.engine.chunk,
        e.engine.devices or jax.local_device_count(),
        e.engine.fsdp,
      ),
    )
    self._evaluate = evaluation.build(setup, self.engine.base)

  def _add(
    self,
    widths: Mapping[Signature, int],
    compile_programs: Callable[[Mapping[Signature, int]], None],
  ) -> None:
    """Compiles programs of more signatures, and counts their costs.

    Args:
      widths: The clients per slab of each.
      compile_programs: Compiles the programs, given the widths.

    Raises:
      ValueError: A program does not fit this machine.
    """
    setup, planner = self.setup, self.setup.planner
    lead = planner.feed.most_steps, setup.experiment.local.batch_size
    self.widths |= widths
    self.batch_shapes |= {
      sig: batches.shapes(setup.inputs[0], sig.length, lead) for sig in widths
    }
    compile_programs(widths)
    scratch = self.engine.programs.temp_bytes()
    for sig in widths:
      capacity.check_program(_describe(sig, setup.sizes), scratch[sig])
    for sig in widths:
      self.cost(sig)
      self._part_flops[sig] = self._flops_of_parts(sig)

  def cost(self, sig: Signature) -> Cost:
    """Returns the cost of a client of a class, even if the run has none."""
    if sig not in self.costs:
      setup, e = self.setup, self.setup.experiment
      model = setup.algorithm.model
      self.costs[sig] = client_cost(
        setup.algorithm,
        sig,
        batches.shapes(setup.inputs[0], sig.length, (e.local.batch_size,)),
        setup.planner.info_shapes,
        local_optimizer.build(e.local),
        self.engine.place(sig),
      )
      self._held[sig] = held_shapes(model.theta, model.axes, sig)
    return self.costs[sig]

  def _flops_of_parts(self, sig: Signature) -> list[int]:
    """Returns the FLOPs of a part of a batch, by the length of its texts."""
    setup, planner = self.setup, self.setup.planner
    size, place = setup.experiment.local.batch_size, self.engine.place(sig)
    shapes = functools.partial(batches.shapes, setup.inputs[0])
    return [
      step_flops(
        setup.algorithm,
        sig,
        shapes(n, (gradient.together(n, size),)),
        planner.info_shapes,
        place,
      )
      for n in planner.feed.lengths
      if n <= sig.length
    ]

  def class_name(self, sig: Signature) -> str:
    """Names what a client holds, regardless of the length of its texts."""
    return _describe(dataclasses.replace(sig, length=0), self.setup.sizes)

  def prepare(self, plan: RoundPlan) -> None:
    """Compiles programs of a round that the planner did not foresee."""
    new = {s.sig: len(s.ids) for s in plan.slabs if s.sig not in self.widths}
    if new:
      self._add(new, self.engine.extend)

  def start(
    self, kept: snapshot.Snapshot | None
  ) -> tuple[server.ServerState, dict[str, Any], server.ServerState]:
    """Returns the state, the meter, and the state of the best evaluation.

    They come from the checkpoint, if there is one; it holds the best state only
    with `keep_best`.
    """
    meter: dict[str, Any] = dict.fromkeys(
      ('uplink', 'downlink', 'flops', 'simulated_us'), np.int64(0)
    )
    state = self.engine.init()
    start = self.memory(state, meter, state)
    if kept:
      remember = self.setup.algorithm.client.state
      for name in ('state', 'best'):
        if name in start:
          count = checkpoint.length(kept, f"['{name}'].clients['ids']")
          packed = store.packed_like(count, remember)
          start[name] = start[name]._replace(clients=packed)
      start = checkpoint.fit(kept, start)
    for name in ('state', 'best'):
      if name in start:
        clients = store.unpack(start[name].clients)
        start[name] = start[name]._replace(clients=clients)
    return start['state'], start['meter'], start.get('best', start['state'])

  def memory(
    self,
    state: server.ServerState,
    meter: dict[str, Any],
    best: server.ServerState,
  ) -> dict[str, Any]:
    """Returns the part of these that a checkpoint holds."""
    pack = lambda s: s._replace(clients=store.pack(s.clients))
    kept = {'state': pack(state), 'meter': meter}
    keeps_best = self.setup.experiment.keep_best
    return {**kept, 'best': pack(best)} if keeps_best else kept

  def charge(
    self, meter: dict[str, Any], members: Sequence[Member]
  ) -> dict[str, Any]:
    """Adds what a round's clients moved and computed to the running sums.

    On simulated devices a round takes as long as its slowest client: receive,
    compute, send.
    """
    up = down = flops = 0
    seconds = [0.0]
    traffic = self.traffic(members)
    for member in members:
      moved = traffic[member.sig]
      work = self.work(member)
      up += moved.uplink
      down += moved.downlink
      flops += work
      if self.setup.devices:
        device = self.setup.devices[member.client]
        sent = moved.uplink / device.uplink + moved.downlink / device.downlink
        seconds.append(work / device.flops + sent)
    added = {
      'uplink': up,
      'downlink': down,
      'flops': flops,
      'simulated_us': round(1e6 * max(seconds)),
    }
    return {name: np.int64(meter[name] + n) for name, n in added.items()}

  def work(self, member: Member) -> int:
    """Returns the FLOPs of a client's local steps in a round."""
    if member.parts:
      each = self._part_flops[member.sig]
      return sum(n * of for n, of in zip(member.parts, each, strict=False))
    steps = int(self.setup.planner.feed.steps[member.client])
    return self.costs[member.sig].flops * steps

  def traffic(self, members: Sequence[Member]) -> dict[Signature, Traffic]:
    """Returns the traffic of a client of each of these classes in a round."""
    count, cohort = self.setup.algorithm.traffic, [m.sig for m in members]
    return {
      sig: count(sig, cohort, self._held.__getitem__) for sig in set(cohort)
    }

  def is_due(self, rnd: int) -> bool:
    """Says whether a round ends with an evaluation."""
    e = self.setup.experiment
    return (rnd + 1) % e.eval_every == 0 or rnd + 1 == e.rounds

  def evaluate(self, state: server.ServerState, rnd: int) -> dict[str, float]:
    """Evaluates every model of the method, if the round has an evaluation.

    Raises:
      Diverged: Outputs or metrics of a model are not finite.
    """
    return self.judge(state, f'round {rnd + 1}') if self.is_due(rnd) else {}

  def judge(self, state: server.ServerState, when: str) -> dict[str, float]:
    """Evaluates every model of the method.

    Args:
      state: The server's state.
      when: Which state it is, for messages.

    Raises:
      Diverged: Outputs or metrics of a model are not finite.
    """
    try:
      return self._evaluate(state)
    except endings.Diverged as error:
      raise endings.Diverged(f'{when}: {error}') from error

  def class_costs(self) -> list[table.ClassCost]:
    """Returns the costs of a client of each class, largest first.

    It counts all clients of the federation, not those of a round; see
    `Planner.holders`.
    """
    rounds, clients = self.setup.planner.rounds, self.setup.planner.holders
    costs = {sig: self.costs[sig] for sig in self.setup.planner.widths}
    ranked = sorted(costs.items(), key=lambda item: -item[1].flops)
    moved: dict[Signature, list[Traffic]] = collections.defaultdict(list)
    work, steps = collections.Counter(), collections.Counter()
    for member in itertools.chain.from_iterable(rounds):
      work[member.sig] += self.work(member)
      steps[member.sig] += int(self.setup.planner.feed.steps[member.client])
    for members in rounds:
      for sig, traffic in self.traffic(members).items():
        moved[sig].append(traffic)
    # Traffic may depend on what others hold, so take the mean over rounds.
    mean = {sig: np.mean(rows, 0).round() for sig, rows in moved.items()}
    return [
      self._class_cost(
        sig,
        dataclasses.replace(c, flops=work[sig] // steps[sig]),
        max(1, round(clients.get(sig, 0))),
        Traffic(*map(int, mean[sig])),
      )
      for sig, c in ranked
    ]

  def _class_cost(
    self, sig: Signature, cost: Cost, clients: int, traffic: Traffic
  ) -> table.ClassCost:
    scratch = self.engine.programs.temp_bytes()[sig]
    held = cost.base_params + cost.theta_params
    return table.ClassCost(
      name=_describe(sig, self.setup.sizes),
      clients=clients,
      layers=sig['layer'],
      params_held=held,
      params_trainable=cost.theta_params,
      trainable_percent=100 * cost.theta_params / held,
      uplink_bytes=traffic.uplink,
      downlink_bytes=traffic.downlink,
      flops_per_step=cost.flops,
      peak_memory_bytes=cost.base_bytes + scratch,
    )


def _check_axes(setup: build.Setup) -> None:
  """Refuses allocations along an axis that no part of a model has.

  Each part of a model ignores axes that it lacks, so an axis that all parts
  lack would leave every client with the whole model.

  Raises:
    ValueError: A method's rule names such an axis.
  """
  model = setup.algorithm.model
  parts = getattr(model, 'tiers', {'': model}).values()
  _, sent = setup.algorithm.aggregator.spec(model.theta, model.axes)
  trees = [model.axes, sent]
  for part in parts:
    trees += [part.axes, part.base_axes]
  known = {'layer'}.union(*map(selection.axis_names, trees))
  # A tier may have nothing of its own, but is known by its axis.
  known |= {tier_axis(name) for name in getattr(model, 'tiers', ())}
  for axis in {axis for sig in setup.planner.widths for axis in sig.axes}:
    if axis not in known:
      raise ValueError(
        f'method={setup.experiment.method!r} allocates {axis!r}, which must be'
        f' one of {", ".join(sorted(known))}.'
      )


def _describe(sig: Signature, sizes: Mapping[str, int]) -> str:
  """Names what a class of clients holds: '6 layers, ffn 512'."""
  tiers = [a for a, n in sig.axes.items() if n and a.startswith('tier:')]
  parts = [tier.removeprefix('tier:') for tier in tiers]
  parts += table.amounts({'layer': sig['layer'], **sig.axes}, sizes)
  if sig.length:
    parts.append(f'{sig.length} tok')
  return ', '.join(parts)
