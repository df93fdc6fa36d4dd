#!/usr/bin/env bash
# Trains the miniature FLUX to spell: sets up a virtual environment, runs configs/tiny_ocr.py and
# shows where the results are. It fails if the evaluation score has not risen. Arguments go to the
# program, e.g. `bash launch/demo.sh --config.iterations=200 --workdir=runs/longer`. The same
# command, run again, continues. `--quick` runs configs/tiny_ocr_quick.py, with a method of ours
# instead of DenseGRPO: the same score from a tenth of the network evaluations.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

dense=runs/tiny_ocr quick=runs/tiny_ocr_quick
workdir="$dense"
recipe=(--config=configs/tiny_ocr.py)
gain=(--require_gain=0)
args=()
previous=
for arg in "$@"; do
  case "$arg" in
    -h | -help | --help)
      sed -n 's/^# //p; /^set /q' launch/demo.sh
      say '(densegrpo train --help lists the arguments of the program.)'
      exit 0
      ;;
  esac
  if [ "$arg" = --quick ]; then
    workdir="$quick"
    recipe=(--config=configs/tiny_ocr_quick.py)
  else
    args+=("$arg")
  fi
done
for arg in ${args[@]+"${args[@]}"}; do
  case "$previous" in --workdir | -workdir) workdir="$arg" ;; esac
  case "$arg" in
    --workdir=* | -workdir=*) workdir="${arg#*=}" ;;
    --require_gain* | -require_gain*) gain=() ;;
    --config | -config | --config=* | -config=*) recipe=() ;;
  esac
  previous="$arg"
done

setup_env requirements.txt
# Large pages: XLA allocates hundreds of megabytes of fresh memory every step. They save most page
# faults and some memory; an iteration takes as long (docs/results/cpu.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
status=0
"$PYTHON" -m densegrpo_jax.main ${recipe[@]+"${recipe[@]}"} --workdir="$workdir" \
  ${gain[@]+"${gain[@]}"} ${args[@]+"${args[@]}"} || status=$?
case "$status" in
  0)
    say ''
    say "Results in $workdir:"
    for file in "$workdir"/report/index.html "$workdir"/*.png "$workdir"/*.json "$workdir"/metrics.jsonl "$workdir"/tensorboard; do
      if [ -e "$file" ]; then say "  $file"; fi
    done
    if [ -e "$dense/summary.json" ] && [ -e "$quick/summary.json" ]; then
      say "Both methods side by side: $PYTHON -m densegrpo_jax.report --workdir=$dense --workdir=$quick --out=${dense}_both"
    fi
    ;;
  75) say "Stopped early; the same command continues." ;;
  *) say "The run failed (exit code $status); the last lines above say why." ;;
esac
exit "$status"
