#!/bin/sh
# The published figures of the dynamic loader: the demo model and one random adapter of rank 16 on 7 targets a layer, a PEFT
# folder of 19.6 MB of float32. libllama's own loading is measured in the same process, in turns with graft's.
# usage: bench/loader.sh [extra options of graft bench-loader]; writes bench/out/loader.json and prints it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../tools/common.sh"
model=$("$here/../tools/get_model.sh")
adapters="$CACHE/bench-adapters-r16-f32"
[ -f "$adapters/adapter-1/adapter_model.safetensors" ] ||
    python3 "$here/make_adapters.py" "$model" "$adapters" --count 1 --rank 16 --dtype F32 >&2
mkdir -p "$here/out"
say "== the dynamic loader (a minute or two); load average before: $(uptime | sed 's/.*average[s]*: //')"
"$here/../build/graft" bench-loader -m "$model" -a "$adapters/adapter-1" --json "$@" >"$here/out/loader.json"
python3 -m json.tool "$here/out/loader.json"
