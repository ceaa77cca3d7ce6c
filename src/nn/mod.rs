//! The network: one transformer, driven by a neutral [`Config`]. Nothing here knows a model family or a file format.

mod config;
mod mix;
mod rope;
mod weights;
mod linear;
mod loader;
mod adapter;
mod state;
mod relative_bias;
mod attention;
mod delta_net;
mod short_conv;
mod dense;
mod layer;
mod transformer;
mod training;
mod sentence;

pub use adapter::{Adapter, Adapters, LowRank, Replaced, RowAdapters, Scaled};
pub use attention::{AttentionConfig, QkNorm, QkNormConfig, QkNormPlace, Visible};
pub use config::{Bias, Config, Name, Names, NormConfig, NormParts, Positions, Prefix, RelativeBiasConfig, Slot, Tying};
pub use delta_net::DeltaNetConfig;
pub use dense::DenseConfig;
pub use layer::{BranchConfig, BranchInput, LayerConfig, OperationConfig, StepConfig};
pub use linear::{Linear, LinearId, Module, Role};
pub use mix::{MIXES, Mix};
pub use relative_bias::RELATIVE_BUCKETS;
pub use rope::{Pairs, QueryGrowth, Rope, Scaling};
pub use sentence::SentenceModule;
pub use short_conv::ShortConvConfig;
pub use state::{LayerState, StateKind, States};
pub use training::{Batch, Pass, TrainedModule, TrainedValues};
pub use transformer::{Changed, Step, Transformer};
pub use weights::{Entry, TensorSource, Weights};
