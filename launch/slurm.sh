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
  not_empty "$1"
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
if ! [[ "$name" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]]; then die "--name=$name: expected letters, digits, and . _ - between them, as it names the log file too"; fi
# the forms of sbatch: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]], UNLIMITED
if ! [[ "$time" =~ ^([0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}|UNLIMITED|INFINITE)$ ]]; then die "--time=$time: expected HOURS:MINUTES:SECONDS or DAYS-HOURS, as 24:00:00"; fi
for given in "--nodes=$nodes" "--gpus=$gpus"; do
  if ! [[ "$given" =~ =[1-9][0-9]{0,5}$ ]]; then die "$given: expected a whole number from 1 to 999999"; fi
done
need_run "$@"
if [ -z "$print" ]; then need_tool sbatch 'run this on a machine of the cluster, or look at the job with --print'; fi

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
