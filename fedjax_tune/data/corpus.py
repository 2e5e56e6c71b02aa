"""A data set as the engine sees it: labels, domains, and inputs by index.

Every set is read through `tfds.data_source`, so that whatever is prepared in
the array_record format works, without TensorFlow. A set with domains is one
TFDS config a domain.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from fedjax_tune import config, scores
from fedjax_tune.data import digest, sources, text, text_sets, tokens
from fedjax_tune.data.images import Images, Stored
from fedjax_tune.scores import Questions
from fedjax_tune.tasks import Task
from fedjax_tune.typing import Tokens

# Sets that take less than this when decoded are decoded once, into memory.
_IN_MEMORY_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class Corpus:
  """One split of a data set.

  Attributes:
    labels: int32[N]; of other tasks than classification see `tasks.Examples`.
    domains: int32[N], positions in `domain_names`.
    groups: What each example belongs to, str[N], where the set tells: the object
      that an image shows, who speaks a text; else None.
    domain_names: In the order of the configuration.
    class_names: By label; () where there are no classes.
    inputs: uint8[N, H, W, 3], in memory or read on demand; or the tokens of
      texts [N, T].
    task: What is learned.
    lengths: Tokens of each example, int32[N]; None of images.
    questions: What predicted spans are judged by; else None.
    others: The same examples as other tokenizers have them.
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

  def seen_as(self, others: 'Sequence[Corpus]') -> 'Corpus':
    """Adds the views of other tokenizers.

    Raises:
      ValueError: Spans lie in windows, and each tokenizer has its own.
    """
    if others and self.task.kind == 'span':
      raise ValueError(
        'tiers.weights must have one tokenizer where the task is to find spans.'
      )
    return dataclasses.replace(self, others=tuple(others))

  def view(self, reader: int) -> 'Corpus':
    """Returns the examples as one of the tokenizers has them."""
    return (self, *self.others)[reader]

  def fingerprint(self) -> str:
    """Returns a hash of all that the corpus holds, hex.

    The same data give the same one in every process and on every platform.
    Of images that stay on disk it is their files' bytes that count.
    """
    own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    if isinstance(self.inputs, Stored):
      own['inputs'] = self.inputs.fingerprint()
    own['others'] = [other.fingerprint() for other in self.others]
    return digest.of(own)

  def __len__(self) -> int:
    return len(self.labels)

  def read(self, indices: np.ndarray, length: int = 0) -> Any:
    """Returns the inputs at `indices`.

    Args:
      indices: int[n].
      length: Of texts, how many tokens to return; 0 is all.

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
    kind, metrics = self.task.kind, self.task.metrics
    if self.questions is not None:  # Sets of questions have one domain.
      found = scores.evaluate(kind, metrics, predicted, self.questions)
      return {name: np.array([value]) for name, value in found.items()}
    by_domain = []
    for domain in range(len(self.domain_names)):
      at = self.domains == domain
      part = {name: values[at] for name, values in predicted.items()}
      by_domain.append(scores.evaluate(kind, metrics, part, self.labels[at]))
    return {m: np.array([found[m] for found in by_domain]) for m in metrics}


def load(
  cfg: config.Data, tokenizer: str | os.PathLike | None = None, pad: int = 0
) -> tuple[Corpus, Corpus]:
  """Returns the train and the test split of a prepared data set.

  A set of images under 4 GiB when decoded is decoded once, into memory; of a
  larger one only labels are kept, and each read decodes what it needs in a few
  threads. Texts are tokenised here, once. The sets in `builders.PACKAGED` are
  prepared here if they are missing.

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
  domains = domain_names(cfg)
  made = [sources.make_builder(cfg, domain) for domain in domains]
  entry = text_sets.find(cfg.name, made[0].info.features, cfg.task)
  if entry is None and 'label' not in made[0].info.features:
    raise ValueError(
      f'data.name={cfg.name!r}: has the features'
      f' {", ".join(made[0].info.features)}; must have image and label, or text'
      " and label; without labels, data.task must be 'next_token'"
    )
  _check_kind(cfg, entry, tokenizer)
  test = entry.test if entry else 'test'
  splits = list(made[0].info.splits)
  if splits and test not in splits:
    test = 'validation'
  if entry and tokenizer is not None:
    reader = _TextReader(entry, tokens.load(tokenizer), pad)
    return (
      _load_texts(cfg, made, domains, 'train', reader),
      _load_texts(cfg, made, domains, test, reader),
    )
  return (
    _load_images(cfg, made, domains, 'train'),
    _load_images(cfg, made, domains, test),
  )


def domain_names(cfg: config.Data) -> tuple[str, ...]:
  """Returns the domains of a set, after all checks that read no data.

  Raises:
    ValueError, FileNotFoundError, NotADirectoryError, PermissionError: As
      `load`, which does the same checks.
  """
  from fedjax_tune.data import builders

  sources.check(cfg)
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


def _load_images(
  cfg: config.Data, builders: list[Any], domains: tuple[str, ...], split: str
) -> Corpus:
  import tensorflow_datasets as tfds

  labels, names, where, stored, hashes = [], [], [], [], []
  for i, (builder, domain) in enumerate(zip(builders, domains, strict=True)):
    source = sources.open_split(cfg, builder, split)
    source.decoders = {'image': tfds.decode.SkipDecoding()}
    stored.append(source)
    first = len(where)
    # The images are left where they are: together they may exceed memory.
    kept = [
      (
        record,
        row['label'],
        text.to_str(row.get('name', '')),
        digest.of(row['image']),
      )
      for record, row in enumerate(sources.iterate(cfg, builder, source))
      if _is_kept(cfg, row['label'])
    ]
    for record, label, name, content in _spread(cfg, kept, split):
      hashes.append(content)
      labels.append(label)
      names.append(name)
      where.append((i, record))
    _check_size(cfg, domain, split, len(where) - first)
  where_Nx2 = np.array(where)
  images = Stored(stored, where_Nx2, cfg.image_size, digest.of(hashes))
  in_memory = len(where_Nx2) * cfg.image_size**2 * 3 < _IN_MEMORY_BYTES
  has_names = 'name' in builders[0].info.features
  class_names = _class_names(cfg, builders[0].info.features['label'])
  return Corpus(
    labels=np.array(labels, np.int32),
    domains=where_Nx2[:, 0].astype(np.int32),
    groups=np.array(names) if has_names else None,
    domain_names=domains,
    class_names=class_names,
    inputs=images[np.arange(len(where_Nx2))] if in_memory else images,
    task=Task('classification', len(class_names)),
  )


@dataclasses.dataclass(frozen=True)
class _TextReader:
  """How the rows of a text set become arrays."""

  entry: text_sets.TextSet
  tokenizer: Any
  pad: int


def _load_texts(
  cfg: config.Data,
  builders: list[Any],
  domains: tuple[str, ...],
  split: str,
  reader: _TextReader,
) -> Corpus:
  entry = reader.entry
  has_classes = entry.kind == 'classification'
  rows, where = [], []
  for i, (builder, domain) in enumerate(zip(builders, domains, strict=True)):
    source = sources.open_split(cfg, builder, split)
    kept = [
      row
      for row in sources.iterate(cfg, builder, source)
      if not has_classes or _is_kept(cfg, row[entry.label])
    ]
    kept = _spread(cfg, kept, split)
    _check_size(cfg, domain, split, len(kept))
    rows += kept
    where += [i] * len(kept)
  examples = text.encode(
    rows, entry, reader.tokenizer, max(cfg.lengths), reader.pad
  )
  class_names = ()
  if has_classes:
    class_names = _class_names(cfg, builders[0].info.features[entry.label])
  outputs = len(class_names)
  if entry.kind == 'next_token':
    outputs = reader.tokenizer.get_vocab_size()
  return Corpus(
    labels=examples.labels,
    domains=np.array(where, np.int32)[examples.rows],
    groups=examples.groups,
    domain_names=domains,
    class_names=class_names,
    inputs=Tokens(examples.encoded.ids, examples.encoded.types),
    task=text.make_task(entry, outputs),
    lengths=examples.encoded.lengths,
    questions=examples.questions,
  )


def _spread(cfg: config.Data, rows: list[Any], split: str) -> list[Any]:
  """Returns as many rows as are asked for, evenly spread over all."""
  wanted = 0 if split == 'train' else cfg.test_examples
  if not 0 < wanted < len(rows):
    return rows
  return [rows[i * len(rows) // wanted] for i in range(wanted)]


def _is_kept(cfg: config.Data, label: Any) -> bool:
  return not cfg.num_classes or label < cfg.num_classes


def _check_size(cfg: config.Data, domain: str, split: str, size: int) -> None:
  if not size:
    raise ValueError(
      f'domain {domain!r} of {cfg.name} has no {split} example with'
      f' data.num_classes={cfg.num_classes} (0 keeps all)'
    )


def _class_names(cfg: config.Data, feature: Any) -> tuple[str, ...]:
  names = feature.names or [str(k) for k in range(feature.num_classes)]
  return tuple(names[: cfg.num_classes or None])
