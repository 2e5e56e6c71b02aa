"""Flags of a sweep's runs, applied without an experiment file."""

import ast
from collections.abc import Sequence
import functools

from fedjax_tune import config


def resolve(line: Sequence[str]) -> config.Experiment:
  """Applies flags as `launch.train` would, to the default experiment."""
  experiment = config.Experiment(rounds=1)
  for item in line[1:]:
    path, _, value = item.removeprefix('--config.').partition('=')
    *sections, name = path.split('.')
    section = functools.reduce(getattr, sections, experiment)
    kind = type(getattr(section, name))
    setattr(
      section, name, ast.literal_eval(value) if kind is tuple else kind(value)
    )
  return experiment
