#!/usr/bin/env bash
# What launch/slurm.sh submits: slurm_job.sh PYTHON MAIN-ARGUMENTS... runs one process per task; a run that was stopped is requeued.
set -euo pipefail
python="$1"
shift
status=0
# --kill-on-bad-exit: a lost task takes the others down; they could only wait for it.
srun --kill-on-bad-exit=1 "$python" -m densegrpo_jax.main --distributed=on --device=cuda "$@" || status=$?
if [ "$status" -eq 75 ]; then
  echo "Stopped and resumable: back into the queue." >&2
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
