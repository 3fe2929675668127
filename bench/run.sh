#!/bin/sh
# The published figures: SmolLM2-135M in Q4_1 (the demo model) and Q8_0 (made from it), eight random adapters of
# rank 16 on 7 targets a layer. Ratios come from rounds that interleave all modes in one process.
# usage: bench/run.sh [extra options of graft bench]; writes bench/out/*.json and prints tables.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../tools/common.sh"
model=$("$here/../tools/get_model.sh")
adapters="$CACHE/bench-adapters-r16"
q8="$CACHE/bench-SmolLM2-135M-Instruct.Q8_0.gguf"
[ -f "$adapters/7/adapter_model.safetensors" ] || python3 "$here/make_adapters.py" "$model" "$adapters" --count 8 --rank 16
[ -f "$q8" ] || "$here/../build/bench_quantize" "$model" "$q8" q8_0
mkdir -p "$here/out"
for m in "$model" "$q8"; do
    name=$(basename "$m" .gguf)
    say "== $name"
    "$here/../build/graft" bench -m "$m" $(for i in 0 1 2 3 4 5 6 7; do printf -- '-a %s ' "$adapters/$i"; done) "$@"
    "$here/../build/graft" bench -m "$m" $(for i in 0 1 2 3 4 5 6 7; do printf -- '-a %s ' "$adapters/$i"; done) --json "$@" >"$here/out/$name.json"
done
