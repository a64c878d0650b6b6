#!/usr/bin/env bash
# What lies between scripts/cifar10.sh's 20 and 56 layers, and beyond: 32, 44 and 110, at half its steps,
# beside its runs in results/cifar10-jpeg; figures in results/cifar10-depths.
#   command   RESEXP_CIFAR10_JPEG=ARCHIVE ./scripts/cifar10_depths.sh [KEY=VALUE]...
#             (again: finished runs are skipped, others go on)
#   hardware  any CPU; three seeds of 32 and 44 layers take 2 hours of a core, 110 layers another
#   expected  plain networks train worse the deeper they are (docs/decisions.md); no verdict
#   SEEDS=0,1,2   in this order, for 32 and 44 layers; 110 has seed 0 alone
. "$(dirname "$0")/sweep.sh"
seeds=${SEEDS:-0,1,2}
on_jpegs cifar10-jpeg steps=1000 "seed=$seeds" depth=32,44 arch=plain,residual "$@"
on_jpegs cifar10-jpeg steps=1000 seed=0 depth=110 arch=plain,residual "$@"
"${resexp[@]}" export "$here" status=ok,collapsed,diverged --out results
title="CIFAR-10 as JPEG; He et al. 2015 cut short, 1,000 steps of 64,000, rate 0.03 for 0.1, 200 steps of warm-up"
drawn=(status=ok,collapsed,diverged steps=1000 "seed=$seeds" --out results/cifar10-depths --title "$title")
"${resexp[@]}" plot "$here" "${drawn[@]}" --which depth
"${resexp[@]}" plot "$here" "${drawn[@]}" --style paper --which curves
"${resexp[@]}" table "$here" status=ok,collapsed,diverged steps=1000 "seed=$seeds"
