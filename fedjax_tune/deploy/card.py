"""The model card of a folder: its README.md, as Hugging Face's hub shows it."""

from collections.abc import Iterator, Sequence
import functools
import inspect
import json
import pathlib

import fedjax_tune
from fedjax_tune.data import arrays
from fedjax_tune.data.own import sets
from fedjax_tune.deploy import formats, models
from fedjax_tune.methods import METHODS
from fedjax_tune.models import foundation, packaged, pretrained, sizes
from fedjax_tune.report import tables

# What loads each format.
LIBRARIES = {'hf': 'transformers', 'peft': 'peft', 'flax': 'fedjax_tune'}
_CLASSES = {
  'classification': 'AutoModelForSequenceClassification',
  'regression': 'AutoModelForSequenceClassification',
  'span': 'AutoModelForQuestionAnswering',
  'next_token': 'AutoModelForCausalLM',
}


def render(
  ended: models.Ended,
  model: models.Model,
  form: str,
  folder: pathlib.Path,
  notes: Sequence[str],
) -> str:
  """Returns the card of one model.

  Args:
    ended: The run.
    model: One of the run's models.
    form: The folder's format, a key of `formats.FORMATS`.
    folder: The folder, written.
    notes: What a user should know of the folder.
  """
  source, experiment = ended.source(model), ended.results.experiment
  title = f'{experiment.method} on {experiment.data.name}'
  title += f': {model.name}' if model.name else ''
  lines = [
    '---',
    f'library_name: {LIBRARIES[form]}',
    *_base_model(source),
    f'tags: [federated-learning, fedjax_tune, {experiment.method}]',
    '---',
    '',
    f'# {title}',
    '',
    *([model.about, ''] if model.about else []),
    *(f'{note}\n' for note in notes),
    '```python',
    *usage(model, form, ended.learned.task.kind, folder),
    '```',
    '',
    '| | |',
    '|---|---|',
    *(
      f'| {name} | {tables.plain(text)} |'
      for name, text in _facts(ended, model)
    ),
    '',
    f'Written by fedjax_tune {fedjax_tune.__version__}.',
  ]
  return '\n'.join(lines) + '\n'


def _base_model(source: pretrained.Pretrained) -> Iterator[str]:
  """Yields the hub's name of a base model, if it has one."""
  if not source.source.startswith('random:'):
    yield f'base_model: {json.dumps(_base(source))}'


def _base(source: pretrained.Pretrained) -> str:
  """Names a base by its name on the hub, its folder, or its random preset."""
  if source.packaged:
    return packaged.PACKAGED[source.packaged].hub
  path = pathlib.Path(source.source)
  return path.name if path.exists() else source.source


def usage(
  model: models.Model, form: str, task: str, folder: pathlib.Path
) -> Iterator[str]:
  """Yields the code that loads the folder."""
  if form == 'flax':
    yield 'import fedjax_tune as ft'
    yield ''
    yield "model = ft.load_model('FOLDER')  # model(inputs) gives the outputs"
    return
  auto = _CLASSES[task]
  if isinstance(model.config, sizes.ViTConfig):
    auto = 'AutoModelForImageClassification'
    if model.config.family == 'deit':  # Its folder may be of two heads.
      auto = 'DeiTForImageClassification'
  yield f'from transformers import {auto}'
  if form == 'hf':
    yield ''
    yield f"model = {auto}.from_pretrained('FOLDER')"
    return
  place, labels = f'FOLDER/{formats.BASE}', ''
  if not (folder / formats.BASE).exists():
    place = 'THE BASE MODEL'
    if n := model.config.num_classes:  # It may have a head of its own.
      labels = f', num_labels={n}, ignore_mismatched_sizes=True'
      if isinstance(model.config, sizes.DecoderConfig):
        labels += f', pad_token_id={model.config.pad}'  # It may name none.
  yield 'from peft import PeftModel'
  yield ''
  yield f"base = {auto}.from_pretrained('{place}'{labels})"
  yield "model = PeftModel.from_pretrained(base, 'FOLDER')"


def _facts(
  ended: models.Ended, model: models.Model
) -> Iterator[tuple[str, str]]:
  """Yields the facts of a card, each with its name."""
  experiment, known = ended.results.experiment, ended.learned
  source, summary = ended.source(model), ended.results.summary
  domains = known.domain_names if len(known.domain_names) > 1 else ()
  kept = f', packaged as {source.packaged}' if source.packaged else ''
  yield 'base', f'{_base(source)}, a {model.config.family}{kept}'
  yield 'method', _about(experiment.method)
  tuned = foundation.num_params(model.theta)
  whole = foundation.num_params(model.params)
  yield (
    'trained',
    f'model.tune={experiment.model.tune!r}: {tables.human_count(tuned)} of'
    f' {tables.human_count(whole)} parameters, in'
    f' {tables.counted(summary["rounds"], "round")} with'
    f' {tables.counted(known.clients, "client")}',
  )
  yield (
    'data',
    f'{experiment.data.name}: {known.train_examples} examples'
    + (f' of {", ".join(domains)}' if domains else ''),
  )
  yield from _scores(ended, model)
  yield 'licence of the base', _base_licence(source)
  yield 'licence of the data', _data_licence(experiment.data.name)


def _about(method: str) -> str:
  """Describes a method by the first line of its module, if that has one."""
  build = METHODS[method].build
  while isinstance(build, functools.partial):
    build = build.func
  text = (getattr(inspect.getmodule(build), '__doc__', '') or '').strip()
  if not text:
    return f'`{method}`, a method of your own'
  return f'`{method}`. {text.splitlines()[0]}'


def _scores(
  ended: models.Ended, model: models.Model
) -> Iterator[tuple[str, str]]:
  """Yields the scores of the run; the folder itself was not evaluated again."""
  summary = ended.results.summary
  metric = summary.get('metric', 'accuracy')
  on = f'on {ended.learned.test_examples} test examples'
  own = (summary.get('other_accuracies') or {}).get(model.name)
  which = 'best_accuracy' if ended.results.experiment.keep_best else 'accuracy'
  if isinstance(own, int | float):
    yield f'{metric} of this model', f'{own:.1%} {on}'
  if isinstance(whole := summary.get(which), int | float):
    yield f'{metric} of the run', f'{whole:.1%} {on}, as it reported it'
  domains = summary.get('accuracy_by_domain') or {}
  if len(domains) > 1:
    parts = [f'{name} {value:.1%}' for name, value in domains.items()]
    yield f'{metric} of the run by domain, at its end', ', '.join(parts)


def _base_licence(source: pretrained.Pretrained) -> str:
  if source.packaged:
    return packaged.PACKAGED[source.packaged].licence
  if source.source.startswith('random:'):
    return 'none is needed: its weights were drawn'
  return f'that of {_base(source)}; its own card says which, and binds you'


def _data_licence(name: str) -> str:
  if name == arrays.NAME:
    return 'your own data; whether a model of them may leave is yours to say'
  if sets.is_own(name):
    return 'yours: read where it lies'
  return f'that of {name}, which dataset_info.json of its prepared copy names'
