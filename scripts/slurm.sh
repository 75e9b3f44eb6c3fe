#!/usr/bin/env bash
# Trains on several GPU nodes of a Slurm cluster: an example to copy and adapt to yours.
#   sbatch scripts/slurm.sh --config=configs/default.py --config.batch_size=1024 --config.min_steps_per_epoch=1
#
# One process per GPU; they find each other through Slurm's environment variables. The workdir
# must be on a file system that the first node can write to and the next job can read. A job
# that is stopped at its time limit saves; submit the same command again to resume.
#SBATCH --job-name=digitnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@60
#SBATCH --output=digitnet-%j.log
set -euo pipefail

# sbatch runs a copy of this file; the folder it was submitted from is the checkout.
cd "${SLURM_SUBMIT_DIR:?send this by sbatch, from the checkout}"
# Create .venv once, on a node with internet access: bash scripts/run.sh --help, and then
#   .venv/bin/python -m pip install "jax[cuda13]==<the version in requirements.lock>"
# Since Slurm 22.05, srun does not inherit --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
exec srun --kill-on-bad-exit=1 .venv/bin/python main.py --start_timeout=300 "$@"
