#!/usr/bin/env bash
#SBATCH --job-name=prepare_data
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
usage: sbatch [sbatch options] slurm/submit_prepare_data.sh [flags of 00_prepare_data]

Stage 00 as a job: fetches model and text into the cache of HF_HOME, writes WORKERS streams of
documents and a report on their tokens under RUN_ID. It needs a network unless all is cached; on
clusters whose nodes have none, run 00_prepare_data on the login node instead.

  RUN_ID=stories WORKERS=16 sbatch slurm/submit_prepare_data.sh
  RUN_ID=chats PROMPT_TEMPLATE=chat HF_DATASET=chats.jsonl sbatch slurm/submit_prepare_data.sh

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
stage_main 00_prepare_data "$@"
