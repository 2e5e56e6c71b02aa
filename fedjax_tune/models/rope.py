"""Rotary positions (arXiv 2104.09864), plain and scaled for longer texts.

Scaled frequencies are those of transformers 5 (modeling_rope_utils.py), in
float64. LongRoPE is not supported: its frequencies depend on how far a batch is
padded, so that padding would change a model's outputs.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math

from jaxtyping import Float
import numpy as np

# Frequencies [P], and what multiplies sines and cosines.
Frequencies = Float[np.ndarray, ' P']
Scaled = tuple[Frequencies, float]
Options = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Rope:
  """The rotary positions of a model.

  Attributes:
    base: Base of the wavelengths.
    kind: One of `KINDS`.
    options: Further options of the kind, named as in `rope_parameters` of
      config.json.
  """

  base: float = 10000.0
  kind: str = 'default'
  options: tuple[tuple[str, float], ...] = ()

  def frequencies(self, width: int) -> Scaled:
    """Returns radians per token for each channel pair, and a factor.

    Args:
      width: Width of a head, even.
    """
    half = width // 2
    frequency_P = self.base ** (-np.arange(half) / half)
    return KINDS[self.kind](frequency_P, self.base, dict(self.options))


PLAIN = Rope()


def _default(frequency_P: Frequencies, base: float, options: Options) -> Scaled:
  """Plain frequencies; within the model's positions 'dynamic' has these too."""
  del base, options
  return frequency_P, 1.0


def _linear(frequency_P: Frequencies, base: float, options: Options) -> Scaled:
  """Positions divided by a factor."""
  del base
  return frequency_P / options['factor'], 1.0


def _llama3(frequency_P: Frequencies, base: float, options: Options) -> Scaled:
  """Long wavelengths divided, short ones kept, a ramp between them."""
  del base
  low, high = options['low_freq_factor'], options['high_freq_factor']
  turns_P = options['original_max_position_embeddings'] * frequency_P
  kept_P = np.clip((turns_P / (2 * np.pi) - low) / (high - low), 0, 1)
  return frequency_P * (kept_P + (1 - kept_P) / options['factor']), 1.0


def _yarn(frequency_P: Frequencies, base: float, options: Options) -> Scaled:
  """YaRN (arXiv 2309.00071): a ramp over channels, and sharper attention."""
  half, factor = len(frequency_P), options['factor']
  length = options['original_max_position_embeddings']

  def channel(turns: float) -> float:
    """Where a wave turns this often over the length."""
    turned = math.log(length / (turns * 2 * math.pi))
    return half * turned / math.log(base)

  low = channel(options.get('beta_fast', 32))
  high = channel(options.get('beta_slow', 1))
  if options.get('truncate', True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * half - 1)
  high += 0.001 if high == low else 0
  divided_P = np.clip((np.arange(half) - low) / (high - low), 0, 1)
  scaled_P = frequency_P * (1 - divided_P + divided_P / factor)
  return scaled_P, options.get('attention_factor') or _sharpness(options)


def _sharpness(options: Options) -> float:
  """Returns YaRN's factor if none is given."""

  def grow(scale: float) -> float:
    return 0.1 * scale * math.log(options['factor']) + 1

  both = options.get('mscale', 0), options.get('mscale_all_dim', 0)
  return grow(both[0]) / grow(both[1]) if all(both) else grow(1)


KINDS: dict[str, Callable[..., Scaled]] = {
  'default': _default,
  'linear': _linear,
  'dynamic': _default,
  'llama3': _llama3,
  'yarn': _yarn,
}
