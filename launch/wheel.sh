#!/usr/bin/env bash
# Builds the wheel, installs it into an empty folder outside the repository, and trains the
# miniature for two iterations from there.
#   bash launch/wheel.sh                  the wheel goes to dist/
#   bash launch/wheel.sh --out=FOLDER     or elsewhere
#   bash launch/wheel.sh --offline        with the installed setuptools, instead of downloaded ones
# The package's dependencies come from the virtual environment, which must not hold the package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

out=dist
build=()
for arg in "$@"; do
  case "$arg" in
    --out=?*) out="${arg#*=}" ;;
    --offline) build=(--no-build-isolation --no-index) ;;
    *) die "unknown option $arg: bash launch/wheel.sh [--out=FOLDER] [--offline]" ;;
  esac
done
setup_env requirements.txt
python="$PWD/$PYTHON"
if [ "${PYTHON:0:1}" = / ]; then python="$PYTHON"; fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# A copy: setuptools would leave folders in the repository, and files of an earlier build in them
# would come back.
mkdir "$work/source"
cp -R pyproject.toml README.md LICENSE densegrpo_jax configs "$work/source"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps ${build[@]+"${build[@]}"} --wheel-dir "$work/dist" "$work/source" >&2
wheels=("$work"/dist/*.whl)
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-index --no-compile --target "$work/installed" "${wheels[0]}" >&2

# Only the installed package may be found: -P and the folder keep the repository out of the path.
mkdir "$work/elsewhere"
cd "$work/elsewhere"
export PYTHONPATH="$work/installed"
where="$("$python" -P -c 'import densegrpo_jax; print(densegrpo_jax.__file__)')"
case "$where" in
  "$work/installed/"*) ;;
  *) die "the package was found at $where instead of the wheel's: uninstall it from $python first" ;;
esac
small=(
  --config.iterations=2 --config.rollout.prompts=4 --config.rollout.group=4 --config.rollout.prompts_per_batch=4 --config.rollout.steps=3
  --config.optim.microbatch=16 --config.eval.every=2 --config.eval.batch=8 --config.eval.shown=4 --config.data.eval_prompts=8
)
"$python" -P -m densegrpo_jax.main --config=tiny_ocr --workdir=run "${small[@]}" >&2
if [ ! -s run/summary.json ]; then die "the run left no summary.json"; fi
cd "$OLDPWD"
mkdir -p "$out"
cp "${wheels[0]}" "$out"
say "Built $out/$(basename "${wheels[0]}"); two iterations were trained from an installation of it."
