//! Gates that are rows of their own.

use candle_core::{Result, Tensor, bail};

use super::cpu::gate as cpu;
use super::tensors::gate as tensors;
use super::{Activation, Backend, Context};

/// `x · f(gates)`, or `x · gates` without a function.
///
/// # Shape
/// `x`: `(T, G · D)`; `gates`: `(T, G · D)`, or `(T, G)`, each then for `D` neighbours; returns the shape of `x`.
pub fn gate(cx: Context<'_>, x: &Tensor, gates: &Tensor, kind: Option<Activation>) -> Result<Tensor> {
    let ((rows, width), (gate_rows, count)) = (x.dims2()?, gates.dims2()?);
    if gate_rows != rows || count == 0 || !width.is_multiple_of(count) {
        bail!("gate: expected {rows} rows of gates for {width} values, found ({gate_rows}, {count})")
    }
    let y = match cx.backend {
        Backend::Cpu => cpu::gate(x, gates, kind)?,
        Backend::Tensors(_) => tensors::gate(x, gates, kind)?,
    };
    let inputs = [x.clone(), gates.clone()];
    cx.record([x, gates], &y, move |dy, backend| {
        let [x, gates] = &inputs;
        match backend {
            Backend::Cpu => cpu::gate_backward(x, gates, &dy, kind),
            Backend::Tensors(_) => tensors::gate_backward(x, gates, &dy, kind),
        }
    });
    Ok(y)
}
