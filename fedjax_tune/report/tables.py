"""Tables for people: how methods compare.

Each table exists twice, for the terminal (rich) and as Markdown, from the
same cells.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import textwrap

import numpy as np
from rich import box
from rich import console as rich_console
from rich import table as rich_table
from rich import text as rich_text

from fedjax_tune.typing import Record


def comparison_table(
  summaries: Sequence[Record],
) -> rich_console.Group:
  """One row per method: mean and deviation over its seeds, for the terminal.

  Args:
    summaries: The `summary.json` of each run. Runs with the same `label` (or,
      if there is none, the same `method`) are the seeds of one row.

  Returns:
    Accuracies above, costs below; side by side they would not fit into 80
    columns.
  """
  header, cells = _comparison_cells(summaries)
  cut = len(header) - len(_COSTS)
  accuracy, costs = (
    Terminal(
      title, [header[0], *header[part]], [[c[0], *c[part]] for c in cells]
    )
    for title, part in (
      (f'{measured(summaries).capitalize()} (%)', slice(1, cut)),
      ('Costs', slice(cut, None)),
    )
  )
  return rich_console.Group(accuracy, costs)


def comparison_markdown(summaries: Sequence[Record]) -> str:
  """The same as a Markdown table."""
  return markdown(*_comparison_cells(summaries))


def models_markdown(summaries: Sequence[Record]) -> str:
  """The accuracy of every model other than the headline one.

  Args:
    summaries: The `summary.json` of each run, with its `label`.

  Returns:
    A Markdown table with a row for each label and model: the tiers of a
    federation, the sizes of InclusiveFL, the exits of DepthFL. '' where every
    method leaves one model.
  """
  found: dict[tuple[str, str], list[float | int | None]] = {}
  for summary in summaries:
    for model, accuracy in summary.get('other_accuracies', {}).items():
      found.setdefault((summary['label'], model), []).append(accuracy)
  if not found:
    return ''
  return markdown(
    ['method', 'model', f'{measured(summaries)} %', 'seeds'],
    [
      [label, model, _percent(values, spread=True), str(len(values))]
      for (label, model), values in found.items()
    ],
  )


def measured(summaries: Sequence[Record]) -> str:
  """Returns the name of the headline metric: 'accuracy', 'f1', 'exact match'.

  Args:
    summaries: The `summary.json` of each run; if they differ it is 'score'.
  """
  names = {summary.get('metric', 'accuracy') for summary in summaries}
  return spoken(names.pop()) if len(names) == 1 else 'score'


def spoken(metric: str) -> str:
  """Returns the name of a metric as people read it.

  >>> spoken('exact_match')
  'exact match'
  """
  return metric.replace('_', ' ')


def human_bytes(count: float | int) -> str:
  """Formats bytes.

  >>> human_bytes(1536)
  '1.5 KiB'
  """
  return _scaled(count, 1024.0, ('B', 'KiB', 'MiB', 'GiB', 'TiB'))


def human_flops(count: float | int) -> str:
  """Formats a number of floating-point operations.

  >>> human_flops(2.5e9)
  '2.5 GFLOP'
  """
  units = ('FLOP', 'kFLOP', 'MFLOP', 'GFLOP', 'TFLOP', 'PFLOP', 'EFLOP')
  return _scaled(count, 1000.0, units)


def counted(count: int, noun: str) -> str:
  """Formats a number of things.

  >>> counted(1, 'round'), counted(30, 'round'), counted(3, 'class')
  ('1 round', '30 rounds', '3 classes')
  >>> counted(2, 'row or file')
  '2 rows or files'
  """
  if count == 1:
    return f'1 {noun}'
  words = [w + ('es' if w.endswith('s') else 's') for w in noun.split(' or ')]
  return f'{count} {" or ".join(words)}'


def human_count(count: float | int) -> str:
  """Formats a number of parameters.

  >>> human_count(21_600_000)
  '21.6 M'
  """
  return _scaled(count, 1000.0, ('', 'k', 'M', 'G')).strip()


def _scaled(value: float | int, base: float, units: Sequence[str]) -> str:
  power = 0
  # 3 digits round 999.96 up to 1000, hence the margin.
  while abs(value) >= 0.9995 * base and power < len(units) - 1:
    value, power = value / base, power + 1
  return f'{digits(value)} {units[power]}'


def human_amount(value: float | int | Sequence[float]) -> str:
  """Formats what an option lists: a number, or a share of each axis.

  >>> human_amount(6), human_amount(0.25), human_amount((1.0, 0.625))
  ('6', '0.25', '1, 0.625')
  """
  if isinstance(value, Sequence):
    return ', '.join(map(human_amount, value))
  return f'{value:.3g}'


def digits(value: float | int) -> str:
  """Formats three significant digits, without an exponent or trailing zeros.

  >>> digits(1234.5), digits(0.5), digits(2.5e-5)
  ('1234', '0.5', '0.000025')
  """
  if not math.isfinite(value):
    return '-'
  if abs(value) >= 100:
    return f'{value:.0f}'
  return np.format_float_positional(float(f'{value:.3g}'), trim='-')


_COSTS = (
  'seeds', 'up MiB/round', 'down MiB/round', 'train TFLOP', 'client-steps/s',
)  # fmt: skip
Cells = tuple[list[str], list[list[str]]]


def _comparison_cells(summaries: Sequence[Record]) -> Cells:
  groups: dict[str, list[Record]] = {}
  for summary in summaries:
    groups.setdefault(summary.get('label', summary['method']), []).append(
      summary
    )
  domains = list(dict.fromkeys(d for s in summaries for d in _domains(s)))
  header = ['method', f'{measured(summaries)} %', *domains, *_COSTS]
  return header, [
    [label, *_comparison_row(runs, domains)] for label, runs in groups.items()
  ]


def _comparison_row(
  runs: Sequence[Record], domains: Sequence[str]
) -> list[str]:
  def mean(key: str, per: str | None = None, unit: float | int = 1) -> str:
    values = [_number(r[key]) / (r[per] if per else 1) / unit for r in runs]
    return digits(float(np.mean(values)))

  by_domain = [[_domains(r).get(d) for r in runs] for d in domains]
  return [
    _percent([run['accuracy'] for run in runs], spread=True),
    *(_percent(values, spread=False) for values in by_domain),
    str(len(runs)),
    mean('uplink_bytes', 'rounds', 2**20),
    mean('downlink_bytes', 'rounds', 2**20),
    mean('train_flops', unit=1e12),
    mean('client_steps_per_s'),
  ]


def _domains(summary: Record) -> Mapping[str, float | int | None]:
  return summary['accuracy_by_domain']


def _number(value: float | int | None) -> float:
  """Reads null as NaN, which JSON does not have."""
  return math.nan if value is None else float(value)


def _percent(fractions: Sequence[float | int | None], *, spread: bool) -> str:
  """Formats the mean of fractions as percent; '-' if one is not finite.

  >>> _percent([0.5, 0.6], spread=True)
  '55.0 ± 7.1'
  """
  values = 100 * np.array([_number(f) for f in fractions])
  if not np.all(np.isfinite(values)):
    return '-'
  text = f'{values.mean():.1f}'
  # Sample deviation: the seeds are a sample of all seeds.
  if spread and len(values) > 1:
    text += f' ± {values.std(ddof=1):.1f}'
  return text


@dataclasses.dataclass(frozen=True)
class Terminal:
  """A table for the terminal; all columns but the first are numbers.

  If the terminal is too narrow for the numbers, each gets a line of its own,
  because a number without its last digits would be a different one.
  """

  title: str
  header: Sequence[str]
  cells: Sequence[Sequence[str]]

  def __rich_console__(
    self, console: rich_console.Console, options: rich_console.ConsoleOptions
  ) -> rich_console.RenderResult:
    del console
    widths = self._widths()
    if sum(widths) + len(widths) - 1 <= options.max_width:
      yield self._table(widths)
    else:
      yield rich_text.Text(self.title, style='bold')
      yield from self._lines()
      yield ''

  def _widths(self) -> list[int]:
    """Returns the least width of each column; numbers stay whole."""
    name, *names = self.header
    columns = zip(*self.cells, strict=True)
    first = min(14, max(map(len, [*name.split(), *next(columns)])))
    # Headers break at words to leave the width to numbers.
    return [first] + [
      max(map(len, [*_words(name).split(), *column]))
      for name, column in zip(names, columns, strict=True)
    ]

  def _table(self, widths: Sequence[int]) -> rich_table.Table:
    table = rich_table.Table(
      title=self.title,
      title_style='bold',
      title_justify='left',
      box=box.SIMPLE_HEAD,
      padding=(0, 1, 0, 0),
      show_edge=False,
      pad_edge=False,
    )
    table.add_column(
      self.header[0], style='bold', overflow='fold', min_width=widths[0]
    )
    for name, width in zip(self.header[1:], widths[1:], strict=True):
      # As text, in which rich sees no markup.
      head = rich_text.Text(textwrap.fill(_words(name), width))
      table.add_column(head, justify='right', no_wrap=True)
    for row in self.cells:
      table.add_row(*(rich_text.Text(plain(cell)) for cell in row))
    table.add_row()
    return table

  def _lines(self) -> Iterator[rich_text.Text]:
    for name, *numbers in self.cells:
      yield rich_text.Text(plain(name), style='bold')
      for head, number in zip(self.header[1:], numbers, strict=True):
        yield rich_text.Text(f'  {_words(head)}: {plain(number)}')


def _words(name: str) -> str:
  return plain(name.replace('_', ' '))


def plain(name: str) -> str:
  r"""Returns a name on one line, without characters that control a terminal.

  >>> plain('two\nlines') == 'two\ufffdlines'
  True
  """
  return ''.join(c if c.isprintable() else '\ufffd' for c in name)


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
  """Formats a Markdown table; all columns but the first are numbers."""
  header, *cells = (
    [plain(cell).replace('|', r'\|') for cell in row]
    for row in (header, *cells)
  )
  widths = [
    max(map(len, column)) for column in zip(header, *cells, strict=True)
  ]
  rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
  lines = []
  for row in (header, rule, *cells):
    first, *rest = zip(row, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]
    lines.append('| ' + ' | '.join(padded) + ' |')
  return '\n'.join(lines) + '\n'
