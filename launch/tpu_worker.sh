#!/usr/bin/env bash
# launch/tpu.sh runs this on each worker of a slice, in the unpacked repository:
#   tpu_worker.sh setup [BUCKET] | train MAIN-ARGUMENTS... | state MAIN-ARGUMENTS... | stop
# train starts a supervised run in the background: train.log has its output, run.pid its process,
# run.arguments its arguments, and outcome, at the end, its exit code.
# With ENV_FILE=FILE in its environment the run also has the settings of that file.
# state prints the run's state: `running`, its exit code, or `absent` if none was started with these
# arguments or a reboot ended it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

# The run's shell holds this lock until the outcome is written. A reboot releases it; run.pid may
# then name another process.
running() { [ -e run.lock ] && ! flock -ns run.lock true; }

# Ubuntu has no gcsfuse, and not every image has it: this is Google's own repository.
install_gcsfuse() {
  local release key=/usr/share/keyrings/cloud.google.asc
  release="$(lsb_release -c -s)"
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$release main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install -y gcsfuse
}

mount_bucket() { # mount_bucket BUCKET
  local try mounted
  if ! command -v gcsfuse >/dev/null; then install_gcsfuse; fi
  mkdir -p "$HOME/bucket"
  mounted="$(findmnt -nro SOURCE --mountpoint "$HOME/bucket" || true)"
  if [ -n "$mounted" ] && [ "$mounted" != "$1" ]; then
    die "--bucket=$1: at $HOME/bucket there is another one, $mounted. Stop the run that uses it, then, on every worker: fusermount -u $HOME/bucket"
  fi
  if [ -z "$mounted" ]; then
    # No cached metadata: else a worker would see another worker's writes and renames only after a
    # minute, or on large machines never.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$1" "$HOME/bucket"
  fi
  # The operation that commits a checkpoint. Each worker tries it with its own name: any of them may
  # lack the right to write.
  if ! { try="$(mktemp -d "$HOME/bucket/.rename-XXXXXXXX")" && touch "$try/file" && mv "$try" "$try-done" && rm -r "$try-done"; }; then
    if [ -n "$try" ]; then rm -rf "$try" "$try-done"; fi
    die "--bucket=$1: a folder with a file could not be made and renamed there (the lines above say why), so that no checkpoint could be committed." \
      "It needs a hierarchical namespace, the role roles/storage.objectUser for the VM's service account, and a gcsfuse that can rename" \
      "folders in such buckets; this is $(gcsfuse --version 2>&1 || true). A newer one: sudo apt-get install --only-upgrade gcsfuse, on every worker"
  fi
  echo "workdir: $HOME/bucket/..."
}

action="${1:-}"
shift || true
case "$action" in
  setup)
    if ! (_find_python) >/dev/null 2>&1; then # the images come with Python 3.10
      sudo apt-get -qq update
      sudo apt-get -qq install -y python3.11 python3.11-venv
    fi
    if [ -n "${1:-}" ]; then mount_bucket "$1"; fi
    setup_env requirements-tpu.txt
    ;;
  train)
    exec 9>>run.lock
    if ! flock -n 9; then die "a run is under way here (process $(cat run.pid)); stop it first: bash launch/tpu.sh stop"; fi
    if [ -n "${ENV_FILE:-}" ]; then export_settings "$ENV_FILE"; fi
    rm -f outcome run.pid
    printf '%q ' "$@" >run.arguments
    setup_env requirements-tpu.txt
    # The inner shell outlives the supervisor to record its exit code.
    # shellcheck disable=SC2016  # expanded by the inner shell
    setsid nohup bash -c 'bash launch/supervise.sh "$@" 9>&- & echo "$!" >run.pid; status=0; wait "$!" || status=$?; echo "$status" >outcome' run \
      "$PYTHON" -m densegrpo_jax.main --distributed=on --device=tpu "$@" >>train.log 2>&1 </dev/null &
    say "started; its log is densegrpo_jax/train.log"
    ;;
  state)
    if running; then
      echo running
    elif [ -s outcome ] && [ "$(printf '%q ' "$@")" = "$(cat run.arguments 2>/dev/null)" ]; then
      cat outcome
    else
      echo absent
    fi
    ;;
  stop)
    if ! running; then
      say "nothing is running here"
      exit
    fi
    kill -TERM "$(cat run.pid)"
    while running; do sleep 1; done
    say "stopped; train with the same arguments continues"
    ;;
  *) die "usage: tpu_worker.sh setup [BUCKET] | train MAIN-ARGUMENTS... | state MAIN-ARGUMENTS... | stop" ;;
esac
