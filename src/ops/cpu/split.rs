//! Bounds of values on the CPU.

use candle_core::{Result, Tensor};

use super::row_op::{in_place_from, row_op};

pub fn clip(x: &Tensor, bound: f32) -> Result<Tensor> {
    let (_, cols) = x.dims2()?;
    row_op("clip", x, cols, |x, out| {
        for (row, y) in out.chunks_exact_mut(cols).enumerate() {
            y.iter_mut().zip(x.row(row)).for_each(|(y, x)| *y = x.clamp(-bound, bound));
        }
        Ok(())
    })
}

/// In the memory of `dy`.
pub fn clip_backward(x: &Tensor, dy: Tensor, bound: f32) -> Result<Tensor> {
    in_place_from("clip backward", dy, x, |x, dy, cols| {
        for (row, dy) in dy.chunks_exact_mut(cols).enumerate() {
            dy.iter_mut().zip(x.row(row)).filter(|(_, x)| x.abs() > bound).for_each(|(dy, _)| *dy = 0.0);
        }
        Ok(())
    })
}
