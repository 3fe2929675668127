#!/bin/sh
# The main job, for people to see: three example projects and the base answer the same questions in one batch.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
model=$("$here/get_model.sh")
exec "$here/../build/graft" demo -m "$model" --projects "$here/../examples/projects" \
    --questions "$here/../examples/questions.jsonl" "$@"
