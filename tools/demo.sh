#!/bin/sh
# The main job, for people to see: three example projects and the base answer the same questions in one batch; then what the
# loader does when projects change, and where the memory is. The registry is made for this run and removed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
model=$("$here/get_model.sh")
exec "$here/../build/graft" demo -m "$model" --projects "$here/../examples/projects" \
    --questions "$here/../examples/questions.jsonl" "$@"
