"""A data set as the engine sees it: labels, domains, and inputs by index.

Every set is read through `tfds.data_source`, so that any set prepared in the
array_record format works, without TensorFlow. A set with domains has one TFDS
config per domain.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import (
  digest,
  examples,
  metrics,
  outlines,
  relations,
  text,
  text_sets,
  tokens,
)
from fedjax_tune.data.images import Images, Some, Stored
from fedjax_tune.data.metrics import Questions
from fedjax_tune.data.tasks import Task
from fedjax_tune.typing import Inputs, Tokens


@dataclasses.dataclass(frozen=True)
class Corpus:
  """One split of a data set.

  Attributes:
    labels: int32[N]; for tasks other than classification see `tasks.Examples`.
    domains: int32[N], positions in `domain_names`.
    groups: The group of each example, str[N], if the set names it: the object
      that an image shows, the speaker of a text; else None.
    domain_names: Names of the domains, in the order of the configuration.
    class_names: The name of each label; () if there are no classes.
    inputs: uint8[N, H, W, 3], in memory or read on demand; or the tokens of
      texts [N, T].
    task: What is learned.
    lengths: Tokens of each example, int32[N]; None for images.
    questions: What predicted spans are judged by; else None.
    others: The same examples as other tokenizers encode them.
    notes: Lines about what was converted or left out, or is odd in the data.
  """

  labels: np.ndarray
  domains: np.ndarray
  groups: np.ndarray | None
  domain_names: tuple[str, ...]
  class_names: tuple[str, ...]
  inputs: Images | Tokens
  task: Task
  lengths: np.ndarray | None = None
  questions: Questions | None = None
  others: 'tuple[Corpus, ...]' = ()
  notes: tuple[str, ...] = ()

  def seen_as(self, others: 'Sequence[Corpus]') -> 'Corpus':
    """Adds the views of other tokenizers.

    Raises:
      ValueError: The task is spans, whose windows differ between tokenizers.
    """
    if others and self.task.kind == 'span':
      raise ValueError(
        'tiers.weights must have one tokenizer where the task is to find spans.'
      )
    return dataclasses.replace(self, others=tuple(others))

  def view(self, reader: int) -> 'Corpus':
    """Returns the examples as one of the tokenizers encodes them."""
    return (self, *self.others)[reader]

  def take(self, rows: np.ndarray) -> 'Corpus':
    """Returns some of the examples, and the domains that these have.

    Args:
      rows: Their positions, int [n].
    """
    present, domains = np.unique(self.domains[rows], return_inverse=True)
    pick = lambda array: None if array is None else array[rows]
    inputs = self.inputs
    if isinstance(inputs, Tokens):
      inputs = Tokens(inputs.ids[rows], inputs.types[rows])
    else:
      inputs = Some(inputs, rows)
    return dataclasses.replace(
      self,
      labels=self.labels[rows],
      domains=domains.astype(self.domains.dtype),
      groups=pick(self.groups),
      domain_names=tuple(self.domain_names[d] for d in present),
      inputs=inputs,
      lengths=pick(self.lengths),
      questions=self.questions and self.questions.take(rows),
      others=tuple(other.take(rows) for other in self.others),
    )

  def fingerprint(self) -> str:
    """Returns a hash of everything that the corpus holds, hex.

    It is the same in every process and on every platform. For images that stay
    on disk it hashes the bytes of their files.
    """
    own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    del own['notes']
    if isinstance(self.inputs, Stored):
      own['inputs'] = self.inputs.fingerprint()
    own['others'] = [other.fingerprint() for other in self.others]
    return digest.of(own)

  def __len__(self) -> int:
    return len(self.labels)

  def read(self, indices: np.ndarray, length: int = 0) -> Inputs:
    """Returns the inputs at `indices`.

    Args:
      indices: int[n].
      length: For texts, how many tokens to return; 0 is all.

    Returns:
      Images uint8[n, H, W, 3], or tokens int32[n, length].
    """
    indices = np.asarray(indices, np.int64)
    if not isinstance(self.inputs, Tokens):
      return self.inputs[indices]
    end = length or self.inputs.ids.shape[1]
    return Tokens(*(array[indices, :end] for array in self.inputs))

  def score(self, predicted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Judges predictions, arrays [N] of `Task.predict`, in each domain.

    Returns:
      For each metric of the task, the primary one first, its value by domain,
      float[domains].
    """
    kind, names = self.task.kind, self.task.metrics
    if self.questions is not None:  # Sets of questions have one domain.
      found = metrics.evaluate(kind, names, predicted, self.questions)
      return {name: np.array([value]) for name, value in found.items()}
    by_domain = []
    for domain in range(len(self.domain_names)):
      at = self.domains == domain
      part = {name: values[at] for name, values in predicted.items()}
      by_domain.append(metrics.evaluate(kind, names, part, self.labels[at]))
    return {m: np.array([found[m] for found in by_domain]) for m in names}

  def judge(
    self, rows: np.ndarray, predicted: Mapping[str, np.ndarray]
  ) -> dict[str, float]:
    """Judges predictions for some examples of any domains.

    Args:
      rows: Their positions, int [n], n at least 1.
      predicted: Arrays [n] of `Task.predict`, in the order of `rows`.

    Returns:
      Each metric of the task; NaN where an output is not finite.
    """
    right = self.labels[rows]
    if self.questions is not None:
      right = self.questions.take(rows)
    return metrics.evaluate(self.task.kind, self.task.metrics, predicted, right)


def load(
  cfg: config.Data, tokenizer: str | os.PathLike | None = None, pad: int = 0
) -> tuple[Corpus, Corpus]:
  """Returns the train and the test split of a prepared data set.

  A set of images under 4 GiB when decoded is decoded once, into memory. For a
  larger set only labels are kept, and each read decodes what it needs in a few
  threads. Texts are tokenised here, once. Both are kept for the next run, in
  the folder `arrays` beside the data; see `array_cache`. The sets in
  `builders.PACKAGED` are prepared here if they are missing.

  Args:
    cfg: Which set, and how.
    tokenizer: Folder of the model's tokenizer; None if it reads images.
    pad: The model's padding token.

  Raises:
    ValueError: An unknown set or domain, a domain that is empty, a set without
      images and labels or text, a set that is not for the model, corrupt
      files, or an impossible number.
    FileNotFoundError: The folder is missing, or the set is not prepared (the
      message has the command that prepares it), or the tokenizer is missing.
    NotADirectoryError, PermissionError: The folder can't be read.
  """
  outline = outlines.read(cfg)
  entry, classes = outline.entry, outline.classes
  _check_kind(cfg, entry, tokenizer)
  if entry and tokenizer is not None:
    reader = examples.TextReader(entry, tokens.load(tokenizer), pad)
    outputs = reader.tokenizer.get_vocab_size()
    train, test = (
      examples.read_texts(cfg, outline.builders, split, classes, reader)
      for split in outline.splits
    )
  else:
    if cfg.image_size < 1:
      raise ValueError(f'data.image_size={cfg.image_size}: must be at least 1')
    assert classes is not None
    outputs = 0
    train, test = (
      examples.read_images(cfg, outline.builders, split, classes)
      for split in outline.splits
    )
  names = classes.names[: cfg.num_classes or None] if classes else ()
  if entry:
    task = text.make_task(entry, len(names) or outputs)
  else:
    task = Task('classification', len(names))
  domains = tuple(outline.builders)
  notes = (*outline.notes, *relations.find_shared(train, test))
  if classes:
    relations.check_classes(cfg, names, train)
    notes += relations.compare_classes(domains, names, train, test)
  make = functools.partial(_make, domains, names, task)
  return make(train, 'train', ()), make(test, 'test', notes)


def texts(
  cfg: config.Data, choose: Callable[[int], np.ndarray]
) -> tuple[list[str], list[str] | None] | None:
  """Returns some raw training texts, and the second parts of pairs.

  Args:
    cfg: The same as for `load`.
    choose: Returns positions of texts, int [n], given their number.

  Returns:
    The texts; None for pictures, and for contexts, which are cut into windows.
  """
  outline = outlines.read(cfg)
  entry, split = outline.entry, outline.splits[0]
  if entry is None or entry.kind == 'span':
    return None
  kept, _ = examples.text_rows(
    cfg, outline.builders, split, outline.classes, entry
  )
  rows = choose(len(kept))
  return text.parts([kept[row].values for row in rows], entry)


def _make(
  domains: tuple[str, ...],
  names: tuple[str, ...],
  task: Task,
  found: examples.Examples,
  split: str,
  notes: tuple[str, ...],
) -> Corpus:
  return Corpus(
    labels=found.labels,
    domains=found.domains,
    groups=found.groups,
    domain_names=domains,
    class_names=names,
    inputs=found.inputs,
    task=task,
    lengths=found.lengths,
    questions=found.questions,
    notes=(*(f'{split}: {line}' for line in found.notes), *notes),
  )


def _check_kind(
  cfg: config.Data,
  entry: text_sets.TextSet | None,
  tokenizer: str | os.PathLike | None,
) -> None:
  if bool(entry) != (tokenizer is not None):
    has, reads = ('text', 'images') if entry else ('images', 'text')
    raise ValueError(
      f'data.name={cfg.name!r}: has {has}, but the model of model.weights reads'
      f' {reads}'
    )
  if entry and cfg.num_classes and entry.kind != 'classification':
    raise ValueError(
      f'data.num_classes={cfg.num_classes}: must be 0, {cfg.name} has no classes'
    )
