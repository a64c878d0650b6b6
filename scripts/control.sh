#!/usr/bin/env bash
# A control for the verdict: ten seeds of each network, to be set against themselves, which must not
# read as degradation: control in results/digits/claims, and the last table of docs/calibration.md.
#   command   ./scripts/control.sh           (again: finished runs are skipped)
#   hardware  any CPU; about 5 minutes on two cores
#   expected  at most about one split in twenty degrades
. "$(dirname "$0")/sweep.sh"
python=${PYTHON:-${RESEXP_VENV:-.venv}/bin/python}
on_digits claims/control depth=20,56 arch=plain,residual seed=20,21,22,23,24,25,26,27,28,29 "$@"
"${resexp[@]}" export "${here%/*}" --out results/digits
"$python" scripts/calibrate.py
