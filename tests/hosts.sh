#!/usr/bin/env bash
# What a newcomer does: the library is installed into a prefix of its own, and in an empty folder for each language the lines that its
# README shows are run as they stand there, to the first answer. `make test-hosts` builds the library first. Prints of each language what
# it took, the lines of its program and the size of what came out. What is missing here, tests/go.sh and its like skip as well.
set -u
cd "$(dirname "$0")/.."
. tests/steps.sh

: "${OUT:=target/debug}" "${BUILD:=build/dev}" "${LIB:=libmetal_candle.so}" "${PROFILE:=dev}" "${ZIG:=zig}" "${PYTHON:=python3}"
root=$(pwd)
out=$(cd "$OUT" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$log" "$stage"' EXIT
prefix=$stage/prefix
answer='Appends an element to the back of a collection.'
# Beside the checkout, as the READMEs have it.
ln -s "$root" "$stage/metal-candle"

# What READMEs say of a prefix that neither the loader nor pkg-config knows.
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
rpath=-Wl,-rpath,$prefix/lib
# Nothing is fetched, neither a module nor a newer toolchain.
export GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=1
mkdir -p "$BUILD/zig"
zig_cache=$(cd "$BUILD/zig" && pwd)
export ZIG_GLOBAL_CACHE_DIR=${ZIG_GLOBAL_CACHE_DIR:-$zig_cache/global} ZIG_LOCAL_CACHE_DIR=$zig_cache/local

block() { # file, text: its first fenced block with that text, with the places of this machine
    awk -v text="$2" '/^```/ { if (inside && index(block, text)) { printf "%s", block; exit } inside = !inside; block = ""; next }
        inside { block = block $0 "\n" }' "$root/$1" | sed -e "s|/usr/local|$prefix|g" -e "s|PREFIX/|$prefix/|g" -e "s|/path/to/metal-candle|$root|g" \
        -e "s|/absolute/libmetal_candle.so|$out/$LIB|g" | grep .
}

lines() { # file, text, pattern: the lines of that block with the pattern
    block "$1" "$2" | grep -e "$3"
}

new() { # folder: an empty one, whose clock starts
    start=$SECONDS
    folder=$stage/$1
    mkdir "$folder"
}

report() { # name, program's source, what came out of it
    printf '%s: %d s, %d lines, %d KiB\n' "$1" $((SECONDS - start)) "$(wc -l <"$2")" $(($(du -skL "$3" | cut -f1))) >>"$stage/report"
}

says() { # program …: the answer, from where the models are
    local said
    said=$("$@" 2>&1) || { printf '%s\n' "$said"; return 1; }
    grep -qF "$answer" <<<"$said" || { printf 'expected the answer, found %s\n' "$said"; return 1; }
}

install() { # Without the flags of a `make -j` above.
    start=$SECONDS
    MAKEFLAGS='' PROFILE=$PROFILE bash -ec "$(lines README.md 'make install' '^make install')" && touch "$stage/none" &&
        report 'make install' "$stage/none" "$prefix/lib"
}

c() {
    new c && cp examples/c/chat.c "$folder" && (cd "$folder" && bash -ec "$(lines README.md 'make install' '^cc ') $rpath") &&
        says "$folder/chat" models/tiny-coder -p 'What does `Vec::push` do?' && report C "$folder/chat.c" "$folder/chat"
}

cpp() {
    new cpp && printf '#include <iostream>\n#include <metal_candle.hpp>\nint main() {\n%s\n}\n' "$(block README.md 'metal_candle::model model')" >"$folder/tour.cpp" &&
        (cd "$folder" && bash -ec "$(lines README.md 'make install' '^c++ ') $rpath") && says "$folder/tour" && report C++ "$folder/tour.cpp" "$folder/tour"
}

go_() { # by pkg-config, and with the archive in the program
    new go && block go/README.md 'package main' >"$folder/main.go" &&
        (cd "$folder" && CGO_LDFLAGS="-O2 $rpath" bash -ec "$(block go/README.md 'go mod edit')") && says "$folder/app" && report Go "$folder/main.go" "$folder/app" &&
        (cd "$folder" && env -u PKG_CONFIG_PATH bash -ec "$(block go/README.md metalcandle_flags)")
}

# What stands elsewhere is what is compiled of README.md.
go_comments() {
    local file
    for file in go/doc.go examples/go/main.go; do
        diff <(awk '/^\/\/\t/ { inside = 1; print substr($0, 4); next } inside { exit }' "$file") <(block README.md 'metalcandle.Load') || { echo "$file shows other lines than README.md"; return 1; }
    done
}

zig_() { # in what `zig init` makes, but for its comments
    new zig && mkdir "$folder/src" && {
        printf 'const std = @import("std");\nconst mc = @import("metal_candle");\n\npub fn main() !void {\n'
        block zig/README.md mc.Model.load
        printf '}\n'
    } >"$folder/src/main.zig" && {
        printf '%s\n' 'const std = @import("std");' 'pub fn build(b: *std.Build) void {' \
            'const target = b.standardTargetOptions(.{});' 'const optimize = b.standardOptimizeOption(.{});' \
            'const exe = b.addExecutable(.{ .name = "app", .root_module = b.createModule(.{' \
            '.root_source_file = b.path("src/main.zig"), .target = target, .optimize = optimize }) });' 'b.installArtifact(exe);'
        block zig/README.md b.dependency
        printf '}\n'
    } >"$folder/build.zig" && {
        grep -v -e '\.dependencies' -e '^}' examples/zig/build.zig.zon
        block zig/README.md .dependencies
        printf '}\n'
    } >"$folder/build.zig.zon" && (cd "$folder" && "$ZIG" build --prefix "$folder/out") && "$folder/out/bin/app" 2>&1 | grep . &&
        diff <(block README.md mc.Model.load) <(block zig/README.md mc.Model.load) && report Zig "$folder/src/main.zig" "$folder/out/bin/app"
}

python_() { # a release is built by pip itself, as `make` builds it; of another library pip is told
    local line='^pip install'
    [ "$PROFILE" = release ] || line='^METAL_CANDLE_LIBRARY'
    new python && "$PYTHON" -m venv "$folder/venv" && block python/README.md 'mc.Conversation' >"$folder/app.py" &&
        MAKEFLAGS='' PATH="$folder/venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 bash -ec "$(lines python/README.md 'pip install' "$line")" &&
        says "$folder/venv/bin/python" "$folder/app.py" && report Python "$folder/app.py" "$(echo "$folder"/venv/lib/python*/site-packages/metal_candle)"
}

if have pkg-config "hosts in empty folders"; then
    step "make install" install && {
        step "C" c
        step "C++" cpp
        if have go "Go in an empty folder"; then step "Go" go_; fi
        step "Go's comments" go_comments
        if have "$ZIG" "Zig in an empty folder"; then step "Zig" zig_; fi
        if "$PYTHON" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
            step "Python" python_
        else
            skip "Python in an empty folder" "$PYTHON is older than 3.9 or has no venv"
        fi
        sed 's/^/    /' "$stage/report"
    }
fi

end "tests/hosts"
