#!/bin/sh
# Builds llama-server, to measure against, and prints its path. Only benchmarks need it: nothing of graft's does.
#
# It comes from the source package that libllama comes from, with the same flags for ggml, and without its web
# page. The program and its libraries go to the cache, in a folder named as libllama's is, by version and CPU.
# Takes a quarter of an hour on two cores, once; GRAFT_JOBS sets how many compilers run at a time (2).
#
# usage: bench/get_llama_server.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../tools/versions.sh"
. "$here/../tools/common.sh"

recipe=1 # raise when the flags below change
cpu=$( { cat /proc/cpuinfo 2>/dev/null || sysctl -n machdep.cpu.brand_string; } | grep -iE '^(flags|features|model name)|apple|intel' | sort -u | cksum | cut -d' ' -f1)
prefix="$CACHE/llama-server-$LLAMA_VERSION-$recipe-$cpu"
if [ -f "$prefix/ready" ]; then
    echo "$prefix/llama-server"
    exit 0
fi

sdist=$("$here/../tools/get_llama_source.sh")
work="$CACHE/work-llama-server-$$"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir -p "$work"
say "llama-server: building version $LLAMA_VERSION, once (about a quarter of an hour)"
tar -xzf "$sdist" -C "$work"
src="$work/llama_cpp_python-$LLAMA_SDIST_VERSION/vendor/llama.cpp"

# As tools/get_libllama.sh for ggml; static, so that one file is the result.
log="$CACHE/build-llama-server.log"
if ! { cmake -G Ninja -S "$src" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF \
       -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
       -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF &&
       nice cmake --build "$work/build" --parallel "${GRAFT_JOBS:-2}" --target llama-server; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "llama-server: the build failed; the whole log is $log"
    exit 1
fi
mkdir -p "$prefix"
cp "$work/build/bin/llama-server" "$prefix/"
touch "$prefix/ready"
echo "$prefix/llama-server"
