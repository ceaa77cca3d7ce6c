//! A language model inside your app: load it, hold a conversation, stream the answer.
//!
//! ```no_run
//! use metal_candle::{Chat, GenerateOptions, LoadOptions, Model, Session};
//!
//! # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
//! let model = Model::load("models/tiny-coder", &LoadOptions::default(), None)?;
//! let mut chat = Chat::new();
//! chat.add("user", "What does `Vec::push` do?");
//! let mut session = Session::new(&model, 0)?;
//! session.set_chat(&chat, None)?;
//! for token in session.stream(&GenerateOptions::default().max_tokens(200).temperature(0.7))? {
//!     print!("{}", token?.text);
//! }
//! # Ok::<(), metal_candle::Error>(())
//! ```
//!
//! A [`Model`] is loaded once and shared; a [`Session`] is a conversation; [`Model::embed`] gives vectors; a [`LoraTrainer`] teaches, and the
//! [`Lora`] that it makes is used at once. `examples/` has a small program for each.
//!
//! Options begin as their `default()`, and have a method for each field. Structs may get more fields in a later version, and enums more
//! values, so that other crates do not list them all.
//!
//! The same engine stands behind the C ABI of `include/metal_candle.h`. Data flows one way:
//! `ffi → engine → models → nn → ops → kernels`, with `load` beside `models`.

mod error;
#[doc(hidden)]
pub mod ffi;
mod engine;
mod models;
mod load;
mod nn;
mod ops;
mod kernels;

/// What keeps a C program going where there is no memory. A Rust program chooses its own.
#[cfg(feature = "reserve")]
#[global_allocator]
static ALLOCATOR: kernels::reserve::Reserving = kernels::reserve::Reserving;

#[cfg(feature = "selftest")]
#[doc(hidden)]
pub mod selftest;

pub use engine::{
    AnswerFormat, AnswerPart, AnswerStream, Cancel, Capability, Chat, ChatTemplate, ControlTokens, Dataset, Device, DeviceKind,
    Dtype, EmbedOptions, FinishReason, GenerateOptions, Generation, LoadOptions, Lora, LoraConfig, LoraTrainer, MicroStep, Model,
    PartStream, Pooling, Progress, ProgressFn, Prompt, RerankOptions, Sampler, Sampling, SamplingOptions, Schedule,
    ScoreActivation, Session, Similarity, Stage, TextStream, TokenEvent, TokenFn, Tokenizer, ToolCall, ToolChoice, TrainEnd,
    TrainEvent, TrainFn, TrainOptions, TrainReport, Update, Weighting, estimate_memory, set_threads, similarity_top_k, threads,
};
pub use error::{Error, ErrorKind, Result};
pub use models::architectures;
#[cfg(feature = "fault-injection")]
#[doc(hidden)]
pub use ops::inject_device_failure;

// Where a processor is played, one program is built for all that is asked of it: these tests of the public functions as well.
#[cfg(all(test, reference_data, target_arch = "aarch64", target_os = "linux"))]
extern crate self as metal_candle;
#[cfg(all(test, reference_data, target_arch = "aarch64", target_os = "linux"))]
#[path = "../tests/decoders.rs"]
mod decoders;
#[cfg(all(test, reference_data, target_arch = "aarch64", target_os = "linux"))]
#[path = "../tests/tiny_coder.rs"]
mod tiny_coder;

/// The programs in Rust of README.md and the guides.
#[cfg(all(doctest, reference_data))]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/coming-from.md")]
mod documents {}
