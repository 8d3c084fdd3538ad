#!/usr/bin/env bash
# Makes the virtual environment of tests/NAME/requirements.txt, once, and prints its python.
# usage: tests/venv.sh NAME    exit code 69 where the packages cannot be fetched
set -euo pipefail

tests=$(cd "$(dirname "$0")" && pwd -P)
list=$tests/$1/requirements.txt
venv=${CARGO_TARGET_DIR:-$tests/../target}/$1-venv
wanted=$(sha256sum "$list" | cut -d' ' -f1)

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9
if [[ $(cat "$venv/installed" 2>/dev/null) != "$wanted" ]]; then
	rm -rf "$venv"
	{
		python3 -m venv "$venv"
		# Without dependencies this is small: it tells an unreachable index from a broken list.
		"$venv/bin/pip" install --quiet --no-deps "$(head -n 1 "$list")" || exit 69
		"$venv/bin/pip" install --quiet --no-compile --requirement "$list"
	} >&2 9>&-
	echo "$wanted" >"$venv/installed"
fi
echo "$venv/bin/python"
