//! Operations by our kernels, on the CPU in F32.

pub mod row_op;
pub mod attention;
pub mod linear;
