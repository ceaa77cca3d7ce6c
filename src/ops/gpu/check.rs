//! What of a network the kernels lack.

use super::{
    AttentionPart, DecoderParts, DeltaNetPart, DeviceMatrix, LinearPart, OperationPart, ResidualPart, ShortConvPart, Unsupported,
};
use crate::kernels::gpu::{KeysPart, MOST_TAPS, WIDEST_SCAN};
use crate::ops::{Convolution, Norm, NormKind, ScanRule, ScanShape};

type Result<T> = std::result::Result<T, Unsupported>;

/// The first thing that a step of it would lack.
pub(super) fn check(parts: &DecoderParts<'_>) -> Result<()> {
    whole("a stream", parts.embed.inputs())?;
    if let Some(part) = &parts.per_layer {
        whole("a layer's part of an embedding", part.norm.width)?;
        if !is_plain(part.norm) {
            return Unsupported::new("a norm of a per-layer embedding of this kind");
        }
    }
    parts.steps.iter().try_for_each(check_step)
}

fn check_step(step: &ResidualPart<'_>) -> Result<()> {
    if step.branches.is_empty() || (step.branches.len() > 1 && step.norm_out.is_some()) {
        return Unsupported::new("a norm of the sum of several branches");
    }
    let last_norm = step.branches.last().and_then(|branch| branch.norm_out).or(step.norm_out).or(step.norm_sum);
    if step.factor != 1.0 && last_norm.is_none() {
        return Unsupported::new("a factor of a layer's output that no norm is in front of");
    }
    for branch in &step.branches {
        match (branch.norm_out, step.norm_out) {
            (Some(_), Some(_)) => return Unsupported::new("two norms of a branch"),
            (Some(_), None) | (None, Some(_)) if step.scale != 1.0 => {
                return Unsupported::new("a factor behind a norm");
            }
            _ => {}
        }
        match &branch.operation {
            OperationPart::Mlp(mlp) => check_mlp([mlp.up, mlp.down])?,
            OperationPart::LayerInput(input) => check_mlp([input.gate, input.down])?,
            OperationPart::Attention(attention) => check_attention(attention)?,
            OperationPart::ShortConv(part) => check_short_conv(part)?,
            OperationPart::DeltaNet(part) => check_delta_net(part)?,
        }
    }
    Ok(())
}

fn whole(what: &str, values: usize) -> Result<()> {
    if values.is_multiple_of(32) { Ok(()) } else { Err(Unsupported(format!("{what} of {values} values, no multiple of 32"))) }
}

fn is_plain(norm: &Norm) -> bool {
    norm.kind == NormKind::Rms && norm.bias.is_none()
}

fn check_mlp([up, down]: [LinearPart<'_>; 2]) -> Result<()> {
    whole("an MLP", down.weight.inputs())?;
    if !up.weight.tensors().is_ok_and(DeviceMatrix::is_whole) {
        return Unsupported::new("an MLP whose gate and up projections are kept in two formats");
    }
    Ok(())
}

/// Rows of several tokens begin at addresses of whole quads.
fn check_projection(linear: LinearPart<'_>) -> Result<()> {
    match linear.weight.outputs() {
        outputs if outputs.is_multiple_of(4) => Ok(()),
        outputs => Err(Unsupported(format!("a projection of {outputs} values, no multiple of 4"))),
    }
}

fn check_taps(conv: &Convolution) -> Result<()> {
    if conv.taps <= MOST_TAPS { Ok(()) } else { Err(Unsupported(format!("a convolution of {} taps", conv.taps))) }
}

fn check_short_conv(part: &ShortConvPart<'_>) -> Result<()> {
    check_taps(part.conv)?;
    whole("a short convolution", part.conv.channels)
}

fn check_delta_net(part: &DeltaNetPart<'_>) -> Result<()> {
    let ScanShape { heads, key_dim, value_dim, rule, .. } = part.shape;
    check_taps(part.conv)?;
    check_projection(part.inputs)?;
    let fits = key_dim <= WIDEST_SCAN && value_dim <= WIDEST_SCAN && value_dim.is_multiple_of(4);
    if !fits || !(heads * value_dim).is_multiple_of(32) {
        return Err(Unsupported(format!("{heads} heads of a delta net with keys of {key_dim} values and values of {value_dim}")));
    }
    let is_known = rule == ScanRule::Delta && part.conv.bias.is_none() && part.decay.rate.is_some() && is_plain(part.norm);
    if is_known { Ok(()) } else { Unsupported::new("a delta net of this kind") }
}

fn check_attention(part: &AttentionPart<'_>) -> Result<()> {
    let AttentionPart { heads, head_dim, .. } = *part;
    check_projection(part.qkv)?;
    if !head_dim.is_multiple_of(8) || head_dim > 512 || !(heads * head_dim).is_multiple_of(32) {
        return Err(Unsupported(format!("{heads} heads of {head_dim} values")));
    }
    if !part.mask.causal {
        return Unsupported::new("attention to later tokens");
    }
    if part.v_norm.is_some_and(|v| part.q_norm.is_some_and(|q| q.width == head_dim && q.eps != v.eps)) {
        return Unsupported::new("norms of values with another epsilon than that of queries");
    }
    let of_keys = match (part.q_norm, part.k_norm) {
        (None, None) => return Ok(()),
        (Some(q), Some(k)) => Some((q, k)),
        (Some(q), None) if part.keys == KeysPart::Shared => Some((q, q)),
        _ => None,
    };
    let Some((q, k)) = of_keys else { return Unsupported::new("a norm of queries or keys alone") };
    let is_per_head = q.width == head_dim && k.width == head_dim;
    if is_per_head && is_plain(q) && is_plain(k) && q.eps == k.eps {
        return Ok(());
    }
    if is_per_head || part.norm_after {
        return Unsupported::new("norms of queries and keys of this kind");
    }
    Ok(())
}
