#!/usr/bin/env bash
# The Go module: its tests under the race detector against the shared library, vet and formatting, and the example in a module of its own,
# by pkg-config and, against the archive, by flags. `make test-go` builds the library first. Needs Go 1.24, a C compiler and pkg-config.
set -u
cd "$(dirname "$0")/.."
. tests/steps.sh

: "${OUT:=target/debug}" "${BUILD:=build/dev}"
mkdir -p "$BUILD/go"
root=$(pwd)
out=$(cd "$OUT" && pwd)
scratch=$(cd "$BUILD/go" && pwd)

have go "the Go module" && have pkg-config "the Go module" || { end "tests/go"; exit; }

# Nothing is fetched: the module has no dependencies, and a newer toolchain must not be either.
export GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local PKG_CONFIG_PATH=$scratch CGO_ENABLED=1
export CGO_LDFLAGS="${CGO_LDFLAGS:--O2 -g} -Wl,-rpath,$out"
cat >"$scratch/metal-candle.pc" <<EOF
Name: metal-candle
Description: the library that was built in $OUT
Version: 0
Cflags: -I$root/include
Libs: -L$out -lmetal_candle
EOF

formatted() { [ -z "$(gofmt -l go examples/go | tee /dev/stderr)" ]; }
vetted() { (cd go && go vet ./...) && (cd examples/go && go vet ./...); }
tests() { (cd go && go test -race -count=1 -timeout 20m ./...); }

# What each program must say, and what it must not go without: progress, a stop, the nearest text first, the new fact.
example() { # program
    "$1" models/tiny-coder models/tiny-embed examples/data/facts.jsonl >"$scratch/output" 2>"$scratch/errors" || { cat "$scratch/errors"; return 1; }
    cat "$scratch/output"
    grep -q 'loading 100 %' "$scratch/errors" && grep -q 'step 20/20' "$scratch/errors" &&
        [ "$(head -n 1 "$scratch/output")" = 'Appends an element to the back of a collection.' ] &&
        grep -q ' \[stopped\]$' "$scratch/output" &&
        [ "$(sed -n 's/^0\.[0-9]*  //p' "$scratch/output" | head -n 1)" = 'add an element to a vector' ] &&
        grep -qi 'heron' "$scratch/output"
}

build_example() { (cd examples/go && go build -o "$scratch/tour" .); }
build_static() {
    local CGO_CFLAGS="-I$root/include" CGO_LDFLAGS="$out/libmetal_candle.a $(cat "$out/native-static-libs")"
    export CGO_CFLAGS CGO_LDFLAGS
    (cd examples/go && env -u PKG_CONFIG_PATH go build -tags metalcandle_flags -o "$scratch/tour-static" .)
}

readme() { # the lines that README.md shows, as a program
    mkdir -p "$scratch/readme" && sed "s|\.\./\.\./go|$root/go|" examples/go/go.mod >"$scratch/readme/go.mod" && {
        printf 'package main\n\nimport (\n"context"\n"fmt"\n\n"example.com/metal-candle/go"\n)\n\nfunc answer(ctx context.Context) error {\n'
        sed -n '/^```go$/,/^```$/p' README.md | grep -v '^```'
        printf 'return nil\n}\n\nfunc main() {\nif err := answer(context.Background()); err != nil {\npanic(err)\n}\n}\n'
    } >"$scratch/readme/main.go" && (cd "$scratch/readme" && go build -o program .) &&
        [ "$("$scratch/readme/program")" = 'Appends an element to the back of a collection.' ]
}

step "gofmt" formatted
step "go vet" vetted
step "go test -race" tests && sed -n 's/^ok/    &/p' "$log"
step "the README's lines" readme
step "the example builds by pkg-config" build_example && step "the example" example "$scratch/tour"
step "the example builds with the archive" build_static && step "the example with the archive" example "$scratch/tour-static"

end "tests/go"
