#!/bin/sh
# Runs fuzz targets one after the other, each for FUZZ_SECONDS (60): fuzz.sh [TARGET…], all of them without. What they find and the corpus
# as it grows lie in build/fuzz; tests/fuzz/corpus is read, not written. Fails if something was found.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
cd "$here/.."
tools/build.sh fuzz
seconds=${FUZZ_SECONDS:-60}
out=build/fuzz
mkdir -p "$out/found" "$out/logs"
export LSAN_OPTIONS="suppressions=tests/lsan.supp:print_suppressions=0:${LSAN_OPTIONS:-}"
if [ $# -eq 0 ]; then
    # shellcheck disable=SC2046 # the words are meant to be split
    set -- $(cd tests/fuzz && ls fuzz_*.c | sed 's/^fuzz_//; s/\.c$//')
fi

# Where a target's inputs must be longer, or are slower, than those of most.
longest() {
    case "$1" in
    load) echo 65536 ;;
    peft_config | http_body | mlx_config) echo 4096 ;;
    *) echo 1024 ;;
    esac
}

stat_of() { sed -n "s/^stat::$1: *//p" "$out/logs/$2.log"; }

printf '%-14s %14s %9s %9s %9s\n' target executions per_s edges found
status=0
for target in "$@"; do
    mkdir -p "$out/corpus/$target"
    set -- -max_total_time="$seconds" -max_len="$(longest "$target")" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1
    [ ! -f "tests/fuzz/dictionaries/$target.dict" ] || set -- "$@" -dict="tests/fuzz/dictionaries/$target.dict"
    found=0
    "$out/tests/fuzz/fuzz_$target" "$@" -artifact_prefix="$out/found/$target-" "$out/corpus/$target" "tests/fuzz/corpus/$target" \
        >"$out/logs/$target.log" 2>&1 || { found=1; status=1; }
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$out/logs/$target.log" | tail -n 1)
    printf '%-14s %14s %9s %9s %9s\n' "$target" "$(stat_of number_of_executed_units "$target")" \
        "$(stat_of average_exec_per_sec "$target")" "${edges:--}" "$found"
    [ "$found" = 0 ] || say "$target: see $out/logs/$target.log and $out/found/"
done
exit "$status"
