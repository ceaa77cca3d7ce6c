//! Mixture of experts: a token goes through a few MLPs of many, which a router chooses for it.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::config::{Bias, Name, Slot};
use super::dense::{Dense, DenseConfig};
use super::linear::{ExpertStack, Restored};
use super::loader::Loader;
use super::mix::Part;
use super::{Linear, RowAdapters};
use crate::error;
use crate::ops::{self, Activation, Context, ExpertRows, GateClamp, Norm, Routed, Routing, Scoring, Vector};

/// The sum of the chosen experts' outputs, each times its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsConfig {
    pub count: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// A row an expert.
    pub router: Slot,
    pub scoring: Scoring,
    /// Weights are divided by their sum and this number; `None` = they are the scores.
    pub normalise: Option<f32>,
    /// Factor of the weights.
    pub scale: f32,
    /// Added to the scores for the choice alone: a full name.
    pub bias: Option<Name>,
    /// Where each has tensors of its own.
    pub apart: Option<ExpertNames>,
    /// Where all are in two tensors, `(experts, gate and up, inputs)`, or up alone, and `(experts, outputs, inputs)`: their full names. One
    /// of the two is there; of a family that has both, what the checkpoint holds is read.
    pub stacks: Option<(Name, Name)>,
    /// What transformers 5 has as router and stacks, where that is something else than what it publishes: it may save them so.
    pub younger: Option<(Name, (Name, Name))>,
    /// Where MLX's converter has all of a projection in one tensor, `(experts, outputs, inputs)`; it is read where it is there.
    pub mlx: Option<ExpertNames>,
    /// The modules and parameters by which transformers has the matrices of all experts, in front and behind; that of transformers 5 first.
    pub parameters: &'static [[(Name, Name); 2]],
    /// `(E)`, a factor of each expert's weights: a full name.
    pub factors: Option<Name>,
    /// The router reads the stream in front of the branch, normalised, times this and divided by √C: a full name.
    pub router_norm: Option<Name>,
    /// An MLP that every token goes through.
    pub shared: Option<SharedExpertConfig>,
    /// Of the router, and of every expert's projections.
    pub biases: Bias,
    /// Instead of the activation alone.
    pub clamp: Option<GateClamp>,
    /// Whether a checkpoint of safetensors holds them by inputs, in stacks that are taken apart when they are read.
    pub is_stack_of_inputs: bool,
    /// Of how many equal groups of neighbours so many are chosen from. (1, 1) = from all.
    pub groups: (usize, usize),
    /// Experts work on rows of this projection of what the branch reads, and another one makes of their sum what it gives.
    pub latent: Option<LatentConfig>,
    /// Whether each has a gate.
    pub is_gated: bool,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub activation: Activation,
}

/// Rows of another width, `(size)`, that experts work on.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentConfig {
    pub size: usize,
    pub input: Slot,
    pub output: Slot,
    pub bias: Bias,
}

/// An expert's tensors; `{}` is its number, where it is not one tensor of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// Read where they have gates.
    pub gate: Name,
    pub up: Name,
    pub down: Name,
}

impl ExpertNames {
    /// The name of an expert's tensor.
    pub fn of(name: Name, number: usize) -> String {
        name.replace("{}", &number.to_string())
    }
}

/// An MLP beside experts, times the sigmoid of one number of each token where there is a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedExpertConfig {
    pub dense: DenseConfig,
    pub gate: Option<Slot>,
}

impl ExpertsConfig {
    /// One of them, as the checkpoint holds it.
    fn dense(&self, number: usize, place: ExpertPlace) -> DenseConfig {
        let (size, width) = (self.intermediate_size, self.width());
        let (gate, up, down) = match place {
            ExpertPlace::Apart(ExpertNames { gate, up, down }) => {
                let slot = |name: Name, rows| Slot::whole(ExpertNames::of(name, number), rows);
                (self.is_gated.then(|| slot(gate, size)), slot(up, size), slot(down, width))
            }
            ExpertPlace::Each(ExpertNames { gate, up, down }) => {
                let slot = |name: Name, rows| {
                    Slot::of_stack(format!("{name}.weight"), (number * rows, rows), self.count.saturating_mul(rows))
                };
                (self.is_gated.then(|| slot(gate, size)), slot(up, size), slot(down, width))
            }
            ExpertPlace::Stacks(gate_up, down) => {
                let parts = if self.is_gated { 2 } else { 1 };
                let (start, total) = (number * parts * size, self.count * parts * size);
                let part = |part: usize| Slot::of_stack(gate_up, (start + part * size, size), total);
                (
                    self.is_gated.then(|| part(0)),
                    part(parts - 1),
                    Slot::of_stack(down, (number * width, width), self.count * width),
                )
            }
        };
        let Self { biases: bias, activation, clamp, .. } = *self;
        DenseConfig { intermediate_size: size, gate, up, down, mlx: None, bias, activation, clamp, gate_scale: 1.0 }
    }

    /// Notes what transformers has all of them as.
    fn note_parameters(&self, each: &[Dense], loader: &mut Loader<'_, '_>) {
        let up = self.intermediate_size * if self.is_gated { 2 } else { 1 };
        for (position, (inputs, outputs)) in [(self.width(), up), (self.intermediate_size, self.width())].into_iter().enumerate()
        {
            let name = |both: &[(Name, Name); 2]| (loader.in_layer(both[position].0), both[position].1);
            let names = self.parameters.iter().map(name).collect();
            let linears = each.iter().map(|dense| dense.linears()[position].id).collect();
            let alternates = self.is_stack_of_inputs && position == 0;
            let role = loader.role();
            loader.note_stack(ExpertStack { names, position, inputs, outputs, alternates, role, linears });
        }
    }

    /// Notes what the tensors of MLX's converter, one of all experts for each projection, were before.
    fn restore(&self, names: ExpertNames, loader: &mut Loader<'_, '_>) {
        let Self { count, intermediate_size: size, is_gated, .. } = *self;
        let width = self.width();
        let of =
            |name: Name, number: usize, rows: usize| (loader.at(&format!("{name}.weight")), number * rows..(number + 1) * rows);
        let mut all = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, pieces: Vec<(String, Range<usize>)>| {
            all.push(Restored { name, shape, pieces, each: 1, plus: 0.0 });
        };
        if let Some(own) = self.apart {
            let gate = (own.gate, names.gate, size, width);
            let each = [(own.up, names.up, size, width), (own.down, names.down, width, size)];
            for (own, stored, rows, cols) in is_gated.then_some(gate).into_iter().chain(each) {
                for number in 0..count {
                    let name = loader.at(&ExpertNames::of(own, number));
                    add(format!("{name}.weight"), vec![rows, cols], vec![of(stored, number, rows)]);
                    if self.biases == Bias::Stored {
                        let bias = (loader.at(&format!("{stored}.bias")), number..number + 1);
                        add(format!("{name}.bias"), vec![1, rows], vec![bias]);
                    }
                }
            }
        } else if let Some((gate_up, down)) = self.stacks {
            let gate = |number| is_gated.then(|| of(names.gate, number, size));
            let both = (0..count).flat_map(|number| gate(number).into_iter().chain([of(names.up, number, size)])).collect();
            add(loader.at(gate_up), vec![count, size * if is_gated { 2 } else { 1 }, width], both);
            let all = (0..count).map(|number| of(names.down, number, width)).collect();
            add(loader.at(down), vec![count, width, size], all);
        }
        all.into_iter().for_each(|restored| loader.restore(restored));
    }

    /// The same by the names that the checkpoint has.
    fn as_stored(&self, has: impl Fn(&str) -> bool) -> Cow<'_, Self> {
        match self.younger {
            Some((router, stacks)) if has(stacks.1) => {
                Cow::Owned(Self { router: Slot::whole(router, self.count), apart: None, stacks: Some(stacks), ..self.clone() })
            }
            _ => Cow::Borrowed(self),
        }
    }

    /// The width of what an expert reads and gives.
    pub fn width(&self) -> usize {
        self.latent.as_ref().map_or(self.hidden_size, |latent| latent.size)
    }

    /// See [`Config::forward_values`](super::Config::forward_values). The rows of one expert are at most all, and what experts give is
    /// kept until it is added up.
    pub fn forward_values(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |shared| shared.dense.forward_values() + self.hidden_size);
        2 * self.count + (3 + self.top_k) * self.hidden_size + 3 * self.intermediate_size + shared
    }

    /// See [`Config::backward_values`](super::Config::backward_values).
    pub fn backward_values(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |shared| shared.dense.backward_values() + 2 * self.hidden_size);
        2 * self.count + self.top_k * (2 * self.hidden_size + 3 * self.intermediate_size) + shared
    }
}

#[derive(Clone, Copy)]
enum ExpertPlace {
    Apart(ExpertNames),
    Each(ExpertNames),
    Stacks(Name, Name),
}

/// Loaded experts.
#[derive(Clone)]
pub struct Experts {
    routing: Routing,
    router_norm: Option<Norm>,
    router: Linear,
    /// In front of them, and behind their sum.
    latent: Option<[Linear; 2]>,
    each: Vec<Dense>,
    shared: Option<(Dense, Option<Linear>)>,
}

impl Experts {
    pub(super) fn load(config: &ExpertsConfig, loader: &mut Loader<'_, '_>) -> error::Result<Self> {
        let stored = config.as_stored(|name| loader.weights.has(&loader.at(name)));
        let config = stored.as_ref();
        let shared = match &config.shared {
            Some(SharedExpertConfig { dense, gate }) => {
                let gate = gate.as_ref().map(|gate| loader.linear(&[(gate, Part::Router)], config.hidden_size, Bias::None));
                Some((Dense::load(dense, config.hidden_size, loader)?, gate.transpose()?))
            }
            None => None,
        };
        let latent = match &config.latent {
            Some(LatentConfig { size, input, output, bias }) => Some([
                loader.linear(&[(input, Part::Other)], config.hidden_size, *bias)?,
                loader.linear(&[(output, Part::Other)], *size, *bias)?,
            ]),
            None => None,
        };
        loader.enter_experts();
        let router_norm = match config.router_norm {
            Some(name) => {
                let mut weight = loader.values(name, config.hidden_size)?;
                weight.iter_mut().for_each(|x| *x /= (config.hidden_size as f32).sqrt());
                let weight = Some(Vector::new(weight, loader.weights.backend())?);
                Some(Norm { weight, ..loader.bare_norm(config.hidden_size) })
            }
            None => None,
        };
        let router = loader.linear(&[(&config.router, Part::Router)], config.hidden_size, config.biases)?;
        let mut vector = |name: Option<Name>| match name {
            Some(name) => {
                let name = loader.at(name);
                loader.weights.vector(&name, config.count, 0.0).map(Some)
            }
            None => Ok(None),
        };
        let (bias, factors) = (vector(config.bias)?, vector(config.factors)?);
        let mlx = config.mlx.filter(|names| loader.weights.has(&loader.at(&format!("{}.weight", names.down))));
        let place = match (mlx, config.apart, config.stacks) {
            (Some(names), ..) => ExpertPlace::Each(names),
            (None, _, Some((gate_up, down))) if loader.weights.has(&loader.at(down)) => ExpertPlace::Stacks(gate_up, down),
            (None, Some(names), _) => ExpertPlace::Apart(names),
            (None, None, Some((gate_up, down))) => ExpertPlace::Stacks(gate_up, down),
            (None, None, None) => return Err(error::Error::format("experts: a family that has no names for them")),
        };
        let dense = |number| Dense::load(&config.dense(number, place), config.width(), loader);
        let each: Vec<Dense> = (0..config.count).map(dense).collect::<error::Result<_>>()?;
        loader.leave_experts();
        config.note_parameters(&each, loader);
        if let Some(names) = mlx {
            config.restore(names, loader);
        }
        let ExpertsConfig { top_k, scoring, normalise, scale, groups, .. } = *config;
        let routing = Routing { top_k, scoring, normalise, scale, bias, factors, groups };
        Ok(Self { routing, router_norm, router, latent, each, shared })
    }

    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let shared = self.shared.iter().flat_map(|(dense, gate)| dense.linears().into_iter().chain(gate));
        let latent = self.latent.iter().flatten();
        shared.chain(latent).chain([&self.router]).chain(self.each.iter().flat_map(Dense::linears))
    }

    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let shared = self.shared.iter_mut().flat_map(|(dense, gate)| dense.linears_mut().into_iter().chain(gate));
        let latent = self.latent.iter_mut().flatten();
        shared.chain(latent).chain([&mut self.router]).chain(self.each.iter_mut().flat_map(Dense::linears_mut))
    }

    /// Each expert reads the rows that went to it, and no other's weights are touched.
    ///
    /// # Shape
    /// `x`, `stream`, which the branch is added to: `(T, C)`; returns the same.
    pub(super) fn forward(&self, cx: Context<'_>, x: &Tensor, stream: &Tensor, adapters: &RowAdapters<'_>) -> Result<Tensor> {
        let logits = match &self.router_norm {
            Some(norm) => self.router.forward(cx, &ops::norm(cx, stream, norm)?, adapters)?,
            None => self.router.forward(cx, x, adapters)?,
        };
        let Routed { rows, weights } = ops::route(cx, &logits, &self.routing)?;
        if rows.len() != self.each.len() {
            bail!("experts: expected logits of {}, found those of {}", self.each.len(), rows.len())
        }
        let latent = match &self.latent {
            Some([input, _]) => Some(input.forward(cx, x, adapters)?),
            None => None,
        };
        let read = latent.as_ref().unwrap_or(x);
        let mut parts = Vec::new();
        for (expert, rows) in rows.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let own = ops::select_rows(cx, read, &rows)?;
            let output = self.each[expert].forward(cx, &own, &adapters.select(&rows))?;
            parts.push(ExpertRows { expert, rows, output });
        }
        let mut y = ops::combine(cx, parts, &weights)?;
        if let Some([_, output]) = &self.latent {
            y = output.forward(cx, &y, adapters)?;
        }
        let Some((dense, gate)) = &self.shared else { return Ok(y) };
        let mut shared = dense.forward(cx, x, adapters)?;
        if let Some(gate) = gate {
            shared = ops::gate(cx, &shared, &gate.forward(cx, x, adapters)?, Some(Activation::Sigmoid))?;
        }
        ops::add_scaled(cx, &y, shared, 1.0, None)
    }
}
