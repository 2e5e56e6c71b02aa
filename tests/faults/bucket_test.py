"""A run in a bucket: killed, resumed and exported as one on a disk."""

import contextlib
import csv
import shutil
import threading

import lab
import pytest
import tiny_bucket
import tiny_folders
import tiny_runs

import fedjax_tune as ft
from fedjax_tune import endings
from fedjax_tune.deploy import exported, models
from fedjax_tune.files import mirror
from fedjax_tune.training import build, identity

bucket = tiny_bucket.bucket


@pytest.fixture
def whole(tmp_path):
  lab.go(tmp_path / 'whole')
  return lab.result(tmp_path / 'whole')


def test_a_run_killed_in_a_bucket_goes_on(bucket, tmp_path, whole):
  moments = {
    'in round 4': lambda put: put.endswith('checkpoints/4/about.json'),
    'before its config': lambda put: put.endswith('config.json'),
    'within a checkpoint': lambda put: 'checkpoints/4/state/' in put,
    'before the summary': lambda put: put.endswith('summary.json'),
  }

  one = threading.Lock()  # Objects are sent by several threads.

  def copy(put):
    for moment, is_now in moments.items():
      with one:
        if is_now(put) and not (tmp_path / moment).exists():
          shutil.copytree(bucket, tmp_path / moment)

  tiny_bucket.Bucket.before = copy
  shown = lab.go('gs://b/run')
  tiny_bucket.Bucket.before = lambda _: None
  assert lab.result(bucket / 'b/run') == whole
  with pytest.raises(ValueError, match=r'workdir=gs://b/run already has a run'):
    lab.go('gs://b/run')
  for moment in moments:
    tiny_bucket.Bucket.root = tmp_path / moment
    shown = lab.go('gs://b/run', resume=True)
    after = {'in round 4': 'after round 2', 'within a checkpoint': 'round 2'}
    assert f'{after.get(moment, "")}' in shown
    assert 'gs://b/run' in shown
    assert lab.result(tmp_path / moment / 'b/run') == whole


@pytest.mark.usefixtures('bucket')
def test_a_run_that_is_taken_over_ends():
  def take():
    stack.enter_context(mirror.opened('workdir', 'gs://b/run')).send()

  with (
    contextlib.ExitStack() as stack,
    pytest.raises(endings.StorageError, match='was taken over by process'),
  ):
    lab.go('gs://b/run', patch=lab.during(3, take))


def _experiment(bucket):
  """Of data and weights in a bucket."""
  tiny_folders.write_bert(bucket / 'b')
  with (bucket / 'b/set.csv').open('w') as file:
    rows = csv.writer(file)
    rows.writerow(['text', 'label', 'client'])
    for i in range(24):
      rows.writerow([f'the cat {i}', 'ab'[i % 2], f'client {i % 3}'])
  e = tiny_runs.experiment()
  e.model.weights, e.data.name = 'gs://b/bert', 'csv:gs://b/set.csv'
  e.data.lengths, e.lora.targets = (8,), ('attn.q',)
  e.clients.partition, e.clients.budgets = 'natural', (2, 1, 1)
  return e


def test_data_and_weights_at_addresses(bucket):
  e = _experiment(bucket)
  setup = build.build(e)
  assert sorted(setup.partition.sizes()) == [6, 7, 7]
  e.model.weights = str(bucket / 'b/bert')
  e.data.name = f'csv:{bucket}/b/set.csv'
  here = build.build(e)
  assert setup.weights == here.weights
  assert identity.partition(setup) == identity.partition(here)
  assert not list((bucket / 'b/bert').glob('.*'))


@pytest.mark.slow
def test_results_leave_a_bucket_for_another(bucket):
  said = ft.train(_experiment(bucket), 'gs://b/run')
  assert (bucket / 'b/run/accuracy.png').exists()
  # As launch.export does, whose flags are also those of another command.
  with mirror.opened('out', 'gs://b/out', new=True) as place:
    exported.write(models.load('gs://b/run'), 'flax', place.folder)
    place.send()
  model = ft.load_model('gs://b/out')
  assert model.labels == ('a', 'b')
  assert 0 <= said['accuracy'] <= 1
