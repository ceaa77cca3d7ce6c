//! The library as a Rust programmer would want it, one file a section of the C header.

mod cancel;
mod device;
mod model;
mod files;
#[cfg(feature = "hub")]
pub(crate) mod hub;
mod tokenizer;
mod text_stream;
mod chat;
mod random;
pub(crate) mod options;
mod sampling;
mod constraint;
mod schema;
mod generate;
mod answer_parts;
mod evaluated;
mod session;
mod session_file;
mod embed;
mod rerank;
mod lora;
mod save;
mod similarity;
mod dataset;
mod training;

pub use crate::load::Similarity;
pub use crate::ops::Pooling;
pub use cancel::Cancel;
pub use chat::{AnswerFormat, AnswerPart, Chat, ChatTemplate, ControlTokens, PartStream, ToolCall};
pub(crate) use constraint::check_schema;
pub use dataset::Dataset;
pub(crate) use device::check_process;
pub use device::{Device, DeviceKind, set_threads, threads};
pub use embed::{EmbedOptions, Prompt};
pub use generate::{FinishReason, GenerateOptions, Generation, TokenEvent, TokenFn, ToolChoice};
pub use lora::Lora;
pub use model::{Capability, Dtype, LoadOptions, Model, Progress, ProgressFn, Stage, estimate_memory};
pub use rerank::{RerankOptions, ScoreActivation};
pub use sampling::{Sampler, Sampling, SamplingOptions};
pub use session::{AnswerStream, Session};
pub use similarity::similarity_top_k;
pub use text_stream::TextStream;
pub use tokenizer::Tokenizer;
pub use training::{
    LoraConfig, LoraTrainer, MicroStep, Schedule, TrainEnd, TrainEvent, TrainFn, TrainOptions, TrainReport, Update, Weighting,
};
