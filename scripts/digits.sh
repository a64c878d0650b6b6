#!/usr/bin/env bash
# The committed digits result: results/digits/five-seeds.
#   command   ./scripts/digits.sh            (again: finished runs are skipped)
#   hardware  any CPU; about 6 minutes on two cores
#   expected  plain networks degrade; residual ones are cured
# Seeds and depths were fixed before the runs: five seeds, 8 to 56 layers. The rule of resexp verdict
# is newer than the runs: an audit found the first one, of log loss, wrong.
. "$(dirname "$0")/sweep.sh"
on_digits five-seeds depth=8,20,32,56 arch=plain,residual seed=0,1,2,3,4 "$@"
"${resexp[@]}" plot "$here"
written
