#!/usr/bin/env bash
# The Zig package: its tests, formatting, and the example as a package that depends on it, against the shared library and the archive.
# `make test-zig` builds the library first. Needs the Zig that zig/build.zig.zon names (`pip install ziglang`), as `zig` or in $ZIG.
set -u
cd "$(dirname "$0")/.."
. tests/steps.sh

: "${OUT:=target/debug}" "${BUILD:=build/dev}" "${ZIG:=zig}"
mkdir -p "$BUILD/zig"
out=$(cd "$OUT" && pwd)
scratch=$(cd "$BUILD/zig" && pwd)

have "$ZIG" "the Zig package" || { end "tests/zig"; exit; }

export ZIG_GLOBAL_CACHE_DIR=${ZIG_GLOBAL_CACHE_DIR:-$scratch/global} ZIG_LOCAL_CACHE_DIR=$scratch/local
where="-Dinclude=$(pwd)/include -Dlib=$out"

version() { # the error of an old Zig is about syntax
    local wanted
    wanted=$(sed -n 's/.*minimum_zig_version = "\(.*\)".*/\1/p' zig/build.zig.zon)
    [ "$(printf '%s\n%s\n' "$wanted" "$("$ZIG" version)" | sort -V | head -n 1)" = "$wanted" ] || { echo "expected Zig $wanted, found $("$ZIG" version)"; return 1; }
}

# shellcheck disable=SC2086
tests() { (cd zig && "$ZIG" build test $where --summary all); }
# shellcheck disable=SC2086
build_example() { (cd examples/zig && "$ZIG" build $where -Dlink="$1" --prefix "$scratch/$1"); }

example() { # program
    "$1" models/tiny-coder models/tiny-embed examples/data/facts.jsonl >"$scratch/output" 2>"$scratch/errors" || { cat "$scratch/errors"; return 1; }
    cat "$scratch/output"
    grep -q 'loading 100 %' "$scratch/errors" && grep -q 'step 20/20' "$scratch/errors" &&
        [ "$(head -n 1 "$scratch/output")" = 'Appends an element to the back of a collection.' ] &&
        grep -q ' \[stopped\]$' "$scratch/output" &&
        [ "$(sed -n 's/^0\.[0-9]*  //p' "$scratch/output" | head -n 1)" = 'add an element to a vector' ] &&
        grep -qi 'heron' "$scratch/output"
}

step "zig's version" version || { end "tests/zig"; exit; }
step "zig fmt" "$ZIG" fmt --check zig examples/zig
step "zig build test" tests && grep 'tests passed' "$log" | head -n 1
for kind in dynamic static; do
    step "the example builds ($kind)" build_example $kind && step "the example ($kind)" example "$scratch/$kind/bin/tour"
done

end "tests/zig"
