"""What was converted or left out while data were read, counted by reason."""

from collections.abc import Sequence

_NAMED = 3


class Notes:
  """Counts by reason, each with the names of its first few examples.

  Example:
    notes = Notes()
    notes.add('pictures turned upright', 'row 7')
    notes.lines()  # ('1 pictures turned upright: row 7',)
  """

  def __init__(self) -> None:
    """Starts with nothing to tell."""
    self._names: dict[str, list[str]] = {}

  def add(self, reason: str, name: str) -> None:
    """Counts one more example, by its name."""
    self._names.setdefault(reason, []).append(name)

  def lines(self) -> tuple[str, ...]:
    """Returns one line a reason, in the order in which they came up."""
    return tuple(
      f'{len(names)} {reason}: {join_first(names)}'
      for reason, names in self._names.items()
    )


def join_first(names: Sequence[str], separator: str = ', ') -> str:
  """Returns the first few of some names, and whether there are more."""
  more = ['...'] * (len(names) > _NAMED)
  return separator.join([*names[:_NAMED], *more])
