"""A linear map as a sum of orthogonal kernels."""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_tune.models import linear, primitives


def decompose(
  product_LxDxF: Float[Array, 'L D F'],
) -> tuple[Float[Array, 'L D R'], Float[Array, 'L R F']]:
  """Splits matrices into u sqrt(s) and sqrt(s) v, the largest s first."""
  u, s, v = jnp.linalg.svd(product_LxDxF, full_matrices=False)
  root_LxR = jnp.sqrt(s)
  return u * root_LxR[:, None], root_LxR[:, :, None] * v


class Factored(nnx.Module):
  """y = (x U) V + b, stacked over layers.

  Column r of U and row r of V are one kernel, a map of rank one. Kernels are
  orthogonal at first; there are as many as the map's rank.

  Attributes:
    u: [L, D, R].
    v: [L, R, F].
    bias: [L, F].
  """

  def __init__(self, dense: linear.Linear, name: str) -> None:
    """Factors a stacked map of one input and one output axis.

    Args:
      dense: The map, without an adapter.
      name: What to call the axis of the kernels.
    """
    u, v = decompose(dense.kernel[...])
    layer, ins, outs = dense.kernel.get_metadata('axes')
    mixed = isinstance(dense.kernel, linear.Mixed)
    kind = linear.Mixed if mixed else nnx.Param
    self.u = kind(u, axes=(layer, ins, name))
    self.v = kind(v, axes=(layer, name, outs))
    self.bias = dense.bias

  def __call__(self, x: Array, key: jax.Array | None = None) -> Array:
    """Maps [..., D] to [..., F]; there is no dropout."""
    del key
    mixed = isinstance(self.u, linear.Mixed)
    h = primitives.dense(x.reshape(-1, x.shape[-1]), self.u[...], mixed=mixed)
    y = primitives.dense(h, self.v[...], mixed=mixed)
    return y.reshape(*x.shape[:-1], -1) + self.bias[...]
