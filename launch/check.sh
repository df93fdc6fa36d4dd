#!/usr/bin/env bash
# Sets up the virtual environment and runs all checks except the tests: about half a minute.
#   bash launch/check.sh          reports errors
#   bash launch/check.sh --fix    repairs what ruff can repair (layout, imports), reports the rest
# All checks run, even if one fails. pyproject.toml configures them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

fix=
case "${1:-}" in
  '') ;;
  --fix) fix=yes ;;
  *) die "unknown option $1: bash launch/check.sh [--fix]" ;;
esac

setup_env requirements.txt requirements-check.txt
failed=()
check() { # check NAME COMMAND...
  local name="$1"
  shift
  if "$@" >&2; then say "$name: ok"; else failed+=("$name"); fi
}
if [ -n "$fix" ]; then
  "$PYTHON" -m ruff check --quiet --fix-only . >&2
  "$PYTHON" -m ruff format --quiet . >&2
fi
check 'ruff check' "$PYTHON" -m ruff check --quiet .
check 'ruff format' "$PYTHON" -m ruff format --quiet --diff .
check 'mypy' "$PYTHON" -m mypy --no-error-summary
check 'shellcheck' "${PYTHON%/*}/shellcheck" -x launch/*.sh benchmarks/*.sh .ci/run
# The site of docs/: broken links and pages without a place in it are errors. With --quiet MkDocs
# would count no warnings.
export NO_MKDOCS_2_WARNING=1
check 'mkdocs' "$PYTHON" -m mkdocs build --strict
if [ "${#failed[@]}" -gt 0 ]; then die "$(printf '%s, ' "${failed[@]}" | sed 's/, $//') failed; the lines above say where"; fi
