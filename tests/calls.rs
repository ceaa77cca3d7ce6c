//! Calls in any order, with any arguments, from seeds. `fuzz/run 3600 calls` does the same for as long as is wanted, with
//! AddressSanitizer, and draws calls that reach what others have not.

mod handles;

/// Knuth's generator.
fn input(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..600).map(|_| byte()).collect()
}

#[test]
fn calls_in_any_order_give_a_status_and_lose_no_handle() {
    let first: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let count: u64 = std::env::var("SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(20);
    let mut done = 0;
    for seed in first..first + count {
        eprintln!("SEED={seed} SEEDS=1");
        done += handles::calls::run(&input(seed));
    }
    // Of an input's hundred calls every fifth or so.
    assert!(done as u64 > 10 * count, "{done} calls of {count} inputs did something");
}
