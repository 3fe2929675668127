#!/bin/sh
# The clients that people use, unmodified, against `graft serve`. They go into a virtual environment in graft's cache.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../tools/common.sh"
venv="$CACHE/clients-venv"
if [ ! -f "$venv/ready" ] || ! cmp -s "$venv/ready" "$here/requirements.txt"; then
    say "clients: installing them into the cache"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/ready"
fi
GRAFT_BIN="${GRAFT_BIN:-$here/../../build/dev/graft}" "$venv/bin/python" "$here/test_clients.py" "$@"
