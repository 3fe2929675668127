# Shared by the scripts beside it: where downloads and builds are kept, and how to speak to the person.
CACHE=${GRAFT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/graft}
mkdir -p "$CACHE"

# Everything for the person goes to stderr; stdout carries results.
say() { printf '%s\n' "$*" >&2; }
