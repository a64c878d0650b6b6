#!/usr/bin/env bash
# Make a virtual environment with resexp in it, if it is not there: install.sh FOLDER [EXTRA]
# About 5 GB and a few minutes the first time, nearly all of it PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
extra=${2:+[$2]}
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "resexp needs Python 3.11 or newer; $("$python" --version 2>&1) is here. Set PYTHON=..." >&2
    exit 2
fi
stamp="$venv/.resexp${2:+-$2}"
if [ -x "$venv/bin/resexp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$(cat "$stamp")" = "$PWD" ]; then
    exit 0
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing into $venv (PyTorch is large: a few minutes the first time)" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extra"
echo "$PWD" >"$stamp"
