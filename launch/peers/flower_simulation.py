"""Flower: its simulation engine on Ray, one worker that keeps its model."""

import functools
import importlib
import os
import sys
import time
from typing import Any

import numpy as np
import torch

from .. import fixed_workload as fixed
from . import harness, torch_model

_QUIET = {'FLWR_TELEMETRY_ENABLED': '0', 'RAY_USAGE_STATS_ENABLED': '0'}


@functools.cache
def _worker(
  arguments: tuple[str, ...],
) -> tuple[harness.Options, torch.nn.Module]:
  """Loads a worker's model once; this is the faster way to write a client."""
  options = harness.parse(arguments)
  return options, torch_model.load(options.work, options.init)


def train(arguments: tuple[str, ...], message: Any, context: Any) -> Any:
  """Trains a client in a worker."""
  del context
  app = importlib.import_module('flwr.app')
  options, model = _worker(arguments)
  client = int(message.content['config']['client'])
  data = fixed.draw_client(options.work, client)
  torch_model.assign(model, message.content['arrays'].to_torch_state_dict())
  loss = torch_model.train_client(model, *data)
  trained = torch_model.trained(model).items()
  sent = {name: parameter.detach() for name, parameter in trained}
  told = {'loss': loss, 'peak': harness.peak_mib()}
  content = app.RecordDict(
    {'arrays': app.ArrayRecord(sent), 'metrics': app.MetricRecord(told)}
  )
  return app.Message(content=content, reply_to=message)


def serve(options: harness.Options, found: dict[str, Any], grid: Any) -> None:
  """Runs the rounds in the server, and notes how long they took."""
  app = importlib.import_module('flwr.app')
  model = torch_model.load(options.work, options.init)
  shared = {n: p.detach() for n, p in torch_model.trained(model).items()}
  while len(nodes := sorted(grid.get_node_ids())) < options.work.population:
    time.sleep(0.1)
  for rnd in range(options.rounds):
    begin, arrays = time.perf_counter(), app.ArrayRecord(shared)
    messages = []
    for client in fixed.draw_cohort(options.work, rnd):
      told = app.ConfigRecord({'client': client})
      content = app.RecordDict({'arrays': arrays, 'config': told})
      messages.append(app.Message(content, nodes[client], 'train'))
    replies = list(grid.send_and_receive(messages))
    for reply in replies:
      if reply.has_error():
        raise RuntimeError(str(reply.error))
    sent = [r.content['arrays'].to_torch_state_dict() for r in replies]
    shared = {n: torch.stack([s[n] for s in sent]).mean(0) for n in shared}
    found['seconds'].append(time.perf_counter() - begin)
    losses = [r.content['metrics']['loss'] for r in replies]
    found['losses'].append(float(np.mean(losses)))
    found['peaks'] += [r.content['metrics']['peak'] for r in replies]


def main() -> None:
  """Starts the simulation on one core."""
  os.environ |= _QUIET
  options = harness.parse()
  found: dict[str, Any] = {'seconds': [], 'losses': [], 'peaks': []}
  client_app = importlib.import_module('flwr.clientapp').ClientApp()
  server_app = importlib.import_module('flwr.serverapp').ServerApp()
  client_app.train()(functools.partial(train, tuple(sys.argv[1:])))

  @server_app.main()
  def _(grid: Any, context: Any) -> None:
    del context
    serve(options, found, grid)

  importlib.import_module('flwr.simulation').run_simulation(
    server_app=server_app,
    client_app=client_app,
    num_supernodes=options.work.population,
    backend_config={
      'client_resources': {'num_cpus': 1, 'num_gpus': 0.0},
      'init_args': {'num_cpus': 1},
    },
  )
  harness.report(
    options,
    found['seconds'],
    found['losses'],
    ('flwr', 'ray', 'torch'),
    max(found['peaks']),
  )


if __name__ == '__main__':
  # Workers import what they run, and know no __main__ of ours.
  importlib.import_module(f'{__package__}.flower_simulation').main()
