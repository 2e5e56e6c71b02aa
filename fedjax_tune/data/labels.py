"""Class labels: one meaning in all domains, and nothing out of range."""

from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np

from fedjax_tune.data import json_files
from fedjax_tune.data.prepared import Builder
from fedjax_tune.typing import Record


@dataclasses.dataclass(frozen=True)
class Classes:
  """The classes of a set, and their order in each domain.

  Attributes:
    feature: Name of the labels.
    names: Names of the classes, in the first domain's order.
    orders: For each domain, the position in `names` of its labels, int[K].
  """

  feature: str
  names: tuple[str, ...]
  orders: tuple[np.ndarray, ...]

  def read(self, domain: int, row: Record) -> int:
    """Returns the class of a row.

    Raises:
      ValueError: The label is not an integer, or belongs to no class.
    """
    value = np.asarray(row[self.feature])
    if value.shape or value.dtype.kind not in 'iu':
      raise ValueError(
        f'{self.feature}={row[self.feature]!r} must be one integer'
      )
    if not 0 <= value < len(self.names):
      missing = '; -1 marks a row without a label' * bool(value == -1)
      raise ValueError(
        f'{self.feature}={value} must be from 0 to {len(self.names) - 1}'
        f'{missing}'
      )
    return int(self.orders[domain][value])


def align(feature: str, builders: Sequence[Builder]) -> Classes:
  """Returns the classes of a set; domains may list them in another order.

  Args:
    feature: Name of the labels.
    builders: The builder of each domain.

  Raises:
    ValueError: The labels are not classes, or a domain has other classes.
  """
  names, orders = _names(feature, builders[0]), []
  for builder in builders:
    own = _names(feature, builder)
    if other := sorted(set(own) ^ set(names)):
      raise ValueError(
        f'{builder.info.full_name}: {other[0]!r} is a class of only one of it'
        f' and {builders[0].info.full_name}; domains must have the same classes'
      )
    orders.append(np.array([names.index(name) for name in own]))
  return Classes(feature, names, tuple(orders))


def _names(feature: str, builder: Builder) -> tuple[str, ...]:
  """Returns the names of the classes as the prepared copy numbers them."""
  import tensorflow_datasets as tfds

  kind = builder.info.features[feature]
  if not isinstance(kind, tfds.features.ClassLabel) or not kind.num_classes:
    raise ValueError(
      f'{builder.info.full_name}: {feature} is {type(kind).__name__}; must be'
      ' ClassLabel with a number of classes: one label a row'
    )
  names, count = kind.names, kind.num_classes
  # A builder of the catalogue has names of its own, whatever the copy says.
  file = pathlib.Path(builder.data_dir, f'{feature}.labels.txt')
  if file.exists():
    names = [n.strip() for n in file.read_text('utf8').split('\n') if n.strip()]
    count = _stored_count(feature, file.with_name('features.json')) or len(
      names
    )
  if len(names) != count or len(set(names)) != count:
    raise ValueError(
      f'{file}: has {len(set(names))} names for {count} classes; must have one'
      ' each'
    )
  return tuple(names)


def _stored_count(feature: str, file: pathlib.Path) -> int:
  """Returns the number of classes in features.json; 0 if it has none."""
  found = json_files.read_object(file) if file.exists() else {}
  for key in ('featuresDict', 'features', feature, 'classLabel', 'numClasses'):
    found = found.get(key) if isinstance(found, dict) else None
  return int(found) if isinstance(found, int | str) else 0
