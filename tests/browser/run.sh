#!/bin/sh
# The dashboard in the system's Chromium, against a real `graft serve`. Fetches playwright-core and axe-core (pinned) into graft's cache; Chromium and
# Node.js come from the system. GRAFT_BIN names the binary. Arguments go to node's test runner (--test-name-pattern …).
# With GRAFT_SCREENSHOTS=1 the pictures of docs/images/ are made anew as well, from the example projects.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../tools/common.sh"

browser() {
    for name in ${GRAFT_CHROMIUM:-} chromium chromium-browser google-chrome google-chrome-stable \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do
        command -v "$name" 2>/dev/null && return 0
    done
    return 1
}

missing=""
command -v npm >/dev/null 2>&1 || missing="nodejs npm"
browser >/dev/null || missing="$missing chromium"
if [ -n "$missing" ] && command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    say "browser tests: installing $missing"
    apt-get update -qq >&2
    # shellcheck disable=SC2086 # the words are meant to be split
    apt-get install -y --no-install-recommends $missing >&2
elif [ -n "$missing" ]; then
    say "browser tests: not run. Please install $missing, or name a Chromium in GRAFT_CHROMIUM."
    exit 1
fi
node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' || { say "browser tests: Node.js 20 or newer is needed"; exit 1; }

modules="$CACHE/browser-tests"
if ! cmp -s "$here/package-lock.json" "$modules/ready"; then
    say "browser tests: fetching playwright-core and axe-core into the cache"
    mkdir -p "$modules"
    cp "$here/package.json" "$here/package-lock.json" "$modules/"
    (cd "$modules" && npm ci --ignore-scripts --no-audit --no-fund --silent)
    cp "$here/package-lock.json" "$modules/ready"
fi

GRAFT_CHROMIUM=$(browser)
GRAFT_BIN=${GRAFT_BIN:-$here/../../build/dev/graft}
export GRAFT_CHROMIUM GRAFT_BIN
export GRAFT_BROWSER_MODULES="$modules/" GRAFT_CONFIG=/dev/null GRAFT_REGISTRY=/nonexistent/registry.db
unset GRAFT_API_KEY
if [ -n "${GRAFT_SCREENSHOTS:-}" ]; then
    GRAFT_DEMO_MODEL=$("$here/../../tools/get_model.sh") node "$here/screenshots.mjs"
fi
exec node --test --test-concurrency=1 "$@" "$here/dashboard.test.mjs"
