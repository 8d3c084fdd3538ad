#!/usr/bin/env bash
#SBATCH --job-name=save_activations
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=04:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
asked=''
trap 'asked=1' USR1 TERM # SIGUSR1 kills a script that has no trap
usage() {
	cat <<'USAGE'
usage: sbatch [--array=0-N] [sbatch options] slurm/submit_save_activations.sh [flags of 01_save_activations]

Stage 01 as a job: text to activation shards. Settings come from the environment, from CONFIG and
from the flags. The job is queued again when it is pre-empted or runs out of time, and goes on
where it stopped; so does the same command after any other end. RUN_ID names the run (default: a
name made from the settings); one that 00_prepare_data made has its text and number of workers.

  sbatch slurm/submit_save_activations.sh
  LAYER_NUM=12 DATA_LIMIT=100000 sbatch --time=08:00:00 slurm/submit_save_activations.sh
  RUN_ID=stories CONFIG=my.yaml sbatch --array=0-15%4 slurm/submit_save_activations.sh
  RUN_ID=stories CONFIG=my.yaml WORKERS=16 sbatch --array=3,7 slurm/submit_save_activations.sh

The last line repeats two workers of sixteen. Cluster settings: slurm/env.sh.
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
stage_main 01_save_activations "$@"
