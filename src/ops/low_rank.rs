//! A low-rank change of a weight matrix: LoRA and DoRA, applied, merged and in training.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, bail};

use super::cpu::low_rank as cpu;
use super::linear::DotProducts;
use super::tensors::low_rank as tensors;
use super::{Backend, Matrix, MatrixBuilder, On, Vector};
use crate::error::OutOfMemory;
use crate::kernels::{Format, Use, zeros};

/// `y += gain · scale · (B A dropout(x) + bias) + (gain - 1) · W x`; without a gain the last term is none.
///
/// # Shape
/// `a`: `(R, C)`; the parts together are `B`, `(outputs, R)`.
///
/// # Source
/// Hu et al. 2021, <https://arxiv.org/abs/2106.09685>; the gain is that of Liu et al. 2024,
/// <https://arxiv.org/abs/2402.09353>: a trained length of each row over the length that `W + scale · B A` gives it.
#[derive(Clone)]
pub struct LowRankDelta {
    pub a: Matrix,
    pub parts: Vec<DeltaPart>,
    pub scale: f32,
    pub dropout: Option<Dropout>,
    /// By which its gradient is known, if it is in training.
    pub number: Option<usize>,
}

/// `y[ids] += D x`: rows that are added to some of a matrix, as the low-rank change would whose `B` has a 1 in each of these rows, without
/// its squares of values.
///
/// # Shape
/// `rows`: `D`, `(n, C)`, as many as `ids`, which are outputs of the product.
#[derive(Clone)]
pub struct AddedRows {
    pub ids: Arc<[u32]>,
    pub rows: Matrix,
}

/// The rows of `B` that are neighbouring outputs of the product.
///
/// # Shape
/// `b`: `(n, R)`; `bias`: `(n)`.
#[derive(Clone)]
pub struct DeltaPart {
    pub rows: Range<usize>,
    /// The first output that they are.
    pub start: usize,
    pub b: Matrix,
    pub bias: Option<Vector>,
    pub gain: Option<Gain>,
}

/// A factor for each row of a changed matrix.
#[derive(Clone)]
pub struct Gain {
    /// `(n)`
    pub(super) factors: Vector,
    /// The rows of `B` times their factors: what a product reads.
    pub(super) b: Matrix,
}

/// The share of inputs that are dropped, and what decides which ones.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// In `0..1`.
    pub share: f32,
    pub seed: u64,
}

impl Dropout {
    /// That of one delta of many: each drops other values, also of those that read the same.
    pub fn of(self, number: usize) -> Self {
        // The finaliser of SplitMix64: numbers that follow one another give seeds that have nothing in common.
        let mut z = self.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self { seed: z ^ (z >> 31), ..self }
    }
}

/// Rows of a weight matrix that are widened at once: a few megabytes.
const BLOCK_ROWS: usize = 256;

impl DeltaPart {
    /// The same with a factor for each row.
    ///
    /// # Errors
    /// If there is no memory for a copy, or a value does not fit the type of `b`; a failed upload.
    pub fn with_gain(mut self, factors: Vec<f32>, backend: &Backend) -> Result<Self> {
        let (rank, mut b) = (self.b.inputs(), self.b.rows(0..self.rows.len())?);
        b.chunks_exact_mut(rank).zip(&factors).for_each(|(row, g)| row.iter_mut().for_each(|b| *b *= g));
        let b = matrix(&b, rank, self.b.computed_type(), backend)?;
        self.gain = Some(Gain { factors: Vector::new(factors, backend)?, b });
        Ok(self)
    }

    /// `B` as a product reads it.
    pub(super) fn product_b(&self) -> &Matrix {
        self.gain.as_ref().map_or(&self.b, |gain| &gain.b)
    }

    /// The factors on the CPU.
    fn factors(&self) -> Result<Option<Vec<f32>>> {
        self.gain.as_ref().map(|gain| gain.factors.values()).transpose()
    }

    /// The outputs that it changes.
    pub(super) fn outputs(&self) -> Range<usize> {
        self.start..self.start + self.rows.len()
    }
}

impl LowRankDelta {
    /// `R`
    pub(super) fn rank(&self) -> usize {
        self.a.outputs()
    }

    /// The rows of `B`.
    pub(super) fn outputs(&self) -> usize {
        self.parts.iter().map(|part| part.rows.end).max().unwrap_or(0)
    }

    /// The same with the gains that give the rows of `weight + scale · B A` these lengths, one for each row of `B`.
    pub fn with_lengths(self, weight: &Matrix, lengths: &[f32], backend: &Backend) -> Result<Self> {
        let expanded = Expanded::new(&self)?;
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let mut gain = Vec::with_capacity(part.rows.len());
            for outputs in blocks(part.outputs()) {
                let (base, change) = (weight.rows(outputs.clone())?, expanded.rows(part, outputs.clone())?);
                let wanted = &lengths[part.rows.start..][outputs.start - part.start..];
                let rows = base.chunks_exact(weight.inputs()).zip(change.chunks_exact(weight.inputs()));
                for ((base, change), wanted) in rows.zip(wanted) {
                    let square = |(w, d): (&f32, &f32)| f64::from(w + self.scale * d).powi(2);
                    let length = base.iter().zip(change).map(square).sum::<f64>().sqrt() as f32;
                    // A row of zeros has no direction to go into.
                    gain.push(if length > 0.0 { wanted / length } else { 0.0 });
                }
            }
            parts.push(part.clone().with_gain(gain, backend)?);
        }
        Ok(Self { parts, ..self })
    }

    /// The number of one whose gradient can be computed.
    ///
    /// # Errors
    /// If it is not in training, or has a gain.
    pub(super) fn trained(&self) -> Result<usize> {
        match self.number {
            Some(number) if self.parts.iter().all(|part| part.gain.is_none()) => Ok(number),
            _ => bail!("linear: a gradient was asked for through an adapter that is not in training"),
        }
    }
}

/// All low-rank changes of one matrix, made ready for products with it; shared by clones.
///
/// What reads the same rows is one product: the rows of every `A` lie in one matrix, those of neighbouring deltas without dropout.
#[derive(Clone)]
pub struct LowRankDeltas(Arc<Ready>);

struct Ready {
    deltas: Vec<LowRankDelta>,
    rows: Vec<AddedRows>,
    body: On<cpu::Ready, tensors::Ready>,
}

impl LowRankDeltas {
    /// Makes the changes of a matrix ready, with the rows that are added to some of it.
    ///
    /// # Errors
    /// If there is no memory for it, a failed device operation; if a delta or a row does not fit the matrix.
    pub fn new(deltas: Vec<LowRankDelta>, rows: Vec<AddedRows>, weight: &Matrix) -> Result<Self> {
        for added in &rows {
            let fits = (added.rows.outputs(), added.rows.inputs()) == (added.ids.len(), weight.inputs());
            if !fits || added.ids.iter().any(|id| *id as usize >= weight.outputs()) {
                let (outputs, inputs) = (weight.outputs(), weight.inputs());
                bail!("adapter: {} rows of {} values do not fit {outputs} of {inputs}", added.ids.len(), added.rows.inputs())
            }
        }
        for delta in &deltas {
            if delta.a.inputs() != weight.inputs() {
                bail!("adapter: expected rows of {} values, found {}", weight.inputs(), delta.a.inputs())
            }
            let fits = |part: &DeltaPart| {
                part.outputs().end <= weight.outputs() && (part.b.outputs(), part.b.inputs()) == (part.rows.len(), delta.rank())
            };
            if delta.parts.is_empty() || !delta.parts.iter().all(fits) {
                bail!("adapter: a change of rank {} does not fit {} outputs", delta.rank(), weight.outputs())
            }
        }
        let body = match weight {
            Matrix::Cpu(_) => On::Cpu(cpu::Ready::new(&deltas, weight.outputs())?),
            Matrix::Tensors(weight) => On::Tensors(tensors::Ready::new(&deltas, &rows, weight)?),
        };
        Ok(Self(Arc::new(Ready { deltas, rows, body })))
    }

    /// Each on its own.
    pub fn each(&self) -> &[LowRankDelta] {
        &self.0.deltas
    }

    /// The rows that are added.
    pub fn rows(&self) -> &[AddedRows] {
        &self.0.rows
    }

    /// Whether the step of a GPU's kernels has all that they are made of: neither gains nor dropout, and no rows of some outputs.
    pub fn are_plain(&self) -> bool {
        let is_plain = |delta: &LowRankDelta| delta.dropout.is_none() && delta.parts.iter().all(|part| part.gain.is_none());
        self.rows().is_empty() && self.each().iter().all(is_plain)
    }

    /// The numbers of those in training.
    ///
    /// # Errors
    /// If one is not in training, or has a gain; if rows are added.
    pub(super) fn trained(&self) -> Result<Vec<usize>> {
        if !self.rows().is_empty() {
            bail!("linear: a gradient was asked for through rows that are not in training")
        }
        self.each().iter().map(LowRankDelta::trained).collect()
    }

    pub(super) fn cpu(&self) -> Result<&cpu::Ready> {
        self.0.body.cpu()
    }

    pub(super) fn tensors(&self) -> Result<&tensors::Ready> {
        self.0.body.tensors()
    }
}

/// Which neighbours read the same rows: those without dropout, which gives each its own.
pub(super) fn groups(deltas: &[LowRankDelta]) -> Vec<Range<usize>> {
    let mut first = 0;
    let chunks = deltas.chunk_by(|a, b| a.dropout.is_none() && b.dropout.is_none());
    let range = |chunk: &[LowRankDelta]| {
        first += chunk.len();
        first - chunk.len()..first
    };
    chunks.map(range).collect()
}

/// What `bias` and those of the deltas give together; `bias` if no delta has one.
///
/// # Shape
/// `(outputs)`
///
/// # Errors
/// A failed device operation.
pub fn summed_bias(bias: Option<&Vector>, outputs: usize, deltas: &[LowRankDelta], backend: &Backend) -> Result<Option<Vector>> {
    let mut sum: Option<Vec<f32>> = None;
    for (delta, part) in deltas.iter().flat_map(|delta| delta.parts.iter().map(move |part| (delta, part))) {
        let Some(more) = &part.bias else { continue };
        let sum = match &mut sum {
            Some(sum) => sum,
            None => sum.insert(bias.map_or_else(|| Ok(vec![0.0; outputs]), Vector::values)?),
        };
        let gain = part.factors()?;
        for (i, (sum, more)) in sum[part.outputs()].iter_mut().zip(more.values()?).enumerate() {
            *sum += gain.as_ref().map_or(1.0, |gain| gain[i]) * (delta.scale * more);
        }
    }
    sum.map_or_else(|| Ok(bias.cloned()), |sum| Vector::new(sum, backend).map(Some))
}

/// The matrix that gives what `weight`, the deltas and the rows give together. On the CPU in F32, whatever the weight is stored
/// as: rounding to 16 bits would lose more than a small change adds. On a GPU in the type that all weights have there.
/// `None` if there is no memory for it, or a value does not fit the type.
pub fn merged(weight: &Matrix, deltas: &[LowRankDelta], added: &[AddedRows], backend: &Backend) -> Result<Option<Matrix>> {
    let (outputs, inputs) = (weight.outputs(), weight.inputs());
    let expanded = deltas.iter().map(Expanded::new).collect::<Result<Vec<_>>>()?;
    let Some(mut builder) = MatrixBuilder::new(outputs, inputs, weight.computed_type(), Use::Product, backend) else {
        return Ok(None);
    };
    for rows in blocks(0..outputs) {
        let plain = weight.rows(rows.clone())?;
        let mut sum = zeros(plain.len())?;
        sum.copy_from_slice(&plain);
        for (expanded, part) in expanded.iter().flat_map(|e| e.delta.parts.iter().map(move |part| (e, part))) {
            let both = rows.start.max(part.outputs().start)..rows.end.min(part.outputs().end);
            if both.is_empty() {
                continue;
            }
            let gain = part.factors()?;
            let change = expanded.rows(part, both.clone())?;
            for (row, change) in both.zip(change.chunks_exact(inputs)) {
                let at = (row - rows.start) * inputs;
                let gain = gain.as_ref().map_or(1.0, |gain| gain[row - part.start]);
                for ((sum, d), w) in sum[at..at + inputs].iter_mut().zip(change).zip(&plain[at..at + inputs]) {
                    *sum += gain * (expanded.delta.scale * d) + (gain - 1.0) * w;
                }
            }
        }
        for AddedRows { ids, rows: more } in added {
            for (i, id) in ids.iter().map(|id| *id as usize).enumerate().filter(|(_, id)| rows.contains(id)) {
                let at = (id - rows.start) * inputs;
                sum[at..at + inputs].iter_mut().zip(more.rows(i..i + 1)?).for_each(|(sum, more)| *sum += more);
            }
        }
        if !builder.fill_f32(rows.start, &sum) {
            return Ok(None);
        }
    }
    builder.finish().map(Some)
}

/// Rows of `B A`.
struct Expanded<'a> {
    delta: &'a LowRankDelta,
    /// `A` by its columns.
    columns: DotProducts,
}

impl<'a> Expanded<'a> {
    fn new(delta: &'a LowRankDelta) -> Result<Self> {
        let (rank, inputs) = (delta.a.outputs(), delta.a.inputs());
        let a = delta.a.rows(0..rank)?;
        let mut columns = zeros(a.len())?;
        for (i, column) in columns.chunks_exact_mut(rank.max(1)).enumerate() {
            column.iter_mut().zip(a.iter().skip(i).step_by(inputs)).for_each(|(to, from)| *to = *from);
        }
        let columns = DotProducts::new(&columns, rank).ok_or_else(|| no_memory(columns.len()))?;
        Ok(Self { delta, columns })
    }

    /// Those of some outputs of a part.
    fn rows(&self, part: &DeltaPart, outputs: Range<usize>) -> Result<Vec<f32>> {
        let mut out = zeros(outputs.len() * self.delta.a.inputs())?;
        self.columns.with(&part.b.rows(outputs.start - part.start..outputs.end - part.start)?, &mut out)?;
        Ok(out)
    }
}

/// Rows of `cols` values.
fn matrix(values: &[f32], cols: usize, format: Format, backend: &Backend) -> Result<Matrix> {
    let builder = MatrixBuilder::new(values.len() / cols, cols, format, Use::Product, backend);
    let mut builder = builder.ok_or_else(|| no_memory(values.len()))?;
    if !builder.fill_f32(0, values) {
        bail!("adapter: a value is beyond the range of f16, which the model is loaded as")
    }
    builder.finish()
}

fn no_memory(values: usize) -> OutOfMemory {
    OutOfMemory { what: format!("{values} values of an adapter") }
}

fn blocks(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    rows.clone().step_by(BLOCK_ROWS).map(move |start| start..rows.end.min(start + BLOCK_ROWS))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::ops::{AdaptedLinear, Context, linear, to_f32};

    #[test]
    fn rows_added_to_many_outputs_take_no_square_of_them() {
        const OUTPUTS: usize = 60_000;
        for backend in [Backend::new(&Device::Cpu), Backend::TENSORS_ON_CPU] {
            let of = |values: &[f32]| matrix(values, 2, Format::F32, &backend).unwrap();
            let values = |factor: f32| (0..2 * OUTPUTS).map(|i| factor * (i % 7) as f32).collect::<Vec<f32>>();
            let (weight, ids) = (of(&values(1.0)), (0..OUTPUTS as u32).rev().collect::<Arc<[u32]>>());
            let added = vec![AddedRows { ids, rows: of(&values(10.0)) }];
            let x = Tensor::new(&[[1f32, 2.0], [-1.0, 3.0]], &Device::Cpu).unwrap();
            let deltas = LowRankDeltas::new(Vec::new(), added.clone(), &weight).unwrap();
            let product = |weight, deltas| {
                let product = AdaptedLinear { weight, bias: None, deltas };
                to_f32(&linear(Context::forward(&backend), &x, product).unwrap()).unwrap()
            };
            let row = |factor: usize, i: usize| [2 * i, 2 * i + 1].map(|i| (factor * (i % 7)) as f32);
            let merged = merged(&weight, &[], &added, &backend).unwrap().unwrap();
            for found in [product(&weight, Some(&deltas)), product(&merged, None)] {
                for (y, x) in found.chunks_exact(OUTPUTS).zip([[1.0, 2.0], [-1.0, 3.0]]) {
                    for (i, y) in y.iter().enumerate() {
                        let ([a, b], [c, d]) = (row(1, i), row(10, OUTPUTS - 1 - i));
                        assert_eq!(*y, x[0] * (a + c) + x[1] * (b + d), "{i}");
                    }
                }
            }
            let outside = AddedRows { ids: Arc::from([OUTPUTS as u32]), rows: of(&[1.0, 2.0]) };
            assert!(LowRankDeltas::new(Vec::new(), vec![outside], &weight).is_err());
        }
    }
}
