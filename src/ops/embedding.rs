//! Token ids to vectors.

use candle_core::{Result, Tensor, bail};

use super::cpu::embedding as cpu;
use super::tensors::embedding as tensors;
use super::{Backend, Context, Gradient, LowRankDelta, LowRankDeltas, Matrix};

/// Row `ids[t]` of the table for each token, times `scale`.
///
/// # Shape
/// `table`: `(V, C)`; returns `(T, C)`.
///
/// # Errors
/// If an id is not below `V`: the caller checks ids, and names the token.
pub fn embedding(table: &Matrix, ids: &[u32], scale: f32) -> Result<Tensor> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= table.outputs()) {
        bail!("token id {id} is outside a vocabulary of {}", table.outputs())
    }
    match table {
        Matrix::Cpu(table) => cpu::forward(table, ids, scale),
        Matrix::Tensors(table) => tensors::forward(table, ids, scale),
    }
}

/// The same of a table with low-rank changes: `(E[id] + Σ s · B[id] A) · scale`, the sum over the changes. Nothing is dropped of ids.
///
/// # Shape
/// `table`: `(V, C)`; of each change `A`: `(R, C)`, `B`: `(V, R)`, in one part; returns `(T, C)`.
///
/// # Errors
/// As [`embedding`]; for a change with a gain or of some rows alone; if a gradient is asked for that is not in training.
///
/// # Source
/// Equals `Embedding` of PEFT 0.21, whose `lora_embedding_A` is the transpose of `B`, and `lora_embedding_B` that of `A`.
pub fn adapted_embedding(
    cx: Context<'_>,
    table: &Matrix,
    deltas: Option<&LowRankDeltas>,
    ids: &[u32],
    scale: f32,
) -> Result<Tensor> {
    let mut x = embedding(table, ids, scale)?;
    let deltas = deltas.map_or(&[][..], LowRankDeltas::each);
    let mut inner = Vec::with_capacity(deltas.len());
    for delta in deltas {
        let [part] = &delta.parts[..] else {
            bail!("embedding: expected a change of all rows, found {} parts", delta.parts.len())
        };
        if part.gain.is_some() || part.start != 0 {
            bail!("embedding: expected a change of all rows without a gain")
        }
        let rows = embedding(&part.b, ids, scale * delta.scale)?;
        x = match cx.backend {
            Backend::Cpu => cpu::add_product(x, &rows, delta.a.cpu()?)?,
            Backend::Tensors(_) => tensors::add_product(&x, &rows, delta.a.tensors()?.dense()?)?,
        };
        inner.push(rows);
    }
    let Some(tape) = cx.tape.filter(|_| deltas.iter().any(|delta| delta.number.is_some())) else { return Ok(x) };
    let numbers = deltas.iter().map(LowRankDelta::trained).collect::<Result<Vec<_>>>()?;
    let (id, deltas, ids, backend) = (x.id(), deltas.to_vec(), ids.to_vec(), cx.backend.clone());
    tape.push([&x], move |gradients| {
        let Some(dy) = gradients.take_from(id) else { return Ok(()) };
        for ((number, delta), inner) in numbers.into_iter().zip(&deltas).zip(&inner) {
            let (vocab, factor) = (delta.outputs(), scale * delta.scale);
            let (a, b) = match &backend {
                Backend::Cpu => cpu::backward(&dy, inner, delta.a.cpu()?, (&ids, vocab), factor)?,
                Backend::Tensors(_) => tensors::backward(&dy, inner, delta.a.tensors()?.dense()?, (&ids, vocab), factor)?,
            };
            gradients.trained.insert(number, Gradient { a, b });
        }
        Ok(())
    });
    Ok(x)
}
