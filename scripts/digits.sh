#!/usr/bin/env bash
# The committed digits result: results/digits/five-seeds.
#   command   ./scripts/digits.sh            (again: finished runs are skipped)
#   hardware  any CPU; about 6 minutes on two cores
#   expected  deeper plain networks train worse: shown; residual ones do not
# Seeds, depths and the rule were fixed before the runs: five seeds, 8 to 56 layers, the threshold
# and the endpoint of resexp verdict.
. "$(dirname "$0")/sweep.sh"
on_digits five-seeds depth=8,20,32,56 arch=plain,residual seed=0,1,2,3,4 "$@"
"${resexp[@]}" plot "$here"
"${resexp[@]}" plot "$here" --format svg
written
