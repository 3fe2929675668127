#!/bin/sh
# Obtains libllama and prints, as its last line on stdout, the prefix to give CMake
# (empty when the system's own libllama is in the tested range).
#
# Order: GRAFT_LLAMA_PREFIX if set; the system's package if pkg-config knows a tested version; a build made
# earlier; else one build from the source that the llama-cpp-python source package on PyPI carries.
# Builds live outside the checkout, in a folder named by version, flavour and this machine's CPU, because
# ggml is compiled for the processor at hand.
#
# usage: tools/get_libllama.sh [release|tsan]
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.sh"
. "$here/common.sh"

flavour=${1:-release}

if [ -n "${GRAFT_LLAMA_PREFIX:-}" ]; then
    say "libllama: using GRAFT_LLAMA_PREFIX"
    echo "$GRAFT_LLAMA_PREFIX"
    exit 0
fi

# llama.pc of development builds carries a suffix (0.5.0-dev), so compare the numbers alone.
if [ "$flavour" = release ] && command -v pkg-config >/dev/null 2>&1 && pkg-config --exists llama 2>/dev/null; then
    found=$(pkg-config --modversion llama | sed 's/[^0-9.].*//')
    for ok in $LLAMA_TESTED; do
        if [ "$found" = "$ok" ]; then
            say "libllama: using the system's package, version $found"
            echo ""
            exit 0
        fi
    done
    say "libllama: the system has version $found, tested are: $LLAMA_TESTED; building our own"
fi

cpu=$( { cat /proc/cpuinfo 2>/dev/null || sysctl -n machdep.cpu.brand_string; } | grep -iE '^(flags|features|model name)|apple|intel' | sort -u | cksum | cut -d' ' -f1)
prefix="$CACHE/libllama-$LLAMA_VERSION-$flavour-$LLAMA_RECIPE-$cpu"
if [ -f "$prefix/ready" ]; then
    echo "$prefix"
    exit 0
fi

# One build at a time: whoever comes second waits for the first. A lock whose owner died is taken over.
lock="$CACHE/libllama.lock"
until mkdir "$lock" 2>/dev/null; do
    sleep 1
    owner=$(cat "$lock/pid" 2>/dev/null || true)
    if [ -z "$owner" ] || ! kill -0 "$owner" 2>/dev/null; then
        rm -rf "$lock"
    fi
done
work="$CACHE/work-libllama-$$"
trap 'rm -rf "$work" "$lock"' EXIT
trap 'exit 1' INT TERM
echo "$$" >"$lock/pid"
if [ -f "$prefix/ready" ]; then
    echo "$prefix"
    exit 0
fi
mkdir -p "$work"

sdist=$("$here/get_llama_source.sh")
say "libllama: building version $LLAMA_VERSION ($flavour), once, in about three minutes"
tar -xzf "$sdist" -C "$work"
src="$work/llama_cpp_python-$LLAMA_SDIST_VERSION/vendor/llama.cpp"

# The libraries must find each other wherever the prefix lies.
case "$(uname)" in Darwin) origin='@loader_path' ;; *) origin='$ORIGIN' ;; esac

# No OpenMP: graft attaches its own thread pool, and TSan cannot follow OpenMP's.
set -- -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_OPENMP=OFF -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_COMMON=OFF
if [ "$flavour" = tsan ]; then
    set -- "$@" -DGGML_SANITIZE_THREAD=ON -DLLAMA_SANITIZE_THREAD=ON
fi
log="$CACHE/build-libllama.log"
if ! { cmake -G Ninja -S "$src" -B "$work/build" "$@" -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR=lib \
       -DCMAKE_INSTALL_RPATH="$origin" &&
       cmake --build "$work/build" && cmake --install "$work/build"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "libllama: the build failed; the whole log is $log"
    exit 1
fi
touch "$prefix/ready"
say "libllama: installed in $prefix"
echo "$prefix"
