//! Rotary settings in both key styles: `rope_theta` with `rope_scaling`, and `rope_parameters`.

use std::sync::Arc;

use super::base::{Defaults, MAX_CONTEXT};
use crate::error::{Error, Result};
use crate::load::Json;
use crate::nn::{Rope, Scaling};

/// The settings of a configuration's rope.
pub fn parameters(json: &Json) -> Result<Option<Json>> {
    match json.object("rope_scaling")? {
        // transformers lets a filled rope_scaling replace rope_parameters altogether.
        Some(old) if old.value().as_object().is_some_and(|o| !o.is_empty()) => Ok(Some(old)),
        _ => json.object("rope_parameters"),
    }
}

/// The configuration with these settings of its rope where it says none: those of one model, for families with such a default.
pub fn with_default(json: &Json, default: impl FnOnce() -> serde_json::Value) -> Result<Json> {
    Ok(if parameters(json)?.is_some() { json.clone() } else { json.with("rope_parameters", default()) })
}

/// The one rope of a configuration.
pub fn flat(json: &Json, head_dim: usize, defaults: &Defaults) -> Result<Rope> {
    let parameters = parameters(json)?;
    if let Some(p) = &parameters
        && ["full_attention", "sliding_attention"].iter().any(|kind| p.has(kind))
    {
        // Families with one rope for each kind of layer read theirs by `nested`.
        return one(json, None, head_dim, defaults.theta, defaults);
    }
    one(json, parameters.as_ref(), head_dim, defaults.theta, defaults)
}

/// The ropes of full and of sliding layers, where `rope_parameters` holds one for each; `None` where it is flat or absent.
pub fn nested(json: &Json, head_dims: (usize, usize), thetas: (f64, f64), defaults: &Defaults) -> Result<Option<(Rope, Rope)>> {
    if json.object("rope_scaling")?.is_some() {
        return Ok(None);
    }
    let Some(parameters) = json.object("rope_parameters")? else { return Ok(None) };
    let (full, sliding) = (parameters.object("full_attention")?, parameters.object("sliding_attention")?);
    if full.is_none() && sliding.is_none() {
        return Ok(None);
    }
    // transformers reads `truncate` of yarn at the top of rope_parameters only.
    if full.iter().chain(&sliding).any(|p| p.get("truncate").is_some()) {
        return Err(parameters.unsupported("truncate", "expected none inside the settings of a kind of layer"));
    }
    Ok(Some((
        one(json, full.as_ref(), head_dims.0, thetas.0, defaults)?,
        one(json, sliding.as_ref(), head_dims.1, thetas.1, defaults)?,
    )))
}

/// A rope from its settings; absent keys are looked up at the top of the configuration.
pub fn one(json: &Json, parameters: Option<&Json>, head_dim: usize, theta: f64, defaults: &Defaults) -> Result<Rope> {
    let theta = json.positive("rope_theta", theta)?;
    let theta = parameters.map_or(Ok(theta), |p| p.positive("rope_theta", theta))?;
    let partial = match parameters.map(|p| p.number("partial_rotary_factor")).transpose()?.flatten() {
        Some(inside) => Some(inside),
        None => json.number("partial_rotary_factor")?,
    };
    // A part of each head, but another pairing and other frequencies than where a part alone is rotated.
    let is_proportional = match parameters {
        Some(p) => p.text("rope_type")?.is_some_and(|kind| kind == "proportional"),
        None => false,
    };
    if is_proportional {
        let partial = partial.unwrap_or(1.0);
        if !(partial > 0.0 && partial <= 1.0 && head_dim.is_multiple_of(2)) {
            let found = format!("expected a part of an even head, found {partial} of {head_dim}");
            return Err(json.invalid("partial_rotary_factor", &found));
        }
        let factor = parameters.map_or(Ok(1.0), |p| p.positive("factor", 1.0))?;
        let scaling = Scaling::Proportional { turned: (partial * head_dim as f64 / 2.0) as usize, factor };
        return Ok(Rope { theta, dim: head_dim, pairs: defaults.pairs, scaling, query_growth: None });
    }
    let partial = match (partial, defaults.partial) {
        (given, Some(default)) => given.unwrap_or(default),
        (None | Some(1.0), None) => 1.0,
        (Some(_), None) => {
            return Err(json.unsupported("partial_rotary_factor", "expected none: this family rotates whole heads"));
        }
    };
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(json.invalid("partial_rotary_factor", &format!("expected a number in 0..1, found {partial}")));
    }
    let dim = (head_dim as f64 * partial) as usize;
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(json.invalid("head_dim", &format!("expected an even number of rotated values, found {dim}")));
    }
    let scaling = match parameters {
        Some(p) => scaling(json, p, dim)?,
        None => Scaling::Default,
    };
    // A static stretch of Hunyuan's: the base itself is another one.
    if let (Scaling::Dynamic { .. }, Some(alpha)) = (&scaling, parameters.map(|p| p.number("alpha")).transpose()?.flatten())
        && alpha != 0.0
    {
        if alpha < 0.0 || dim <= 2 {
            return Err(json.invalid("alpha", &format!("expected a number above 0, found {alpha}")));
        }
        let theta = theta * alpha.powf(dim as f64 / (dim as f64 - 2.0));
        return Ok(Rope { theta, dim, pairs: defaults.pairs, scaling: Scaling::Default, query_growth: None });
    }
    Ok(Rope { theta, dim, pairs: defaults.pairs, scaling, query_growth: None })
}

/// What settings call their way of stretching.
pub fn kind(parameters: &Json) -> Result<Option<String>> {
    parameters.text("rope_type")?.map_or_else(|| parameters.text("type"), |kind| Ok(Some(kind)))
}

fn scaling(json: &Json, p: &Json, dim: usize) -> Result<Scaling> {
    let kind = kind(p)?.unwrap_or_else(|| "default".to_string());
    let trained = || json.size("max_position_embeddings", MAX_CONTEXT);
    // The top-level key wins, in every family.
    let original = || -> Result<usize> {
        let positions = match json.count("original_max_position_embeddings", MAX_CONTEXT)? {
            Some(n) => n,
            None => p.count("original_max_position_embeddings", MAX_CONTEXT)?.map_or_else(trained, Ok)?,
        };
        if positions < 2 {
            Err(p.invalid("original_max_position_embeddings", &format!("expected at least 2, found {positions}")))
        } else {
            Ok(positions)
        }
    };
    let needed = |key: &str| {
        let value = p.positive(key, f64::NAN)?;
        if value.is_nan() { Err(p.invalid(key, "expected a number above 0, found nothing")) } else { Ok(value) }
    };
    Ok(match kind.as_str() {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: needed("factor")? },
        "dynamic" => {
            if dim <= 2 {
                return Err(p.unsupported("rope_type", "expected more than one rotated pair for dynamic scaling"));
            }
            let alpha = p.number("alpha")?.is_some_and(|alpha| alpha != 0.0);
            let factor = if alpha { p.positive("factor", 1.0)? } else { needed("factor")? };
            Scaling::Dynamic { factor, max_positions: trained()? }
        }
        "llama3" => {
            let (low_freq_factor, high_freq_factor) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            if high_freq_factor <= low_freq_factor {
                return Err(p.invalid("high_freq_factor", "expected a number above low_freq_factor"));
            }
            Scaling::Llama3 { factor: needed("factor")?, low_freq_factor, high_freq_factor, original: original()? }
        }
        "yarn" => yarn(p, original()?, trained()?)?,
        "longrope" | "su" => longrope(p, original()?, trained()?, dim)?,
        other => {
            return Err(Error::unsupported(format!(
                "config.json: rope_type: {other:?} is not supported (default, linear, dynamic, llama3, yarn, longrope)"
            )));
        }
    })
}

fn yarn(p: &Json, original: usize, trained: usize) -> Result<Scaling> {
    let factor = p.positive("factor", trained as f64 / original as f64)?;
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let set = |key: &str| Ok::<_, Error>(p.number(key)?.filter(|&x| x != 0.0));
    let attention_factor = match (p.number("attention_factor")?, set("mscale")?, set("mscale_all_dim")?) {
        (Some(factor), ..) => factor,
        (None, Some(mscale), Some(all)) => scale(mscale) / scale(all),
        _ => scale(1.0),
    };
    Ok(Scaling::Yarn {
        factor,
        original,
        beta_fast: set("beta_fast")?.unwrap_or(32.0),
        beta_slow: set("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: p.flag("truncate", true)?,
    })
}

fn longrope(p: &Json, original: usize, trained: usize, dim: usize) -> Result<Scaling> {
    let factors = |key: &str| -> Result<Arc<[f64]>> {
        let list = p.numbers(key)?.unwrap_or_default();
        if list.len() != dim / 2 {
            return Err(p.invalid(key, &format!("expected {} numbers, found {}", dim / 2, list.len())));
        }
        if let Some(x) = list.iter().find(|&&x| x <= 0.0) {
            return Err(p.invalid(key, &format!("expected numbers above 0, found {x}")));
        }
        Ok(list.into())
    };
    let factor = p.positive("factor", trained as f64 / original as f64)?;
    let by_length = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    let attention_factor = p.number("attention_factor")?.unwrap_or(by_length);
    Ok(Scaling::LongRope { short: factors("short_factor")?, long: factors("long_factor")?, original, attention_factor })
}

/// The tokens that a model is made for: what it says, or what its rope is stretched to where that is more.
pub fn context_length(rope: &Rope, trained: usize) -> usize {
    match rope.scaling {
        Scaling::Yarn { factor, original, .. } => trained.max((original as f64 * factor) as usize).min(MAX_CONTEXT),
        Scaling::Dynamic { factor, .. } => ((trained as f64 * factor.max(1.0)) as usize).min(MAX_CONTEXT),
        _ => trained,
    }
}
