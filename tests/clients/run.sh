#!/bin/sh
# The clients that people use, unmodified, against `graft serve`: run.sh [WHAT…], each one of the tests beside it without "test_" and
# ".py" (openai ollama litellm langchain llm node curl snippets schemathesis); all of them without. They go into graft's cache. What
# cannot be installed fails the run: nothing is skipped.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../tools/common.sh"
venv=$(python_with clients "$here/requirements.txt")
node="$CACHE/clients-node"

need() {
    command -v "$1" >/dev/null 2>&1 || { say "clients: $1 is missing; $2"; exit 1; }
}
need curl "install the package curl"
need node "Node.js 20 or newer is needed for two of the clients (apt-get install nodejs npm, brew install node, dnf install nodejs, pacman -S nodejs npm)"
need npm "it comes with Node.js or as the package npm"
major=$(node -p 'process.versions.node.split(".")[0]')
[ "$major" -ge 20 ] || { say "clients: Node.js 20 or newer is needed, this one is $(node --version)"; exit 1; }
if [ ! -f "$node/ready" ] || ! cmp -s "$node/ready" "$here/package.json"; then
    say "clients: installing Node's into the cache"
    mkdir -p "$node"
    cp "$here/package.json" "$node/package.json"
    # No lock file: the two packages are pinned, and have no more than one dependency between them.
    (cd "$node" && npm install --no-package-lock --no-audit --no-fund --loglevel=error >&2)
    cp "$here/package.json" "$node/ready"
fi

say "Python $("$venv/bin/python" -c 'import platform; print(platform.python_version())'), Node.js $(node --version), $(curl --version | sed -n '1s/ (.*//p')"
"$venv/bin/pip" list --disable-pip-version-check --format=freeze | grep -iE '^(openai|ollama|litellm|langchain-openai|llm|schemathesis)==' >&2
(cd "$node" && npm ls --depth=0 | sed -n 's/^.*── \(.*\)@\(.*\)/\1 \2 (npm)/p') >&2

export GRAFT_BIN="${GRAFT_BIN:-$here/../../build/dev/graft}" GRAFT_CONFIG=/dev/null CLIENTS_NODE="$node"
export PATH="$venv/bin:$PATH" PYTHONWARNINGS="${PYTHONWARNINGS:-default}"
[ $# -gt 0 ] || set -- curl openai ollama litellm langchain llm node snippets schemathesis
failed=""
for what in "$@"; do
    say "---- $what"
    "$venv/bin/python" "$here/test_$what.py" || failed="$failed $what"
done
[ -z "$failed" ] || { say "clients: failed:$failed"; exit 1; }
