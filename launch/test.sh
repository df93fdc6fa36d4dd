#!/usr/bin/env bash
# Sets up a virtual environment with the test requirements and runs the tests.
#   bash launch/test.sh                  the default suite
#   bash launch/test.sh --all            the slow tests too
#   bash launch/test.sh tests/core -x    any other arguments go to pytest
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
exec "$PYTHON" -m pytest -q ${args[@]+"${args[@]}"}
