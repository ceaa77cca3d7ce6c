//! Deprecated: the names of ABI 1.
//!
//! They are for programs that still call them. Each is the function of another name that it mentions, with the same parameters.
//!
//! @see @ref model, @ref train
//!
//! Threads: as of the function that it is.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use super::chat::{mc_chat, mc_model_encode_chat, mc_model_render_chat};
use super::dataset::mc_dataset;
use super::device::{mc_device, mc_device_kind, mc_device_kind_of};
use super::embed::{mc_embed_options, mc_model_embed_dim, mc_model_similarity, mc_similarity};
use super::error::{mc_error, mc_status};
use super::lora::{mc_lora, mc_model_merge};
use super::model::{mc_dtype, mc_model, mc_model_dtype};
use super::train::{
    mc_lora_config, mc_lora_trainer, mc_lora_trainer_eval_step, mc_lora_trainer_train, mc_lora_trainer_train_step,
    mc_model_estimate_training_memory, mc_train_fn, mc_train_options,
};
use super::values::{mc_string, mc_tokens};

/// mc_device_kind_of(), by its name of ABI 1.
///
/// @param device  as there.
/// @return as there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_device_get_kind(device: MaybeUninit<&mc_device>) -> mc_device_kind {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_device_kind_of(device) }
}

/// mc_model_dtype(), by its name of ABI 1.
///
/// @param model  as there.
/// @return as there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_model_get_dtype(model: MaybeUninit<&mc_model>) -> mc_dtype {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_model_dtype(model) }
}

/// mc_model_embed_dim(), by its name of ABI 1.
///
/// @param model  as there.
/// @param options  as there.
/// @return as there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_dim(model: MaybeUninit<&mc_model>, options: *const mc_embed_options) -> usize {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_model_embed_dim(model, options) }
}

/// mc_model_similarity(), by its name of ABI 1.
///
/// @param model  as there.
/// @return as there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_embed_similarity(model: MaybeUninit<&mc_model>) -> mc_similarity {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_model_similarity(model) }
}

/// mc_model_render_chat(), by its name of ABI 1.
///
/// @param model  as there.
/// @param chat  as there.
/// @param add_generation_prompt  as there.
/// @param out  as there.
/// @param err  as there.
/// @return as there.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_render(
    model: MaybeUninit<&mc_model>,
    chat: MaybeUninit<&mc_chat>,
    add_generation_prompt: bool,
    out: MaybeUninit<&mut *mut mc_string>,
    err: *mut *mut mc_error,
) -> mc_status {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_model_render_chat(model, chat, add_generation_prompt, out, err) }
}

/// mc_model_encode_chat(), by its name of ABI 1.
///
/// @param model  as there.
/// @param chat  as there.
/// @param add_generation_prompt  as there.
/// @param out  as there.
/// @param err  as there.
/// @return as there.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_chat_encode(
    model: MaybeUninit<&mc_model>,
    chat: MaybeUninit<&mc_chat>,
    add_generation_prompt: bool,
    out: MaybeUninit<&mut *mut mc_tokens>,
    err: *mut *mut mc_error,
) -> mc_status {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_model_encode_chat(model, chat, add_generation_prompt, out, err) }
}

/// mc_model_merge(), by its name of ABI 1.
///
/// @param model  as there.
/// @param lora  as there.
/// @param scale  as there.
/// @param out  as there.
/// @param err  as there.
/// @return as there.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_merge(
    model: MaybeUninit<&mc_model>,
    lora: MaybeUninit<&mc_lora>,
    scale: f32,
    out: MaybeUninit<&mut *mut mc_model>,
    err: *mut *mut mc_error,
) -> mc_status {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_model_merge(model, lora, scale, out, err) }
}

/// mc_model_estimate_training_memory(), by its name of ABI 1.
///
/// @param model  as there.
/// @param config  as there.
/// @param options  as there.
/// @param bytes  as there.
/// @param err  as there.
/// @return as there.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_estimate_memory(
    model: MaybeUninit<&mc_model>,
    config: *const mc_lora_config,
    options: *const mc_train_options,
    bytes: MaybeUninit<&mut u64>,
    err: *mut *mut mc_error,
) -> mc_status {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_model_estimate_training_memory(model, config, options, bytes, err) }
}

/// mc_lora_trainer_train(), by its name of ABI 1.
///
/// @param trainer  as there.
/// @param train  as there.
/// @param eval  as there.
/// @param on_step  as there.
/// @param user_data  as there.
/// @param err  as there.
/// @return as there.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_train(
    trainer: MaybeUninit<&mut mc_lora_trainer>,
    train: MaybeUninit<&mc_dataset>,
    eval: *const mc_dataset,
    on_step: mc_train_fn,
    user_data: *mut c_void,
    err: *mut *mut mc_error,
) -> mc_status {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_lora_trainer_train(trainer, train, eval, on_step, user_data, err) }
}

/// mc_lora_trainer_train_step(), by its name of ABI 1.
///
/// @param trainer  as there.
/// @param tokens  as there.
/// @param loss_mask  as there.
/// @param offsets  as there.
/// @param sequences  as there.
/// @param loss  as there.
/// @param err  as there.
/// @return as there.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_train_step(
    trainer: MaybeUninit<&mut mc_lora_trainer>,
    tokens: MaybeUninit<&u32>,
    loss_mask: *const u8,
    offsets: MaybeUninit<&usize>,
    sequences: usize,
    loss: MaybeUninit<&mut f32>,
    err: *mut *mut mc_error,
) -> mc_status {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_lora_trainer_train_step(trainer, tokens, loss_mask, offsets, sequences, loss, err) }
}

/// mc_lora_trainer_eval_step(), by its name of ABI 1.
///
/// @param trainer  as there.
/// @param tokens  as there.
/// @param loss_mask  as there.
/// @param offsets  as there.
/// @param sequences  as there.
/// @param loss  as there.
/// @param err  as there.
/// @return as there.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_eval_step(
    trainer: MaybeUninit<&mut mc_lora_trainer>,
    tokens: MaybeUninit<&u32>,
    loss_mask: *const u8,
    offsets: MaybeUninit<&usize>,
    sequences: usize,
    loss: MaybeUninit<&mut f32>,
    err: *mut *mut mc_error,
) -> mc_status {
    // SAFETY: the caller vouches for the arguments, as there.
    unsafe { mc_lora_trainer_eval_step(trainer, tokens, loss_mask, offsets, sequences, loss, err) }
}
