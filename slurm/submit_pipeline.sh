#!/usr/bin/env bash
# Queues 00 -> 01 -> 02 -> 03 as a dependency chain; runs on the login node.
usage() {
	cat <<'USAGE'
usage: slurm/submit_pipeline.sh [--array SPEC] [--check] [--prepare-here] [-- sbatch options for every stage]

Queues 00_prepare_data -> 01_save_activations -> 02_train_sae -> 03_top_sentences, each after the
one before it has succeeded, and prints the job ids and what to look at. Settings come from the environment and from
CONFIG; the resources of each stage, account and partition from slurm/env.sh.

  --array SPEC   01 as a job array, one stream per element (0-15, 0-15%4); the number of streams
                 is the highest index plus one unless WORKERS says otherwise
  --check        first run 01_save_activations --check here, on the CPU, and stop if it fails
  --prepare-here run 00_prepare_data here before anything is queued: for compute nodes without a
                 network

With SWEEP, 02_train_sae trains all of its SAEs in one job, and 03_top_sentences is left to you: queue
it for those that the table in 02's log recommends.

RUN_ID and SAE_RUN_ID name the runs; without them new names are made from the date, so pipelines
queued at the same time never meet. Naming an existing run goes on with it. Logs go to LOG_DIR,
by default $STORE_DIR/logs, or ./logs where STORE_DIR is a URL.

  slurm/submit_pipeline.sh
  CONFIG=my.yaml slurm/submit_pipeline.sh --check --array 0-15%4
  CONFIG=my.yaml slurm/submit_pipeline.sh --prepare-here
  RUN_ID=stories SAE_RUN_ID=stories-k32 TOP_K=32 slurm/submit_pipeline.sh -- --qos=long
USAGE
}

array='' check='' here='' options=()
while (($#)); do
	case $1 in
	--array) array=${2-}; shift 2 || { usage >&2; exit 2; } ;;
	--array=*) array=${1#*=}; shift ;;
	--check) check=1; shift ;;
	--prepare-here) here=1; shift ;;
	--) shift; options=("$@"); break ;;
	-h | --help) usage; exit 0 ;;
	*) echo "error: unknown argument $1" >&2; usage >&2; exit 2 ;;
	esac
done

PIPELINE_HOME=${PIPELINE_HOME:-$(cd "$(dirname "$0")/.." && pwd)}
# shellcheck source=slurm/stage.sh
source "$PIPELINE_HOME/slurm/stage.sh"

# The highest index of an array such as 0-15%4 or 1,3-9:2, plus one.
streams() { # streams SPEC
	local part last highest=-1
	[[ $1 =~ ^[0-9]+(-[0-9]+(:[0-9]+)?)?(,[0-9]+(-[0-9]+(:[0-9]+)?)?)*(%[0-9]+)?$ ]] ||
		fail 2 "--array $1 is not an array like 0-15, 0-15%4 or 3,7"
	for part in $(tr , ' ' <<<"${1%%\%*}"); do
		part=${part%%:*} last=${part##*-}
		if ((last > highest)); then highest=$last; fi
	done
	echo $((highest + 1))
}

# Queues one stage and prints its job id. Everything else is exported with the environment.
submit() { # submit STAGE [sbatch option]...
	local stage=$1 log=%x-%j.out id
	shift
	[[ $* != *--array=* ]] || log=%x-%A_%a.out
	# With no directory for its log a job fails at once and without a word.
	id=$(sbatch --parsable --export=ALL --job-name="$stage" --output="$LOG_DIR/$log" "$@" \
		"${options[@]}" "$PIPELINE_HOME/slurm/submit_$stage.sh") ||
		fail 69 "sbatch refused $stage${submitted:+; already queued: $submitted, scancel them or let them run}"
	echo "${id%%;*}"
}

command -v sbatch >/dev/null || fail 69 "no sbatch here; without SLURM use slurm/run_local.sh"
load_cluster
if [[ -n $array ]]; then
	WORKERS=${WORKERS:-$(streams "$array")}
	export WORKERS
fi
export RUN_ID=${RUN_ID:-$(date +%Y%m%d-%H%M%S)-$$}
export SAE_RUN_ID=${SAE_RUN_ID:-$RUN_ID-sae}
# SLURM writes logs to a directory, wherever the runs go.
if [[ $STORE_DIR == *://* ]]; then LOG_DIR=${LOG_DIR:-$PWD/logs}; fi
LOG_DIR=${LOG_DIR:-$STORE_DIR/logs}
mkdir -p "$LOG_DIR" || fail 69 "cannot make the log directory $LOG_DIR"
if [[ -n $check ]]; then
	DEVICE=cpu "$PIPELINE_HOME/target/release/01_save_activations" --check
fi

after=(--kill-on-invalid-dep=yes)
submitted='' first='' wait=()
if [[ -n $here ]]; then
	"$PIPELINE_BIN/00_prepare_data"
else
	first=$(submit prepare_data "${PREPARE_OPTIONS[@]}")
	submitted=$first wait=("${after[@]}" --dependency="afterok:$first")
fi
second=$(submit save_activations "${wait[@]}" ${array:+"--array=$array"} "${SAVE_OPTIONS[@]}")
submitted+=${submitted:+ }$second
third=$(submit train_sae "${after[@]}" --dependency="afterok:$second" "${TRAIN_OPTIONS[@]}")
submitted+=" $third"
fourth='' kind=sweeps
if [[ -z ${SWEEP-} ]]; then
	fourth=$(submit top_sentences "${after[@]}" --dependency="afterok:$third" "${TOP_OPTIONS[@]}")
	submitted+=" $fourth" kind=runs
fi

cat <<DONE
RUN_ID      $RUN_ID
SAE_RUN_ID  $SAE_RUN_ID
STORE_DIR   $STORE_DIR
prepare_data      ${first:-done here}
save_activations  $second${first:+  (after $first)}${array:+  (array $array, $WORKERS streams)}
train_sae         $third  (after $second)
top_sentences     ${fourth:-SAE_RUN_ID=$SAE_RUN_ID-NAME sbatch slurm/submit_top_sentences.sh}${fourth:+  (after $third)}

watch   squeue -j ${submitted// /,}
logs    $LOG_DIR
cancel  scancel $submitted
result  $STORE_DIR/$kind/$SAE_RUN_ID
DONE
