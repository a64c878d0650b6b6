#!/usr/bin/env bash
# The committed digits result: results/digits/five-seeds.
#   command   ./scripts/digits.sh            (again: finished runs are skipped)
#   hardware  any CPU; about 6 minutes on two cores
#   expected  plain networks degrade; residual ones are cured
# Rule, recipe, depths and seeds were fixed before the runs: preregistration.yaml there.
. "$(dirname "$0")/sweep.sh"
on_digits five-seeds depth=8,20,32,56 arch=plain,residual seed=10,11,12,13,14 "$@"
"${resexp[@]}" plot "$here" --which curves
written
