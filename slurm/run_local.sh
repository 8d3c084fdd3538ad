#!/usr/bin/env bash
# The stages in this shell, without SLURM.
usage() {
	cat <<'USAGE'
usage: slurm/run_local.sh demo
       slurm/run_local.sh STAGE...

Runs stages one after the other without SLURM: prepare_data, save_activations, train_sae,
top_sentences. Settings come from the environment and from CONFIG, as in a job. `demo` runs all on
configs/demo/demo.yaml into ./store (or STORE_DIR) and prints where the report is.

Ctrl-C stops the running stage at its next safe point with exit code 75; the same command with the
same RUN_ID goes on from there.

  slurm/run_local.sh demo
  CONFIG=my.yaml RUN_ID=stories slurm/run_local.sh prepare_data save_activations train_sae top_sentences
  RUN_ID=stories SAE_RUN_ID=stories-k32 TOP_K=32 slurm/run_local.sh train_sae top_sentences
USAGE
}
(($#)) || { usage >&2; exit 2; }

# In an interactive allocation, too, the stages run in this shell and are not queued again.
unset "${!SLURM_@}"
PIPELINE_HOME=${PIPELINE_HOME:-$(cd "$(dirname "$0")/.." && pwd)}
# shellcheck source=slurm/stage.sh
source "$PIPELINE_HOME/slurm/stage.sh"

demo=''
binaries=()
for stage; do
	case $stage in
	-h | --help) usage; exit 0 ;;
	demo) demo=1 binaries=(00_prepare_data 01_save_activations 02_train_sae 03_top_sentences) ;;
	prepare_data) binaries+=(00_prepare_data) ;;
	save_activations) binaries+=(01_save_activations) ;;
	train_sae) binaries+=(02_train_sae) ;;
	top_sentences) binaries+=(03_top_sentences) ;;
	*) usage >&2; fail 2 "no stage is called $stage" ;;
	esac
done

if [[ -n $demo ]]; then
	# The names are fixed, so that a second call goes on with an interrupted first one.
	export CONFIG=$PIPELINE_HOME/configs/demo/demo.yaml STORE_DIR=${STORE_DIR:-./store}
	export RUN_ID=${RUN_ID:-demo} SAE_RUN_ID=${SAE_RUN_ID:-demo-sae}
elif [[ ${binaries[0]} == 0[01]_* ]]; then
	export RUN_ID=${RUN_ID:-$(date +%Y%m%d-%H%M%S)-$$}
fi
if [[ -n ${RUN_ID-} && " ${binaries[*]} " == *" 02_train_sae "* ]]; then
	export SAE_RUN_ID=${SAE_RUN_ID:-$RUN_ID-sae}
fi
load_cluster
# Paths in the demo's configuration are relative to the repository.
[[ -z $demo ]] || cd "$PIPELINE_HOME"

for binary in "${binaries[@]}"; do
	say "$binary: RUN_ID=${RUN_ID-} SAE_RUN_ID=${SAE_RUN_ID-} STORE_DIR=$STORE_DIR"
	code=0
	run_stage "$binary" || code=$?
	((code != 75)) || say "$binary stopped, progress is saved; go on with RUN_ID=${RUN_ID-} SAE_RUN_ID=${SAE_RUN_ID-} slurm/run_local.sh $*"
	((code == 0)) || exit "$code"
done
