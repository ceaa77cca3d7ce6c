//! Pooling by tensor operations.

use candle_core::{DType, Device, Result, Tensor};

use crate::kernels::LEAST_LENGTH;
use crate::ops::Pooling;

pub fn pool(hidden: &Tensor, lengths: &[usize], skip: usize, kinds: &[Pooling]) -> Result<Tensor> {
    let (_, width) = hidden.dims2()?;
    let mut pooled = Vec::with_capacity(lengths.len() * kinds.len());
    let mut first = 0;
    for &len in lengths {
        let count = len.saturating_sub(skip);
        let rows = |start: usize, count: usize| hidden.narrow(0, start, count)?.to_dtype(DType::F32);
        let pooled_rows = if count > 0 { Some(rows(first + skip, count)?) } else { None };
        for kind in kinds {
            pooled.push(match (kind, &pooled_rows) {
                (Pooling::Cls, None) if len > 0 => rows(first, 1)?,
                (_, None) => Tensor::zeros((1, width), DType::F32, hidden.device())?,
                (kind, Some(rows)) => by_kind(*kind, rows, skip)?,
            });
        }
        first += len;
    }
    Tensor::cat(&pooled, 0)?.reshape((lengths.len(), kinds.len() * width))
}

/// All of some rows, of which the first is the one behind `skip`.
fn by_kind(kind: Pooling, rows: &Tensor, skip: usize) -> Result<Tensor> {
    let count = rows.dims()[0];
    match kind {
        Pooling::Cls => rows.narrow(0, 0, 1),
        Pooling::Last => rows.narrow(0, count - 1, 1),
        Pooling::Max => rows.max_keepdim(0),
        Pooling::Mean => rows.sum_keepdim(0)? / count as f64,
        Pooling::MeanSqrtLen => rows.sum_keepdim(0)? / (count as f64).sqrt(),
        Pooling::WeightedMean => {
            let weights: Vec<f32> = (skip + 1..=skip + count).map(|position| position as f32).collect();
            let total = weights.iter().sum::<f32>();
            let weights = Tensor::from_vec(weights, (count, 1), rows.device())?;
            rows.broadcast_mul(&weights)?.sum_keepdim(0)? / f64::from(total)
        }
    }
}

pub fn zero_rows(rows: usize, cols: usize, device: &Device) -> Result<Tensor> {
    Tensor::zeros((rows, cols), DType::F32, device)
}

pub fn unit_rows(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(LEAST_LENGTH)?)
}
