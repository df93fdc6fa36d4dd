#!/usr/bin/env bash
# The job of launch/slurm.sh: slurm_job.sh PYTHON MAIN-ARGUMENTS... runs one process per task and
# requeues a stopped run.
set -euo pipefail
if [ "$#" -eq 0 ]; then
  echo "usage: slurm_job.sh PYTHON MAIN-ARGUMENTS... (launch/slurm.sh submits it)" >&2
  exit 2
fi
python="$1"
shift
status=0
# Tasks that stop resumably leave with 75 one after another: srun must not kill the last one for it.
# A lost task ends the others within a minute all the same (--heartbeat).
# srun tells the highest status of its tasks: after an error of one of them none ends with 75.
srun --kill-on-bad-exit=0 --wait=0 "$python" -m densegrpo_jax.main --distributed=on --device=cuda "$@" || status=$?
if [ "$status" -eq 75 ]; then
  echo "Stopped and resumable: back into the queue." >&2
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
