//! The gradient of a low-rank change: the network's forward pass, and back through it.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::adapter::{Adapters, RowAdapters};
use super::layer::{Call, Seen};
use super::linear::{Module, Role};
use super::transformer::{Transformer, sequences};
use crate::ops::{self, Context, Dropout, Gradient, Gradients, ParameterValues, Tape};

/// A module whose low-rank change is in training.
#[derive(Debug, Clone)]
pub struct TrainedModule {
    pub module: Module,
    pub rank: usize,
    /// `alpha / R`, or `alpha / √R`.
    pub scaling: f32,
    /// Its first value among those of all modules.
    pub start: usize,
}

impl TrainedModule {
    /// Where the values of `A` lie, `(R, inputs)`, row-major.
    pub fn a(&self) -> Range<usize> {
        self.start..self.start + self.rank * self.module.inputs
    }

    /// Where the values of `B` lie, `(outputs, R)`, row-major: behind those of `A`.
    pub fn b(&self) -> Range<usize> {
        let start = self.a().end;
        start..start + self.module.outputs * self.rank
    }
}

/// What is in training, and its values as they are: of each module `A` and `B`, one module after another.
#[derive(Clone, Copy)]
pub struct TrainedValues<'a> {
    pub modules: &'a [TrainedModule],
    pub values: &'a ParameterValues,
}

/// Sequences to learn from, one after another.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Below the vocabulary.
    pub ids: &'a [u32],
    /// They sum to the number of ids; none is 0.
    pub lengths: &'a [usize],
    /// Whether each token is to be predicted from those before it. The first of a sequence never counts.
    pub targets: &'a [bool],
}

/// How a pass is done.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Keep the inputs of layers alone and compute the rest a second time: less memory, a third more time.
    pub checkpointing: bool,
    pub dropout: Option<Dropout>,
    /// Read between layers: `true` stops.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

impl Transformer {
    /// The cross entropy of the targets, in nats: summed, not averaged. No dropout. `None` if it was stopped.
    ///
    /// # Errors
    /// A failed device operation; a network without an output matrix.
    pub fn loss(&self, batch: Batch<'_>, trained: TrainedValues<'_>, pass: Pass<'_>) -> Result<Option<f64>> {
        let adapters = Adapters::in_training(self, trained, None)?;
        let mut layers = Layers::new(self, batch, &adapters)?;
        for i in 0..self.config().layers.len() {
            if (pass.stop)() {
                return Ok(None);
            }
            layers.x = layers.forward(Context::forward(self.backend()), i)?;
        }
        Ok(Some(self.head_loss(&layers.x, batch, false)?.0))
    }

    /// The cross entropy of the targets, in nats: summed, not averaged; and its gradient for each value in training, where the network
    /// computes. `None` if it was stopped.
    ///
    /// # Errors
    /// A failed device operation; a network without an output matrix; a change that gets no gradient.
    pub fn gradients(
        &self,
        batch: Batch<'_>,
        trained: TrainedValues<'_>,
        pass: Pass<'_>,
    ) -> Result<Option<(f64, ParameterValues)>> {
        let backend = self.backend();
        let adapters = Adapters::in_training(self, trained, pass.dropout)?;
        let mut layers = Layers::new(self, batch, &adapters)?;
        // Below the first layer that is in training there is nothing to go back to.
        let layer = |trained: &TrainedModule| if let Role::Layer(layer) = trained.module.role { layer } else { 0 };
        let first = trained.modules.iter().map(layer).min().unwrap_or(0);
        // Of each layer from there on its input, and how to go back through it where that is kept.
        let mut passed = Vec::with_capacity(self.config().layers.len());
        for i in 0..self.config().layers.len() {
            if (pass.stop)() {
                return Ok(None);
            }
            if i < first {
                layers.x = layers.forward(Context::forward(backend), i)?;
                continue;
            }
            let input = layers.x.clone();
            let backward = if pass.checkpointing {
                layers.x = layers.forward(Context::forward(backend), i)?;
                None
            } else {
                let (output, tape) = layers.recorded(i, i > first || layers.trains_embedding)?;
                layers.x = output;
                Some((layers.x.clone(), tape))
            };
            passed.push((input, backward));
        }
        let (loss, gradient) = self.head_loss(&layers.x, batch, true)?;
        let mut gradients = Gradients::default();
        let mut gradient = gradient;
        for (offset, (input, backward)) in passed.into_iter().enumerate().rev() {
            if (pass.stop)() {
                return Ok(None);
            }
            let Some(of_output) = gradient else { break };
            let (output, tape) = match backward {
                Some(kept) => kept,
                None => {
                    layers.x = input.clone();
                    let before = layers.shared();
                    let recorded = layers.recorded(first + offset, offset > 0 || layers.trains_embedding)?;
                    // Later layers have read the keys and values that this one computed the first time.
                    before.iter().zip(&layers.shared()).try_for_each(|(old, new)| gradients.hand_over(old, new, backend))?;
                    recorded
                }
            };
            gradients.add(&output, of_output, backend)?;
            drop(output);
            tape.backward(&mut gradients)?;
            gradient = gradients.take(&input);
        }
        if let (Some(of_embedded), true) = (gradient, layers.trains_embedding) {
            gradients.add(&layers.embedded, of_embedded, backend)?;
        }
        layers.of_inputs.backward(&mut gradients)?;
        let mut parts = Vec::with_capacity(2 * trained.modules.len());
        for (number, trained) in trained.modules.iter().enumerate() {
            match gradients.trained.remove(&number) {
                Some(Gradient { a, b }) => parts.extend([a, b]),
                // No token went there.
                None if trained.module.of_experts => {
                    parts.push(ParameterValues::zeros(trained.a().len() + trained.b().len(), backend)?);
                }
                None => bail!("training: {} gets no gradient", trained.module.name),
            }
        }
        Ok(Some((loss, ParameterValues::concat(parts, backend)?)))
    }

    /// The loss at the last layer's output, and its gradient there.
    fn head_loss(&self, x: &Tensor, batch: Batch<'_>, with_gradient: bool) -> Result<(f64, Option<Tensor>)> {
        let (c, backend) = (self.config(), self.backend());
        let Some(product) = self.head() else { bail!("training: the model has no output matrix") };
        // The row of each target is that of the token before it.
        let rows: Vec<usize> = (1..batch.ids.len()).filter(|&t| batch.targets[t]).map(|t| t - 1).collect();
        let ids: Vec<u32> = rows.iter().map(|&row| batch.ids[row + 1]).collect();
        let tape = Tape::default();
        tape.track(x);
        let cx = Context { backend, tape: Some(&tape) };
        let normed = self.final_normed(cx, ops::select_rows(cx, x, &rows)?)?;
        let (loss, gradient) =
            ops::cross_entropy(backend, &normed, product, (c.logit_scale, c.logit_softcap), &ids, with_gradient)?;
        let Some(gradient) = gradient else { return Ok((loss, None)) };
        let mut gradients = Gradients::default();
        gradients.add(&normed, gradient, backend)?;
        tape.backward(&mut gradients)?;
        let Some(gradient) = gradients.take(x) else { bail!("training: the loss has no gradient") };
        Ok((loss, Some(gradient)))
    }
}

/// A forward pass, layer by layer.
struct Layers<'a> {
    network: &'a Transformer,
    call: Call<'a>,
    /// The output of the layer before.
    x: Tensor,
    /// The input of the first one.
    embedded: Tensor,
    /// The way back through the embedding, and through what layers take in besides the stream, if something of it is in training.
    of_inputs: Tape,
    trains_inputs: bool,
    trains_embedding: bool,
}

impl<'a> Layers<'a> {
    fn new(network: &'a Transformer, batch: Batch<'_>, adapters: &'a Adapters) -> Result<Self> {
        let (of_inputs, backend) = (Tape::default(), network.backend());
        let trains = |role| network.modules().iter().any(|module| module.role == role && adapters.at(module.linear).is_some());
        let trains_embedding = trains(Role::Embedding);
        // What layers take in is made of the embedding, too.
        let trains_inputs = trains_embedding || trains(Role::Beside);
        let cx = Context { backend, tape: trains_inputs.then_some(&of_inputs) };
        let x = network.embed(cx, &sequences(batch.ids, batch.lengths), &[], &RowAdapters::all(Some(adapters)))?;
        let mut call = network.whole_sequences(batch.lengths, Some(adapters))?;
        call.layer_inputs = network.layer_inputs(cx, &x, batch.ids, &call.adapters)?;
        Ok(Self { network, call, embedded: x.clone(), x, of_inputs, trains_inputs, trains_embedding })
    }

    /// The keys and values that others than their own layer read, as far as they are computed.
    fn shared(&self) -> Vec<Tensor> {
        match &self.call.seen {
            Seen::Nothing(_, shared) => shared.values().flatten().flatten().cloned().collect(),
            Seen::Past(_) => Vec::new(),
        }
    }

    fn forward(&mut self, cx: Context<'_>, i: usize) -> Result<Tensor> {
        self.network.layer(cx, i, self.x.clone(), &mut self.call)
    }

    /// The layer's output, and the backward pass, to its input as well if that `has_gradient`.
    fn recorded(&mut self, i: usize, has_gradient: bool) -> Result<(Tensor, Tape)> {
        let tape = Tape::default();
        if has_gradient {
            tape.track(&self.x);
        }
        // Their gradients wait for the layers that they are from.
        self.shared().iter().chain(self.call.layer_inputs.get(i).filter(|_| self.trains_inputs)).for_each(|x| tape.track(x));
        let output = self.forward(Context { backend: self.network.backend(), tape: Some(&tape) }, i)?;
        Ok((output, tape))
    }
}
