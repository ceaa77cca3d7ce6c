#!/usr/bin/env bash
# Looks for data races: tests/thread-sanitizer.sh [SECONDS], after `make soak`'s program with eight threads that share a model, an embedder,
# an adapter and cancel flags, and free what they made.
#
# ThreadSanitizer has to see every access, those of Rust's standard library too, which is therefore built here: needs Linux, clang (CC)
# and a nightly Rust with the sources (`rustup toolchain install nightly --component rust-src`).
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-600}
out=${CARGO_TARGET_DIR:-target}/tsan
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
runtime=$(rustc +nightly --print sysroot)/lib/rustlib/$host/lib/librustc-nightly_rt.tsan.a

# Without downloads, of which soak.c has none: their C has no instrumentation.
CARGO_TARGET_DIR=$out CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_DEBUG=line-tables-only CARGO_PROFILE_RELEASE_STRIP=none RUSTFLAGS=-Zsanitizer=thread \
    cargo +nightly rustc --locked --release --lib --no-default-features -Zbuild-std=std,panic_unwind --target "$host" --crate-type staticlib
# The runtime is Rust's: of two there would be two books.
"${CC:-clang}" -std=c11 -O1 -g -fsanitize=thread -fno-sanitize-link-runtime -Iinclude tests/c/soak/soak.c "$out/$host/release/libmetal_candle.a" \
    -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive -o "$out/soak" -pthread -lm -ldl -lrt -lstdc++
# Reports do not end the run: it says all of them, and fails then.
TSAN_OPTIONS="halt_on_error=0 exitcode=66 second_deadlock_stack=1 history_size=4 ${TSAN_OPTIONS:-}" "$out/soak" "$seconds"
