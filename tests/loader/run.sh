#!/bin/sh
# graft's eviction policies against libCacheSim's, eviction by eviction. libCacheSim goes into a virtual environment in
# graft's cache.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../tools/common.sh"
version=0.3.5
venv="$CACHE/cachesim-venv"
if [ "$(cat "$venv/ready" 2>/dev/null)" != "$version" ]; then
    say "cachesim: installing libcachesim $version into the cache"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet "libcachesim==$version"
    echo "$version" >"$venv/ready"
fi
exec "$venv/bin/python" "$here/compare_libcachesim.py" "${1:-$here/../../build/dev/tests/loader_replay}" --requests "${REQUESTS:-1000000}"
