//! Low-rank changes by our kernels: `A x` before the product, the rest within it.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Result;

use super::row_op::Rows;
use crate::error::OutOfMemory;
use crate::kernels::{Epilogue, Format, LowRankTerm, Packed, Use, dropout, matmul, matmul_transposed_add, outer_sum, zeros};
use crate::ops::low_rank::groups;
use crate::ops::{AdaptedLinear, Dropout, Gradient, LowRankDelta, ParameterValues, Vector};

/// The changes of one matrix, as products read them.
pub struct Ready {
    groups: Vec<Group>,
    /// The product's factors, `(N)`.
    gains: Option<Vec<f32>>,
}

/// Deltas that read the same rows.
struct Group {
    deltas: Range<usize>,
    /// The rows of each one's `A`, one delta after another.
    a: Arc<Packed>,
    dropout: Option<Dropout>,
}

impl Ready {
    pub fn new(deltas: &[LowRankDelta], outputs: usize) -> Result<Self> {
        let mut gains = None;
        for part in deltas.iter().flat_map(|delta| &delta.parts) {
            if let Some(gain) = &part.gain {
                let all = &mut gains.get_or_insert_with(|| vec![1f32; outputs])[part.outputs()];
                all.iter_mut().zip(gain.factors.slice()?).for_each(|(all, g)| *all += g - 1.0);
            }
        }
        let group = |range: Range<usize>| {
            let (own, dropout) = (&deltas[range.clone()], deltas[range.start].dropout);
            Ok(Group { deltas: range, a: stacked(own)?, dropout })
        };
        Ok(Self { groups: groups(deltas).into_iter().map(group).collect::<Result<_>>()?, gains })
    }
}

/// The rows of all `A`; that of one alone as it is.
fn stacked(deltas: &[LowRankDelta]) -> Result<Arc<Packed>> {
    if let [delta] = deltas {
        return delta.a.cpu().cloned();
    }
    let (rows, cols) = (deltas.iter().map(LowRankDelta::rank).sum(), deltas[0].a.inputs());
    let no_memory = || OutOfMemory { what: format!("{rows} × {cols} values of an adapter") };
    let mut packed = Packed::new(rows, cols, Format::F32, Use::Product).ok_or_else(no_memory)?;
    let mut first = 0;
    for delta in deltas {
        packed.fill_f32(first, &delta.a.rows(0..delta.rank())?);
        first += delta.rank();
    }
    Ok(Arc::new(packed))
}

/// Lends `compute` what a product with `rows` of `x` ends with; returns of each group of deltas `scale · A dropout(x)` as
/// well, `(rows, ΣR)`.
pub fn with_epilogue<R>(
    x: &Rows<'_>,
    rows: usize,
    product: AdaptedLinear<'_>,
    compute: impl FnOnce(Epilogue<'_>) -> std::result::Result<R, OutOfMemory>,
) -> Result<(R, Vec<Vec<f32>>)> {
    let bias = product.bias.map(Vector::slice).transpose()?;
    let Some(deltas) = product.deltas else {
        return Ok((compute(Epilogue { bias, ..Epilogue::default() })?, Vec::new()));
    };
    let (ready, deltas) = (deltas.cpu()?, deltas.each());
    let inner = ready.groups.iter().map(|group| group.inner(deltas, x, rows)).collect::<Result<Vec<_>>>()?;
    let mut low_rank = Vec::new();
    for (group, inner) in ready.groups.iter().zip(&inner) {
        for (cols, delta) in group.each(deltas) {
            for part in &delta.parts {
                let (inner, b) = (inner.get(cols.start..).unwrap_or_default(), part.product_b().cpu()?);
                low_rank.push(LowRankTerm { inner, stride: group.a.rows(), b, start: part.start });
            }
        }
    }
    Ok((compute(Epilogue { gain: ready.gains.as_deref(), bias, low_rank: &low_rank })?, inner))
}

impl Group {
    /// Each delta with its columns among those of the group.
    fn each<'a>(&self, deltas: &'a [LowRankDelta]) -> impl Iterator<Item = (Range<usize>, &'a LowRankDelta)> {
        let mut first = 0;
        deltas[self.deltas.clone()].iter().map(move |delta| {
            first += delta.rank();
            (first - delta.rank()..first, delta)
        })
    }

    /// Multiplies the columns of each delta with its scale.
    fn scale(&self, deltas: &[LowRankDelta], rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.a.rows()) {
            self.each(deltas).for_each(|(cols, delta)| row[cols].iter_mut().for_each(|x| *x *= delta.scale));
        }
    }

    /// `scale · A dropout(x)`
    fn inner(&self, deltas: &[LowRankDelta], x: &Rows<'_>, rows: usize) -> Result<Vec<f32>> {
        let mut inner = zeros(rows * self.a.rows())?;
        self.with_dropped(x, rows, |x, stride| matmul(x, stride, &*self.a, Epilogue::default(), &mut inner))??;
        self.scale(deltas, &mut inner);
        Ok(inner)
    }

    /// Lends `x` as the deltas see it, and the distance of its rows.
    fn with_dropped<R>(&self, x: &Rows<'_>, rows: usize, read: impl FnOnce(&[f32], usize) -> R) -> Result<R> {
        let Some(Dropout { share, seed }) = self.dropout else {
            return Ok(read(x.values, x.stride));
        };
        let mut dropped = zeros(rows * x.cols)?;
        dropped.chunks_exact_mut(x.cols).enumerate().for_each(|(t, to)| to.copy_from_slice(x.row(t)));
        dropout(&mut dropped, share, seed);
        Ok(read(&dropped, x.cols))
    }

    /// The gradient of the matrices of each delta; adds to that of `x`, if it is asked for.
    fn backward(
        &self,
        deltas: &[LowRankDelta],
        (x, inner): (&Rows<'_>, &[f32]),
        dy: &Rows<'_>,
        dx: Option<&mut [f32]>,
    ) -> Result<Vec<Gradient>> {
        let (ranks, inputs) = (self.a.rows(), self.a.cols());
        let rows = inner.len() / ranks;
        let (mut of_inner, mut of_b) = (zeros(rows * ranks)?, Vec::with_capacity(self.deltas.len()));
        for (cols, delta) in self.each(deltas) {
            let rank = delta.rank();
            let mut of_delta = zeros(delta.outputs() * rank)?;
            // No rows end the lists before the columns begin.
            let inner = inner.get(cols.start..).unwrap_or_default();
            for part in &delta.parts {
                let (dy_part, n) = (dy.values.get(part.start..).unwrap_or_default(), part.rows.len());
                let of_inner = of_inner.get_mut(cols.start..).unwrap_or_default();
                matmul_transposed_add(rows, (dy_part, dy.stride), part.b.cpu()?, (of_inner, ranks))?;
                let mut sums = zeros(rank * n)?;
                outer_sum(rows, (inner, ranks), (dy_part, dy.stride), n, &mut sums);
                let of_part = &mut of_delta[part.rows.start * rank..part.rows.end * rank];
                for (o, of_row) in of_part.chunks_exact_mut(rank).enumerate() {
                    of_row.iter_mut().zip(sums.iter().skip(o).step_by(n)).for_each(|(of_row, sum)| *of_row = *sum);
                }
            }
            of_b.push(of_delta);
        }
        self.scale(deltas, &mut of_inner);
        let mut of_a = zeros(ranks * inputs)?;
        self.with_dropped(x, rows, |x, stride| outer_sum(rows, (&of_inner, ranks), (x, stride), inputs, &mut of_a))?;
        match (dx, self.dropout) {
            (Some(dx), None) => matmul_transposed_add(rows, (&of_inner, ranks), &self.a, (dx, inputs))?,
            (Some(dx), Some(Dropout { share, seed })) => {
                let mut of_dropped = zeros(dx.len())?;
                matmul_transposed_add(rows, (&of_inner, ranks), &self.a, (&mut of_dropped, inputs))?;
                dropout(&mut of_dropped, share, seed);
                dx.iter_mut().zip(of_dropped).for_each(|(dx, d)| *dx += d);
            }
            (None, _) => {}
        }
        let gradient = |((cols, _), b): ((Range<usize>, _), Vec<f32>)| {
            let mut a = zeros(cols.len() * inputs)?;
            a.copy_from_slice(&of_a[cols.start * inputs..cols.end * inputs]);
            Ok(Gradient { a: ParameterValues::Cpu(a), b: ParameterValues::Cpu(b) })
        };
        self.each(deltas).zip(of_b).map(gradient).collect()
    }
}

/// The gradient of the matrices of each delta; adds to that of `x`, if it is asked for.
pub fn backward(
    ready: &Ready,
    deltas: &[LowRankDelta],
    (x, inner): (&Rows<'_>, &[Vec<f32>]),
    dy: &Rows<'_>,
    mut dx: Option<&mut [f32]>,
) -> Result<Vec<Gradient>> {
    let mut of_deltas = Vec::with_capacity(deltas.len());
    for (group, inner) in ready.groups.iter().zip(inner) {
        of_deltas.extend(group.backward(deltas, (x, inner), dy, dx.as_deref_mut())?);
    }
    Ok(of_deltas)
}
