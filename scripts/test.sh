#!/usr/bin/env bash
# Lint, types and tests; offline once installed, no GPU needed, about 4 minutes on two cores.
#   ./scripts/test.sh [--quick | --slow] [PYTEST ARGUMENTS]
# --quick: tests alone, without those that start processes or train for a second or more, and of
#   tests with several values the first alone
# --slow: those that take minutes, too
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${RESEXP_VENV:-.venv}
scripts/install.sh "$venv" test
marks="not slow and not gpu"
processes=2 first=
case ${1:-} in
    --quick) marks="$marks and not process" first=--first ;;
    --slow) marks="" processes=0 ;; # some of them measure time
esac
if [ "${1:-}" != --quick ]; then
    "$venv/bin/ruff" check resexp tests scripts
    "$venv/bin/ruff" format --check resexp tests scripts
    "$venv/bin/mypy"
fi
[[ ${1:-} != --@(quick|slow) ]] || shift
exec "$venv/bin/python" -m pytest -m "$marks" -n $processes $first "$@"
