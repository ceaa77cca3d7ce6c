//! What the tests of the C ABI share: arguments as C passes them, one handle of each type, and the model.

#![allow(dead_code)]

pub mod calls;
pub mod functions;

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::{MaybeUninit, size_of};
use std::path::{Path, PathBuf};
use std::ptr::{self, null, null_mut};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use metal_candle::ffi::cancel::*;
use metal_candle::ffi::chat::*;
use metal_candle::ffi::dataset::*;
use metal_candle::ffi::device::*;
use metal_candle::ffi::embed::*;
use metal_candle::ffi::error::*;
use metal_candle::ffi::generate::*;
use metal_candle::ffi::lora::*;
use metal_candle::ffi::model::*;
use metal_candle::ffi::rerank::*;
use metal_candle::ffi::session::*;
use metal_candle::ffi::tokenizer::*;
use metal_candle::ffi::train::*;
use metal_candle::ffi::values::*;

pub const PROMPT: &str = "<|im_start|>system\nYou answer questions about the Rust standard library.<|im_end|>\n<|im_start|>user\n\
    What does `Vec::push` do?<|im_end|>\n<|im_start|>assistant\n";
pub const ANSWER: &str = "Appends an element to the back of a collection.";
pub const CHAT: &str = r#"[{"role": "user", "content": "What does `Vec::push` do?"}]"#;

/// Tests that look at the count of live handles run one after another.
pub fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A word, as a C caller puts it into a register: the low bytes count.
pub fn argument<T>(word: u64) -> T {
    assert!(size_of::<T>() <= 8);
    // SAFETY: the width was compared, little-endian machines alone are tested, and the tables below choose words that T allows.
    unsafe { ptr::read_unaligned((&raw const word).cast::<T>()) }
}

/// What a function returned, as a word.
pub fn result<T>(value: T) -> u64 {
    assert!(size_of::<T>() <= 8);
    let mut word = 0;
    // SAFETY: the width was compared; the other bytes stay 0.
    unsafe { ptr::write_unaligned((&raw mut word).cast::<T>(), value) };
    word
}

/// A pointer where the header says nonnull.
pub fn nn<T, P>(pointer: *const P) -> MaybeUninit<T> {
    argument(pointer as u64)
}

/// A pointer that a function returned.
pub fn pointer<T>(returned: T) -> *mut c_void {
    result(returned) as *mut c_void
}

pub fn text(returned: MaybeUninit<&c_char>) -> String {
    // SAFETY: the functions that return text promise NUL-terminated UTF-8.
    unsafe { CStr::from_ptr(pointer(returned).cast()) }.to_str().unwrap().to_owned()
}

/// Where the one model of the program is: tiny-coder, unless it has said something else first.
pub static MODEL: OnceLock<PathBuf> = OnceLock::new();

/// A text that fits the context of the model.
fn prompt() -> &'static str {
    if model_directory().ends_with("tiny-coder") { PROMPT } else { "hi the" }
}

fn model_directory() -> &'static Path {
    MODEL.get_or_init(|| concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-coder").into())
}

pub fn model_path() -> CString {
    CString::new(model_directory().to_str().unwrap()).unwrap()
}

/// An adapter of that model, with values of no meaning: rank 2 on the values of the first layer.
pub fn adapter_path() -> &'static CStr {
    static PATH: OnceLock<(tempfile::TempDir, CString)> = OnceLock::new();
    let (_, path) = PATH.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["layers.0.self_attn.v_proj"]}"#;
        std::fs::write(directory.path().join("adapter_config.json"), config).unwrap();
        let weights = std::fs::read(model_directory().join("model.safetensors")).unwrap();
        let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
        let shape = weights.tensor("model.layers.0.self_attn.v_proj.weight").unwrap().shape().to_vec();
        let values: Vec<u8> = (0..2 * shape[0].max(shape[1])).flat_map(|i| ((i % 7) as f32 - 3.0).to_le_bytes()).collect();
        let tensor = |name: &str, shape: [usize; 2]| {
            let data = &values[..shape[0] * shape[1] * 4];
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), data).unwrap();
            (format!("base_model.model.model.layers.0.self_attn.v_proj.{name}.weight"), view)
        };
        let tensors = [tensor("lora_A", [2, shape[1]]), tensor("lora_B", [shape[0], 2])];
        let file = directory.path().join("adapter_model.safetensors");
        std::fs::write(file, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let path = CString::new(directory.path().to_str().unwrap()).unwrap();
        (directory, path)
    });
    path
}

/// A file of two examples.
pub fn examples_path() -> &'static CStr {
    static PATH: OnceLock<(tempfile::NamedTempFile, CString)> = OnceLock::new();
    let (_, path) = PATH.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{{\"text\": \"fn main\"}}\n{{\"messages\": {CHAT}}}\n")).unwrap();
        let path = CString::new(file.path().to_str().unwrap()).unwrap();
        (file, path)
    });
    path
}

/// The status and message of a failed call; frees the error.
pub fn taken(err: &mut *mut mc_error) -> (mc_status, String) {
    let error = std::mem::replace(err, null_mut());
    // SAFETY: an error from a call, or NULL.
    unsafe {
        let found = (mc_error_code(nn(error)), text(mc_error_message(nn(error))));
        mc_error_free(error);
        found
    }
}

/// Checks a status, and for an error that its object came along.
#[track_caller]
pub fn expect(expected: mc_status, status: mc_status, err: &mut *mut mc_error) -> String {
    let (code, message) = taken(err);
    assert_eq!(status, expected, "{message}");
    assert_eq!(code, if status as i32 >= 16 { status } else { mc_status::MC_OK }, "{message}");
    message
}

/// The types of handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Error,
    String,
    Tokens,
    Cancel,
    Device,
    ModelOptions,
    Model,
    Tokenizer,
    TextStream,
    Chat,
    GenerateOptions,
    Generation,
    Session,
    EmbedOptions,
    RerankOptions,
    Lora,
    Dataset,
    LoraConfig,
    TrainOptions,
    LoraTrainer,
}

pub const TYPES: [Type; 20] = [
    Type::Error,
    Type::String,
    Type::Tokens,
    Type::Cancel,
    Type::Device,
    Type::ModelOptions,
    Type::Model,
    Type::Tokenizer,
    Type::TextStream,
    Type::Chat,
    Type::GenerateOptions,
    Type::Generation,
    Type::Session,
    Type::EmbedOptions,
    Type::RerankOptions,
    Type::Lora,
    Type::Dataset,
    Type::LoraConfig,
    Type::TrainOptions,
    Type::LoraTrainer,
];

/// A second reference to the one model of the test program; NULL if it cannot be loaded.
pub fn model() -> *mut mc_model {
    static MODEL: OnceLock<usize> = OnceLock::new();
    let model = *MODEL.get_or_init(|| {
        let mut model: *mut mc_model = null_mut();
        // SAFETY: all arguments are valid.
        let _ = unsafe { mc_model_load(nn(model_path().as_ptr()), null(), nn(&raw mut model), null_mut()) };
        model as usize
    }) as *mut mc_model;
    // SAFETY: the static keeps its reference.
    unsafe { mc_model_retain(nn(model)) };
    model
}

/// A second reference to the one adapter of the test program; NULL if it cannot be loaded.
pub fn lora() -> *mut mc_lora {
    static LORA: OnceLock<usize> = OnceLock::new();
    let lora = *LORA.get_or_init(|| {
        let (model, mut lora) = (model(), null_mut::<mc_lora>());
        // SAFETY: all arguments are valid.
        unsafe {
            let _ = mc_lora_load(nn(model), nn(adapter_path().as_ptr()), nn(&raw mut lora), null_mut());
            mc_model_free(model);
        }
        lora as usize
    }) as *mut mc_lora;
    // SAFETY: the static keeps its reference.
    unsafe { mc_lora_retain(nn(lora)) };
    lora
}

/// A session that holds the prompt, for forks: one prefill for the whole test program. NULL if there is none.
fn prompted_session() -> *mut mc_session {
    static SESSION: OnceLock<usize> = OnceLock::new();
    *SESSION.get_or_init(|| {
        let (model, mut session) = (model(), null_mut::<mc_session>());
        // SAFETY: all arguments are valid.
        unsafe {
            // Of a model with less, its own.
            for max_context in [256, 0] {
                if session.is_null() {
                    let _ = mc_session_new(nn(model), max_context, nn(&raw mut session), null_mut());
                }
            }
            let _ = mc_session_append(nn(session), prompt().as_ptr().cast(), prompt().len(), null(), null_mut());
            mc_model_free(model);
        }
        session as usize
    }) as *mut mc_session
}

/// How many handles the test program itself keeps alive.
pub fn kept() -> usize {
    let (model, session, lora) = (model(), prompted_session(), lora());
    release(Type::Model, model.cast());
    release(Type::Lora, lora.cast());
    usize::from(!model.is_null()) + usize::from(!session.is_null()) + usize::from(!lora.is_null())
}

/// A new handle; options are for a short and certain answer. NULL if the library failed.
pub fn make(kind: Type) -> *mut c_void {
    let (mut err, mut out): (*mut mc_error, *mut c_void) = (null_mut(), null_mut());
    let place = &raw mut out;
    let name = |text: &'static CStr| text.as_ptr();
    // SAFETY: all arguments are valid.
    unsafe {
        let _ = match kind {
            Type::Error => {
                let _ = mc_model_load(nn(null::<c_char>()), null(), nn(place), &raw mut err);
                return err.cast();
            }
            Type::String => {
                let model = model();
                let _ = mc_model_config_json(nn(model), nn(place), null_mut());
                mc_model_free(model);
                return out;
            }
            Type::Tokens => {
                let tokenizer = make(Type::Tokenizer);
                let _ = mc_tokenizer_encode(nn(tokenizer), name(c"fn main"), 7, false, nn(place), null_mut());
                release(Type::Tokenizer, tokenizer);
                return out;
            }
            Type::Cancel => return pointer(mc_cancel_new()),
            Type::Device => mc_device_new(MaybeUninit::new(mc_device_kind::MC_DEVICE_CPU), 0, nn(place), null_mut()),
            Type::ModelOptions => return pointer(mc_model_options_new()),
            Type::Model => return model().cast(),
            Type::Tokenizer => {
                let model = model();
                let _ = mc_model_tokenizer(nn(model), nn(place), null_mut());
                mc_model_free(model);
                return out;
            }
            Type::TextStream => {
                let tokenizer = make(Type::Tokenizer);
                let _ = mc_text_stream_new(nn(tokenizer), nn(place), null_mut());
                release(Type::Tokenizer, tokenizer);
                return out;
            }
            Type::Chat => mc_chat_from_json(nn(CHAT.as_ptr()), CHAT.len(), nn(place), null_mut()),
            Type::GenerateOptions => {
                let options = pointer(mc_generate_options_new());
                mc_generate_options_set_max_tokens(nn(options), 2);
                return options;
            }
            Type::Generation => {
                let (model, options) = (model(), make(Type::GenerateOptions));
                let (text, len) = (prompt().as_ptr().cast(), prompt().len());
                let _ = mc_generate(nn(model), text, len, options.cast(), nn(place), null_mut());
                mc_model_free(model);
                release(Type::GenerateOptions, options);
                return out;
            }
            Type::EmbedOptions => return pointer(mc_embed_options_new()),
            Type::RerankOptions => return pointer(mc_rerank_options_new()),
            Type::Lora => return lora().cast(),
            Type::Dataset => {
                let dataset = pointer(mc_dataset_new());
                let _ = mc_dataset_add_text(nn(dataset), name(c"fn main"), 7, null_mut());
                return dataset;
            }
            Type::LoraConfig => {
                let config = pointer(mc_lora_config_new());
                mc_lora_config_set_rank(nn(config), 2);
                mc_lora_config_add_target(nn(config), nn(c"layers.0.self_attn.v_proj".as_ptr()));
                return config;
            }
            Type::TrainOptions => return pointer(mc_train_options_new()),
            Type::LoraTrainer => {
                let (model, config) = (model(), make(Type::LoraConfig));
                let _ = mc_lora_trainer_new(nn(model), config.cast(), null(), nn(place), null_mut());
                mc_model_free(model);
                release(Type::LoraConfig, config);
                return out;
            }
            Type::Session => mc_session_fork(nn(prompted_session()), nn(place), null_mut()),
        };
    }
    out
}

pub fn release(kind: Type, handle: *mut c_void) {
    // SAFETY: the caller made it with `make`, or it is NULL.
    unsafe {
        match kind {
            Type::Error => mc_error_free(handle.cast()),
            Type::String => mc_string_free(handle.cast()),
            Type::Tokens => mc_tokens_free(handle.cast()),
            Type::Cancel => mc_cancel_free(handle.cast()),
            Type::Device => mc_device_free(handle.cast()),
            Type::ModelOptions => mc_model_options_free(handle.cast()),
            Type::Model => mc_model_free(handle.cast()),
            Type::Tokenizer => mc_tokenizer_free(handle.cast()),
            Type::TextStream => mc_text_stream_free(handle.cast()),
            Type::Chat => mc_chat_free(handle.cast()),
            Type::GenerateOptions => mc_generate_options_free(handle.cast()),
            Type::Generation => mc_generation_free(handle.cast()),
            Type::Session => mc_session_free(handle.cast()),
            Type::EmbedOptions => mc_embed_options_free(handle.cast()),
            Type::RerankOptions => mc_rerank_options_free(handle.cast()),
            Type::Lora => mc_lora_free(handle.cast()),
            Type::Dataset => mc_dataset_free(handle.cast()),
            Type::LoraConfig => mc_lora_config_free(handle.cast()),
            Type::TrainOptions => mc_train_options_free(handle.cast()),
            Type::LoraTrainer => mc_lora_trainer_free(handle.cast()),
        }
    }
}
