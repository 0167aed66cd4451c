#!/usr/bin/env bash
# A recipe on several nodes under Slurm:
#   sbatch --nodes 4 examples/slurm/job.sh german.yaml [path=value ...]
# Five minutes before the time is over the run saves, and the job queues again; it continues where it stood.
#SBATCH --job-name=megatron-adapt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
ranks=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-1}))

# What fails on one node ends the others: they would wait for it. NODE_RANK is Slurm's own SLURM_NODEID.
code=0
srun --kill-on-bad-exit=1 megatron-adapt run "$@" --nnodes "$SLURM_NNODES" --nproc "$ranks" || code=$?

# 75: saved on request. 143: a node that had nothing to save was ended with those that had.
if [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
