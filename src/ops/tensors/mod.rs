//! The bodies of operations by candle's tensor operations: the reference on every device.

pub mod embedding;
pub mod linear;
pub mod low_rank;
pub mod parameters;
pub mod cross_entropy;
pub mod norm;
pub mod rope;
pub mod scale;
pub mod split;
pub mod attention;
pub mod convolution;
pub mod scan;
pub mod activation;
pub mod gate;
pub mod experts;
pub mod pooling;
pub mod torch_activation;
