#!/usr/bin/env bash
# Set-up and the tests. Arguments are passed on to pytest: bash tests/run.sh tests/unit -k recipe
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
# In the order of the folders: the long tests of whole runs come first, and no core waits for the other at the end.
exec python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
