"""Files of a user's own: pictures in folders, and tables of every kind."""

import json

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet

from fedjax_tune import config
from fedjax_tune.data import corpus


def picture(path, shade, size=(9, 7)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size, (shade % 256,) * 3).save(path)


def pictures(root, *folders, count=4):
  """Writes pictures, each of its own shade, into each of some folders."""
  for i, folder in enumerate(folders):
    for n in range(count):
      picture(root / folder / f'{n}.png', 40 * i + n)
  return root


def data(name, **fields):
  return config.Data(
    **{'name': name, 'image_size': 8, 'lengths': (32,)} | fields
  )


def load(name, **fields):
  return corpus.load(data(name, **fields))


def rows(count=20):
  return [
    {
      'text': f'text, "{i}"\nof two lines',
      'label': 'yn'[i % 2],
      'user': f'u{i % 3}',
    }
    for i in range(count)
  ]


def write(folder, kind, rows, stem='rows'):
  """Writes rows as a table, and returns the set's name."""
  path = folder / f'{stem}.{kind}'
  columns = {name: [row[name] for row in rows] for name in rows[0]}
  if kind == 'csv':
    quote = lambda value: '"' + str(value).replace('"', '""') + '"'
    lines = [','.join(map(quote, row.values())) for row in rows]
    path.write_text('\n'.join([','.join(columns), *lines]) + '\n')
  elif kind == 'jsonl':
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  elif kind == 'parquet':
    parquet.write_table(pa.table(columns), path)
  else:
    arrays = {name: np.array(v) for name, v in columns.items()}
    np.savez(path, allow_pickle=False, **arrays)
  return f'{kind}:{path}'
