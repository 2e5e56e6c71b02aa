"""Turns what a server has added to frozen kernels into part of their LoRA."""

import numpy as np

from fedjax_tune.deploy import models
from fedjax_tune.models import adapter_files, foundation


def as_lora(
  model: models.Model, pairs: adapter_files.Pairs
) -> adapter_files.Pairs:
  """Returns a LoRA of scale 1 that equals all that was added to kernels."""
  added = foundation.flat(model.added)
  found, stacks = {}, {path: int(path[0] == 'blocks') for path in pairs}
  for path, (a, b) in pairs.items():
    stack = stacks[path]
    lead = a.shape[:stack]
    left = a.reshape(*lead, -1, a.shape[-1]).astype(np.float64)
    right = b.reshape(*lead, b.shape[stack], -1).astype(np.float64)
    whole = model.scale * left @ right
    whole += np.asarray(added[*path, 'kernel'], np.float64).reshape(whole.shape)
    u, s, v = np.linalg.svd(whole, full_matrices=False)
    least = s.max() * max(whole.shape[-2:]) * np.finfo(np.float32).eps
    rank = max(1, int((s > least).sum(-1).max()))
    u, v = u[..., :rank], s[..., :rank, None] * v[..., :rank, :]
    found[path] = (
      u.reshape(*a.shape[:-1], rank),
      v.reshape(*lead, rank, *b.shape[stack + 1 :]),
    )
  most = max(a.shape[-1] for a, _ in found.values())
  # Filled up with zeros, as one rank is for all maps.
  return {
    p: (_widen(a, -1, most), _widen(b, stacks[p], most))
    for p, (a, b) in found.items()
  }


def _widen(x: np.ndarray, axis: int, size: int) -> np.ndarray:
  """Pads an axis with zeros."""
  wide = [(0, 0)] * x.ndim
  wide[axis] = (0, size - x.shape[axis])
  return np.pad(x, wide)
