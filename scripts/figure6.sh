#!/usr/bin/env bash
# Figure 6 of He et al. 2015: plain and residual networks of 20, 32, 44 and 56 layers on CIFAR-10,
# 64,000 steps of 128, all at a time on one GPU. Into results/figure6.
#   command   ./scripts/figure6.sh [KEY=VALUE]...   (again: finished runs are skipped, others go on)
#   hardware  one GPU. Predicted for an H200, seed 0, engine=triton, not yet measured: 6 to 8 minutes
#             with bf16, 8 to 10 with tf32, 15 to 25 with fp32 (docs/performance.md)
#   expected  the deeper a plain network, the higher its training error; residual ones the other way
#             round, at test errors near 8.75, 7.51, 7.17 and 6.97 % (the paper's table 6)
#   rule      that of resexp verdict: the deepest of DEPTHS against 20 layers
#
# The environment decides the rest:
#   DEPTHS=20,32,44,56   SEEDS=0   ENGINE=auto
#   PRECISION            tf32 on a machine with a GPU, else fp32; bf16 is for when it was shown to
#                        equal fp32 within seeds
#   RESEXP_CIFAR10_JPEG  an archive or folder of CIFAR-10 as JPEG (its results say cifar10-jpeg);
#                        without it data/ holds CIFAR-10, or it is downloaded to there
#   RESULTS=results      NAME=figure6
#   MINUTES              stop training after so many, save everything, and exit with 75; with OUT 8
#   OUT                  a folder: put everything there at the end, as NAME-rows.tar.gz, and the
#                        checkpoints of unfinished runs as NAME.tar.gz.00, 01, ... (4 MiB a network)
#   FROM                 a folder with these: take them from there first
#   DRY=1                show what would be trained, and train nothing
#   RESEXP               the command; else .venv/bin/resexp, or python3 -m resexp
# So on machines that are lent for minutes and keep nothing, one piece is
#   MINUTES=8 OUT=pieces/2 FROM=pieces/1 ./scripts/figure6.sh
# Exit code: 0 all runs are done, 75 stopped: run it again, 1 a run failed (it goes on, too), 2 usage.
shopt -s nullglob
out=${OUT:+$(realpath -m "$OUT")}
from=${FROM:+$(realpath -m "$FROM")}
. "$(dirname "$0")/sweep.sh"
results=${RESULTS:-results}
name=${NAME:-figure6}
here=$results/$name
sweep=(experiment=he2015)
if [ -n "$jpeg" ]; then # the same recipe
    sweep=(experiment=cifar10_jpeg "data.root=$jpeg")
fi
precision=fp32
! nvidia-smi -L &>/dev/null || precision=tf32
precision=${PRECISION:-$precision}
echo "figure6: engine=${ENGINE:-auto} precision=$precision"
if [ "$precision" != fp32 ]; then # what is at its default is not part of a run's name
    sweep+=("precision=$precision")
fi
sweep+=("depth=${DEPTHS:-20,32,44,56}" arch=plain,residual "seed=${SEEDS:-0}" launch=lockstep
    "engine=${ENGINE:-auto}" "results=$results" "name=$name" "$@")
if [ "${DRY:-0}" = 1 ]; then
    exec "${resexp[@]}" run -m "${sweep[@]}" --dry-run
fi

# Takes what is in folder $1. What lies here and is not finished may be newer: it stays.
unpack() {
    local pieces=("$1/$name".tar.gz.[0-9]*) unfinished=("$here"/*/checkpoint.pt)
    if [ ! -e "$1/$name-rows.tar.gz" ]; then
        echo "FROM=$FROM holds no $name-rows.tar.gz: leave it out to begin" >&2
        exit 2
    fi
    if [ ${#unfinished[@]} -gt 0 ]; then
        echo "$here holds unfinished runs: leave FROM out to go on with them, or move it away" >&2
        exit 2
    fi
    mkdir -p "$results"
    tar -xzf "$1/$name-rows.tar.gz" -C "$results"
    [ ${#pieces[@]} -eq 0 ] || cat "${pieces[@]}" | tar -xz -C "$results"
}

# Puts everything into folder $1: what is small first, for it must not be lost, then the newest
# checkpoint of each unfinished run, in pieces of 15 MiB.
pack() {
    local checkpoints=("$here"/*/checkpoint.pt)
    mkdir -p "$1"
    rm -f "$1/$name".tar.gz.[0-9]*
    tar -cz -C "$results" --exclude='*.pt' --exclude='*.tmp' --exclude='*.bad' --exclude=.lock \
        -f "$1/$name-rows.tar.gz" "$name"
    [ ${#checkpoints[@]} -eq 0 ] || tar -cz -C "$results" "${checkpoints[@]#"$results/"}" |
        split -b 15m -d - "$1/$name.tar.gz."
    du -ch "$1/$name"*.tar.gz* | tail -n 1
}

# One part that fails costs neither the others nor the packing.
draw() {
    "${resexp[@]}" plot "$here" || code=1
    "${resexp[@]}" plot "$here" --style paper --which curves || code=1
    "${resexp[@]}" table "$here" --format markdown >"$here/table.md" || code=1
    "${resexp[@]}" verdict "$here" >"$here/verdict.txt" || [ $? -gt 2 ] || code=1 # 3: not shown
    "${resexp[@]}" report "$here" || code=1
    cat "$here/table.md" "$here/verdict.txt"
}

[ -z "$from" ] || unpack "$from"
began=$(date -u +%FT%TZ) SECONDS=0 signalled=1
[ -z "$out" ] || MINUTES=${MINUTES:-8}
# In the background, for bash would not hear a signal before the command ends.
timeout --preserve-status --signal=TERM --kill-after=60 "${MINUTES:-0}m" \
    "${resexp[@]}" run -m "${sweep[@]}" &
training=$!
trap 'signalled=1; kill -TERM $training 2>/dev/null || true' INT TERM
while [ $signalled -eq 1 ]; do # a signal ends wait, not the command
    signalled=0 code=0
    wait $training || code=$?
done
trap - INT TERM
[ $code -ne 143 ] || code=75 # stopped before there was anything to save
if [ -d "$here" ]; then
    [ -e "$here/pieces.csv" ] || echo began,seconds,exit_code >"$here/pieces.csv"
    echo "$began,$SECONDS,$code" >>"$here/pieces.csv"
    [ -z "$out" ] || pack "$out"
    if [ $code -eq 0 ]; then
        draw
        [ -z "$out" ] || pack "$out"
    fi
fi
exit $code
