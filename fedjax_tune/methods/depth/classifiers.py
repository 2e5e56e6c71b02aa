"""Several classifiers on one model: `head` leaves with a leading axis."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_tune.data.tasks import Task
from fedjax_tune.models.foundation import Model


def scores(
  model: Model, tokens_ExBxD: Float[Array, 'E B D']
) -> Float[Array, 'E B K']:
  """Applies classifier e of `model.head` (kernel [E, D, K]) to tokens e."""
  kernel_ExDxK = model.head.kernel[...]
  tokens_ExBxD = tokens_ExBxD.astype(jnp.float32)
  logits_ExBxK = jnp.einsum('ebd,edk->ebk', tokens_ExBxD, kernel_ExDxK)
  if model.head.bias is None:
    return logits_ExBxK
  return logits_ExBxK + model.head.bias[...][:, None]


def require_classes(name: str, task: Task) -> None:
  """Raises a ValueError for tasks that classifiers after blocks can't learn."""
  if task.kind != 'classification':
    raise ValueError(
      f'method={name} has several classifiers; the task of the data set is'
      f' {task.kind!r}, not classification.'
    )
