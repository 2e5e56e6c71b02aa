"""What aligned a run's models, in its folder: `alignment.safetensors`.

Projections and maps that tiers do not train are not in a checkpoint. A run
computes them from public inputs. Someone who opens the run's folder may have no
data, and LAPACK on another machine may mix directions of similar variance.
"""

from collections.abc import Mapping
import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from fedjax_tune import endings
from fedjax_tune.data import digest
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.files import whole
from fedjax_tune.models import alignment, export

FILE = 'alignment.safetensors'

# Of each tier, by path.
Values = Mapping[str, Mapping[str, np.ndarray]]


def of(algorithm: Algorithm) -> Values:
  """Returns what aligns the models of a method; {} where nothing does."""
  tiers = getattr(algorithm.model, 'tiers', {})
  found = {name: alignment.frozen(tier) for name, tier in tiers.items()}
  return found if any(found.values()) else {}


def identify(values: Values) -> dict[str, str]:
  """Returns what identifies the alignment, as a part of a run's content."""
  return {'alignment': digest.of(values)[:16]} if values else {}


def write(folder: pathlib.Path, values: Values) -> None:
  """Writes the alignment into a run's folder, if anything is aligned."""
  if not values:
    return
  tensors = {
    f'{tier}/{path}': leaf
    for tier, leaves in values.items()
    for path, leaf in leaves.items()
  }
  with endings.storing(folder / FILE), whole.file(folder / FILE) as part:
    export.write_tensors(part, tensors)


def read(folder: str | os.PathLike[str]) -> Values:
  """Reads the alignment; {} if the run has none, or is older than the file.

  Raises:
    ValueError: The file is damaged.
  """
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    return {}
  try:
    tensors = safetensors.numpy.load_file(path)
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} is corrupt: {error}.') from error
  found: dict[str, dict[str, np.ndarray]] = {}
  for name, leaf in tensors.items():
    tier, _, place = name.partition('/')
    found.setdefault(tier, {})[place] = leaf
  return found
