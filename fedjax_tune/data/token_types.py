"""Whether a tokenizer marks the two texts of a pair by token types.

`transformers` gives a model types if the tokenizer's `model_input_names` has
them; otherwise the model treats all tokens as the first text's.
"""

import json
from typing import Any

from tokenizers import processors
from tokenizers.processors import PostProcessor

from fedjax_tune.data.tokenizer_files import Files
from fedjax_tune.typing import Json

_FIELD = 'model_input_names'
_TYPES = 'token_type_ids'


def given(files: Files, default: bool) -> bool:
  """Whether the model gets types.

  Args:
    files: The tokenizer's files.
    default: The answer of its class, if the files say nothing.

  Raises:
    ValueError: The field is not a list of names.
  """
  names = files.settings.get(_FIELD)
  if names is None:
    return default
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise ValueError(
      f'{files.config}: {_FIELD}={names!r} must be a list of names.'
    )
  return _TYPES in names


def drop(processor: PostProcessor) -> PostProcessor:
  """Returns a processor that adds the same special tokens, all of type 0."""
  state = _zero(json.loads(processor.__getstate__()))
  is_template = state['type'] == 'TemplateProcessing'
  made = processors.TemplateProcessing() if is_template else processor
  made.__setstate__(json.dumps(state).encode())
  return made


def _zero(state: Any) -> Any:
  """Zeroes the types in a processor's description."""
  if isinstance(state, list):
    return [_zero(part) for part in state]
  if not isinstance(state, dict):
    return state
  if state.get('type') == 'BertProcessing':
    return _template(state['cls'], state['sep'])
  return {
    key: 0 if key == 'type_id' else _zero(value) for key, value in state.items()
  }


def _template(begin: tuple[str, int], end: tuple[str, int]) -> Json:
  """Describes BertProcessing as a template, whose types are not fixed."""
  cls, sep = (
    {'SpecialToken': {'id': t, 'type_id': 0}} for t, _ in (begin, end)
  )
  first, second = ({'Sequence': {'id': part, 'type_id': 0}} for part in 'AB')
  return {
    'type': 'TemplateProcessing',
    'single': [cls, first, sep],
    'pair': [cls, first, sep, second, sep],
    'special_tokens': {
      token: {'id': token, 'ids': [number], 'tokens': [token]}
      for token, number in (begin, end)
    },
  }
