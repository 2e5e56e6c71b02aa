"""Runs a selection of stacked blocks, one after another."""

from flax import nnx
import jax
from jax.extend.core import Primitive
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_tune.models.block import Keys
from fedjax_tune.typing import Tree

_VIEWS = frozenset(
  {
    'dynamic_slice',
    'gather',
    'squeeze',
    'reshape',
    'convert_element_type',
    'bitcast_convert_type',
    # Of a stack that is divided among devices.
    'all_gather',
    'all_to_all',
  }
)


def _is_kept(primitive: Primitive, *_: object, **__: object) -> bool:
  """Keeps all but the taken frozen weights for the backward pass.

  Keeping those would copy every held block for every client of a `vmap`; taking
  them again is faster than writing and reading the copies.
  """
  return primitive.name not in _VIEWS


def _take(stack: Array, layer: Int[Array, '']) -> Array:
  """Returns one block's part of a frozen stack.

  bfloat16 is sliced as integers: on a CPU, XLA turns a bfloat16 slice into one
  of float32, and copies the whole stack for that.
  """
  if not isinstance(stack, jax.Array) or stack.dtype != jnp.bfloat16:
    return stack[layer]
  bits = jax.lax.bitcast_convert_type(stack, jnp.uint16)[layer]
  return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


def _split_last(stacks: Tree) -> tuple[Tree, Tree]:
  """Splits stacks into all blocks but the last, and the last.

  It is one operation because two slices would have two gradients, each of which
  would be padded to a stack before they are added.
  """
  leaves, tree = jax.tree.flatten(stacks)
  pairs = [jax.lax.split(p, (len(p) - 1, 1)) for p in leaves]
  head = tree.unflatten([rest for rest, _ in pairs])
  return head, tree.unflatten([last[0] for _, last in pairs])


def run_blocks(
  blocks: nnx.Module,
  x_BxTxD: Float[Array, 'B T D'],
  layers_N: Int[Array, ' N'],
  key: jax.Array | None,
  real_BxT: Bool[Array, 'B T'] | None = None,
  *,
  pool: bool,
  remat: bool,
  unroll: bool,
) -> tuple[Float[Array, 'B Q D'], Float[Array, 'M B D']]:
  """Runs the blocks `layers_N` of a stack.

  Args:
    blocks: Trainable leaves are those of the held blocks [N, ...], frozen
      leaves those of the whole model [L, ...].
    x_BxTxD: Tokens.
    layers_N: Ids of the held blocks, in the order to run them.
    key: Turns dropout on.
    real_BxT: False marks padding.
    pool: Whether the last block updates only the first token, because nothing
      reads the others.
    remat: Recompute each block in the backward pass.
    unroll: Put blocks one after another into the program, instead of a loop;
      only with a key, since an evaluation gains nothing from it.

  Returns:
    The tokens after the last block (Q is 1 if pooled, else T), and the first
    token after each block before it (M = N - 1).
  """
  graph, local, base = nnx.split(blocks, nnx.Param, ...)

  def block_of(x, layer, local_block, queries):
    # The frozen block is taken by its id inside the scan and inside the
    # checkpoint: elsewhere, every held block would live at once.
    base_block = jax.tree.map(lambda p: _take(p, layer), base)
    block = nnx.merge(graph, local_block, base_block)
    return block(x, queries, Keys(key, layer), real_BxT)

  save = jax.checkpoint_policies.nothing_saveable if remat else _is_kept
  run = jax.checkpoint(
    block_of, static_argnums=3, policy=save, prevent_cse=False
  )

  def body(x, inputs):
    y = run(x, *inputs, x.shape[1])
    return y, y[:, 0]

  head, last = _split_last(local)
  x_BxTxD, exits_MxBxD = jax.lax.scan(
    body,
    x_BxTxD,
    (layers_N[:-1], head),
    unroll=unroll and key is not None,
  )
  queries = 1 if pool else x_BxTxD.shape[1]
  return run(x_BxTxD, layers_N[-1], last, queries), exits_MxBxD
