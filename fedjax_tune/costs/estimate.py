"""What training a subnetwork costs, from its sizes alone.

The exact cost of a client comes from its traced program (`cost.py`).
This is the same in closed form, to choose among many sizes before anything is
traced; tests check that the two agree.
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
    memory: Bytes of the blocks: weights, activations and, for weights that
      train, gradients and two moments. Embedding tables come on top.
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
      text); for a decoder that classifies, 'rotary' instead of 'qk_dim', and
      'group'.
    batch_size: Examples of a step.
    full: Whether all parameters train; else the gradients of weights are not
      computed, and what else trains is left out as small.
  """
  L, D = sizes['layer'], sizes['embed']
  T, S = sizes['token'], sizes['key']
  is_decoder = 'group' in sizes
  group = sizes.get('group', 1)
  wide = sizes['rotary' if is_decoder else 'qk_dim']
  key, value = sizes['heads'] * wide, sizes['heads'] * sizes['v_dim']
  query, mixed = group * key, group * value
  hidden = sizes['ffn'] * (3 if is_decoder else 2)  # A gated MLP has 3 maps.
  per_block = D * (query + key + value + mixed + hidden)
  # Products of one token: with weights, and with all keys in attention.
  weights, mixing = 2 * per_block, 2 * S * (query + mixed)
  # In the last block one token alone has a query, an output and an MLP.
  keys = 2 * D * (key + value)
  last = T * keys + weights - keys + mixing
  forward = (L - 1) * T * (weights + mixing) + last
  embedding = 2 * T * D * sizes['patch']
  # Backward: the gradient of inputs, and that of weights where they train.
  # Patches need no gradient of their inputs; attention's are both activations.
  attention = (L - 1) * T * mixing + mixing
  passes = 3 if full else 2
  flops = passes * (forward - attention) + 3 * attention
  flops += (2 if full else 1) * embedding
  # Biases of the six linear maps, and two norms; a decoder has no biases.
  vectors = query + key + value + sizes['ffn'] + 6 * D
  vectors = 2 * D if is_decoder else vectors
  params = L * (per_block + vectors)
  state = 4 if full else 1
  per_token = 8 * D + query + key + value + mixed + hidden + sizes['ffn']
  activations = batch_size * T * L * per_token
  scores = batch_size * L * group * sizes['heads'] * T * S * 2
  return Estimate(
    params=params,
    flops=batch_size * flops,
    memory=_FLOAT * (state * params + activations + scores),
  )
