#!/usr/bin/env bash
# Looks for undefined behaviour: tests/miri.sh, in the kernels as they are without a processor's own instructions and in what C calls. Miri
# interprets each step, and so sees reads past an end, of what nothing has written or nothing holds any more, and references that alias.
#
# It takes a thousand times as long as a processor: tests run that are small, or that are made so for it (`cfg!(miri)`), and no model is
# loaded. It knows neither AVX nor NEON, whose kernels are held against these by other tests, nor what the system's libraries do; those that
# measure memory stay out. Needs a nightly Rust: `rustup toolchain install nightly --component miri,rust-src`.
set -euo pipefail
cd "$(dirname "$0")/.."

# Threads of the pool live as long as the process. Of the two models of aliasing the stricter refuses crossbeam-epoch, which the pool uses;
# tree borrows is the one that allows what it does. Files and clocks are the system's.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-tree-borrows -Zmiri-permissive-provenance ${MIRIFLAGS:-}"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/miri CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=none RAYON_NUM_THREADS=1

# Not here: products, packing, planes, attention, scans, logits and elementwise functions, whose tests have no small sizes yet (a product's
# took more than six minutes); the reserve's; what compares instruction sets, of which there is one.
cargo +nightly miri test --locked --no-default-features --lib -- --test-threads=1 \
    ffi:: kernels::adamw kernels::convolution kernels::experts kernels::int8 kernels::kv_cache::tests::every
cargo +nightly miri test --locked --no-default-features --test interpreted
