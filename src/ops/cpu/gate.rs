//! Gates by our kernels.

use candle_core::{Result, Tensor};

use super::row_op::{row_op, with_rows};
use crate::kernels::{self, Activation, Strided};

pub fn gate(x: &Tensor, gates: &Tensor, kind: Option<Activation>) -> Result<Tensor> {
    let (width, count) = (x.dims2()?.1, gates.dims2()?.1);
    row_op("gate", x, width, |x, out| {
        with_rows(gates, |gates| {
            let (x, gates) = (Strided::from(&x), Strided::from(&gates));
            kernels::gate(kind, x, gates, (width, count), out);
            Ok(())
        })
    })
}

/// The gradients of x and of the gates.
pub fn gate_backward(x: &Tensor, gates: &Tensor, dy: &Tensor, kind: Option<Activation>) -> Result<[Tensor; 2]> {
    let (width, count) = (x.dims2()?.1, gates.dims2()?.1);
    let of_gates = row_op("gate backward", gates, count, |gates, out| {
        with_rows(x, |x| {
            with_rows(dy, |dy| {
                let (inputs, gates) = ([&x, &dy].map(Strided::from), Strided::from(&gates));
                kernels::gate_backward(kind, inputs, gates, (width, count), out);
                Ok(())
            })
        })
    })?;
    Ok([gate(dy, gates, kind)?, of_gates])
}
