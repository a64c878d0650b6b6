#!/usr/bin/env bash
# What only a GPU can show, in one command: the checks of its first minutes (tests/test_gpu.py), the
# micro-benchmarks, a first run on a cold cache, resexp bench, and the other tests marked gpu. Leaves
# at most 8 small files in one folder, each written as its part goes on, so that a cut loses nothing;
# summary.txt says how each part went.
#   command   ./scripts/gpu_check.sh [--dry]     --dry: without a GPU, all that a CPU can try, tiny
#   hardware  one GPU; written for an H200
#   cost      at most MINUTES, by default 9: a part that takes longer is stopped, and the next begins
# OUT names the folder, else results/gpu-check (with --dry results/gpu-check-dry); PYTHON the
# interpreter, else .venv/bin/python or python3; RESEXP_CIFAR10_JPEG the first run's images, else the
# digits. No network, no installation.
# Exit code: 0 all parts are ok, 1 one is not, 2 there is no GPU.
set -euo pipefail
folder=${OUT:+$(realpath -m "$OUT")}
images=${RESEXP_CIFAR10_JPEG:+$(realpath -m "$RESEXP_CIFAR10_JPEG")}
cd "$(dirname "$0")/.."
folder=${folder:-results/gpu-check${1:+-dry}}
python=${PYTHON:-${RESEXP_VENV:-.venv}/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # scripts/microbench.py imports resexp, too
total=$(awk -v minutes="${MINUTES:-9}" 'BEGIN { print int(60 * minutes) }')
dry=()
bench=(--seconds 0.5 depth=20,56 arch=plain,residual precision=bf16 engine=triton,graph)
first=(depth=56 batch_size=128 precision=bf16 engine=triton)
[ -z "$images" ] || first+=(experiment=cifar10_jpeg "data.root=$images")
if [ $# -gt 1 ] || [ "${1:---dry}" != --dry ]; then
    echo "gpu_check: it takes --dry, or nothing" >&2
    exit 2
elif [ $# -eq 1 ]; then
    dry=(--dry)
    bench=(--seconds 0.1 depth=8 arch=plain,residual batch_size=8 threads=1)
    first=(depth=8 batch_size=8 threads=1)
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_check: PyTorch finds no GPU here; --dry tries on the CPU what can be tried there" >&2
    exit 2
fi
mkdir -p "$folder"
rm -f "$folder"/{summary,checks,microbench,first,bench,tests}.txt "$folder"/{bench,microbench}.json
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
summary() { printf '%s\n' "$*" | tee -a "$folder/summary.txt"; }
failures=0

# part NAME PERCENT COMMAND...: a part of that share of the time at most, its output in NAME.txt
part() {
    local name=$1 most=$((total * $2 / 100)) left=$((total - SECONDS)) began=$SECONDS code=0 how limit
    shift 2
    limit=$((most < left ? most : left))
    if [ "$limit" -lt 5 ]; then
        failures=$((failures + 1))
        summary "$(printf '%-11s left out: no time' "$name")"
        return
    fi
    timeout --kill-after=5 "$limit" "$@" >"$folder/$name.txt" 2>&1 || code=$?
    case $code in
        0) how=ok ;;
        124 | 137) how="out of time: limit $limit s" ;;
        *) how="failed: exit code $code, see $name.txt" ;;
    esac
    [ $code -eq 0 ] || failures=$((failures + 1))
    summary "$(printf '%-11s %4d s   %s' "$name" $((SECONDS - began)) "$how")"
}

summary "$(date -u +%FT%TZ)   commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown) ${dry[*]}"
if command -v nvidia-smi >/dev/null; then
    summary "$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader || true)"
fi
pytest=("$python" -m pytest -p no:cacheprovider -W default -m gpu -rs)
mapfile -t tests < <(grep -l 'mark\.gpu' tests/test_*.py | grep -v test_gpu) # no others are imported
export PYTHONUNBUFFERED=1
part checks 55 "${pytest[@]}" -v -s tests/test_gpu.py
part microbench 20 "$python" scripts/microbench.py "${dry[@]}" --output "$folder/microbench.json"
# Seconds of the whole command: five steps, of which the fifth is a graph's, and an evaluation.
part first 10 env TRITON_CACHE_DIR="$scratch/triton" \
    "$python" -m resexp run arch=residual steps=5 eval_every=5 "results=$scratch" "${first[@]}"
part bench 80 "$python" -m resexp bench --output "$folder/bench.json" "${bench[@]}"
part tests 100 "${pytest[@]}" "${tests[@]}"
summary "$(printf '%-11s %4d s' all $SECONDS)"
tail -qn 1 "$folder"/{checks,tests}.txt || true
echo "in $folder"
[ $failures -eq 0 ]
