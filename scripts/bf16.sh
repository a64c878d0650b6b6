#!/usr/bin/env bash
# Are TF32 and bfloat16 as good as float32? The same networks and seeds, paired: results/bf16.
#   command   ./scripts/bf16.sh [KEY=VALUE]...   (again: finished runs are skipped, others go on)
#   hardware  a GPU with both; not yet measured how long. STEPS=64000 is the paper's length
#   expected  differences whose intervals hold 0. At the start bfloat16 gradients of plain networks
#             of 56 layers are mostly rounding (docs/performance.md), so there they need not
# Seeds, depths and the interval (paired t, 95 %) were fixed before any run. RESEXP_CIFAR10_JPEG,
# ENGINE, MINUTES and RESEXP are as in figure6.sh, which trains.
set -euo pipefail
for precision in fp32 tf32 bf16; do
    RESULTS=results/bf16 NAME=$precision PRECISION=$precision DEPTHS=20,56 SEEDS=0,1,2,3,4 \
        "$(dirname "$0")/figure6.sh" "steps=${STEPS:-4000}" "$@"
done
. "$(dirname "$0")/sweep.sh"
for precision in tf32 bf16; do
    "${resexp[@]}" compare results/bf16/fp32 "results/bf16/$precision"
done | tee results/bf16/compare.txt
