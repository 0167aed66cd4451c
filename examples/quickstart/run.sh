#!/usr/bin/env bash
# Set-up and the main job: teach a tiny English model German, on two CPU processes, offline once installed.
# Arguments are passed on: bash examples/quickstart/run.sh phases.full.steps=500
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/environment.sh
exec megatron-adapt run examples/quickstart/recipe.yaml "$@"
