#!/usr/bin/env bash
#SBATCH --job-name=top_sentences
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=02:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
asked=''
trap 'asked=1' USR1 TERM # SIGUSR1 kills a script that has no trap
usage() {
	cat <<'USAGE'
usage: sbatch [sbatch options] slurm/submit_top_sentences.sh [flags of 03_top_sentences]

Stage 03 as a job: the top sentences of every latent, as YAML, JSON lines and an HTML report.
SAE_RUN_ID names the training (default: the newest complete one). The job is queued again when it
is pre-empted or runs out of time.

  sbatch slurm/submit_top_sentences.sh
  SAE_RUN_ID=stories-jumprelu TOP_N=20 sbatch slurm/submit_top_sentences.sh

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
stage_main 03_top_sentences "$@"
