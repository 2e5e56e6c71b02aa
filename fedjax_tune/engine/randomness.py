"""Host randomness, derived from its purpose."""

import hashlib

import numpy as np

# Every result so far depends on their positions; other purposes are hashed.
_PURPOSES = ('cohort', 'allocation', 'repair', 'batches', 'roles', 'deploy')


def host_rng(
  purpose: str, seed: int, rnd: int, client: int | None = None
) -> np.random.Generator:
  """Returns the generator of one purpose in one round, for one client.

  It depends on nothing else: not on the position in the cohort, nor on what
  was drawn before. So a resumed run needs no replay.

  Args:
    purpose: Any name; each name has its own draws.
    seed: Seed of the run, in [0, 2**32).
    rnd: The round.
    client: The client, if the draws belong to one.
  """
  whose = 0 if client is None else client + 1
  words = [seed, rnd, _number(purpose), whose]
  if max(words) < 2**32:
    # The same generator, sooner: NumPy reads a list number by number.
    return np.random.default_rng(np.array(words, np.uint32))
  return np.random.default_rng(words)


def _number(purpose: str) -> int:
  """Returns a purpose's number, the same in every process and version."""
  if purpose in _PURPOSES:
    return _PURPOSES.index(purpose)
  digest = hashlib.sha256(purpose.encode()).digest()
  # 64 bits with the highest set: two words of entropy, while the names above
  # have one.
  return int.from_bytes(digest[:8], 'big') | 1 << 63
