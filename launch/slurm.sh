#!/usr/bin/env bash
# Trains on a Slurm cluster with GPUs: one process per GPU box or per GPU, on the given number of
# boxes; the job is requeued after a preemption.
#   bash launch/slurm.sh --name=flux --nodes=2 --gpus=8 [--time=24:00:00] [--partition=P]
#     [--account=A] [--sbatch=OPTION]... -- MAIN ARGUMENTS
# The repository and the work directory must be on a file system that all nodes share. Everything
# after -- goes to densegrpo_jax.main.
# --print shows the job instead of submitting it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

name='' nodes=1 gpus=8 time=24:00:00 print=''
options=()
while [ "$#" -gt 0 ]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --nodes=*) nodes="${1#*=}" ;;
    --gpus=*) gpus="${1#*=}" ;;
    --time=*) time="${1#*=}" ;;
    --partition=* | --account=*) options+=("$1") ;;
    --sbatch=*) options+=("${1#*=}") ;;
    --print) print=yes ;;
    --) shift; break ;;
    *) die "unknown option $1 (arguments of densegrpo_jax.main come after --)" ;;
  esac
  shift
done
if [ -z "$name" ]; then die "--name=NAME is missing: the job's name, and that of its log in logs/"; fi
for given in "--nodes=$nodes" "--gpus=$gpus"; do
  if ! [[ "$given" =~ =[1-9][0-9]*$ ]]; then die "$given: expected a whole number of at least 1"; fi
done
if [ "$#" -eq 0 ]; then die "nothing to train: give the arguments of densegrpo_jax.main after --, at least --config and --workdir"; fi

# One task per box drives all of its GPUs. Slurm sends TERM to the step itself two minutes before
# the time is up. The interpreter is that of setup_env: --print needs only its name.
job=(
  sbatch --parsable --job-name="$name" --nodes="$nodes" --ntasks-per-node=1 --gpus-per-node="$gpus" --exclusive --time="$time"
  --requeue --open-mode=append --signal=TERM@120 --output="logs/$name.log" ${options[@]+"${options[@]}"}
  launch/slurm_job.sh "${VENV:-.venv}/bin/python" "$@"
)
if [ -n "$print" ]; then
  printf '%q ' "${job[@]}"
  printf '\n'
  exit
fi
setup_env requirements-cuda.txt
mkdir -p logs
id="$("${job[@]}")"
say "Submitted job $id; it writes to logs/$name.log. Cancel: scancel $id. State: squeue -j $id"
