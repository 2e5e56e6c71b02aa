"""A data set as the engine sees it: labels, domains, and images by index.

Every set is read through `tfds.data_source`, so that whatever is prepared in
the array_record format works, without TensorFlow. A set with domains is one
TFDS config a domain.
"""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import io
import os
import pathlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from fedjax_tune import config
from fedjax_tune.data import fetch

# Sets that take less than this when decoded are decoded once, into memory.
_IN_MEMORY_BYTES = 4 << 30
_THREADS = 8


@runtime_checkable
class Images(Protocol):
  """Images by index: an array [N, H, W, 3], or a reader of stored files."""

  def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Corpus:
  """One split of a data set.

  Attributes:
    labels: int32[N].
    domains: int32[N], positions in `domain_names`.
    objects: What each image shows, str[N], where the set tells; else None.
    domain_names: In the order of the configuration.
    class_names: By label.
    images: uint8[N, H, W, 3], in memory or read on demand.
  """

  labels: np.ndarray
  domains: np.ndarray
  objects: np.ndarray | None
  domain_names: tuple[str, ...]
  class_names: tuple[str, ...]
  images: Images

  def __len__(self) -> int:
    return len(self.labels)

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns the images at `indices`, uint8[n, H, W, 3]."""
    return self.images[np.asarray(indices, np.int64)]


def load(cfg: config.Data) -> tuple[Corpus, Corpus]:
  """Returns the train and the test split of a prepared data set.

  A set under 4 GiB when decoded is decoded once, into memory; of a larger one
  only labels are kept, and each read decodes what it needs in a few threads.
  Images of another size are resized bicubically (Pillow, which smooths when it
  shrinks). emoji_styles is prepared here if it is missing.

  Raises:
    ValueError: An unknown set or domain, a domain that is empty, a set without
      images and labels, corrupt files, or an impossible number.
    FileNotFoundError: The folder is missing, or the set is not prepared; the
      message has the command that prepares it.
    NotADirectoryError, PermissionError: The folder can't be read.
  """
  domains = domain_names(cfg)
  made = [_make_builder(cfg, _folder(cfg), domain) for domain in domains]
  splits = list(made[0].info.splits)
  test = 'validation' if splits and 'test' not in splits else 'test'
  return (
    _load_split(cfg, made, domains, 'train'),
    _load_split(cfg, made, domains, test),
  )


def domain_names(cfg: config.Data) -> tuple[str, ...]:
  """Returns the domains of a set, after all checks that read no data.

  Raises:
    ValueError, FileNotFoundError, NotADirectoryError, PermissionError: As
      `load`, which does the same checks.
  """
  from fedjax_tune.data import builders

  _check(cfg)
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


def _folder(cfg: config.Data) -> pathlib.Path:
  if cfg.data_dir:
    return pathlib.Path(cfg.data_dir).expanduser()
  return fetch.default_data_dir()


def _check(cfg: config.Data) -> None:
  if cfg.image_size < 1:
    raise ValueError(f'data.image_size={cfg.image_size}: must be at least 1')
  if cfg.num_classes < 0:
    raise ValueError(
      f'data.num_classes={cfg.num_classes}: must not be negative'
    )
  folder = _folder(cfg)
  if not folder.exists():
    if not cfg.data_dir:
      return  # The cache, which is made when there is something to keep.
    raise FileNotFoundError(
      f'data.data_dir={cfg.data_dir!r} does not exist.{_how_to(cfg, folder)}'
    )
  place = cfg.data_dir or str(folder)
  if not folder.is_dir():
    raise NotADirectoryError(f'data.data_dir={place!r} is not a folder')
  if not os.access(folder, os.R_OK | os.X_OK):
    raise PermissionError(f'data.data_dir={place!r} is not readable')


def _how_to(cfg: config.Data, folder: pathlib.Path) -> str:
  size = f' --image_size={cfg.image_size}' * (cfg.name == 'emoji_styles')
  source = ' --source=FOLDER' * (cfg.name == 'nico')
  return (
    f' Prepare it with `python -m launch.prepare --dataset={cfg.name}'
    f' --data_dir={folder}{size}{source}`.'
  )


def _make_builder(cfg: config.Data, folder: pathlib.Path, domain: str) -> Any:
  """Returns the TFDS builder of one domain, prepared here where that is easy.

  That is emoji_styles, and nico where the data folder is that of NICO++.
  """
  from fedjax_tune.data import builders, nico

  builder = builders.make_builder(cfg.name, domain, cfg.image_size, folder)
  if cfg.name == 'emoji_styles':
    builders.build(builder)
  if cfg.name == 'nico' and (folder / nico.LISTS).is_dir():
    builders.build(builder, source=folder)
  return builder


def _load_split(
  cfg: config.Data, builders: list[Any], domains: tuple[str, ...], split: str
) -> Corpus:
  labels, names, where, sources = [], [], [], []
  for i, (builder, domain) in enumerate(zip(builders, domains, strict=True)):
    source, label, name = _open(cfg, builder, split)
    kept = np.flatnonzero(label < (cfg.num_classes or np.inf))
    if not kept.size:
      raise ValueError(
        f'domain {domain!r} of {cfg.name} has no {split} example with'
        f' data.num_classes={cfg.num_classes} (0 keeps all)'
      )
    labels.append(label[kept])
    names.append(name[kept])
    where.append(np.stack([np.full_like(kept, i), kept], axis=1))
    sources.append(source)
  where_Nx2 = np.concatenate(where)
  images = _Stored(sources, where_Nx2, cfg.image_size)
  in_memory = len(where_Nx2) * cfg.image_size**2 * 3 < _IN_MEMORY_BYTES
  feature = builders[0].info.features['label']
  class_names = feature.names or [str(k) for k in range(feature.num_classes)]
  has_names = 'name' in builders[0].info.features
  return Corpus(
    labels=np.concatenate(labels).astype(np.int32),
    domains=where_Nx2[:, 0].astype(np.int32),
    objects=np.concatenate(names) if has_names else None,
    domain_names=domains,
    class_names=tuple(class_names[: cfg.num_classes or None]),
    images=images[np.arange(len(where_Nx2))] if in_memory else images,
  )


def _open(
  cfg: config.Data, builder: Any, split: str
) -> tuple[Sequence, np.ndarray, np.ndarray]:
  """Returns the source of a split, and its labels and names."""
  import tensorflow_datasets as tfds

  try:
    source = builder.as_data_source(split)
  except (KeyError, NotImplementedError, OSError, ValueError) as error:
    raise FileNotFoundError(
      f'{builder.info.full_name} is not prepared, or not as array_record, in'
      f' {builder.data_dir}.{_how_to(cfg, _folder(cfg))}'
    ) from error
  source.decoders = {'image': tfds.decode.SkipDecoding()}
  try:
    # The images are left where they are: together they may exceed memory.
    rows = [
      (row['label'], row.get('name', b''))
      for row in (source[i] for i in range(len(source)))
    ]
  except RuntimeError as error:  # Of the record reader.
    raise ValueError(
      f'{builder.data_dir} is incomplete or corrupt ({error}). Delete that'
      f' folder.{_how_to(cfg, _folder(cfg))}'
    ) from error
  labels, names = zip(*rows, strict=True) if rows else ((), ())
  names = [n.decode() if isinstance(n, bytes) else n for n in names]
  return source, np.array(labels, int), np.array(names)


@dataclasses.dataclass(frozen=True)
class _Stored:
  """Images on disk: row i is record `where[i, 1]` of `sources[where[i, 0]]`."""

  sources: list[Sequence]
  where: np.ndarray
  size: int

  def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
    images = np.empty((len(indices), self.size, self.size, 3), np.uint8)

    def read(row: int) -> None:
      source, record = self.where[indices[row]]
      image = self.sources[source][record]['image']
      images[row] = _decode(image, self.size)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for _ in pool.map(read, range(len(indices))):
        pass
    return images


def _decode(image: bytes | np.ndarray, size: int) -> np.ndarray:
  """Makes a file's bytes, or pixels [h, w, 1 or 3], RGB of `size` pixels."""
  if isinstance(image, bytes):
    picture = Image.open(io.BytesIO(image))
  else:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  picture = picture.convert('RGB')
  if picture.size != (size, size):
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
  return np.asarray(picture)
