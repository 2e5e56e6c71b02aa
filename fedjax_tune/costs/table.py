"""What each class of clients costs, for the terminal and as Markdown."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses

from fedjax_tune.costs import fit, hardware
from fedjax_tune.report import tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCost:
  """What a class of clients (those of one budget) holds, moves and computes.

  Attributes:
    name: What the class is called.
    clients: Clients in it.
    layers: Transformer blocks that each holds.
    params_held: Parameters on the device, frozen ones included.
    params_trainable: Parameters that it trains and sends.
    trainable_percent: The latter as percent of the former.
    uplink_bytes: Bytes sent by one client in one round.
    downlink_bytes: Bytes received by one client in one round.
    flops_per_step: Floating-point operations of one local step.
    peak_memory_bytes: Most memory in use during a local step.
  """

  name: str
  clients: int
  layers: int
  params_held: int
  params_trainable: int
  trainable_percent: float
  uplink_bytes: int
  downlink_bytes: int
  flops_per_step: int
  peak_memory_bytes: int


def cost_table(rows: Sequence[ClassCost]) -> tables.Terminal:
  """The cost of each class of clients, for the terminal.

  Bytes sent and received share a column if they are equal, as they nearly
  always are: two columns would not fit into 80 characters.
  """
  header, cells = _cells(rows)
  up, down = header.index('up'), header.index('down')
  if all(row[up] == row[down] for row in cells):
    header[up] = 'up = down'
    for row in (header, *cells):
      del row[down]
  return tables.Terminal('Cost of a client, by class', header, cells)


def cost_markdown(rows: Sequence[ClassCost]) -> str:
  """The cost of each class of clients, as a Markdown table."""
  return tables.markdown(*_cells(rows))


def clients_markdown(
  costs: Mapping[str, Sequence[ClassCost]],
) -> str:
  """What a client of each class costs with each method, as Markdown."""
  parts = {label: _cells(rows) for label, rows in costs.items()}
  header = next(header for header, _ in parts.values())
  return tables.markdown(
    ['method', *header],
    [[label, *cells] for label, (_, rows) in parts.items() for cells in rows],
  )


def fit_table(
  devices: Sequence[hardware.Device],
  fits: Sequence[fit.Fit],
  sizes: Mapping[str, int],
) -> tables.Terminal:
  """What each kind of device trains, for the terminal.

  Args:
    devices: Each client's device.
    fits: What each client trains.
    sizes: Size of each axis of the whole model.
  """
  header = [
    'device', 'clients', 'trains', 'params', 's/round', 'memory', 'of its',
  ]  # fmt: skip
  pairs = zip(devices, fits, strict=True)
  clients = collections.Counter((d, id(f)) for d, f in pairs)
  rows = {(d, id(f)): f for d, f in zip(devices, fits, strict=True)}
  return tables.Terminal(
    'What each device trains',
    header,
    [
      [
        device.name,
        str(clients[device, key]),
        ', '.join(amounts(_cut(found.held, sizes), sizes)) or 'all',
        tables.human_count(found.cost.base_params + found.cost.theta_params),
        tables.digits(found.seconds) if found.seconds else '-',
        tables.human_bytes(found.cost.memory),
        tables.human_bytes(device.memory),
      ]
      for (device, key), found in rows.items()
    ],
  )


def amounts(held: Mapping[str, int], sizes: Mapping[str, int]) -> list[str]:
  """Names what is held of the layers, and of each other axis that is cut.

  >>> amounts({'layer': 1, 'ffn': 512, 'rank': 8}, {'ffn': 1536, 'rank': 8})
  ['1 layer', 'ffn 512']
  """
  others = {axis: n for axis, n in held.items() if axis != 'layer'}
  layers = held.get('layer')
  named = [] if layers is None else [f'{layers} layer{"s"[: layers != 1]}']
  return named + [
    f'{axis} {n}' for axis, n in others.items() if n < sizes.get(axis, n)
  ]


def _cut(held: fit.Held, sizes: Mapping[str, int]) -> fit.Held:
  return {axis: n for axis, n in held.items() if n < sizes.get(axis, 0)}


def _cells(rows: Sequence[ClassCost]) -> tables.Cells:
  """Returns header and cells of the costs, a row for each class."""
  header = [
    'class', 'clients', 'params', 'trained', '%', 'up', 'down', 'per step',
    'peak memory',
  ]  # fmt: skip
  return header, [
    [
      row.name,
      str(row.clients),
      tables.human_count(row.params_held),
      tables.human_count(row.params_trainable),
      f'{row.trainable_percent:.2f}',
      tables.human_bytes(row.uplink_bytes),
      tables.human_bytes(row.downlink_bytes),
      tables.human_flops(row.flops_per_step),
      tables.human_bytes(row.peak_memory_bytes),
    ]
    for row in rows
  ]
