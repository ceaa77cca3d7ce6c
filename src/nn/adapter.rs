//! Adapters: what a fine-tuning changed, kept apart from the network and given to it with each call.
//!
//! A checkpoint's module may be a part of one of the network's matrices (q of q|k|v) or several of its parts (a stored q|k|v):
//! [`Module`] says which outputs it is. An [`Adapter`] holds what was trained, [`Adapters`] some of them with a scale each,
//! sorted by the matrix that they change.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{Linear, LinearId, Module, Role, TrainedModule, TrainedValues, Transformer};
use crate::error::{self, Error};
use crate::ops::{
    self, AddedRows, Backend, Context, DeltaPart, Dropout, Format, LowRankDelta, LowRankDeltas, Matrix, MatrixBuilder, Use,
    Vector, merged, summed_bias,
};

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
    /// Where the network computes, with a scale of 1 and no gains.
    ready: LowRankDelta,
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
        let part = |(rows, start): &(Range<usize>, usize)| {
            let bias = b_bias.as_ref().map(|bias| Vector::new(bias[rows.clone()].to_vec(), backend)).transpose()?;
            let b = network_matrix(&b, rows.clone(), backend, stored)?;
            Ok(DeltaPart { rows: rows.clone(), start: *start, b, bias, gain: None })
        };
        let parts = module.parts.iter().map(part).collect::<error::Result<_>>()?;
        let ready_a = network_matrix(&a, 0..a.outputs(), backend, stored)?;
        let ready = LowRankDelta { a: ready_a, parts, scale: 1.0, dropout: None, number: None };
        Ok(Self { module, a, b, b_bias, magnitude, scaling, ready })
    }

    /// What it is with a scale. Reads the rows of `weight` where it has magnitudes.
    fn delta(&self, weight: &Matrix, backend: &Backend, scale: f32) -> Result<LowRankDelta> {
        let delta = LowRankDelta { scale: scale * self.scaling, ..self.ready.clone() };
        match &self.magnitude {
            Some(magnitude) => delta.with_lengths(weight, magnitude, backend),
            None => Ok(delta),
        }
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

/// Rows of the embedding or of the output matrix in place of the network's own, whatever the scale.
pub struct TokenRows {
    pub module: Module,
    /// Below the vocabulary, no two alike.
    pub ids: Vec<u32>,
    /// `(ids, C)`, on the CPU in F32.
    pub rows: Matrix,
    /// Where the network computes, of an embedding.
    ready: Option<Matrix>,
    /// What they have more than the matrix's own.
    added: AddedRows,
    /// The output matrix, or another that tokens are multiplied with, if they are rows of it.
    of_head: Option<LinearId>,
}

impl TokenRows {
    /// Uploads what the network computes with. `are_shared`: an embedding that is the output matrix too has these rows as that as well.
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`, `ErrorKind::Device`.
    pub fn new(network: &Transformer, module: Module, ids: Vec<u32>, rows: Matrix, are_shared: bool) -> error::Result<Self> {
        let is_embedding = module.role == Role::Embedding;
        let added = added_rows(network, &module, &ids, &rows)?;
        let head = if is_embedding && are_shared { network.head_id() } else { None };
        let of_head = if is_embedding { head } else { Some(module.linear) };
        let ready = match is_embedding {
            true => Some(network_matrix(&rows, 0..rows.outputs(), network.backend(), network.computed_type())?),
            false => None,
        };
        Ok(Self { module, ids, rows, ready, added, of_head })
    }
}

/// Rows in place of a matrix's own as a change of that matrix: what they have more than it.
fn added_rows(network: &Transformer, module: &Module, ids: &[u32], rows: &Matrix) -> error::Result<AddedRows> {
    let (count, inputs) = (ids.len(), rows.inputs());
    let (mut more, mut outputs) = (rows.rows(0..count)?, Vec::with_capacity(count));
    for (row, id) in more.chunks_exact_mut(inputs).zip(ids) {
        let id = *id as usize;
        let own = network.module_rows(module, id..id + 1)?;
        row.iter_mut().zip(own).for_each(|(x, own)| *x -= own);
        let part = module.parts.iter().find(|(rows, _)| rows.contains(&id));
        outputs.extend(part.map(|(rows, start)| (start + id - rows.start) as u32));
    }
    let no_room = || Error::new(error::ErrorKind::OutOfMemory, format!("adapter: {count} tokens do not fit the memory"));
    let cpu = Backend::new(&candle_core::Device::Cpu);
    let mut builder = MatrixBuilder::new(count, inputs, Format::F32, Use::Product, &cpu).ok_or_else(no_room)?;
    builder.fill_f32(0, &more);
    let more = builder.finish()?;
    Ok(AddedRows { ids: outputs.into(), rows: network_matrix(&more, 0..count, network.backend(), network.computed_type())? })
}

/// What one fine-tuning changed; immutable.
#[derive(Default)]
pub struct Adapter {
    pub low_rank: Vec<LowRank>,
    pub tokens: Vec<TokenRows>,
    /// In place of the network's own.
    pub biases: Vec<(Module, Vec<f32>)>,
    pub weights: Vec<Replaced>,
}

/// The low-rank changes of an adapter with a scale, each with the matrix that it changes.
pub type Scaled = Vec<(LinearId, LowRankDelta)>;

impl Adapter {
    /// What it is with a scale. Where it has magnitudes (DoRA) this takes about as long as a prompt of `R` tokens.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn scaled(&self, network: &Transformer, scale: f32) -> Result<Scaled> {
        let (mut scaled, linears) = (Vec::new(), network.linears_by_id());
        for low_rank in &self.low_rank {
            let id = low_rank.module.linear;
            let own = self.weights.iter().find(|own| own.module.linear == id).map(|own| &own.ready);
            if let Some(weight) = own.or_else(|| linears.get(&id).map(|linear| &linear.weight)).or_else(|| network.table(id)) {
                scaled.push((id, low_rank.delta(weight, network.backend(), scale)?));
            }
        }
        Ok(scaled)
    }

    /// Whether [`scaled`](Self::scaled) reads the network's weights.
    pub fn has_magnitudes(&self) -> bool {
        self.low_rank.iter().any(|low_rank| low_rank.magnitude.is_some())
    }
}

/// What adapters change of one matrix.
#[derive(Default)]
pub struct Change {
    pub deltas: Option<LowRankDeltas>,
    /// In place of the linear's own, with what the deltas add to it.
    pub bias: Option<Vector>,
    /// In place of the linear's own.
    pub weight: Option<Matrix>,
    /// Rows of the embedding in place of its own.
    tokens: Vec<ReadyTokens>,
    /// The same as a change of the embedding, for merging.
    of_tokens: Vec<AddedRows>,
}

/// Rows for some ids, in the order of these.
struct ReadyTokens {
    /// The row of each id.
    places: HashMap<u32, usize>,
    rows: Matrix,
    /// Whether the output matrix has them as well.
    are_shared: bool,
}

impl Change {
    /// Rows of the embedding with what is changed of them.
    fn looked_up(cx: Context<'_>, change: Option<&Self>, table: &Matrix, ids: &[u32], scale: f32) -> Result<Tensor> {
        let Some(Self { deltas, weight, tokens, .. }) = change else { return ops::embedding(table, ids, scale) };
        let mut x = ops::adapted_embedding(cx, weight.as_ref().unwrap_or(table), deltas.as_ref(), ids, scale)?;
        for ReadyTokens { places, rows, .. } in tokens {
            let (mut parts, mut start) = (Vec::new(), 0);
            for (t, row) in ids.iter().enumerate().filter_map(|(t, id)| Some((t, *places.get(id)?))) {
                if t > start {
                    parts.push(ops::narrow_rows(&x, start..t)?);
                }
                parts.push(ops::embedding(rows, &[row as u32], scale)?);
                start = t + 1;
            }
            if parts.is_empty() {
                continue;
            }
            if start < ids.len() {
                parts.push(ops::narrow_rows(&x, start..ids.len())?);
            }
            x = ops::stack_rows(&parts)?;
        }
        Ok(x)
    }

    /// The embedding that one and a change are together.
    pub(super) fn merged_embedding(&self, embed: &Matrix, backend: &Backend) -> error::Result<Matrix> {
        let weight = self.weight.as_ref().unwrap_or(embed);
        let deltas = self.deltas.as_ref().map_or(&[][..], LowRankDeltas::each);
        if deltas.is_empty() && self.of_tokens.is_empty() {
            return Ok(weight.clone());
        }
        merged(weight, deltas, &self.of_tokens, backend)?.ok_or_else(not_merged)
    }

    /// Whether all that it is are rows that the output matrix has as well.
    pub(super) fn is_shared(&self) -> bool {
        self.deltas.is_none() && self.weight.is_none() && self.tokens.iter().all(|tokens| tokens.are_shared)
    }

    /// Whether all that it is, of the output matrix, are so many lists of added rows.
    pub(super) fn has_rows_alone(&self, lists: usize) -> bool {
        let (each, rows) = self.deltas.as_ref().map_or((0, 0), |deltas| (deltas.each().len(), deltas.rows().len()));
        self.weight.is_none() && each == 0 && rows == lists
    }

    /// How many lists of rows the embedding has.
    pub(super) fn lists(&self) -> usize {
        self.of_tokens.len()
    }
}

/// Adapters as the network takes them: the changes of each matrix, by its id.
#[derive(Default)]
pub struct Adapters(Vec<Option<Change>>);

impl Adapters {
    /// Several adapters at once: their changes add up.
    ///
    /// # Errors
    /// `ErrorKind::InvalidArgument` if two of them replace the same weights: these have no sum.
    pub fn new<'a>(network: &Transformer, adapters: impl IntoIterator<Item = (&'a Adapter, &'a Scaled)>) -> error::Result<Self> {
        let mut all = Self::default();
        let mut deltas: HashMap<LinearId, (Vec<LowRankDelta>, Vec<AddedRows>)> = HashMap::new();
        let mut biases: HashMap<LinearId, (Vec<f32>, Vec<Range<usize>>)> = HashMap::new();
        let mut replaced_tokens: HashMap<LinearId, HashSet<u32>> = HashMap::new();
        let twice = |name: &str| Error::argument(format!("adapters: expected one that replaces {name}, found two"));
        for (adapter, scaled) in adapters {
            for (id, delta) in scaled {
                deltas.entry(*id).or_default().0.push(delta.clone());
            }
            for TokenRows { module, ids, ready, added, of_head, .. } in &adapter.tokens {
                // Of both where they are one.
                for linear in std::iter::once(module.linear).chain(of_head.filter(|head| *head != module.linear)) {
                    let known = replaced_tokens.entry(linear).or_default();
                    if let Some(id) = ids.iter().find(|id| !known.insert(**id)) {
                        return Err(twice(&format!("the row of token {id} of {}", module.name)));
                    }
                }
                if let Some(head) = of_head {
                    deltas.entry(*head).or_default().1.push(added.clone());
                }
                if let Some(rows) = ready {
                    let change = all.entry(module.linear);
                    let places = ids.iter().enumerate().map(|(row, id)| (*id, row)).collect();
                    change.tokens.push(ReadyTokens { places, rows: rows.clone(), are_shared: of_head.is_some() });
                    change.of_tokens.push(added.clone());
                }
            }
            for Replaced { module, ready, .. } in &adapter.weights {
                if all.entry(module.linear).weight.replace(ready.clone()).is_some() {
                    return Err(twice(&module.name));
                }
            }
            for (module, values) in &adapter.biases {
                let Some(own) = network.linear(module.linear).and_then(|linear| linear.bias.as_ref()) else { continue };
                let (bias, replaced) = match biases.entry(module.linear) {
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
        for (id, (bias, _)) in biases {
            all.entry(id).bias = Some(Vector::new(bias, network.backend())?);
        }
        all.make_ready(network, deltas)?;
        Ok(all)
    }

    /// What is in training, each change with its number among the modules.
    ///
    /// # Errors
    /// No memory, a failed device operation.
    pub fn in_training(network: &Transformer, trained: TrainedValues<'_>, dropout: Option<Dropout>) -> Result<Self> {
        let mut deltas: HashMap<LinearId, (Vec<LowRankDelta>, Vec<AddedRows>)> = HashMap::new();
        for (number, trained_module) in trained.modules.iter().enumerate() {
            let TrainedModule { module, rank, scaling, .. } = trained_module;
            let b = trained_module.b();
            let part = |(rows, start): &(Range<usize>, usize)| {
                let values = b.start + rows.start * rank..b.start + rows.end * rank;
                let b = trained.values.matrix(values, *rank)?;
                Ok(DeltaPart { rows: rows.clone(), start: *start, b, bias: None, gain: None })
            };
            deltas.entry(module.linear).or_default().0.push(LowRankDelta {
                a: trained.values.matrix(trained_module.a(), module.inputs)?,
                parts: module.parts.iter().map(part).collect::<Result<_>>()?,
                scale: *scaling,
                // An id has nothing to drop.
                dropout: dropout.filter(|_| module.role != Role::Embedding).map(|dropout| dropout.of(number)),
                number: Some(number),
            });
        }
        let mut all = Self::default();
        all.make_ready(network, deltas)?;
        Ok(all)
    }

    /// Adds the low-rank changes and rows, with the matrices that they change as they are by now.
    fn make_ready(
        &mut self,
        network: &Transformer,
        deltas: HashMap<LinearId, (Vec<LowRankDelta>, Vec<AddedRows>)>,
    ) -> Result<()> {
        let linears = network.linears_by_id();
        for (id, (deltas, rows)) in deltas {
            let (linear, change) = (linears.get(&id).copied(), self.entry(id));
            let own = linear.map(|linear| &linear.weight).or_else(|| network.table(id));
            let Some(weight) = change.weight.as_ref().or(own) else { continue };
            let bias = change.bias.as_ref().or(linear.and_then(|linear| linear.bias.as_ref()));
            change.bias = summed_bias(bias, weight.outputs(), &deltas, network.backend())?;
            change.deltas = Some(LowRankDeltas::new(deltas, rows, weight)?);
        }
        Ok(())
    }

    fn entry(&mut self, id: LinearId) -> &mut Change {
        if self.0.len() <= id.0 {
            self.0.resize_with(id.0 + 1, || None);
        }
        self.0[id.0].get_or_insert_default()
    }

    /// What they change of a matrix.
    pub fn at(&self, id: LinearId) -> Option<&Change> {
        self.0.get(id.0)?.as_ref()
    }

    /// Whether single tokens can be evaluated with them by the step of a GPU's kernels: they replace no matrix and no rows, have no gains,
    /// and leave the embedding as it is.
    pub(super) fn are_plain(&self) -> bool {
        let is_plain = |change: &Change| change.weight.is_none() && change.deltas.as_ref().is_none_or(LowRankDeltas::are_plain);
        self.at(LinearId::EMBEDDING).is_none() && self.0.iter().flatten().all(is_plain)
    }

    /// Whether a delta has dropout.
    fn has_dropout(&self) -> bool {
        self.0
            .iter()
            .flatten()
            .any(|change| change.deltas.iter().flat_map(LowRankDeltas::each).any(|delta| delta.dropout.is_some()))
    }
}

/// The adapters of each row of a pass: rows of several sequences, one sequence after another.
pub struct RowAdapters<'a>(Vec<(usize, Option<&'a Adapters>)>);

impl<'a> RowAdapters<'a> {
    /// The same for all rows.
    pub fn all(adapters: Option<&'a Adapters>) -> Self {
        Self(vec![(usize::MAX, adapters)])
    }

    /// So many rows with these adapters, one after another.
    pub fn new(parts: impl IntoIterator<Item = (usize, Option<&'a Adapters>)>) -> Self {
        Self(parts.into_iter().collect())
    }

    /// Those of some rows.
    pub fn narrow(&self, rows: Range<usize>) -> Self {
        let mut first = 0usize;
        let part = |&(len, adapters): &(usize, Option<&'a Adapters>)| {
            let end = first.saturating_add(len);
            let len = end.min(rows.end).saturating_sub(first.max(rows.start));
            first = end;
            (len > 0).then_some((len, adapters))
        };
        Self(self.0.iter().filter_map(part).collect())
    }

    /// Those of these rows, which are in ascending order.
    pub fn select(&self, rows: &[usize]) -> Self {
        let (mut first, mut left) = (0usize, rows);
        let part = |&(len, adapters): &(usize, Option<&'a Adapters>)| {
            let end = first.saturating_add(len);
            let count = left.partition_point(|row| *row < end);
            (first, left) = (end, &left[count..]);
            (count > 0).then_some((count, adapters))
        };
        Self(self.0.iter().filter_map(part).collect())
    }

    /// Whether a change has dropout, which counts the rows of a call: they must be all.
    pub fn count_rows(&self) -> bool {
        self.0.iter().filter_map(|(_, adapters)| *adapters).any(Adapters::has_dropout)
    }

    /// Rows of the embedding, or of what replaces it, times `scale`.
    pub(super) fn embedding(&self, cx: Context<'_>, table: &Matrix, ids: &[u32], scale: f32) -> Result<Tensor> {
        let change = |adapters: Option<&'a Adapters>| adapters?.at(LinearId::EMBEDDING);
        if let [(_, adapters)] = self.0[..] {
            return Change::looked_up(cx, change(adapters), table, ids, scale);
        }
        let mut left = ids;
        let mut rows = Vec::with_capacity(self.0.len());
        for &(count, adapters) in &self.0 {
            let ids = left.split_off(..count).unwrap_or_default();
            rows.push(Change::looked_up(cx, change(adapters), table, ids, scale)?);
        }
        ops::stack_rows(&rows)
    }

    /// How many neighbouring rows have the same change of a matrix, and which.
    pub(super) fn groups(&self, id: LinearId) -> Vec<(usize, Option<&'a Change>)> {
        let mut groups: Vec<(usize, Option<&Change>)> = Vec::new();
        for &(rows, adapters) in &self.0 {
            let change = adapters.and_then(|adapters| adapters.at(id));
            match groups.last_mut() {
                Some((more, same)) if same.map(std::ptr::from_ref) == change.map(std::ptr::from_ref) => *more += rows,
                _ => groups.push((rows, change)),
            }
        }
        groups
    }

    /// Rows through a linear, each with what its adapters change there: neighbours that have it in common at once.
    pub(super) fn forward(
        &self,
        linear: &Linear,
        x: &Tensor,
        product: impl Fn(&Tensor, Option<&Change>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let groups = self.groups(linear.id);
        match groups[..] {
            [] => return product(x, None),
            [(_, change)] => return product(x, change),
            _ => {}
        }
        let mut first = 0;
        let mut outputs = Vec::with_capacity(groups.len());
        for (rows, change) in groups {
            outputs.push(product(&ops::narrow_rows(x, first..first + rows)?, change)?);
            first += rows;
        }
        ops::stack_rows(&outputs)
    }
}

impl Linear {
    /// The linear that this one and a change are together.
    pub(super) fn merged(&self, change: Option<&Change>, backend: &Backend) -> error::Result<Self> {
        let Some(change) = change else { return Ok(self.clone()) };
        let weight = change.weight.as_ref().unwrap_or(&self.weight);
        let bias = change.bias.as_ref().or(self.bias.as_ref()).cloned();
        let Some(deltas) = &change.deltas else { return Ok(Self { id: self.id, weight: weight.clone(), bias }) };
        let weight = merged(weight, deltas.each(), deltas.rows(), backend)?.ok_or_else(not_merged)?;
        Ok(Self { id: self.id, weight, bias })
    }
}

fn not_merged() -> Error {
    let message = "merge: the merged weights do not fit the memory, or a value is beyond the range of f16";
    Error::new(error::ErrorKind::OutOfMemory, message)
}

/// Rows of a matrix on the CPU as the network computes with them; the same one where that is on the CPU too.
fn network_matrix(host: &Matrix, rows: Range<usize>, backend: &Backend, format: Format) -> error::Result<Matrix> {
    if host.is_for(backend) && rows == (0..host.outputs()) {
        return Ok(host.clone());
    }
    let no_room = || Error::new(error::ErrorKind::OutOfMemory, format!("adapter: {} rows do not fit the memory", rows.len()));
    let mut builder = MatrixBuilder::new(rows.len(), host.inputs(), format, Use::Product, backend).ok_or_else(no_room)?;
    if !builder.fill_f32(0, &host.rows(rows)?) {
        return Err(Error::format("adapter: a value is beyond the range of f16, which the model is loaded as"));
    }
    Ok(builder.finish()?)
}
