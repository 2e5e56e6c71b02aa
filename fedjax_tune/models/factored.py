"""A linear map as a sum of orthogonal kernels."""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_tune.models import linear


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
    self.u = nnx.Param(u, axes=(layer, ins, name))
    self.v = nnx.Param(v, axes=(layer, name, outs))
    self.bias = dense.bias

  def __call__(self, x: Array, key: jax.Array | None = None) -> Array:
    """Maps [..., D] to [..., F]; there is no dropout."""
    del key
    return (x @ self.u[...]) @ self.v[...] + self.bias[...]
