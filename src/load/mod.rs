//! Files to named tensors and checked values. What a format changed is undone here; nothing above knows the format.

mod json;
mod replace;
mod safetensors;
mod sentence;
mod peft;
#[cfg(feature = "hub")]
pub mod hub;

pub use json::{Json, read_text};
pub use peft::{Peft, write_peft};
pub use replace::replace;
pub use safetensors::{Checkpoint, FNV_START, fnv};
pub use sentence::{Module, SentenceConfig, Similarity};
