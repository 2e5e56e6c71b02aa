"""Writes the models of a finished run for other programs: `launch.export`."""

from collections.abc import Sequence
import os
import pathlib
from typing import NamedTuple

from fedjax_tune.deploy import card, folders, formats, models
from fedjax_tune.files import whole
from fedjax_tune.report import writer


class Written(NamedTuple):
  """A folder that was written.

  Attributes:
    name: The model's name; '' if the run has only one.
    folder: Where the model is.
    notes: What a user should know about it.
  """

  name: str
  folder: pathlib.Path
  notes: tuple[str, ...]


def check(
  ended: models.Ended, form: str, names: Sequence[str]
) -> dict[str, models.Model]:
  """Returns the models to write; refuses those that a format cannot hold.

  Args:
    ended: The run.
    form: A key of `formats.FORMATS`.
    names: Names of its models; () takes all.

  Raises:
    ValueError: A name is unknown, or a model cannot be written in this format.
  """
  found = dict(ended.models)
  for name in names:
    if name not in found:
      listed = ', '.join(found) if any(found) else 'none: the run has one model'
      raise ValueError(f'models={name!r} must be of {listed}.')
  chosen = {name: found[name] for name in names or found}
  task = ended.learned.task
  for model in chosen.values():
    if why := formats.FORMATS[form].why_not(model, task):
      tune = ended.results.experiment.model.tune
      others = [
        n for n, f in formats.FORMATS.items() if not f.why_not(model, task)
      ]
      raise ValueError(
        f'format={form!r} must be {" or ".join(map(repr, others))} for'
        f' model.tune={tune!r} here: {why}.'
      )
  return chosen


def write(
  ended: models.Ended,
  form: str,
  out: str | os.PathLike[str],
  names: Sequence[str] = (),
) -> list[Written]:
  """Writes each model of a run as a folder, with a card.

  A run with one model is written to `out` itself; of a run with several, each
  model gets a folder in `out`. If anything fails, `out` is unchanged.

  Args:
    ended: The run.
    form: A key of `formats.FORMATS`.
    out: A new folder, or one of an earlier export.
    names: Names of the models to write; () takes all.

  Raises:
    FileExistsError, NotADirectoryError: See `folders.check`.
    ValueError: See `check`.
    Diverged: A parameter of a model is not finite.
  """
  chosen, out = check(ended, form, names), pathlib.Path(out)
  folders.check(out, form)
  for model in chosen.values():
    _ = model.params  # Is refused where it is not finite, before anything is.
  found = []
  with whole.folder(out) as part:
    for name, model in chosen.items():
      notes = _write_one(ended, model, form, part / name, out / name)
      found.append(Written(name, out / name, notes))
    if any(chosen):
      record = {'format': form, 'models': list(chosen)}
      writer.write_json(part / folders.EXPORTED, record)
  return found


def _write_one(
  ended: models.Ended,
  model: models.Model,
  form: str,
  folder: pathlib.Path,
  place: pathlib.Path,
) -> tuple[str, ...]:
  """Writes a model's folder, which will finally be at `place`."""
  source = ended.source(model)
  context = formats.Context(
    ended.learned,
    source.tokenizer,
    max(ended.results.experiment.data.lengths),
    source,
    place,
  )
  folder.mkdir(exist_ok=True)
  notes = tuple(formats.FORMATS[form].write(model, context, folder))
  record = {
    'format': form,
    'model': model.name,
    'method': ended.results.experiment.method,
    'labels': ended.learned.labels,
  }
  writer.write_json(folder / folders.EXPORTED, record)
  text = card.render(ended, model, form, folder, notes)
  writer.write_text(folder / 'README.md', text)
  return notes
