#!/usr/bin/env bash
# Sets up a virtual environment with the test requirements and runs the tests.
#   bash launch/test.sh                  the default suite
#   bash launch/test.sh --all            the slow tests too
#   bash launch/test.sh tests/core -x    any other arguments go to pytest
# `bash launch/portability.sh` runs it as other machines would.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

args=()
for arg in "$@"; do
  case "$arg" in
    --all) args+=(-m '') ;;
    *) args+=("$arg") ;;
  esac
done

setup_env requirements.txt requirements-test.txt
# Compiled programs are cached, so that a second run of the suite spends its time on the tests.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.05}"
# So is bytecode, whatever the environment says: tests start processes that import all of JAX.
export PYTHONDONTWRITEBYTECODE='' PYTHONPYCACHEPREFIX="${PYTHONPYCACHEPREFIX:-$PWD/.pytest_cache/bytecode}"
# One process per core: most of a test's time is compilation, on one thread. A file's tests share
# their fixtures and stay together. tests/order.py orders the files.
cores="$(nproc 2>/dev/null || echo 2)"
workers="${PYTEST_WORKERS:-$((cores < 4 ? cores : 4))}"  # each takes up to 4 GiB of memory
exec "$PYTHON" -m pytest -q -n "$workers" --dist loadfile --no-loadscope-reorder ${args[@]+"${args[@]}"}
