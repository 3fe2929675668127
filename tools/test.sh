#!/bin/sh
# Builds one preset and runs its tests, with the demo model for those that need a real one.
#   dev, clang  everything      asan  everything      tsan  the tests labelled "threads"
set -eu
here=$(cd "$(dirname "$0")" && pwd)
preset=${1:-dev}
model=$("$here/get_model.sh")
"$here/build.sh" "$preset"
export GRAFT_TEST_MODEL="$model"
export ASAN_OPTIONS="detect_leaks=1:${ASAN_OPTIONS:-}"
export LSAN_OPTIONS="suppressions=$here/../tests/lsan.supp:print_suppressions=0:${LSAN_OPTIONS:-}"
export TSAN_OPTIONS="suppressions=$here/../tests/tsan.supp:${TSAN_OPTIONS:-}"
tests() { ctest --test-dir "$here/../build/$preset" --output-on-failure "$@"; }
if [ "$preset" = tsan ]; then
    tests -L threads
else
    # Two at a time would fight for the cores that each of them wants for itself; but not those that use one, or wait for a server.
    status=0
    tests -LE pairs || status=$?
    tests -L pairs -j 2 || status=$?
    exit "$status"
fi
