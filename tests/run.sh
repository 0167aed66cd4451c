#!/usr/bin/env bash
# Set-up and the tests. Arguments are passed on to pytest: bash tests/run.sh tests/unit -k recipe
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
# A core for each of the two workers: threads of one would wait for the core that the other one has.
export OMP_NUM_THREADS=1
# In the order of the folders: the long tests of whole runs come first, and no core waits for the other at the end.
exec python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
