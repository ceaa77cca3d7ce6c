//! LoRA adapters: a fine-tuning that is kept apart from its model, attached to a session or a call, or merged into a new model.
//!
//! Adapters are read and written in the directory format of PEFT; what is attached computes the same as PEFT 0.21 does.
//!
//! ```
//! use metal_candle::{LoadOptions, Lora, Model, Session};
//! # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
//! let model = Model::load("tests/golden/decoders/qwen2_untied_old", &LoadOptions::default(), None)?;
//! let lora = Lora::load(&model, "tests/golden/lora/qwen2_all7")?;
//! assert_eq!((lora.rank(), lora.alpha()), (8, 16.0));
//! let mut session = Session::new(&model, 0)?;
//! session.append_tokens(&[1, 2, 3], None)?;
//! let plain = session.logits()?.to_vec();
//! session.set_adapters(&[(lora, 1.0)])?;
//! assert_ne!(session.logits()?, plain);
//! session.set_adapters(&[])?;
//! assert_eq!(session.logits()?, plain);
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::model::with_decode_step;
use super::rerank::Reranker;
use super::{Device, Dtype, Model};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{FNV_START, GgufAdapter, HeadLayer, Json, Peft, fnv};
use crate::models;
use crate::nn::{Adapters, Scaled};

/// Where PEFT's configuration names the model.
const BASE: &str = "base_model_name_or_path";

/// A loaded adapter; immutable, clones are the same.
#[derive(Clone)]
pub struct Lora(Arc<Inner>);

struct Inner {
    peft: Peft,
    /// The model that it was loaded for: its weights, their type, and where they are.
    base: (u64, Dtype, Device),
    /// Of an adapter with magnitudes, for the scale that was used last: it takes reading all weights.
    scaled: Mutex<Option<(u32, Arc<Scaled>)>>,
}

impl Lora {
    /// Loads an adapter of a model from a directory of PEFT: adapter_config.json and adapter_model.safetensors; or from a `.gguf` file
    /// that llama.cpp's `convert_lora_to_gguf.py` made of such a directory, whatever format the model has.
    ///
    /// Understood are all projections, the embedding and the output matrix as targets, by names, by a pattern or as `all-linear`; the
    /// matrices of all experts of a layer as `target_parameters`; `rank_pattern`, `alpha_pattern`, `layers_to_transform`,
    /// `exclude_modules`, rsLoRA, DoRA, trained biases of matrices; the embedding and the output matrix as `modules_to_save`, and rows of
    /// them by `trainable_token_indices`, which replace those of the model whatever the scale is; `ensure_weight_tying`; the head of a
    /// classifier, replaced or as a target, which counts once it is [merged](Model::merge), as scores take no adapters. Also tensors named
    /// `layers.{i}.{target}.lora_a`, as the first version of this library wrote them.
    ///
    /// # Errors
    /// `NotFound`, `Io`; `Format` for a tensor without a place in the model, a target without its tensors, a shape that does not fit;
    /// `Unsupported` for an option that changes the result and is not implemented; each names what it is about.
    pub fn load(model: &Model, directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let metadata = std::fs::metadata(directory).map_err(|e| Error::io(directory, e))?;
        let head = model.reranker().as_ref().map_or(&[][..], Reranker::layers);
        if !metadata.is_dir() {
            if directory.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")) {
                return Self::load_gguf(model, directory, head);
            }
            let message = format!("{}: expected a directory with adapter_config.json, or a .gguf file", directory.display());
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let peft = model.device().work(|| Peft::read(directory, model.transformer(), head))?;
        let config = Json::parse("adapter_config.json", &peft.config_json)?;
        // PEFT names the model; what was trained here names none.
        if model.is_multiplied() && config.get(BASE).is_some() {
            let expected = "expected null, as in adapters trained here: the weights of Falcon-H1 in a GGUF file or from MLX are \
                            multiplied, and an adapter of the original model does not fit them; load the original";
            return Err(config.unsupported(BASE, expected));
        }
        Ok(Self::new(model, peft))
    }

    fn load_gguf(model: &Model, path: &Path, head: &[HeadLayer]) -> Result<Self> {
        let adapter = GgufAdapter::open(path)?;
        let config = Json::parse("config.json", model.config_json())?;
        let origins = models::adapter_origins(&adapter, &config)?;
        let peft = model.device().work(|| Peft::read_gguf(adapter, origins, model.transformer(), head))?;
        Ok(Self::new(model, peft))
    }

    /// Writes the adapter in PEFT's format; values are F32. Files that are there are replaced, and stay as they are if writing
    /// fails. Tensors for parts of the model that this library has no use for, such as BERT's pooler, are not kept.
    ///
    /// # Errors
    /// `Io`, naming the path; `InvalidArgument` for an empty one.
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<()> {
        if directory.as_ref().as_os_str().is_empty() {
            return Err(Error::argument("peft_dir: expected the name of a directory, found an empty text"));
        }
        self.0.peft.write(directory.as_ref())
    }

    /// `r` of its configuration; single modules may have another one.
    pub fn rank(&self) -> usize {
        self.0.peft.rank
    }

    /// `lora_alpha` of its configuration; single modules may have another one.
    pub fn alpha(&self) -> f32 {
        self.0.peft.alpha
    }

    /// Its values, those of replaced matrices and biases counted too.
    pub fn parameter_count(&self) -> u64 {
        self.0.peft.parameters
    }

    /// adapter_config.json as it was read, or as a trainer wrote it.
    pub fn config_json(&self) -> &str {
        &self.0.peft.config_json
    }

    /// What a trainer has made for a model.
    pub(super) fn new(model: &Model, peft: Peft) -> Self {
        Self(Arc::new(Inner { peft, base: base(model), scaled: Mutex::new(None) }))
    }

    pub(super) fn peft(&self) -> &Peft {
        &self.0.peft
    }

    /// # Errors
    /// `Mismatch` for an adapter of another model.
    pub(super) fn check_base(&self, model: &Model) -> Result<()> {
        let ((fingerprint, dtype, device), own) = (&self.0.base, base(model));
        if (*fingerprint, *dtype) != (own.0, own.1) || !device.backend().is_same(own.2.backend()) {
            return Err(Error::new(ErrorKind::Mismatch, "lora: expected an adapter of this model, found one of another"));
        }
        Ok(())
    }

    fn scaled(&self, model: &Model, scale: f32) -> Result<Arc<Scaled>> {
        let adapter = &self.0.peft.adapter;
        let compute = || model.device().compute(|| Ok(Arc::new(adapter.scaled(model.transformer(), scale)?)));
        if !adapter.has_magnitudes() {
            return compute();
        }
        let last = || self.0.scaled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((bits, scaled)) = &*last()
            && *bits == scale.to_bits()
        {
            return Ok(scaled.clone());
        }
        // Not under the lock: two threads may both compute it, none waits for the other.
        let scaled = compute()?;
        *last() = Some((scale.to_bits(), scaled.clone()));
        Ok(scaled)
    }
}

impl std::fmt::Debug for Lora {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lora(rank {}, {} values)", self.rank(), self.parameter_count())
    }
}

impl Model {
    /// A new model with the adapter's changes in its weights, times `scale`. This model stays as it is; the two share the weights
    /// that do not change. The changed matrices of the new one are F32 on the CPU, whatever they were: rounding to 16 bits would lose
    /// more than a small change adds. On a GPU they keep their type.
    ///
    /// # Errors
    /// `Mismatch` for an adapter of another model; `InvalidArgument` for a scale that is no number; `OutOfMemory`.
    pub fn merge(&self, lora: &Lora, scale: f32) -> Result<Self> {
        let attached = Attached::new(self, &[(lora.clone(), scale)])?;
        let Some(adapters) = attached.adapters() else { return Ok(self.clone()) };
        let transformer = self.device().compute(|| self.transformer().merged(adapters))?;
        let transformer = with_decode_step(transformer, self.device())?;
        let head = &lora.0.peft.head;
        let reranker = self.reranker().as_ref().ok().filter(|_| !head.is_empty());
        let merged = |reranker: &Reranker| self.device().compute(|| reranker.merged(head, scale, self.device().backend()));
        let reranker = reranker.map(merged).transpose()?;
        Ok(self.with_transformer(transformer, reranker, fnv(self.fingerprint(), &attached.fingerprint().to_le_bytes())))
    }
}

/// Adapters with their scales, ready for the network; clones share them.
#[derive(Clone, Default)]
pub(super) struct Attached {
    adapters: Option<Arc<Adapters>>,
    fingerprint: u64,
}

impl Attached {
    /// # Errors
    /// `Mismatch` for an adapter of another model; `InvalidArgument` for a scale that is no number, and for two adapters that
    /// replace the same matrix or bias.
    pub fn new(model: &Model, adapters: &[(Lora, f32)]) -> Result<Self> {
        for (lora, scale) in adapters {
            if !scale.is_finite() {
                return Err(Error::argument(format!("scale: expected a finite number, found {scale}")));
            }
            let largest = lora.0.peft.adapter.low_rank.iter().map(|low_rank| low_rank.scaling.abs()).fold(1.0, f32::max);
            if !(scale * largest).is_finite() {
                return Err(Error::argument(format!("scale: expected a smaller number, found {scale}")));
            }
            lora.check_base(model)?;
        }
        // Nothing is left of an adapter times zero.
        let active = || adapters.iter().filter(|(_, scale)| *scale != 0.0);
        if active().next().is_none() {
            return Ok(Self::default());
        }
        let scaled = active().map(|(lora, scale)| lora.scaled(model, *scale)).collect::<Result<Vec<_>>>()?;
        let pairs = active().zip(&scaled).map(|((lora, _), scaled)| (&lora.0.peft.adapter, &**scaled));
        let prepared = model.device().work(|| Adapters::new(model.transformer(), pairs))?;
        let fingerprint = active().fold(FNV_START, |hash, (lora, scale)| {
            fnv(fnv(hash, &lora.0.peft.fingerprint.to_le_bytes()), &scale.to_bits().to_le_bytes())
        });
        Ok(Self { adapters: Some(Arc::new(prepared)), fingerprint: fingerprint.max(1) })
    }

    /// What the network takes.
    pub fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_deref()
    }

    /// Equal for equal adapters with equal scales in the same order; 0 for none.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

fn base(model: &Model) -> (u64, Dtype, Device) {
    (model.fingerprint(), model.dtype(), model.device().clone())
}
