"""Host randomness, derived from what it is for."""

import hashlib

import numpy as np

# Their places are part of every result so far; other purposes are hashed.
_PURPOSES = ('cohort', 'allocation', 'repair', 'batches', 'roles', 'deploy')


def host_rng(
  purpose: str, seed: int, rnd: int, client: int | None = None
) -> np.random.Generator:
  """Returns the generator of one purpose in one round, for one client.

  It depends on nothing else: not on the position in the cohort, nor on what
  was drawn before. So a resumed run needs no replay.

  Args:
    purpose: Any name; each has draws of its own.
    seed: Of the run, in [0, 2**32).
    rnd: The round.
    client: Whose draws, if they are one client's.
  """
  whose = 0 if client is None else client + 1
  return np.random.default_rng([seed, rnd, _number(purpose), whose])


def _number(purpose: str) -> int:
  """Returns a number that is the purpose's in every process and version."""
  if purpose in _PURPOSES:
    return _PURPOSES.index(purpose)
  digest = hashlib.sha256(purpose.encode()).digest()
  # Of 64 bits, the highest of which is set: two words of entropy, where the
  # names above have one.
  return int.from_bytes(digest[:8], 'big') | 1 << 63
