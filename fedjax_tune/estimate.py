"""What training a subnetwork costs, from its sizes alone.

The exact cost of a client comes from its traced program (`engine/cost.py`).
This is the same in closed form, to choose among many sizes before anything is
traced; the tests hold the two together.
"""

from collections.abc import Mapping
import dataclasses

_FLOAT = 4  # Bytes.


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Cost of one client.

  Attributes:
    params: Parameters of the blocks, LayerScale apart.
    flops: Floating-point operations of one local step.
    memory: Bytes of the blocks: weights, where they train also gradients and
      two moments, and activations. Embedding tables come on top.
  """

  params: int
  flops: float
  memory: float


def client(
  sizes: Mapping[str, int], *, batch_size: int, full: bool
) -> Estimate:
  """Estimates the cost of a client.

  Args:
    sizes: What it holds of each axis: layer, embed, heads, qk_dim, v_dim, ffn,
      token (of one example), key (what each token attends to: more than
      tokens where prefixes train), and patch, the inputs of a patch (0 for
      text).
    batch_size: Examples of a step.
    full: Whether all parameters train; else the gradients of weights are not
      computed, and what else trains is left out as small.
  """
  L, D = sizes['layer'], sizes['embed']
  T, S = sizes['token'], sizes['key']
  query, value = (sizes['heads'] * sizes[a] for a in ('qk_dim', 'v_dim'))
  per_block = D * (2 * query + 2 * value + 2 * sizes['ffn'])
  # Products of one token: with weights, and with all keys in attention.
  weights, mixing = 2 * per_block, 2 * S * (query + value)
  # In the last block the first token alone has a query, an output and an MLP.
  keys = 2 * D * (query + value)
  last = T * keys + weights - keys + mixing
  forward = (L - 1) * T * (weights + mixing) + last
  embedding = 2 * T * D * sizes['patch']
  # Backward: the gradient of inputs, and that of weights where they train.
  # Patches need no gradient of their inputs; attention's are both activations.
  attention = (L - 1) * T * mixing + mixing
  passes = 3 if full else 2
  flops = passes * (forward - attention) + 3 * attention
  flops += (2 if full else 1) * embedding
  # Biases of the six linear maps, and two norms.
  vectors = 2 * query + value + sizes['ffn'] + 6 * D
  params = L * (per_block + vectors)
  state = 4 if full else 1
  activations = (
    batch_size * T * L * (8 * D + 2 * (query + value) + 3 * sizes['ffn'])
  )
  mixed = batch_size * L * sizes['heads'] * T * S * 2
  return Estimate(
    params=params,
    flops=batch_size * flops,
    memory=_FLOAT * (state * params + activations + mixed),
  )
