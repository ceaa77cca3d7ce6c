//! The network: one transformer, driven by a neutral [`Config`]. Nothing here knows a model family or a file format.

mod config;
mod rope;
mod weights;
mod linear;
mod norm;
mod kv_cache;
mod transformer;

pub use config::{Bias, Config, Layer, Names, QkNorm, Source};
pub use kv_cache::KvCache;
pub use rope::{Rope, Scaling};
pub use transformer::Transformer;
pub use weights::{Entry, TensorSource, Weights};
