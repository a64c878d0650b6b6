#!/usr/bin/env bash
# The whole tool in one command: install, train 24 small networks on the embedded digits, draw the
# figures, print the table and the verdict. No network is needed after the installation.
# Cost: the installation, then about 3 minutes on two CPU cores.
#   ./scripts/demo.sh [KEY=VALUE]...      such as seed=0,1,2,3,4 or results=elsewhere
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${RESEXP_VENV:-.venv}
scripts/install.sh "$venv"
"$venv/bin/resexp" demo "$@"
echo
echo "more: . $venv/bin/activate && resexp --help"
