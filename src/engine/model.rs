//! A loaded model: its network, tokenizer, chat template and generation defaults. Immutable, cheap to clone, shared by
//! any number of sessions on any threads.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::{Cancel, ChatTemplate, Device, Tokenizer};
use crate::error::Result;

/// The type that weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    F32,
    F16,
    BF16,
}

/// What a model can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    Generate,
    Embed,
    Lora,
    Train,
    ChatTemplate,
}

/// Which part of a long call is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    Download,
    Read,
    Quantize,
    Compile,
    Prefill,
}

/// How far a stage is: bytes for `Download`, `Read` and `Quantize`, kernels for `Compile`, tokens for `Prefill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub done: u64,
    pub total: u64,
}

/// Called with each progress; `Break` stops the work.
pub type ProgressFn<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// How to load a model. The default: best device, weights as stored, the tokenizer beside the weights.
#[derive(Clone, Default)]
pub struct LoadOptions {
    pub device: Option<Device>,
    /// `None` = as stored.
    pub dtype: Option<Dtype>,
    pub tokenizer_path: Option<PathBuf>,
    pub quantization: Option<String>,
    /// Tokens; `None` = what the configuration says.
    pub max_context: Option<usize>,
    pub hub_cache_dir: Option<PathBuf>,
    pub hub_revision: Option<String>,
    pub hub_token: Option<String>,
    pub offline: bool,
    pub cancel: Option<Cancel>,
}

#[derive(Clone)]
pub struct Model {}

impl Model {
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions, progress: Option<&mut ProgressFn<'_>>) -> Result<Self> {
        let _ = (path.as_ref(), options, progress.is_some());
        todo!()
    }
    pub fn load_hub(repo_id: &str, options: &LoadOptions, progress: Option<&mut ProgressFn<'_>>) -> Result<Self> {
        let _ = (repo_id, options, progress.is_some());
        todo!()
    }
    /// `model_type` of config.json.
    pub fn architecture(&self) -> &str {
        todo!()
    }
    pub fn context_length(&self) -> usize {
        todo!()
    }
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
    pub fn hidden_size(&self) -> usize {
        todo!()
    }
    pub fn layer_count(&self) -> usize {
        todo!()
    }
    pub fn parameter_count(&self) -> u64 {
        todo!()
    }
    pub fn dtype(&self) -> Dtype {
        todo!()
    }
    pub fn supports(&self, capability: Capability) -> bool {
        todo!("{capability:?}")
    }
    /// config.json as it was read.
    pub fn config_json(&self) -> &str {
        todo!()
    }
    pub fn device(&self) -> &Device {
        todo!()
    }
    /// # Errors
    /// `ErrorKind::NotFound` if the model has none, saying which file is missing.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        todo!()
    }
    /// # Errors
    /// `ErrorKind::NotFound` if the model has none.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        todo!()
    }
}

/// The bytes that loading takes, plus the KV cache of the whole context and the workspace.
pub fn estimate_memory(path: impl AsRef<Path>, options: &LoadOptions) -> Result<u64> {
    let _ = (path.as_ref(), options);
    todo!()
}
