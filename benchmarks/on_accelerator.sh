#!/usr/bin/env bash
# For a person with ten minutes, or an hour, of a GPU or TPU: checks and measures this package on it,
# the most valuable first, and prints a table and one line for docs/results/accelerators.md.
#   bash benchmarks/on_accelerator.sh --seconds=500
#   bash benchmarks/on_accelerator.sh --seconds=3600 --parts=b,c
#   bash benchmarks/on_accelerator.sh --size=small       whole, on any CPU
#   PYTHON=python3 bash benchmarks/on_accelerator.sh --no-setup
# The same command, run again, does what is missing. --help lists the parts. The virtual environment
# is set up first and does not count; torch is compared with if it is installed there
# (requirements-test.txt). With --no-setup nothing is installed: PYTHON is used as it is, also without
# network, and parts whose packages are missing say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

setup=yes args=()
for arg in "$@"; do
  if [ "$arg" = '--no-setup' ]; then setup=''; else args+=("$arg"); fi
done
if [ -z "$setup" ]; then
  exec "${PYTHON:-python3}" -m benchmarks.accelerator ${args[@]+"${args[@]}"}
fi
requirements='requirements.txt'
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  requirements='requirements-cuda.txt'
elif compgen -G '/dev/accel*' >/dev/null; then
  requirements='requirements-tpu.txt'
fi
setup_env "$requirements"
exec "$PYTHON" -m benchmarks.accelerator ${args[@]+"${args[@]}"}
