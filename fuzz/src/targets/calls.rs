//! Calls of the C interface in any order with any arguments, as `tests/handles/calls.rs` draws them.

use std::sync::Once;

use crate::{micro, model_folder};

#[path = "../../../tests/handles/mod.rs"]
mod handles;

/// Some forty calls. More take longer, and lead nowhere that several inputs do not.
const MOST: usize = 256;

pub fn run(input: &[u8]) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = handles::MODEL.set(model_folder("base", micro::decoder));
    });
    handles::calls::run(&input[..input.len().min(MOST)]);
}
