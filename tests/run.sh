#!/usr/bin/env bash
# All checks and tests, and what they need on a Debian or Ubuntu machine with a Rust toolchain.
usage() {
	cat <<'USAGE'
usage: tests/run.sh [--no-install] [NEXTEST ARGUMENT]...

Installs the packages that the tests need (as root or with sudo: SLURM, Chromium, shellcheck,
Python, node; in target/: cargo-nextest where it is missing, Python with SAELens and with moto,
Playwright), then checks format, lints, documentation and the CUDA code, and runs every test. Prints each step with
its duration; the exit code is 0 only if all of them pass.

  tests/run.sh
  tests/run.sh -E 'test(slurm::)'     only some tests, after all checks
USAGE
}
set -euo pipefail

install=1
case ${1-} in
-h | --help) usage; exit 0 ;;
--no-install) install=''; shift ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

step() { # step NAME COMMAND...
	local name=$1 begin=$SECONDS
	shift
	printf '\n=== %s\n' "$name"
	if "$@" </dev/null; then
		printf '=== %s: %d s\n' "$name" $((SECONDS - begin))
	else
		local code=$?
		printf '=== %s: FAILED (%d) after %d s\n' "$name" "$code" $((SECONDS - begin))
		exit "$code"
	fi
}

packages() { # installs the Debian packages whose commands are missing
	local need=() pair sudo=()
	for pair in shellcheck:shellcheck chromium:chromium python3:python3 munged:munge \
		slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client node:nodejs npm:npm; do
		PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || need+=("${pair#*:}")
	done
	python3 -c 'import ensurepip, venv' 2>/dev/null || need+=(python3-venv)
	((${#need[@]})) || return 0
	((EUID == 0)) || sudo=(sudo -n)
	echo "installing ${need[*]}"
	local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
	"${apt[@]}" install -y --no-install-recommends "${need[@]}" >/dev/null 2>&1 ||
		{ "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${need[@]}" >/dev/null; }
}

nextest() {
	PATH=$PWD/target/tools/bin:$PATH
	cargo nextest --version 2>/dev/null || cargo install --locked --root target/tools cargo-nextest
}

python() { # without PyPI the tests that need it say so themselves
	local name code
	for name in interop remote; do
		tests/venv.sh "$name" || { code=$?; ((code == 69)) || return "$code"; }
	done
}

node_packages() {
	local code
	tests/npm.sh explore || { code=$?; ((code == 69)) || return "$code"; }
}

cuda() { # its own directory: the empty kernels must never meet a real build
	NVCC=$PWD/tests/cuda/nvcc-none CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP=90 \
		cargo clippy --locked --release --features cuda --target-dir target/nvcc-none -- -D warnings
}

documentation() {
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --release --no-deps --document-private-items
}

if [[ -n $install ]]; then
	step 'packages' packages
	step 'cargo-nextest' nextest
	step 'python environments' python
	step 'node packages' node_packages
fi
step 'format' cargo fmt --check
step 'clippy' cargo clippy --locked --release --all-targets -- -D warnings
step 'clippy, CUDA code with a pretended nvcc' cuda
step 'documentation' documentation
step 'build' cargo build --locked --release
step 'tests' cargo nextest run --locked --release --profile ci "$@"
printf '\nall passed in %d s\n' "$SECONDS"
