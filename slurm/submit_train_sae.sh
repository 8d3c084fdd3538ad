#!/usr/bin/env bash
#SBATCH --job-name=train_sae
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=08:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
asked=''
trap 'asked=1' USR1 TERM # SIGUSR1 kills a script that has no trap
usage() {
	cat <<'USAGE'
usage: sbatch [sbatch options] slurm/submit_train_sae.sh [flags of 02_train_sae]

Stage 02 as a job: activation shards to a sparse autoencoder. RUN_ID names the capture (default:
the newest complete one when the job starts; name it where others may finish meanwhile), SAE_RUN_ID
the training (default: a name made from the settings). The job is queued again when it is
pre-empted or runs out of time, and goes on from its last checkpoint.

  sbatch slurm/submit_train_sae.sh
  TOP_K=32 N_LATENTS_MULTIPLIER=8 sbatch --gres=gpu:1 slurm/submit_train_sae.sh
  RUN_ID=stories SAE_RUN_ID=stories-jumprelu sbatch slurm/submit_train_sae.sh --sae-arch jumprelu

SWEEP names a YAML list of settings, each for an SAE of its own: all in one job and one read of the
shards, or each in an element of a job array.

  SWEEP=sweep.yaml SAE_RUN_ID=stories-sweep sbatch slurm/submit_train_sae.sh
  SWEEP=sweep.yaml SAE_RUN_ID=stories-sweep sbatch --array=0-7 slurm/submit_train_sae.sh

Cluster settings: slurm/env.sh.
USAGE
}
if [[ ${1-} == --help || ${1-} == -h ]]; then usage; exit 0; fi

# SLURM runs a copy of this file, so $0 does not lead to the repository.
if [[ -z ${PIPELINE_HOME-} ]]; then
	PIPELINE_HOME=${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}
fi
if [[ ! -r $PIPELINE_HOME/slurm/stage.sh ]]; then
	echo "error: no slurm/stage.sh in $PIPELINE_HOME: submit from the repository's root, or set PIPELINE_HOME to it" >&2
	exit 2
fi
# shellcheck source=slurm/stage.sh
source "$PIPELINE_HOME/slurm/stage.sh"
stage_main 02_train_sae "$@"
