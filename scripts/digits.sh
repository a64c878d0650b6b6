#!/usr/bin/env bash
# The committed digits result: results/digits/five-seeds.
#   command   ./scripts/digits.sh            (again: finished runs are skipped)
#   hardware  any CPU; about 6 minutes on two cores
#   expected  deeper plain networks train worse: shown; residual ones do not
# Seeds, depths and the rule were fixed before the runs: five seeds, 8 to 56 layers, the threshold
# and the endpoint of resexp verdict.
set -euo pipefail
cd "$(dirname "$0")/.."
resexp=${RESEXP:-${RESEXP_VENV:-.venv}/bin/resexp}
here=results/digits/five-seeds
$resexp run -m depth=8,20,32,56 arch=plain,residual seed=0,1,2,3,4 \
    results=results/digits name=five-seeds launch=processes threads=1 "$@"
$resexp plot $here
$resexp plot $here --format svg
$resexp table $here --format markdown >$here/table.md
$resexp report $here
$resexp verdict $here | tee $here/verdict.txt
