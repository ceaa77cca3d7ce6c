//! Files to named tensors and checked values. What a format changed is undone here; nothing above knows the format.

mod json;
mod replace;
mod safetensors;
mod sentence;
mod peft;
#[cfg(feature = "hub")]
pub mod hub;

pub use json::{Json, read_text};
pub use peft::{Beside, Fresh, Peft, PeftPlan};
pub use replace::{remove_parts, replace};
pub use safetensors::{Checkpoint, FNV_START, Tensors, fnv};
pub use sentence::{Module, SentenceConfig, Similarity};
