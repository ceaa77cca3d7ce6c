//! The one leaf: a matrix and its bias, immutable and shared; and the stored modules that it was made of.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::adapter::{Change, RowAdapters};
use super::config::Name;
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
    /// Of a matrix in a parameter of many: which, and whose it is.
    pub stack: Option<(Arc<ExpertStack>, usize)>,
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

/// A parameter of transformers' modules that holds a matrix of each expert, however the checkpoint stores these. PEFT changes it as one
/// (`target_parameters`).
#[derive(Debug)]
pub struct ExpertStack {
    /// The modules that it is known by, without the checkpoint's prefix, and its name there; that of transformers 5 first:
    /// `layers.0.mlp.experts` and `gate_up_proj`.
    pub names: Vec<(String, Name)>,
    /// How many parameters of its module come before it.
    pub position: usize,
    pub inputs: usize,
    /// Of one expert.
    pub outputs: usize,
    /// Whether outputs are by turns those of gate and up, which the network has one behind the other.
    pub alternates: bool,
    pub role: Role,
    /// Of each expert the matrix that it is.
    pub linears: Vec<LinearId>,
}

impl ExpertStack {
    /// Its full name by one of its names.
    pub fn path(&self, name: usize) -> String {
        let (module, parameter) = &self.names[name];
        format!("{module}.{parameter}")
    }

    /// An expert's matrix as a module, its rows in the network's order.
    pub fn module(self: &Arc<Self>, expert: usize) -> Module {
        Module {
            name: format!("{}.{expert}", self.path(0)),
            inputs: self.inputs,
            outputs: self.outputs,
            bias: false,
            role: self.role,
            of_experts: true,
            part: Part::Other,
            linear: self.linears[expert],
            parts: vec![(0..self.outputs, 0)],
            stack: Some((self.clone(), expert)),
        }
    }

    /// Which of the parameter's rows the network's `output` is.
    pub fn row(&self, output: usize) -> usize {
        let half = self.outputs / 2;
        match (self.alternates, output < half) {
            (false, _) => output,
            (true, true) => 2 * output,
            (true, false) => 2 * (output - half) + 1,
        }
    }
}

/// A tensor as it was before MLX's converter: what a saved checkpoint has in place of those that it is made of.
#[derive(Debug, Clone)]
pub struct Restored {
    /// In full.
    pub name: String,
    pub shape: Vec<usize>,
    /// Rows of stored tensors, one after another; of a vector each value is a row.
    pub pieces: Vec<(String, Range<usize>)>,
    /// How many of these make a row of its own.
    pub each: usize,
    /// Added to each value.
    pub plus: f32,
}

impl Restored {
    /// Values of some rows; `stored` tells those of rows of a stored tensor.
    ///
    /// # Errors
    /// Those of `stored`.
    pub fn rows<E>(
        &self,
        rows: Range<usize>,
        stored: impl Fn(&str, Range<usize>) -> std::result::Result<Vec<f32>, E>,
    ) -> std::result::Result<Vec<f32>, E> {
        let (wanted, mut values, mut first) = (rows.start * self.each..rows.end * self.each, Vec::new(), 0);
        for (name, piece) in &self.pieces {
            let (start, end) = (wanted.start.max(first), wanted.end.min(first + piece.len()));
            if start < end {
                values.extend(stored(name, piece.start + start - first..piece.start + end - first)?);
            }
            first += piece.len();
        }
        values.iter_mut().for_each(|x| *x += self.plus);
        Ok(values)
    }
}

/// A stored tensor of matrices of several experts, which is no module.
#[derive(Debug, Clone)]
pub struct StoredStack {
    /// In full.
    pub name: String,
    pub inputs: usize,
    pub role: Role,
    pub part: Part,
    /// Its rows by the matrices that they are: the first output is the last number.
    pub pieces: Vec<(Range<usize>, LinearId, usize)>,
}
