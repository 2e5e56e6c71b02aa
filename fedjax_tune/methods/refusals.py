"""What several methods refuse."""

from collections.abc import Mapping


def decoder(sizes: Mapping[str, int], field: str, why: str) -> None:
  """Raises a ValueError where the model has rotary positions.

  Args:
    sizes: Size of each axis of the model.
    field: What does not serve it, with its value.
    why: The reason.
  """
  if 'rotary' in sizes:
    raise ValueError(f'{field} does not serve a decoder: {why}.')
