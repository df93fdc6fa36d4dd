#!/usr/bin/env bash
# Runs a command until it has finished: bash launch/supervise.sh COMMAND...
#   exit 0   it has finished
#   exit 75  it was asked to stop and can be resumed: started again, unless this script was asked to stop too
#   other    it failed: so does this script, at once
# Started again, densegrpo_jax.main continues from its last checkpoint. TERM, INT or HUP is handed on as USR1 and ends the loop. Not as itself:
# Ctrl-C and a service manager send theirs to the command too, and the second one would end it in the middle of its save. What does not know
# USR1 (another program, or Python before its handler is there) is ended by it; that counts as asked to stop: 75.
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
  interrupted=yes
  if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null || true; fi
}
trap stop TERM INT HUP
while [ -z "$stopped" ]; do
  "$@" &
  child=$!
  if [ -n "$stopped" ]; then stop; fi # the signal came before the child had a name
  # A signal ends `wait`, not the child: it is saving its last update.
  interrupted=yes
  while [ -n "$interrupted" ]; do
    interrupted=''
    status=0
    wait "$child" || status=$?
  done
  if [ -n "$stopped" ] && [ "$status" -eq "$((128 + $(kill -l USR1)))" ]; then status=75; fi
  if [ "$status" -ne 75 ]; then exit "$status"; fi
  if [ -z "$stopped" ]; then say "Stopped and resumable: starting again."; fi
done
exit 75
