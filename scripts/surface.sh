#!/usr/bin/env bash
# Is plain-56 only under-trained? Clean training error over depth, steps and rate: results/digits/surface.
#   command   ./scripts/surface.sh           (again: finished runs are skipped)
#   hardware  any CPU; about 2.5 hours of one core
#   expected  nothing: slower and rate-sensitive optimisation, or a limit
# Every network and number of steps is tried at the same rates, on seeds 90 and 91; the best by clean
# training loss, and the recipe's own, are then trained on seeds 10 to 14, which alone are judged.
. "$(dirname "$0")/sweep.sh"
rates=lr=0.002,0.005,0.01,0.02,0.05,0.1
lengths=steps=${STEPS:-220,660,2200}
words=(depth=20,56 arch=plain,residual "$lengths" eval_every=110)
on_digits surface "${words[@]}" $rates seed=90,91 "$@"
on_digits surface "${words[@]}" lr=0.02 seed=10,11,12,13,14 "$@"
at_best lr seed=10,11,12,13,14 "$@"
"${resexp[@]}" export "$here" --out "$(dirname "$here")"
"${resexp[@]}" plot "$here" --which surface
{
    "${resexp[@]}" verdict "$here" --best lr --chosen-on 90,91 || [ $? -ne 2 ]
    echo
    "${resexp[@]}" verdict "$here" lr=0.02 seed=10,11,12,13,14 || [ $? -ne 2 ]
} | tee "$here/verdict.txt"
