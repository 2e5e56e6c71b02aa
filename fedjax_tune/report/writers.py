"""Sends metrics to W&B, MLflow or a writer of the user's own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import importlib
import importlib.util
import math
import os
import pathlib
from typing import Any, Protocol, runtime_checkable
import uuid
import warnings

import numpy as np

from fedjax_tune.files import whole
from fedjax_tune.typing import Json, Record


@runtime_checkable
class Writer(Protocol):
  """A writer, called for each round; its `close`, if any, is called at the end.

  In a resumed run it is called for the remaining rounds.
  """

  def write(self, rnd: int, metrics: Record, /) -> None:
    """Takes what is known of a round.

    Args:
      rnd: The round, counted from 0.
      metrics: As in `metrics.jsonl`, numbers and arrays by name.
    """
    ...


# What MLflow takes: parameters at a time, and letters of each.
_MOST_PARAMS, _MOST_LETTERS = 100, 500

# (folder of the run, the experiment's fields) -> its writer.
Build = Callable[[pathlib.Path, Json], Writer]


class _Logged:
  """A writer that passes a round's numbers to a package, and closes it.

  Its server may be out of reach for a while; this ends no run.
  """

  def __init__(
    self,
    name: str,
    log: Callable[[dict[str, float], int], object],
    close: Callable[[], object],
  ) -> None:
    self._name, self._log, self._close = name, log, close
    self._failed = False

  def write(self, rnd: int, metrics: Record, /) -> None:
    """Takes what is known of a round."""
    with self._going_on():
      self._log(scalars(metrics), rnd)

  def close(self) -> None:
    """Closes the package's run."""
    with self._going_on():
      self._close()

  @contextlib.contextmanager
  def _going_on(self) -> Iterator[None]:
    """Prints an error the first time instead of raising it."""
    try:
      yield
    except Exception as error:  # Each package has errors of its own.
      if not self._failed:
        warnings.warn(
          f'writers={self._name!r}: {type(error).__name__}: {error}; the run goes'
          ' on, and its folder has all rounds.',
          RuntimeWarning,
          stacklevel=4,
        )
      self._failed = True


def scalars(metrics: Record) -> dict[str, float]:
  """Returns the finite numbers among a round's metrics."""
  numbers = {
    name: float(value)
    for name, value in metrics.items()
    if value is not None and np.ndim(value) == 0
  }
  return {name: x for name, x in numbers.items() if math.isfinite(x)}


def _wandb(workdir: pathlib.Path, fields: Json) -> Writer:
  """Logs to Weights & Biases, as its environment variables say."""
  wandb = _module('wandb')
  # The same in every process that goes on with a run, and another where a new run
  # is in a folder of the same name: W&B drops rounds that it has already.
  kept = workdir / 'wandb_run'
  if kept.exists():
    name = kept.read_text().strip()
  else:
    name = uuid.uuid4().hex[:16]
    whole.write_text(kept, name + '\n')
  run = wandb.init(
    id=name, resume='allow', name=_title(fields), config=fields, dir=workdir
  )
  return _Logged(
    'wandb', lambda found, rnd: run.log(found, step=rnd), run.finish
  )


def _mlflow(workdir: pathlib.Path, fields: Json) -> Writer:
  """Logs to MLflow, as its environment variables say."""
  mlflow = _module('mlflow')
  kept = workdir / 'mlflow_run'
  known = kept.read_text().strip() if kept.exists() else None
  run = mlflow.start_run(
    run_id=known, run_name=None if known else _title(fields)
  )
  if not known:
    whole.write_text(kept, run.info.run_id + '\n')
    params = [(name, _cut(value)) for name, value in _flat(fields)]
    for first in range(0, len(params), _MOST_PARAMS):
      mlflow.log_params(dict(params[first : first + _MOST_PARAMS]))
  log = lambda found, rnd: mlflow.log_metrics(found, step=rnd)
  return _Logged('mlflow', log, mlflow.end_run)


def _cut(value: object) -> object:
  """Returns a value, cut to the length that MLflow accepts."""
  text = str(value)
  return (
    value if len(text) <= _MOST_LETTERS else f'{text[: _MOST_LETTERS - 3]}...'
  )


def _title(fields: Json) -> str:
  return f'{fields["method"]} seed {fields["seed"]}'


def _flat(
  fields: Mapping[str, Any], within: str = ''
) -> Iterator[tuple[str, Any]]:
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{within}{name}.')
    else:
      yield f'{within}{name}', value


# By name, for `writers` of the configuration; `plugins` adds a user's own.
WRITERS: dict[str, Build] = {'wandb': _wandb, 'mlflow': _mlflow}
_PACKAGES = ('wandb', 'mlflow')


def check(names: Sequence[str]) -> None:
  """Checks that the packages of writers are there, before a run begins.

  Raises:
    ValueError: A package is not installed.
  """
  for i, name in enumerate(names):
    if name in _PACKAGES and importlib.util.find_spec(name) is None:
      raise ValueError(
        f'writers[{i}]={name!r} needs the package {name}, which is not'
        f' installed: pip install {name}.'
      )


def _module(name: str) -> Any:
  return importlib.import_module(name)


@contextlib.contextmanager
def opened(
  names: Sequence[str],
  own: Sequence[Writer],
  workdir: str | os.PathLike[str],
  fields: Json,
) -> Iterator[list[Writer]]:
  """Opens writers, and closes them at the end, the user's own too.

  Args:
    names: Names of writers in `WRITERS`.
    own: Writers that exist already.
    workdir: Folder of the run.
    fields: Fields of the run's experiment.

  Raises:
    RuntimeError: A package cannot begin.
  """
  with contextlib.ExitStack() as stack:
    found = []
    for writer in own:
      found.append(_closing(stack, writer))
    for name in names:
      found.append(_closing(stack, _begin(name, workdir, fields)))
    yield found


def _begin(name: str, workdir: str | os.PathLike[str], fields: Json) -> Writer:
  try:
    return WRITERS[name](pathlib.Path(workdir), fields)
  except (ValueError, OSError, RuntimeError):
    raise
  except Exception as error:
    raise RuntimeError(
      f'writers={name!r} cannot begin: {type(error).__name__}: {error}'
    ) from error


def _closing(stack: contextlib.ExitStack, writer: Writer) -> Writer:
  if close := getattr(writer, 'close', None):
    stack.callback(close)
  return writer
