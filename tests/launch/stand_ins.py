"""Stand-ins for gcloud, sbatch, srun, scontrol and others that record their calls, and words that
calls of tpu.sh share.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]

# Writes its name and arguments down, one call a line; answers with the first line of the file
# $ANSWERS/<name> [and takes it away], whose first word is the exit code. Unless told otherwise, a
# bucket has a hierarchical namespace.
STAND_IN = """#!/bin/bash
{ printf '%q ' "$(basename "$0")" "$@"; echo; } >>"$CALLS"
case "$*" in
  *"buckets describe"*) topic=bucket ;;
  *describe*) topic=describe ;;
  *"tpu_worker.sh state"*) topic=state ;;
  *) topic="$(basename "$0")" ;;
esac
file="$ANSWERS/$topic"
[ -s "$file" ] || { [ "$topic" != bucket ] || echo True; exit 0; }
read -r code answer <"$file"
sed -i 1d "$file"
[ -z "$answer" ] || echo "$answer"
exit "$code"
"""

# An interpreter whose packages are all installed; modules are recorded, and training goes on as
# long as there is the file $HOLD.
PYTHON = """#!/bin/bash
case "$*" in
  "-c import sys; sys.exit(sys.version_info"*|"-m pip --version") exit ;;
  "-c import hashlib"*) echo stamp-"$(basename "${!#}")"; exit ;;
  "-m venv"*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python"; exit ;;
esac
{ printf '%q ' python "$@"; echo; } >>"$CALLS"
case "$*" in *densegrpo_jax.main*) while [ -e "${HOLD:-}" ]; do sleep 0.05; done ;; esac
"""

# Writes down what it is told and what `tee` is given; installed, gcsfuse is a command that writes
# its arguments down.
SUDO = """#!/bin/bash
if [ "$1" = tee ]; then given="$(cat)"; fi
{ printf '%q ' sudo "$@" ${given+"$given"}; echo; } >>"$CALLS"
case "$*" in *"install -y gcsfuse") cp "$(dirname "$0")/gcloud" "$(dirname "$0")/gcsfuse" ;; esac
"""

VM = ['--name=n', '--zone=z']
TAIL = ['--zone=z']
WATCH = ['watch', *VM, '--type=v5p-8', '--bucket=b', '--poll=0', '--', '--config=c', '--workdir=w']


def gcloud(*words):
    return ['gcloud', 'compute', 'tpus', 'tpu-vm', *words, *TAIL]
