# Shared by the scripts beside it: where downloads and builds are kept, and how to speak to the person.
CACHE=${GRAFT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/graft}
mkdir -p "$CACHE"

# Everything for the person goes to stderr; stdout carries results.
say() { printf '%s\n' "$*" >&2; }

# python_with NAME REQUIREMENTS: a virtual environment in the cache with what the file lists, made anew when that changes; prints its path.
python_with() {
    venv="$CACHE/$1-venv"
    if [ ! -f "$venv/ready" ] || ! cmp -s "$venv/ready" "$2"; then
        say "$1: installing Python packages into the cache (some minutes the first time)"
        python3 -m venv "$venv" && "$venv/bin/pip" install -qq --disable-pip-version-check -r "$2" && cp "$2" "$venv/ready" || return 1
    fi
    printf '%s\n' "$venv"
}

# about_to_run COMMAND…: says it, and asks if sudo is among it, unless this is CI. Fails if the answer is no.
about_to_run() {
    say "About to run: $*"
    case "$1" in sudo) [ -z "${CI:-}" ] || return 0 ;; *) return 0 ;; esac
    printf 'Go on? [y/N] ' >&2
    read -r answer || answer=n
    case "$answer" in y|Y|yes) ;; *) say "Nothing was installed."; return 1 ;; esac
}
