#!/usr/bin/env bash
# Trains on one machine of any kind: a laptop, a GPU box, one TPU VM. Sets up the virtual
# environment first. The same command, run again, continues.
#   bash launch/local.sh --config=configs/tiny_ocr.py --workdir=runs/tiny                       CPU
#   bash launch/local.sh --device=cuda --config=configs/flux_ocr.py:devices=8 --workdir=...      NVIDIA GPUs (CUDA 13)
#   bash launch/local.sh --device=tpu --config=configs/flux_ocr.py:devices=4 --workdir=...       a TPU VM
# Paths and modules are relative to the repository, wherever this is called from; your own modules
# are on PYTHONPATH or installed in .venv. All other arguments go to densegrpo_jax.main. On SIGTERM it
# saves and exits with 75.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

device=cpu
args=()
previous=
for arg in "$@"; do
  case "$previous" in
    --device | -device) device="$arg" previous='' && continue ;;
  esac
  case "$arg" in
    --device=* | -device=*) device="${arg#*=}" ;;
    --device | -device) ;;
    *) args+=("$arg") ;;
  esac
  previous="$arg"
done
case "$device" in
  cpu)
    requirements='requirements.txt'
    export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"  # see launch/demo.sh
    ;;
  cuda)
    requirements='requirements-cuda.txt'
    ;;
  tpu) requirements='requirements-tpu.txt' ;;
  *) die "--device=$device is not known; use cpu, cuda or tpu." ;;
esac
setup_env "$requirements"
exec bash launch/supervise.sh "$PYTHON" -m densegrpo_jax.main --device="$device" ${args[@]+"${args[@]}"}
