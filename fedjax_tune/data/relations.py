"""How the two splits of a set, and its domains, relate to each other."""

from typing import Protocol

import numpy as np

from fedjax_tune import config
from fedjax_tune.data.examples import Examples
from fedjax_tune.data.notes import Notes, join_first


class Labelled(Protocol):
  """Examples of a split.

  Attributes:
    labels: int32 [N].
    domains: int32 [N].
  """

  @property
  def labels(self) -> np.ndarray: ...

  @property
  def domains(self) -> np.ndarray: ...


def check_classes(
  cfg: config.Data, names: tuple[str, ...], train: Examples
) -> None:
  """Checks that there are classes to tell apart.

  Args:
    cfg: Names the set.
    names: Names of the classes.
    train: The train split.

  Raises:
    ValueError: All train examples are of one class.
  """
  present = np.unique(train.labels)
  if len(present) == 1:
    raise ValueError(
      f'data.name={cfg.name!r}: all {len(train.labels)} train examples have the'
      f' label {present[0]}, {names[present[0]]!r}; must be of two classes at'
      f' least (data.num_classes={cfg.num_classes}, 0 keeps all)'
    )


def compare_classes(
  domains: tuple[str, ...],
  names: tuple[str, ...],
  train: Labelled,
  test: Labelled,
) -> tuple[str, ...]:
  """Returns a line on domains that lack classes, and one on test-only classes.

  Args:
    domains: Names of the domains.
    names: Names of the classes.
    train: The train split.
    test: The test split.
  """
  lines = []
  for split, part in (('train', train), ('test', test)):
    found = Notes()
    for domain, domain_name in enumerate(domains):
      present = set(part.labels[part.domains == domain])
      missing = [name for k, name in enumerate(names) if k not in present]
      if missing:
        some = f'{domain_name} of {len(missing)} ({join_first(missing)})'
        found.add('domains have no example of some classes', some)
    lines += [f'{split}: {line}' for line in found.lines()]
  unknown = np.setdiff1d(test.labels, train.labels)
  if len(unknown):
    lines.append(
      f'test: {len(unknown)} classes have no train example:'
      f' {join_first([names[k] for k in unknown])}'
    )
  return tuple(lines)


def find_shared(train: Examples, test: Examples) -> tuple[str, ...]:
  """Returns a line about test examples that are also train examples."""
  found, known = Notes(), set(train.contents.values())
  for name, content in test.contents.items():
    if content in known:
      found.add('examples are in train, too', name)
  return tuple(f'test: {line}' for line in found.lines())
