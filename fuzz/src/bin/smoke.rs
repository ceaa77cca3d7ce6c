//! Seeds and what becomes of them by small changes, for so many seconds: `smoke SECONDS TARGET CORPUS`. No instrumentation guides it,
//! only which errors the library gives, so it finds little that libFuzzer does not; it is what can be run wherever the library is built.
//!
//! The input in hand stands in the file that it names when it fails, also where the process ends.

use std::panic::catch_unwind;
use std::path::Path;
use std::process::{ExitCode, abort};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metal_candle_fuzz::{ERROR_KINDS, new_errors, scratch, start, targets};

/// What an input may take at most.
const LONGEST: u64 = 10;
const MOST_BYTES: usize = 1 << 18;

const TOKENS: [&[u8]; 12] = [
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e308",
    b"18446744073709551615",
    b"4294967296",
    b"[]",
    b"{}",
    b"\"",
    b"\\u0000",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
];

/// Knuth's generator, from a seed that is always the same.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }

    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(input.len() + 1);
        let end = (at + 1 + self.below(16)).min(input.len());
        match self.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.below(256) as u8,
            2 => drop(input.drain(at.min(end)..end)),
            3 => input.truncate(at),
            4 => drop(input.splice(at..at, TOKENS[self.below(TOKENS.len())].iter().copied())),
            5 => drop(input.splice(at.min(end)..end, TOKENS[self.below(TOKENS.len())].iter().copied())),
            6 => {
                let piece: Vec<_> = input[at.min(end)..end].repeat(1 + self.below(64));
                drop(input.splice(at..at, piece));
            }
            7 => {
                let from = self.below(other.len() + 1);
                let piece = &other[from..(from + 1 + self.below(64)).min(other.len()).max(from)];
                drop(input.splice(at..at, piece.iter().copied()));
            }
            _ => {
                let number = [0, 1, u32::MAX, 1 << 31, 7][self.below(5)].to_le_bytes();
                input.iter_mut().skip(at).zip(number).for_each(|(byte, new)| *byte = new);
            }
        }
        input.truncate(MOST_BYTES);
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [seconds, name, corpus] = &arguments[..] else {
        eprintln!("smoke SECONDS TARGET CORPUS");
        return ExitCode::from(2);
    };
    let (Ok(seconds), Some((_, run))) = (seconds.parse(), targets::ALL.iter().find(|(known, _)| known == name)) else {
        eprintln!("{name}: expected a number of seconds and one of {:?}", targets::ALL.map(|(name, _)| name));
        return ExitCode::from(2);
    };
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(Path::new(corpus).join(name)).expect("the corpus").flatten() {
        inputs.push((entry.path(), std::fs::read(entry.path()).expect("an input")));
    }
    inputs.sort();
    let mut inputs: Vec<_> = inputs.into_iter().map(|(_, input)| input).collect();
    assert!(!inputs.is_empty(), "{corpus}/{name} has no inputs");

    start();
    let in_hand = scratch().join("input");
    static DONE: AtomicU64 = AtomicU64::new(0);
    let shown = in_hand.clone();
    std::thread::spawn(move || {
        let mut before = u64::MAX;
        loop {
            let done = DONE.load(Ordering::Relaxed);
            if done == before {
                eprintln!("an input takes more than {LONGEST} seconds: {}", shown.display());
                abort();
            }
            before = done;
            std::thread::sleep(Duration::from_secs(LONGEST));
        }
    });

    let (began, mut random, mut seen) = (Instant::now(), Random(20_261_129), vec![false; ERROR_KINDS]);
    let (seeds, mut next) = (inputs.len(), 0);
    while next < seeds || began.elapsed() < Duration::from_secs(seconds) {
        let mut input = inputs[if next < seeds { next } else { random.below(inputs.len()) }].clone();
        if next >= seeds {
            for _ in 0..=random.below(4) {
                let other = random.below(inputs.len());
                random.change(&mut input, &inputs[other]);
            }
        }
        std::fs::write(&in_hand, &input).expect("the input is written");
        if catch_unwind(|| run(&input)).is_err() {
            eprintln!("a panic: {}", in_hand.display());
            return ExitCode::FAILURE;
        }
        if new_errors(&mut seen) > 0 && next >= seeds {
            inputs.push(input);
        }
        next += 1;
        DONE.store(next as u64, Ordering::Relaxed);
    }
    println!("{name}: {next} inputs, {} kinds of errors", seen.iter().filter(|seen| **seen).count());
    ExitCode::SUCCESS
}
