"""What several methods refuse."""

from collections.abc import Mapping

from fedjax_tune import config


def decoder(sizes: Mapping[str, int], field: str, why: str) -> None:
  """Raises a ValueError if the model has rotary positions.

  Args:
    sizes: Size of each axis of the model.
    field: The field that does not work with them, with its value.
    why: The reason.
  """
  if 'rotary' in sizes:
    raise ValueError(f'{field} does not serve a decoder: {why}.')


def method(experiment: config.Experiment) -> str:
  """Returns the field `method` with its value, for `by` below."""
  return f'method={experiment.method!r}'


def server_steps(experiment: config.Experiment, by: str, why: str) -> None:
  """Raises a ValueError if the server does not take the mean unchanged.

  Args:
    experiment: The configuration.
    by: The field that refuses, with its value.
    why: The reason.
  """
  server = experiment.server
  if (server.optimizer, server.lr) != ('fedavg', 1.0):
    raise ValueError(
      f'server.optimizer={server.optimizer!r} and server.lr={server.lr}'
      f" must be 'fedavg' and 1.0 with {by}: {why}."
    )


def weighted(experiment: config.Experiment, by: str) -> None:
  """Raises a ValueError if clients count by their examples.

  Args:
    experiment: The configuration.
    by: The field that refuses, with its value.
  """
  weighting = experiment.server.weighting
  if weighting != 'uniform':
    raise ValueError(
      f"server.weighting={weighting!r} must be 'uniform' with {by}: it"
      ' remembers a mean over all clients.'
    )


def momentum(experiment: config.Experiment, by: str, why: str) -> None:
  """Raises a ValueError if clients do not step by plain SGD.

  Args:
    experiment: The configuration.
    by: The field that refuses, with its value.
    why: The reason.
  """
  local = experiment.local
  for field, value, wanted in (
    ('optimizer', local.optimizer, 'sgd'),
    ('momentum', local.momentum, 0.0),
  ):
    if value != wanted:
      raise ValueError(
        f'local.{field}={value!r} must be {wanted!r} with {by}: {why}. Pass'
        f' --config.local.{field}={wanted}.'
      )


def falling_rate(experiment: config.Experiment, by: str, why: str) -> None:
  """Raises a ValueError if the rate falls within a client's round.

  Args:
    experiment: The configuration.
    by: The field that refuses, with its value.
    why: The reason.
  """
  schedule = experiment.local.schedule
  if schedule != 'constant':
    raise ValueError(
      f"local.schedule={schedule!r} must be 'constant' with {by}: {why}."
    )
