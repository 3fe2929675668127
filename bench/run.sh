#!/bin/sh
# The published figures: SmolLM2-135M in Q4_1 (the demo model) and Q8_0 (made from it), eight random adapters of
# rank 16 on 7 targets a layer. Ratios come from rounds that interleave all modes in one process.
# usage: bench/run.sh [extra options of graft bench]; writes bench/out/*.json and prints tables.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/files.sh"
mkdir -p "$here/out"
all=""
for i in 1 2 3 4 5 6 7 8; do all="$all -a $adapters/adapter-$i"; done
for m in "$model" "$q8"; do
    name=$(basename "$m" .gguf)
    say "== $name"
    # shellcheck disable=SC2086 # the words are meant to be split
    "$here/../build/graft" bench -m "$m" $all --json "$@" >"$here/out/$name.json"
    python3 "$here/table.py" "$here/out/$name.json"
done
