//! Adapters: what a fine-tuning changed, kept apart from the network and given to it with each call.
//!
//! A checkpoint's module may be a part of one of the network's matrices (q of q|k|v) or several of its parts (a stored q|k|v):
//! [`Module`] says which outputs it is. An [`Adapter`] holds what was trained, [`Adapters`] some of them with a scale each,
//! sorted by where they act.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use candle_core::Result;

use super::{Linear, Trained, Transformer};
use crate::error::{self, Error};
use crate::ops::{Backend, Delta, Dropout, Matrix, MatrixBuilder, StoredType, Trainable, Use, Vector, merged};

/// A matrix of the network; of a layer, its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    Qkv(usize),
    O(usize),
    /// Gate and up, or up alone.
    Up(usize),
    Down(usize),
    Head,
    Embed,
}

impl Place {
    /// The layer that it is in.
    pub(super) fn layer(self) -> Option<usize> {
        match self {
            Self::Qkv(layer) | Self::O(layer) | Self::Up(layer) | Self::Down(layer) => Some(layer),
            Self::Head | Self::Embed => None,
        }
    }
}

/// A module of the checkpoint that is a matrix.
#[derive(Debug, Clone)]
pub struct Module {
    /// Without the checkpoint's prefix: `layers.0.self_attn.q_proj`.
    pub name: String,
    pub inputs: usize,
    pub outputs: usize,
    pub bias: bool,
    pub place: Place,
    /// Its rows, and the first output that they are at that place.
    pub parts: Vec<(Range<usize>, usize)>,
}

impl Module {
    /// A module that is a whole matrix of the network.
    pub(super) fn whole(name: &str, inputs: usize, outputs: usize, bias: bool, place: Place) -> Self {
        Self { name: name.to_string(), inputs, outputs, bias, place, parts: vec![(0..outputs, 0)] }
    }
}

/// The low-rank change of one module, as it was trained.
pub struct LowRank {
    pub module: Module,
    /// `(R, inputs)`, on the CPU in F32.
    pub a: Matrix,
    /// `(outputs, R)`, on the CPU in F32.
    pub b: Matrix,
    pub b_bias: Option<Vec<f32>>,
    /// The trained length of each row (DoRA).
    pub magnitude: Option<Vec<f32>>,
    /// `alpha / R`, or `alpha / √R`.
    pub scaling: f32,
    /// `a` where the network computes.
    ready_a: Matrix,
    ready_parts: Vec<ReadyPart>,
}

/// The rows of `b` that are one part of the module, where the network computes.
struct ReadyPart {
    rows: Range<usize>,
    start: usize,
    b: Matrix,
    bias: Option<Vector>,
}

impl LowRank {
    /// Uploads what the network computes with.
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`, `ErrorKind::Device`.
    pub fn new(
        network: &Transformer,
        module: Module,
        (a, b): (Matrix, Matrix),
        (b_bias, magnitude): (Option<Vec<f32>>, Option<Vec<f32>>),
        scaling: f32,
    ) -> error::Result<Self> {
        let (backend, stored) = (network.backend(), network.computed_type());
        let ready_a = network_matrix(&a, 0..a.outputs(), backend, stored)?;
        let part = |(rows, start): &(Range<usize>, usize)| {
            let bias = b_bias.as_ref().map(|bias| Vector::new(bias[rows.clone()].to_vec(), backend)).transpose()?;
            Ok(ReadyPart { rows: rows.clone(), start: *start, b: network_matrix(&b, rows.clone(), backend, stored)?, bias })
        };
        let ready_parts = module.parts.iter().map(part).collect::<error::Result<_>>()?;
        Ok(Self { ready_a, ready_parts, module, a, b, b_bias, magnitude, scaling })
    }

    /// The changes of outputs that it is with a scale. Reads the rows of `weight` where it has magnitudes.
    fn deltas(&self, weight: &Matrix, backend: &Backend, scale: f32) -> Result<Vec<Delta>> {
        let scale = scale * self.scaling;
        let delta = |ReadyPart { rows, start, b, bias }: &ReadyPart| {
            let mut delta = Delta { a: self.ready_a.clone(), b: b.clone(), bias: bias.clone(), start: *start, scale, gain: None };
            if let Some(magnitude) = &self.magnitude {
                let lengths = delta.lengths(weight)?;
                // A row of zeros has no direction to go into.
                let gain = |(m, length): (&f32, f32)| if length > 0.0 { m / length } else { 0.0 };
                let gains = magnitude[rows.clone()].iter().zip(lengths).map(gain).collect();
                delta.gain = Some(Vector::new(gains, backend)?);
            }
            Ok(delta)
        };
        self.ready_parts.iter().map(delta).collect()
    }
}

/// A matrix in place of the network's own: the embedding or the output matrix.
pub struct Replaced {
    pub module: Module,
    /// On the CPU, as stored.
    pub weight: Matrix,
    /// Where the network computes.
    ready: Matrix,
}

impl Replaced {
    /// Uploads what the network computes with.
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`, `ErrorKind::Device`.
    pub fn new(network: &Transformer, module: Module, weight: Matrix) -> error::Result<Self> {
        let ready = network_matrix(&weight, 0..weight.outputs(), network.backend(), network.computed_type())?;
        Ok(Self { module, weight, ready })
    }
}

/// What one fine-tuning changed; immutable.
#[derive(Default)]
pub struct Adapter {
    pub low_rank: Vec<LowRank>,
    /// In place of the network's own.
    pub biases: Vec<(Module, Vec<f32>)>,
    pub weights: Vec<Replaced>,
}

/// The low-rank changes of an adapter with a scale, by place.
pub type Scaled = Vec<(Place, Delta)>;

impl Adapter {
    /// What it is with a scale. Where it has magnitudes (DoRA) this takes about as long as a prompt of `R` tokens.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn scaled(&self, network: &Transformer, scale: f32) -> Result<Scaled> {
        let mut scaled = Vec::new();
        for low_rank in &self.low_rank {
            let place = low_rank.module.place;
            let own = self.weights.iter().find(|own| own.module.place == place).map(|own| &own.ready);
            if let Some(weight) = own.or_else(|| network.linear(place).map(|linear| &linear.weight)) {
                scaled.extend(low_rank.deltas(weight, network.backend(), scale)?.into_iter().map(|delta| (place, delta)));
            }
        }
        Ok(scaled)
    }

    /// Whether [`scaled`](Self::scaled) reads the network's weights.
    pub fn has_magnitudes(&self) -> bool {
        self.low_rank.iter().any(|low_rank| low_rank.magnitude.is_some())
    }
}

/// What adapters change at one place.
#[derive(Default)]
pub struct Change {
    pub deltas: Vec<Delta>,
    /// In place of the linear's own.
    pub bias: Option<Vector>,
    /// In place of the linear's own.
    pub weight: Option<Matrix>,
    pub trained: Vec<Trainable>,
}

/// Adapters as the network takes them.
#[derive(Default)]
pub struct Adapters(HashMap<Place, Change>);

impl Adapters {
    /// Several adapters at once: their changes add up.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` if two of them replace the same weights: these have no sum.
    pub fn new<'a>(network: &Transformer, adapters: impl IntoIterator<Item = (&'a Adapter, &'a Scaled)>) -> error::Result<Self> {
        let mut places: HashMap<Place, Change> = HashMap::new();
        let mut biases: HashMap<Place, (Vec<f32>, Vec<Range<usize>>)> = HashMap::new();
        let twice = |name: &str| Error::argument(format!("adapters: expected one that replaces {name}, found two"));
        for (adapter, scaled) in adapters {
            for (place, delta) in scaled {
                places.entry(*place).or_default().deltas.push(delta.clone());
            }
            for Replaced { module, ready, .. } in &adapter.weights {
                if places.entry(module.place).or_default().weight.replace(ready.clone()).is_some() {
                    return Err(twice(&module.name));
                }
            }
            for (module, values) in &adapter.biases {
                let Some(own) = network.linear(module.place).and_then(|linear| linear.bias.as_ref()) else { continue };
                let (bias, replaced) = match biases.entry(module.place) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert((own.values()?, Vec::new())),
                };
                for (rows, start) in &module.parts {
                    let outputs = *start..start + rows.len();
                    if replaced.iter().any(|other| other.start < outputs.end && outputs.start < other.end) {
                        return Err(twice(&format!("{}.bias", module.name)));
                    }
                    bias[outputs.clone()].copy_from_slice(&values[rows.clone()]);
                    replaced.push(outputs);
                }
            }
        }
        for (place, (bias, _)) in biases {
            places.entry(place).or_default().bias = Some(Vector::new(bias, network.backend())?);
        }
        Ok(Self(places))
    }

    /// What is in training, each change with its number in `trained`.
    ///
    /// # Errors
    /// No memory, a failed upload.
    pub fn in_training(network: &Transformer, trained: &[Trained], dropout: Option<Dropout>) -> Result<Self> {
        let mut places: HashMap<Place, Change> = HashMap::new();
        for (number, Trained { module, rank, scaling, a, b }) in trained.iter().enumerate() {
            let dropout = dropout.map(|dropout| dropout.of(number));
            let change = Trainable::new(number, *rank, (a, b), &module.parts, *scaling, dropout, network.backend())?;
            places.entry(module.place).or_default().trained.push(change);
        }
        Ok(Self(places))
    }

    /// What they change at a place.
    pub fn at(&self, place: Place) -> Option<&Change> {
        self.0.get(&place)
    }

    /// What they change in a layer.
    pub(super) fn block(&self, layer: usize) -> BlockChanges<'_> {
        BlockChanges {
            qkv: self.at(Place::Qkv(layer)),
            o: self.at(Place::O(layer)),
            up: self.at(Place::Up(layer)),
            down: self.at(Place::Down(layer)),
        }
    }
}

/// What adapters change in one layer; nothing by default.
#[derive(Clone, Copy, Default)]
pub(super) struct BlockChanges<'a> {
    pub qkv: Option<&'a Change>,
    pub o: Option<&'a Change>,
    pub up: Option<&'a Change>,
    pub down: Option<&'a Change>,
}

impl BlockChanges<'_> {
    /// Whether a change behind attention has dropout, which counts the rows of a call: they must be all.
    pub fn counts_rows(&self) -> bool {
        [self.o, self.up, self.down].into_iter().flatten().any(|change| change.trained.iter().any(Trainable::drops))
    }
}

impl Linear {
    /// The linear that this one and a change are together.
    pub(super) fn merged(&self, change: Option<&Change>, backend: &Backend) -> error::Result<Self> {
        let Some(change) = change else { return Ok(self.clone()) };
        let mut weight = change.weight.as_ref().unwrap_or(&self.weight).clone();
        if !change.deltas.is_empty() {
            weight = merged(&weight, &change.deltas, backend)?.ok_or_else(|| {
                let message = "merge: the merged weights do not fit the memory, or a value is beyond the range of f16";
                Error::new(error::ErrorKind::OutOfMemory, message)
            })?;
        }
        let mut bias = change.bias.clone().or_else(|| self.bias.clone());
        for delta in &change.deltas {
            let Some(more) = &delta.bias else { continue };
            let mut sum = bias.as_ref().map_or_else(|| Ok(vec![0.0; weight.outputs()]), Vector::values)?;
            sum[delta.start..].iter_mut().zip(more.values()?).for_each(|(y, x)| *y += delta.scale * x);
            bias = Some(Vector::new(sum, backend)?);
        }
        Ok(Self { weight, bias })
    }
}

/// Rows of a matrix on the CPU as the network computes with them; the same one where that is on the CPU too.
fn network_matrix(host: &Matrix, rows: Range<usize>, backend: &Backend, stored: StoredType) -> error::Result<Matrix> {
    if host.is_for(backend) && rows == (0..host.outputs()) {
        return Ok(host.clone());
    }
    let no_room = || Error::new(error::ErrorKind::OutOfMemory, format!("adapter: {} rows do not fit the memory", rows.len()));
    let mut builder = MatrixBuilder::new(rows.len(), host.inputs(), stored, Use::Product, backend).ok_or_else(no_room)?;
    let bytes: Vec<u8> = host.rows(rows.clone())?.iter().flat_map(|x| x.to_le_bytes()).collect();
    if !builder.fill(0, &bytes, StoredType::F32) {
        return Err(Error::format("adapter: a value is beyond the range of f16, which the model is loaded as"));
    }
    Ok(builder.finish()?)
}
