#!/usr/bin/env bash
# The committed comparison of skip connections on the digits: results/digits/families.
#   command   ./scripts/families.sh          (again: finished runs are skipped)
#   hardware  any CPU; 180 runs, about half an hour on two cores
#   expected  plain networks degrade from 20 to 56 layers; which others do is the question
# Seeds and depths were fixed before the runs, as in digits.sh. Every arch is at its own
# defaults and all share the recipe, so a failure here is a failure under this recipe.
. "$(dirname "$0")/sweep.sh"
archs=plain,residual,preact,highway,shortcut_gate,scaled_shortcut,dropout_shortcut
archs=$archs,rezero,skipinit,fixup,stochastic_depth,se
on_digits families depth=8,20,56 arch=$archs seed=0,1,2,3,4 "$@"
"${resexp[@]}" plot "$here" --which families
written || [ $? -eq 5 ] # not all cure it
