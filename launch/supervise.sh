#!/usr/bin/env bash
# Runs a command until it has finished: bash launch/supervise.sh COMMAND...
#   exit 0   it has finished
#   exit 75  it was asked to stop and can be resumed: started again, unless this script was asked to stop too
#   other    it failed: so does this script, at once
# Started again, densegrpo_jax.main continues from its last checkpoint. A stop signal is handed on and ends the loop.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

if [ "$#" -eq 0 ]; then
  say "usage: bash launch/supervise.sh COMMAND..."
  exit 2
fi
stopped=''
child=''
# shellcheck disable=SC2317  # called by the trap
stop() {
  stopped=yes
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop TERM INT
while [ -z "$stopped" ]; do
  "$@" &
  child=$!
  if [ -n "$stopped" ]; then stop; fi # the signal came before the child had a name
  status=0
  wait "$child" || status=$?
  # A signal ends `wait`, not the child: it is saving its last update.
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  if [ "$status" -ne 75 ]; then exit "$status"; fi
  if [ -z "$stopped" ]; then say "Stopped and resumable: starting again."; fi
done
exit 75
