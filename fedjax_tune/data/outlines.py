"""What is known of a set before its rows are read."""

from collections.abc import Mapping
import dataclasses

from fedjax_tune import config
from fedjax_tune.data import (
  examples,
  images,
  labels,
  sources,
  text_sets,
)
from fedjax_tune.data.own import sets as own
from fedjax_tune.data.prepared import Builder


@dataclasses.dataclass(frozen=True)
class Outline:
  """A set, opened.

  Attributes:
    builders: The builder of each domain.
    splits: Names of the splits to train on and to evaluate on.
    entry: The layout of texts; None for pictures.
    classes: The classes; None if the task has none.
    notes: Oddities of the set, a line each.
  """

  builders: Mapping[str, Builder]
  splits: tuple[str, str]
  entry: text_sets.TextSet | None
  classes: labels.Classes | None
  notes: tuple[str, ...]


def read(cfg: config.Data) -> Outline:
  """Opens all domains of a set, and checks their descriptions."""
  if own.is_own(cfg.name):
    return _read_own(cfg)
  builders = {d: sources.make_builder(cfg, d) for d in domain_names(cfg)}
  made = list(builders.values())
  entry = text_sets.find(cfg.name, made[0].info.features, cfg.task)
  if entry is None and 'label' not in made[0].info.features:
    raise ValueError(
      f'data.name={cfg.name!r}: has the features'
      f' {", ".join(made[0].info.features)}; must have image and label, or text'
      " and label; without labels, data.task must be 'next_token'"
    )
  wanted = entry.test if entry else 'test'
  if cfg.task == 'regression' and (not entry or entry.kind != 'regression'):
    raise ValueError(
      f"data.task='regression': {cfg.name} has classes; must be ''"
    )
  test = sources.find_test(cfg, made, wanted)
  notes = ()
  if test != wanted:
    notes = (f'test: evaluated on {test}, for want of a split {wanted}',)
  classes = None
  if entry is None:
    images.check_features(made)
    classes = labels.align('label', made)
  elif entry.kind == 'classification':
    classes = labels.align(entry.label, made)
  return Outline(builders, ('train', test), entry, classes, notes)


def _read_own(cfg: config.Data) -> Outline:
  """Opens a set in the user's own files."""
  domains = domain_names(cfg)
  found = own.read(cfg)
  entry, parts = found.entry(cfg.task), found.parts(domains)
  if cfg.task and entry is None:
    raise ValueError(
      f'data.task={cfg.task!r}: {cfg.name} has pictures; must be texts'
    )
  classes = None if cfg.task == 'next_token' else found.align(domains)
  return Outline(parts, ('train', 'test'), entry, classes, found.notes)


def survey(cfg: config.Data) -> tuple[str, ...]:
  """Reads and checks all rows of a set, and returns notes.

  Nothing is decoded or tokenised.

  Raises:
    FileNotFoundError, ValueError: See `corpus.load`.
  """
  outline, lines = read(cfg), []
  for split, name in zip(outline.splits, ('train', 'test'), strict=True):
    found: tuple[str, ...] = ()
    if outline.entry:
      _, found = examples.text_rows(
        cfg, outline.builders, split, outline.classes, outline.entry
      )
    elif outline.classes:
      *_, found = examples.image_rows(
        cfg, outline.builders, split, outline.classes
      )
    lines += [f'{name}: {line}' for line in found]
  return (*lines, *outline.notes)


def domain_names(cfg: config.Data) -> tuple[str, ...]:
  """Returns the domains of a set, after all checks that read no data.

  Raises:
    ValueError, FileNotFoundError, NotADirectoryError, PermissionError: See
      `corpus.load`, which does the same checks.
  """
  sources.check(cfg)
  if own.is_own(cfg.name):
    known = tuple(own.read(cfg).examples)
  else:
    from fedjax_tune.data import builders

    known = builders.list_domains(cfg.name)
  for domain in cfg.domains:
    if domain not in known:
      raise ValueError(
        f'data.domains={cfg.domains}: {cfg.name} has no domain {domain!r}, only'
        f' {", ".join(known)}'
      )
  if len(set(cfg.domains)) < len(cfg.domains):
    raise ValueError(f'data.domains={cfg.domains}: a domain is named twice')
  return tuple(cfg.domains) or known
