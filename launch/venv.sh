# Sourced by the scripts beside it: goes to the repository's root, and makes
# .venv there where it is missing or broken. After it, run `$python` and
# `install NAME FILE... -- PIP_ARGUMENT...`.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python

fail() {
  echo "error: $*" >&2
  exit 1
}

is_served() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    is_served "$PYTHON" || fail "PYTHON=$PYTHON must be a Python 3.11 or newer."
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if is_served "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail 'found no Python 3.11 or newer. Install one, or name one: PYTHON=/its/path.'
}

# Does nothing where the same files were installed before.
install() {
  local stamp=".venv/installed-$1" files=() state
  shift
  while [[ "$1" != -- ]]; do
    files+=("$1")
    shift
  done
  shift
  state="$(cat "${files[@]}" | "$python" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
  if [[ ! -f "$stamp" || "$(<"$stamp")" != "$state" ]]; then
    echo "Installing ${files[*]} into .venv; this may take a few minutes."
    "$python" -m pip install --quiet --no-input --disable-pip-version-check \
      "$@" || fail 'pip could not install; its message is above. Is there a network?'
    echo "$state" >"$stamp"
  fi
}

if ! is_served "$python" || ! "$python" -m pip --version >/dev/null 2>&1; then
  found="$(find_python)"
  echo "Making .venv with $("$found" --version)."
  "$found" -m venv --clear .venv || fail \
    "$found cannot make a virtual environment (on Debian: apt install python3-venv)."
fi
