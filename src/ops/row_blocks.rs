//! Work on a few rows at a time, for the memory of what lies in between.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{Backend, Context};
use crate::kernels::threads;

/// Rows of a block for each thread: enough that reading the weights again for the next block costs nothing that can be measured. Few in
/// unit tests, whose inputs are short.
const ROWS: usize = if cfg!(test) { 2 } else { 128 };
/// Of the smallest block.
const FEWEST: usize = if cfg!(test) { 5 } else { 256 };

/// Does work that treats each row for itself, by our kernels on blocks of rows: what is widest between two products is then as long as
/// a block. A pass to go back through keeps all of it anyway, and a GPU is at its best with many rows.
///
/// # Shape
/// `inputs`: `(T, …)` each, of which `work` gets the same rows, and where they are; it returns as many.
pub fn by_row_blocks(
    cx: Context<'_>,
    inputs: &[Tensor],
    work: impl Fn(Range<usize>, &[Tensor]) -> Result<Tensor>,
) -> Result<Tensor> {
    let rows = inputs[0].dims()[0];
    let blocks = rows.div_ceil((ROWS * threads()).max(FEWEST));
    if matches!(cx.backend, Backend::Tensors(_)) || cx.tape.is_some() || blocks <= 1 {
        return work(0..rows, inputs);
    }
    let height = rows.div_ceil(blocks);
    let mut outputs = Vec::with_capacity(blocks);
    for first in (0..rows).step_by(height) {
        let len = height.min(rows - first);
        let block = inputs.iter().map(|input| input.narrow(0, first, len)).collect::<Result<Vec<_>>>()?;
        outputs.push(work(first..first + len, &block)?);
    }
    Tensor::cat(&outputs, 0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::Backend;

    #[test]
    fn blocks_are_all_rows_in_their_order() {
        let backend = Backend::new(&Device::Cpu);
        for rows in [1, FEWEST, FEWEST + 1, 5 * ROWS * threads() + 7] {
            let [x, y] = [0.0, 0.5].map(|offset| {
                let values: Vec<f32> = (0..rows * 2).map(|i| i as f32 + offset).collect();
                Tensor::from_vec(values, (rows, 2), &Device::Cpu).unwrap()
            });
            let longest = std::cell::Cell::new(0);
            let sum = by_row_blocks(Context::forward(&backend), &[x.clone(), y.clone()], |rows, inputs| {
                longest.set(longest.get().max(rows.len()));
                assert_eq!(inputs[0].to_vec2::<f32>()?[0][0], rows.start as f32 * 2.0);
                &inputs[0] + &inputs[1]
            });
            assert_eq!(sum.unwrap().to_vec2::<f32>().unwrap(), (x + y).unwrap().to_vec2::<f32>().unwrap());
            assert!(longest.get() <= (ROWS * threads()).max(FEWEST));
        }
    }
}
