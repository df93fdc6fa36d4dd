# shellcheck shell=bash
# Sourced by the other scripts, from the repository's root: `setup_env FILE...` makes a virtual
# environment with these requirement files installed, and sets PYTHON to its interpreter. It does
# nothing if that was done before and the files have not changed.
#
#   PYTHON=python3.11   the interpreter to make it with (default: the first Python >= 3.11 found)
#   VENV=.venv          where to make it

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# not_empty OPTION: an option with nothing after its = is what an unset variable of the shell leaves.
not_empty() {
  if [[ "$1" =~ ^--[a-z]+=$ ]]; then die "$1 is empty: is a variable of the shell unset? Give a value, or leave it out"; fi
}

# need_tool NAME PURPOSE
need_tool() {
  if ! command -v "$1" >/dev/null 2>&1; then die "$1 is not installed here, or not on the PATH: $2"; fi
}

# need_run ARGUMENT... checks the arguments of densegrpo_jax.main.
need_run() {
  local given=" $* " flag
  if [ "$#" -eq 0 ]; then die "nothing to train: give the arguments of densegrpo_jax.main after --, at least --config and --workdir"; fi
  for flag in --config --workdir; do
    case "$given" in
      *" $flag="* | *" $flag "* | *" -${flag#--}="* | *' --flagfile'*) ;;
      *) die "$flag is missing among the arguments after --: $*" ;;
    esac
  done
}

# export_settings FILE exports its lines KEY=VALUE, each value unchanged. It never shows a value:
# some are secret.
export_settings() {
  local line number=0
  if [ ! -f "$1" ] || [ ! -r "$1" ]; then die "--env=$1 is not a file that can be read: give one with lines KEY=VALUE"; fi
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line="${line%$'\r'}"
    if [[ "$line" =~ ^[[:space:]]*(#|$) ]]; then continue; fi
    if ! [[ "$line" =~ ^[A-Za-z_][A-Za-z_0-9]*= ]]; then
      die "line $number of --env=$1 is not KEY=VALUE, without \`export\` and blanks before the ="
    fi
    if [[ "${line#*=}" =~ ^(\".*\"|\'.*\')$ ]]; then
      die "line $number of --env=$1: write the value of ${line%%=*} without quotes; it is taken as it stands"
    fi
    export "${line?}"
  done <"$1"
}

_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

_find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    _new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or newer."
    printf '%s' "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
    if _new_enough "$candidate"; then
      printf '%s' "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer was found. Install one, or name it: PYTHON=/path/to/python3.11 bash $0"
}

# Shows pip's output as one changing line on a terminal, and as a few lines elsewhere.
_show_pip() {
  local line commas
  while IFS= read -r line; do
    case "$line" in
      Collecting*) ;;
      'Installing collected packages'*)
        commas="${line//[^,]/}"
        line="unpacking $((${#commas} + 1)) packages"
        ;;
      *) continue ;;
    esac
    if [ -t 2 ]; then
      printf '\r\033[K  %s' "${line:0:70}" >&2
    elif [ "${line#unpacking}" != "$line" ]; then
      say "  $line"
    fi
  done
  if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

setup_env() {
  local venv="${VENV:-.venv}" base file stamp log
  local changed=() stamps=()
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 || ! _new_enough "$venv/bin/python"; then
    base="$(_find_python)" || exit 1
    say "Making a virtual environment in $venv ($("$base" --version 2>&1))."
    "$base" -m venv --clear "$venv" || die "$base could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."
  fi
  PYTHON="$venv/bin/python"
  for file in "$@"; do
    # A stamp's name holds the hash of the file: a changed file has no stamp.
    stamp="$venv/.installed-$("$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()[:16])' "$file")"
    if [ ! -e "$stamp" ]; then
      changed+=(-r "$file")
      stamps+=("$stamp")
    fi
  done
  if [ "${#changed[@]}" -eq 0 ]; then return; fi
  log="$venv/install.log"
  say "Installing $* into $venv (the first time this takes a minute or more; details in $log)."
  if ! "$PYTHON" -m pip install --disable-pip-version-check --no-input --no-compile "${changed[@]}" 2>&1 </dev/null | tee "$log" | _show_pip; then
    say "$(tail -n 15 "$log")"
    die "pip could not install $*; the lines above say why (all of them: $log)."
  fi
  touch "${stamps[@]}"
}
