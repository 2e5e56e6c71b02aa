"""No experiment ends in a traceback: it runs, or is refused in one line.

Fields are taken from the dataclasses and their rules, so that a new one is
tried as soon as it exists.
"""

import contextlib
import re
import shutil
import tempfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest
import tensorflow_datasets as tfds
import tiny_folders
import tiny_fuzz

from fedjax_tune import config, endings, plugins
from fedjax_tune.config import validate
from fedjax_tune.training import build, loop

_FIELDS = dict(tiny_fuzz.fields())
_REFUSED = (ValueError, FileNotFoundError, RuntimeError)
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.parametrize('path', _FIELDS)
def test_each_field_is_refused_by_name_value_and_rule(path):
  kind = _FIELDS[path]
  for value in tiny_fuzz.candidates(path, kind):
    experiment = config.Experiment()
    tiny_fuzz.change(experiment, path, value)
    if tiny_fuzz.is_valid(path, kind, value):
      with contextlib.suppress(ValueError):  # Fields may disagree.
        validate.validate(experiment, plugins.choices())
      continue
    with pytest.raises(ValueError, match='must') as caught:
      validate.validate(experiment, plugins.choices())
    (line,) = str(caught.value).splitlines()
    element = isinstance(value, tuple) and value and 'of type' not in line
    shown = f'{path}[0]={value[0]!r} ' if element else f'{path}={value!r} '
    if 'finite' in line or 'of type' in line:
      shown = f'{path}={value!r} '
    assert line.startswith(shown), line


@pytest.fixture(scope='module', name='folders')
def _folders(tmp_path_factory):
  folder = tmp_path_factory.mktemp('models')
  return {
    'vit': 'random:vit_test',
    'bert': tiny_folders.write_bert(folder),
    'llama': tiny_folders.write_llama(folder),
  }


def _experiment(folders, model, changes):
  """A tiny run with changes; images or texts, by its model."""
  e = config.Experiment(rounds=1, eval_every=1)
  e.model.weights = folders[model]
  e.lora.rank, e.local.batch_size, e.local.steps = 2, 4, 2
  e.lora.targets = ('attn.q',)
  e.clients.budgets, e.clients.min_examples = (), 1
  e.data.image_size, e.data.lengths = 16, (8, 16)
  e.data.test_examples = 8
  e.data.name = 'domainnet' if model == 'vit' else 'ag_news_subset'
  e.clients.count, e.clients.cohort_size = 2, 2
  e.engine.compilation_cache = False
  if changes['method'] == 'heterotune':
    e.tiers.weights = (folders[model],) * 2
    e.tiers.depth = (2, 1)
    e.fedadapter.rank, e.tiers.head_rank = 4, 4
  if not changes['clients.partition'].startswith('domain'):
    e.clients.cohort = 'uniform'
  for path, value in changes.items():
    tiny_fuzz.change(e, path, value)
  return e


def _check_message(error):
  """Each line names a field and what is wrong with it."""
  for line in str(error).splitlines():
    assert re.search(r'\b[a-z_]+(\.[a-z_]+)?(\[\d+\])?\b', line), line
  assert len(str(error)) > 20, error


@settings(max_examples=12, deadline=None, suppress_health_check=_QUIET)
@given(st.sampled_from(['vit', 'bert', 'llama']), tiny_fuzz.changes())
def test_experiments_are_built_or_refused(folders, model, changes):
  experiment = _experiment(folders, model, changes)
  with tfds.testing.mock_data(num_examples=20):
    try:
      build.build(experiment)
    except _REFUSED as error:
      _check_message(error)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=_QUIET)
@given(st.sampled_from(['vit', 'bert', 'llama']), tiny_fuzz.changes())
def test_experiments_run_or_are_refused_before_work(folders, model, changes):
  experiment = _experiment(folders, model, changes)
  workdir = tempfile.mkdtemp()
  shutil.rmtree(workdir)
  try:
    with tfds.testing.mock_data(num_examples=20):
      build.build(experiment)
  except _REFUSED as error:
    _check_message(error)
    return
  try:
    with tfds.testing.mock_data(num_examples=20):
      loop.train(experiment, workdir)
  except endings.Diverged as error:
    _check_message(error)
  finally:
    shutil.rmtree(workdir, ignore_errors=True)
