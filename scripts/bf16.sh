#!/usr/bin/env bash
# Is bfloat16 as good as float32? The same networks and seeds in both, paired: results/bf16.
#   command   ./scripts/bf16.sh              (again: finished runs are skipped)
#   hardware  a GPU with bfloat16; not yet measured how long. STEPS=64000 is the paper's length
#   expected  differences whose intervals hold 0. At the start bfloat16 gradients of plain networks
#             of 56 layers are mostly rounding (docs/performance.md), so there they need not
# Seeds, depths and the interval (paired t, 95 %) were fixed before any run.
set -euo pipefail
cd "$(dirname "$0")/.."
resexp=${RESEXP:-${RESEXP_VENV:-.venv}/bin/resexp}
data=(experiment=he2015)
if [ -n "${RESEXP_CIFAR10_JPEG:-}" ]; then
    data=(experiment=cifar10_jpeg "data.root=$RESEXP_CIFAR10_JPEG")
fi
for precision in fp32 bf16; do
    $resexp run -m "${data[@]}" "steps=${STEPS:-4000}" depth=20,56 arch=plain,residual \
        seed=0,1,2,3,4 results=results/bf16 "name=$precision" "precision=$precision" \
        launch=lockstep "$@"
done
$resexp compare results/bf16/fp32 results/bf16/bf16 | tee results/bf16/compare.txt
