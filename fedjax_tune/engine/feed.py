"""What clients read in a round: which examples, and in which arrays."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Protocol

import jax
import numpy as np

from fedjax_tune import config
from fedjax_tune.data.shares import Shares
from fedjax_tune.engine import batches as batching
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.gradient import Parts
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.engine.schedule import resolve
from fedjax_tune.typing import Inputs

# client -> the positions of its examples in a round, and which are real [S, B].
Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]


class Examples(Protocol):
  """What the planner needs from a data set."""

  @property
  def labels(self) -> np.ndarray:
    """Labels [N] or, of text spans, [N, 2]."""
    ...

  def view(self, reader: int, /) -> 'Examples':
    """Returns the examples as a tokenizer encodes them; 0 is the first."""
    ...

  @property
  def lengths(self) -> np.ndarray | None:
    """Tokens of each text int [N]; None of images."""
    ...

  def read(self, indices: np.ndarray, length: int, /) -> Inputs:
    """Returns what the model reads, leaves [n, ...]."""
    ...


@dataclasses.dataclass(frozen=True)
class Feed:
  """Draws clients' examples, and makes batches of them.

  Attributes:
    experiment: The configuration.
    algorithm: Says which model a client has, and whether batches may run in
      parts.
    examples: Training data.
    indices: For each client the positions of its examples.
    readers: For each tier which view of the examples it reads.
  """

  experiment: config.Experiment
  algorithm: Algorithm
  examples: Examples
  indices: Shares
  readers: Mapping[str, int]

  @functools.cached_property
  def sizes(self) -> np.ndarray:
    """The number of examples of each client, int [clients]."""
    return self.indices.sizes

  @functools.cached_property
  def steps(self) -> np.ndarray:
    """Local steps of each client, int [clients]."""
    return batching.local_steps(self.experiment.local, self.sizes)

  @functools.cached_property
  def most_steps(self) -> int:
    """Local steps of the client that takes the most."""
    return int(self.steps.max())

  @functools.cached_property
  def lengths(self) -> tuple[int, ...]:
    """Tokens to which parts of batches are padded; () pads whole batches.

    Batches of texts run in parts if clients run one by one and if that changes
    only rounding: the loss must be a mean over examples.
    """
    e = self.experiment
    mode = resolve(e.engine.mode, jax.default_backend())
    by_example = self.algorithm.client.by_example
    longest = max(self._longest.values())
    found = tuple(n for n in e.data.lengths if n <= longest)
    return found if by_example and mode == 'map' and len(found) > 1 else ()

  @functools.cached_property
  def _longest(self) -> dict[int, int]:
    """For each view of the examples, the length that holds every text."""
    readers = {0, *self.readers.values()}
    views = {r: self.examples.view(r).lengths for r in readers}
    lengths = self.experiment.data.lengths
    return {
      reader: 0 if of is None else batching.bucket(lengths, of)
      for reader, of in views.items()
    }

  def draws(self, rnd: int) -> Draw:
    """Returns a function that draws each client's examples of a round.

    It draws for as many steps as any client takes; client -1 gets none.
    """
    return functools.partial(self._draw, rnd)

  def _draw(self, rnd: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    cfg = self.experiment.local
    shape = (self.most_steps, cfg.batch_size)
    rows, valid = np.zeros(shape, int), np.zeros(shape, bool)
    if client >= 0:
      rng = host_rng('batches', self.experiment.seed, rnd, client)
      steps = int(self.steps[client])
      size = int(self.sizes[client])
      rows[:steps], valid[:steps] = batching.draw_batches(cfg, size, steps, rng)
    return self.indices[max(client, 0)][rows], valid

  def tokens(self, client: int, draw: Draw) -> np.ndarray | None:
    """Returns the tokens of each text that a client reads, int [S, B]."""
    lengths = self._seen_by(client).lengths
    return None if lengths is None else lengths[draw(client)[0]]

  def length(self, client: int, tokens: np.ndarray | None) -> int:
    """Returns the length of the arrays of a client's texts.

    Batches that run whole are as long as their longest text. If they run in
    parts, all have one length, so that one program serves every client.
    """
    if tokens is None:
      return 0
    if self.lengths:
      return self._longest[self._reader(client)]
    return batching.bucket(self.experiment.data.lengths, tokens)

  def count_parts(
    self,
    clients: Sequence[int],
    texts: Sequence[np.ndarray | None],
    draw: Draw,
  ) -> list[tuple[int, ...]]:
    """Returns `Member.parts` of clients: () for each if batches run whole.

    Args:
      clients: Their ids.
      texts: The `tokens` of each.
      draw: The draws of the round.
    """
    if not self.lengths:
      return [()] * len(clients)
    valid = [draw(k)[1] for k in clients]
    known = [tokens for tokens in texts if tokens is not None]
    found = batching.parts(
      self.lengths, np.concatenate(known), np.concatenate(valid)
    )
    buckets = found.bucket.reshape(len(texts), -1, 1)
    numbers = np.arange(len(self.lengths)) + 1
    counts = np.sum(buckets == numbers, axis=1)
    return [tuple(row) for row in counts.tolist()]

  def batches(
    self, clients: np.ndarray, length: int, draw: Draw
  ) -> tuple[Batch, Parts | None]:
    """Returns the batches [C, S, B, ...] of clients of one model, and parts.

    Args:
      clients: Their ids, int [C]; -1 pads.
      length: Tokens to which texts are padded.
      draw: What `draws` returned for the round.
    """
    examples = self._seen_by(int(clients[0]))
    drawn = zip(*(draw(int(k)) for k in clients), strict=True)
    rows, valid = map(np.stack, drawn)
    inputs = examples.read(rows.reshape(-1), length)
    unflatten = lambda x: x.reshape(*rows.shape, *x.shape[1:])
    made = Batch(
      jax.tree.map(unflatten, inputs),
      examples.labels[rows],
      valid,
      batching.row_numbers(examples.lengths, rows.shape),
    )
    if not self.lengths or examples.lengths is None:
      return made, None
    flat = rows.reshape(-1, rows.shape[-1])
    parts = batching.parts(
      self.lengths, examples.lengths[flat], valid.reshape(flat.shape)
    )
    steps = lambda x: x.reshape(*rows.shape[:2], *x.shape[1:])
    return made, jax.tree.map(steps, parts)

  def _seen_by(self, client: int) -> Examples:
    """Returns the examples as the client's model reads them."""
    return self.examples.view(self._reader(client))

  def _reader(self, client: int) -> int:
    """Returns the number of the view that the client's model reads."""
    return self.readers.get(self.algorithm.tier(client), 0)
