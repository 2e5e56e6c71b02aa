"""Workloads A and B: sizes, data and cohorts, the same in any framework.

This uses only NumPy, so that a peer's process loads no framework but its own.
"""

import dataclasses

import numpy as np

RANK, ALPHA, CLASSES, STEPS, SEED = 8, 16, 10, 5, 0
LR, MOMENTUM, SIDE = 0.01, 0.9, 32


@dataclasses.dataclass(frozen=True)
class Workload:
  """Sizes of a workload.

  Attributes:
    depth: Blocks of the ViT.
    embed: Its width.
    heads: Its attention heads.
    ffn: Hidden width of its MLP.
    patch: Pixels of a patch's side.
    population: Number of clients.
    cohort: Clients of a round.
    batch: Examples of a local step.
    chunk: Clients at a time with which a plain `lax.map` is fastest on a CPU.
    rounds: Number of rounds.
  """

  depth: int
  embed: int
  heads: int
  ffn: int
  patch: int
  population: int
  cohort: int
  batch: int
  chunk: int
  rounds: int

  @property
  def examples(self) -> int:
    """Number of examples of a client; it reads each once a round."""
    return STEPS * self.batch


WORKLOADS = {
  'A': Workload(12, 192, 3, 768, 4, 100, 8, 16, 2, 4),
  'B': Workload(2, 64, 2, 128, 8, 200, 32, 8, 4, 5),
  # For tests.
  'tiny': Workload(1, 8, 2, 16, 16, 4, 3, 2, 2, 2),
}


def draw_cohort(work: Workload, rnd: int) -> list[int]:
  """Draws the clients of a round."""
  rng = np.random.default_rng((SEED, 777, rnd))
  return rng.choice(work.population, work.cohort, replace=False).tolist()


def draw_client(work: Workload, client: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws a client's data: a pattern for each class, plus noise.

  Returns:
    Images float32 [steps, batch, 3, side, side], and labels int32 [steps, batch].
  """
  patterns = np.random.default_rng(SEED + 12345).normal(
    size=(CLASSES, 3, SIDE, SIDE)
  )
  rng = np.random.default_rng((SEED, client))
  labels = rng.integers(0, CLASSES, size=work.examples)
  noise = rng.normal(size=(work.examples, 3, SIDE, SIDE))
  images = 0.5 * patterns.astype(np.float32)[labels] + noise.astype(np.float32)
  lead = (STEPS, work.batch)
  return (
    images.reshape(*lead, *images.shape[1:]),
    labels.astype(np.int32).reshape(lead),
  )


def draw_round(work: Workload, rnd: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws the data of a round's clients, arrays [clients, steps, batch, ...]."""
  drawn = [draw_client(work, client) for client in draw_cohort(work, rnd)]
  images, labels = zip(*drawn, strict=True)
  return np.stack(images), np.stack(labels)
