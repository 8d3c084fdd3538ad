#!/usr/bin/env bash
#SBATCH --job-name=name_latents
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --time=04:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
asked=''
trap 'asked=1' USR1 TERM # SIGUSR1 kills a script that has no trap
usage() {
	cat <<'USAGE'
usage: sbatch [--array=0-N] [sbatch options] slurm/submit_name_latents.sh [ACTION] [flags of 04_name_latents]

Stage 04 as a job: names for the latents of a training (SAE_RUN_ID, default: the newest complete
one) from a language model, and their scores. Without an ACTION all of them are done in turn:
retrieve, send, retrieve, again for answers that could not be read, parse, score. The keys
(ANTHROPIC_API_KEY, OPENAI_API_KEY) come with the environment.

While batches are under way or answers are to come, the job looks for them for WAIT_SECONDS (here
240), ends and is queued again, at most MAX_REQUEUES (here 1000) times; nothing is sent or paid twice.

  NAMING_MODEL=claude-haiku-4-5 MAX_COST=20 sbatch slurm/submit_name_latents.sh
  BACKEND=openai NAMING_MODEL=gpt-4o-mini sbatch slurm/submit_name_latents.sh --latents top:500
  sbatch slurm/submit_name_latents.sh retrieve

A chat endpoint answers at once; the elements of a job array share the latents:

  BACKEND=chat OPENAI_BASE_URL=http://gpu7:8000/v1 NAMING_MODEL=qwen3 sbatch --array=0-7 slurm/submit_name_latents.sh

Compute nodes need a way to the endpoint. Cluster settings: slurm/env.sh.
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
export WAIT_SECONDS=${WAIT_SECONDS:-240} MAX_REQUEUES=${MAX_REQUEUES:-1000}
steps='retrieve send retrieve send retrieve parse score'
if [[ ${1-} =~ ^[a-z]+$ ]]; then steps=$1; shift; fi
actions_main 04_name_latents "$steps" "$@"
