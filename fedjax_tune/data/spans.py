"""Encodes questions about contexts as windows of tokens with the answer.

A context that is too long is cut into windows that overlap, as in BERT's
run_squad.py: with 384 tokens they share 128, and a question keeps at most 64
tokens. Other lengths keep these proportions.
"""

from collections.abc import Sequence
import functools

import numpy as np
import tokenizers

from fedjax_tune.data import tokens
from fedjax_tune.data.metrics import Questions

_LEAST = 24  # Tokens of a window, so that it holds some context.
_QUESTION = 64

# First and last token.
Place = tuple[int, int]
# The first character in the context, and the text.
Answer = tuple[int, str]


def encode(
  tokenizer: tokenizers.Tokenizer,
  questions: Sequence[str],
  contexts: Sequence[str],
  answers: Sequence[Sequence[Answer]],
  max_length: int,
  pad: int,
) -> tuple[tokens.Encoded, np.ndarray, Questions]:
  """Encodes questions with their contexts into W windows.

  Args:
    tokenizer: From `tokens.load`.
    questions: The first parts of the pairs.
    contexts: The second parts.
    answers: The answers to each question; the first is learned, all count in
      evaluation.
    max_length: T, tokens of a window.
    pad: The model's padding token.

  Returns:
    The windows; their labels int32[W, 4], see `tasks.Examples`; and the
    questions, which turn predictions into answers.

  Raises:
    ValueError: `max_length` is too small, or `pad` is a token of a text.
  """
  if max_length < _LEAST:
    raise ValueError(
      f'max_length={max_length}: must be at least {_LEAST} tokens for spans'
    )
  stride = max_length // 3
  questions = _cut(tokenizer, questions, min(_QUESTION, stride))
  tokenizer.enable_truncation(max_length, stride=stride, strategy='only_second')
  pairs = list(zip(questions, contexts, strict=True))
  rows, owners, labels, offsets = [], [], [], []
  for number, encoding in enumerate(
    tokens.batched(tokenizer.encode_batch, pairs)
  ):
    for window in (encoding, *encoding.overflowing):
      context, place = _find_context(window)
      rows.append(tokens.to_array(window))
      owners.append(number)
      offsets.append(place)
      labels.append((*_find_answer(place, context, answers[number]), *context))
  offsets_WxTx2 = np.zeros((len(rows), max_length, 2), np.int32)
  for row, place in zip(offsets_WxTx2, offsets, strict=True):
    row[: len(place)] = place
  references = [tuple(text for _, text in a) or ('',) for a in answers]
  return (
    tokens.pack(rows, max_length, pad),
    np.array(labels, np.int32).reshape(-1, 4),
    Questions(
      question=np.array(owners, np.int32),
      offsets=offsets_WxTx2,
      contexts=list(contexts),
      references=references,
      unanswerable=not all(answers),
    ),
  )


def _cut(
  tokenizer: tokenizers.Tokenizer, texts: Sequence[str], limit: int
) -> list[str]:
  """Cuts each text after its first `limit` tokens."""
  tokenizer.no_truncation()
  encoder = functools.partial(tokenizer.encode_batch, add_special_tokens=False)
  return [
    text if len(e) <= limit else text[: e.offsets[limit - 1][1]]
    for text, e in zip(texts, tokens.batched(encoder, texts), strict=True)
  ]


def _find_context(window: tokenizers.Encoding) -> tuple[Place, np.ndarray]:
  """Returns the context's first and last token, and characters int[n, 2].

  Tokens outside the context have characters (0, 0).
  """
  part = np.array([-1 if p is None else p for p in window.sequence_ids])
  place = np.where(part[:, None] == 1, window.offsets, 0)
  found = np.flatnonzero(part == 1)
  if not found.size:  # An empty context; only the separator is after it.
    return (len(part) - 1, len(part) - 2), place
  return (int(found[0]), int(found[-1])), place


def _find_answer(
  place: np.ndarray, context: Place, answers: Sequence[Answer]
) -> Place:
  """Returns the first and last token of the first answer.

  They are (0, 0), BERT's [CLS], if there is no answer or the window does not
  hold all of it.
  """
  if not answers:
    return 0, 0
  begin, text = answers[0]
  stop = begin + len(text)
  first, last = context
  starts, stops = place[first : last + 1].T
  if not len(text) or not len(starts):
    return 0, 0
  if begin < starts[0] or stop > stops[-1]:
    return 0, 0
  start = int(np.searchsorted(stops, begin, 'right'))
  end = int(np.searchsorted(starts, stop, 'left')) - 1
  return first + start, first + max(start, end)
