#!/usr/bin/env bash
# One command for a machine with a GPU and no network: installs the carried wheels beside what is there, measures, and
# copies the results into $OUT where that names a folder. Options go to `python -m bench.gpu`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=.cache/gpu-wheels
site=$PWD/.cache/gpu-site
results=runs/gpu-check

# A folder on the path, and no virtual environment: the machine's own packages may be in one, which another would not see.
rm -rf "$site" "$results"
if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check --target "$site" "$wheels"/*.whl
else
  echo "no wheels in $wheels: using what is installed (python -m bench.collect_wheels collects them)" >&2
fi
export PYTHONPATH=$site:$PWD${PYTHONPATH:+:$PYTHONPATH}

status=0
"$python" -m bench.gpu --out "$results" "$@" || status=$?
if [ -n "${OUT:-}" ] && [ -d "$results" ]; then
  cp "$results"/gpu.json "$results"/gpu.md "$OUT"/
fi
exit "$status"
