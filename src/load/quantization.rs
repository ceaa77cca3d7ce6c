//! Checkpoints whose matrices were quantised by others than ggml: MLX, FP8, AWQ, GPTQ and compressed-tensors. A matrix is presented
//! under its usual name, in a format of `kernels/format/affine.rs` that holds the same values, else in F32; it is made when its rows
//! are read, and nothing above knows how it was stored.
//!
//! | method | tensors of a module | a weight |
//! | --- | --- | --- |
//! | MLX, affine, 2 to 8 bits | `weight` U32 `(N, K·bits/32)`, `scales`, `biases` `(N, K/g)` | `scale · q + bias` |
//! | MLX, mxfp4, mxfp8, nvfp4 | `weight` the same, of E2M1 or E4M3, `scales` U8 `(N, K/g)` of E8M0, of nvfp4 E4M3 | `scale · f` |
//! | FP8 | `weight` F8_E4M3 `(N, K)`, `weight_scale_inv` or `weight_scale` of blocks, of rows, or of all | `f8 · scale` |
//! | AWQ | `qweight` I32 `(K, N/8)`, `qzeros` `(K/g, N/8)`, `scales` `(K/g, N)` | `scale · (q - zero)` |
//! | GPTQ | `qweight` I32 `(K·bits/32, N)`, `qzeros` `(K/g, N·bits/32)`, `scales` `(K/g, N)`, `g_idx` | `scale · (q - zero)` |
//! | compressed-tensors, packed | `weight_packed` I32 `(N, K·bits/32)`, `weight_scale` `(N, K/g)`, `weight_shape` | `scale · (q - 2^(bits-1))` |
//! | the same, not symmetric | also `weight_zero_point` I32 `(N·bits/32, K/g)` | `scale · (q - zero)` |
//! | compressed-tensors, I8 | `weight` I8 `(N, K)`, `weight_scale` of rows, of groups, or of all | `scale · q` |
//!
//! Of compressed-tensors a checkpoint may have several, one for each of its `config_groups`.
//!
//! Scales of a KV cache in FP8, which some carry along, are left out: a cache here is rounded less, or in a way of its own.
//!
//! Sources: <https://github.com/ml-explore/mlx> (`mx.quantize`), transformers' `quantizers`, <https://github.com/casper-hansen/AutoAWQ>,
//! <https://github.com/AutoGPTQ/AutoGPTQ>, <https://github.com/vllm-project/compressed-tensors>.

mod read;

use std::collections::HashMap;

pub use read::QuantizedCheckpoint;

use serde_json::Value;

use super::Json;
use crate::error::Result;

/// How the matrices of a checkpoint were quantised.
#[derive(Debug, Clone, PartialEq)]
pub enum Quantization {
    Mlx(Mlx),
    /// Scales of blocks of so many rows and columns; `None` = of rows, or one for all.
    Fp8 {
        block: Option<[usize; 2]>,
    },
    Awq {
        group: usize,
    },
    Gptq {
        bits: usize,
        group: usize,
        /// Zeros are stored less one.
        less_one: bool,
    },
    /// compressed-tensors, `pack-quantized`.
    Packed {
        bits: usize,
        /// Whether each scale has the code of its zero beside it.
        zeros: bool,
    },
    /// compressed-tensors, `int-quantized`; blocks as of FP8.
    Int8 {
        block: Option<[usize; 2]>,
    },
    /// compressed-tensors, several of its three ways: of each matrix its tensors say which, whatever targets are named.
    Groups(Vec<Self>),
}

/// MLX's quantisation.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlx {
    pub usual: MlxCodes,
    /// Those of modules with others, by their names.
    pub modules: HashMap<String, MlxCodes>,
}

/// How MLX stores a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MlxCodes {
    Affine { bits: usize, group: usize },
    Float(MlxFloat),
}

/// Floats of few bits with scales of eight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlxFloat {
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

impl MlxFloat {
    const ALL: [(&str, Self); 3] = [("mxfp4", Self::Mxfp4), ("mxfp8", Self::Mxfp8), ("nvfp4", Self::Nvfp4)];

    pub fn bits(self) -> usize {
        if self == Self::Mxfp8 { 8 } else { 4 }
    }

    /// Columns of a scale.
    pub fn group(self) -> usize {
        if self == Self::Nvfp4 { 16 } else { 32 }
    }
}

/// The most columns that share a scale.
const MAX_GROUP: usize = 1 << 20;
/// More ways of compressed-tensors than there are in one checkpoint; each is tried on each matrix.
const MAX_WAYS: usize = 64;

impl Quantization {
    /// What config.json says; `None` for weights that are no codes.
    ///
    /// # Errors
    /// `Unsupported` for a method or a setting of one that is not known, naming it; `Format` for numbers that cannot be.
    pub fn of(config: &Json) -> Result<Option<Self>> {
        if let Some(mlx) = config.object("quantization")? {
            return mlx_of(&mlx).map(Self::Mlx).map(Some);
        }
        let Some(json) = config.object("quantization_config")? else { return Ok(None) };
        let method = json.text("quant_method")?.unwrap_or_default();
        Ok(Some(match method.as_str() {
            "fp8" => {
                if json.text("fmt")?.is_some_and(|fmt| fmt != "e4m3") {
                    return Err(json.unsupported("fmt", "expected e4m3"));
                }
                Self::Fp8 { block: block(&json, "weight_block_size")? }
            }
            "awq" => {
                if json.text("version")?.is_some_and(|version| !version.eq_ignore_ascii_case("gemm")) {
                    return Err(json.unsupported("version", "expected gemm"));
                }
                if !json.flag("zero_point", true)? {
                    return Err(json.unsupported("zero_point", "expected true"));
                }
                bits(&json, "bits", &[4])?;
                Self::Awq { group: group(&json, "group_size")? }
            }
            "gptq" => {
                let less_one = json.text("checkpoint_format")?.is_none_or(|format| format != "gptq_v2");
                Self::Gptq { bits: bits(&json, "bits", &[2, 4, 8])?, group: group(&json, "group_size")?, less_one }
            }
            // Of experts alone, which are taken apart as they are.
            "mxfp4" => return Ok(None),
            "compressed-tensors" => compressed_of(&json)?,
            _ => {
                let known = "expected fp8, awq, gptq, compressed-tensors or MLX's";
                return Err(json.unsupported("quant_method", known));
            }
        }))
    }
}

fn bits(json: &Json, key: &str, known: &[usize]) -> Result<usize> {
    let bits = json.size(key, 64)?;
    if known.contains(&bits) { Ok(bits) } else { Err(json.unsupported(key, &format!("expected one of {known:?}"))) }
}

/// Columns of a scale; all where it is -1 or absent.
fn group(json: &Json, key: &str) -> Result<usize> {
    match json.number(key)? {
        None | Some(-1.0) => Ok(0),
        Some(_) => json.size(key, MAX_GROUP),
    }
}

/// Rows and columns of a scale.
fn block(json: &Json, key: &str) -> Result<Option<[usize; 2]>> {
    // As early versions of compressed-tensors spell it: "128x128".
    let spelled = json.get(key).and_then(|value| value.value().as_str().map(str::to_string));
    if let Some((rows, cols)) = spelled.as_deref().and_then(|text| text.split_once('x')) {
        return match (rows.parse(), cols.parse()) {
            (Ok(rows), Ok(cols)) if (1..=MAX_GROUP).contains(&rows) && (1..=MAX_GROUP).contains(&cols) => Ok(Some([rows, cols])),
            _ => Err(json.invalid(key, "expected two whole numbers from 1 on")),
        };
    }
    let Some(block) = json.numbers(key)? else { return Ok(None) };
    match block[..] {
        [rows, cols] if [rows, cols].iter().all(|x| x.fract() == 0.0 && (1.0..=MAX_GROUP as f64).contains(x)) => {
            Ok(Some([rows as usize, cols as usize]))
        }
        _ => Err(json.invalid(key, "expected two whole numbers from 1 on")),
    }
}

fn mlx_of(json: &Json) -> Result<Mlx> {
    let usual = mlx_codes(json, None)?;
    let mut modules = HashMap::new();
    for (name, value) in json.value().as_object().into_iter().flatten().filter(|(_, value)| value.is_object()) {
        let Some(module) = json.object(name)? else { continue };
        let same = module.text("mode")?.is_none_or(|mode| mode == "affine");
        // What a module does not say is as of all, if that is of the same kind.
        let beside = match usual {
            MlxCodes::Affine { bits, group } if same => Some((bits, group)),
            _ => None,
        };
        if value.get("global_scale").is_some_and(|scale| *scale != Value::Bool(false)) {
            return Err(module.unsupported("global_scale", "expected none"));
        }
        modules.insert(name.clone(), mlx_codes(&module, beside)?);
    }
    Ok(Mlx { usual, modules })
}

/// How matrices are stored, by an object with `mode`, `bits` and `group_size`; `usual` are the bits and the group where it has none.
fn mlx_codes(json: &Json, usual: Option<(usize, usize)>) -> Result<MlxCodes> {
    const BITS: [usize; 6] = [2, 3, 4, 5, 6, 8];
    let has = |key: &str| json.get(key).is_some();
    let mode = json.text("mode")?.unwrap_or_else(|| "affine".to_string());
    if mode == "affine" {
        return Ok(MlxCodes::Affine {
            bits: match usual {
                Some((bits, _)) if !has("bits") => bits,
                _ => bits(json, "bits", &BITS)?,
            },
            group: match usual {
                Some((_, group)) if !has("group_size") => group,
                _ => json.size("group_size", MAX_GROUP)?,
            },
        });
    }
    let Some((_, kind)) = MlxFloat::ALL.iter().find(|(name, _)| *name == mode) else {
        return Err(json.unsupported("mode", "expected affine, mxfp4, mxfp8 or nvfp4"));
    };
    for (key, only) in [("bits", kind.bits()), ("group_size", kind.group())] {
        if has(key) {
            let found = json.size(key, MAX_GROUP)?;
            if found != only {
                return Err(json.unsupported(key, &format!("expected {only}, which {mode} has")));
            }
        }
    }
    Ok(MlxCodes::Float(*kind))
}

/// Whether columns are stored in order: what the weights were rounded by in another order says nothing of how they lie.
fn keeps_columns(order: &Value) -> bool {
    let is_one = |order: &str| ["weight", "static"].iter().any(|name| order.eq_ignore_ascii_case(name));
    *order == Value::Bool(false) || order.as_str().is_some_and(is_one)
}

fn compressed_of(json: &Json) -> Result<Quantization> {
    refuse_transforms(json)?;
    let groups = json.object("config_groups")?;
    let mut found = Vec::new();
    for name in groups.iter().flat_map(|groups| groups.value().as_object().into_iter().flatten().map(|(name, _)| name)) {
        let Some(group) = groups.as_ref().map(|groups| groups.object(name)).transpose()?.flatten() else { continue };
        let Some(weights) = group.object("weights")? else { continue };
        let way = way_of(if group.has("format") { &group } else { json }, &weights)?;
        if !found.contains(&way) {
            found.push(way);
        }
        if found.len() > MAX_WAYS {
            return Err(json.invalid("config_groups", &format!("expected at most {MAX_WAYS} ways of quantising")));
        }
    }
    match found.len() {
        0 => Err(json.unsupported("config_groups", "expected a group of weights")),
        1 => Ok(found.remove(0)),
        _ => Ok(Quantization::Groups(found)),
    }
}

/// How the weights of a group are stored; `json` has their format.
fn way_of(json: &Json, weights: &Json) -> Result<Quantization> {
    let symmetric = weights.flag("symmetric", true)?;
    if weights.get("actorder").is_some_and(|order| !keeps_columns(order.value())) {
        return Err(weights.unsupported("actorder", "expected null, false, \"weight\" or \"static\""));
    }
    let floats = weights.text("type")?.is_some_and(|kind| kind == "float");
    let codes = Codes { floats, bits: bits(weights, "num_bits", &[4, 8])?, symmetric };
    let format = json.text("format")?.unwrap_or_default();
    // What has a scale and a zero beside each other is packed.
    if !codes.symmetric && format != "pack-quantized" {
        return Err(weights.unsupported("symmetric", "expected true"));
    }
    match (format.as_str(), codes) {
        ("float-quantized" | "naive-quantized", Codes { floats: true, bits: 8, .. }) => {
            Ok(Quantization::Fp8 { block: scaled_block(weights)? })
        }
        ("int-quantized" | "naive-quantized", Codes { floats: false, bits: 8, .. }) => {
            Ok(Quantization::Int8 { block: scaled_block(weights)? })
        }
        // Packed ones have groups of columns, as many as there are scales.
        ("pack-quantized", Codes { floats: false, bits, symmetric }) => Ok(Quantization::Packed { bits, zeros: !symmetric }),
        _ => Err(json.unsupported("format", "expected pack-quantized, float-quantized or int-quantized")),
    }
}

/// What was made of weights is a part of them; activations would have to go through the same.
fn refuse_transforms(json: &Json) -> Result<()> {
    let Some(groups) = json.object("transform_config")?.map(|config| config.object("config_groups")).transpose()?.flatten()
    else {
        return Ok(());
    };
    for scheme in groups.value().as_object().into_iter().flat_map(|schemes| schemes.values()) {
        let places = scheme.get("apply").and_then(Value::as_array).into_iter().flatten();
        let is_of_weights = |place: &'_ Value| matches!(place["location"].as_str(), Some("weight_input" | "weight_output"));
        if !places.clone().all(is_of_weights) {
            return Err(json.unsupported("transform_config", "expected transforms of weights alone"));
        }
    }
    Ok(())
}

/// What compressed-tensors says of weights.
#[derive(Clone, Copy)]
struct Codes {
    floats: bool,
    bits: usize,
    symmetric: bool,
}

/// Rows and columns of a scale; `None` = a row, or all.
fn scaled_block(weights: &Json) -> Result<Option<[usize; 2]>> {
    match weights.text("strategy")?.map(|strategy| strategy.to_lowercase()).as_deref() {
        None | Some("tensor" | "channel") => Ok(None),
        Some("group") => Ok(Some([1, weights.size("group_size", MAX_GROUP)?])),
        Some("block") => match block(weights, "block_structure")? {
            None => Err(weights.invalid("block_structure", "expected two whole numbers from 1 on, found nothing")),
            found => Ok(found),
        },
        Some(_) => Err(weights.unsupported("strategy", "expected tensor, channel, group or block")),
    }
}
