#!/bin/sh
# Checks the model of the loader (tests/spin/loader.pml) with Spin, in every interleaving: two or three minutes, under 2 GB.
#   model.sh          the properties; then that each marked place is reached, and that each planted bug is found
#   model.sh names    only that the model's states are those of src/loader/table.c (part of tools/check.sh)
# Spin is installed with the system's package manager if it is missing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
model="$here/../tests/spin/loader.pml"
table="$here/../src/loader/table.c"

in_model=$(sed -n 's/^mtype:state = { *\(.*\) };$/\1/p' "$model" | tr -d ' ' | tr ',' '\n' | sort | tr '\n' ' ')
in_table=$(sed -n '/^const char \*gr_state_name/,/^}/s/.*names\[\] = {\(.*\)};.*/\1/p' "$table" | tr -d ' "' | tr ',' '\n' | sort | tr '\n' ' ')
if [ -z "$in_table" ] || [ "$in_model" != "$in_table" ]; then
    say "tests/spin/loader.pml has the states $in_model- src/loader/table.c has $in_table"
    exit 1
fi
[ "${1:-}" != names ] || exit 0

if ! command -v spin >/dev/null 2>&1; then
    as_root=""
    if command -v apt-get >/dev/null 2>&1; then
        [ "$(id -u)" = 0 ] || as_root="sudo"
        # shellcheck disable=SC2086 # empty, or one word
        about_to_run $as_root apt-get install -y --no-install-recommends spin || exit 1
        $as_root apt-get install -y --no-install-recommends spin >&2
    elif command -v brew >/dev/null 2>&1; then
        about_to_run brew install spin
        brew install spin >&2
    else
        say "Please install Spin (https://spinroot.com) and run this again."
        exit 1
    fi
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$model" "$work/loader.pml"
cd "$work"
cc=${CC:-cc}

# generate NAME SPIN-FLAGS… -- CC-FLAGS…
generate() {
    name=$1
    shift
    spin_flags=""
    while [ "$1" != -- ]; do spin_flags="$spin_flags $1"; shift; done
    shift
    # shellcheck disable=SC2086 # the words are meant to be split
    spin -a $spin_flags loader.pml >spin.log 2>&1 || { cat spin.log >&2; exit 1; }
    "$cc" -w "$@" -DCOLLAPSE -DMEMLIM=4000 -o "$name" pan.c
}

# Whether a search ended with an error found: 0 = found, 1 = searched all of it, none; anything else ends the script.
found_error() {
    case "$(sed -n 's/.*errors: \([0-9]*\)$/\1/p' "$1")" in
    0) grep -q -e 'max search depth too small' -e 'out of memory' -e 'Search not completed' "$1" || return 1 ;;
    1) return 0 ;;
    esac
    cat "$1" >&2
    exit 1
}

# With the claim, an end in which somebody still waits is a way to go on for ever without an answer, so this one search has all.
say "every interleaving, with room for one and for two: memory, budget, flights, answers"
for budget in 1 2; do
    generate "all$budget" "-DBUDGET=$budget" -- -O2 -DNOFAIR
done
./all1 -a -m100000 >all1.log 2>&1 &
./all2 -a -m100000 >all2.log 2>&1 || true
wait || true
for budget in 1 2; do
    if found_error "all$budget.log"; then
        generate "all$budget" "-DBUDGET=$budget" -- -O2 -DNOFAIR # spin -t replays what it finds in loader.pml.trail
        "./all$budget" -a -m100000 >/dev/null 2>&1 || true
        spin -t -p "-DBUDGET=$budget" loader.pml 2>/dev/null | tail -60 >&2
        say "the model has an error: the steps that lead to it are above"
        exit 1
    fi
    say "room for $budget:"
    grep -e 'states, stored' -e 'transitions' -e 'total actual memory' -e 'elapsed time' "all$budget.log" >&2
done

failed=0
places=$(grep -o 'REACHED([0-9]*)' loader.pml | tr -dc '0-9\n' | sort -nu)
generate reach -- -O1 -DSAFETY -DNOCLAIM
reached=0
for place in $places; do
    REACH=$place ./reach -m100000 >reach.log 2>&1 || true
    if found_error reach.log; then reached=$((reached + 1)); else say "place $place of the model is never reached"; failed=1; fi
done
say "$reached of $(echo "$places" | wc -w | tr -d ' ') marked places are reached"

bugs=$(grep -o 'BUG [!=]= [1-9][0-9]*' loader.pml | tr -dc '0-9\n' | sort -nu)
caught=0
for bug in $bugs; do
    found=0
    for budget in 1 2; do
        generate bug "-DBUG=$bug" "-DBUDGET=$budget" -- -O1 -DSAFETY -DNOCLAIM
        ./bug -m100000 >bug.log 2>&1 || true
        ! found_error bug.log || { found=1; break; }
    done
    caught=$((caught + found))
    [ "$found" = 1 ] || { say "bug $bug of the model is not found"; failed=1; }
done
say "$caught of $(echo "$bugs" | wc -w | tr -d ' ') bugs planted in the model are found"
exit "$failed"
