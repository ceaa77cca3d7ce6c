//! The gated delta rule, and the decays that it reads.

use candle_core::{Result, Tensor, bail};

use super::attention::no_memory;
use super::cpu::delta_rule as cpu;
use super::tensors::delta_rule as tensors;
use super::{Backend, Context, On, Sequences, Vector};
use crate::kernels::{DeltaMemory, DeltaShape};

/// How a projection becomes the logarithm of what a token leaves of the state before it.
///
/// # Shape
/// `bias`, `rate`: `(H)`; `rate` at most 0.
#[derive(Clone)]
pub struct Decay {
    pub bias: Vector,
    pub rate: Vector,
}

/// `g = rate · softplus(x + bias)`, in F32.
///
/// # Shape
/// `x`: `(T, H)`; returns the same in F32, whatever the type of `x`.
///
/// # Source
/// Gu and Dao 2023, section 3.6, <https://arxiv.org/abs/2312.00752>.
pub fn decay(cx: Context<'_>, x: &Tensor, by: &Decay) -> Result<Tensor> {
    let y = match cx.backend {
        Backend::Cpu => cpu::decay(x, by)?,
        Backend::Tensors(_) => tensors::decay(x, by)?,
    };
    let (x_, by) = (x.clone(), by.clone());
    cx.record([x], &y, move |dy, backend| {
        Ok([match backend {
            Backend::Cpu => cpu::decay_backward(&x_, dy, &by)?,
            Backend::Tensors(_) => tensors::decay_backward(&x_, &dy, &by)?,
        }])
    });
    Ok(y)
}

/// What a scan remembers of a sequence: the matrix before the last chunk of its tokens, and of these what the matrix lacks.
pub type DeltaState = On<DeltaMemory, tensors::Memory>;

impl DeltaState {
    /// Without a token.
    pub fn new(shape: DeltaShape, backend: &Backend) -> Self {
        match backend {
            Backend::Cpu => Self::Cpu(DeltaMemory::new(shape)),
            Backend::Tensors(device) => Self::Tensors(tensors::Memory::new(shape, device)),
        }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self> {
        Ok(match self {
            Self::Cpu(memory) => Self::Cpu(memory.fork().map_err(no_memory)?),
            Self::Tensors(memory) => Self::Tensors(memory.clone()),
        })
    }

    fn shape(&self) -> DeltaShape {
        match self {
            Self::Cpu(memory) => memory.shape(),
            Self::Tensors(memory) => memory.shape(),
        }
    }

    /// The bytes of one.
    pub fn bytes(shape: DeltaShape) -> u64 {
        DeltaMemory::bytes(shape)
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        match self {
            Self::Cpu(memory) => memory.len(),
            Self::Tensors(memory) => memory.len(),
        }
    }

    /// The position that it can be cut back to.
    pub fn start(&self) -> usize {
        match self {
            Self::Cpu(memory) => memory.start(),
            Self::Tensors(memory) => memory.start(),
        }
    }

    /// Forgets all but the first `len` tokens, or all of them if that is before [`start`](Self::start).
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Cpu(memory) => memory.truncate(len),
            Self::Tensors(memory) => memory.truncate(len),
        }
    }

    /// How many values [`values`](Self::values) gives.
    pub fn value_count(&self) -> usize {
        self.shape().state_values()
    }

    /// Matrices `(H, N, P)`, then of the tokens from `start` on keys `(H, 16, N)`, corrections `(H, 16, P)` and g `(H, 16)`: zeros where
    /// there is none.
    pub fn values(&self) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(memory) => Ok(memory.values()),
            Self::Tensors(memory) => memory.values(),
        }
    }

    /// Fills an empty one with what [`values`](Self::values) gave of `len` tokens.
    pub fn fill(&mut self, values: &[f32], start: usize, len: usize) -> Result<()> {
        match self {
            Self::Cpu(memory) => memory.fill(values, start, len).map_err(super::attention::no_memory),
            Self::Tensors(memory) => memory.fill(values, start, len),
        }
    }
}

/// The outputs of tokens behind those of the state, which takes them up:
/// `S[t] = exp(g[t]) S[t-1] + k[t] u[t]ᵀ`, `u[t] = beta[t] (v[t] - exp(g[t]) S[t-1]ᵀ k[t])`, `o[t] = S[t]ᵀ q[t]`, in F32.
///
/// # Shape
/// `q`, `k`: `(T, G · N)`, read by as many neighbouring heads each as there are heads for a group; `v`: `(T, H · P)`; `g`, at most 0, and
/// `beta`: `(T, H)`; returns `(T, H · P)` in the type of `v`.
///
/// # Source
/// Yang et al. 2025, <https://arxiv.org/abs/2412.06464>; equals `torch_chunk_gated_delta_rule` of transformers 5.24.
pub fn delta_rule(inputs: [&Tensor; 5], state: &mut DeltaState) -> Result<Tensor> {
    check(inputs, state.shape())?;
    match state {
        DeltaState::Cpu(memory) => cpu::behind(inputs, memory),
        DeltaState::Tensors(memory) => tensors::behind(inputs, memory),
    }
}

/// The same within each of several sequences.
///
/// # Shape
/// As [`delta_rule`], with the rows of all sequences one after another.
pub fn delta_rule_within(cx: Context<'_>, inputs: [&Tensor; 5], shape: DeltaShape, sequences: &Sequences) -> Result<Tensor> {
    check(inputs, shape)?;
    let y = match sequences {
        Sequences::Cpu(sequences) => cpu::within(inputs, shape, sequences)?,
        Sequences::Tensors(sequences) => tensors::within(inputs, shape, sequences)?,
    };
    if inputs.iter().any(|x| cx.tracks(x)) {
        let (kept, sequences) = (inputs.map(Tensor::clone), sequences.clone());
        cx.record(inputs, &y, move |dy, _| match &sequences {
            Sequences::Cpu(sequences) => cpu::within_backward(kept.each_ref(), &dy, shape, sequences),
            Sequences::Tensors(sequences) => tensors::within_backward(kept.each_ref(), &dy, shape, sequences),
        });
    }
    Ok(y)
}

fn check(inputs: [&Tensor; 5], shape: DeltaShape) -> Result<()> {
    let DeltaShape { heads, groups, key_dim, value_dim } = shape;
    let rows = inputs[0].dims2()?.0;
    let (keys, values) = (groups * key_dim, heads * value_dim);
    let expected = [keys, keys, values, heads, heads].map(|width| [rows, width]);
    let found = inputs.map(Tensor::dims);
    if found != expected.each_ref().map(|shape| &shape[..]) || groups == 0 || !heads.is_multiple_of(groups) {
        bail!("delta rule: expected q, k, v, g and beta of {expected:?}, found {found:?}")
    }
    Ok(())
}
