"""What the two splits of a set, and its domains, have to do with each other."""

import numpy as np

from fedjax_tune import config
from fedjax_tune.data.examples import Examples
from fedjax_tune.data.notes import Notes, join_first


def check_classes(
  cfg: config.Data, names: tuple[str, ...], train: Examples
) -> None:
  """Checks that there is something to tell apart.

  Args:
    cfg: Which set.
    names: Of the classes.
    train: Its train split.

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
  train: Examples,
  test: Examples,
) -> tuple[str, ...]:
  """Returns a line for each domain that lacks classes, and for test's own.

  Args:
    domains: Names of the domains.
    names: Of the classes.
    train: The train split.
    test: The test split.
  """
  lines = []
  for domain, domain_name in enumerate(domains):
    for split, part in (('train', train), ('test', test)):
      present = set(part.labels[part.domains == domain])
      if missing := [n for k, n in enumerate(names) if k not in present]:
        lines.append(
          f'{split}: {domain_name} has no example of {len(missing)} of'
          f' {len(names)} classes: {join_first(missing)}'
        )
  unknown = np.setdiff1d(test.labels, train.labels)
  if len(unknown):
    lines.append(
      f'test: {len(unknown)} classes have no train example:'
      f' {join_first([str(names[k]) for k in unknown])}'
    )
  return tuple(lines)


def find_shared(train: Examples, test: Examples) -> tuple[str, ...]:
  """Returns a line about test examples that are train examples, too."""
  found, known = Notes(), set(train.contents.values())
  for name, content in test.contents.items():
    if content in known:
      found.add('examples are in train, too', name)
  return tuple(f'test: {line}' for line in found.lines())
