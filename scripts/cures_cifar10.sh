#!/usr/bin/env bash
# Three cures of scripts/cures.sh on CIFAR-10 as JPEG, beside the plain networks of scripts/cifar10.sh:
# results/cifar10-cures, which docs/cures.md tells of.
#   command   RESEXP_CIFAR10_JPEG=ARCHIVE ./scripts/cures_cifar10.sh [KEY=VALUE]...
#             (again: finished runs are skipped, others go on)
#   hardware  any CPU; three quarters of an hour of one core a seed at 56 layers
#   expected  nothing: which cures, rates and steps was fixed before (docs/decisions.md)
#   SEEDS=0,1,2,3,4  DEPTHS=56,20   in this order
. "$(dirname "$0")/sweep.sh"
for cure in arch.activation=tat "arch.activation=crelu init=looks_linear" "optimizer=muon lr=0.01"; do
    on_jpegs cifar10-cures arch=plain steps=1000 "seed=${SEEDS:-0,1,2,3,4}" "depth=${DEPTHS:-56,20}" \
        $cure "$@" # unquoted: one word or two
done
"${resexp[@]}" export "$here" status=ok,collapsed,diverged --out results
"${PYTHON:-${RESEXP_VENV:-.venv}/bin/python}" scripts/cures.py # docs/cures.md
