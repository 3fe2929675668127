#!/bin/sh
# Makes the golden logits anew with PEFT itself, then compares graft with them: strictly (float32 KV cache), as it is
# usually run (float16), and through libllama's own adapter path. PyTorch goes into a virtual environment in graft's
# cache; its CPU build is enough (put it there first if pip would fetch a larger one).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../tools/common.sh"
venv="$CACHE/oracle-venv"
if [ ! -f "$venv/ready" ] || ! cmp -s "$venv/ready" "$here/requirements.txt"; then
    say "oracle: installing PyTorch, transformers and peft into the cache"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch==2.13.0
    "$venv/bin/pip" install --quiet -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/ready"
fi
HF_HUB_OFFLINE=1 "$venv/bin/python" "$here/make_oracle.py"
graft="$here/../../build/dev/graft"
python3 "$here/compare.py" --graft "$graft" --kv both --combinations
python3 "$here/compare.py" --graft "$graft" --kv f32 --combinations --grouped
