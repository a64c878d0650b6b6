#!/usr/bin/env bash
# The committed probes of every claimed mechanism: results/digits/mechanisms, docs/mechanisms.md.
#   command   ./scripts/mechanisms.sh        (again: finished runs are skipped, probes are not)
#   hardware  any CPU; about 10 minutes on two cores: 4 of training, 6 of probes
#   expected  plain networks degrade; gradients of plain networks with batch normalisation explode
#             at the start; few blocks make residual networks fragile; the rest is the question
# Seeds, depths and the rules of the probes were fixed before the runs. Probes need checkpoints,
# which stay on this machine: git ignores them.
set -euo pipefail
cd "$(dirname "$0")/.."
resexp=${RESEXP:-${RESEXP_VENV:-.venv}/bin/resexp}
python=${PYTHON:-${RESEXP_VENV:-.venv}/bin/python}
here=results/digits/mechanisms
$resexp run -m depth=8,20,44,56 arch=plain,residual seed=10,11,12,13,14 keep_checkpoint=true \
    results=results/digits name=mechanisms launch=processes threads=1 "$@"
$resexp probe all $here
$python scripts/mechanisms.py
$resexp verdict $here
