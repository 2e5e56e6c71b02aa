"""The table of what leaves: family by trainable by format.

`launch/test -m slow tests/leaving_table_test.py` writes experiments/leaving.md.
"""

import pathlib

import pytest
import tiny_leaving

from fedjax_tune.deploy import formats
from fedjax_tune.report import tables

_PAGE = pathlib.Path(__file__).parents[1] / 'experiments' / 'leaving.md'
# Kinds of tasks other than classes, where they make a difference.
_OTHERS = (
  ('bert', 'lora', 'span'),
  ('roberta', 'prompt', 'span'),
  ('roberta', 'prefix', 'span'),
  ('distilbert', 'prompt', 'span'),
  ('roberta', 'lora', 'regression'),
  ('llama', 'lora', 'next_token'),
  ('llama', 'prompt', 'next_token'),
  ('llama', 'prefix', 'next_token'),
)
_TOP = """# What leaves, and how exactly

Tiny models of noise on a base of noise, written by `launch.export` in each format,
and loaded by `transformers`, by peft on `transformers`, and by `fedjax_tune.load_model`.
Numbers are the largest difference of logits from what the run computes; the logits are
of the order of 1. A dash is a refusal, whose reason stands below. With prompts before
a decoder's words, peft's classifiers find no padding: there, texts without any.
Written by `launch/test -m slow tests/leaving_table_test.py`.

"""


def _cells(root, family, tune, kind):
  """Returns a row's numbers or dashes, and why something stays."""
  base = tiny_leaving.base(root, family)
  try:
    case = tiny_leaving.make(base, tune, kind)
  except ValueError as error:
    if (family, tune) != ('llama', 'bitfit'):
      raise
    return None, {str(error)}
  cells, reasons = [], set()
  for form in formats.FORMATS:
    place = root / f'{family}-{tune}-{kind}-{form}'
    try:
      found = tiny_leaving.difference(case, form, place, kind)
    except ValueError as error:
      cells.append('-')
      reasons.add(f'{tune}, {form}: {error}.')
      continue
    assert found < 1e-4, (family, tune, kind, form)
    cells.append(f'{found:.0e}' if found else '0')
  return cells, reasons


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`')
def test_the_table(tmp_path):
  rows = [
    (family, tune, '')
    for family in tiny_leaving.CONFIGS
    for tune in tiny_leaving.TUNES
  ]
  lines, reasons = [], {}
  for family, tune, kind in (*rows, *_OTHERS):
    cells, why = _cells(tmp_path, family, tune, kind)
    for reason in sorted(why):
      reasons.setdefault(reason, None)
    if cells:
      lines.append([f'{family}, {tune}{f", {kind}" if kind else ""}', *cells])
  header = ['family, model.tune, task if not classes', *formats.FORMATS]
  text = _TOP + tables.markdown(header, lines) + '\n'
  text += 'What stays, and why:\n\n'
  text += ''.join(f'- {reason}\n' for reason in reasons)
  _PAGE.write_text(text)
  assert len(lines) == 48 + len(_OTHERS)
