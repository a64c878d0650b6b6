#!/usr/bin/env bash
# Three cures of scripts/cures.sh on CIFAR-10 as JPEG, beside the plain networks of scripts/cifar10.sh:
# results/cifar10-cures, which docs/cures.md tells of.
#   command   RESEXP_CIFAR10_JPEG=ARCHIVE ./scripts/cures_cifar10.sh [KEY=VALUE]...
#             (again: finished runs are skipped, others go on)
#   hardware  any CPU; three quarters of an hour of one core a seed at 56 layers
#   expected  nothing: which cures, rates and steps was fixed before (docs/decisions.md)
#   SEEDS=0,1,2,3,4  DEPTHS=56,20   in this order
archive=$(realpath -ms "${RESEXP_CIFAR10_JPEG:?an archive or folder of CIFAR-10 as JPEG}")
. "$(dirname "$0")/sweep.sh"
here=results/cifar10-cures
words=(experiment=cifar10_short_jpeg "data.root=$(realpath -ms --relative-base="$PWD" "$archive")")
words+=(arch=plain steps=1000 results=results name=cifar10-cures launch=processes threads=1)
if [ -e "$here/runs.csv" ]; then
    "${resexp[@]}" export "$here" --unpack >/dev/null
fi
for cure in arch.activation=tat "arch.activation=crelu init=looks_linear" "optimizer=muon lr=0.01"; do
    nice -n 19 "${resexp[@]}" run -m "${words[@]}" "seed=${SEEDS:-0,1,2,3,4}" "depth=${DEPTHS:-56,20}" \
        $cure "$@" # unquoted: one word or two
done
"${resexp[@]}" export "$here" status=ok,collapsed,diverged --out results
"${PYTHON:-${RESEXP_VENV:-.venv}/bin/python}" scripts/cures.py # docs/cures.md
