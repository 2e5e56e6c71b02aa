"""A data set in memory: pictures or texts, with classes."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import relations, text, text_sets, tokens
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.data.own import cells
from fedjax_tune.data.tasks import Task
from fedjax_tune.typing import Tokens

# What the configuration of such a run has as `data.name`.
NAME = 'arrays'


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples of one split, checked.

  Attributes:
    inputs: uint8 [N, S, S, 3], or a tuple of N texts.
    labels: int32 [N].
    domains: int32 [N], positions in the domains' names.
    groups: The client of each example, str [N]; None if not given.
  """

  inputs: Any
  labels: np.ndarray
  domains: np.ndarray
  groups: np.ndarray | None = None

  def __repr__(self) -> str:
    return f'Split({self._counted()})'

  def _counted(self) -> str:
    if not isinstance(self.inputs, np.ndarray):
      return f'{len(self.inputs)} texts'
    _, height, width, _ = self.inputs.shape
    return f'{len(self.inputs)} images of {height} x {width}'


@dataclasses.dataclass(frozen=True)
class Arrays:
  """A data set in memory; see `from_arrays`.

  Attributes:
    train: Examples that clients divide among themselves.
    test: Examples on which models are evaluated.
    class_names: The name of each label.
    domain_names: The name of each domain.
  """

  train: Split
  test: Split
  class_names: tuple[str, ...]
  domain_names: tuple[str, ...]

  def __repr__(self) -> str:
    return (
      f'Arrays(train={self.train}, test={self.test},'
      f' {len(self.class_names)} classes, {len(self.domain_names)} domains)'
    )

  @property
  def texts(self) -> bool:
    """Whether the examples are texts."""
    return not isinstance(self.train.inputs, np.ndarray)

  def load(
    self, cfg: config.Data, tokenizer: str | None, pad: int
  ) -> tuple[Corpus, Corpus]:
    """Returns both splits as a model reads them.

    Args:
      cfg: The run's section `data`; `image_size` and `lengths` are read.
      tokenizer: Folder of the model's tokenizer; None if it reads images.
      pad: The model's padding token.

    Raises:
      ValueError: The model reads another kind of input, or another size.
    """
    if self.texts != (tokenizer is not None):
      has, reads = ('texts', 'images') if self.texts else ('images', 'texts')
      raise ValueError(
        f'data: has {has}, but the model of model.weights reads {reads}.'
      )
    make = lambda split: self._corpus(split, cfg, tokenizer, pad)
    odd = relations.compare_classes(
      self.domain_names, self.class_names, self.train, self.test
    )
    return make(self.train), dataclasses.replace(make(self.test), notes=odd)

  def _corpus(
    self, split: Split, cfg: config.Data, tokenizer: str | None, pad: int
  ) -> Corpus:
    inputs, lengths = split.inputs, None
    if tokenizer is not None:
      entry = text_sets.TextSet(('text',))
      rows = [
        {'text': line, 'label': label}
        for line, label in zip(inputs, split.labels, strict=True)
      ]
      made = text.encode(
        rows, entry, tokens.load(tokenizer), max(cfg.lengths), pad
      )
      inputs = Tokens(made.encoded.ids, made.encoded.types)
      lengths = made.encoded.lengths
    elif inputs.shape[1:] != (cfg.image_size, cfg.image_size, 3):
      raise ValueError(
        f'data: images of shape {inputs.shape[1:]} must be of shape'
        f' ({cfg.image_size}, {cfg.image_size}, 3), as data.image_size says.'
      )
    return Corpus(
      labels=split.labels,
      domains=split.domains,
      groups=split.groups,
      domain_names=self.domain_names,
      class_names=self.class_names,
      inputs=inputs,
      task=Task('classification', len(self.class_names)),
      lengths=lengths,
    )


def from_arrays(
  inputs: np.ndarray | Sequence[str],
  labels: Sequence[int] | Sequence[str] | np.ndarray,
  test_inputs: np.ndarray | Sequence[str],
  test_labels: Sequence[int] | Sequence[str] | np.ndarray,
  *,
  domains: Sequence[str] | None = None,
  test_domains: Sequence[str] | None = None,
  clients: Sequence[str | int] | np.ndarray | None = None,
  class_names: Sequence[str] = (),
) -> Arrays:
  """Makes a data set from arrays in memory, for `train`.

  Args:
    inputs: Images uint8 [N, S, S, 3], S the experiment's `data.image_size`, or
      N texts.
    labels: Their classes, by number from 0 or by name, [N].
    test_inputs: The same for M examples to evaluate models on.
    test_labels: Their classes [M].
    domains: The name of each example's domain [N]; None means one domain.
    test_domains: The same for the test examples [M].
    clients: The client of each training example [N], by name or number, for
      `clients.partition='natural'`; None if not known.
    class_names: The name of each label. With () labels that are names are
      sorted, and other classes are named by their numbers.

  Raises:
    ValueError: The arrays do not fit together, or have a wrong type or shape.
  """
  label_N, label_M, names = _classes(labels, test_labels, class_names)
  if (domains is None) != (test_domains is None):
    raise ValueError('domains and test_domains must be given together.')
  known = tuple(dict.fromkeys(domains)) if domains is not None else ('all',)
  make = lambda which, x, y, d: _split(which, x, y, d, names, known)
  train = make('', inputs, label_N, domains)
  if clients is not None:
    train = dataclasses.replace(train, groups=_groups(clients, len(inputs)))
  test = make('test_', test_inputs, label_M, test_domains)
  if isinstance(train.inputs, np.ndarray) != isinstance(
    test.inputs, np.ndarray
  ):
    raise ValueError('inputs and test_inputs must both be images, or texts.')
  if len(np.unique(train.labels)) < 2:
    raise ValueError('labels must be of two classes at least.')
  return Arrays(train, test, names, known)


def _classes(
  labels: Sequence[int] | Sequence[str] | np.ndarray,
  test_labels: Sequence[int] | Sequence[str] | np.ndarray,
  class_names: Sequence[str],
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Returns labels of both splits, names as numbers, and the names of classes."""
  train, test = map(np.asarray, (labels, test_labels))
  named = [_are_names(x) for x in (train, test)]
  if named == [False, False]:
    numbers = [x for x in (train, test) if x.size and x.dtype.kind in 'iu']
    top = max((int(x.max()) for x in numbers), default=-1)
    return train, test, tuple(class_names) or tuple(map(str, range(top + 1)))
  if not all(named):
    raise ValueError(
      'labels and test_labels must both be names, or both whole numbers.'
    )
  names = tuple(class_names) or cells.sort_classes(
    map(str, np.concatenate([train.ravel(), test.ravel()]))
  )
  find = lambda which, x: _find(which, x, names)
  return find('', train), find('test_', test), names


def _are_names(labels: np.ndarray) -> bool:
  if labels.dtype.kind == 'O':
    return labels.size > 0 and all(isinstance(x, str) for x in labels.flat)
  return labels.dtype.kind in 'UT'


def _find(which: str, labels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
  """Returns the numbers of classes, by their names."""
  numbers = {name: number for number, name in enumerate(names)}
  for at, name in enumerate(map(str, labels.flat)):
    if not name.strip():
      raise ValueError(f'{which}labels[{at}]={name!r} must not be empty.')
    if name not in numbers:
      raise ValueError(
        f'{which}labels[{at}]={name!r} must be one of class_names,'
        f' {", ".join(map(repr, names))}.'
      )
  found = [numbers[str(name)] for name in labels.flat]
  return np.array(found, np.int32).reshape(labels.shape)


def _split(
  which: str,
  inputs: np.ndarray | Sequence[str],
  label_N: np.ndarray,
  domains: Sequence[str] | None,
  names: tuple[str, ...],
  known: tuple[str, ...],
) -> Split:
  """Checks a split's arrays."""
  count = len(inputs)
  if not count:
    raise ValueError(f'{which}inputs must have an example at least.')
  if label_N.shape != (count,) or not np.issubdtype(label_N.dtype, np.integer):
    raise ValueError(
      f'{which}labels of shape {label_N.shape} and type {label_N.dtype} must be'
      f' {count} whole numbers or names, one for each of {which}inputs.'
    )
  if label_N.min() < 0 or label_N.max() >= len(names):
    raise ValueError(
      f'{which}labels from {label_N.min()} to {label_N.max()} must lie in'
      f' [0, {len(names)}), one of {len(names)} classes.'
    )
  domain_N = np.zeros(count, np.int32)
  if domains is not None:
    if len(domains) != count:
      raise ValueError(
        f'{which}domains must be {count} names, and are {len(domains)}.'
      )
    if unknown := set(domains) - set(known):
      raise ValueError(
        f'{which}domains: {sorted(unknown)[0]!r} must be one of'
        f' {", ".join(known)}, the domains of training.'
      )
    domain_N = np.array([known.index(d) for d in domains], np.int32)
  return Split(_inputs(which, inputs), label_N.astype(np.int32), domain_N)


def _groups(
  clients: Sequence[str | int] | np.ndarray, count: int
) -> np.ndarray:
  """Returns the names of clients, str [N]."""
  names = np.asarray(clients)
  if names.shape != (count,) or names.dtype.kind not in 'iuU':
    raise ValueError(
      f'clients of shape {names.shape} and type {names.dtype} must be {count}'
      ' names or whole numbers, one for each of inputs.'
    )
  if names.dtype.kind == 'U' and not all(names):
    raise ValueError(
      f'clients[{int(np.argmin(names != ""))}] must not be empty.'
    )
  return names.astype(str)


def _inputs(
  which: str, inputs: np.ndarray | Sequence[str]
) -> np.ndarray | tuple[str, ...]:
  if all(isinstance(x, str) for x in inputs):
    return tuple(inputs)
  images = np.asarray(inputs)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
      f'{which}inputs of shape {images.shape} and type {images.dtype} must be'
      ' images uint8 [N, S, S, 3], or texts.'
    )
  return images
