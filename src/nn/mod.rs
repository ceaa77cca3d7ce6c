//! The network: one transformer, driven by a neutral [`Config`]. Nothing here knows a model family or a file format.

mod config;
mod rope;
mod weights;
mod linear;
mod adapter;
mod kv_cache;
mod relative_bias;
mod transformer;
mod training;
mod pooling;

pub use adapter::{Adapter, Adapters, Change, LowRank, Module, Place, Replaced, Scaled};
pub use config::{Bias, Config, Layer, Names, Positions, QkNorm, Source};
pub use kv_cache::KvCache;
pub use linear::Linear;
pub use pooling::Pooling;
pub use relative_bias::RELATIVE_BUCKETS;
pub use rope::{Rope, Scaling};
pub use training::{Batch, Pass, Trained};
pub use transformer::Transformer;
pub use weights::{Entry, Slot, TensorSource, Weights};
