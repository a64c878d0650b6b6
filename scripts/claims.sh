#!/usr/bin/env bash
# Claims about skips that a sweep of trained networks decides, and the sweeps: results/digits/claims,
# a pair of files of all, in which each is named as the probe that reads it.
#   command   ./scripts/claims.sh            (again: finished runs are skipped, probes are not)
#             CLAIMS="orders spans" ./scripts/claims.sh launch.jobs=1    (cures too, by cures.sh)
#   hardware  any CPU; about an hour of one core, at 16 s for 56 layers and 6 s for 20:
#             orders 7 minutes, spans 7, norms 21, gates 11, transformers 4, concatenation 7,
#             stochastic_depth 4, fading 10
#   expected  nothing: every rule stands in the docstring of its probe, written before these runs
# Seeds 10 to 14 judge. Where a setting is chosen (gate biases, the rates of norms), seeds 90 and
# 91 choose it, from as many values for every network.
. "$(dirname "$0")/sweep.sh"
python=${PYTHON:-${RESEXP_VENV:-.venv}/bin/python}
seeds=seed=${SEEDS:-10,11,12,13,14}
choice=seed=90,91

sweep() {
    on_digits "claims/$claim" "$@"
}

orders() {
    local all=original,bn_after_addition,relu_before_addition,relu_only_preactivation
    sweep depth=56 arch=residual "arch.order=$all,full_preactivation" "$seeds" "$@"
}

spans() {
    sweep depth=20,56 arch=plain "$seeds" "$@"
    sweep depth=20,56 arch=residual arch.skip_span=1,2,3 "$seeds" "$@"
}

norms() {
    local rates=lr=0.002,0.02,0.2
    sweep depth=56 arch=plain,residual arch.norm=batch,group,none $rates $choice "$@"
    sweep depth=56 arch=skipinit $rates $choice "$@"
    at_best lr "$seeds" "$@"
}

gates() {
    sweep depth=20,56 arch=residual "$seeds" "$@"
    sweep depth=20,56 arch=highway,shortcut_gate gate_bias=-1,-2,-3,-4 $choice "$@"
    at_best arch.gate_bias "$seeds" "$@"
}

transformers() {
    sweep depth=2,4,8 arch=transformer twin=none,plain "$seeds" "$@"
}

concatenation() {
    sweep depth=22,40 arch=dense twin=none,plain "$seeds" "$@"
    sweep experiment=blobs depth=13,18,23 arch=unet twin=none,plain "$seeds" "$@"
}

stochastic_depth() {
    sweep depth=20,56 arch=residual,stochastic_depth "$seeds" "$@"
}

fading() {
    sweep depth=56 arch=plain,residual steps=660 "$seeds" "$@"
    sweep depth=56 arch=fading fade_from=220 fade_to=440 steps=660 "$seeds" "$@"
}

cures() {
    scripts/cures.sh "$@"
    here=results/digits/cures
}

for claim in ${CLAIMS:-orders spans norms gates transformers concatenation stochastic_depth fading}; do
    "$claim" "$@"
    "${resexp[@]}" export results/digits/claims --out results/digits
    "${resexp[@]}" probe "$claim" "$here"
done
"$python" scripts/mechanisms.py
