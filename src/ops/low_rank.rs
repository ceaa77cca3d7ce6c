//! A low-rank change of some outputs of a weight matrix: LoRA and DoRA.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::cpu::row_op::Rows;
use super::linear::Products;
use super::{Backend, Matrix, MatrixBuilder, Vector};
use crate::error::OutOfMemory;
use crate::kernels::{Use, matmul_new};

/// `y[start..start + n] += gain · scale · (B (A x) + bias) + (gain - 1) · W x`; without a gain the last term is none.
///
/// # Shape
/// `a`: `(R, C)`, `b`: `(n, R)`, `bias` and `gain`: `(n)`.
///
/// # Source
/// Hu et al. 2021, <https://arxiv.org/abs/2106.09685>; the gain is that of Liu et al. 2024, <https://arxiv.org/abs/2402.09353>:
/// a trained length of each row over the length that `W + scale · B A` gives it.
#[derive(Clone)]
pub struct Delta {
    pub a: Matrix,
    pub b: Matrix,
    pub bias: Option<Vector>,
    pub start: usize,
    pub scale: f32,
    pub gain: Option<Vector>,
}

/// Rows of a weight matrix that are widened at once: a few megabytes.
const BLOCK_ROWS: usize = 256;

impl Delta {
    /// The outputs that it changes.
    fn outputs(&self) -> Range<usize> {
        self.start..self.start + self.b.outputs()
    }

    /// The length of each changed row of `weight + scale · B A`.
    pub fn lengths(&self, weight: &Matrix) -> Result<Vec<f32>> {
        let product = Product::new(self)?;
        let mut lengths = Vec::with_capacity(self.b.outputs());
        for rows in blocks(self.outputs()) {
            let base = weight.rows(rows.clone())?;
            let change = product.rows(rows)?;
            for (base, change) in base.chunks_exact(weight.inputs()).zip(change.chunks_exact(weight.inputs())) {
                let square = |(w, d): (&f32, &f32)| f64::from(w + self.scale * d).powi(2);
                lengths.push(base.iter().zip(change).map(square).sum::<f64>().sqrt() as f32);
            }
        }
        Ok(lengths)
    }

    /// Adds the change to `y`, of which `plain` is a copy without bias where there is a gain.
    pub(super) fn add_on_cpu(&self, x: &Rows<'_>, plain: &[f32], outputs: usize, y: &mut [f32]) -> Result<()> {
        let (a, b) = (self.a.cpu()?, self.b.cpu()?);
        if x.cols != a.cols() {
            bail!("adapter: {} inputs for a matrix of {}", x.cols, a.cols())
        }
        let rows = y.len() / outputs;
        let inner = matmul_new(x.values, x.stride, a, None, rows);
        let change = matmul_new(&inner, a.rows(), b, self.bias.as_ref().map(Vector::slice).transpose()?, rows);
        let gain = self.gain.as_ref().map(Vector::slice).transpose()?;
        for (row, change) in change.chunks_exact(b.rows()).enumerate() {
            let at = row * outputs + self.start;
            let y = &mut y[at..at + b.rows()];
            match gain {
                None => y.iter_mut().zip(change).for_each(|(y, d)| *y += self.scale * d),
                Some(gain) => {
                    let plain = &plain[at..at + b.rows()];
                    for (((y, d), g), wx) in y.iter_mut().zip(change).zip(gain).zip(plain) {
                        *y += g * (self.scale * d) + (g - 1.0) * wx;
                    }
                }
            }
        }
        Ok(())
    }

    /// The same by tensor operations: what is added to all outputs. `plain`: `W x`.
    pub(super) fn tensor(&self, x: &Tensor, plain: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.a.tensors()?, self.b.tensors()?);
        let mut change = x.matmul(&a.t()?)?.matmul(&b.t()?)?;
        if let Some(bias) = &self.bias {
            change = change.broadcast_add(&bias.tensors()?.to_dtype(change.dtype())?)?;
        }
        change = (change * f64::from(self.scale))?;
        if let Some(gain) = &self.gain {
            let gain = gain.tensors()?;
            let plain = plain.narrow(1, self.start, self.b.outputs())?.force_contiguous()?;
            // One is subtracted in F32: a gain is near it.
            let beyond = plain.broadcast_mul(&(gain - 1.0)?.to_dtype(plain.dtype())?)?;
            change = (change.broadcast_mul(&gain.to_dtype(plain.dtype())?)? + beyond)?;
        }
        let (_, outputs) = plain.dims2()?;
        change.pad_with_zeros(1, self.start, outputs - self.outputs().end)
    }
}

/// The matrix that gives what `weight` and the changes give together. On the CPU in F32, whatever the weight is stored as: rounding
/// to 16 bits would lose more than a small change adds. On a GPU in the type that all weights have there. `None` if there is no
/// memory for it, or a value does not fit the type.
pub fn merged(weight: &Matrix, deltas: &[Delta], backend: &Backend) -> Result<Option<Matrix>> {
    let (outputs, inputs) = (weight.outputs(), weight.inputs());
    let products = deltas.iter().map(Product::new).collect::<Result<Vec<_>>>()?;
    let Some(mut builder) = MatrixBuilder::new(outputs, inputs, weight.computed_type(), Use::Product, backend) else {
        return Ok(None);
    };
    for rows in blocks(0..outputs) {
        let plain = weight.rows(rows.clone())?;
        let mut sum = plain.clone();
        for product in &products {
            let delta = product.delta;
            let both = rows.start.max(delta.outputs().start)..rows.end.min(delta.outputs().end);
            if both.is_empty() {
                continue;
            }
            let gain = delta.gain.as_ref().map(Vector::values).transpose()?;
            let change = product.rows(both.clone())?;
            for (row, change) in both.zip(change.chunks_exact(inputs)) {
                let at = (row - rows.start) * inputs;
                let gain = gain.as_ref().map_or(1.0, |gain| gain[row - delta.start]);
                for ((sum, d), w) in sum[at..at + inputs].iter_mut().zip(change).zip(&plain[at..at + inputs]) {
                    *sum += gain * (delta.scale * d) + (gain - 1.0) * w;
                }
            }
        }
        if !builder.fill_f32(rows.start, &sum) {
            return Ok(None);
        }
    }
    builder.finish().map(Some)
}

/// Rows of `B A` for a delta.
struct Product<'a> {
    delta: &'a Delta,
    /// `A` by its columns.
    columns: Products,
}

impl<'a> Product<'a> {
    fn new(delta: &'a Delta) -> Result<Self> {
        let (rank, inputs) = (delta.a.outputs(), delta.a.inputs());
        let a = delta.a.rows(0..rank)?;
        let columns: Vec<f32> = (0..inputs).flat_map(|i| a.iter().skip(i).step_by(inputs)).copied().collect();
        match Products::new(&columns, rank) {
            Some(columns) => Ok(Self { delta, columns }),
            None => Err(OutOfMemory { what: format!("{} values of an adapter", columns.len()) }.into()),
        }
    }

    /// `rows` counts outputs of the whole matrix.
    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut out = vec![0f32; rows.len() * self.delta.a.inputs()];
        let start = self.delta.start;
        self.columns.with(&self.delta.b.rows(rows.start - start..rows.end - start)?, &mut out);
        Ok(out)
    }
}

fn blocks(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    rows.clone().step_by(BLOCK_ROWS).map(move |start| start..rows.end.min(start + BLOCK_ROWS))
}
