#!/usr/bin/env bash
# Runs the tests as other machines would: other instruction sets, other numbers of threads, a busy
# machine. No result may depend on a CPU's last bit or on speed. For every setting the whole suite
# takes as long as `bash launch/test.sh`.
#   bash launch/portability.sh                  the default suite, once per setting
#   bash launch/portability.sh --sensitive      of each setting the files that it can change
#   bash launch/portability.sh tests/core -x    any arguments go to launch/test.sh, so to pytest
#   SETTINGS="mkl-avx2 busy" bash launch/portability.sh   only these settings
# Exit status: 0 if all passed, else 1. .pytest_cache/portability holds the output of each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

cores="$(nproc 2>/dev/null || echo 2)" # before OMP_NUM_THREADS, which nproc obeys
workers="${PYTEST_WORKERS:-$((cores < 4 ? cores : 4))}"
cache="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/jax}"
logs="$PWD/.pytest_cache/portability"
all=(aten-default mkl-avx2 xla-avx2 xla-sse4 numpy-baseline one-thread two-threads busy)

# environment_of SETTING prints its variables, one per line.
environment_of() {
  case "$1" in
    aten-default) echo ATEN_CPU_CAPABILITY=default ;; # torch without AVX
    mkl-avx2) echo MKL_ENABLE_INSTRUCTIONS=AVX2 ;;    # torch's exp and products without AVX-512
    xla-avx2) echo XLA_FLAGS=--xla_cpu_max_isa=AVX2 ;;
    xla-sse4) echo XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 ;; # a different program on every machine
    numpy-baseline) echo "NPY_DISABLE_CPU_FEATURES=$("$PYTHON" -c "$beyond_baseline")" ;;
    one-thread) threads 1 ;;
    two-threads) threads 2 ;;
    busy) ;;
  esac
}

# sensitive_of SETTING prints the test files whose numbers or order of events it can change.
sensitive_of() {
  case "$1" in
    # the oracles, which are torch's
    aten-default | mkl-avx2)
      echo tests/networks tests/pipelines tests/core/test_{schedules,diffusion_path}.py \
        tests/rewards/test_{clip_rewards,geneval_detector}.py
      ;;
    # what compares arrays that XLA or NumPy compute
    xla-avx2 | xla-sse4) echo tests/core tests/training/test_{learner,loss_updates,meshes}.py ;;
    numpy-baseline) echo tests/core tests/data tests/rewards/test_{ocr,jpeg_and_composite}.py ;;
    # threads, signals, timeouts
    one-thread | two-threads) echo tests/training/test_learner.py tests/rewards/test_scorer.py ;;
    busy) echo tests/rewards/test_{scorer,remote,reward_service,connection}.py tests/runtime/test_stop.py ;;
  esac
}

# The features of this CPU that NumPy uses beyond its baseline.
beyond_baseline="
import numpy
print(' '.join(numpy.show_config(mode='dicts')['SIMD Extensions'].get('found', [])))"

threads() { # NPROC is XLA's
  printf "%s=$1\n" OMP_NUM_THREADS OMP_THREAD_LIMIT MKL_NUM_THREADS OPENBLAS_NUM_THREADS NPROC
}

busy=()
idle() {
  if [ "${#busy[@]}" -gt 0 ]; then kill "${busy[@]}" 2>/dev/null || true; fi
  busy=()
}
trap idle EXIT

sensitive=''
if [ "${1:-}" = --sensitive ]; then
  sensitive=yes
  shift
fi
read -r -a chosen <<<"${SETTINGS:-${all[*]}}"
for setting in "${chosen[@]}"; do
  if [[ " ${all[*]} " != *" $setting "* ]]; then
    die "SETTINGS=$setting is no setting; choose among: ${all[*]}"
  fi
done
setup_env requirements.txt requirements-test.txt
mkdir -p "$logs"
failed=()
for setting in "${chosen[@]}"; do
  mapfile -t environment < <(environment_of "$setting")
  if [ "$setting" = busy ]; then
    for ((i = 0; i < cores; i++)); do
      while :; do :; done &
      busy+=($!)
    done
  fi
  say "== $setting: ${environment[*]:-$cores busy loops}"
  # Compiled programs are kept apart: else a program of another setting would run.
  environment+=("JAX_COMPILATION_CACHE_DIR=$cache-$setting" "PYTEST_WORKERS=$workers")
  files=()
  if [ -n "$sensitive" ]; then read -r -a files < <(sensitive_of "$setting"); fi
  if ! env "${environment[@]}" bash launch/test.sh ${files[@]+"${files[@]}"} "$@" 2>&1 | tee "$logs/$setting.log"; then
    failed+=("$setting")
  fi
  idle
done
for setting in "${chosen[@]}"; do say "$setting: $(tail -n 1 "$logs/$setting.log")"; done
if [ "${#failed[@]}" -gt 0 ]; then die "not all tests passed under: ${failed[*]}"; fi
