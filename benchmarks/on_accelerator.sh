#!/usr/bin/env bash
# For a person with ten minutes, or an hour, of a GPU or TPU: checks and measures this package on it,
# the most valuable first, and prints a table and one line for docs/results/accelerators.md.
#   bash benchmarks/on_accelerator.sh --seconds=600
#   bash benchmarks/on_accelerator.sh --seconds=3600 --parts=b,c
#   bash benchmarks/on_accelerator.sh --size=small       whole, on any CPU
# The same command, run again, does what is missing. --help lists the parts. The virtual environment
# is set up first and does not count; torch is compared with if it is installed there
# (requirements-test.txt).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

requirements='requirements.txt'
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  requirements='requirements-cuda.txt'
elif compgen -G '/dev/accel*' >/dev/null; then
  requirements='requirements-tpu.txt'
fi
setup_env "$requirements"
exec "$PYTHON" -m benchmarks.accelerator "$@"
