#!/bin/sh
# Which branches of src/format and src/model/verify* the tests take, by file, and where they do not; fails below 95 %. The tests are
# those of the two layers and of whole adapters, good and bad. gcovr goes into graft's cache. A page with every line:
# build/coverage/report/index.html
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
cd "$here/.."
version=8.4
venv="$CACHE/gcovr-$version"
if [ ! -x "$venv/bin/gcovr" ]; then
    say "coverage: installing gcovr into the cache"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -qq --disable-pip-version-check "gcovr==$version"
fi
model=$(tools/get_model.sh)
tools/build.sh coverage
find build/coverage -name '*.gcda' -delete
GRAFT_TEST_MODEL="$model" ctest --test-dir build/coverage --output-on-failure -R '^test_(base|format|model)|bad_inputs|oracle|fuzz' >build/coverage/tests.log ||
    { cat build/coverage/tests.log; exit 1; }
mkdir -p build/coverage/report
# What cannot happen is marked in the source where it stands; nothing is left out here.
"$venv/bin/gcovr" --root . --object-directory build/coverage --filter 'src/format/.*\.c' --filter 'src/model/verify.*\.c' \
    --txt-metric branch --txt - --html-details build/coverage/report/index.html --fail-under-branch 95
