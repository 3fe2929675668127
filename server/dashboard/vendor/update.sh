#!/bin/sh
# Fetches the libraries of this folder from npm at the versions named here. Two lines are changed: the hooks import Preact by its
# file (pages under our Content-Security-Policy have no import map), and the pointers to source maps go.
set -eu
PREACT=11.2.0
HTM=3.1.1
here=$(cd "$(dirname "$0")" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
fetch() { # PACKAGE VERSION
    (cd "$tmp" && npm pack --silent "$1@$2" >/dev/null && mkdir "$1" && tar -xzf "$1-$2.tgz" -C "$1" --strip-components=1)
}
fetch preact "$PREACT"
fetch htm "$HTM"
clean() { sed -e 's/from"preact"/from".\/preact.js"/' -e '/^\/\/# sourceMappingURL=/d' "$1" >"$here/$2"; }
clean "$tmp/preact/dist/preact.mjs" preact.js
clean "$tmp/preact/hooks/dist/hooks.mjs" hooks.js
clean "$tmp/htm/dist/htm.mjs" htm.js
cp "$tmp/preact/LICENSE" "$here/preact.license.txt"
cp "$tmp/htm/LICENSE" "$here/htm.license.txt"
