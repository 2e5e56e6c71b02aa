"""Runs on files of the user's own, what they are called, and what is shown."""

import dataclasses
import re

import numpy as np
from PIL import Image
import pytest
import rich.console
import tiny_folders
import tiny_own
import tiny_runs

import fedjax_tune as ft
from fedjax_tune import config
from fedjax_tune.config import unread
from fedjax_tune.data import outlines, sources
from fedjax_tune.deploy import finished
from fedjax_tune.training import build
from launch import prepare
from launch import survey as shown

# -- names


@pytest.mark.parametrize(
  ('name', 'kind', 'message'),
  [
    ('cvs:x.csv', ValueError, "did you mean 'csv:x.csv'"),
    ('images:x', ValueError, "did you mean 'folder:x'"),
    ('csv:', ValueError, "must have a path, as in 'csv:PATH'"),
    (
      'csv:{}/rwos.csv',
      FileNotFoundError,
      'does not exist; did you mean .*rows',
    ),
    (
      'folder:PATH',
      FileNotFoundError,
      'placeholder: set --config.data.name=folder:YOUR_PICTURES',
    ),
    (
      'csv:PATH',
      FileNotFoundError,
      'set --config.data.name=csv:YOUR_TABLE.csv',
    ),
    ('folder:{}/rows.csv', ValueError, 'must be a folder; did you mean .csv:'),
    ('{}/rows.csv', ValueError, 'did you mean .csv:/'),
    ('npz:{}', ValueError, 'has no file .npz'),
  ],
)
def test_names_that_are_nothing(tmp_path, name, kind, message):
  tiny_own.write(tmp_path, 'csv', tiny_own.rows())
  with pytest.raises(kind, match=message):
    outlines.domain_names(tiny_own.data(name.format(tmp_path)))


def test_a_placeholder_is_no_source():
  with pytest.raises(ValueError, match='PATH must be where your files are'):
    prepare._check_own('folder:PATH')


def test_nothing_is_to_be_prepared(tmp_path):
  name = tiny_own.write(tmp_path, 'csv', tiny_own.rows())
  assert sources.is_prepared(
    tiny_own.data(name), outlines.domain_names(tiny_own.data(name))
  )


def test_options_of_tables_are_read_with_tables_only():
  experiment = config.Experiment(data=config.Data(label_column='stars'))
  (line,) = unread.in_vain(experiment)
  assert "data.name='csv:PATH' or 'jsonl:PATH'" in line
  experiment.data.name = 'csv:x.csv'
  assert unread.in_vain(experiment) == []


# -- runs


def _experiment(name):
  e = tiny_runs.experiment()
  e.data.name = name
  return e


def test_a_run_on_a_folder(tmp_path):
  """It trains, resumes, is deployed, and notices a file that has changed."""
  root = tiny_own.pictures(tmp_path / 'own', 'art/a', 'art/b', 'web/a', 'web/b')
  workdir = str(tmp_path / 'run')
  e = _experiment(f'folder:{root}')
  summary = ft.train(e, workdir)
  assert set(summary['accuracy_by_domain']) == {'art', 'web'}
  assert finished.load(workdir).setup.train.class_names == ('a', 'b')
  longer = dataclasses.replace(e, rounds=3)
  tiny_own.picture(root / 'art' / 'a' / '0.png', 200)
  with pytest.raises(ValueError, match=r'(?s)other data .*training data'):
    ft.train(longer, workdir, resume=True)
  tiny_own.picture(root / 'art' / 'a' / '0.png', 0)
  assert ft.train(longer, workdir, resume=True)['rounds'] == 3


def test_natural_clients_of_a_table(tmp_path):
  e = _experiment(tiny_own.write(tmp_path, 'csv', tiny_own.rows(30)))
  e.model.weights = tiny_folders.write_bert(tmp_path)
  e.clients.partition, e.clients.budgets = 'natural', ()
  e.lora.targets, e.data.lengths = ('attn.q',), (8, 16)
  setup = build.build(e)
  assert setup.train.groups is not None
  owners = [set(setup.train.groups[rows]) for rows in setup.partition.indices]
  assert sorted(owners, key=str) == [{'u0'}, {'u1'}, {'u2'}]
  assert not any('natural clients' in note for note in setup.notes)
  e.clients.count = 2
  (note,) = [n for n in build.build(e).notes if 'natural clients' in n]
  assert '2 of 3 natural clients take part' in note


# -- what `launch.prepare --source` shows


def _shown(cfg, folder, **options):
  console = rich.console.Console(record=True, width=160, **options)
  error = ''
  try:
    shown.show(console, cfg, folder)
  except ValueError as caught:
    error = str(caught)
  return console.export_text(), error


def test_pictures_are_shown(tmp_path):
  root = tiny_own.pictures(tmp_path / 'own', 'art/a', 'art/b', 'web/a', 'web/b')
  cfg = tiny_own.data(f'folder:{root}')
  text, error = _shown(cfg, tmp_path)
  assert not error
  assert '16 pictures, 2 classes, 2 domains' in text
  assert re.search(r'a +│? *3 \+ 1', text)
  (drawn,) = (tmp_path / 'examples').glob('*.png')
  assert str(drawn) in text.replace('\n', '')
  assert np.asarray(Image.open(drawn)).std() > 5
  (root / 'art' / 'a' / '0.png').write_bytes(b'')
  text, error = _shown(cfg, tmp_path)
  assert 'art/a/0.png: is empty, 0 bytes' in text
  assert '1 row or file cannot be used' in error


def test_many_domains_and_no_usable_picture_are_shown(tmp_path):
  folders = [f'd{i}/{name}' for i in range(9) for name in 'ab']
  root = tiny_own.pictures(tmp_path / 'own', *folders, count=2)
  text, error = _shown(tiny_own.data(f'folder:{root}'), tmp_path)
  assert not error
  assert '9 domains' in text
  assert re.search(r'all domains', text)
  assert re.search(r'a +│? *9 \+ 9', text)
  for file in root.rglob('*.png'):
    file.write_bytes(b'\x1b[2J')
  text, error = _shown(tiny_own.data(f'folder:{root}'), tmp_path)
  assert 'd0/a/0.png: is no picture' in text
  assert '36 rows or files cannot be used' in error


def test_texts_are_shown(tmp_path):
  text, error = _shown(
    tiny_own.data(tiny_own.write(tmp_path, 'csv', tiny_own.rows())), tmp_path
  )
  assert not error
  assert '20 texts, 2 classes, 1 domain' in text
  assert '3 natural clients of' in text
  assert (
    '--config.clients.partition=natural --config.clients.count=3'
    ' --config.clients.cohort_size=3 --workdir' in text
  )
  assert "columns: text='text', label='label', client='user'" in text
  assert re.search(r'row .* label .* client .* text', text)
  assert ' domain ' not in text
  assert len(re.findall(r'rows.csv:\d+ ', text)) == 10
