"""Flips and shifts the pictures that clients train on, with any method."""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_tune.data.tasks import LossAndSums
from fedjax_tune.engine.algorithm import Algorithm, Context
from fedjax_tune.engine.client import Batch
from fedjax_tune.models.foundation import Model

# Apart from the keys of dropout.
_FLIP, _CROP = (int.from_bytes(name) for name in (b'flip', b'crop'))


def flip(images: jax.Array, key: jax.Array) -> jax.Array:
  """Mirrors some of the pictures [B, H, W, 3] left to right, at random."""
  mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)


def crop(images: jax.Array, key: jax.Array, most: int) -> jax.Array:
  """Shifts each picture at random by at most some pixels each way.

  New pixels at a border repeat the border.

  Args:
    images: [B, H, W, 3].
    key: Key of the draw.
    most: The most pixels of a shift.
  """
  borders = ((0, 0), (most, most), (most, most), (0, 0))
  wide = jnp.pad(images, borders, mode='edge')
  starts = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)

  def cut(image: jax.Array, start: jax.Array) -> jax.Array:
    at = (start[0], start[1], 0)
    return jax.lax.dynamic_slice(image, at, images.shape[1:])

  return jax.vmap(cut)(wide, starts)


def add(algorithm: Algorithm, *, flips: bool, shift: int) -> Algorithm:
  """Returns a method whose clients train on changed pictures.

  The draws depend on the seed, the round, the client and its step.

  Args:
    algorithm: The method.
    flips: Whether pictures are mirrored.
    shift: The most pixels of a shift; 0 does not shift.
  """
  inner = algorithm.client.loss

  def loss(
    model: Model, batch: Batch, context: Context, key: jax.Array
  ) -> LossAndSums:
    images = jnp.asarray(batch.inputs)
    if flips:
      images = flip(images, jax.random.fold_in(key, _FLIP))
    if shift:
      images = crop(images, jax.random.fold_in(key, _CROP), shift)
    return inner(model, batch._replace(inputs=images), context, key)

  client = dataclasses.replace(algorithm.client, loss=loss)
  return dataclasses.replace(algorithm, client=client)
