#!/usr/bin/env bash
# Installs the packages of tests/NAME/package-lock.json, once, and prints the directory that has them.
# usage: tests/npm.sh NAME    exit code 69 where the packages cannot be fetched
set -euo pipefail

tests=$(cd "$(dirname "$0")" && pwd -P)
list=$tests/$1/package-lock.json
place=${CARGO_TARGET_DIR:-$tests/../target}/$1-npm
wanted=$(sha256sum "$list" | cut -d' ' -f1)

mkdir -p "$place"
exec 9>"$place.lock"
flock 9
if [[ $(cat "$place/installed" 2>/dev/null) != "$wanted" ]]; then
	rm -f "$place/installed"
	cp "$tests/$1/package.json" "$list" "$place"
	npm ci --prefix "$place" --ignore-scripts --no-audit --no-fund >&2 9>&- || exit 69
	echo "$wanted" >"$place/installed"
fi
cd "$place" && pwd -P
