#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go and without thinking: bash benchmarks/gpu/first_call.sh [OUTPUT_FOLDER [OPTIONS]]
# Needs torch, Transformer Engine, megatron-core, transformers and this project's other requirements; no network.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
python3 -c "from megatron_adapt import _C" 2>/dev/null || python3 setup.py -q build_ext --inplace --force  # none, or one of other sources
exec python3 benchmarks/gpu/first_call.py --output "${1:-gpu_results}" "${@:2}"
