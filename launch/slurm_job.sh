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
# --kill-on-bad-exit: a lost task ends the others, which could only wait for it.
srun --kill-on-bad-exit=1 "$python" -m densegrpo_jax.main --distributed=on --device=cuda "$@" || status=$?
if [ "$status" -eq 75 ]; then
  echo "Stopped and resumable: back into the queue." >&2
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
