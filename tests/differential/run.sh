#!/bin/sh
# graft's readers against the safetensors package and gguf-py, on FILES mutated files (1,000,000). The packages go into a virtual
# environment in graft's cache. The short form: FILES=20000.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../tools/common.sh"
venv=$(python_with differential "$here/requirements.txt")
library=$(find "$here/../../build/dev/tests/differential" -name 'libdifferential.*' | head -n 1)
[ -n "$library" ] || { say "differential: build the preset dev first"; exit 1; }
exec "$venv/bin/python" "$here/compare.py" "$library" --files "${FILES:-1000000}" "$@"
