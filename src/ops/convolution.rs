//! A short causal convolution of each channel.

use candle_core::{DType, Result, Tensor, bail};

use super::attention::no_memory;
use super::cpu::convolution as cpu;
use super::tensors::convolution as tensors;
use super::{Backend, Context, On, Sequences, Vector};
use crate::kernels::ConvMemory;

/// `y[t] = bias + Σ_i weight[i] x[t - taps + 1 + i]`, each channel for itself; before the first token there is nothing.
///
/// # Shape
/// `weight`: `(taps · channels)`, a tap's values for all channels one after another, the last tap for the token itself; `bias`:
/// `(channels)`.
#[derive(Clone)]
pub struct Convolution {
    pub taps: usize,
    pub channels: usize,
    pub weight: Vector,
    pub bias: Option<Vector>,
}

impl Convolution {
    /// Weights as checkpoints store them, `(channels, taps)`, in the order of [`weight`](Self::weight).
    pub fn by_taps(stored: &[f32], taps: usize) -> Vec<f32> {
        (0..taps).flat_map(|tap| stored.iter().skip(tap).step_by(taps).copied()).collect()
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        match x.dims2()? {
            (_, channels) if channels == self.channels => Ok(()),
            (_, channels) => bail!("convolution: expected rows of {} values, found {channels}", self.channels),
        }
    }
}

/// The last inputs of a sequence, which later tokens read, and those that can be taken back.
pub type ConvState = On<ConvMemory, tensors::Memory>;

impl ConvState {
    /// Without a token.
    pub fn new(channels: usize, taps: usize, backend: &Backend) -> Self {
        match backend {
            Backend::Cpu => Self::Cpu(ConvMemory::new(channels, taps)),
            Backend::Tensors(device) => Self::Tensors(tensors::Memory::new(channels, taps, device)),
        }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self> {
        Ok(match self {
            Self::Cpu(memory) => Self::Cpu(memory.fork().map_err(no_memory)?),
            Self::Tensors(memory) => Self::Tensors(memory.fork()?),
        })
    }

    /// Channels and taps.
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Cpu(memory) => memory.shape(),
            Self::Tensors(memory) => memory.shape(),
        }
    }

    /// The bytes of one.
    pub fn bytes(channels: usize, taps: usize) -> u64 {
        ConvMemory::bytes(channels, taps)
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

    /// The bytes that it takes now, with room for more.
    pub fn held_bytes(&self) -> u64 {
        match self {
            Self::Cpu(memory) => memory.held_bytes(),
            Self::Tensors(memory) => memory.held_bytes(),
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
        let (channels, taps) = self.shape();
        ConvMemory::most_rows(taps) * channels
    }

    /// The inputs from position `start - taps + 1` on, `(15 + taps, channels)`: zeros where there is none.
    pub fn values(&self) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(memory) => Ok(memory.values()),
            Self::Tensors(memory) => memory.values(),
        }
    }

    /// Fills an empty one with what [`values`](Self::values) gave of `len` tokens; `dtype` is that of activations.
    pub fn fill(&mut self, values: &[f32], start: usize, len: usize, dtype: DType) -> Result<()> {
        match self {
            Self::Cpu(memory) => memory.fill(values, start, len).map_err(super::attention::no_memory),
            Self::Tensors(memory) => memory.fill(values, start, len, dtype),
        }
    }
}

/// The convolution of tokens behind those of the state, which takes them up.
///
/// # Shape
/// `x`: `(T, channels)`; returns the same, in memory of its own.
pub fn convolution(x: &Tensor, by: &Convolution, state: &mut ConvState) -> Result<Tensor> {
    by.check(x)?;
    match state {
        ConvState::Cpu(memory) => cpu::behind(x, by, memory),
        ConvState::Tensors(memory) => tensors::behind(x, by, memory),
    }
}

/// The convolution of each of several sequences. Its weights are frozen: they get no gradient.
///
/// # Shape
/// `x`: `(T, channels)`, with the rows of all sequences one after another; returns the same, in memory of its own.
pub fn convolution_within(cx: Context<'_>, x: &Tensor, by: &Convolution, sequences: &Sequences) -> Result<Tensor> {
    by.check(x)?;
    let y = match sequences {
        Sequences::Cpu(sequences) => cpu::within(x, by, sequences)?,
        Sequences::Tensors(sequences) => tensors::within(x, by, sequences)?,
    };
    if cx.tracks(x) {
        let (by, sequences) = (by.clone(), sequences.clone());
        cx.record([x], &y, move |dy, _| {
            Ok([match &sequences {
                Sequences::Cpu(sequences) => cpu::within_backward(&dy, &by, sequences)?,
                Sequences::Tensors(sequences) => tensors::within_backward(&dy, &by, sequences)?,
            }])
        });
    }
    Ok(y)
}
