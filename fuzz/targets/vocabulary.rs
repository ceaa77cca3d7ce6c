#![no_main]

libfuzzer_sys::fuzz_target!(init: metal_candle_fuzz::start(), |input: &[u8]| metal_candle_fuzz::targets::vocabulary::run(input));
