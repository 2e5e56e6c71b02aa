"""Everything that is known and checked before a run's data are read."""

import dataclasses

import jax

from fedjax_tune import config
from fedjax_tune.costs import capacity, hardware
from fedjax_tune.data import arrays, outlines, partition
from fedjax_tune.methods import METHODS
from fedjax_tune.models import federation, peft, tiers
from fedjax_tune.training import defaults, frozen, method, provisions


@dataclasses.dataclass(frozen=True)
class Agreement:
  """What is known about a run before its data are read.

  Attributes:
    tiers: The models; most methods have one.
    widths: Size of each axis along which clients may differ.
    depths: Blocks of each tier, by the axis of its clients.
    budgets: Blocks that each client can hold.
    devices: What each client computes with; () leaves it open.
    cohort: Clients of a round, at most.
  """

  tiers: tuple[tiers.Tier, ...]
  widths: dict[str, int]
  depths: dict[str, int]
  budgets: tuple[int, ...]
  devices: tuple[hardware.Device, ...]
  cohort: int


def agree(
  experiment: config.Experiment, data: arrays.Arrays | None = None
) -> Agreement:
  """Checks all of an experiment that can be checked without its data.

  It starts no device: the caller may leave devices to other processes (a TPU
  serves only one) or to other machines.

  Args:
    experiment: What to check.
    data: Its data, if they are in memory.

  Raises:
    ValueError, FileNotFoundError: See `build.build`.
  """
  # Cheap checks come first, slow ones last.
  experiment = defaults.resolve(experiment, data)
  provisions.check(experiment, data)
  clients = experiment.clients
  names = data.domain_names if data else outlines.domain_names(experiment.data)
  domains = partition.client_domains(clients, len(names))
  _check_cohort(clients, len(domains))
  capacity.check_shots(clients)
  frozen.check(experiment)
  cohort = clients.cohort_size
  if clients.cohort != 'uniform':
    cohort = int(domains.max()) + 1
  _check_slab(experiment.engine, cohort)
  entry = METHODS[experiment.method]
  found = method.load_tiers(experiment)
  for tier in found:
    peft.check(experiment, tier.weights)
  weights = found[0].weights
  widths = peft.axis_sizes(
    peft.with_trained(weights.config, experiment.model), experiment.data
  )
  capacity.check_model(experiment, widths)
  steps = experiment.local.steps or experiment.local.epochs
  capacity.check_round(experiment, cohort, steps, widths)
  depths = {federation.tier_axis(t.name): t.kept['layer'] for t in found}
  deepest = max(tier.kept['layer'] for tier in found)
  budgets = partition.expand_budgets(clients.budgets, domains, deepest)
  budgets = tuple(budgets.tolist())
  devices = hardware.assign(clients.devices, len(domains))
  entry.check(experiment, widths | depths, budgets)
  return Agreement(found, widths, depths, budgets, devices, cohort)


def _check_cohort(cfg: config.Clients, num_clients: int) -> None:
  if cfg.cohort == 'uniform' and cfg.cohort_size > num_clients:
    raise ValueError(
      f'clients.cohort_size={cfg.cohort_size} must be at most {num_clients}, '
      'the number of clients.'
    )


def _check_slab(cfg: config.Engine, cohort: int) -> None:
  """Checks slabs against the clients of a round."""
  if cfg.slab > cohort:
    raise ValueError(
      f'engine.slab={cfg.slab} must be at most {cohort}, the clients of a'
      ' round: the rest would be padding.'
    )


def check_devices(cfg: config.Engine) -> None:
  """Checks devices against those of this machine, which it starts.

  Raises:
    ValueError: The machine has fewer devices, or slabs do not occupy all.
  """
  if cfg.devices > (here := jax.local_device_count()):
    raise ValueError(
      f'engine.devices={cfg.devices} must be at most {here}, the devices of'
      ' this machine.'
    )
  devices = method.fsdp_devices(cfg)
  if cfg.slab % devices:
    raise ValueError(
      f'engine.slab={cfg.slab} must be a multiple of {devices}, the devices,'
      ' with engine.fsdp.'
    )
