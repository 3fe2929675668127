#!/bin/sh
# Installs what building graft needs and this machine lacks, with the system's package manager.
# With "fuzz" also what the fuzz targets need: Clang with libFuzzer.
# Says what it will do; asks before using sudo unless it runs as root or in CI. Does nothing when all is there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

have() { command -v "$1" >/dev/null 2>&1; }
lib() { have pkg-config && pkg-config --exists "$1" 2>/dev/null; }
# For libraries that are headers only and have no pkg-config file.
header() { have cc && echo "#include <$1>" | cc ${CPPFLAGS:-} -E -o /dev/null - 2>/dev/null; }

# Whether some Clang has libFuzzer and ASan. Debian's has its version in its name.
libfuzzer() {
    for c in clang clang-14 clang-15 clang-16 clang-17 clang-18 clang-19 clang-20 clang-21; do
        have "$c" && echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d && n ? 0 : 0; }' |
            "$c" -x c -fsanitize=fuzzer,address -o /dev/null - 2>/dev/null && return 0
    done
    return 1
}
fuzz() { [ "${1:-}" = fuzz ] && ! libfuzzer; }

# What is missing, by the names of the package manager found.
missing=""
need() { missing="$missing $1"; }

if have apt-get; then
    manager="apt-get install -y --no-install-recommends"
    { have cc && have c++; } || need build-essential
    have cmake || need cmake
    have ninja || need ninja-build
    have pkg-config || need pkg-config
    lib jansson || need libjansson-dev
    lib libpcre2-8 || need libpcre2-dev
    { lib libcrypto && lib libssl; } || need libssl-dev
    lib sqlite3 || need libsqlite3-dev
    lib inih || need libinih-dev
    { lib libevent_extra && lib libevent_openssl; } || need libevent-dev
    lib libcurl || need libcurl4-openssl-dev
    header histedit.h || need libedit-dev
    header uthash.h || need uthash-dev
    lib cmocka || need libcmocka-dev
    { have python3 && python3 -m pip --version >/dev/null 2>&1; } || need "python3 python3-pip"
    if fuzz "$@"; then
        need clang
        # Where it is a package of its own.
        ! apt-cache show libclang-rt-dev >/dev/null 2>&1 || need libclang-rt-dev
    fi
elif have brew; then
    manager="brew install"
    have cmake || need cmake
    have ninja || need ninja
    have pkg-config || need pkg-config
    lib jansson || need jansson
    lib libpcre2-8 || need pcre2
    { lib libcrypto && lib libssl; } || need openssl@3
    lib sqlite3 || need sqlite
    lib inih || need inih
    { lib libevent_extra && lib libevent_openssl; } || need libevent
    [ -e "$(brew --prefix)/include/uthash.h" ] || need uthash
    lib cmocka || need cmocka
    { have python3 && python3 -m pip --version >/dev/null 2>&1; } || need python3
    ! fuzz "$@" || need llvm # Apple's Clang has no libFuzzer
elif have dnf; then
    manager="dnf install -y"
    have cc || need gcc
    have c++ || need gcc-c++
    have cmake || need cmake
    have ninja || need ninja-build
    have pkg-config || need pkgconf
    lib jansson || need jansson-devel
    lib libpcre2-8 || need pcre2-devel
    { lib libcrypto && lib libssl; } || need openssl-devel
    lib sqlite3 || need sqlite-devel
    lib inih || need inih-devel
    { lib libevent_extra && lib libevent_openssl; } || need libevent-devel
    lib libcurl || need libcurl-devel
    header histedit.h || need libedit-devel
    header uthash.h || need uthash-devel
    lib cmocka || need libcmocka-devel
    { have python3 && python3 -m pip --version >/dev/null 2>&1; } || need python3-pip
    ! fuzz "$@" || need "clang compiler-rt"
elif have pacman; then
    manager="pacman -S --needed --noconfirm"
    have cc || need base-devel
    have cmake || need cmake
    have ninja || need ninja
    have pkg-config || need pkgconf
    lib jansson || need jansson
    lib libpcre2-8 || need pcre2
    { lib libcrypto && lib libssl; } || need openssl
    lib sqlite3 || need sqlite
    lib inih || need libinih
    { lib libevent_extra && lib libevent_openssl; } || need libevent
    lib libcurl || need curl
    header histedit.h || need libedit
    header uthash.h || need uthash
    lib cmocka || need cmocka
    { have python3 && python3 -m pip --version >/dev/null 2>&1; } || need python-pip
    ! fuzz "$@" || need "clang compiler-rt"
else
    say "No package manager that this script knows (apt-get, brew, dnf, pacman)."
    say "Please install: a C and C++ compiler, cmake, ninja, pkg-config, python3 with pip, and the development"
    say "packages of jansson, pcre2, OpenSSL 3, SQLite (3.37 or newer), inih, libevent, libcurl, libedit, uthash and cmocka."
    exit 1
fi

if [ -z "$missing" ]; then
    exit 0
fi

as_root=""
case "$manager" in brew*) ;; *) [ "$(id -u)" = 0 ] || as_root="sudo" ;; esac
say "Missing on this machine:$missing"
# shellcheck disable=SC2086 # the words are meant to be split
about_to_run $as_root $manager $missing || exit 1
case "$manager" in apt-get*) $as_root apt-get update -qq >&2 ;; esac
# shellcheck disable=SC2086 # the words are meant to be split
$as_root $manager $missing >&2
