#!/usr/bin/env bash
# Run on a GKE cluster as a JobSet: fill in launch/gke/tpu.yaml or gpu.yaml, create it, report every state until it runs,
# follow worker 0 of slice 0, and exit with the run's status. JobSet restarts all pods after a preemption and after status 42,
# whether or not this script is attached. Needs kubectl with a cluster that has JobSet, and an image (docs/launch.md).
#
#   launch/gke/run.sh run NAME --topology v6e:4x4 --spot --image I -- CONFIG --workdir gs://BUCKET/runs/a [--section.field value ...]
#   launch/gke/run.sh run NAME --gpu h100 --nodes 2 --image I -- CONFIG --workdir gs://BUCKET/runs/a [--section.field value ...]
#   launch/gke/run.sh status|logs|stop|delete NAME
#
# Options of run:
#   --topology T         a TPU slice, spelled as for sft-jax plan: v4:2x2x4, v5e:4x4, v5p:4x4x4, v6e:8x8, tpu7x:2x2x2
#   --slices N           number of slices in the run (1)
#   --gpu G --nodes N    GPU nodes instead: a100, a100-80gb, h100, h100-mega, h200, b200 (1 node)
#   --per-host N         chips or GPUs per host, if the machine type does not have the usual 4 chips or 8 GPUs
#   --image I            the image; default: the template's
#   --spot               preemptible nodes, cheaper
#   --secret S           a cluster Secret whose entries become environment variables (HF_TOKEN)
#   --service-account A  the pods' Kubernetes service account (access to buckets)
#   --queue Q            the Kueue queue that admits the run
#   --host-network       use the host's network: faster between slices, without Workload Identity
#   --restarts N         maximum number of restarts (100)
# Every command takes --namespace NS and --context C, as kubectl does. logs --all prints every worker's last lines.
# --dry-run with any command prints what it would run and apply, and contacts nothing.
#
# `run` again with the same NAME attaches to a live run; a run that was stopped, failed or finished starts again and
# continues in its workdir. Exit status: the run's.
set -euo pipefail

usage() { sed -n '/^#   launch/p; /^# Options/,/^# continues/p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
fail() { echo "error: $*" >&2; exit 2; }
say() { echo "[$(date +%H:%M:%S)] $*" >&2; }

[[ $# -ge 2 ]] || usage
action=$1 name=$2
shift 2
[[ $action =~ ^(run|status|logs|stop|delete)$ ]] || { echo "error: unknown command '$action'" >&2; usage; }
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  fail "'$name' is not a valid Kubernetes name: use lower-case letters, digits and -, starting with a letter"

topology='' slices=1 gpu='' nodes=1 per_host='' image='' spot='' secret='' account='' queue='' host_network='' restarts=100
all='' dry='' cluster=() arguments=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --spot) spot=1; shift; continue ;;
    --host-network) host_network=1; shift; continue ;;
    --all) all=1; shift; continue ;;
    --dry-run) dry=1; shift; continue ;;
    --) shift; arguments=("$@"); break ;;
    --topology | --slices | --gpu | --nodes | --per-host | --image | --secret | --service-account | --queue | --restarts | --namespace | --context) ;;
    *) fail "unknown option $1; the run's own arguments go after --" ;;
  esac
  [[ $# -ge 2 ]] || fail "$1 needs a value"
  case $1 in
    --topology) topology=$2 ;;
    --slices) slices=$2 ;;
    --gpu) gpu=$2 ;;
    --nodes) nodes=$2 ;;
    --per-host) per_host=$2 ;;
    --image) image=$2 ;;
    --secret) secret=$2 ;;
    --service-account) account=$2 ;;
    --queue) queue=$2 ;;
    --restarts) restarts=$2 ;;
    --namespace | --context) cluster+=("$1" "$2") ;;
  esac
  shift 2
done
[[ $slices =~ ^[1-9][0-9]*$ && $nodes =~ ^[1-9][0-9]*$ && ${per_host:-1} =~ ^[1-9][0-9]*$ && $restarts =~ ^[0-9]+$ ]] ||
  fail "--slices $slices, --nodes $nodes, --per-host ${per_host:-1}: expected whole numbers from 1; --restarts $restarts: from 0"
for each in "$secret" "$account" "$queue"; do # the YAML has them unquoted
  [[ -z $each || $each =~ ^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$ ]] || fail "'$each' is not a valid Kubernetes name"
done
[[ -z $image || $image =~ ^[a-z0-9][-a-zA-Z0-9._/:@]*$ ]] || fail "--image '$image' is not a valid image name"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
poll=${SFT_JAX_POLL_SECONDS:-10} # tests poll faster
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# --- machines ----------------------------------------------------------------------------------------------------------

slices_of() { # the slices that GKE offers; v4, v5p and tpu7x also have others whose sides are multiples of 4
  case $1 in
    v5e | v6e) echo 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 ;;
    v4 | v5p) echo 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 ;;
    tpu7x) echo 1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 ;;
  esac
}
chips_of() { echo $((${1//x/*})); }
nearest() { # KIND CHIPS: the slice whose number of chips is closest
  local each chips best='' off=0 least=0
  for each in $(slices_of "$1"); do
    chips=$(chips_of "$each")
    off=$((chips > $2 ? chips - $2 : $2 - chips))
    if [[ -z $best ]] || ((off < least)); then best=$each least=$off; fi
  done
  echo "$1:$best"
}
known_topologies='v4:2x2x4, v5e:4x4, v5p:2x2x4, v6e:4x4, tpu7x:2x2x4'

# Set kind, shape, accelerator, chips (per host), hosts (per slice) and devices (of the run, as JAX counts them).
tpu_machines() {
  kind=${topology%%:*} shape=${topology#*:}
  if [[ $topology =~ ^([a-z0-9]+)[-_]([1-9][0-9]{0,4})$ ]]; then # as gcloud and xpk spell it
    kind=${BASH_REMATCH[1]} chips=${BASH_REMATCH[2]}
    case $kind in v5litepod) kind=v5e ;; v4 | v5p | tpu7x) chips=$((chips / 2)) ;; esac
    [[ -z $(slices_of "$kind") ]] || fail "--topology $topology is spelled $(nearest "$kind" "$chips")"
  fi
  case $kind in
    v4) accelerator=tpu-v4-podslice most=4096 ;;
    v5e) accelerator=tpu-v5-lite-podslice ;;
    v5p) accelerator=tpu-v5p-slice most=8960 ;;
    v6e) accelerator=tpu-v6e-slice ;;
    tpu7x) accelerator=tpu7x most=9216 ;;
    v5litepod | v5lite) fail "--topology $topology: unknown kind '$kind'. Did you mean v5e:$shape?" ;;
    v6*) fail "--topology $topology: unknown kind '$kind'. Did you mean v6e:$shape?" ;;
    v5*) fail "--topology $topology: unknown kind '$kind'. Did you mean v5e or v5p?" ;;
    v7* | tpu7* | ironwood) fail "--topology $topology: unknown kind '$kind'. Did you mean tpu7x:$shape?" ;;
    *) fail "--topology $topology: unknown kind '$kind'. Known: $known_topologies" ;;
  esac
  [[ $shape =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]] ||
    fail "--topology $topology: expected the chips along its sides after the colon, e.g. $(nearest "$kind" 16)"
  local a b c total
  IFS=x read -r a b c <<<"$shape"
  total=$(chips_of "$shape")
  if [[ " $(slices_of "$kind") " != *" $shape "* ]]; then
    if [[ $kind == v5e || $kind == v6e || -z $c ]] || ((a % 4 || b % 4 || c % 4 || total > most)) ||
      { [[ $kind != v4 ]] && ((a > b || b > c)); }; then
      fail "--topology $topology: GKE has no such slice. The nearest is $(nearest "$kind" "$total")"
    fi
  fi
  chips=${per_host:-$((total < 4 ? total : 4))}
  ((total % chips == 0)) || fail "--per-host $chips: $topology has $total chips"
  hosts=$((total / chips))
  devices=$((total * slices))
  if [[ $kind == tpu7x ]]; then devices=$((2 * devices)); fi # two per chip
}
gpu_machines() {
  case $gpu in
    a100) accelerator=nvidia-tesla-a100 ;;
    h100) accelerator=nvidia-h100-80gb ;;
    a100-80gb) accelerator=nvidia-a100-80gb ;;
    h100-mega) accelerator=nvidia-h100-mega-80gb ;;
    h200) accelerator=nvidia-h200-141gb ;;
    b200) accelerator=nvidia-b200 ;;
    h100* | nvidia-h100*) fail "--gpu $gpu: did you mean h100 (a3-highgpu) or h100-mega (a3-megagpu)?" ;;
    *a100*) fail "--gpu $gpu: did you mean a100 (a2-highgpu) or a100-80gb (a2-ultragpu)?" ;;
    *) fail "--gpu $gpu: known GPUs are a100, a100-80gb, h100, h100-mega, h200 and b200" ;;
  esac
  chips=${per_host:-8} hosts=$nodes devices=$((nodes * ${per_host:-8}))
}

# --- the JobSet --------------------------------------------------------------------------------------------------------

# A YAML list in JSON notation. In arguments, Kubernetes turns $$ into $ and replaces $(NAME) by its value.
word() {
  local text=$1 character code
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  if [[ $text == *[[:cntrl:]]* ]]; then
    for code in 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f 7f; do
      # shellcheck disable=SC2059  # the format is the character
      printf -v character "\\x$code"
      text=${text//"$character"/\\u00$code}
    done
  fi
  printf '"%s"' "$text"
}
words() {
  local each list=''
  for each in "$@"; do list="$list${list:+, }$(word "$each")"; done
  echo "[$list]"
}

# The template with marked lines filled from the variables fill_MARK; a commented-out line is uncommented if its variable is
# set. An empty value keeps the line's own.
fill() {
  awk '
    match($0, / # <- [-a-z]+$/) {
      key = "fill_" substr($0, RSTART + 6)
      gsub(/-/, "_", key)
      if (key in ENVIRON) {
        line = substr($0, 1, RSTART - 1)
        sub(/# /, "", line)
        if (ENVIRON[key] != "") line = substr(line, 1, index(line, ": ") + 1) ENVIRON[key]
        print line
        next
      }
    }
    { print }' "$1"
}

# Write $scratch/jobset.yaml.
render() {
  local template=$here/tpu.yaml coordinator=$name-slice-0-0.$name
  local added=() longest
  if [[ -n $gpu ]]; then
    template=$here/gpu.yaml
    gpu_machines
    # shellcheck disable=SC2016  # Kubernetes replaces it by the pod's number
    added=(--distributed.coordinator "$coordinator:9876" --distributed.processes "$hosts" --distributed.process-id '$(JOB_COMPLETION_INDEX)')
  else
    tpu_machines
    export fill_topology=$shape fill_slices=$slices
    if ((slices > 1)); then
      export fill_several='' fill_several_slices="\"$slices\"" fill_several_coordinator=$coordinator
    fi
    added=(--distributed.auto True)
  fi
  # Six hours for the slowest node to come up. The run's own default suits hosts that already exist, and a timeout ends the
  # run (status 2).
  [[ " ${arguments[*]} " == *" --distributed.timeout-seconds"* ]] || added+=(--distributed.timeout-seconds 21600)
  longest=$name-slice-$((slices - 1))-$((hosts - 1))-abcde
  ((${#longest} <= 63)) || fail "the name '$name' is $((${#longest} - 63)) characters too long: a pod would be named $longest, and at most 63 are allowed"
  [[ -n $image ]] || ! grep -q 'PROJECT/.* # <- image' "$template" || fail "--image is missing: docker build --target ${gpu:+cuda}${topology:+tpu} -f launch/gke/Dockerfile -t IMAGE . && docker push IMAGE"

  export fill_name=$name fill_restarts=$restarts fill_hosts=$hosts fill_accelerator=$accelerator fill_chips=$chips fill_coordinator=$coordinator
  fill_args=$(words train "${arguments[@]//\$/\$\$}" "${added[@]}" --distributed.devices "$devices")
  export fill_args
  [[ -z $image ]] || export fill_image=$image
  [[ -z $spot ]] || export fill_spot=''
  [[ -z $host_network ]] || export fill_host_network=''
  [[ -z $queue ]] || export fill_queue=$queue
  [[ -z $account ]] || export fill_service_account=$account
  [[ -z $secret ]] || export fill_secret="[{secretRef: {name: $secret}}]"
  fill "$template" >"$scratch/jobset.yaml"
}

# --- kubectl -----------------------------------------------------------------------------------------------------------

shown() { printf '%q ' kubectl "$@" ${cluster[@]+"${cluster[@]}"}; echo; }
kc() { # commands that change something or show it to the user
  if [[ -n $dry ]]; then shown "$@"; return; fi
  kubectl "$@" ${cluster[@]+"${cluster[@]}"}
}
# Retry until there is an answer; give up at once if no retry can help.
ask() {
  local tries=0
  until kubectl "$@" ${cluster[@]+"${cluster[@]}"} 2>"$scratch/error"; do
    case $(cat "$scratch/error") in
      *AlreadyExists*) return ;; # by an earlier try whose answer was lost, or by somebody else just now
      *'resource type "jobset'* | *'no matches for kind "JobSet"'*)
        fail "the cluster has no JobSet; install it: https://jobset.sigs.k8s.io/docs/installation" ;;
      *orbidden* | *nauthorized* | *'must be logged in'* | *namespaces*'not found'* | *'does not exist'* | *nvalid* | *'denied the request'* | *'auth-plugin not found'*)
        fail "$(cat "$scratch/error")" ;;
    esac
    tries=$((tries + 1))
    ((tries < 20)) || { say "no answer $tries times: $(cat "$scratch/error")"; say "a run that has started continues in the cluster; the same command attaches to it"; exit 1; }
    say "the cluster does not answer: $(tail -n 1 "$scratch/error")"
    sleep "$poll"
  done
}

of_all="jobset.sigs.k8s.io/jobset-name=$name"
# Read the JobSet: set deleted, stopped, queued (its queue), held (who suspends it), starts, completed, failed and why.
# `there` is its uid, empty if it does not exist.
look() {
  local suspended restarted fields
  fields='{.metadata.uid}|{.metadata.deletionTimestamp}|{.metadata.annotations.sft-jax/stopped}|{.metadata.labels.kueue\.x-k8s\.io/queue-name}|{.spec.suspend}|{.status.restarts}|{.status.conditions[?(@.type=="Completed")].status}|{.status.conditions[?(@.type=="Failed")].status}|{.status.conditions[?(@.type=="Failed")].reason}'
  ask get jobset "$name" --ignore-not-found -o "jsonpath=$fields" >"$scratch/jobset"
  IFS='|' read -r there deleted stopped queued suspended restarted completed failed why <"$scratch/jobset" || true
  starts=$((${restarted:-0} + 1)) held=''
  [[ ${suspended:-} != true ]] || held=${queued:-nobody}
}
# Write $scratch/pods, one line per pod: phase|slice|host|name|exit code|what it waits for|why it is not scheduled.
look_at_pods() {
  local fields
  fields='{range .items[*]}{.status.phase}|{.metadata.labels.jobset\.sigs\.k8s\.io/job-index}|{.metadata.annotations.batch\.kubernetes\.io/job-completion-index}|{.metadata.name}|{.status.containerStatuses[*].state.terminated.exitCode}|{.status.containerStatuses[*].state.waiting.reason}|{.status.conditions[?(@.type=="PodScheduled")].reason}: {.status.conditions[?(@.type=="PodScheduled")].message}{"\n"}{end}'
  ask get pods -l "$of_all" -o "jsonpath=$fields" >"$scratch/pods"
}
described() { # the number of pods in each phase, and what the first waiting one waits for
  awk -F '|' 'NF < 7 {next} {count[$1]++; total++}
    $1 == "Pending" && why == "" && $6 != "" && $6 != "PodInitializing" && $6 != "ContainerCreating" {why = $4 " waits: " $6}
    $1 == "Pending" && why == "" && $7 ~ /^(Unschedulable|SchedulingGated)/ {why = $4 " is not scheduled: " $7}
    END {
      if (!total) {print "no pod yet"; exit}
      for (i = split("Pending Running Succeeded Failed Unknown", order, " "); i > 0; i--)
        if (count[order[i]]) told = (count[order[i]] " " tolower(order[i])) (told == "" ? "" : ", " told)
      print "pods: " told (why == "" ? "" : "; " why)
    }' "$scratch/pods"
}
state() { # one line; call `look` and `look_at_pods` first
  if [[ -z $there ]]; then echo "does not exist"
  elif [[ -n $deleted ]]; then echo "is being deleted"
  elif [[ $completed == True ]]; then echo "completed"
  elif [[ $failed == True ]]; then echo "failed ($why)"
  elif [[ -n $stopped ]]; then echo "stopped by hand, $(described)"
  elif [[ $held == nobody ]]; then echo "suspended"
  elif [[ -n $held ]]; then echo "suspended: Kueue's queue $held has no room for it yet"
  else echo "start $starts, $(described)"; fi
}
status_of_failed() { # from the pods: bad input (2) and errors (1) take precedence over statuses that restart
  if [[ $why == ReachedMaxRestarts ]]; then echo 42; return; fi
  awk -F '|' '$5 + 0 != 0 && $5 + 0 != 42 && $5 + 0 < 128 {print $5 + 0; found = 1; exit} END {if (!found) print 1}' "$scratch/pods"
}
first_pod() { awk -F '|' -v phase="$1" '$2 == 0 && $3 == 0 && $1 ~ phase {print $4; exit}' "$scratch/pods"; }

# --- commands ----------------------------------------------------------------------------------------------------------

# Delete and wait until the pods are gone: each gets SIGTERM and saves.
delete_jobset() {
  local words=(delete jobset "$name" --ignore-not-found --cascade=foreground)
  if [[ -n $dry ]]; then shown "${words[@]}"; else ask "${words[@]}"; fi
}

# Report every state and print worker 0's log, restarts included, until the JobSet has ended or was stopped.
follow() {
  local told='' now pod read_to_end='' since=()
  while true; do
    look
    look_at_pods
    now=$(state)
    [[ $now == "$told" ]] || say "$name: $now"
    told=$now
    pod=$(first_pod '^(Running|Succeeded|Failed)')
    if [[ -n $pod && $pod != "$read_to_end" ]]; then
      kubectl logs "$pod" -c sft-jax --follow ${since[@]+"${since[@]}"} ${cluster[@]+"${cluster[@]}"} || true
      since=(--since-time "$(date -u +%Y-%m-%dT%H:%M:%SZ)")
      look_at_pods
      if [[ $(first_pod '^Running') != "$pod" ]]; then
        read_to_end=$pod since=()
      else # the connection was lost
        sleep "$poll"
      fi
      continue
    fi
    if [[ -z $there ]]; then say "$name is gone: somebody deleted it; the same command restarts it"; return 42; fi
    if [[ $completed == True ]]; then return 0; fi
    if [[ $failed == True ]]; then return "$(status_of_failed)"; fi
    if [[ -n $stopped && -z $(awk -F '|' '$1 ~ /^(Pending|Running)/' "$scratch/pods") ]]; then
      say "stopped by hand; the same command continues"
      return 42
    fi
    sleep "$poll"
  done
}

run() {
  [[ -n $topology || -n $gpu ]] || fail "--topology or --gpu is missing, e.g. --topology v6e:4x4"
  [[ -z $topology || -z $gpu ]] || fail "--topology is for TPUs and --gpu for GPUs: give one"
  [[ -z $gpu || $slices -eq 1 ]] || fail "--slices is for TPUs; GPUs take --nodes"
  [[ -z $gpu || -z $host_network ]] || fail "--host-network is for TPU slices"
  [[ -z $topology || $nodes -eq 1 ]] || fail "--nodes is for GPUs; TPUs take --slices, and the topology determines the hosts"
  [[ ${#arguments[@]} -gt 0 ]] || fail "the run's arguments are missing: -- CONFIG [--section.field value ...]"
  render
  if [[ -n $dry ]]; then
    delete_jobset
    echo "$(shown create -f -) <<'END'"
    cat "$scratch/jobset.yaml"
    echo END
    return
  fi
  [[ " ${arguments[*]}" == *" --workdir"* ]] || say "no --workdir given: unless CONFIG names one that outlives the pods (gs://...), the run's output is lost with them"
  look
  if [[ -n $there && -z $deleted$stopped && $completed$failed != *True* ]]; then
    say "$name exists: attaching to it, with the arguments it was started with"
  else
    if [[ -n $there ]]; then
      look_at_pods
      say "$name: $(state); restarting it"
      delete_jobset >&2
    fi
    ask create -f "$scratch/jobset.yaml" >"$scratch/created"
    say "created: $accelerator, $slices x $hosts hosts of $chips; restarts up to $restarts times"
  fi
  trap 'say "detached; the run continues. To attach: the same command. To save and stop it: launch/gke/run.sh stop $name ${cluster[*]-}"; exit 130' INT
  local status=0
  follow || status=$?
  say "status $status; the remaining JobSet costs nothing. To delete it: launch/gke/run.sh delete $name ${cluster[*]-}"
  return "$status"
}

# Every pod gets SIGTERM and saves; the JobSet stays, suspended. If Kueue controls suspension, tell Kueue.
stop() {
  local queued='' workload=''
  if [[ -z $dry ]]; then
    look
    [[ -n $there ]] || { say "$name does not exist"; return 1; }
    [[ $completed$failed != *True* ]] || { look_at_pods; say "$name has ended: $(state)"; return 0; }
    [[ -z $queued ]] || workload=$(ask get workloads -l "kueue.x-k8s.io/job-uid=$there" -o name)
  fi
  kc annotate jobset "$name" "sft-jax/stopped=$(date -u +%Y-%m-%dT%H:%M:%SZ)" --overwrite
  if [[ -n $workload ]]; then
    kc patch "$workload" --type merge -p '{"spec":{"active":false}}'
  else
    kc patch jobset "$name" --type merge -p '{"spec":{"suspend":true}}'
  fi
  [[ -z $dry ]] || return 0
  say "signalled: every pod finishes its step, saves and exits with 42"
  while look_at_pods && grep -qE '^(Pending|Running)' "$scratch/pods"; do sleep "$poll"; done
  say "all pods have ended; run with the same name continues"
}

[[ -n $dry ]] || command -v kubectl >/dev/null ||
  fail "kubectl is not on the PATH: https://cloud.google.com/kubernetes-engine/docs/how-to/cluster-access-for-kubectl"
case $action in
  run) run ;;
  stop) stop ;;
  delete) delete_jobset ;;
  status)
    if [[ -z $dry ]]; then
      look
      look_at_pods
      echo "$name: $(state)"
      [[ -n $there ]] || exit 1
    fi
    kc logs -l "$of_all" -c sft-jax --prefix --tail 1 --ignore-errors || true ;; # pods that have not started have no logs
  logs)
    if [[ -n $all ]]; then
      kc logs -l "$of_all" -c sft-jax --prefix --tail 100 --ignore-errors
    else
      kc logs -l "$of_all,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0" -c sft-jax --tail -1 --ignore-errors
    fi ;;
esac
