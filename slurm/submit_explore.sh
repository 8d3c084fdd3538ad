#!/usr/bin/env bash
#SBATCH --job-name=explore
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --signal=B:USR1@30
#SBATCH --time=04:00:00
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
asked=''
trap 'asked=1' USR1 TERM # SIGUSR1 kills a script that has no trap
usage() {
	cat <<'USAGE'
usage: sbatch [sbatch options] slurm/submit_explore.sh [flags of 05_explore]

Stage 05 as a job: the page to browse, complete and steer, until the job's time is over or scancel
ends it. The log has the ssh command to run on your own machine, and then the address to open there:

  sbatch slurm/submit_explore.sh
  tail -f explore-JOB.out

EXPLORE_PORT is by default made from the job's id, so that jobs of one node do not meet. The server
listens at the node's 127.0.0.1, which ssh reaches through the login node where that lets you on to
nodes of your jobs; elsewhere LISTEN=0.0.0.0 lets the login node connect. TUNNEL_HOST is the login
node's name as your machine knows it (default: where the job was submitted).

  SAE_RUN_ID=stories-jumprelu sbatch --gres=gpu:1 slurm/submit_explore.sh
  LISTEN=0.0.0.0 TUNNEL_HOST=login.cluster.example sbatch slurm/submit_explore.sh

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
load_cluster
if in_job; then
	# Below the ports that systems give to outgoing connections.
	export EXPLORE_PORT=${EXPLORE_PORT:-$((12000 + SLURM_JOB_ID % 20000))}
	# Whoever reads the token in the log is let in.
	[[ ! -f /proc/$$/fd/1 ]] || chmod go= "/proc/$$/fd/1"
fi
stage_main 05_explore "$@"
