#!/usr/bin/env bash
# Set-up and the tests. Arguments are passed on to pytest: bash tests/run.sh tests/unit -k recipe
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
exec python -m pytest -q -n 2 --dist loadfile "$@"
