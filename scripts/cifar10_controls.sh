#!/usr/bin/env bash
# Controls of scripts/cifar10.sh: is it only the rate, or the rounding? Plain networks of 56 layers at a
# third and a tenth of the rate, its warm-up's too, and in bfloat16: results/cifar10-controls.
#   command   RESEXP_CIFAR10_JPEG=ARCHIVE ./scripts/cifar10_controls.sh [KEY=VALUE]...
#             (again: finished runs are skipped, others go on)
#   hardware  any CPU, with bfloat16 for that; an hour of one core a seed at 1,000 steps
#   expected  nothing: rates, steps and seeds were fixed before (docs/decisions.md)
#   SEEDS=0,1,2,3,4   in this order, each beside the runs of that seed in results/cifar10-jpeg
. "$(dirname "$0")/sweep.sh"
for control in "lr=0.01 warmup_lr=0.0033" "lr=0.003 warmup_lr=0.001" precision=bf16; do
    on_jpegs cifar10-controls arch=plain depth=56 steps=1000 "seed=${SEEDS:-0,1,2,3,4}" \
        $control "$@" # unquoted: one word or two
done
"${resexp[@]}" export "$here" status=ok,collapsed,diverged --out results
