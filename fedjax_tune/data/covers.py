"""Which text each token covers, so that tokens of two tokenizers match.

Tokenizers cut texts at different places. A segment is a stretch of text, mostly
a word, at whose end all tokenizers end a token, with no such place inside.
Characters are counted without white space, which some tokenizers add to the
next word and others to no word.
"""

from collections.abc import Sequence

import numpy as np
import tokenizers

from fedjax_tune.data import tokens


def encode(
  tokenizer: tokenizers.Tokenizer,
  first: Sequence[str],
  second: Sequence[str] | None,
  max_length: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Encodes texts like `tokens.encode`, and says what each token covers.

  Args:
    tokenizer: From `tokens.load`.
    first: N texts.
    second: The pairs' second parts, or None.
    max_length: T; the longer part of a pair is cut first.

  Returns:
    Token numbers int32 [N, T], and for each token the first character that it
    covers and the one after the last, int32 [N, T, 2]. Special tokens and
    padding cover none; the number of padding is 0.
  """
  tokenizer.enable_truncation(max_length, strategy='longest_first')
  texts = first if second is None else list(zip(first, second, strict=True))
  ids = np.zeros((len(first), max_length), np.int32)
  covered = np.zeros((len(first), max_length, 2), np.int32)
  for n, encoding in enumerate(tokens.batched(tokenizer.encode_batch, texts)):
    parts = [first[n]] if second is None else [first[n], second[n]]
    # Of each part, how many characters stand before each.
    before = [
      np.cumsum([0, *(not c.isspace() for c in part)]) for part in parts
    ]
    begins = np.cumsum([0, *(counts[-1] for counts in before)])
    ids[n, : len(encoding.ids)] = encoding.ids
    for t, part in enumerate(encoding.sequence_ids):
      if part is not None:
        at = list(encoding.offsets[t])
        covered[n, t] = begins[part] + before[part][at]
  return ids, covered


def match(covered: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
  """Returns how rows are made of tokens, so that rows of all tokenizers match.

  A row is the mean over the tokens that end in one segment. From each text some
  segments are taken, evenly spaced, and some of them twice if there are too
  few.

  Args:
    covered: What tokens cover, for each tokenizer, int32 [N, T, 2]; T may
      differ.
    most: Number of segments m to take from a text.

  Returns:
    For each tokenizer weights float32 [N, m, T], which add up to 1.
  """
  found = [
    np.zeros((len(spans), most, spans.shape[1]), np.float32)
    for spans in covered
  ]
  for n, each in enumerate(zip(*covered, strict=True)):
    ends = [
      np.where(spans[:, 1] > spans[:, 0], spans[:, 1], 0) for spans in each
    ]
    common = sorted(set.intersection(*({*own} for own in ends)) - {0})
    # All of a text where they agree on nothing.
    common = common or [max(own.max() for own in ends)]
    starts = [0, *common[:-1]]
    for row, k in enumerate(np.arange(most) * len(common) // most):
      for weights, own in zip(found, ends, strict=True):
        inside = (own > starts[k]) & (own <= common[k])
        inside[0] |= not inside.any()  # A text of special tokens.
        weights[n, row] = inside / inside.sum()
  return found
