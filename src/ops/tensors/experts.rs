//! Sums of experts by tensor operations.

use candle_core::{DType, Result, Tensor};

use crate::ops::experts::ExpertRows;

/// The numbers of the rows of a part, and their weights `(rows, 1)` in F32.
fn of_part(part: &ExpertRows, weights: &Tensor) -> Result<(Tensor, Tensor)> {
    let rows = Tensor::new(part.rows.iter().map(|row| *row as u32).collect::<Vec<_>>(), weights.device())?;
    let weights = weights.narrow(1, part.expert, 1)?.force_contiguous()?.index_select(&rows, 0)?;
    Ok((rows, weights))
}

pub fn combine(parts: &[ExpertRows], weights: &Tensor, width: usize) -> Result<Tensor> {
    let mut sums = Tensor::zeros((weights.dims2()?.0, width), DType::F32, weights.device())?;
    for part in parts {
        let (rows, weights) = of_part(part, weights)?;
        let weighted = part.output.to_dtype(DType::F32)?.force_contiguous()?.broadcast_mul(&weights)?;
        sums = sums.index_add(&rows, &weighted, 0)?;
    }
    sums.to_dtype(parts[0].output.dtype())
}

/// The gradients of each part's output, and of the weights.
pub fn combine_backward(parts: &[ExpertRows], weights: &Tensor, dy: &Tensor) -> Result<(Vec<Tensor>, Tensor)> {
    let (count, experts) = weights.dims2()?;
    let (mut of_parts, mut columns) = (Vec::with_capacity(parts.len()), vec![None; experts]);
    for part in parts {
        let (rows, weights) = of_part(part, weights)?;
        let dy = dy.force_contiguous()?.index_select(&rows, 0)?.to_dtype(DType::F32)?;
        let dots = (part.output.to_dtype(DType::F32)? * &dy)?.sum_keepdim(1)?;
        let none = Tensor::zeros((count, 1), DType::F32, weights.device())?;
        columns[part.expert] = Some(none.index_add(&rows, &dots, 0)?);
        of_parts.push(dy.broadcast_mul(&weights)?.to_dtype(part.output.dtype())?);
    }
    let none = Tensor::zeros((count, 1), DType::F32, weights.device())?;
    let columns: Vec<Tensor> = columns.into_iter().map(|column| column.unwrap_or_else(|| none.clone())).collect();
    Ok((of_parts, Tensor::cat(&columns, 1)?))
}
