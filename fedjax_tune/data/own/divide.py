"""Divides the user's own examples into training and test data."""

from fedjax_tune import config
from fedjax_tune.data import digest, splits
from fedjax_tune.data.own.found import Example, Found


def divide(
  cfg: config.Data, found: Found
) -> tuple[list[Example], list[Example]]:
  """Returns training and test examples; `found.notes` says how they differ.

  Raises:
    ValueError: There is nothing to train on, or nothing can be held out.
  """
  parts: dict[str, list[Example]] = {}
  for example in found.examples:
    parts.setdefault(example.split or 'train', []).append(example)
  if 'train' not in parts:
    raise ValueError(
      f'data.name={cfg.name!r}: has {" and ".join(parts)} examples alone; must'
      ' have some to train on'
    )
  if 'test' in parts:
    if 'validation' in parts:
      count = len(parts['validation'])
      found.notes.append(f'{count} examples of validation are not read')
    return parts['train'], parts['test']
  if 'validation' in parts:
    found.notes.append(
      'test: evaluated on validation, for want of a split test'
    )
    return parts['train'], parts['validation']
  return _hold_out(cfg, parts['train'], found.notes)


def _hold_out(
  cfg: config.Data, examples: list[Example], notes: list[str]
) -> tuple[list[Example], list[Example]]:
  """Holds out a seeded part of each class of each domain."""
  held = splits.hold_out(
    [example.key or digest.of(example.content) for example in examples],
    [(e.domain, e.label if isinstance(e.label, str) else '') for e in examples],
    cfg.test_share,
    cfg.split_seed,
  )
  if not held.any():
    raise ValueError(
      f'data.name={cfg.name!r}: has one example of each class, so that none can'
      ' be held out; give it a split, such as folders train and test'
    )
  notes.append(
    f'{int(held.sum())} of {len(examples)} examples are held out to evaluate on,'
    f' as there is no split (data.test_share={cfg.test_share}, data.split_seed='
    f'{cfg.split_seed})'
  )
  parts: tuple[list[Example], list[Example]] = ([], [])
  for example, is_held in zip(examples, held.tolist(), strict=True):
    parts[is_held].append(example)
  return parts
