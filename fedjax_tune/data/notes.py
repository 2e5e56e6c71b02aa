"""Counts by reason what was converted or left out while data were read."""

from collections.abc import Sequence

_NAMED = 3
# How reasons begin, and what that is of one example.
_ONE = {
  'pictures ': 'picture ', 'rows or files ': 'row or file ', 'rows ': 'row ',
  'texts are ': 'text is ',
}  # fmt: skip


class Notes:
  """Counts by reason, each with the names of its first few examples.

  Example:
    notes = Notes()
    notes.add('pictures turned upright', 'row 7')
    notes.lines()  # ('1 picture turned upright: row 7',)
  """

  def __init__(self) -> None:
    """Starts without notes."""
    self._names: dict[str, list[str]] = {}

  def add(self, reason: str, name: str) -> None:
    """Counts one more example, by its name."""
    self._names.setdefault(reason, []).append(name)

  def lines(self) -> tuple[str, ...]:
    """Returns one line per reason, in the order in which they came up."""
    return tuple(
      f'{len(names)} {_of(reason, len(names))}: {join_first(names)}'
      for reason, names in self._names.items()
    )


def _of(reason: str, count: int) -> str:
  if count == 1:
    for several, one in _ONE.items():
      if reason.startswith(several):
        return one + reason.removeprefix(several)
  return reason


def join_first(names: Sequence[str], separator: str = ', ') -> str:
  """Returns the first few of some names, and whether there are more."""
  more = ['...'] * (len(names) > _NAMED)
  return separator.join([*names[:_NAMED], *more])
