#!/usr/bin/env bash
# Run on Cloud TPU VMs: request a slice (queued resources) until there is one, copy this checkout to every worker, start
# the run there detached, follow worker 0's log, restart after a preemption, and delete the slice at the end. Needs gcloud,
# logged in (docs/launch.md).
#
#   launch/tpu_vm.sh run NAME --type v6e-16 --zone us-east5-b --spot -- CONFIG --workdir gs://bucket/a [--section.field value ...]
#   launch/tpu_vm.sh status|logs|stop|ssh|delete NAME --zone us-east5-b
#
# Options of run:
#   --type TYPE          accelerator type: v4-32, v5litepod-16, v5p-128, v6e-64, tpu7x-8
#   --zone Z[,Z...]      zones to try, in this order and then from the first again
#   --slices N           number of slices in the run (1)
#   --spot, --reserved   preemptible and cheaper; from your reservation. Default: on demand
#   --direct             create the VM at once instead of queueing (one slice); fails if there is no capacity
#   --wait MINUTES       how long to wait in one zone before trying the next (60)
#   --attempts N         how many slices to request in total, replacements included (20)
#   --keep               keep the slice at the end
#   --project P, --runtime V, --service-account A, --network N, --subnetwork S    as in gcloud
#   --env-file F         lines NAME=value (HF_TOKEN), copied to the workers, readable only by you
# Give the other commands the same --zone, --project, --slices and --direct as run.
# --dry-run with any command prints what it would run, and runs nothing.
#
# `run` again with the same NAME picks up wherever the last one was interrupted. Exit status: the run's.
# shellcheck disable=SC2016  # the workers expand what is in single quotes
set -euo pipefail

usage() { sed -n '/^#   launch/p; /^# Options/,/^# `run`/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
fail() { echo "error: $*" >&2; exit 2; }
say() { echo "[$(date +%H:%M:%S)] $*" >&2; }

[[ $# -ge 2 ]] || usage
action=$1 name=$2
shift 2
[[ $action =~ ^(run|status|logs|stop|ssh|delete)$ ]] || { echo "error: unknown command '$action'" >&2; usage; }
[[ $name =~ ^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$ ]] ||
  fail "'$name' is not a valid Cloud TPU name: use lower-case letters, digits and -, starting with a letter"

type='' zones=() slices=1 tier='' direct='' wait=60 attempts=20 keep='' runtime='' env_file='' dry=''
common=() create=() arguments=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --type | --zone | --slices | --wait | --attempts | --project | --runtime | --service-account | --network | --subnetwork | --env-file)
      [[ $# -ge 2 ]] || fail "$1 needs a value" ;;
  esac
  case $1 in
    --type) type=$2; shift 2 ;;
    --zone) IFS=, read -r -a zones <<<"$2"; shift 2 ;;
    --slices) slices=$2; shift 2 ;;
    --spot | --reserved) [[ -z $tier ]] || fail "--spot and --reserved exclude each other"; tier=$1; shift ;;
    --direct) direct=1; shift ;;
    --wait) wait=$2; shift 2 ;;
    --attempts) attempts=$2; shift 2 ;;
    --keep) keep=1; shift ;;
    --project) common+=(--project "$2"); shift 2 ;;
    --runtime) runtime=$2; shift 2 ;;
    --service-account | --network | --subnetwork) create+=("$1" "$2"); shift 2 ;;
    --env-file) env_file=$2; shift 2 ;;
    --dry-run) dry=1; shift ;;
    --) shift; arguments=("$@"); break ;;
    *) fail "unknown option $1; the run's own arguments go after --" ;;
  esac
done
[[ ${#zones[@]} -gt 0 ]] || fail "--zone is missing, e.g. --zone us-east5-b"
[[ $slices =~ ^[1-9][0-9]*$ && $wait =~ ^[1-9][0-9]*$ && $attempts =~ ^[1-9][0-9]*$ ]] ||
  fail "--slices $slices, --wait $wait, --attempts $attempts: expected whole numbers from 1"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
zone=${zones[0]}
poll=${SFT_JAX_POLL_SECONDS:-15} # tests poll faster

# --- gcloud ------------------------------------------------------------------------------------------------------------

shown() { printf '%q ' "$@"; echo; }
gc() { # commands that change something or talk to a worker
  if [[ -n $dry ]]; then shown gcloud compute tpus "$@" --zone "$zone" ${common[@]+"${common[@]}"} --quiet; return; fi
  gcloud compute tpus "$@" --zone "$zone" ${common[@]+"${common[@]}"} --quiet
}
on_workers() { # NODE WORKER COMMAND; the command contains none of the user's words
  gc tpu-vm ssh "$1" --worker "$2" --command "$3"
}
state() { # of the slice in $zone; empty if there is none
  local found value
  value='value(state.state)'
  found=(queued-resources describe)
  [[ -z $direct ]] || { found=(tpu-vm describe); value='value(state)'; }
  if ! gcloud compute tpus "${found[@]}" "$name" --zone "$zone" ${common[@]+"${common[@]}"} --quiet \
    --format "$value" 2>"$scratch/describe"; then
    grep -qiE 'not.?found|404' "$scratch/describe" && return 0
    cat "$scratch/describe" >&2
    return 1
  fi
}
nodes() {
  if ((slices == 1)); then echo "$name"; else for ((i = 0; i < slices; i++)); do echo "$name-$i"; done; fi
}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

runtime_of() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    tpu7x-*) echo v2-alpha-tpu7-ubuntu2404 ;;
    v5e-*) fail "--type $1: Cloud TPU spells it v5litepod-${1#v5e-}" ;;
    *) fail "--type $1: known types are v2-, v3-, v4-, v5litepod-, v5p-, v6e- and tpu7x-, followed by a number (docs/launch.md)" ;;
  esac
}
devices_of() { # as JAX counts them: a type's number counts cores, and on v4 and v5p two cores are one device
  local number=${1##*-}
  case $1 in v4-* | v5p-*) echo $((number * slices / 2)) ;; *) echo $((number * slices)) ;; esac
}

ask_for_slice() {
  if [[ -n $direct ]]; then
    gc tpu-vm create "$name" --accelerator-type "$type" --version "$runtime" ${tier:+"$tier"} ${create[@]+"${create[@]}"}
  elif ((slices == 1)); then
    gc queued-resources create "$name" --node-id "$name" --accelerator-type "$type" --runtime-version "$runtime" \
      ${tier:+"$tier"} ${create[@]+"${create[@]}"}
  else
    gc queued-resources create "$name" --node-count "$slices" --node-prefix "$name" --accelerator-type "$type" \
      --runtime-version "$runtime" ${tier:+"$tier"} ${create[@]+"${create[@]}"}
  fi
}
remove_slice() {
  if [[ -n $direct ]]; then gc tpu-vm delete "$name"; else gc queued-resources delete "$name" --force; fi
}

# Wait until the slice is ready. 0: it is; 1: this zone has none.
await_slice() {
  local now before='' end=$((SECONDS + 60 * wait))
  while true; do
    now=$(state)
    [[ $now == "$before" ]] || say "$name in $zone: ${now:-does not exist}"
    before=$now
    case $now in
      ACTIVE | READY) return 0 ;;
      ACCEPTED | WAITING_FOR_RESOURCES | CREATING | PROVISIONING | STARTING | RESTARTING | REIMAGING | REPAIRING | SUSPENDING | DELETING | STOPPING)
        if ((SECONDS > end)); then say "no slice in $zone after $wait minutes"; return 1; fi ;;
      *) return 1 ;; # FAILED, SUSPENDED, PREEMPTED, TERMINATED, STOPPED, or gone
    esac
    sleep "$poll"
  done
}

# --- the workers -------------------------------------------------------------------------------------------------------

pack() { # this checkout's tracked and new files: no .git, no .venv, nothing ignored
  (cd "$here" && git ls-files -z --cached --others --exclude-standard | xargs -0 ls -d 2>/dev/null | tr '\n' '\0' |
    tar --null --no-recursion -T - -czf "$scratch/code.tgz")
  { printf 'exec .venv/bin/sft-jax train'; printf ' %q' "${arguments[@]}" --distributed.auto True --distributed.devices "$(devices_of "$type")"; echo; } \
    >"$scratch/command.sh"
  : >"$scratch/env"
  [[ -z $env_file ]] || cat "$env_file" >"$scratch/env"
  chmod 600 "$scratch/env"
}
set_up() {
  local node
  for node in $(nodes); do
    say "$node: copying the code, installing"
    gc tpu-vm scp "$scratch/code.tgz" "$scratch/command.sh" "$scratch/env" "$node:" --worker all || return 1 # otherwise the run would start with older code
    on_workers "$node" all 'set -e; mkdir -p ~/sft_jax; cd ~/sft_jax; tar -xzf ~/code.tgz; mv ~/command.sh .command.sh; install -m 600 ~/env .env; rm -f ~/env ~/code.tgz; [ -x .venv/bin/python ] || python3 -m venv .venv; .venv/bin/pip install --quiet --constraint constraints.txt --editable ".[tpu,gcs]"' || return 1
  done
}
start_run() {
  local node
  for node in $(nodes); do
    on_workers "$node" all 'cd ~/sft_jax; if [ -f .pid ] && kill -0 "$(cat .pid)" 2>/dev/null; then exit 0; fi; rm -f .status .stopped; echo "== start $(date)" >>run.log; setsid nohup bash -c "trap : TERM; set -a; . ./.env; set +a; bash .command.sh; echo \$? >.status" >>run.log 2>&1 </dev/null & echo $! >.pid' || return 1
  done
}

# Print worker 0's log as it grows until every worker has ended; set `status`. 1: a worker cannot be reached.
follow() {
  local node seen=0 left first
  first=$(nodes | head -1)
  while true; do
    if ! on_workers "$first" 0 "tail -c +$((seen + 1)) ~/sft_jax/run.log 2>/dev/null" >"$scratch/new"; then return 1; fi
    cat "$scratch/new"
    seen=$((seen + $(wc -c <"$scratch/new")))
    : >"$scratch/statuses"
    for node in $(nodes); do
      on_workers "$node" all 'cd ~/sft_jax; if kill -0 "$(cat .pid)" 2>/dev/null; then echo runs; elif [ -f .status ] && [ -f .stopped ]; then echo stopped; elif [ -f .status ]; then echo "ended $(cat .status)"; else echo "ended 137"; fi' \
        >>"$scratch/statuses" || return 1
    done
    left=$(grep -c '^runs' "$scratch/statuses" || true)
    if [[ $left -eq 0 ]]; then
      # One worker's failure is the run's: bad input (2) and errors (1) take precedence over statuses that restart.
      status=$(awk '/^ended/ {s[$2]++} END {for (i in s) if (i + 0 != 0 && i + 0 != 42 && i + 0 < 128) {print i; exit}
        if (42 in s) print 42; else {for (i in s) if (i + 0) {print 42; exit}; print 0}}' "$scratch/statuses")
      if grep -q '^stopped' "$scratch/statuses"; then status=stopped; fi
      on_workers "$first" 0 "tail -c +$((seen + 1)) ~/sft_jax/run.log 2>/dev/null" || return 1
      return 0
    fi
    sleep "$poll"
  done
}

# --- commands ----------------------------------------------------------------------------------------------------------

run() {
  [[ -n $type ]] || fail "--type is missing, e.g. --type v6e-16"
  [[ ${#arguments[@]} -gt 0 ]] || fail "the run's arguments are missing: -- CONFIG [--section.field value ...]"
  [[ -z $direct || $slices -eq 1 ]] || fail "--direct creates one slice; several must be queued"
  [[ -z $env_file || -r $env_file ]] || fail "--env-file $env_file cannot be read"
  [[ -n $runtime ]] || runtime=$(runtime_of "$type")
  command -v gcloud >/dev/null || [[ -n $dry ]] || fail "gcloud is not on the PATH: https://cloud.google.com/sdk/docs/install"
  pack
  if [[ -n $dry ]]; then
    ask_for_slice; set_up; start_run; remove_slice
    echo "on the workers, .command.sh: $(cat "$scratch/command.sh")"
    return
  fi
  local attempt=0 there next=0 pause=$poll status=1
  for zone in "${zones[@]}"; do # attach to an existing run
    there=$(state)
    [[ -z $there ]] || break
  done
  [[ -n $there ]] || zone=${zones[0]}
  while ((attempt < attempts)); do
    attempt=$((attempt + 1))
    there=$(state)
    if [[ -z $there ]]; then
      say "attempt $attempt of $attempts: $type x $slices in $zone"
      if ! ask_for_slice 2>"$scratch/error"; then
        cat "$scratch/error" >&2
        # Stop if no retry can help; another zone may have quota or capacity.
        if grep -qiE 'permission|denied|invalid|unauthenticated|not enabled' "$scratch/error"; then return 2; fi
      fi
    fi
    if await_slice; then
      pause=$poll
      set_up && start_run && if follow; then
        case $status in
          42) say "status 42: preempted, or a worker is gone; restarting"; [[ $(state) =~ ^(ACTIVE|READY)$ ]] && continue ;;
          stopped) say "stopped by hand; the same command continues"; finish 42; return ;;
          *) finish "$status"; return ;;
        esac
      fi
      say "cannot reach a worker: $name in $zone is $(state)"
      await_slice && continue
    fi
    if [[ -n $(state) ]]; then remove_slice; fi
    next=$(((next + 1) % ${#zones[@]}))
    zone=${zones[next]}
    sleep "$pause"
    pause=$((pause < 300 ? 2 * pause : 300))
  done
  fail "no finished run after $attempts attempts in ${zones[*]}; the same command continues"
}
finish() {
  if [[ -n $keep || $1 -ne 0 ]]; then
    say "status $1; the slice still exists and costs money. To delete it: launch/tpu_vm.sh delete $name --zone $zone ${common[*]-}"
  else
    remove_slice
    say "done; $name is deleted"
  fi
  return "$1"
}
each_node() { local node; for node in $(nodes); do on_workers "$node" "$1" "$2"; done; }

case $action in
  run) run ;;
  status)
    [[ -n $dry ]] || { there=$(state); echo "$name in $zone: ${there:-does not exist}"; [[ -n $there ]] || exit 1; }
    each_node all 'cd ~/sft_jax 2>/dev/null || exit 0; echo "$(hostname): $(cat .status 2>/dev/null || echo runs), $(tail -n 1 run.log)"' ;;
  logs) each_node all 'tail -n 100 ~/sft_jax/run.log | sed "s/^/$(hostname): /"' ;;
  stop) each_node all 'touch ~/sft_jax/.stopped; kill -TERM -- "-$(cat ~/sft_jax/.pid)"' && say "signalled: every worker saves and exits with 42" ;;
  ssh) gc tpu-vm ssh "$(nodes | head -1)" --worker 0 ;;
  delete) remove_slice ;;
esac
