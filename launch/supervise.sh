#!/usr/bin/env bash
# Runs a command until it has finished: bash launch/supervise.sh COMMAND...
#   exit 0   it has finished
#   exit 75  it was stopped and can be resumed: starts it again, unless this script was stopped too
#   other    it failed: so does this script, at once
# When restarted, densegrpo_jax.main continues from its last checkpoint. TERM, INT or HUP ends the
# loop and is passed on as USR1. It is not passed on unchanged, because Ctrl-C and a service manager
# also send their signal to the command, and a second one would end it in the middle of its save.
# USR1 ends a program without a handler for it (another program, or Python before it installs the
# handler); that counts as a stop: 75.
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
