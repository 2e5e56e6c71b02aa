"""The most that a device can train: amounts along the axes a method cuts.

RaFFM's paper asks for subnetworks "subject to resource constraint" and
publishes no map from devices to sizes; this search is ours.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import NamedTuple

from fedjax_tune.costs.cost import Cost
from fedjax_tune.costs.hardware import Device
from fedjax_tune.report import tables

Value = int | float | tuple[float, ...]
Held = Mapping[str, int]


class Choice(NamedTuple):
  """An amount that clients may hold.

  Attributes:
    value: The value in the method's options: blocks, a rate, a rank.
    share: Share of the whole, in (0, 1].
    held: How much this is along each axis of the model.
  """

  value: Value
  share: float
  held: Held


class Menu(NamedTuple):
  """What clients may hold along one axis, or along several cut together.

  Attributes:
    name: 'width', 'depth', 'rank' or 'branches'.
    choices: From the most to the least.
  """

  name: str
  choices: tuple[Choice, ...]


@dataclasses.dataclass(frozen=True)
class Limits:
  """What must not be exceeded.

  Attributes:
    seconds: The longest round; None leaves time open.
    memory: Whether a step must fit the device's memory.
    first: Name of the menu that is cut to its least before others are cut; ''
      always cuts the menu that has the largest share left.
  """

  seconds: float | None
  memory: bool
  first: str = ''


@dataclasses.dataclass(frozen=True)
class Fit:
  """What a device trains.

  Attributes:
    values: For each menu the value of its choice.
    held: How much this is along each axis.
    cost: Its cost on the device.
    seconds: Seconds of a round: receive, compute, send.
  """

  values: Mapping[str, Value]
  held: Held
  cost: Cost
  seconds: float


class TooLittle(ValueError):
  """A device that cannot train the least.

  Attributes:
    least: What the least amounts would need.
  """

  def __init__(self, least: Fit, device: Device, limits: Limits) -> None:
    super().__init__(_refusal(least, device, limits))
    self.least = least


Measure = Callable[[Held], Cost]
# Of each menu the position of a choice.
_Place = tuple[int, ...]


def measured(measure: Measure) -> Measure:
  """Remembers costs: devices share most of the amounts that are tried."""
  known: dict[tuple[tuple[str, int], ...], Cost] = {}

  def find(held: Held) -> Cost:
    key = tuple(sorted(held.items()))
    if key not in known:
      known[key] = measure(held)
    return known[key]

  return find


def largest(
  device: Device,
  steps: int,
  menus: Sequence[Menu],
  measure: Measure,
  limits: Limits,
) -> Fit:
  """Finds the most that fits.

  Starting from the whole model it cuts one menu after another by one choice, as
  `limits.first` says, until the client fits. Then each menu, the last first,
  gets back what still fits. Ties are cut in the order of the menus.

  Args:
    device: The hardware.
    steps: Local steps of a round.
    menus: What can be cut.
    measure: The exact cost of what is held.
    limits: What must not be exceeded.

  Raises:
    TooLittle: Even the least does not fit; the error says what it would need.
  """
  at = functools.partial(_at, menus)
  weigh = lambda place: _weigh(device, steps, at(place), measure)
  place: _Place = (0,) * len(menus)
  while not _fits(weigh(place), device, limits):
    shorter = _cut(place, menus, limits.first)
    if shorter is None:
      raise TooLittle(weigh(place), device, limits)
    place = shorter
  for i in reversed(range(len(menus))):
    while place[i]:
      longer = (*place[:i], place[i] - 1, *place[i + 1 :])
      if not _fits(weigh(longer), device, limits):
        break
      place = longer
  return weigh(place)


def _at(menus: Sequence[Menu], place: _Place) -> dict[str, Choice]:
  return {m.name: m.choices[i] for m, i in zip(menus, place, strict=True)}


def _weigh(
  device: Device, steps: int, chosen: Mapping[str, Choice], measure: Measure
) -> Fit:
  held = {axis: n for c in chosen.values() for axis, n in c.held.items()}
  cost = measure(held)
  moved = cost.theta_bytes / device.uplink + cost.theta_bytes / device.downlink
  seconds = steps * cost.flops / device.flops + moved
  values = {name: choice.value for name, choice in chosen.items()}
  return Fit(values, held, cost, seconds)


def _fits(fit: Fit, device: Device, limits: Limits) -> bool:
  in_time = limits.seconds is None or fit.seconds <= limits.seconds
  return in_time and (not limits.memory or fit.cost.memory <= device.memory)


def _cut(place: _Place, menus: Sequence[Menu], first: str) -> _Place | None:
  """Returns the next smaller place; None if all menus are at their least."""
  left = [i for i, menu in enumerate(menus) if place[i] + 1 < len(menu.choices)]
  if not left:
    return None
  share = lambda i: menus[i].choices[place[i]].share
  cut = max(left, key=lambda i: (menus[i].name == first, share(i), -i))
  return (*place[:cut], place[cut] + 1, *place[cut + 1 :])


def _refusal(least: Fit, device: Device, limits: Limits) -> str:
  amounts = '; '.join(
    f'{name} {tables.human_amount(v)}' for name, v in least.values.items()
  )
  needs = []
  if limits.seconds is not None:
    needs.append(
      f'{tables.digits(least.seconds)} s a round, of clients.deadline_s='
      f'{limits.seconds:g}'
    )
  if limits.memory:
    needs.append(
      f'{tables.human_bytes(least.cost.memory)} of memory, of its'
      f' {tables.human_bytes(device.memory)}'
    )
  return (
    f'device {device.name!r} must be able to train the least that the method'
    f' lists ({amounts}): it takes {" and ".join(needs)}. List less, or leave'
    ' the device out.'
  )
