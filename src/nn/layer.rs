//! A layer: residual steps, each the sum of its branches between norms.
//!
//! `x <- norm_sum(x + residual_scale · norm_out(Σ output_scale_b · norm_out_b(op_b(input_scale_b · norm_in_b(x)))))`. Llama is two steps of one
//! branch, Cohere and Phi one step of two. Of some families the output of all steps is multiplied by a stored number.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::attention::{Attention, AttentionConfig};
use super::config::Name;
use super::delta_net::{DeltaNet, DeltaNetConfig};
use super::dense::{Dense, DenseConfig};
use super::experts::{Experts, ExpertsConfig};
use super::loader::Loader;
use super::mamba2::{Mamba2, Mamba2Config};
use super::per_layer::{LayerInput, LayerInputConfig};
use super::rope::RopeAngles;
use super::short_conv::{ShortConv, ShortConvConfig};
use super::{LayerState, Linear, Rope, RowAdapters, States};
use crate::error;
use crate::ops::{
    self, BranchPart, Context, Convolution, Mask, Masks, Norm, OperationPart, ResidualPart, ScanShape, Sequences, Unsupported,
    Vector,
};

#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    pub steps: Vec<StepConfig>,
    /// A factor of the layer's output: a full name.
    pub scalar: Option<Name>,
    /// Full names of tensors that some checkpoints hold and nothing reads.
    pub unused: &'static [Name],
}

#[derive(Debug, Clone, PartialEq)]
pub struct StepConfig {
    pub branches: Vec<BranchConfig>,
    /// Of the sum of the branches.
    pub norm_out: Option<Name>,
    /// Of the sum with the stream.
    pub norm_sum: Option<Name>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct BranchConfig {
    pub input: BranchInput,
    pub operation: OperationConfig,
    pub norm_out: Option<Name>,
    /// Factors of what it reads, and of what it gives.
    pub input_scale: f32,
    pub output_scale: f32,
}

impl BranchConfig {
    /// Without a factor.
    pub fn new(input: BranchInput, operation: OperationConfig, norm_out: Option<Name>) -> Self {
        Self { input, operation, norm_out, input_scale: 1.0, output_scale: 1.0 }
    }
}

/// What a branch reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BranchInput {
    /// The stream, behind a norm where there is one.
    Stream(Option<Name>),
    /// What the branch before reads.
    Shared,
}

/// What a branch does. Attention, short convolutions, delta nets and Mamba 2 mix tokens and have a state; MLPs and experts see each token alone, and so
/// does what takes in a layer's part of the per-layer embedding.
#[derive(Debug, Clone, PartialEq)]
pub enum OperationConfig {
    Attention(Box<AttentionConfig>),
    ShortConv(Box<ShortConvConfig>),
    DeltaNet(Box<DeltaNetConfig>),
    Mamba2(Box<Mamba2Config>),
    Dense(Box<DenseConfig>),
    Experts(Box<ExpertsConfig>),
    LayerInput(Box<LayerInputConfig>),
}

impl LayerConfig {
    pub fn operations(&self) -> impl Iterator<Item = &OperationConfig> {
        self.steps.iter().flat_map(|step| &step.branches).map(|branch| &branch.operation)
    }
}

impl OperationConfig {
    pub fn attention(&self) -> Option<&AttentionConfig> {
        if let Self::Attention(attention) = self { Some(attention) } else { None }
    }

    /// Whether tokens see each other in it.
    fn is_mixer(&self) -> bool {
        match self {
            Self::Attention(_) | Self::ShortConv(_) | Self::DeltaNet(_) | Self::Mamba2(_) => true,
            Self::Dense(_) | Self::Experts(_) | Self::LayerInput(_) => false,
        }
    }

    pub fn forward_values(&self) -> usize {
        match self {
            Self::Attention(attention) => attention.forward_values(),
            Self::ShortConv(conv) => conv.forward_values(),
            Self::DeltaNet(net) => net.forward_values(),
            Self::Mamba2(mamba) => mamba.forward_values(),
            Self::Dense(dense) => dense.forward_values(),
            Self::Experts(experts) => experts.forward_values(),
            Self::LayerInput(input) => input.forward_values(),
        }
    }

    pub fn backward_values(&self) -> usize {
        match self {
            Self::Attention(attention) => attention.backward_values(),
            Self::ShortConv(conv) => conv.backward_values(),
            Self::DeltaNet(net) => net.backward_values(),
            Self::Mamba2(mamba) => mamba.backward_values(),
            Self::Dense(dense) => dense.backward_values(),
            Self::Experts(experts) => experts.backward_values(),
            Self::LayerInput(input) => input.backward_values(),
        }
    }
}

/// What the layers of one pass share.
pub struct Call<'a> {
    /// Of each of the network's ropes.
    pub angles: Vec<RopeAngles>,
    pub adapters: RowAdapters<'a>,
    pub seen: Seen<'a>,
    /// What each layer takes in besides the stream, `(T, dim)`; none in most networks.
    pub layer_inputs: Vec<Tensor>,
}

/// What the rows of a pass see besides one another.
pub enum Seen<'a> {
    /// Rows of several sequences, each behind what its states hold; these take them up.
    Past(Vec<StepRows<'a>>),
    /// Nothing: they are whole sequences.
    Nothing(Sequences, SharedKeys),
}

/// Keys and values of a pass over whole sequences that others than their own mixer read: by the number of that mixer, once it has run.
pub type SharedKeys = BTreeMap<usize, Option<[Tensor; 2]>>;

/// The rows of one step of a pass.
pub struct StepRows<'a> {
    pub rows: Range<usize>,
    pub states: &'a mut States,
    pub masks: Masks,
}

impl Call<'_> {
    /// Attention of all rows, by the mixer of this number, or over the keys and values that it has computed.
    ///
    /// # Shape
    /// `q`: `(T, H · D)`, `kv`: `(T, K · D)` each; returns `(T, H · D)`.
    pub(super) fn attend(
        &mut self,
        cx: Context<'_>,
        q: &Tensor,
        kv: Option<&[Tensor; 2]>,
        (heads, kv_heads): (usize, usize),
        (mask, sinks): (Mask, Option<&Vector>),
        number: usize,
    ) -> Result<Tensor> {
        let over_state = |q: &Tensor, kv: Option<[&Tensor; 2]>, step: &mut StepRows<'_>| match step.states.at(number) {
            LayerState::Kv(cache) => ops::attention(q, kv, heads, mask, sinks, cache, &mut step.masks),
            LayerState::Conv(_) | LayerState::Scan(..) => bail!("attention met the state of another mixer"),
        };
        match (&mut self.seen, kv) {
            (Seen::Past(steps), Some([k, v])) => by_step(steps, [q, k, v], |[q, k, v], step| over_state(q, Some([k, v]), step)),
            (Seen::Past(steps), None) => by_step(steps, [q], |[q], step| over_state(q, None, step)),
            (Seen::Nothing(sequences, shared), kv) => {
                if let (Some(kv), Some(kept)) = (kv, shared.get_mut(&number)) {
                    *kept = Some(kv.clone());
                }
                let Some([k, v]) = kv.or(shared.get(&number).and_then(Option::as_ref)) else {
                    bail!("attention over keys that are not there yet")
                };
                ops::attention_within(cx, [q, k, v], heads, kv_heads, mask, sinks, sequences)
            }
        }
    }

    /// The short convolution of all rows, by the mixer of this number.
    ///
    /// # Shape
    /// `x`: `(T, channels)`; returns the same.
    pub(super) fn convolve(&mut self, cx: Context<'_>, x: &Tensor, by: &Convolution, number: usize) -> Result<Tensor> {
        match &mut self.seen {
            Seen::Nothing(sequences, _) => ops::convolution_within(cx, x, by, sequences),
            Seen::Past(steps) => by_step(steps, [x], |[x], step| match step.states.at(number) {
                LayerState::Conv(conv) | LayerState::Scan(conv, _) => ops::convolution(x, by, conv),
                LayerState::Kv(_) => bail!("a convolution met keys and values"),
            }),
        }
    }

    /// A scan over all rows, by the mixer of this number.
    ///
    /// # Shape
    /// `q`, `k`: `(T, G · N)`, `v`: `(T, H · P)`, `g`, `beta`: `(T, H)`, `skip`: `(H)`; returns `(T, H · P)`.
    pub(super) fn scan(
        &mut self,
        cx: Context<'_>,
        inputs: [&Tensor; 5],
        (shape, skip): (ScanShape, Option<&Vector>),
        number: usize,
    ) -> Result<Tensor> {
        match &mut self.seen {
            Seen::Nothing(sequences, _) => ops::scan_within(cx, inputs, shape, skip, sequences),
            Seen::Past(steps) => by_step(steps, inputs, |inputs, step| match step.states.at(number) {
                LayerState::Scan(_, scan) => ops::scan(inputs, skip, scan),
                LayerState::Kv(_) | LayerState::Conv(_) => bail!("a scan met the state of another mixer"),
            }),
        }
    }
}

/// Does work on the rows of each step.
fn by_step<'a, const N: usize>(
    steps: &mut [StepRows<'a>],
    inputs: [&Tensor; N],
    work: impl Fn([&Tensor; N], &mut StepRows<'a>) -> Result<Tensor>,
) -> Result<Tensor> {
    if let [step] = steps {
        return work(inputs, step);
    }
    let mut outputs = Vec::with_capacity(steps.len());
    for step in steps {
        let mut rows = Vec::with_capacity(N);
        for input in inputs {
            rows.push(ops::narrow_rows(input, step.rows.clone())?);
        }
        outputs.push(work(std::array::from_fn(|i| &rows[i]), step)?);
    }
    ops::stack_rows(&outputs)
}

/// A loaded layer.
#[derive(Clone)]
pub struct Layer {
    number: usize,
    residual_scale: f32,
    steps: Vec<ResidualStep>,
    scalar: Option<f32>,
}

#[derive(Clone)]
struct ResidualStep {
    branches: Vec<Branch>,
    norm_out: Option<Norm>,
    norm_sum: Option<Norm>,
}

#[derive(Clone)]
struct Branch {
    input: Input,
    operation: Operation,
    norm_out: Option<Norm>,
    input_scale: f32,
    output_scale: f32,
    /// Whether something of it is computed for all rows at once: what its mixer found, or an input that branches share.
    is_prepared: bool,
}

#[derive(Clone)]
enum Input {
    Stream(Option<Norm>),
    Shared,
}

#[derive(Clone)]
enum Operation {
    Attention(Box<Attention>),
    ShortConv(Box<ShortConv>),
    DeltaNet(Box<DeltaNet>),
    Mamba2(Box<Mamba2>),
    Dense(Box<Dense>),
    Experts(Box<Experts>),
    LayerInput(Box<LayerInput>),
}

/// What the rows of a step need that are each for itself.
#[derive(Clone, Copy)]
struct EachRow<'a> {
    residual_scale: f32,
    adapters: &'a RowAdapters<'a>,
    /// What the layer takes in besides the stream, `(T, dim)`.
    layer_input: Option<&'a Tensor>,
}

impl Layer {
    pub(super) fn load(
        config: &LayerConfig,
        (hidden_size, residual_scale): (usize, f32),
        ropes: &[Arc<Rope>],
        loader: &mut Loader<'_, '_>,
    ) -> error::Result<Self> {
        let mut steps = Vec::with_capacity(config.steps.len());
        for step in &config.steps {
            let mut branches = Vec::with_capacity(step.branches.len());
            for (i, branch) in step.branches.iter().enumerate() {
                let BranchConfig { input, operation, norm_out, input_scale, output_scale } = branch;
                let shares = |number: usize| step.branches.get(number).is_some_and(|branch| branch.input == BranchInput::Shared);
                let is_prepared = operation.is_mixer() || shares(i) || shares(i + 1);
                let input = match input {
                    BranchInput::Stream(norm) => Input::Stream(loader.optional_norm(*norm, hidden_size)?),
                    BranchInput::Shared => Input::Shared,
                };
                let operation = match operation {
                    OperationConfig::Attention(config) => {
                        Operation::Attention(Box::new(Attention::load(config, ropes, hidden_size, loader)?))
                    }
                    OperationConfig::ShortConv(config) => {
                        Operation::ShortConv(Box::new(ShortConv::load(config, hidden_size, loader)?))
                    }
                    OperationConfig::DeltaNet(config) => {
                        Operation::DeltaNet(Box::new(DeltaNet::load(config, hidden_size, loader)?))
                    }
                    OperationConfig::Mamba2(config) => Operation::Mamba2(Box::new(Mamba2::load(config, hidden_size, loader)?)),
                    OperationConfig::Dense(config) => Operation::Dense(Box::new(Dense::load(config, hidden_size, loader)?)),
                    OperationConfig::Experts(config) => Operation::Experts(Box::new(Experts::load(config, loader)?)),
                    OperationConfig::LayerInput(config) => {
                        Operation::LayerInput(Box::new(LayerInput::load(config, hidden_size, loader)?))
                    }
                };
                let norm_out = loader.optional_norm(*norm_out, hidden_size)?;
                let (input_scale, output_scale) = (*input_scale, *output_scale);
                branches.push(Branch { input, operation, norm_out, input_scale, output_scale, is_prepared });
            }
            let norm_out = loader.optional_norm(step.norm_out, hidden_size)?;
            let norm_sum = loader.optional_norm(step.norm_sum, hidden_size)?;
            steps.push(ResidualStep { branches, norm_out, norm_sum });
        }
        loader.skip(config.unused);
        let scalar = match config.scalar {
            // Nothing in a dry run.
            Some(name) => loader.values(name, 1)?.first().copied(),
            None => None,
        };
        Ok(Self { number: loader.layer(), residual_scale, steps, scalar })
    }

    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.steps.iter().flat_map(|step| &step.branches).flat_map(|branch| match &branch.operation {
            Operation::Attention(attention) => Vec::from(attention.linears()),
            Operation::ShortConv(conv) => Vec::from(conv.linears()),
            Operation::DeltaNet(net) => Vec::from(net.linears()),
            Operation::Mamba2(mamba) => Vec::from(mamba.linears()),
            Operation::Dense(dense) => Vec::from(dense.linears()),
            Operation::Experts(experts) => experts.linears().collect(),
            Operation::LayerInput(input) => Vec::from(input.linears()),
        })
    }

    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.steps.iter_mut().flat_map(|step| &mut step.branches).flat_map(|branch| match &mut branch.operation {
            Operation::Attention(attention) => Vec::from(attention.linears_mut()),
            Operation::ShortConv(conv) => Vec::from(conv.linears_mut()),
            Operation::DeltaNet(net) => Vec::from(net.linears_mut()),
            Operation::Mamba2(mamba) => Vec::from(mamba.linears_mut()),
            Operation::Dense(dense) => Vec::from(dense.linears_mut()),
            Operation::Experts(experts) => experts.linears_mut().collect(),
            Operation::LayerInput(input) => Vec::from(input.linears_mut()),
        })
    }

    /// What its steps are to a GPU's kernels.
    pub(super) fn parts(&self) -> std::result::Result<Vec<ResidualPart<'_>>, Unsupported> {
        let parts = self.steps.iter().map(|step| step.part(self.residual_scale, self.number));
        let mut parts = parts.collect::<std::result::Result<Vec<_>, _>>()?;
        if let (Some(factor), Some(last)) = (self.scalar, parts.last_mut()) {
            last.factor = factor;
        }
        Ok(parts)
    }

    /// # Shape
    /// `x`: `(T, C)`; returns the same.
    pub(super) fn forward(&self, cx: Context<'_>, mut x: Tensor, call: &mut Call<'_>) -> Result<Tensor> {
        let mut left = &self.steps[..];
        while let [first, rest @ ..] = left {
            // A mixer needs all rows, and so does an input that branches share. From behind them to the next ones each row is for
            // itself, and may be taken in blocks.
            let alone = rest.iter().take_while(|step| !step.needs_all_rows()).count();
            let (alone, next) = rest.split_at(alone);
            let mut inputs = vec![x.clone()];
            inputs.extend(first.prepared(cx, &x, call)?);
            let prepared = inputs.len();
            inputs.extend(call.layer_inputs.get(self.number).cloned());
            let adapters = &call.adapters;
            let work = |rows: Range<usize>, inputs: &[Tensor]| {
                let adapters = &adapters.narrow(rows);
                let each = EachRow { residual_scale: self.residual_scale, adapters, layer_input: inputs.get(prepared) };
                let x = first.add(cx, &inputs[0], &inputs[1..prepared], each)?;
                alone.iter().try_fold(x, |x, step| step.add(cx, &x, &[], each))
            };
            drop(x);
            x = if adapters.count_rows() {
                work(0..ops::row_count(&inputs[0]), &inputs)?
            } else {
                ops::by_row_blocks(cx, &inputs, work)?
            };
            left = next;
        }
        match self.scalar {
            Some(factor) => ops::scale(cx, x, factor),
            None => Ok(x),
        }
    }
}

impl Branch {
    /// `layer`: the number of the layer that it is of.
    fn part(&self, layer: usize) -> std::result::Result<BranchPart<'_>, Unsupported> {
        // Every field by its name: what is added to a branch is decided on here.
        let Self { input, operation, norm_out, input_scale, output_scale, is_prepared: _ } = self;
        if *input_scale != 1.0 || *output_scale != 1.0 {
            return Unsupported::new("factors of a branch");
        }
        let input = match input {
            Input::Stream(norm) => Some(norm.as_ref()),
            Input::Shared => None,
        };
        let operation = match operation {
            Operation::Attention(attention) => OperationPart::Attention(attention.part()?),
            Operation::Dense(dense) => OperationPart::Mlp(dense.part()?),
            Operation::ShortConv(conv) => OperationPart::ShortConv(conv.part()),
            Operation::DeltaNet(net) => OperationPart::DeltaNet(net.part()),
            Operation::Mamba2(_) => return Unsupported::new("state-space layers"),
            Operation::Experts(_) => return Unsupported::new("experts"),
            Operation::LayerInput(input) => OperationPart::LayerInput(input.part(layer)),
        };
        Ok(BranchPart { input, operation, norm_out: norm_out.as_ref() })
    }
}

impl ResidualStep {
    fn part(&self, scale: f32, layer: usize) -> std::result::Result<ResidualPart<'_>, Unsupported> {
        let Self { branches, norm_out, norm_sum } = self;
        let branches = branches.iter().map(|branch| branch.part(layer)).collect::<std::result::Result<_, _>>()?;
        Ok(ResidualPart { branches, norm_out: norm_out.as_ref(), norm_sum: norm_sum.as_ref(), scale, factor: 1.0 })
    }

    fn needs_all_rows(&self) -> bool {
        self.branches.iter().any(|branch| branch.is_prepared)
    }

    /// What of the branches is computed for all rows: of a mixer its output, else the input; in their order.
    fn prepared(&self, cx: Context<'_>, x: &Tensor, call: &mut Call<'_>) -> Result<Vec<Tensor>> {
        let mut prepared = Vec::new();
        let mut before: Option<Tensor> = None;
        for branch in self.branches.iter().filter(|branch| branch.is_prepared) {
            let input = match (&branch.input, before) {
                (Input::Stream(norm), _) => ops::optional_norm(cx, x.clone(), norm.as_ref())?,
                (Input::Shared, Some(before)) => before,
                (Input::Shared, None) => bail!("a step whose first branch shares an input"),
            };
            let scaled = ops::scaled(cx, &input, branch.input_scale)?;
            prepared.push(match &branch.operation {
                Operation::Attention(attention) => attention.mix(cx, &scaled, call)?,
                Operation::ShortConv(conv) => conv.mix(cx, &scaled, call)?,
                Operation::DeltaNet(net) => net.mix(cx, &scaled, call)?,
                Operation::Mamba2(mamba) => mamba.mix(cx, &scaled, call)?,
                Operation::Dense(_) | Operation::Experts(_) | Operation::LayerInput(_) => scaled,
            });
            before = Some(input);
        }
        Ok(prepared)
    }

    /// The rest of the step, each row for itself.
    ///
    /// # Shape
    /// `x`: `(T, C)`, `prepared`: the same rows of what [`prepared`](Self::prepared) gave; returns `(T, C)`.
    fn add(&self, cx: Context<'_>, x: &Tensor, prepared: &[Tensor], each: EachRow<'_>) -> Result<Tensor> {
        let adapters = each.adapters;
        let mut prepared = prepared.iter();
        let mut outputs = Vec::with_capacity(self.branches.len());
        for branch in &self.branches {
            let ready = if branch.is_prepared { prepared.next().cloned() } else { None };
            let input = match (ready, &branch.input) {
                (Some(ready), _) => ready,
                (None, Input::Stream(norm)) => {
                    ops::scaled(cx, &ops::optional_norm(cx, x.clone(), norm.as_ref())?, branch.input_scale)?
                }
                (None, Input::Shared) => bail!("a branch without its input"),
            };
            let output = match &branch.operation {
                Operation::Attention(attention) => attention.project(cx, &input, adapters)?,
                Operation::ShortConv(conv) => conv.project(cx, &input, adapters)?,
                Operation::DeltaNet(net) => net.project(cx, &input, adapters)?,
                Operation::Mamba2(mamba) => mamba.project(cx, &input, adapters)?,
                Operation::Dense(dense) => dense.forward(cx, &input, adapters)?,
                Operation::Experts(experts) => experts.forward(cx, &input, x, adapters)?,
                Operation::LayerInput(taken) => {
                    let Some(values) = each.layer_input else { bail!("a layer without its part of the per-layer embedding") };
                    taken.forward(cx, &input, values, adapters)?
                }
            };
            outputs.push((ops::optional_norm(cx, output, branch.norm_out.as_ref())?, branch.output_scale));
        }
        self.sum(cx, x, outputs, each.residual_scale)
    }

    /// Adds what the branches gave, each times its factor, to the stream. Where nothing stands in between, one by one.
    fn sum(&self, cx: Context<'_>, x: &Tensor, outputs: Vec<(Tensor, f32)>, scale: f32) -> Result<Tensor> {
        let mut outputs = outputs.into_iter();
        let (mut stream, Some((mut last, mut factor))) = (x.clone(), outputs.next()) else { return Ok(x.clone()) };
        if self.norm_out.is_some() {
            last = ops::scaled(cx, &last, std::mem::replace(&mut factor, 1.0))?;
        }
        for (output, next) in outputs {
            match self.norm_out {
                Some(_) => last = ops::add_scaled(cx, &last, output, next, None)?,
                None => {
                    stream = ops::add_scaled(cx, &stream, last, scale * factor, None)?;
                    (last, factor) = (output, next);
                }
            }
        }
        let last = ops::optional_norm(cx, last, self.norm_out.as_ref())?;
        ops::add_scaled(cx, &stream, last, scale * factor, self.norm_sum.as_ref())
    }
}
