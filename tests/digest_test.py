import subprocess
import sys

import numpy as np
import pytest

from fedjax_tune.data import digest


def test_nothing_runs_together():
  values = [
    ('ab', 'c'),
    ('a', 'bc'),
    ('abc',),
    (b'abc',),
    (['a', 'b'], 'c'),
    (['a'], ['b', 'c']),
    (None,),
    ('None',),
    (1,),
    (1.0,),
    (True,),
    ({'a': 1},),
    (np.array([1, 2]),),
    (np.array([[1, 2]]),),
    (np.array([1, 2], np.int32),),
    (np.array(['1', '2']),),
    (np.array([1.0, 2.0]),),
  ]
  assert len({digest.of(*value) for value in values}) == len(values)


def test_platforms_and_layouts_agree():
  rows = np.arange(12, dtype='<i4').reshape(3, 4)
  for same in (rows.astype('>i4'), np.asfortranarray(rows), rows[::-1][::-1]):
    assert digest.of(same) == digest.of(rows)
  names = np.array(['a', 'bb'])
  assert digest.of(names) == digest.of(names.astype('<U9'))
  assert digest.of({'a': 1, 'b': 2}) == digest.of({'b': 2, 'a': 1})


def test_processes_agree():
  program = (
    'import numpy as np; from fedjax_tune.data import digest;'
    'import sys; sys.stdout.write('
    "digest.of({'b': [1, None], 'a': np.arange(3, dtype=np.int32)}))"
  )
  here = digest.of({'a': np.arange(3, dtype=np.int32), 'b': [1, None]})
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout == here


def test_objects_are_refused():
  with pytest.raises(TypeError, match='object has no digest'):
    digest.of([object()])
