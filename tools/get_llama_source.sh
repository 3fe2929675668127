#!/bin/sh
# Obtains the source package that libllama is built from, checks it, and prints its path in the cache.
# usage: tools/get_llama_source.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.sh"
. "$here/common.sh"

sdist="$CACHE/llama_cpp_python-$LLAMA_SDIST_VERSION.tar.gz"
if [ ! -f "$sdist" ]; then
    work="$CACHE/work-source-$$"
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM
    mkdir -p "$work"
    say "libllama: downloading its source (llama-cpp-python $LLAMA_SDIST_VERSION, about 75 MB; takes a minute or two)"
    python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python -d "$work" \
        "llama-cpp-python==$LLAMA_SDIST_VERSION" >&2
    if ! python3 -c 'import hashlib, sys; sys.exit(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest() != sys.argv[2])' \
        "$work"/llama_cpp_python-*.tar.gz "$LLAMA_SDIST_SHA256"; then
        say "libllama: the source package is not the one that was tested (SHA-256 differs)"
        exit 1
    fi
    mv "$work"/llama_cpp_python-*.tar.gz "$sdist"
fi
echo "$sdist"
