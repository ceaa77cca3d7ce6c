//! One token of a decoder by the GPU's own kernels: 5 launches a layer of the plainest, 6 where keys are many, over one workspace, with
//! no allocation on the device and no tensor operation in between. Activations are F32, whatever weights and cache are kept as.
//!
//! Of several rows, of one sequence or of many, four share what is read of a matrix; a norm is then a launch of its own, and each row has
//! its attention. What adapters add to a product of one row is made before it, `B A x`, and takes the place of its bias.
//!
//! Weights, keys and values are the tensors that prompts are evaluated with, and states of fixed size become what kernels change in place
//! (`state.rs`); of a step only the logits come back, or the best token.

use std::f32::consts::FRAC_1_SQRT_2;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};

use super::check::check;
use super::state::{GpuState, StepState};
use super::weight::{StepDelta, element};
use super::{
    AttentionPart, DecoderParts, DeltaNetPart, DeviceMatrix, LayerInputPart, LinearPart, MlpPart, OperationPart, PerLayerPart,
    ResidualPart, ShortConvPart, Unsupported,
};
use crate::error::OutOfMemory;
use crate::kernels::gpu::{
    AttentionKernels, AttentionRow, BestToken, ConvolutionRow, DecodedRows, DeltaNetRow, Element, Gated, Gpu, GpuAngles,
    GpuDeltaNet, GpuFormat, GpuNorm, GpuSlice, GpuView, GpuWeight, HeadCounts, LaunchList, ListKey, MOST_SPLITS, NormWith,
    ProductWith, QkNorms, QkvLayout, Replays, RopePairs, RowKernels, attention_splits,
};
use crate::kernels::{CHUNK, chunk_start, scale_softcap};
use crate::ops::{Activation, Backend, Decay, KvFormat, LowRankDeltas, Mask, Norm, NormKind, Vector, fault};

/// Rows of a step at most.
const ROWS: usize = 8;

/// The next tokens of a sequence.
pub struct StepSequence<'a> {
    pub ids: &'a [u32],
    /// Those of its mixers, which take up the tokens.
    pub states: Vec<StepState<'a>>,
    /// Cosine and sine of each pair at each token's position, of each rope first for queries and then for keys.
    pub turns: Vec<f32>,
}

/// What is asked for behind a row of a step.
pub struct StepLogits<'a> {
    pub row: usize,
    pub out: StepOutput<'a>,
}

/// Where it goes.
pub enum StepOutput<'a> {
    /// All logits, `(V)`.
    All(&'a mut Vec<f32>),
    /// The most probable token alone: a few words in place of the vocabulary.
    Best(&'a mut Option<BestToken>),
}

impl StepOutput<'_> {
    pub fn lent(&mut self) -> StepOutput<'_> {
        match self {
            Self::All(out) => StepOutput::All(out),
            Self::Best(token) => StepOutput::Best(token),
        }
    }
}

/// What adapters change of a linear.
pub struct StepChange<'a> {
    /// In place of its own.
    pub bias: Option<&'a Vector>,
    pub deltas: Option<&'a LowRankDeltas>,
}

/// The change of each linear, by its number.
pub type StepChanges<'a> = dyn Fn(usize) -> Option<StepChange<'a>> + 'a;

/// A decoder, ready to evaluate a few tokens at a time.
pub struct DecodeStep {
    gpu: Gpu,
    /// One step at a time: they share the workspace.
    launches: Mutex<Launches>,
    embed: GpuWeight,
    embed_scale: f32,
    /// What a token has for every layer, and its factor.
    table: Option<(GpuWeight, f32)>,
    activation: DType,
    /// Pairs that each rope rotates.
    ropes: Vec<usize>,
    states: usize,
    logit_softcap: Option<f32>,
    vocab_size: usize,
}

struct Launches {
    workspace: Workspace,
    list: Vec<Launch>,
    rows: RowKernels,
    /// What is uploaded for a step.
    words: Vec<u32>,
    /// What comes back of [`StepOutput::Best`].
    best: Vec<f32>,
    /// The memory of a step's kernels.
    kernels: Vec<crate::kernels::gpu::Launch>,
    /// What is kept of steps before.
    replays: Replays,
}

/// Vectors of a step; each is a part of one tensor.
struct Workspace {
    /// The tokens' ids, their positions and the angles of their rows, which are uploaded together.
    inputs: GpuSlice,
    ids: GpuSlice,
    /// Of each row.
    positions: Vec<GpuSlice>,
    /// Of each rope, those of each row.
    angles: Vec<Vec<GpuAngles>>,
    /// The stream, and what it becomes in a step of several branches.
    x: RowVectors,
    sum: RowVectors,
    normed: RowVectors,
    branch: RowVectors,
    /// What layers take in besides the stream, and what of it hangs on the token's id alone.
    layer_inputs: RowVectors,
    of_ids: RowVectors,
    /// What a mixer projects, and what it finds.
    projected: RowVectors,
    found: RowVectors,
    parts: GpuSlice,
    hidden: RowVectors,
    logits: RowVectors,
    /// The greatest of each row's logits, by parts.
    best: GpuSlice,
}

/// A vector of each row of a step: `len` words from `first` on of rows that are `stride` apart.
#[derive(Clone)]
struct RowVectors {
    all: GpuSlice,
    first: usize,
    len: usize,
    stride: usize,
}

impl RowVectors {
    fn new(all: GpuSlice) -> Self {
        let len = all.len() / ROWS;
        Self { all, first: 0, len, stride: len }
    }

    /// A part of each.
    fn part(&self, first: usize, len: usize) -> Self {
        Self { first: self.first + first, len, ..self.clone() }
    }

    /// With as many words: widths of layers may differ, and rows lie side by side.
    fn of(&self, len: usize) -> Self {
        Self { len, stride: len, ..self.clone() }
    }

    fn view(&self) -> RowViews<'_> {
        RowViews { all: self.all.view(), first: self.first, len: self.len, stride: self.stride }
    }
}

/// The same, lent.
#[derive(Clone, Copy)]
struct RowViews<'a> {
    all: GpuView<'a>,
    first: usize,
    len: usize,
    stride: usize,
}

impl<'a> RowViews<'a> {
    /// With as many words, side by side.
    fn of(self, len: usize) -> Self {
        Self { len, stride: len, ..self }
    }

    fn row(self, row: usize) -> Result<GpuView<'a>> {
        self.all.words(row * self.stride + self.first, self.len)
    }

    /// Whether rows lie side by side.
    fn is_whole(self) -> bool {
        self.first == 0 && self.len == self.stride
    }
}

enum Launch {
    Norm(Box<NormLaunch>),
    Product(Box<ProductLaunch>),
    Attention(Box<AttentionLaunch>),
    ShortConv(Box<ShortConvLaunch>),
    DeltaNet(Box<DeltaNetLaunch>),
}

struct NormLaunch {
    x: RowVectors,
    by: GpuNorm,
    added: Option<RowVectors>,
    scale: f32,
    y: RowVectors,
}

struct ProductLaunch {
    /// Of the linear.
    id: usize,
    weight: GpuWeight,
    /// The first output that it makes.
    first: usize,
    bias: Option<GpuSlice>,
    /// Of all outputs of the linear.
    whole_bias: Option<GpuSlice>,
    x: RowVectors,
    norm: Option<GpuNorm>,
    then: Then,
    y: RowVectors,
}

/// What becomes of a product.
#[derive(Clone)]
enum Then {
    Scale(f32),
    /// Of an input in lane order: what it is added to, and the factor before.
    Add(Option<RowVectors>, f32),
    /// And of an MLP without a gate, what it is multiplied by.
    Activate(Gated, Activation, Option<RowVectors>),
}

/// What the launches of a step share.
struct Rows<'a, 'b> {
    kernels: RowKernels,
    workspace: &'a Workspace,
    places: &'a [RowPlace],
    /// Of each sequence, by the numbers of its mixers.
    states: &'a [Vec<GpuState<'a>>],
    changes: Option<&'a StepChanges<'b>>,
}

/// Where a row of a step stands.
#[derive(Clone, Copy)]
struct RowPlace {
    sequence: usize,
    /// Positions with this one.
    length: usize,
    /// Where the chunk of tokens begins that states of fixed size hold apart before this row.
    start: usize,
}

struct AttentionLaunch {
    kernels: AttentionKernels,
    head_dim: usize,
    counts: HeadCounts,
    layout: QkvLayout,
    norms: Option<QkNorms>,
    v_norm: Option<f32>,
    /// The rope's number, and which values are pairs.
    rope: Option<(usize, RopePairs)>,
    mask: Mask,
    sinks: Option<GpuSlice>,
    state: usize,
}

struct ShortConvLaunch {
    taps: usize,
    channels: usize,
    weight: GpuSlice,
    bias: Option<GpuSlice>,
    state: usize,
}

struct DeltaNetLaunch {
    by: GpuDeltaNet,
    /// Values of its inputs.
    inputs: usize,
    state: usize,
}

impl DecodeStep {
    /// Whether a backend has kernels, whatever they lack of a network.
    pub fn is_for(backend: &Backend) -> bool {
        matches!(backend, Backend::Tensors(device) if Gpu::is_for(device))
    }

    /// The step of a network on a backend; `None` where the backend has no kernels.
    ///
    /// # Errors
    /// A failed device operation; what of the network the kernels lack is the inner error, and that they do not compile is one of these:
    /// tensor operations can do without them.
    pub fn new(parts: &DecoderParts<'_>, backend: &Backend) -> Result<Option<std::result::Result<Self, Unsupported>>> {
        let Backend::Tensors(device) = backend else { return Ok(None) };
        let Some(gpu) = Gpu::of(device)? else { return Ok(None) };
        if let Err(unsupported) = check(parts) {
            return Ok(Some(Err(unsupported)));
        }
        let embed = parts.embed.tensors()?;
        let Some(element) = element(embed.dtype()) else { return Ok(Some(Unsupported::new("weights of this type"))) };
        for matrix in parts.matrices() {
            if matrix.tensors()?.dtype() != embed.dtype() {
                return Ok(Some(Unsupported::new("matrices of several types")));
            }
        }
        let kv_element = if parts.kv_format == KvFormat::F16 { Element::F16 } else { element };
        let rows = match compiled(parts, &gpu, element, kv_element) {
            Ok(rows) => rows,
            Err(error) => return Ok(Some(Err(Unsupported(format!("a text that this system compiles: {error}"))))),
        };
        let workspace = Workspace::new(parts, &gpu)?;
        let mut builder = Builder { gpu: &gpu, kv_element, workspace: &workspace, list: Vec::new(), attention: Vec::new() };
        let x = &workspace.x;
        if let Some(norm) = parts.embed_norm {
            builder.norm(x, norm, (None, 1.0), x)?;
        }
        if let Some(part) = &parts.per_layer {
            builder.per_layer(part)?;
        }
        for step in &parts.steps {
            builder.step(step)?;
        }
        let (input, norm) = builder.normed(x, parts.final_norm)?;
        builder.product(parts.head, input, norm, Then::Scale(parts.logit_scale), &workspace.logits)?;
        let list = builder.list;
        let states = parts.operations().filter(|operation| operation.has_state()).count();
        let table = match &parts.per_layer {
            Some(PerLayerPart { table: Some(table), scale, .. }) => Some((first_segment(table.tensors()?, &gpu)?, *scale)),
            _ => None,
        };
        Ok(Some(Ok(Self {
            embed: first_segment(embed, &gpu)?,
            embed_scale: parts.embed_scale,
            table,
            activation: embed.dtype(),
            ropes: parts.ropes.clone(),
            states,
            logit_softcap: parts.logit_softcap,
            vocab_size: parts.head.weight.outputs(),
            launches: Mutex::new(Launches {
                workspace,
                list,
                rows,
                words: Vec::new(),
                best: Vec::new(),
                kernels: Vec::new(),
                replays: Replays::default(),
            }),
            gpu,
        })))
    }

    /// Rows that [`run`](Self::run) takes at most.
    pub fn most_rows(&self) -> usize {
        ROWS
    }

    /// Evaluates tokens behind those that the states hold, which take them up. With `changes` there is one token.
    ///
    /// # Errors
    /// A failed device operation; keys and values then hold what they held, and states of fixed size that or nothing.
    pub fn run(
        &self,
        sequences: &mut [StepSequence<'_>],
        logits: &mut [StepLogits<'_>],
        changes: Option<&StepChanges<'_>>,
    ) -> Result<()> {
        let places = self.places(sequences)?;
        let result = self.evaluate(sequences, &places, logits, changes);
        for StepSequence { ids, states, .. } in sequences {
            match result {
                Ok(()) => states.iter_mut().for_each(|state| state.advance(ids.len())),
                Err(_) => states.iter_mut().for_each(StepState::forget),
            }
        }
        result
    }

    fn evaluate(
        &self,
        sequences: &mut [StepSequence<'_>],
        places: &[RowPlace],
        logits: &mut [StepLogits<'_>],
        changes: Option<&StepChanges<'_>>,
    ) -> Result<()> {
        let rows = places.len();
        if changes.is_some() && rows > 1 {
            bail!("a step: expected one token with adapters, found {rows}")
        }
        for StepLogits { row, out } in logits.iter_mut() {
            if let StepOutput::All(out) = out {
                let no_memory = |_| OutOfMemory { what: format!("{} logits", self.vocab_size) };
                out.try_reserve_exact(self.vocab_size.saturating_sub(out.len())).map_err(no_memory)?;
                out.resize(self.vocab_size, 0.0);
            }
            if *row >= rows {
                bail!("a step: expected one of {rows} rows, found {row}")
            }
        }
        let wants_best = logits.iter().any(|logits| matches!(logits.out, StepOutput::Best(_)));
        let mut launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        let Launches { workspace, list, rows: row_kernels, words, best, kernels, replays } = &mut *launches;
        self.inputs(sequences, places, words);
        let mut states = Vec::with_capacity(sequences.len());
        for StepSequence { ids, states: own, .. } in sequences.iter_mut() {
            states.push(own.iter_mut().map(|state| state.view(ids.len(), self.activation)).collect::<Result<Vec<_>>>()?);
        }
        let gpu = &self.gpu;
        gpu.upload(&workspace.inputs, words)?;
        let step = Rows { kernels: *row_kernels, workspace, places, states: &states, changes };
        let make = |kernels| {
            let mut made = gpu.list_in(kernels);
            let ids = DecodedRows::ById(workspace.ids.view(), rows);
            made.decode(&self.embed, ids.clone(), self.embed_scale, workspace.x.all.view(), false)?;
            if let Some((table, scale)) = &self.table {
                made.decode(table, ids, *scale, workspace.of_ids.all.view(), false)?;
            }
            list.iter().try_for_each(|launch| launch.add(&step, &mut made))?;
            if wants_best {
                let scores = (workspace.logits.all.view(), rows, self.vocab_size);
                made.argmax(*row_kernels, scores, self.logit_softcap, workspace.best.view())?;
            }
            Ok::<_, candle_core::Error>(made)
        };
        let key = step.key(list, wants_best);
        if !gpu.start_known(replays, &key)? {
            *kernels = make(std::mem::take(kernels))?.start_again(replays, key)?;
        } else {
            #[cfg(test)]
            assert!(replays.known(&key) == Some(&make(Vec::new())?.into_launches()[..]), "a key of two lists");
        }
        let of_row = BestToken::words(self.vocab_size);
        if wants_best {
            best.resize(rows * of_row, 0.0);
            gpu.download(&workspace.best, 0, best)?;
        }
        for StepLogits { row, out } in logits {
            match out {
                StepOutput::Best(token) => **token = Some(BestToken::of(&best[*row * of_row..][..of_row])),
                StepOutput::All(out) => {
                    gpu.download(&workspace.logits.all, *row * self.vocab_size, out)?;
                    if self.logit_softcap.is_some() {
                        scale_softcap(out, 1.0, self.logit_softcap);
                    }
                }
            }
        }
        Ok(())
    }

    /// Of each row where it stands, once the sequences' states are found to be of one length.
    fn places(&self, sequences: &[StepSequence<'_>]) -> Result<Vec<RowPlace>> {
        let angles: usize = self.ropes.iter().map(|half| 4 * half).sum();
        let mut places = Vec::new();
        for (sequence, StepSequence { ids, states, turns }) in sequences.iter().enumerate() {
            let Some(held) = states.first().map(|state| state.span().0) else { bail!("a step without a state") };
            // Keys and values can be cut back to any position.
            let mut start = states.iter().map(|state| state.span().1).max().unwrap_or(0);
            let is_of_all = |state: &StepState<'_>| {
                let (len, own) = state.span();
                len == held && (own == start || matches!(state, StepState::Kv(_)))
            };
            if states.len() != self.states || !states.iter().all(is_of_all) || turns.len() != angles * ids.len() {
                bail!("a step: expected {} states of one length and {angles} turns, found {}", self.states, turns.len())
            }
            let most = self.table.as_ref().map_or(usize::MAX, |(table, _)| table.outputs()).min(self.embed.outputs());
            if let Some(id) = ids.iter().find(|id| **id as usize >= most) {
                bail!("token id {id} is outside a vocabulary of {most}")
            }
            for length in held + 1..=held + ids.len() {
                places.push(RowPlace { sequence, length, start });
                if length - start > CHUNK {
                    start = chunk_start(length);
                }
            }
        }
        if places.is_empty() || places.len() > ROWS {
            bail!("a step: expected 1 to {ROWS} tokens, found {}", places.len())
        }
        Ok(places)
    }

    /// What is uploaded for a step, as [`Workspace::new`] lays it out.
    fn inputs(&self, sequences: &[StepSequence<'_>], places: &[RowPlace], words: &mut Vec<u32>) {
        words.clear();
        words.extend(sequences.iter().flat_map(|sequence| sequence.ids));
        words.resize(ROWS, 0);
        for RowPlace { length, start, .. } in places {
            words.extend([*length as u32 - 1, *start as u32, 0, 0]);
        }
        words.resize(5 * ROWS, 0);
        let angles: usize = self.ropes.iter().map(|half| 4 * half).sum();
        let mut first = 0;
        for half in &self.ropes {
            let of_row = |turns: &[f32], words: &mut Vec<u32>| {
                for values in turns[first..first + 4 * half].chunks_exact(2 * half) {
                    words.extend(values.iter().map(|x| x.to_bits()));
                    words.resize(words.len().next_multiple_of(4), 0);
                }
            };
            let begin = words.len();
            sequences.iter().flat_map(|sequence| sequence.turns.chunks_exact(angles)).for_each(|turns| of_row(turns, words));
            words.resize(begin + ROWS * 2 * (2 * half).next_multiple_of(4), 0);
            first += 4 * half;
        }
    }
}

impl Launch {
    fn add<'a, 'b: 'a>(&'a self, step: &Rows<'a, 'b>, list: &mut LaunchList<'a>) -> Result<()> {
        match self {
            Self::Norm(launch) => {
                let NormLaunch { x, by, added, scale, y } = &**launch;
                // A row may be of several parts, each of which is normed by itself.
                let parts = x.len / by.width;
                let vectors = [Some(x.view()), added.as_ref().map(RowVectors::view), Some(y.view())];
                step.each(vectors, |rows, [x, added, y]| match (x, y) {
                    (Some(x), Some(y)) => {
                        let with = NormWith { added, scale: *scale, ordered: false };
                        list.norm(step.kernels, (x, rows * parts), by, y, with)
                    }
                    _ => Ok(()),
                })
            }
            Self::Product(launch) => {
                fault::product()?;
                launch.add(step, list)
            }
            Self::Attention(launch) => (0..step.places.len()).try_for_each(|row| launch.add(step, row, list)),
            Self::ShortConv(launch) => (0..step.places.len()).try_for_each(|row| launch.add(step, row, list)),
            Self::DeltaNet(launch) => (0..step.places.len()).try_for_each(|row| launch.add(step, row, list)),
        }
    }
}

impl<'a> Rows<'a, '_> {
    /// Does work on all rows at once where each of these vectors has its rows side by side, or else on one after another.
    fn each<const N: usize>(
        &self,
        vectors: [Option<RowViews<'a>>; N],
        mut work: impl FnMut(usize, [Option<GpuView<'a>>; N]) -> Result<()>,
    ) -> Result<()> {
        let rows = self.places.len();
        if rows > 1 && vectors.iter().flatten().all(|vector| vector.is_whole()) {
            return work(rows, vectors.map(|vector| vector.map(|vector| vector.all)));
        }
        for row in 0..rows {
            let mut own = [None; N];
            for (own, vector) in own.iter_mut().zip(vectors) {
                *own = vector.map(|vector| vector.row(row)).transpose()?;
            }
            work(1, own)?;
        }
        Ok(())
    }
}

impl<'a> Rows<'a, '_> {
    /// What its list depends on beside the network; empty with adapters, whose lists are made each time.
    fn key(&self, list: &[Launch], wants_best: bool) -> ListKey<'a> {
        let mut key = ListKey::default();
        if self.changes.is_some() {
            return key;
        }
        key.number(usize::from(wants_best));
        for &RowPlace { sequence, length, .. } in self.places {
            key.number(sequence);
            for launch in list {
                if let Launch::Attention(attention) = launch {
                    key.number(attention_splits(attention.mask, length));
                }
            }
        }
        self.states.iter().flatten().for_each(|state| state.add_to(&mut key));
        key
    }

    /// What a mixer remembers of a row's sequence.
    fn state(&self, row: usize, number: usize) -> Result<GpuState<'a>> {
        match self.states[self.places[row].sequence].get(number) {
            Some(state) => Ok(*state),
            None => bail!("a mixer without its state"),
        }
    }
}

impl ProductLaunch {
    fn add<'a, 'b: 'a>(&'a self, step: &Rows<'a, 'b>, list: &mut LaunchList<'a>) -> Result<()> {
        let several = step.places.len() > 1;
        let residual = if let Then::Add(residual, _) = &self.then { residual.as_ref().map(RowVectors::view) } else { None };
        let changed = match step.changes.and_then(|changes| changes(self.id)) {
            Some(change) => self.changed_bias(change, list)?,
            None => None,
        };
        let bias = changed.or(self.bias.as_ref().map(GpuSlice::view));
        // Several rows are normed in lane order, so that four of them share what is read of the matrix.
        let x = self.x.view();
        let normed = step.workspace.normed.view().of(x.len);
        let (x, norm) = match &self.norm {
            Some(norm) if several && x.is_whole() => {
                let with = NormWith { ordered: true, ..NormWith::default() };
                list.norm(step.kernels, (x.all, step.places.len()), norm, normed.all, with)?;
                (normed, None)
            }
            norm => (x, norm.as_ref().map(|norm| (norm.weight.view(), norm.eps))),
        };
        let is_ordered = matches!(self.then, Then::Add(..)) || (several && self.norm.is_some() && norm.is_none());
        let factor = if let Then::Activate(_, _, factor) = &self.then { factor.as_ref().map(RowVectors::view) } else { None };
        step.each([Some(x), residual, factor, Some(self.y.view())], |rows, [x, residual, factor, y]| {
            let (Some(x), Some(y)) = (x, y) else { return Ok(()) };
            let with = ProductWith { rows, norm, bias, residual, factor, ordered: is_ordered, ..ProductWith::default() };
            let with = match &self.then {
                Then::Scale(scale) | Then::Add(_, scale) => ProductWith { scale: *scale, ..with },
                Then::Activate(gated, kind, _) => ProductWith { activation: Some((*gated, *kind)), ..with },
            };
            list.product(&self.weight, x, y, with)
        })
    }

    /// What adapters make of the bias: `bias + B A x`, of the outputs that this launch makes.
    fn changed_bias<'a>(&'a self, change: StepChange<'a>, list: &mut LaunchList<'a>) -> Result<Option<GpuView<'a>>> {
        let whole = change.bias.map(|bias| GpuView::of(f32_tensor(bias)?)).transpose()?;
        let own = |view: GpuView<'a>| match view.len() == self.weight.outputs() {
            true => Ok(view),
            false => view.words(self.first, self.weight.outputs()),
        };
        let Some(deltas) = change.deltas else { return whole.map(own).transpose() };
        let Some(StepDelta { a, b, inner, sum }) = deltas.tensors()?.for_step(list.gpu())? else {
            bail!("a step: expected changes without gains")
        };
        let (inner, sum) = (inner.view(), sum.view());
        // The launches of a matrix in several formats share it.
        if self.first == 0 {
            let norm = self.norm.as_ref().map(|norm| (norm.weight.view(), norm.eps));
            let with = ProductWith { norm, ordered: matches!(self.then, Then::Add(..)), ..ProductWith::default() };
            list.product(a, self.x.view().row(0)?, inner, with)?;
            // One that is no adapter's is what all launches of this matrix have.
            let residual = whole.or(self.whole_bias.as_ref().map(GpuSlice::view));
            list.product(b, inner, sum, ProductWith { residual, ..ProductWith::default() })?;
        }
        own(sum).map(Some)
    }
}

impl AttentionLaunch {
    fn add<'a>(&'a self, step: &Rows<'a, '_>, row: usize, list: &mut LaunchList<'a>) -> Result<()> {
        let Workspace { projected, positions, found, parts, angles, .. } = step.workspace;
        let HeadCounts { heads, .. } = self.counts;
        let own = AttentionRow {
            counts: self.counts,
            qkv: projected.view().of(self.layout.values(self.counts, self.head_dim)).row(row)?,
            layout: self.layout,
            norms: self.norms.as_ref(),
            v_norm: self.v_norm,
            angles: self.rope.map(|(number, pairs)| (&angles[number][row], pairs)),
            cache: step.state(row, self.state)?.cache()?,
            position: positions[row].view(),
            length: step.places[row].length,
            mask: self.mask,
            sinks: self.sinks.as_ref().map(GpuSlice::view),
            out: found.view().of(heads * self.head_dim).row(row)?,
            parts: parts.view(),
        };
        list.attention(self.kernels, own)
    }
}

impl ShortConvLaunch {
    fn add<'a>(&'a self, step: &Rows<'a, '_>, row: usize, list: &mut LaunchList<'a>) -> Result<()> {
        let (Workspace { projected, positions, found, .. }, channels) = (step.workspace, self.channels);
        let own = ConvolutionRow {
            inputs: projected.view().of(3 * channels).row(row)?,
            position: positions[row].view(),
            taps: self.taps,
            channels,
            weight: self.weight.view(),
            bias: self.bias.as_ref().map(GpuSlice::view),
            ring: step.state(row, self.state)?.ring()?,
            out: found.view().of(channels).row(row)?,
        };
        list.short_conv(step.kernels, own)
    }
}

impl DeltaNetLaunch {
    fn add<'a>(&'a self, step: &Rows<'a, '_>, row: usize, list: &mut LaunchList<'a>) -> Result<()> {
        let Workspace { projected, positions, found, .. } = step.workspace;
        let (ring, state) = step.state(row, self.state)?.scan()?;
        let own = DeltaNetRow {
            inputs: projected.view().of(self.inputs).row(row)?,
            position: positions[row].view(),
            by: &self.by,
            ring,
            state,
            out: found.view().of(self.by.shape.heads * self.by.shape.value_dim).row(row)?,
        };
        list.delta_net(step.kernels, own)
    }
}

/// Puts the launches together.
struct Builder<'a> {
    gpu: &'a Gpu,
    kv_element: Element,
    workspace: &'a Workspace,
    list: Vec<Launch>,
    /// By the size of heads.
    attention: Vec<(usize, AttentionKernels)>,
}

impl Builder<'_> {
    fn step(&mut self, step: &ResidualPart<'_>) -> Result<()> {
        let Workspace { x, sum, branch, .. } = self.workspace;
        let mut input: Option<(RowVectors, Option<GpuNorm>)> = None;
        let last = step.branches.len().saturating_sub(1);
        for (i, part) in step.branches.iter().enumerate() {
            // What is read here may have been read before, but is not written yet: the stream is, by the last branch.
            let (from, to) = (if i == 0 { x } else { sum }, if i == last { x } else { sum });
            let (read, norm) = match (part.input, input.take()) {
                (Some(norm), _) => self.normed(x, norm)?,
                (None, Some(before)) => before,
                (None, None) => bail!("a step whose first branch shares an input"),
            };
            input = Some((read.clone(), norm.clone()));
            let norm_out = part.norm_out.or(step.norm_out);
            let (residual, scale, y) = match norm_out {
                Some(_) => (None, 1.0, branch),
                None => (Some(from.clone()), step.scale, to),
            };
            let (output, found) = self.operation(&part.operation, read, norm)?;
            self.product(output, found, None, Then::Add(residual, scale), y)?;
            if let Some(norm) = norm_out {
                let factor = if i == last && step.norm_sum.is_none() { step.factor } else { 1.0 };
                self.norm(branch, norm, (Some(from), factor), to)?;
            }
        }
        if let Some(norm) = step.norm_sum {
            self.norm(x, norm, (None, step.factor), x)?;
        }
        Ok(())
    }

    /// What layers take in besides the stream, once what hangs on the token's id is there.
    fn per_layer(&mut self, part: &PerLayerPart<'_>) -> Result<()> {
        let Workspace { x, layer_inputs, of_ids, .. } = self.workspace;
        self.product(part.projection, x.clone(), None, Then::Scale(1.0), layer_inputs)?;
        let (added, scale) = if part.table.is_some() { (Some(of_ids), FRAC_1_SQRT_2) } else { (None, 1.0) };
        self.norm(layer_inputs, part.norm, (added, scale), layer_inputs)
    }

    /// The last matrix of an operation and its input, which is in lane order.
    fn operation<'p>(
        &mut self,
        operation: &OperationPart<'p>,
        x: RowVectors,
        norm: Option<GpuNorm>,
    ) -> Result<(LinearPart<'p>, RowVectors)> {
        let workspace = self.workspace;
        match operation {
            OperationPart::Mlp(MlpPart { is_gated, activation, up, down }) => {
                let gated = if *is_gated { Gated::Yes } else { Gated::No };
                let hidden = workspace.hidden.of(down.weight.inputs());
                self.product(*up, x, norm, Then::Activate(gated, *activation, None), &hidden)?;
                Ok((*down, hidden))
            }
            OperationPart::LayerInput(LayerInputPart { activation, gate, down, number }) => {
                let dim = down.weight.inputs();
                let (hidden, input) = (workspace.hidden.of(dim), workspace.layer_inputs.part(number * dim, dim));
                self.product(*gate, x, norm, Then::Activate(Gated::No, *activation, Some(input)), &hidden)?;
                Ok((*down, hidden))
            }
            OperationPart::Attention(_) | OperationPart::ShortConv(_) | OperationPart::DeltaNet(_) => {
                let [inputs, o] = operation.linears();
                let projected = workspace.projected.of(inputs.weight.outputs());
                self.product(inputs, x, norm, Then::Scale(1.0), &projected)?;
                match operation {
                    OperationPart::Attention(attention) => self.attention(attention)?,
                    OperationPart::ShortConv(conv) => self.short_conv(conv)?,
                    OperationPart::DeltaNet(net) => self.delta_net(net)?,
                    OperationPart::Mlp(_) | OperationPart::LayerInput(_) => {}
                }
                Ok((o, workspace.found.of(o.weight.inputs())))
            }
        }
    }

    fn short_conv(&mut self, part: &ShortConvPart<'_>) -> Result<()> {
        let ShortConvPart { conv, state, .. } = *part;
        let bias = conv.bias.as_ref().map(vector).transpose()?;
        let (taps, channels, weight) = (conv.taps, conv.channels, vector(&conv.weight)?);
        self.list.push(Launch::ShortConv(Box::new(ShortConvLaunch { taps, channels, weight, bias, state })));
        Ok(())
    }

    fn delta_net(&mut self, part: &DeltaNetPart<'_>) -> Result<()> {
        let DeltaNetPart { inputs, conv, decay, shape, length_eps, norm, state, .. } = *part;
        let Decay { bias, rate: Some(rate), .. } = decay else { bail!("a delta net without rates") };
        let by = GpuDeltaNet {
            shape,
            taps: conv.taps,
            conv: vector(&conv.weight)?,
            bias: vector(bias)?,
            rates: vector(rate)?,
            length_eps,
            norm: gpu_norm(norm, self.gpu)?,
        };
        self.list.push(Launch::DeltaNet(Box::new(DeltaNetLaunch { by, inputs: inputs.weight.outputs(), state })));
        Ok(())
    }

    fn attention(&mut self, part: &AttentionPart<'_>) -> Result<()> {
        let AttentionPart { heads, kv_heads, head_dim, .. } = *part;
        let (counts, layout) = (HeadCounts { heads, kv_heads }, QkvLayout { keys: part.keys, gate: part.gate });
        let qkv = self.workspace.projected.of(layout.values(counts, head_dim));
        let mut norms = None;
        if let Some(q) = part.q_norm {
            let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
            if q.width == head_dim {
                let q_weight = gpu_norm(q, self.gpu)?.weight;
                let k_weight = part.k_norm.map_or(Ok(q_weight.clone()), |k| gpu_norm(k, self.gpu).map(|norm| norm.weight))?;
                let each = heads > 1 && q_weight.len() == queries;
                norms = Some(QkNorms { q: q_weight, k: k_weight, eps: q.eps, after: part.norm_after, each });
            } else {
                let (queries, keys) = (qkv.part(0, queries), qkv.part(queries, keys));
                self.norm(&queries, q, (None, 1.0), &queries)?;
                if let Some(k) = part.k_norm {
                    self.norm(&keys, k, (None, 1.0), &keys)?;
                }
            }
        }
        let kernels = match self.attention.iter().find(|(known, _)| *known == head_dim) {
            Some((_, kernels)) => *kernels,
            None => {
                let kernels = self.gpu.attention_kernels(self.kv_element, head_dim)?;
                self.attention.push((head_dim, kernels));
                kernels
            }
        };
        let sinks = part.sinks.map(vector).transpose()?;
        self.list.push(Launch::Attention(Box::new(AttentionLaunch {
            kernels,
            head_dim,
            counts,
            layout,
            norms,
            v_norm: part.v_norm.map(|norm| norm.eps),
            rope: part.rope.map(|rope| (rope.number, if rope.adjacent { RopePairs::Adjacent } else { RopePairs::Halves })),
            mask: part.mask,
            sinks,
            state: part.state,
        })));
        Ok(())
    }

    /// What a product reads of `x` behind a norm: `x` itself, where the product can norm it.
    fn normed(&mut self, x: &RowVectors, norm: Option<&Norm>) -> Result<(RowVectors, Option<GpuNorm>)> {
        let Some(norm) = norm else { return Ok((x.clone(), None)) };
        if norm.kind == NormKind::Rms && norm.bias.is_none() {
            return Ok((x.clone(), Some(gpu_norm(norm, self.gpu)?)));
        }
        let normed = &self.workspace.normed;
        self.norm(x, norm, (None, 1.0), normed)?;
        Ok((normed.clone(), None))
    }

    /// `y = scale · (added + norm(x))`
    fn norm(&mut self, x: &RowVectors, by: &Norm, (added, scale): (Option<&RowVectors>, f32), y: &RowVectors) -> Result<()> {
        let by = gpu_norm(by, self.gpu)?;
        self.list.push(Launch::Norm(Box::new(NormLaunch { x: x.clone(), by, added: added.cloned(), scale, y: y.clone() })));
        Ok(())
    }

    fn product(
        &mut self,
        linear: LinearPart<'_>,
        x: RowVectors,
        norm: Option<GpuNorm>,
        then: Then,
        y: &RowVectors,
    ) -> Result<()> {
        let whole_bias = linear.bias.map(vector).transpose()?;
        let outputs = linear.weight.outputs();
        for (first, weight) in linear.weight.tensors()?.segments(self.gpu)? {
            let is_whole = weight.outputs() == outputs;
            let bias = match &whole_bias {
                Some(bias) if !is_whole => Some(bias.words(first, weight.outputs())?),
                bias => bias.clone(),
            };
            let own = |vectors: &RowVectors| if is_whole { vectors.clone() } else { vectors.part(first, weight.outputs()) };
            let (y, then) = match &then {
                Then::Activate(..) => (y.clone(), then.clone()),
                Then::Scale(_) => (own(y), then.clone()),
                Then::Add(residual, scale) => (own(y), Then::Add(residual.as_ref().map(own), *scale)),
            };
            let (id, whole_bias, x, norm) = (linear.id, whole_bias.clone(), x.clone(), norm.clone());
            self.list.push(Launch::Product(Box::new(ProductLaunch { id, weight, first, bias, whole_bias, x, norm, then, y })));
        }
        Ok(())
    }
}

impl Workspace {
    fn new(parts: &DecoderParts<'_>, gpu: &Gpu) -> Result<Self> {
        let (width, vocab_size) = (parts.embed.inputs(), parts.head.weight.outputs());
        let (mut projected, mut found, mut hidden, mut split) = (0, 0, 0, 0);
        for operation in parts.operations() {
            let [first, last] = operation.linears().map(|linear| linear.weight);
            if matches!(operation, OperationPart::Mlp(_) | OperationPart::LayerInput(_)) {
                hidden = hidden.max(last.inputs());
            } else {
                projected = projected.max(first.outputs());
                found = found.max(last.inputs());
            }
            if let OperationPart::Attention(AttentionPart { heads, head_dim, .. }) = operation {
                split = split.max(heads * MOST_SPLITS * (head_dim + 2));
            }
        }
        let layers = parts.per_layer.as_ref().map_or(0, |part| part.projection.weight.outputs());
        let angles: Vec<usize> = parts.ropes.iter().map(|half| (2 * half).next_multiple_of(4)).collect();
        let inputs = ROWS * (5 + 2 * angles.iter().sum::<usize>());
        let rows = [width, width, width, width, layers, layers, projected, found, hidden, vocab_size].map(|words| ROWS * words);
        let sizes = [&[inputs, split, ROWS * BestToken::words(vocab_size)], &rows[..]].concat();
        // A multiple of 256 bytes each.
        let total = sizes.iter().map(|words| words.next_multiple_of(64)).sum::<usize>();
        let zeros = Tensor::zeros(total, DType::F32, gpu.device())?;
        // Where the host writes into it, the zeros may not come behind: the launcher knows of its own kernels alone.
        gpu.device().synchronize()?;
        let all = GpuSlice::of(&zeros)?;
        let mut first = 0;
        let mut take = |words: usize| {
            let part = all.words(first, words)?;
            first += words.next_multiple_of(64);
            Ok::<_, candle_core::Error>(part)
        };
        let mut taken = Vec::with_capacity(sizes.len());
        for words in sizes {
            taken.push(take(words)?);
        }
        let rows = taken.split_off(3).into_iter().map(RowVectors::new).collect::<Vec<_>>();
        let (Ok([inputs, split, best]), Ok([x, sum, normed, branch, layer_inputs, of_ids, projected, found, hidden, logits])) =
            (<[GpuSlice; 3]>::try_from(taken), <[RowVectors; 10]>::try_from(rows))
        else {
            bail!("a workspace of other parts")
        };
        let mut next = 5 * ROWS;
        let mut of_ropes = Vec::with_capacity(angles.len());
        for (words, half) in angles.into_iter().zip(&parts.ropes) {
            let mut of_rows = Vec::with_capacity(ROWS);
            for _ in 0..ROWS {
                let (queries, keys) = (inputs.words(next, words)?, inputs.words(next + words, words)?);
                of_rows.push(GpuAngles { queries, keys, half: *half });
                next += 2 * words;
            }
            of_ropes.push(of_rows);
        }
        let ids = inputs.words(0, ROWS)?;
        let positions = (0..ROWS).map(|row| inputs.words(ROWS + 4 * row, 4)).collect::<Result<_>>()?;
        let (angles, parts) = (of_ropes, split);
        Ok(Self {
            inputs,
            ids,
            positions,
            angles,
            x,
            sum,
            normed,
            branch,
            layer_inputs,
            of_ids,
            projected,
            found,
            parts,
            hidden,
            logits,
            best,
        })
    }
}

/// Compiles all that the step of a network is made of.
fn compiled(parts: &DecoderParts<'_>, gpu: &Gpu, element: Element, kv_element: Element) -> Result<RowKernels> {
    for matrix in [parts.embed].into_iter().chain(parts.matrices()) {
        // Those of quantised matrices were compiled with them.
        if let DeviceMatrix::Dense(_) = matrix.tensors()? {
            gpu.product_kernels(element, GpuFormat::dense)?;
        }
    }
    for operation in parts.operations() {
        if let OperationPart::Attention(attention) = operation {
            gpu.attention_kernels(kv_element, attention.head_dim)?;
        }
    }
    gpu.row_kernels()
}

/// A matrix of one format.
fn first_segment(matrix: &DeviceMatrix, gpu: &Gpu) -> Result<GpuWeight> {
    match matrix.segments(gpu)?.pop() {
        Some((0, weight)) => Ok(weight),
        _ => bail!("a step: expected an embedding of one format"),
    }
}

fn vector(vector: &Vector) -> Result<GpuSlice> {
    GpuSlice::of(f32_tensor(vector)?)
}

fn f32_tensor(vector: &Vector) -> Result<&Tensor> {
    let tensor = vector.tensors()?;
    if tensor.dtype() != DType::F32 {
        bail!("a vector of kernels: expected F32, found {:?}", tensor.dtype())
    }
    Ok(tensor)
}

fn gpu_norm(norm: &Norm, gpu: &Gpu) -> Result<GpuNorm> {
    let weight = match &norm.weight {
        Some(weight) => vector(weight)?,
        None => GpuSlice::of(&Tensor::ones(norm.width, DType::F32, gpu.device())?)?,
    };
    let bias = norm.bias.as_ref().map(vector).transpose()?;
    Ok(GpuNorm { kind: norm.kind, eps: norm.eps, width: norm.width, weight, bias })
}
