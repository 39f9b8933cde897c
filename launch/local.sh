#!/usr/bin/env bash
# One run as N processes with M simulated CPU devices each, on this machine:
#
#   launch/local.sh N M CONFIG [--section.field value ...]
#   launch/local.sh 2 4 configs/quickstart.py --workdir runs/two --train.steps 20
#
# Process 0 writes to the terminal, the others to files that are named at the start. Ctrl-C and SIGTERM make all of them save
# and exit. Exit status: 0 if all are done, otherwise that of a process that is not: 2 bad input, 42 restart me.
set -euo pipefail

if [[ $# -lt 3 || ! $1 =~ ^[1-9][0-9]*$ || ! $2 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh PROCESSES DEVICES CONFIG [--section.field value ...]" >&2
  exit 2
fi
processes=$1 devices=$2
shift 2

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=sft-jax
[[ -x $here/.venv/bin/sft-jax ]] && program=$here/.venv/bin/sft-jax
python=python3
[[ -x $here/.venv/bin/python ]] && python=$here/.venv/bin/python
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

members=()
# shellcheck disable=SC2329  # the trap calls it
stop() { for member in "${members[@]}"; do kill -TERM "$member" 2>/dev/null || true; done; }
trap stop TERM INT

logs=$(mktemp -d "${TMPDIR:-/tmp}/sft_jax-local-XXXXXX")
for ((i = 0; i < processes; i++)); do
  command=("$program" train "$@" --distributed.cpu-devices "$devices" --distributed.processes "$processes"
    --distributed.process-id "$i" --distributed.coordinator "127.0.0.1:$port")
  if ((i == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" >"$logs/process-$i.log" 2>&1 &
  fi
  members+=($!)
done
((processes == 1)) || echo "processes 1 to $((processes - 1)): $logs/process-*.log" >&2

status=0
for member in "${members[@]}"; do
  # A signal interrupts `wait`, so wait again until the process has ended.
  while true; do
    ended=0
    wait "$member" || ended=$?
    kill -0 "$member" 2>/dev/null || break
  done
  ((ended == 0 || status != 0)) || status=$ended
done
exit "$status"
