//! Scans, by the gated delta rule or by Mamba 2's, and the decays that they read.

use candle_core::{Result, Tensor, bail};

use super::attention::no_memory;
use super::cpu::scan as cpu;
use super::tensors::scan as tensors;
use super::{Backend, Context, On, Sequences, Vector};
use crate::kernels::{ScanMemory, ScanShape};

/// How a projection becomes the length of a token's step, or the logarithm of what it leaves of the state before it.
///
/// # Shape
/// `bias`, `rate`: `(H)`.
#[derive(Clone)]
pub struct Decay {
    pub bias: Vector,
    /// At most 0; `None` = the lengths themselves.
    pub rate: Option<Vector>,
    /// What a length is at least, 0 or more, and at most.
    pub limits: (f32, f32),
}

impl Decay {
    /// Any length.
    pub const UNLIMITED: (f32, f32) = (0.0, f32::INFINITY);
}

/// `g = rate · clamp(softplus(x + bias))`, in F32.
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
pub type ScanState = On<ScanMemory, tensors::Memory>;

impl ScanState {
    /// Without a token.
    pub fn new(shape: ScanShape, backend: &Backend) -> Self {
        match backend {
            Backend::Cpu => Self::Cpu(ScanMemory::new(shape)),
            Backend::Tensors(device) => Self::Tensors(tensors::Memory::new(shape, device)),
        }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self> {
        Ok(match self {
            Self::Cpu(memory) => Self::Cpu(memory.fork().map_err(no_memory)?),
            Self::Tensors(memory) => Self::Tensors(memory.fork()?),
        })
    }

    fn shape(&self) -> ScanShape {
        match self {
            Self::Cpu(memory) => memory.shape(),
            Self::Tensors(memory) => memory.shape(),
        }
    }

    /// The bytes of one.
    pub fn bytes(shape: ScanShape) -> u64 {
        ScanMemory::bytes(shape)
    }

    /// The bytes that it takes now, with room for more.
    pub fn held_bytes(&self) -> u64 {
        match self {
            Self::Cpu(memory) => memory.held_bytes(),
            Self::Tensors(memory) => memory.held_bytes(),
        }
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

    /// Matrices `(H, N, P)`, then of the tokens from `start` on keys `(H, 16, N)`, updates `(H, 16, P)` and g `(H, 16)`: zeros where
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

/// The outputs of tokens behind those of the state, which takes them up: `S[t] = exp(g[t]) S[t-1] + k[t] u[t]ᵀ`,
/// `o[t] = S[t]ᵀ q[t] + skip v[t]`, in F32; by the delta rule `u[t] = beta[t] (v[t] - exp(g[t]) S[t-1]ᵀ k[t])`, by the additive one
/// `u[t] = beta[t] v[t]`.
///
/// # Shape
/// `q`, `k`: `(T, G · N)`, read by as many neighbouring heads each as there are heads for a group; `v`: `(T, H · P)`; `g`, at most 0, and
/// `beta`: `(T, H)`; `skip`: `(H)`; returns `(T, H · P)` in the type of `v`.
///
/// # Source
/// Yang et al. 2025, <https://arxiv.org/abs/2412.06464>, and Dao and Gu 2024, <https://arxiv.org/abs/2405.21060>; equals
/// `torch_chunk_gated_delta_rule` and the scan of `Mamba2Mixer` of transformers 5.24.
pub fn scan(inputs: [&Tensor; 5], skip: Option<&Vector>, state: &mut ScanState) -> Result<Tensor> {
    check(inputs, state.shape())?;
    match state {
        ScanState::Cpu(memory) => cpu::behind(inputs, skip, memory),
        ScanState::Tensors(memory) => tensors::behind(inputs, skip, memory),
    }
}

/// The same within each of several sequences.
///
/// # Shape
/// As [`scan`], with the rows of all sequences one after another.
pub fn scan_within(
    cx: Context<'_>,
    inputs: [&Tensor; 5],
    shape: ScanShape,
    skip: Option<&Vector>,
    sequences: &Sequences,
) -> Result<Tensor> {
    check(inputs, shape)?;
    let y = match sequences {
        Sequences::Cpu(sequences) => cpu::within(inputs, shape, skip, sequences)?,
        Sequences::Tensors(sequences) => tensors::within(inputs, shape, skip, sequences)?,
    };
    if inputs.iter().any(|x| cx.tracks(x)) {
        let (kept, skip, sequences) = (inputs.map(Tensor::clone), skip.cloned(), sequences.clone());
        cx.record(inputs, &y, move |dy, _| match &sequences {
            Sequences::Cpu(sequences) => cpu::within_backward(kept.each_ref(), &dy, shape, skip.as_ref(), sequences),
            Sequences::Tensors(sequences) => tensors::within_backward(kept.each_ref(), &dy, shape, skip.as_ref(), sequences),
        });
    }
    Ok(y)
}

fn check(inputs: [&Tensor; 5], shape: ScanShape) -> Result<()> {
    let ScanShape { heads, groups, key_dim, value_dim, .. } = shape;
    let rows = inputs[0].dims2()?.0;
    let (keys, values) = (groups * key_dim, heads * value_dim);
    let expected = [keys, keys, values, heads, heads].map(|width| [rows, width]);
    let found = inputs.map(Tensor::dims);
    if found != expected.each_ref().map(|shape| &shape[..]) || groups == 0 || !heads.is_multiple_of(groups) {
        bail!("scan: expected q, k, v, g and beta of {expected:?}, found {found:?}")
    }
    Ok(())
}
