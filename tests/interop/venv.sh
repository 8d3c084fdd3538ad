#!/usr/bin/env bash
# Makes the virtual environment of the interoperation tests, once, and prints its python.
# usage: tests/interop/venv.sh    exit code 69 where the packages cannot be fetched
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd -P)
venv=${CARGO_TARGET_DIR:-$here/../../target}/interop-venv
wanted=$(sha256sum "$here/requirements.txt" | cut -d' ' -f1)

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9
if [[ $(cat "$venv/installed" 2>/dev/null) != "$wanted" ]]; then
	rm -rf "$venv"
	{
		python3 -m venv "$venv"
		# Without dependencies this is small: it tells an unreachable index from a broken list.
		"$venv/bin/pip" install --quiet --no-deps "$(grep '^sae-lens' "$here/requirements.txt")" || exit 69
		"$venv/bin/pip" install --quiet --no-compile --requirement "$here/requirements.txt"
	} >&2 9>&-
	echo "$wanted" >"$venv/installed"
fi
echo "$venv/bin/python"
