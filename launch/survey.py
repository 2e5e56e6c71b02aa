"""What `launch.prepare --source=KIND:PATH` shows of the user's own files."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import pathlib
import shlex

import matplotlib as mpl
import numpy as np
import rich.console
import rich.table

from fedjax_tune import commands, config
from fedjax_tune.data import digest, pictures
from fedjax_tune.data.own import survey
from fedjax_tune.data.own.found import Example
from fedjax_tune.data.own.opened import Own
from fedjax_tune.report import figure, tables

_EXAMPLES = 10
_CLASSES, _DOMAINS, _FAULTS = 40, 8, 200  # That are listed.
_PIXELS = 160
_CHARACTERS = 120
# Clients of a round in experiments/own.py.
_COHORT = 5


def show(
  console: rich.console.Console, cfg: config.Data, folder: pathlib.Path
) -> None:
  """Prints how the files were read, and draws a few examples.

  Args:
    console: Where to print.
    cfg: Names the files.
    folder: Where the drawing is kept.

  Raises:
    ValueError: The files cannot be read, or some of them cannot be used.
  """
  # Names and rows are somebody's words, which must not steer a terminal.
  tell = lambda line: console.print(tables.plain(line), soft_wrap=True)
  with console.status('Reading'):
    found = survey.look(cfg)
  own = found.own
  tell(_summary(own))
  console.print(_counts(own))
  for line in (*_sizes(own), *found.notes):
    tell(line)
  some = found.some(_EXAMPLES)
  if own.texts:
    console.print(_listed(some))
  elif some:
    path = folder / 'examples' / f'{digest.of(cfg.name)[:8]}.png'
    _draw(some, path)
    tell(f'{tables.counted(len(some), "example")}: {path}')
  for place, reason in found.faults[:_FAULTS]:
    tell(f'{place}: {reason}')
  if found.faults:
    more = len(found.faults) - _FAULTS
    raise ValueError(
      f'{cfg.name}: {tables.counted(len(found.faults), "row or file")} cannot be'
      f' used{f" ({more} not listed)" if more > 0 else ""}; a run refuses that;'
      ' --config.data.bad_rows=leave_out goes on without'
    )
  tell('Train on it:')
  tell(_command(cfg, own))


def _command(cfg: config.Data, own: Own) -> str:
  """Returns the command that trains on files, as they are read here."""
  default = config.Data(name=cfg.name)
  set_ = [
    f' --config.data.{field.name}={shlex.quote(str(value))}'
    for field in dataclasses.fields(cfg)
    if (value := getattr(cfg, field.name)) != getattr(default, field.name)
  ]
  if (clients := len(_clients(own))) > 1:
    set_ += [
      ' --config.clients.partition=natural',
      f' --config.clients.count={clients}',
    ]
    if clients < _COHORT:
      set_.append(f' --config.clients.cohort_size={clients}')
  kind = ':texts' if own.texts else ''
  return (
    f'{commands.start_of("train")} --config=experiments/own.py{kind}'
    f' --config.data.name={shlex.quote(cfg.name)}{"".join(set_)}'
    ' --workdir=runs/own'
  )


def _summary(own: Own) -> str:
  parts = [part for splits in own.examples.values() for part in splits.values()]
  return (
    f'{own.name}: {sum(map(len, parts))} {"texts" if own.texts else "pictures"},'
    f' {tables.counted(len(own.classes), "class") if own.classes else "no classes"},'
    f' {tables.counted(len(own.examples), "domain")}'
  )


def _counts(own: Own) -> rich.table.Table:
  """Returns a table of train and test examples by class and domain."""
  domains = list(own.examples)
  counts: dict[tuple[str, str], Counter[object]] = {}
  for domain, splits in own.examples.items():
    # More columns than fit are one.
    column = domain if len(domains) <= _DOMAINS else 'all domains'
    for split, part in splits.items():
      counted = counts.setdefault((column, split), Counter())
      counted.update(e.label for e in part)
  domains = list(dict.fromkeys(domain for domain, _ in counts))
  table = rich.table.Table('class', *map(tables.plain, domains))
  for name in own.classes[:_CLASSES]:
    table.add_row(
      tables.plain(name),
      *(
        f'{counts[domain, "train"][name]} + {counts[domain, "test"][name]}'
        for domain in domains
      ),
    )
  if (more := len(own.classes) - _CLASSES) > 0:
    table.add_row(f'... {more} more')
  totals = (
    f'{counts[domain, "train"].total()} + {counts[domain, "test"].total()}'
    for domain in domains
  )
  table.add_row('all (train + test)', *totals)
  return table


def _clients(own: Own) -> Counter[str]:
  """Returns how many train examples each natural client has, if any."""
  if not own.has_clients:
    return Counter()
  return Counter(
    e.client for part in own.examples.values() for e in part['train']
  )


def _sizes(own: Own) -> tuple[str, ...]:
  """Returns a line about natural clients, if there are any."""
  if not (sizes := _clients(own)):
    return ()
  each = np.array(list(sizes.values()))
  return (
    f'{tables.counted(len(sizes), "natural client")} of {each.min()} to {each.max()} train examples'
    f' (median {np.median(each):g}): --config.clients.partition=natural',
  )


def _listed(some: Sequence[Example]) -> rich.table.Table:
  # What the files do not tell has no column.
  said = [
    name
    for name in ('label', 'domain', 'client')
    if any(getattr(e, name) not in (None, '') for e in some)
  ]
  table = rich.table.Table('row', *said)
  table.add_column('text', overflow='fold')
  for e in some:
    pair = e.content if isinstance(e.content, tuple) else (e.content,)
    text = ' | '.join(' '.join(str(part).split()) for part in pair)
    text = text if len(text) <= _CHARACTERS else f'{text[:_CHARACTERS]}...'
    cells = (e.place, *(str(getattr(e, name)) for name in said), text)
    table.add_row(*map(tables.plain, cells))
  return table


def _draw(some: Sequence[Example], path: pathlib.Path) -> None:
  """Draws pictures as a model sees them, with their labels."""
  path.parent.mkdir(parents=True, exist_ok=True)
  columns = 5
  with mpl.rc_context(figure.STYLE):
    fig = figure.new_figure(2.0 * -(-len(some) // columns))
    axes = fig.subplots(-(-len(some) // columns), columns, squeeze=False)
    for ax in axes.flat:
      ax.set_axis_off()
    for ax, example in zip(axes.flat, some, strict=False):
      data = example.content
      assert not isinstance(data, str | tuple)
      ax.imshow(pictures.to_rgb(pictures.read(data), _PIXELS))
      said = ', '.join(filter(None, (str(example.label), example.domain)))
      ax.set_title(tables.plain(said), fontsize=8)
    fig.savefig(path)
