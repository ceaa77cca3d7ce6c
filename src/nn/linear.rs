//! The one leaf: a matrix and its bias, immutable and shared; and the stored modules that it was made of.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::adapter::{Change, RowAdapters};
use super::mix::Part;
use crate::ops::{self, AdaptedLinear, Context, LinearPart, Matrix, Vector};

/// A matrix of a network, by which adapters are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinearId(pub(super) usize);

impl LinearId {
    /// The embedding: a table, which has an id as the linears have.
    pub const EMBEDDING: Self = Self(0);
}

/// `y = x Wᵀ + b`; several stored projections of the same input are one matrix.
#[derive(Clone)]
pub struct Linear {
    pub id: LinearId,
    pub weight: Matrix,
    pub bias: Option<Vector>,
}

impl Linear {
    /// # Shape
    /// `(T, C)` to `(T, N)`.
    pub fn forward(&self, cx: Context<'_>, x: &Tensor, adapters: &RowAdapters<'_>) -> Result<Tensor> {
        adapters.forward(self, x, |x, change| ops::linear(cx, x, self.changed(change)))
    }

    /// What it is to a GPU's kernels.
    pub(super) fn part(&self) -> LinearPart<'_> {
        LinearPart { id: self.id.0, weight: &self.weight, bias: self.bias.as_ref() }
    }

    /// What a product with a change is made of.
    pub(super) fn changed<'a>(&'a self, change: Option<&'a Change>) -> AdaptedLinear<'a> {
        let (weight, bias) = (&self.weight, self.bias.as_ref());
        let Some(change) = change else { return AdaptedLinear { weight, bias, deltas: None } };
        let (weight, bias) = (change.weight.as_ref().unwrap_or(weight), change.bias.as_ref().or(bias));
        AdaptedLinear { weight, bias, deltas: change.deltas.as_ref() }
    }
}

/// Where in the network a module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Embedding,
    /// Beside the layers: it makes what they take in besides the stream, or vectors of another width of what they give.
    Beside,
    /// In this layer.
    Layer(usize),
    /// The output matrix.
    Head,
}

impl Role {
    /// Whether it is neither the embedding nor the output matrix: what PEFT means by all linear modules.
    pub fn is_inner(self) -> bool {
        match self {
            Self::Beside | Self::Layer(_) => true,
            Self::Embedding | Self::Head => false,
        }
    }
}

/// A module of the checkpoint that is a matrix.
#[derive(Debug, Clone)]
pub struct Module {
    /// Without the checkpoint's prefix: `layers.0.self_attn.q_proj`.
    pub name: String,
    pub inputs: usize,
    pub outputs: usize,
    pub bias: bool,
    pub role: Role,
    /// Whether it is an expert's, or chooses among them: some tokens do not reach it, and PEFT's `all-linear` does not mean it.
    pub of_experts: bool,
    /// What it is to a mix; of a stored tensor of several, what the first is.
    pub part: Part,
    /// The matrix that it is, or is a part of.
    pub linear: LinearId,
    /// Its rows, and the first output of the matrix that they are.
    pub parts: Vec<(Range<usize>, usize)>,
}

impl Module {
    /// Adds rows that are the matrix's outputs from `start` on. Neighbours in both orders are one part: a stored q|k|v is the network's.
    pub(super) fn add(&mut self, rows: Range<usize>, start: usize) {
        match self.parts.last_mut() {
            Some((last, first)) if last.end == rows.start && *first + last.len() == start => last.end = rows.end,
            _ => self.parts.push((rows, start)),
        }
    }
}
