"""Pictures are flipped and shifted by draws of the client's step alone."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from fedjax_tune.methods import augment

_IMAGES = np.random.default_rng(0).integers(0, 256, (64, 6, 6, 3), np.uint8)


def test_pictures_are_mirrored_or_as_they_were():
  got = np.asarray(augment.flip(jnp.asarray(_IMAGES), jax.random.key(0)))
  same = (got == _IMAGES).all((1, 2, 3))
  mirrored = (got == _IMAGES[:, :, ::-1]).all((1, 2, 3))
  assert np.all(same ^ mirrored)
  assert 16 < same.sum() < 48
  assert got.dtype == np.uint8


def test_pictures_are_shifted_within_their_borders():
  got = np.asarray(augment.crop(jnp.asarray(_IMAGES), jax.random.key(1), 2))
  shifts = set()
  for image, shifted in zip(_IMAGES, got, strict=True):
    wide = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode='edge')
    places = [
      (i, j)
      for i in range(5)
      for j in range(5)
      if (wide[i : i + 6, j : j + 6] == shifted).all()
    ]
    assert len(places) == 1
    shifts.update(places)
  assert len(shifts) > 15


def test_the_draw_is_that_of_the_step():
  """A loss sees other pictures with another key, and the same with the same."""
  algorithm = tiny.run(tiny.experiment('all_large')).algorithm
  changed = augment.add(algorithm, flips=True, shift=1)
  model = algorithm.model.assemble(
    algorithm.model.base, algorithm.model.theta, {'layer': tiny.DEPTH}
  )
  batch, context = tiny.batch(tiny.STACK_SIZE, 8), tiny.context(algorithm, 0)
  losses = [
    float(a.client.loss(model, batch, context, jax.random.key(seed))[0])
    for a, seed in ((changed, 0), (changed, 0), (changed, 1))
  ]
  assert losses[0] == losses[1] != losses[2]
  off = augment.add(algorithm, flips=False, shift=0)
  plain, same = (
    float(a.client.loss(model, batch, context, jax.random.key(0))[0])
    for a in (algorithm, off)
  )
  assert plain == same != losses[0]
