#!/usr/bin/env bash
# Looks for data races: tests/thread-sanitizer.sh [SECONDS], after `make soak`'s program with eight threads that share a model, an embedder,
# an adapter and cancel flags, and free what they made.
#
# ThreadSanitizer has to see every access, those of Rust's standard library too, which is therefore built here: needs its sources
# (`rustup component add rust-src`) and clang with its runtimes (CC). .ci/thread-sanitizer brings both to a Debian machine.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-600}
out=${CARGO_TARGET_DIR:-target}/tsan
host=$(rustc -vV | sed -n 's/^host: //p')
[ -e "$(rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ] || { echo "skip: ThreadSanitizer: the sources of Rust's standard library are missing"; exit 0; }

# Without downloads, which soak.c has none of: their C has no instrumentation. The flags are unstable ones: RUSTC_BOOTSTRAP lets the
# stable compiler take them, --target keeps them from what runs while building. The runtime is clang's.
CARGO_TARGET_DIR=$out CARGO_INCREMENTAL=0 RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Zexternal-clangrt" ${CARGO:-cargo} rustc --locked --lib \
    --profile emulated --no-default-features -Zbuild-std=std,panic_unwind --target "$host" --crate-type staticlib
${CC:-clang} -std=c11 -O1 -g -fsanitize=thread -Iinclude tests/c/soak/soak.c "$out/$host/emulated/libmetal_candle.a" -o "$out/soak" -pthread -lm -ldl
# Reports do not end the run: it says all of them, and fails then.
TSAN_OPTIONS="halt_on_error=0 exitcode=66 second_deadlock_stack=1 ${TSAN_OPTIONS:-}" "$out/soak" "$seconds"
