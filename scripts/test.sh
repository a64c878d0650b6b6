#!/usr/bin/env bash
# Lint, types and tests; offline once installed, no GPU needed, under 6 minutes on two cores.
#   ./scripts/test.sh [--slow] [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${RESEXP_VENV:-.venv}
scripts/install.sh "$venv" test
marks="not slow and not gpu"
processes=2
if [ "${1:-}" = --slow ]; then
    marks=""
    processes=0 # some of them measure time
    shift
fi
"$venv/bin/ruff" check resexp tests scripts
"$venv/bin/ruff" format --check resexp tests scripts
"$venv/bin/mypy"
exec "$venv/bin/python" -m pytest -m "$marks" -n $processes "$@"
