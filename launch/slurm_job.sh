#!/usr/bin/env bash
# What a job of launch/slurm.sh runs: the command, and, if its time ran out
# before it was done, the job once more.
set -uo pipefail
export PATH="$PWD/.venv/bin:$PATH"
# srun does not take it from the job.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

command=("$@")
trains='[. ]launch[. ]train |fedjax-tune train '
# add FLAG: gives it to a launch.train that lacks it.
add() {
  [[ " ${command[*]} " =~ $trains ]] || return 0
  [[ " ${command[*]} " == *" $1"[\ =]* ]] || command+=("$1")
}
((${SLURM_RESTART_COUNT:-0} == 0)) || add --resume
((${SLURM_NNODES:-1} == 1)) || add --distributed
echo "$(date) on $(hostname): ${command[*]}"

asked='' over=''
# srun would kill the command if it were sent a SIGTERM itself.
# shellcheck disable=SC2329
ask() {
  asked=yes
  scancel --signal=TERM "$SLURM_JOB_ID.0"
}
trap 'over=yes; ask' USR1
trap ask TERM

srun "${command[@]}" &
child=$!
wait "$child"
status=$?
while [[ -n "$asked" ]]; do # A signal ended the waiting, not the command.
  asked=''
  wait "$child"
  status=$?
done

if [[ -n "$over" && "$status" == 4 ]]; then
  echo "Job $SLURM_JOB_ID is queued again, to go on."
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
