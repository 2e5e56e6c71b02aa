"""What users add: methods, ways to divide data, server optimizers, writers.

Name a module that registers something in an experiment's `imports`, so that
every command, `--resume` and `launch.deploy` find it again. It must be where
Python finds modules, such as the folder where a command is started. A data set
needs no registration: a TFDS builder can be used once its module is imported.
Importing a module runs it; so read the `imports` in a run's config.json before
you deploy a run of somebody else.
"""

from collections.abc import Callable, Collection
import importlib
import sys

from fedjax_tune import config
from fedjax_tune.config import validate
from fedjax_tune.config.field_rules import AUTO, RULES
from fedjax_tune.data import partitioners
from fedjax_tune.engine import local_optimizer, server_optimizer
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.facts import (
  Check,
  Facts,
  Menus,
  Method,
  accept,
  uncut,
)
from fedjax_tune.methods.raffm import masks, spaces
from fedjax_tune.report import writers

# Field -> names that users have registered for it.
_OWN: dict[str, set[str]] = {}


def register_method(
  name: str,
  build: Callable[[Facts], Algorithm],
  check: Check = accept,
  menus: Menus = uncut,
) -> None:
  """Makes a method known, as `--config.method=name`.

  Args:
    name: What to call it.
    build: Builds the method from `Facts`, when everything is known.
    check: (experiment, size of each axis, budget of each client) -> None;
      raises a ValueError for what is wrong before data are read.
    menus: (experiment, size of each axis) -> the amounts that clients may hold
      along each axis that the method cuts (`methods/menus.py`), for
      `clients.fit`; by default it cuts none.

  Raises:
    ValueError: There is another method of that name.
  """
  there = METHODS.get(name)
  _check_name('method', name, there and there.build, build)
  METHODS[name] = Method(build, check, menus)


def register_partition(
  name: str, rule: partitioners.Rule, *, needs_classes: bool = False
) -> None:
  """Makes a way to divide examples known, as `--config.clients.partition=name`.

  Args:
    name: What to call it; if the name begins with 'domain', each domain is
      divided separately among clients of its own.
    rule: (labels [n], the section `clients`, random generator) -> for each of
      `clients.count` clients the positions of its examples.
    needs_classes: Whether labels must be classes.

  Raises:
    ValueError: There is another one of that name.
  """
  if name in (partitioners.NATURAL, AUTO):
    raise ValueError(
      f'clients.partition={name!r} must be another name: the set itself divides'
      ' there.'
    )
  there = partitioners.RULES.get(name)
  _check_name('clients.partition', name, there, rule)
  partitioners.RULES[name] = rule
  if needs_classes:
    partitioners.NEED_CLASSES.add(name)


def register_server_optimizer(
  name: str, build: server_optimizer.Optimizer
) -> None:
  """Makes an optimizer known, as `--config.server.optimizer=name`.

  Args:
    name: What to call it.
    build: The section `server` -> an optax optimizer, which is fed the negative
      mean delta as if that were a gradient.

  Raises:
    ValueError: There is another one of that name.
  """
  there = server_optimizer.OPTIMIZERS.get(name)
  _check_name('server.optimizer', name, there, build)
  server_optimizer.OPTIMIZERS[name] = build


def register_writer(name: str, build: writers.Build) -> None:
  """Makes a writer of metrics known, as `--config.writers="('name',)"`.

  Args:
    name: What to call it.
    build: (folder of the run, the experiment's fields) -> an object with
      `write(round, metrics)`; if it has a method `close`, that is called at the
      end.

  Raises:
    ValueError: There is another one of that name.
  """
  _check_name('writers', name, writers.WRITERS.get(name), build)
  writers.WRITERS[name] = build


def registered(experiment: config.Experiment) -> frozenset[str]:
  """Returns the fields that name something which a user has registered.

  Which other options the registered object reads is not known here.
  """
  values = {
    'method': experiment.method,
    'clients.partition': experiment.clients.partition,
    'server.optimizer': experiment.server.optimizer,
  }
  return frozenset(f for f, name in values.items() if name in _OWN.get(f, ()))


def _check_name(
  kind: str,
  name: str,
  there: Callable[..., object] | None,
  new: Callable[..., object],
) -> None:
  """Refuses a taken name, except from a module that runs again."""
  if not name.isidentifier():
    raise ValueError(f'{kind}={name!r} must be an identifier to be registered.')
  origin = lambda fn: (fn.__module__, getattr(fn, '__qualname__', ''))
  if there is not None and origin(there) != origin(new):
    raise ValueError(
      f'{kind}={name!r} must be another name: it is known already, from'
      f' {there.__module__}.'
    )
  _OWN.setdefault(kind, set()).add(name)


def choices() -> dict[str, Collection[str]]:
  """Gathers the names in all registries, by the field that takes one."""
  return {
    'method': tuple(METHODS),
    'clients.partition': (AUTO, *partitioners.names()),
    'local.optimizer': tuple(local_optimizer.OPTIMIZERS),
    'local.schedule': tuple(local_optimizer.SCHEDULES),
    'server.optimizer': tuple(server_optimizer.OPTIMIZERS),
    'writers': tuple(writers.WRITERS),
    'raffm.space': (*spaces.SPACES, *masks.PRESETS, 'custom'),
  }


def check(experiment: config.Experiment) -> None:
  """Imports an experiment's modules, and checks all that needs no data.

  Raises:
    ValueError: A module cannot be imported, or a field is wrong; with a line
      for each problem, naming field, value and rule.
  """
  names = experiment.imports
  well_formed = isinstance(names, tuple) and all(
    isinstance(name, str) and RULES['imports'].holds(name) for name in names
  )
  for i, name in enumerate(names) if well_formed else ():
    _import(f'imports[{i}]={name!r}', name)
  validate.validate(experiment, choices())
  writers.check(experiment.writers)


def _import(place: str, name: str) -> None:
  try:
    importlib.import_module(name)
  except ModuleNotFoundError as error:
    if name.endswith('.py'):
      raise ValueError(
        f'{place} must be the name of a module: {name.removesuffix(".py")!r}.'
      ) from error
    raise ValueError(
      f'{place} must be a module that Python finds ({error}); start the command'
      ' in its folder, or put that on PYTHONPATH.'
    ) from error
  except Exception as error:
    sys.modules.pop(name, None)
    raise ValueError(
      f'{place} cannot be imported: {type(error).__name__}: {error}'
    ) from error
