#!/bin/sh
# Configures and builds one preset of CMakePresets.json: release, dev, asan, tsan, clang, coverage, or fuzz (the fuzz targets only).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
preset=${1:-release}
cd "$here/.."
prefix=$(tools/get_libllama.sh)
dir=build
[ "$preset" = release ] || dir="build/$preset"
mkdir -p "$dir"
if [ ! -f "$dir/build.ninja" ] || [ "$(cat "$dir/libllama-prefix" 2>/dev/null)" != "$prefix" ]; then
    # Debian's clang has its version in its name.
    set --
    if { [ "$preset" = clang ] || [ "$preset" = fuzz ]; } && ! command -v clang >/dev/null 2>&1; then
        for v in 14 15 16 17 18 19 20 21; do command -v "clang-$v" >/dev/null 2>&1 && set -- "-DCMAKE_C_COMPILER=clang-$v"; done
    fi
    if ! cmake --preset "$preset" "$@" ${prefix:+"-DCMAKE_PREFIX_PATH=$prefix"} >"$dir/configure.log" 2>&1; then
        cat "$dir/configure.log" >&2
        exit 1
    fi
    printf '%s' "$prefix" >"$dir/libllama-prefix"
fi
say "building graft ($preset)"
target=all
[ "$preset" != fuzz ] || target=fuzzers
cmake --build "$dir" --target "$target" --parallel "$(getconf _NPROCESSORS_ONLN)" >"$dir/build.log" 2>&1 || { cat "$dir/build.log" >&2; exit 1; }
# Warnings stay visible even though the log is quiet.
grep -n 'warning:' "$dir/build.log" >&2 || true
