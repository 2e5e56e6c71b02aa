"""A setup with its engine: what it costs, how it starts, how good it is."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedjax_tune import build, checkpoint
from fedjax_tune.engine import server
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.cost import Cost, client_cost
from fedjax_tune.engine.evaluate import build_evaluate
from fedjax_tune.engine.group import Signature
from fedjax_tune.engine.round import Engine
from fedjax_tune.report import tables


class Run:
  """A setup with its engine, its costs and its evaluation."""

  def __init__(self, setup: build.Setup) -> None:
    e = setup.experiment
    self.setup = setup
    self.engine = Engine(
      setup.foundation,
      setup.method,
      setup.theta,
      setup.axes,
      build.local_optimizer(e.local),
      server.optimizer(e.server),
      prox=e.local.prox,
    )
    self.widths = setup.planner.widths()
    self.engine.compile(
      self.widths,
      self.batch_shapes(),
      e.engine.mode,
      e.engine.chunk,
      e.engine.devices or jax.local_device_count(),
    )
    step = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.batch_shapes()
    )
    self.costs: dict[Signature, Cost] = {
      sig: client_cost(
        setup.foundation, setup.method, setup.theta, setup.axes, sig, step
      )
      for sig in self.widths
    }
    self._evaluate = build_evaluate(
      setup.foundation.graph, setup.method, setup.axes, setup.test
    )

  def batch_shapes(self) -> Batch:
    """Returns the shapes of one client's batches [S, B, ...]."""
    cfg, size = self.setup.experiment.local, self.setup.experiment.data
    lead = (int(self.setup.planner.steps.max()), cfg.batch_size)
    shape = (*lead, size.image_size, size.image_size, 3)
    return Batch(
      jax.ShapeDtypeStruct(shape, np.uint8),
      jax.ShapeDtypeStruct(lead, np.int32),
      jax.ShapeDtypeStruct(lead, np.bool_),
    )

  def start(
    self, saved: checkpoint.Checkpoints
  ) -> tuple[server.ServerState, dict[str, Any], int]:
    """Returns state, meter and first round, from a checkpoint if there is."""
    meter: dict[str, Any] = dict.fromkeys(
      ('uplink', 'downlink', 'flops'), np.int64(0)
    )
    fresh = {'state': self.engine.init(), 'meter': meter}
    done = saved.latest_round()
    if done is None:
      return fresh['state'], meter, 0
    kept = saved.restore(fresh)
    return kept['state'], kept['meter'], done

  def charge(
    self, meter: dict[str, Any], cohort: Sequence[int]
  ) -> dict[str, Any]:
    """Adds what a round's clients moved and computed to the running sums."""
    moved = flops = 0
    for client in cohort:
      cost = self.costs[self.setup.method.signature(client)]
      moved += cost.theta_bytes
      flops += cost.flops * int(self.setup.planner.steps[client])
    added = {'uplink': moved, 'downlink': moved, 'flops': flops}
    return {name: np.int64(meter[name] + n) for name, n in added.items()}

  def evaluate(self, state: server.ServerState, rnd: int) -> dict[str, float]:
    """Evaluates every model of the method, on rounds that ask for it."""
    e = self.setup.experiment
    if (rnd + 1) % e.eval_every and rnd + 1 != e.rounds:
      return {}
    results = self._evaluate(self.setup.foundation.base, state.theta)
    record = {}
    for i, (name, by_domain) in enumerate(results.items()):
      prefix = 'eval' if i == 0 else f'eval/{name}'
      record[f'{prefix}/accuracy'] = float(np.nanmean(by_domain))
      if i == 0:
        names = self.setup.test.domain_names
        for domain, value in zip(names, by_domain, strict=True):
          record[f'eval/accuracy/{domain}'] = float(value)
    return record

  def class_costs(self) -> list[tables.ClassCost]:
    """Returns what a client of each class costs, largest first."""
    signatures = [
      self.setup.method.signature(k)
      for k in np.flatnonzero(self.setup.method.eligible())
    ]
    clients = collections.Counter(signatures)
    ranked = sorted(self.costs.items(), key=lambda item: -item[1].flops)
    return [self._class_cost(sig, c, clients[sig]) for sig, c in ranked]

  def _class_cost(
    self, sig: Signature, cost: Cost, clients: int
  ) -> tables.ClassCost:
    memory = self.engine.programs.compiled[sig].memory_analysis()
    held = cost.base_params + cost.theta_params
    return tables.ClassCost(
      name=f'{sig["layer"]} layers',
      clients=clients,
      layers=sig['layer'],
      params_held=held,
      params_trainable=cost.theta_params,
      trainable_percent=100 * cost.theta_params / held,
      uplink_bytes=cost.theta_bytes,
      downlink_bytes=cost.theta_bytes,
      flops_per_step=cost.flops,
      peak_memory_bytes=cost.base_bytes + memory.temp_size_in_bytes,
    )
