//! Files to named tensors and checked values. What a format changed is undone here; nothing above knows the format.

mod text;
mod json;
mod room;
mod fnv;
mod replace;
mod rewrite;
mod read_count;
mod safetensors;
mod tokenizer_json;
mod sentencepiece;
mod vocabulary;
mod expert_stacks;
mod quantization;
mod gguf;
mod sentence;
mod peft;
#[cfg(feature = "hub")]
pub mod hub;

pub use expert_stacks::{ApartExperts, JoinedExperts};
pub use fnv::{FNV_START, fnv};
#[cfg(test)]
pub use gguf::build::Build as GgufBuild;
pub use gguf::{AdaptedModule, Gguf, GgufAdapter, GgufChanges, GgufSource, GgufVocabulary, Metadata, Origin, WHOLE_CLASS};
pub use json::{Json, python_text};
pub use peft::{Beside, Fresh, HeadChange, HeadLayer, Naming, Peft, PeftPlan};
pub use quantization::{Quantization, QuantizedCheckpoint};
pub use read_count::{ModelTensors, OnBytes};
pub use replace::{beside, copy_file, remove_parts, replace, try_directory, write_text};
pub use rewrite::{Put, Rewrite, Rows, write_rows};
pub use room::{check_json_room, held_by_fields, held_bytes};
pub use safetensors::{Checkpoint, Tensors, write_safetensors, write_tensors};
pub use sentence::{MessageContent, ModuleConfig, ModulePlace, PairFormat, Scored, SentenceConfig, Similarity, TemplateSettings};
pub use text::{MAX_JSON, open_file, read_text};
pub use tokenizer_json::parse_tokenizer;
pub use vocabulary::vocabulary_json;
