#!/usr/bin/env bash
# A control for the verdict: both arms residual (shortcuts A and B), so no effect may be shown.
#   command   ./scripts/control.sh           (again: finished runs are skipped)
#   hardware  any CPU; about 3 minutes on two cores
#   expected  residual networks do not degrade, of neither option
. "$(dirname "$0")/sweep.sh"
on_digits control depth=20,56 arch=residual arch.shortcut=A,B seed=0,1,2,3,4 "$@"
"${resexp[@]}" report "$here"
"${resexp[@]}" verdict "$here" --baseline residual,arch.shortcut=A >"$here/verdict.txt" || [ $? -eq 3 ]
cat "$here/verdict.txt"
