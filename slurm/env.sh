# shellcheck shell=bash
# The one place where a cluster is adapted. Every script of this directory sources it, on the
# login node and inside the job. Nothing here is required: with the file as it stands the jobs go
# to your default account and partition. A variable that is already set in your shell wins
# wherever the form ${NAME:-value} is used; keep that form when you edit.

# --- where jobs are queued --------------------------------------------------------------------
# sbatch reads these itself; they win over the #SBATCH lines and lose against its command line.
# For a plain `sbatch submit_*.sh`, run `source slurm/env.sh` first.
# export SBATCH_ACCOUNT=${SBATCH_ACCOUNT:-my_account}
# export SBATCH_PARTITION=${SBATCH_PARTITION:-gpu}

# Resources of each stage in submit_pipeline.sh, in addition to the #SBATCH lines of its script.
# shellcheck disable=SC2034
PREPARE_OPTIONS=() # e.g. (--partition=transfer --time=01:00:00)
# shellcheck disable=SC2034
SAVE_OPTIONS=()  # e.g. (--time=08:00:00 --cpus-per-task=16 --gres=gpu:1)
# shellcheck disable=SC2034
TRAIN_OPTIONS=() # e.g. (--time=12:00:00 --gres=gpu:1)
# shellcheck disable=SC2034
TOP_OPTIONS=()   # e.g. (--time=02:00:00)

# --- modules ----------------------------------------------------------------------------------
MODULES=()       # e.g. (cuda/13.0)
if ((${#MODULES[@]})); then
	if command -v module >/dev/null; then
		module load "${MODULES[@]}"
	else
		echo "env.sh: no \`module\` command here, going on without ${MODULES[*]}" >&2
	fi
fi

# --- paths ------------------------------------------------------------------------------------
# Runs go to $STORE_DIR, by default $SCRATCH/store where the site sets SCRATCH, else ./store. It may
# be s3://bucket/prefix, gs:// or az://, with credentials in the environment.
# export STORE_DIR=${STORE_DIR:-/scratch/my_project/store}
# export HF_HOME=${HF_HOME:-/scratch/my_project/huggingface}
# Compute nodes without a network read what the login node has cached:
# export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}

# --- CPU or GPU binaries ----------------------------------------------------------------------
# A CUDA binary does not start where the driver is missing, so there are two builds:
#   cargo build --release
#   cargo build --release --features cuda --target-dir target/cuda
# The second is taken in jobs that were given a GPU, unless DEVICE=cpu.
if [[ -z ${PIPELINE_BIN-} && -d ${PIPELINE_HOME-}/target/cuda/release && ${DEVICE-} != cpu &&
	-n ${SLURM_JOB_GPUS-}${SLURM_STEP_GPUS-}${CUDA_VISIBLE_DEVICES-} ]]; then
	PIPELINE_BIN=$PIPELINE_HOME/target/cuda/release
fi
