#!/bin/sh
# Makes an archive of one object whose only global symbols are those of a list: two Rust libraries, each with its own standard library,
# then link into one program. packaging/only-c-symbols.sh IN.a OUT.a SYMBOLS [strip]
#
# On macOS the archive is copied as it is: Apple's linker takes the first of two definitions in archives.
set -eu
in=$1 out=$2 symbols=$3 strip=${4:+--strip-debug}

if [ "$(uname -s)" = Darwin ]; then
    cp "$in" "$out"
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed 's/^/-u /' "$symbols" >"$work/wanted"
"${LD:-ld}" -r --gc-sections "@$work/wanted" -o "$work/all.o" "$in"
# The bitcode of the standard library is for link-time optimisation by rustc, and no linker reads several in one. The reference to
# the handler of panics is shared by all objects under its name; local, it needs a name of its own.
# shellcheck disable=SC2086
"${OBJCOPY:-objcopy}" --keep-global-symbols="$symbols" --remove-section=.llvmbc --remove-section=.llvmcmd $strip \
    --redefine-sym DW.ref.rust_eh_personality=DW.ref.rust_eh_personality.metal_candle "$work/all.o" "$work/metal_candle.o"
"${AR:-ar}" rcs "$work/out.a" "$work/metal_candle.o"
# Whole or not at all: somebody may be reading the one before.
cp "$work/out.a" "$out.$$" && mv "$out.$$" "$out"
