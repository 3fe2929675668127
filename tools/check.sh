#!/bin/sh
# Rules that a compiler does not check:
#   layers      an include points to the same layer or one below it; server/ and cli/ see graft.h and base/ only, and cli/ server.h
#   header      include/graft.h stands alone, as C and as C++, with -Wpedantic
#   errors      docs/errors.md has a row for each code of graft.h
#   scripts     every shell and Python script parses
#   model       tests/spin/loader.pml knows the states of src/loader/table.c
#   cleanliness no tabs or trailing blanks in sources
set -eu
cd "$(dirname "$0")/.."
failed=0
complain() { printf '%s\n' "$*" >&2; failed=1; }

# Layers from the bottom to the top. A file of layer N may include layers up to N.
allowed=""
for layer in base format model lora loader registry engine; do
    allowed="$allowed $layer"
    for file in src/$layer/*.[ch]; do
        [ -e "$file" ] || continue
        # "base/…", or a bare name (same folder)
        for include in $(sed -n 's/^#include "\([^"]*\)".*/\1/p' "$file"); do
            case "$include" in
            graft.h) continue ;;
            */*) top=${include%%/*} ;;
            *) continue ;;
            esac
            case " $allowed " in
            *" $top "*) ;;
            *) complain "$file: includes $include, which is above $layer/" ;;
            esac
        done
    done
done
for file in cli/*.[ch] server/*.[ch]; do
    [ -e "$file" ] || continue
    for include in $(sed -n 's/^#include "\([^"]*\)".*/\1/p' "$file"); do
        case "$include" in
        graft.h | base/*) ;;
        */*) complain "$file: includes $include; cli/ and server/ may use graft.h and base/ only" ;;
        *)
            if [ "${file%%/*}" = cli ] && [ "$include" != server.h ] && [ -e "server/$include" ]; then
                complain "$file: includes $include; of server/ it may use server.h only"
            fi
            ;;
        esac
    done
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
printf '#include "graft.h"\nint main(void) { return GRAFT_VERSION_MAJOR; }\n' >"$tmp/header.c"
cc -std=c17 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only "$tmp/header.c" || complain "graft.h does not compile as C"
c++ -x c++ -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only "$tmp/header.c" || complain "graft.h does not compile as C++"

sed -n 's/^ *X(\(-[0-9]*\), [A-Z0-9_]*, "\([a-z0-9_]*\)", \([0-9]*\), "\(.*\)").*/| `\2` | \1 | \3 | \4 |/p' include/graft.h |
    while IFS= read -r row; do
        grep -qxF -- "$row" docs/errors.md || printf '%s\n' "$row"
    done >"$tmp/missing"
if [ -s "$tmp/missing" ]; then cat "$tmp/missing" >&2; complain "docs/errors.md lacks the rows above"; fi

for file in $(find tools tests bench examples .ci -name '*.sh' -o -path '.ci/run'); do
    sh -n "$file" || complain "$file: does not parse"
done
for file in $(find tools tests bench examples -name '*.py'); do
    python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$file" || complain "$file: does not parse"
done

if grep -rnE '[[:blank:]]+$' include src cli server tests --include='*.[ch]' >&2; then complain "trailing blanks"; fi
tab=$(printf '\t')
if grep -rn "$tab" include src cli server tests --include='*.[ch]' >&2; then complain "tabs in C sources"; fi

python3 tests/bad_inputs/table.py | cmp -s - docs/bad-inputs.md || complain "docs/bad-inputs.md is out of date: python3 tests/bad_inputs/table.py >docs/bad-inputs.md"

tools/model.sh names || complain "the loader's model is behind the loader"

# Links from one page to another must lead somewhere.
for page in $(git ls-files '*.md'); do
    for link in $(sed -n 's/](\([^)#: ]*\)[^)]*)/\n&\n/gp' "$page" | sed -n 's/^](\([^)#: ]*\).*/\1/p'); do
        [ -e "$(dirname "$page")/$link" ] || complain "$page: leads to $link, which is not there"
    done
done

[ "$failed" = 0 ] && echo "check: layers, header, error table, scripts and blanks are in order"
exit "$failed"
