//! What families with Mamba 2 say of it: sizes, names, and how long a step may be.

use super::base::MAX_WIDTH;
use crate::error::Result;
use crate::load::Json;
use crate::nn::{Bias, GatedNormConfig, GatedNormPlace, Mamba2Config, Name, Slot};
use crate::ops::{Decay, ScanRule, ScanShape};

/// The most taps that a convolution may ask for.
const MAX_TAPS: usize = 64;

/// The names of the stored tensors.
pub struct Mamba2Names {
    pub inputs: Name,
    pub o: Name,
    pub conv: Name,
    pub a_log: Name,
    pub dt_bias: Name,
    pub d: Name,
    pub norm: Name,
}

/// Those of layers that have attention or an MLP beside it.
pub const MAMBA: Mamba2Names = Mamba2Names {
    inputs: "mamba.in_proj",
    o: "mamba.out_proj",
    conv: "mamba.conv1d",
    a_log: "mamba.A_log",
    dt_bias: "mamba.dt_bias",
    d: "mamba.D",
    norm: "mamba.norm",
};

/// Those of layers that are nothing else.
pub const MIXER: Mamba2Names = Mamba2Names {
    inputs: "mixer.in_proj",
    o: "mixer.out_proj",
    conv: "mixer.conv1d",
    a_log: "mixer.A_log",
    dt_bias: "mixer.dt_bias",
    d: "mixer.D",
    norm: "mixer.norm",
};

/// The keys that a family has its sizes under.
pub struct Mamba2Keys {
    pub heads: &'static str,
    pub groups: &'static str,
    pub state: &'static str,
    pub taps: &'static str,
    pub conv_bias: &'static str,
    pub bias: &'static str,
}

/// Those of Granite and Falcon.
pub const PREFIXED: Mamba2Keys = Mamba2Keys {
    heads: "mamba_n_heads",
    groups: "mamba_n_groups",
    state: "mamba_d_state",
    taps: "mamba_d_conv",
    conv_bias: "mamba_conv_bias",
    bias: "mamba_proj_bias",
};

/// What a configuration with those keys leaves out.
pub const PREFIXED_SIZES: [(&str, usize); 5] =
    [("mamba_n_heads", 128), ("mamba_n_groups", 1), ("mamba_d_state", 256), ("mamba_d_conv", 4), ("mamba_expand", 2)];

/// A Mamba 2 with heads of `head_dim` values, with a norm behind its gate.
pub fn parse(
    json: &Json,
    (keys, names): (&Mamba2Keys, &Mamba2Names),
    (hidden_size, head_dim): (usize, usize),
) -> Result<Mamba2Config> {
    let (heads, groups) = (json.size(keys.heads, MAX_WIDTH)?, json.size(keys.groups, MAX_WIDTH)?);
    if !heads.is_multiple_of(groups) {
        return Err(json.invalid(keys.heads, &format!("expected a multiple of {} {groups}, found {heads}", keys.groups)));
    }
    let key_dim = json.size(keys.state, MAX_WIDTH)?;
    let shape = ScanShape { heads, groups, key_dim, value_dim: head_dim, rule: ScanRule::Additive };
    // No overflow: each is at most 2^20.
    let (keys_width, values) = (groups * key_dim, heads * head_dim);
    let bias = Bias::from(json.flag(keys.bias, false)?);
    Ok(Mamba2Config {
        shape,
        taps: json.size(keys.taps, MAX_TAPS)?,
        inputs: Slot::whole(names.inputs, 2 * values + 2 * keys_width + heads),
        o: Slot::whole(names.o, hidden_size),
        input_bias: bias,
        o_bias: bias,
        conv: names.conv,
        conv_bias: Bias::from(json.flag(keys.conv_bias, true)?),
        a_log: names.a_log,
        dt_bias: names.dt_bias,
        d: names.d,
        step_limits: Decay::UNLIMITED,
        norm: Some(GatedNormConfig { name: names.norm, place: GatedNormPlace::BehindGate }),
        factors: [1.0; 5],
    })
}

/// The width of a head, of those that share `inner` values: "auto" and nothing mean what is left for each.
pub fn head_dim(json: &Json, inner: usize) -> Result<usize> {
    const KEY: &str = "mamba_d_head";
    let heads = json.size("mamba_n_heads", MAX_WIDTH)?;
    let is_auto = json.get(KEY).is_none_or(|field| field.value() == "auto");
    let dim = if is_auto { inner / heads } else { json.size(KEY, MAX_WIDTH)? };
    match dim.checked_mul(heads) {
        Some(all) if all == inner && dim > 0 => Ok(dim),
        _ => Err(json.invalid(KEY, &format!("expected a part of {inner} values for each of {heads} heads, found {dim}"))),
    }
}

/// `time_step_limit`: a step is at least the first number and at most the second, which may be infinite.
pub fn step_limits(json: &Json) -> Result<(f32, f32)> {
    const KEY: &str = "time_step_limit";
    let Some(limits) = json.get(KEY) else { return Ok(Decay::UNLIMITED) };
    let number = |at: usize| limits.value().get(at).and_then(number).map(|x| x as f32);
    match (number(0), number(1)) {
        (Some(low), Some(high)) if 0.0 <= low && low <= high && low.is_finite() => Ok((low, high)),
        _ => Err(limits.expected("two numbers, the first at least 0 and at most the second")),
    }
}

/// A number, as JSON has it or as transformers writes one that JSON lacks.
fn number(value: &serde_json::Value) -> Option<f64> {
    let infinite = || (value.get("__float__")? == "Infinity").then_some(f64::INFINITY);
    value.as_f64().or_else(infinite)
}
