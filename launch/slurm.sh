#!/usr/bin/env bash
# Submits a command as a Slurm job that goes on where its time ran out.
set -euo pipefail
# shellcheck source=launch/flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

usage() {
  cat <<'END'
launch/slurm.sh [FLAGS] -- COMMAND ARGUMENT...

Submits COMMAND, to run in this folder with its .venv, and follows its log. For
example

  launch/slurm.sh --partition=gpu --time=4:00:00 --gpus=1 -- python -m \
    launch.train --config=experiments/fedra_emoji.py --workdir=runs/fedra

Shortly before its time is over the command is asked to stop (SIGTERM). If it
then says that it was interrupted (status 4), its job is queued again, where
launch.train gets --resume. A preempted job is queued again by Slurm. Nodes that
differ need --resume --inexact from the beginning.

  --partition=P   where to run; Slurm's default if it is not given
  --time=T        the longest that it runs at a time, as sbatch reads it
  --gpus=N        GPUs of each node, or TYPE:N; none if it is not given
  --nodes=N       nodes, 1 by default; each runs COMMAND. A launch.train is one
                  run on all of them
  --cpus=N        CPU cores of each node, 8 by default
  --mem=M         memory of each node, as sbatch reads it
  --name=NAME     of the job, 'fedjax_tune' by default
  --logs=FOLDER   of its log, 'runs/slurm' by default
  --grace=S       seconds before its end at which it is asked to stop, 300 by
                  default: more than a round takes
  --detach        do not follow the log
  --dry_run       show the command that would run, and run nothing
END
}

partition='' time='' gpus='' nodes=1 cpus=8 mem='' name=fedjax_tune
logs=runs/slurm grace=300 detach=''
parse partition time gpus nodes cpus mem name logs grace 'detach?' 'dry_run?' \
  -- "$@"
((${#words[@]} == 0)) || fail "${words[0]}: the command must follow --."
((${#command[@]})) || fail 'the command to run must follow --; see --help.'
need_number nodes cpus grace
[[ "${gpus##*:}" =~ ^[0-9]*$ ]] || fail "--gpus=$gpus must be N or TYPE:N."
((nodes > 0)) || fail "--nodes=$nodes must be at least 1."
((cpus > 0)) || fail "--cpus=$cpus must be at least 1."

# Else the job would stop after each round, and be queued again.
need_more_than_grace() {
  local days=0 rest="$time" parts total
  [[ "$time" =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] || return 0
  if [[ "$time" == *-* ]]; then # D-H, D-H:MM, D-H:MM:SS
    days="${time%-*}" rest="${time#*-}:0:0"
  elif [[ "$time" != *:*:* ]]; then # MINUTES, MINUTES:SECONDS
    rest="0:$time:0"
  fi
  IFS=: read -r -a parts <<<"$rest"
  total=$(((10#$days * 24 + 10#${parts[0]}) * 60 + 10#${parts[1]}))
  total=$((total * 60 + 10#${parts[2]}))
  # 0 is no limit.
  ((total == 0 || total > grace)) ||
    fail "--time=$time must be more than --grace=$grace seconds."
}
need_more_than_grace

cd "$(dirname "${BASH_SOURCE[0]}")/.."
submit=(
  sbatch --parsable "--job-name=$name" "--chdir=$PWD"
  "--nodes=$nodes" --ntasks-per-node=1 "--cpus-per-task=$cpus"
  # B: to the script of the job, which asks the command.
  --requeue "--signal=B:USR1@$grace"
  --open-mode=append "--output=$logs/$name-%j.log"
)
[[ -z "$partition" ]] || submit+=("--partition=$partition")
[[ -z "$time" ]] || submit+=("--time=$time")
[[ -z "$gpus" ]] || submit+=("--gpus-per-node=$gpus")
[[ -z "$mem" ]] || submit+=("--mem=$mem")
submit+=(launch/slurm_job.sh "${command[@]}")

act mkdir -p "$logs"
if [[ -n "$dry_run" ]]; then
  act "${submit[@]}"
  exit
fi
job="$("${submit[@]}")" || fail 'sbatch refused; its message is above.'
job="${job%%;*}" # Of several clusters, its name follows.
log="$logs/$name-$job.log"
echo "Job $job writes to $log; scancel $job ends it."
[[ -z "$detach" ]] || exit 0

lasts() {
  local said
  if said="$(squeue --noheader --jobs="$job" --format=%T 2>&1)"; then
    [[ -n "$said" ]]
  else # A controller may be too busy to answer.
    [[ "$said" != *'Invalid job id'* ]]
  fi
}

# Slurm's books are behind its queue.
lags() {
  [[ "$state" == @(PENDING|RUNNING|COMPLETING|REQUEUED|'') ]]
}

while lasts; do sleep 5; done &
waits=$!
trap 'kill "$waits" 2>/dev/null; echo "Job $job goes on."; exit 130' INT
touch "$log"
tail -n +1 -F --pid="$waits" "$log"
for _ in {1..12}; do
  state="$(sacct --noheader --allocations --jobs="$job" --format=State%20)" ||
    fail "sacct does not say how job $job ended; $log may."
  read -r state _ <<<"$state" || true
  lags || break
  sleep 5
done
echo "Job $job: ${state:-no state yet}"
[[ "$state" == COMPLETED ]]
