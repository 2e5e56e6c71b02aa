"""Arrays that take long to make, kept on disk from one run to the next.

A file's name is a hash of everything that its arrays are made from, the code
included. So a file is never out of date, only unused.
"""

from collections.abc import Callable, Mapping
import inspect
import pathlib
from types import ModuleType

import numpy as np

from fedjax_tune.data import digest
from fedjax_tune.files import bounded, whole

Arrays = dict[str, np.ndarray]
# Larger ones would fill disks behind a user's back.
_MOST_BYTES, _MOST_IN_ALL = 1 << 30, 8 << 30
_DIGEST = 'digest'


class Cache:
  """Arrays in a folder, which is made when something is kept.

  Guarantees:
    - What `get` returns is what `make` returned, bit for bit, or it is made
      again: each file has a hash of its arrays.
    - A file appears by a rename once it is complete, so processes that make
      the same arrays at the same time do not disturb each other.
    - If nothing can be kept the arrays are made each time, and `notes` says
      why.
    - The folder stays below 8 GiB: what was used longest ago is deleted first.

  Attributes:
    notes: What a user should be told, a line each.
  """

  def __init__(self, folder: pathlib.Path) -> None:
    self._folder = folder
    self.notes: list[str] = []

  def get(
    self,
    made_of: object,
    code: tuple[ModuleType, ...],
    make: Callable[[], Arrays],
  ) -> Arrays:
    """Returns arrays that were kept, or makes and keeps them.

    Args:
      made_of: Everything but code that the arrays depend on; see `digest.of`.
      code: The modules that make them.
      make: Makes them.
    """
    sources = [inspect.getsource(module) for module in code]
    path = self._folder / f'{digest.of(made_of, np.__version__, sources)}.npz'
    try:
      found = _read(path)
      bounded.touch(path)
      return found
    except OSError:
      pass  # Where it is there, writing it again mends that or says why not.
    except Exception:  # A damaged archive raises about anything.
      self.notes.append(f'{path} was damaged, and is made again')
    made = make()
    if sum(array.nbytes for array in made.values()) <= _MOST_BYTES:
      try:
        _write(path, made)
        bounded.trim(self._folder, _MOST_IN_ALL)
      except OSError as error:
        self.notes.append(
          f'{self._folder} can not be written ({error.strerror}): what it would'
          ' keep, every run makes anew'
        )
    return made


def _read(path: pathlib.Path) -> Arrays:
  with path.open('rb') as file, np.load(file, allow_pickle=False) as held:
    found = {name: held[name] for name in held.files}
  if str(found.pop(_DIGEST)) != digest.of(found):
    raise ValueError('it is not what was written')
  return found


def _write(path: pathlib.Path, made: Mapping[str, np.ndarray]) -> None:
  sealed = {**made, _DIGEST: np.array(digest.of(made))}
  with whole.file(path, shared=True) as part, part.open('wb') as file:
    np.savez(file, allow_pickle=False, **sealed)
