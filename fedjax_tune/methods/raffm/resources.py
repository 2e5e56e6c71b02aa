"""From a device to the largest subnetwork that it can train in time.

RaFFM's device-to-size map is not published; this is the rule that its text
describes ("subject to resource constraint"), with `estimate.py` as the cost.
"""

from collections.abc import Mapping

from fedjax_tune import config
from fedjax_tune.costs import estimate, hardware
from fedjax_tune.methods.raffm import spaces


def fit(
  experiment: config.Experiment,
  space: spaces.Space,
  sizes: Mapping[str, int],
  num_clients: int,
) -> tuple[tuple[float, ...], ...]:
  """Returns for each client the shares of its subnetwork.

  The one with most parameters of those that fit the device's memory and whose
  local steps take at most `raffm.deadline_s` on it.

  Raises:
    ValueError: No device setting is given, the number of steps is not fixed,
      or a device can hold nothing.
  """
  if not experiment.clients.devices:
    raise ValueError(
      "clients.devices='' must name a setting where raffm.sampling='resource'."
    )
  if not experiment.local.steps:
    raise ValueError(
      "local.steps=0 must be at least 1 where raffm.sampling='resource': with"
      ' epochs the time depends on the data.'
    )
  each = hardware.assign(experiment.clients.devices, num_clients)
  work = {
    shares: estimate.client(
      {**sizes, **spaces.row_of(shares, sizes)},
      batch_size=experiment.local.batch_size,
      full=experiment.model.tune == 'full',
    )
    for shares in space.choices()
  }
  found = {d.name: _largest(d, work, experiment) for d in dict.fromkeys(each)}
  return tuple(found[device.name] for device in each)


def _largest(
  device: hardware.Device,
  work: Mapping[tuple[float, ...], estimate.Estimate],
  experiment: config.Experiment,
) -> tuple[float, ...]:
  limit = experiment.raffm.deadline_s * device.flops / experiment.local.steps
  fitting = [
    shares
    for shares, cost in work.items()
    if cost.memory <= device.memory and cost.flops <= limit
  ]
  if not fitting:
    least = min(work.values(), key=lambda cost: cost.flops)
    raise ValueError(
      f'raffm.deadline_s={experiment.raffm.deadline_s}: {device.name} fits no'
      ' subnetwork of the space; the smallest takes'
      f' {least.flops * experiment.local.steps / device.flops:.3g} s and'
      f' {least.memory / 2**20:.0f} MiB of its {device.memory / 2**20:.0f}.'
    )
  return max(fitting, key=lambda shares: work[shares].params)
