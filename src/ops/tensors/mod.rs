//! Operations by candle's tensor operations: on every device, the reference.

pub mod activation;
pub mod attention;
pub mod cross_entropy;
pub mod norm;
