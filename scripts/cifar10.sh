#!/usr/bin/env bash
# Plain against residual networks on CIFAR-10, at a length that a CPU affords: results/cifar10-short,
# or results/cifar10-jpeg from JPEG images.
#   command   ./scripts/cifar10.sh [KEY=VALUE]...   (killed at any moment, run it again: finished runs
#             are skipped, others go on; runs that were exported elsewhere count as finished)
#   hardware  any CPU; a core trains about 450 images a second at 20 layers and 150 at 56, so five
#             seeds take 6 hours of a core at 2,000 steps, and 3 at half of them, the budget check
#   expected  plain networks degrade from 20 to 56 layers; residual ones do not
# Rule, depths, seeds and recipe stand in preregistration.yaml there, written before the first run.
#   STEPS=2000,1000  SEEDS=0,1,2,3,4  DEPTHS=20,56   in this order; the first of STEPS is drawn
#   MINUTES       stop after so many, with everything saved, and exit with 75
#   RESEXP_CIFAR10_JPEG               an archive or folder of CIFAR-10 as JPEG, in place of data/
. "$(dirname "$0")/sweep.sh"
name=cifar10-short words=(experiment=cifar10_short)
if [ -n "$jpeg" ]; then
    name=cifar10-jpeg words=(experiment=cifar10_short_jpeg "data.root=$jpeg")
fi
here=results/$name
steps=${STEPS:-2000,1000}
words+=("steps=$steps" "seed=${SEEDS:-0,1,2,3,4}" "depth=${DEPTHS:-20,56}" arch=plain,residual)
if [ -e "$here/runs.csv" ]; then
    "${resexp[@]}" export "$here" --unpack >/dev/null
fi
code=0
timeout --preserve-status --signal=TERM --kill-after=60 "${MINUTES:-0}m" nice -n 19 \
    "${resexp[@]}" run -m "${words[@]}" results=results "name=$name" launch=processes threads=1 "$@" ||
    code=$?
[ $code -eq 0 ] || [ $code -eq 75 ] || [ $code -eq 143 ] || exit $code
finished=status=ok,collapsed,diverged drawn=steps=${steps%%,*}
"${resexp[@]}" export "$here" $finished --out results
finished+=" depth=${DEPTHS:-20,56}" # other depths: scripts/cifar10_depths.sh
"${resexp[@]}" table "$here" $finished --format markdown >"$here/table.md"
"${resexp[@]}" plot "$here" $finished "$drawn"
"${resexp[@]}" plot "$here" $finished "$drawn" --style paper --which curves
"${resexp[@]}" report "$here" $finished "$drawn"
{ # what was preregistered, then the check of the budget beside it
    "${resexp[@]}" verdict "$here" $finished "$drawn" || [ $? -gt 2 ]
    echo
    "${resexp[@]}" verdict "$here" $finished || [ $? -gt 2 ]
} >"$here/verdict.txt"
cat "$here/table.md" "$here/verdict.txt"
exit $code
