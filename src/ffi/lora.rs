//! Adapters: a fine-tuning (LoRA) that is kept apart from its model.
//!
//! An adapter is loaded for a model from a directory of PEFT or a GGUF file, and then attached: to a session (mc_session_set_lora()),
//! to one generation (mc_generate_options_set_lora()) or to embeddings (mc_embed_options_set_lora()), each with a factor. Several at once
//! add up (mc_session_set_loras()). The model itself never changes: sessions with different adapters run side by side on one model, and
//! a session whose adapters are removed computes what it would have without them, bit for bit on the CPU. mc_model_merge() makes a new
//! model with the adapter's changes in its weights.
//!
//! @snippet adapter.c lora
//!
//! @snippet adapter.c attach
//!
//! @snippet adapter.c merge
//! @see @ref train, @ref session, @ref model
//!
//! Threads: any, concurrently: an adapter is immutable.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use super::boundary::{guard, guard_or};
use super::error::{mc_error, mc_status};
use super::handle::{Given, Object, OutHandle, free, optional, retain};
use super::model::{ModelState, mc_model};
use super::text::{self, Text, array};
use super::values::mc_string;
use crate::Lora;
use crate::error::{Error, Result};

/// A loaded adapter. Immutable; keeps nothing of its model alive but is for that model only.
pub struct mc_lora {
    _opaque: [u8; 0],
}

impl Object for mc_lora {
    const NAME: &'static str = "mc_lora";
    type Inner = Lora;
}

/// An adapter with its factor; none for NULL.
pub(super) fn scaled(lora: *const mc_lora, scale: f32) -> Result<Vec<(Lora, f32)>> {
    let Some(lora) = optional(lora, "lora")? else { return Ok(Vec::new()) };
    if !scale.is_finite() {
        return Err(Error::argument(format!("scale: expected a finite number, found {scale}")));
    }
    Ok(vec![((*lora).clone(), scale)])
}

/// Several adapters, each with its factor.
pub(super) fn all_scaled(loras: *const *const mc_lora, scales: *const f32, count: usize) -> Result<Vec<(Lora, f32)>> {
    let loras = array(loras, count, "loras")?;
    let scales = if scales.is_null() { None } else { Some(array(scales, count, "scales")?) };
    let adapter = |(i, &lora): (usize, &*const mc_lora)| {
        let name = format!("loras[{i}]");
        let lora = optional(lora, &name)?;
        let lora = lora.ok_or_else(|| Error::argument(format!("{name}: expected mc_lora, found NULL")))?;
        let scale = scales.map_or(1.0, |scales| scales[i]);
        if !scale.is_finite() {
            return Err(Error::argument(format!("scales[{i}]: expected a finite number, found {scale}")));
        }
        Ok(((*lora).clone(), scale))
    };
    loras.iter().enumerate().map(adapter).collect()
}

/// Loads an adapter of a model.
///
/// Understood are the projections of every layer, the embedding and the output matrix as targets, by names, by a pattern or as
/// "all-linear"; the matrices of all experts of a layer as target_parameters; rank_pattern, alpha_pattern, layers_to_transform,
/// exclude_modules, rsLoRA, DoRA, trained biases of matrices; the embedding and the output matrix as modules_to_save, and rows of them by
/// trainable_token_indices, which replace those of the model whatever the factor is; ensure_weight_tying; the head of a reranker, saved or
/// as a target, which counts in a model that mc_model_merge() makes, as scores take no adapters. Files are checked: a tensor
/// without a place in the model, a target without its tensors, a shape that does not fit, a number that is not finite, and an option that
/// would change the result and is not implemented (DoRA on the embedding, among others) are errors that name it. What only matters in
/// training, such as lora_dropout, is ignored.
///
/// @param model     the model that the adapter was trained on. Another model of the same shapes cannot be told from it.
/// @param peft_dir  a directory with adapter_config.json and adapter_model.safetensors, as PEFT saves them. The tensors may also have
///                  the names layers.{i}.{target}.lora_a and .lora_b. Or a file `.gguf` of an adapter, as llama.cpp's
///                  convert_lora_to_gguf.py makes of such a directory: for the model's family, whatever format its files have;
///                  changes count alpha / rank times, once if it gives no alpha. Of another architecture: MC_ERROR_MISMATCH.
/// @param out       receives one reference; free it with mc_lora_free().
/// @param err       NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND, MC_ERROR_IO or MC_ERROR_FORMAT for the files; MC_ERROR_UNSUPPORTED;
///         MC_ERROR_MISMATCH; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_load(
    model: MaybeUninit<&mc_model>,
    peft_dir: MaybeUninit<&c_char>,
    out: MaybeUninit<&mut *mut mc_lora>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let model = model.get("model")?;
        out.set(Lora::load(&model.model, text::name(&peft_dir, "peft_dir")?)?);
        Ok(mc_status::MC_OK)
    })
}

/// Writes an adapter in the format of PEFT, with its values in F32. Loading it again gives an adapter with the same results, bit for
/// bit. Tensors for parts of the model that this library has no use for, such as BERT's pooler, are not kept.
///
/// @param lora      the adapter.
/// @param peft_dir  the directory; it is made if it does not exist. Files of an adapter that are there are replaced, and stay as they
///                  are if writing fails.
/// @param err       NULL, or receives the error.
/// @return MC_OK; MC_ERROR_INVALID_ARGUMENT also for an empty `peft_dir`; MC_ERROR_INVALID_UTF8; MC_ERROR_NOT_FOUND; MC_ERROR_IO.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_save(
    lora: MaybeUninit<&mc_lora>,
    peft_dir: MaybeUninit<&c_char>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        lora.get("lora")?.save(text::name(&peft_dir, "peft_dir")?)?;
        Ok(mc_status::MC_OK)
    })
}

/// Adds a reference to an adapter, for a second owner; each reference is dropped with mc_lora_free().
///
/// @param lora  the adapter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_retain(lora: MaybeUninit<&mc_lora>) {
    guard_or((), || retain(lora.pointer(), "lora"));
}

/// Drops a reference to an adapter. Sessions, options and merged models keep what they need of it.
///
/// @param lora  the adapter, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_free(lora: *mut mc_lora) {
    guard_or((), || free(lora, "lora"));
}

/// The rank that the adapter's configuration gives; rank_pattern may give single modules another one.
///
/// @param lora  the adapter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_rank(lora: MaybeUninit<&mc_lora>) -> usize {
    guard_or(0, || Ok(lora.get("lora")?.rank()))
}

/// The lora_alpha that the adapter's configuration gives; alpha_pattern may give single modules another one. A change counts
/// alpha / rank times, or alpha / sqrt(rank) times with rsLoRA.
///
/// @param lora  the adapter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_alpha(lora: MaybeUninit<&mc_lora>) -> f32 {
    guard_or(0.0, || Ok(lora.get("lora")?.alpha()))
}

/// How many values the adapter has; those of replaced matrices and biases count too.
///
/// @param lora  the adapter.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_lora_parameter_count(lora: MaybeUninit<&mc_lora>) -> u64 {
    guard_or(0, || Ok(lora.get("lora")?.parameter_count()))
}

/// The adapter's configuration: adapter_config.json as it was read.
///
/// @param lora  the adapter.
/// @param out   receives one reference; free it with mc_string_free().
/// @param err   NULL, or receives the error.
/// @return MC_OK.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_lora_config_json(
    lora: MaybeUninit<&mc_lora>,
    out: MaybeUninit<&mut *mut mc_string>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        out.set(Text::new(lora.get("lora")?.config_json()));
        Ok(mc_status::MC_OK)
    })
}

/// Makes a new model with an adapter's changes in its weights: the same results as with the adapter attached, up to rounding, at the
/// speed of the model alone. The model that it is made from stays as it is; the two share the weights that do not change. On the CPU the
/// changed matrices are F32, whatever they were; on a GPU they keep their type.
///
/// To merge a second adapter, load it for the new model.
///
/// @param model  the model.
/// @param lora   an adapter of this model.
/// @param scale  a factor for its changes: 1 = as trained, 0 = none. Matrices and biases that it replaces are replaced whatever the
///               factor, unless it is 0.
/// @param out    receives one reference; free it with mc_model_free().
/// @param err    NULL, or receives the error.
/// @return MC_OK; MC_ERROR_MISMATCH for an adapter of another model; MC_ERROR_OUT_OF_MEMORY; MC_ERROR_DEVICE; MC_ERROR_SUSPENDED.
///
/// Threads: any; it runs on the calling thread and may take seconds.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn mc_model_merge(
    model: MaybeUninit<&mc_model>,
    lora: MaybeUninit<&mc_lora>,
    scale: f32,
    out: MaybeUninit<&mut *mut mc_model>,
    err: *mut *mut mc_error,
) -> mc_status {
    guard(err, || {
        let out = OutHandle::new(out, "out")?;
        let (model, lora) = (model.get("model")?, lora.get("lora")?);
        out.set(ModelState::new(model.model.merge(&lora, scale)?));
        Ok(mc_status::MC_OK)
    })
}
