#!/bin/bash
# Train with SLURM on several machines, and go on by itself in a new job when the time is over:
#   cd bundles/swin_bob_pretrain && CKPT_DIR=/scratch/run1 sbatch docs/slurm.sh --dataset_dir /data/dixon
# Activate the environment first; jobs inherit it. Two minutes before the end, the job saves its state and is requeued.
#SBATCH --job-name=swin_bob
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

ckpt_dir=${CKPT_DIR:-models}
resume=false
if [ -f "$ckpt_dir/training_state.ckpt" ]; then resume=true; fi
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# This script gets the signal (B:) and sends it to the processes of the training, which save and exit with 0.
stopped=false
trap 'stopped=true; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1

# torchrun itself ignores the signal, which would end it before its processes have saved. Ignite (0.5.5) would replace
# LOCAL_RANK of torchrun, the number of the GPU, by the task's number of SLURM, if it saw the variables of the job.
srun bash -c 'trap "" USR1; unset SLURM_JOB_ID SLURM_JOBID; exec torchrun "$@"' torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node "${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" \
    --rdzv_backend c10d --rdzv_endpoint "$head:${RDZV_PORT:-29500}" --rdzv_id "$SLURM_JOB_ID" \
    -m monai.bundle run training --config_file "['configs/train.json','configs/multi_gpu_train.json']" \
    --ckpt_dir "$ckpt_dir" --resume "$resume" "$@" &
run=$!

status=138
while [ "$status" -eq 138 ]; do # 128 + USR1: the signal interrupted the waiting
    status=0
    wait "$run" || status=$?
done
if "$stopped" && [ "$status" -eq 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
