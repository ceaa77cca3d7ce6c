//! A target a format, and one for the C interface itself: what is done with an input.

pub mod adapter;
pub mod calls;
pub mod checkpoint;
pub mod config;
pub mod gguf;
pub mod hub_cache;
pub mod jsonl;
pub mod safetensors;
pub mod schema;
pub mod sentence;
pub mod session;
pub mod template;
pub mod tokenizer;
pub mod vocabulary;

/// What is done with an input.
pub type Run = fn(&[u8]);

/// All, by their names.
pub const ALL: [(&str, Run); 14] = [
    ("adapter", adapter::run),
    ("calls", calls::run),
    ("checkpoint", checkpoint::run),
    ("config", config::run),
    ("gguf", gguf::run),
    ("hub_cache", hub_cache::run),
    ("jsonl", jsonl::run),
    ("safetensors", safetensors::run),
    ("schema", schema::run),
    ("sentence", sentence::run),
    ("session", session::run),
    ("template", template::run),
    ("tokenizer", tokenizer::run),
    ("vocabulary", vocabulary::run),
];
