#!/usr/bin/env bash
# What cures degradation without a skip? Optimizers, activations and initial weights, each at its best
# rate, plain and residual, 20 and 56 layers: results/digits/cures, which docs/cures.md tells of.
#   command   ./scripts/cures.sh             (again: finished runs are skipped)
#             CURES="none muon" ./scripts/cures.sh      some of them, in this order
#   hardware  any CPU; about 40 minutes on two quiet cores: 24 of the 440 runs, of every kind, took 138 s
#   expected  nothing: the rule and the predictions stand in the docstring of resexp/probes/cures.py
# Every network is tried at three rates, a factor of 3 apart, on seeds 90 and 91; the best by clean
# training loss is trained on seeds 30 to 34, which alone judge.
. "$(dirname "$0")/sweep.sh"
rates=lr=0.0067,0.02,0.06

cure() {
    on_digits cures depth=20,56 seed=90,91 "$@"
}

none() { cure arch=plain,residual,diracnet,repvgg $rates "$@"; }
adamw() { cure arch=plain,residual optimizer=adamw lr=0.003,0.01,0.03 "$@"; }
lars() { cure arch=plain,residual optimizer=lars lr=0.001,0.003,0.01 "$@"; }
muon() { cure arch=plain,residual optimizer=muon $rates "$@"; }
tat() { cure arch=plain,residual arch.activation=tat $rates "$@"; }
delta_orthogonal() { cure arch=plain,residual init=delta_orthogonal $rates "$@"; }
tat_delta_orthogonal() { cure arch=plain,residual arch.activation=tat init=delta_orthogonal $rates "$@"; }
dirac() { cure arch=plain,residual init=dirac $rates "$@"; }
looks_linear() { cure arch=plain,residual arch.activation=crelu init=looks_linear $rates "$@"; }

all="none tat delta_orthogonal muon adamw lars looks_linear dirac tat_delta_orthogonal"
for cure in ${CURES:-$all}; do
    "$cure" "$@"
done
judges=seed=${SEEDS:-30,31,32,33,34}
at_best lr "$judges" "$@"
"${resexp[@]}" export "$here" --out "$(dirname "$here")"
"${resexp[@]}" table "$here" "$judges" --format markdown >"$here/table.md"
"${resexp[@]}" report "$here" "$judges"
"${resexp[@]}" verdict "$here" --axis optimizer,init,arch.activation --best lr --chosen-on 90,91 |
    tee "$here/verdict.txt"
for page in mechanisms cures; do
    "${PYTHON:-${RESEXP_VENV:-.venv}/bin/python}" scripts/$page.py # docs/
done
