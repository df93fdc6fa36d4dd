#!/usr/bin/env bash
# A TPU VM or pod slice from nothing to results, with gcloud:
#   bash launch/tpu.sh create --name=NAME --zone=ZONE --type=v5p-8 [--spot] [--version=RUNTIME] [--project=P]
#   bash launch/tpu.sh setup  --name=NAME --zone=ZONE [--bucket=B]        this commit, its environment and the bucket, on every worker
#   bash launch/tpu.sh train  --name=NAME --zone=ZONE [--env=FILE] -- MAIN ARGUMENTS   starts the run on every worker and returns
#   bash launch/tpu.sh logs   --name=NAME --zone=ZONE [--worker=N]        follows a worker's log, the first one's by default
#   bash launch/tpu.sh stop   --name=NAME --zone=ZONE                     saves the last update and ends the run on every worker
#   bash launch/tpu.sh watch  --name=NAME --zone=ZONE --type=T --spot --bucket=B -- MAIN ARGUMENTS   create, setup, train; again when preempted or a worker is lost
#   bash launch/tpu.sh fetch  --name=NAME --zone=ZONE --from=runs/x --to=DIR   copies results from the first worker: a --workdir as given to train
#   bash launch/tpu.sh delete --name=NAME --zone=ZONE
# With more than one worker gcloud needs its key in your ssh agent:
# ssh-add ~/.ssh/google_compute_engine. watch needs that agent as long as it runs.
# All workers of a pod must share the work directory, and it must outlive a spot VM: --bucket=B
# mounts the bucket B at ~/bucket on every worker (gcsfuse); train with --workdir='~/bucket/...', in
# quotes, as ~ is the worker's home folder. The bucket must have a hierarchical namespace.
# FLUX.1-dev needs a login, and every worker reads it: copy it into the bucket once (gcloud storage
# cp -r FLUX.1-dev gs://B/) and train with --config.model.path='~/bucket/FLUX.1-dev'.
# --env=FILE, for train and watch: lines KEY=VALUE for the environment of the run (HF_TOKEN,
# REWARD_TOKEN, LIBTPU_INIT_ARGS), copied to every worker with mode 600 and shown nowhere. watch
# copies it to every new machine, which does not keep a manual login.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh

action="${1:-}"
case "$action" in
  create | setup | train | logs | stop | watch | fetch | delete) shift ;;
  *) die "say what to do: create, setup, train, logs, stop, watch, fetch or delete (see the head of launch/tpu.sh)" ;;
esac
name='' zone='' type='' version='' spot='' bucket='' env='' from='' to='' poll=60 worker=''
project=()
while [ "$#" -gt 0 ]; do
  not_empty "$1"
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --project=*) project=("$1") ;;
    --bucket=*) bucket="${1#*=}" ;;
    --env=*) env="${1#*=}" ;;
    --from=*) from="${1#*=}" ;;
    --to=*) to="${1#*=}" ;;
    --poll=*) poll="${1#*=}" ;;
    --worker=*) worker="${1#*=}" ;;
    --spot) spot=yes ;;
    --) shift; break ;;
    *) die "unknown option $1 (arguments of densegrpo_jax.main come after --)" ;;
  esac
  shift
done
need() { # need OPTION VALUE
  if [ -z "$2" ]; then die "$action needs $1"; fi
}
need --name "$name"
need --zone "$zone"
case "$action" in
  train | watch) need_run "$@" ;;
  *) if [ "$#" -gt 0 ]; then die "arguments after -- go with train and watch: $action starts no run"; fi ;;
esac
if ! [[ "$poll" =~ ^[0-9]{1,6}$ ]]; then die "--poll=$poll: expected a whole number of seconds"; fi
if [ -n "$worker" ] && [ "$action" != logs ]; then die "--worker=$worker goes with logs"; fi
if ! [[ "${worker:=0}" =~ ^[0-9]{1,6}$ ]]; then die "--worker=$worker: expected a whole number, from 0"; fi
case "$bucket" in *[!a-z0-9._-]*) die "--bucket=$bucket: expected the name alone, as my-bucket, without gs:// and folders" ;; esac
need_tool gcloud 'install the Google Cloud CLI (cloud.google.com/sdk)'
if [ -n "$env" ]; then
  case "$action" in
    train | watch) (export_settings "$env") ;; # looked through before a machine is paid for
    *) die "--env=$env goes with train and watch: $action starts no run" ;;
  esac
fi

vm() { gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project[@]+"${project[@]}"}; }
everywhere() { vm ssh "$name" --worker=all --command="$1"; }
stop() { everywhere 'cd densegrpo_jax && bash launch/tpu_worker.sh stop'; }

choose_version() { # --version, or the software image that goes with the accelerator type
  need --type "$type"
  if [ -n "$version" ]; then return; fi
  case "$type" in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v4-*) version=tpu-ubuntu2204-base ;;
    *) die "no software version is known for --type=$type: give --version (gcloud compute tpus tpu-vm versions list --zone=$zone)" ;;
  esac
}

create() {
  local options=()
  if [ -n "$spot" ]; then options+=(--spot); fi
  vm create "$name" --accelerator-type="$type" --version="$version" ${options[@]+"${options[@]}"}
}

# A checkpoint is complete once its folder is renamed, which gcsfuse can do only in a bucket with a
# hierarchical namespace.
check_bucket() {
  local enabled create
  if [ -z "$bucket" ]; then return; fi
  create="gcloud storage buckets create gs://NAME --location=${zone%-*} --enable-hierarchical-namespace --uniform-bucket-level-access"
  if [ "${#project[@]}" -gt 0 ]; then create="$create ${project[*]}"; fi
  enabled="$(gcloud storage buckets describe "gs://$bucket" --format='value(hierarchical_namespace.enabled)' ${project[@]+"${project[@]}"})" ||
    die "--bucket=$bucket could not be looked at (the lines above say why). If there is none, make one: $create"
  case "$enabled" in
    [Tt]rue) ;;
    *) die "--bucket=$bucket has no hierarchical namespace, so that no checkpoint could be committed there. An old bucket cannot get one; make another: $create" ;;
  esac
}

setup() ( # a shell of its own: watch takes a failure for an answer
  set -e
  folder="$(mktemp -d)"
  trap 'rm -r "$folder"' EXIT
  if [ -n "$(git status --porcelain)" ]; then say "note: changes that are not committed do not go along"; fi
  git archive --prefix=densegrpo_jax/ -o "$folder/densegrpo_jax.tar.gz" HEAD
  vm scp "$folder/densegrpo_jax.tar.gz" "$name:densegrpo_jax.tar.gz" --worker=all
  everywhere "set -e; tar xzf densegrpo_jax.tar.gz; cd densegrpo_jax; bash launch/tpu_worker.sh setup $(printf '%q' "$bucket")"
)

send_settings() ( # a copy with this mode from the start, under a name without a colon, which scp would take for a machine's
  folder="$(mktemp -d)"
  trap 'rm -r "$folder"' EXIT
  install -m 600 "$env" "$folder/run.env"
  vm scp "$folder/run.env" "$name:densegrpo_jax/run.env" --worker=all
)

train() {
  local settings=
  if [ -n "$env" ]; then
    send_settings
    settings='chmod 600 run.env && ENV_FILE=run.env '
  fi
  everywhere "cd densegrpo_jax && ${settings}bash launch/tpu_worker.sh train$(printf ' %q' "$@")"
}

# An attempt failed. The next one follows, but not for ever, as the machine costs money meanwhile:
# five in a row are the end, unless a run goes on for an hour between them.
failed() { # failed WHAT WHY
  if [ "$((failures += 1))" -lt 5 ]; then
    say "$name $1 ($2; attempt $failures of 5): trying again"
  else
    die "$name $1 in 5 attempts ($2). It is still paid for: watch again, or bash launch/tpu.sh delete --name=$name --zone=$zone"
  fi
}

# What watch does with an idle machine. It may happen before ssh is up, or during a preemption.
begin() {
  local status
  set +e # not `if setup`: there a failing command would not end setup
  setup
  status=$?
  if [ "$status" -eq 0 ]; then
    (set -e; train "$@")
    status=$?
    # workers that did start would wait for the others, and refuse the next attempt
    if [ "$status" -ne 0 ]; then stop; fi
  fi
  set -e
  if [ "$status" -eq 0 ]; then
    began=$SECONDS
  else
    failed 'could not be set up and started' 'the lines above say why'
  fi
}

watch() {
  need --bucket "$bucket"
  choose_version # here: a `die` under `if create` would not end the loop
  check_bucket # before a machine is paid for
  local state run look failures=0 began=$SECONDS
  trap 'exit 130' INT # gcloud turns Ctrl-C into a failure, and those are tried again
  look="if [ -e densegrpo_jax/launch/tpu_worker.sh ]; then bash densegrpo_jax/launch/tpu_worker.sh state$(printf ' %q' "$@"); else echo absent; fi"
  while true; do
    state="$(vm describe "$name" --format='value(state)' 2>/dev/null || true)"
    case "$state" in
      READY)
        run="$(vm ssh "$name" --worker=0 --command="$look" || true)"
        case "$run" in
          running) if [ "$((SECONDS - began))" -ge 3600 ]; then failures=0; fi ;;
          '') ;; # it did not answer
          0) say "The run has finished. Delete the VM: bash launch/tpu.sh delete --name=$name --zone=$zone"; return ;;
          75 | absent) # stopped, never started or lost in a reboot, which also takes the bucket away
            say "$name is ready and trains nothing ($run): starting the run"
            begin "$@"
            ;;
          # Killed, aborted as another worker was lost, or alone: that worker may have been rebooted,
          # and nothing starts the run there.
          69 | 12[89] | 1[3-9][0-9] | 2[0-9][0-9])
            failed 'lost a process of the run' "exit code $run: bash launch/tpu.sh logs --worker=N tells of worker N"
            stop || true
            begin "$@"
            ;;
          *) die "the run failed with exit code $run: bash launch/tpu.sh logs --name=$name --zone=$zone" ;;
        esac
        ;;
      # on the way to another state, or not known now
      CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING | STOPPING | DELETING | HIDING | UNHIDING | UNKNOWN) ;;
      *)
        if [ -n "$state" ]; then
          say "$name is $state: making it anew"
          if ! vm delete "$name" --quiet; then
            say "it could not be deleted now (the lines above say why); trying again in $poll s"
            sleep "$poll"
            continue
          fi
        fi
        if create; then
          failures=0
          begin "$@"
        else
          say "it could not be made now (the lines above say why); trying again in $poll s"
        fi
        ;;
    esac
    sleep "$poll"
  done
}

case "$action" in
  create)
    choose_version
    create
    ;;
  setup)
    check_bucket
    setup
    ;;
  train) train "$@" ;;
  watch) watch "$@" ;;
  logs) vm ssh "$name" --worker="$worker" --command='tail -n 100 -F densegrpo_jax/train.log' ;;
  stop) stop ;;
  fetch)
    need --from "$from"
    need --to "$to"
    mkdir -p "$to"
    case "$from" in
      /*) ;;
      \~/*) from="${from#*/}" ;; # what scp calls relative: to the home folder
      *) from="densegrpo_jax/$from" ;; # what a run calls relative: to the repository
    esac
    vm scp --recurse "$name:$from" "$to" --worker=0
    ;;
  delete) vm delete "$name" --quiet ;;
esac
