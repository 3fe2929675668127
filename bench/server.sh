#!/bin/sh
# graft serve beside llama-server, through HTTP, in one run: the same models, adapters, threads, slots and context.
# Builds llama-server first, if it was never built here, and converts the adapters for it.
# usage: bench/server.sh [extra options of bench/server.py]; writes bench/out/server-*.json and prints tables.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/files.sh"
llama=$("$here/get_llama_server.sh")
# Beside it, not in it: graft would find them there as well.
mkdir -p "$here/out" "$adapters-gguf"
for i in 1 2 3 4 5 6 7 8; do
    [ -f "$adapters-gguf/adapter-$i.gguf" ] || python3 "$here/lora_to_gguf.py" "$model" "$adapters/adapter-$i" "$adapters-gguf/adapter-$i.gguf"
done
for m in "$q8" "$model"; do
    name=$(basename "$m" .gguf)
    say "== $name"
    python3 "$here/server.py" --graft "$here/../build/graft" --llama-server "$llama" --model "$m" --adapters "$adapters" \
        --converted "$adapters-gguf" --json "$here/out/server-$name.json" "$@"
done
