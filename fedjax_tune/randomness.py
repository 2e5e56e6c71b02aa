"""Host randomness, derived from what it is for."""

from typing import Literal

import numpy as np

Purpose = Literal[
  'cohort', 'allocation', 'repair', 'batches', 'roles', 'deploy'
]
_PURPOSES = ('cohort', 'allocation', 'repair', 'batches', 'roles', 'deploy')


def host_rng(
  purpose: Purpose, seed: int, rnd: int, client: int | None = None
) -> np.random.Generator:
  """Returns the generator of one purpose in one round, for one client.

  It depends on nothing else: not on the position in the cohort, nor on what
  was drawn before. So a resumed run needs no replay.
  """
  whose = 0 if client is None else client + 1
  return np.random.default_rng([seed, rnd, _PURPOSES.index(purpose), whose])
