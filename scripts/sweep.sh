#!/usr/bin/env bash
# Sourced by the scripts of the committed sweeps: what they share. RESEXP is the command; else that
# of the virtual environment, or this checkout's. RESEXP_CIFAR10_JPEG is an archive or folder of
# CIFAR-10 as JPEG: $jpeg, in records too, and they name no folder of this machine if they need not.
set -euo pipefail
jpeg=${RESEXP_CIFAR10_JPEG:+$(realpath -ms "$RESEXP_CIFAR10_JPEG")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jpeg=${jpeg:+$(realpath -ms --relative-base="$PWD" "$jpeg")}
if [ -n "${RESEXP:-}" ]; then
    read -r -a resexp <<<"$RESEXP"
elif [ -x "${RESEXP_VENV:-.venv}/bin/resexp" ]; then
    resexp=("${RESEXP_VENV:-.venv}/bin/resexp")
else
    resexp=(python3 -m resexp)
fi

# on_digits NAME KEY=VALUE...: train a sweep on the digits, into results/digits/NAME, which is $here
on_digits() {
    here=results/digits/$1
    "${resexp[@]}" run -m "results=${here%/*}" "name=${here##*/}" launch=processes threads=1 "${@:2}"
}

# on_jpegs NAME KEY=VALUE...: train a sweep of cifar10_short_jpeg, into results/NAME, which is $here; runs
# that were exported from elsewhere count as finished
on_jpegs() {
    here=results/$1
    [ ! -e "$here/runs.csv" ] || "${resexp[@]}" export "$here" --unpack >/dev/null
    nice -n 19 "${resexp[@]}" run -m experiment=cifar10_short_jpeg \
        "data.root=${jpeg:?RESEXP_CIFAR10_JPEG must be an archive or folder of CIFAR-10 as JPEG}" \
        results=results "name=$1" launch=processes threads=1 "${@:2}"
}

# at_best KEY seed=SEEDS [KEY=VALUE]...: train each network of $here at its best value of KEY, chosen on
# seeds 90 and 91
at_best() {
    local lines line words
    lines=$("${resexp[@]}" best "$here" --setting "$1" --chosen-on 90,91 --then "${2#seed=}")
    while IFS= read -r line <&3; do
        read -r -a words <<<"${line#resexp }"
        "${resexp[@]}" "${words[@]}" "${@:3}"
    done 3<<<"$lines"
}

# written: the two files that are committed, the report, and the table and verdict of $here; its exit
# code is the verdict's
written() {
    "${resexp[@]}" export "$here" --out "$(dirname "$here")"
    "${resexp[@]}" report "$here"
    { "${resexp[@]}" table "$here" && echo && "${resexp[@]}" verdict "$here"; } | tee "$here/verdict.txt"
}
