//! Mixture of experts: which of them a token goes to, and the sum of what these give.

use candle_core::{Device, Result, Tensor, bail};

use super::cpu::experts as cpu;
use super::tensors::experts as tensors;
use super::{Backend, Context, Vector, to_f32};
use crate::kernels::{self, RouteBy, Scoring};

/// How tokens choose experts by the router's logits.
#[derive(Clone)]
pub struct Routing {
    /// Experts of a token.
    pub top_k: usize,
    pub scoring: Scoring,
    /// Weights are divided by their sum and this number; `None` = they are the scores.
    pub normalise: Option<f32>,
    /// Factor of the weights.
    pub scale: f32,
    /// `(E)`, added to the scores for the choice alone.
    pub bias: Option<Vector>,
    /// `(E)`, of each expert's weights.
    pub factors: Option<Vector>,
    /// Of how many equal groups of neighbours so many are chosen from: those whose two best have the largest sum. (1, 1) = from all.
    pub groups: (usize, usize),
}

impl Routing {
    fn by<'a>(&self, bias: Option<&'a [f32]>, factors: Option<&'a [f32]>) -> RouteBy<'a> {
        let Self { top_k, scoring, normalise, scale, groups, .. } = *self;
        RouteBy { top_k, scoring, normalise, scale, bias, factors, groups }
    }
}

/// What experts of some rows there are.
pub struct Routed {
    /// Of each expert the rows that go to it, ascending.
    pub rows: Vec<Vec<usize>>,
    /// `(T, E)` in F32: the weight of an expert, 0 for those that were not chosen.
    pub weights: Tensor,
}

/// The experts of each token: the `top_k` with the best scores, of equal ones the first. Read back from where it computes.
///
/// # Shape
/// `logits`: `(T, E)`.
///
/// # Source
/// Shazeer et al. 2017, <https://arxiv.org/abs/1701.06538>; scores by sigmoid and a bias for the choice: DeepSeek-AI 2024,
/// <https://arxiv.org/abs/2412.19437>.
pub fn route(cx: Context<'_>, logits: &Tensor, routing: &Routing) -> Result<Routed> {
    let (count, experts) = logits.dims2()?;
    let (groups, chosen) = routing.groups;
    if groups == 0 || !experts.is_multiple_of(groups) || chosen > groups {
        bail!("route: expected a part of equal groups of {experts} experts, found {chosen} of {groups}")
    }
    let most = experts / groups * chosen;
    if routing.top_k == 0 || routing.top_k > most {
        bail!("route: expected 1 to {most} experts of a token, found {}", routing.top_k)
    }
    let bias = routing.bias.as_ref().map(Vector::values).transpose()?;
    let factors = routing.factors.as_ref().map(Vector::values).transpose()?;
    let by = routing.by(bias.as_deref(), factors.as_deref());
    let given = to_f32(logits)?;
    let (mut rows, mut weights) = (vec![Vec::new(); experts], kernels::zeros(given.len())?);
    for (row, (logits, weights)) in given.chunks_exact(experts).zip(weights.chunks_exact_mut(experts)).enumerate() {
        kernels::route(logits, &by, weights, |expert| rows[expert].push(row));
    }
    let tensor = move |values| Tensor::from_vec(values, (count, experts), &Device::Cpu);
    let weights = tensor(weights)?.to_device(logits.device())?;
    let (routing, chosen, like) = (routing.clone(), rows.clone(), logits.clone());
    cx.record([logits], &weights, move |dy, _| {
        let mut is_chosen = vec![false; given.len()];
        for (expert, rows) in chosen.iter().enumerate() {
            rows.iter().for_each(|row| is_chosen[row * experts + expert] = true);
        }
        let mut of_logits = to_f32(&dy)?;
        let each = of_logits.chunks_exact_mut(experts).zip(given.chunks_exact(experts)).zip(is_chosen.chunks_exact(experts));
        each.for_each(|((gradient, logits), chosen)| {
            kernels::route_backward(logits, &routing.by(None, factors.as_deref()), chosen, gradient)
        });
        Ok([tensor(of_logits)?.to_dtype(like.dtype())?.to_device(like.device())?])
    });
    Ok(Routed { rows, weights })
}

/// What one expert gives of the rows that went to it.
pub struct ExpertRows {
    pub expert: usize,
    /// Ascending.
    pub rows: Vec<usize>,
    /// `(rows, C)`
    pub output: Tensor,
}

/// The outputs of experts, each row times its weight, added up in their order.
///
/// # Shape
/// `weights`: `(T, E)`; returns `(T, C)` in the type of the outputs.
pub fn combine(cx: Context<'_>, parts: Vec<ExpertRows>, weights: &Tensor) -> Result<Tensor> {
    let (count, experts) = weights.dims2()?;
    let Some(first) = parts.first() else { bail!("combine: expected what experts give, found none") };
    let (_, width) = first.output.dims2()?;
    for ExpertRows { expert, rows, output } in &parts {
        let fits = output.dims() == [rows.len(), width] && *expert < experts && rows.last().is_none_or(|last| *last < count);
        if !fits || rows.windows(2).any(|pair| pair[0] >= pair[1]) {
            bail!("combine: expected some of {count} rows of {width} values, found {:?} of expert {expert}", output.dims())
        }
    }
    let y = match cx.backend {
        Backend::Cpu => cpu::combine(&parts, weights, width)?,
        Backend::Tensors(_) => tensors::combine(&parts, weights, width)?,
    };
    let Some(tape) = cx.tape.filter(|_| cx.tracks(weights) || parts.iter().any(|part| cx.tracks(&part.output))) else {
        return Ok(y);
    };
    let (id, weights, backend) = (y.id(), weights.clone(), cx.backend.clone());
    let (weights_tracked, tracked): (bool, Vec<bool>) =
        (cx.tracks(&weights), parts.iter().map(|part| cx.tracks(&part.output)).collect());
    tape.push([&y], move |gradients| {
        let Some(dy) = gradients.take_from(id) else { return Ok(()) };
        let (of_parts, of_weights) = match &backend {
            Backend::Cpu => cpu::combine_backward(&parts, &weights, &dy)?,
            Backend::Tensors(_) => tensors::combine_backward(&parts, &weights, &dy)?,
        };
        for ((part, gradient), _) in parts.iter().zip(of_parts).zip(tracked).filter(|(_, tracked)| *tracked) {
            gradients.add(&part.output, gradient, &backend)?;
        }
        if weights_tracked { gradients.add(&weights, of_weights, &backend) } else { Ok(()) }
    });
    Ok(y)
}
