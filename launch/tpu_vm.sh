#!/usr/bin/env bash
# Runs a command on a TPU VM of Google Cloud, from making it to deleting it.
set -euo pipefail
# shellcheck source=launch/flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

usage() {
  cat <<'END'
launch/tpu_vm.sh [FLAGS] STEP... [-- COMMAND ARGUMENT...]

Takes one or more steps, in the order given, with Google's gcloud:

  create    makes the TPU VM
  copy      copies this working tree there, as git tracks it
  install   makes its .venv and installs the package for TPUs
  run       starts COMMAND in the tree, with its .venv, and follows its log
  log       follows the log of what runs, of the first worker
  stop      asks what runs to end (SIGTERM), as launch.train does after its round
  fetch     copies its folder runs/ to this one, of the first worker
  delete    deletes the TPU VM, with what was not fetched

For example

  export TPU_NAME=fedra TPU_ZONE=us-central1-a TPU_TYPE=v5litepod-8 \
    TPU_VERSION=v2-alpha-tpuv5-lite
  launch/tpu_vm.sh create copy install run -- python -m launch.train \
    --config=experiments/fedra_emoji.py --workdir=runs/fedra --fetch
  launch/tpu_vm.sh fetch delete

Each of several workers runs COMMAND; a launch.train is one run on the chips of all,
and writes on the first. What runs goes on when this script is interrupted, or the
connection breaks.

  --name=NAME, --zone=ZONE       of the TPU VM; or TPU_NAME, TPU_ZONE
  --type=TYPE, --version=V       to create it; or TPU_TYPE, TPU_VERSION
  --project=PROJECT              or TPU_PROJECT; gcloud's own by default
  --spot                         create one that may be preempted, for less
  --dry_run                      show the commands that would run, and run none
END
}

name="${TPU_NAME:-}" zone="${TPU_ZONE:-}" type="${TPU_TYPE:-}"
version="${TPU_VERSION:-}" project="${TPU_PROJECT:-}" spot=''
parse name zone type version project 'spot?' 'dry_run?' -- "$@"
((${#words[@]})) || fail 'a step must be given; see --help.'
need name zone
for step in "${words[@]}"; do
  case "$step" in
    create) need type version ;;
    run) ((${#command[@]})) || fail 'run: the command must follow --.' ;;
    copy | install | log | stop | fetch | delete) ;;
    *) fail "$step is no step; see --help." ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
where=("--zone=$zone")
[[ -z "$project" ]] || where+=("--project=$project")

# gcloud's commands for TPU VMs: tpu VERB ARGUMENT...
tpu() {
  act gcloud compute tpus tpu-vm "$1" "$name" "${where[@]}" "${@:2}"
}

# on WORKERS LINE: has shells there run a line.
on() {
  tpu ssh "--worker=$1" "--command=$2"
}

create() {
  local more=()
  [[ -z "$spot" ]] || more+=(--spot)
  tpu create "--accelerator-type=$type" "--version=$version" \
    ${more[@]+"${more[@]}"}
}

copy() {
  local tree left archive=.tpu_vm.tar.gz
  # A commit of what is changed but not committed; empty where nothing is.
  tree="$(git stash create)" || fail 'copy: git stash create failed here.'
  act git archive --format=tar.gz "--output=$archive" "${tree:-HEAD}"
  act gcloud compute tpus tpu-vm scp "$archive" "$name:fedjax_tune.tar.gz" \
    "${where[@]}" --worker=all
  act rm -f "$archive"
  left="$(git ls-files --others --exclude-standard | head -n 5 | paste -sd ' ')"
  [[ -z "$left" ]] || echo "copy: git add what is to come along: $left" >&2
  on all 'mkdir -p fedjax_tune && tar -xzf fedjax_tune.tar.gz -C fedjax_tune'
}

install_there() {
  # Images that come with Python 3.10 have 3.11 among their packages.
  on all 'cd fedjax_tune &&
{ python3.11 --version || python3.12 --version || python3.13 --version ||
{ sudo apt-get update && sudo apt-get install --yes python3.11-venv; }; } &&
bash -c "set -euo pipefail; . launch/venv.sh;
install tpu requirements.txt pyproject.toml -- -r requirements.txt --editable .[tpu]"'
}

run() {
  local line trains='[. ]launch[. ]train |fedjax-tune train '
  if [[ " ${command[*]} " =~ $trains ]]; then
    [[ " ${command[*]} " == *' --distributed'[\ =]* ]] || command+=(--distributed)
  fi
  line="export PATH=\"\$PWD/.venv/bin:\$PATH\"; $(quoted "${command[@]}")"
  line+='; echo $? >run.status'
  on all "cd fedjax_tune && rm -f run.status && \
{ nohup bash -c $(quoted "$line") >run.log 2>&1 </dev/null & echo \$! >run.pid; }"
  follow
}

follow() {
  # Ends with the command's status.
  # shellcheck disable=SC2016
  on 0 'cd fedjax_tune && tail -n +1 -F --pid="$(cat run.pid)" run.log &&
exit "$(cat run.status)"'
}

stop() {
  # shellcheck disable=SC2016
  on all 'pkill -TERM -P "$(cat fedjax_tune/run.pid)"'
}

fetch() {
  act gcloud compute tpus tpu-vm scp --recurse "$name:fedjax_tune/runs" . \
    "${where[@]}" --worker=0
}

for step in "${words[@]}"; do
  case "$step" in
    install) install_there ;;
    log) follow ;;
    delete) tpu delete --quiet ;;
    *) "$step" ;;
  esac
done
