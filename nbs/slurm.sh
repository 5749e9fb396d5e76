#!/usr/bin/env bash
# A replay on the nodes that SLURM lends: Ray starts on all of them, runs the plan on the first, and ends with it.
#   sbatch --nodes 4 --gpus-per-node 8 nbs/slurm.sh --profile paper --seeds 0:5 --set confirm=false
# Submit it from the clone, on a file system that the nodes share. What follows the script goes to `smoltraces reproduce`.
# Nobody can agree to the teachers' costs there, hence confirm=false; budget_usd still caps them.
# A job that ends before the plan does is submitted again with the same line; what is done stays done.
#SBATCH --job-name=smoltraces
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@120
#SBATCH --output=outputs/slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH" # symmetric-run calls ray by its name
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
	ray symmetric-run --address "$address:${RAY_PORT:-6379}" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
	smoltraces reproduce --engine ray --address auto "$@"
