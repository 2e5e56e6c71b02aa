# shellcheck shell=bash disable=SC2034
# Sourced by scripts that start commands on other machines: their flags.

fail() {
  echo "error: $*" >&2
  exit 2
}

# Joins words so that a shell reads them back as they are.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command; with --dry_run shows it instead.
act() {
  if [[ -n "$dry_run" ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# parse NAME... -- ARGUMENT...
# Sets a variable for each --NAME=VALUE, to 'yes' for a bare --NAME where NAME is
# given as NAME?; `words` to what is no flag, `command` to what follows `--`.
parse() {
  local known=' ' flag
  while [[ "$1" != -- ]]; do
    known+="$1 "
    shift
  done
  shift
  dry_run='' words=() command=()
  while (($#)); do
    flag="${1#--}"
    flag="${flag%%=*}"
    case "$1" in
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        command=("$@")
        return
        ;;
      --*=*)
        [[ "$known" != *" $flag? "* ]] || fail "--$flag takes no value."
        [[ "$known" == *" $flag "* ]] || fail "--$flag is no flag; see --help."
        [[ -n "${1#*=}" ]] || fail "--$flag must not be empty."
        printf -v "$flag" '%s' "${1#*=}"
        ;;
      --*)
        [[ "$known" != *" $flag "* ]] || fail "--$flag needs a value: --$flag=VALUE."
        [[ "$known" == *" $flag? "* ]] || fail "--$flag is no flag; see --help."
        printf -v "$flag" yes
        ;;
      *) words+=("$1") ;;
    esac
    shift
  done
}

# Refuses a flag without a value.
need() {
  local flag
  for flag in "$@"; do
    [[ -n "${!flag}" ]] || fail "--$flag must be given; see --help."
  done
}

# Refuses a flag whose value, if it has one, is no whole number.
need_number() {
  local flag
  for flag in "$@"; do
    [[ "${!flag}" =~ ^[0-9]*$ ]] || fail "--$flag=${!flag} must be a whole number."
  done
}
