# shellcheck shell=bash
# What the submit scripts and run_local.sh share: sourced, with PIPELINE_HOME set.
#
# Inside a job a stage runs under srun, is asked to stop with SIGUSR1 and is queued again when it
# was interrupted. Outside SLURM it runs in this shell and Ctrl-C or SIGTERM ask it to stop.

set -euo pipefail

child=''     # the running stage
asked=${asked-} # somebody wants it to stop; a submit script may have been told already
told=''      # and it has been told
woken=''     # a trap has cut `wait` short

say() { printf '%(%F %T)T %s\n' -1 "$*" >&2; }
fail() { # fail CODE MESSAGE
	printf 'error: %s\n' "$2" >&2
	exit "$1"
}

in_job() { [[ -n ${SLURM_JOB_ID-} ]]; }

tell_stage() {
	told=1
	kill -USR1 "$child" 2>/dev/null || true
}
on_stop() { # on_stop SIGNAL
	asked=1 woken=1
	# SLURM sends TERM to the tasks as well, and srun would kill them if it got one.
	[[ -z $child || ($1 == TERM && -n ${SLURM_JOB_ID-}) ]] || tell_stage
}

# Reads env.sh and makes STORE_DIR absolute. PIPELINE_BIN is not exported: the login node chooses
# another binary than a job with a GPU.
load_cluster() {
	export PIPELINE_HOME
	set +eu # `module` stands neither
	# shellcheck source=slurm/env.sh
	source "$PIPELINE_HOME/slurm/env.sh"
	set -eu
	PIPELINE_BIN=${PIPELINE_BIN:-$PIPELINE_HOME/target/release}
	STORE_DIR=${STORE_DIR:-${SCRATCH:-.}/store}
	[[ $STORE_DIR == /* || $STORE_DIR == *://* ]] || STORE_DIR=$PWD/${STORE_DIR#./}
	export STORE_DIR
	# Steps have no PATH under --export=NONE, and srun ignores SLURM_CPUS_PER_TASK.
	export SLURM_EXPORT_ENV=ALL SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
}

# This job's name for scontrol. An array's element is named in full: one of them has the id of
# the whole array.
job_name() {
	if [[ -n ${SLURM_ARRAY_JOB_ID-} ]]; then
		echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
	else
		echo "$SLURM_JOB_ID"
	fi
}

# Runs one binary to its end and returns its exit code; 75 if it was stopped on request.
run_stage() { # run_stage BINARY [ARGUMENT]...
	local binary=$PIPELINE_BIN/$1 launch=() code=75
	shift
	[[ -x $binary ]] ||
		fail 69 "no executable at $binary; run \`cargo build --release\` in $PIPELINE_HOME or set PIPELINE_BIN"
	trap 'on_stop USR1' USR1
	trap 'on_stop TERM' TERM
	trap 'on_stop INT' INT
	[[ -z $asked ]] || return 75
	if in_job; then launch=(srun --kill-on-bad-exit=1); fi
	# A process group of its own: a terminal's Ctrl-C and SLURM's signals to the script's group
	# then reach the stage once, through this script, and not twice.
	set -m
	"${launch[@]}" "$binary" "$@" </dev/null &
	child=$!
	set +m
	[[ -z $asked || -n $told ]] || tell_stage
	woken=1
	while [[ -n $woken ]]; do
		woken=''
		wait "$child" && code=0 || code=$?
	done
	child='' told=''
	# Stopped before its handlers were in place: nothing was begun, so nothing is lost.
	if [[ -n $asked && $code =~ ^(130|138|143)$ ]]; then code=75; fi
	return "$code"
}

# Queues an interrupted job again. SLURM would also revive a cancelled one, so only a running job
# is; a job that is requeued or out of time already is SLURM's.
requeue_if_interrupted() { # requeue_if_interrupted CODE
	[[ $1 =~ ^(75|138|143)$ ]] || return 0
	local self state restarts=${SLURM_RESTART_COUNT:-0}
	self=$(job_name)
	state=$(scontrol show job -o "$self") || state=''
	[[ $state =~ \ JobState=([A-Z_]+) ]] && state=${BASH_REMATCH[1]}
	if [[ $state != RUNNING && $state != SIGNALING ]]; then
		say "job $self is ${state:-unknown to scontrol}: not queued again"
	elif ((restarts >= ${MAX_REQUEUES:-100})); then
		say "job $self has been queued again $restarts times, MAX_REQUEUES=${MAX_REQUEUES:-100}: stopping; progress is kept"
	else
		say "job $self was interrupted (exit code $1): queueing it again"
		scontrol requeue "$self"
	fi
}

# The whole of a submit script.
stage_main() { # stage_main BINARY [ARGUMENT]...
	actions_main "$1" '' "${@:2}"
}

# As stage_main, with each of some actions before the arguments, up to the first that fails.
actions_main() { # actions_main BINARY 'ACTION ...' [ARGUMENT]...
	local binary=$1 actions action code=0
	read -ra actions <<<"$2"
	((${#actions[@]})) || actions=('')
	shift 2
	load_cluster
	if in_job; then
		say "$binary: job $(job_name) on ${SLURM_JOB_NODELIST-?}, restart ${SLURM_RESTART_COUNT:-0}, RUN_ID=${RUN_ID-}, SAE_RUN_ID=${SAE_RUN_ID-}, STORE_DIR=$STORE_DIR"
	fi
	for action in "${actions[@]}"; do
		run_stage "$binary" ${action:+"$action"} "$@" || code=$?
		say "$binary${action:+ $action}: exit code $code"
		((code == 0)) || break
	done
	if in_job; then requeue_if_interrupted "$code"; fi
	exit "$code"
}
