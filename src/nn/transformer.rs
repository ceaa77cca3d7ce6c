//! The only forward pass: embedding, layers, head.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::adapter::{Adapters, RowAdapters};
use super::layer::{Call, Layer, Seen, StepRows};
use super::linear::{ExpertStack, Linear, LinearId, Module, Restored, Role, StoredStack};
use super::loader::{Loader, Noted};
use super::mix::Part;
use super::per_layer::PerLayer;
use super::relative_bias::RelativeBias;
use super::rope::RopeAngles;
use super::{Bias, Config, NormConfig, Prefix, Rope, Slot, States, Tying, Weights};
use crate::error::{self, OutOfMemory};
use crate::ops::{
    self, AdaptedLinear, Backend, Context, DecodeStep, DecoderParts, Format, KvFormat, Masks, Matrix, Norm, Sequences,
    Unsupported,
};

/// A decoder or an encoder with its weights; immutable, clones share the weights.
#[derive(Clone)]
pub struct Transformer {
    config: Config,
    backend: Backend,
    /// What the states of sequences keep keys and values in.
    kv_format: KvFormat,
    /// In front of the names of the checkpoint.
    prefix: Prefix,
    modules: Vec<Module>,
    /// What transformers has experts as.
    stacks: Vec<Arc<ExpertStack>>,
    /// What the checkpoint has them as, where that is no modules.
    stored_stacks: Vec<StoredStack>,
    /// What the tensors of one of MLX's converter were before.
    restored: Arc<[Restored]>,
    /// The full name of a stored table of layers, which is no module.
    table: Option<String>,
    ropes: Vec<Arc<Rope>>,
    embed: Matrix,
    positions: Option<Matrix>,
    types: Option<Matrix>,
    embed_norm: Option<Norm>,
    relative_bias: Option<RelativeBias>,
    per_layer: Option<PerLayer>,
    layers: Vec<Layer>,
    final_norm: Option<Norm>,
    projection: Option<Linear>,
    /// `None` = the checkpoint gives vectors of tokens, and no scores of the next one.
    head: Option<Linear>,
    /// Single tokens by the kernels of a GPU, once they are [compiled](Self::with_decode_step).
    decode: Option<Arc<DecodeStep>>,
    /// Why not.
    lacks: Option<Unsupported>,
}

/// The matrices that adapters were merged into.
#[derive(Debug, Clone, Default)]
pub struct Changed {
    pub weights: HashSet<LinearId>,
    pub biases: HashSet<LinearId>,
}

/// Tokens to evaluate behind those that the states of a sequence hold.
pub struct Step<'a> {
    /// Below the vocabulary, at least one.
    pub ids: &'a [u32],
    /// They take up the tokens.
    pub states: &'a mut States,
    /// Tokens of the whole sequence that this is a part of; it decides the frequencies of dynamic ropes.
    pub length: usize,
    /// Those that the states were computed with.
    pub adapters: Option<&'a Adapters>,
}

impl Transformer {
    /// Fills every slot that the configuration declares.
    ///
    /// # Errors
    /// `ErrorKind::Format` naming a tensor that is missing, has another shape, or is left over.
    pub fn load(config: Config, weights: &mut Weights<'_>) -> error::Result<Self> {
        let c = &config;
        let (prefix, is_bare) = prefix(c, weights);
        let at = |name: &str| format!("{}{name}", prefix.network);
        let embed_name = at(c.names.embed);
        let head_name = c.names.head.map(|head| format!("{}{head}", prefix.head));
        let has = |weights: &Weights<'_>, name: &str| weights.has(&format!("{name}.weight"));
        let mut tied = c.tying == Tying::Tied && head_name.is_some();
        // A tied checkpoint may hold the shared matrix under either name, or under both.
        let shared = match &head_name {
            Some(head) if tied && !has(weights, &embed_name) => head,
            _ => &embed_name,
        };
        if let Some(head) = &head_name
            && tied
            && *shared == embed_name
            && has(weights, head)
        {
            // transformers ties equal matrices only; different ones are both used.
            let (embed, head) = (format!("{embed_name}.weight"), format!("{head}.weight"));
            tied = weights.equal(&embed, &head)?;
            weights.skip(&head);
        }
        let embed = if tied {
            weights.matrix_of(&[Slot::whole(shared, c.vocab_size)], &[Part::Output], (0, 1), c.hidden_size)?
        } else {
            weights.table(shared, c.vocab_size, c.hidden_size)?
        };
        let positions = c.positions.map(|p| weights.table(&at(c.names.positions), p.rows, c.hidden_size)).transpose()?;
        let types = c.token_types.map(|rows| weights.table(&at(c.names.types), rows, c.hidden_size)).transpose()?;
        let relative_bias = c.relative_bias.map(|bias| RelativeBias::load(weights, &at(bias.name), bias)).transpose()?;
        let ropes = c.ropes();
        let norm = norm_of_stored(c, weights);
        let mut loader = Loader::new(weights, (norm, c.norm.offset - norm.offset), prefix.network);
        let embed_norm = loader.optional_norm(c.names.embed_norm, c.hidden_size)?;
        let per_layer = match &c.per_layer {
            Some(per_layer) => Some(PerLayer::load(per_layer, c.layers.len(), c.hidden_size, &mut loader)?),
            None => None,
        };
        let mut layers = Vec::with_capacity(c.layers.len());
        for (number, layer) in c.layers.iter().enumerate() {
            loader.enter_layer(number, c.layers.len(), &c.names.layer(number));
            layers.push(Layer::load(layer, (c.hidden_size, c.residual_scale), &ropes, &mut loader)?);
        }
        loader.leave_layers();
        let final_norm = loader.optional_norm(c.names.final_norm, c.hidden_size)?;
        let projection = match c.projection {
            Some((name, size)) => Some(loader.linear(&[(&Slot::whole(name, size), Part::Other)], c.hidden_size, Bias::None)?),
            None => None,
        };
        let has_head = |loader: &Loader<'_, '_>, name: &str| {
            (tied || has(loader.weights, name)) && (c.head_bias == Bias::None || loader.weights.has(&format!("{name}.bias")))
        };
        let head = match c.names.head {
            None => None,
            // Saved without a head, or without its bias: a model of embeddings.
            Some(head) if is_bare && !has_head(&loader, &format!("{}{head}", prefix.head)) => None,
            Some(head) => {
                let shared = tied.then_some(&embed);
                Some(loader.head((prefix.head, head), c.vocab_size, c.hidden_size, c.head_bias, shared)?)
            }
        };
        let Noted { modules, stacks, stored_stacks, restored } = loader.into_noted(c.names.embed, c.vocab_size, c.hidden_size);
        let table = c.per_layer.and_then(|per_layer| per_layer.table).map(|(name, _)| at(&format!("{name}.weight")));
        weights.finish(|name| {
            let name = name.strip_prefix(prefix.network).unwrap_or(name);
            c.names.unused.iter().any(|unused| name.starts_with(unused))
        })?;
        let backend = weights.backend().clone();
        let kv_format = KvFormat::F32;
        Ok(Self {
            kv_format,
            backend,
            prefix,
            modules,
            stacks,
            stored_stacks,
            restored: restored.into(),
            table,
            ropes,
            embed,
            positions,
            types,
            embed_norm,
            relative_bias,
            per_layer,
            layers,
            final_norm,
            projection,
            head,
            decode: None,
            lacks: None,
            config,
        })
    }

    /// The same with keys and values kept in another format, which the backend [keeps](Backend::keeps).
    pub fn with_kv_format(self, kv_format: KvFormat) -> Self {
        Self { kv_format, ..self }
    }

    /// The same, evaluating single tokens by the GPU's own kernels, where the device has some; compiles them. See
    /// [`lacks`](Self::lacks).
    ///
    /// # Errors
    /// A failed device operation.
    pub fn with_decode_step(self) -> Result<Self> {
        let (decode, lacks) = match self.new_decode_step()? {
            None => (None, None),
            Some(Ok(step)) => (Some(Arc::new(step)), None),
            Some(Err(unsupported)) => (None, Some(unsupported)),
        };
        Ok(Self { decode, lacks, ..self })
    }

    /// What of the network the kernels of its device lack, where these are why it has no step of theirs.
    pub fn lacks(&self) -> Option<&Unsupported> {
        self.lacks.as_ref()
    }

    /// Why several tokens are evaluated by tensor operations alone, where the device has kernels for what is between products: they do
    /// not compile.
    pub fn lacks_for_batches(&self) -> Option<String> {
        self.backend().lacks_for(&self.embed)
    }

    /// How many weights are kept in each format, by its name; those that matrices share are counted once.
    pub fn weights_by_format(&self) -> BTreeMap<&'static str, u64> {
        let tables = [&self.embed].into_iter().chain(&self.positions).chain(&self.types);
        let linears = self.linears().map(|linear| &linear.weight).filter(|weight| !weight.is_same(&self.embed));
        let mut counts = BTreeMap::new();
        for matrix in tables.chain(linears) {
            for (rows, format) in matrix.formats() {
                *counts.entry(format).or_default() += rows as u64 * matrix.inputs() as u64;
            }
        }
        counts
    }

    /// Whether single tokens are evaluated by the GPU's own kernels.
    pub fn decodes_by_kernels(&self) -> bool {
        self.decode.is_some()
    }

    /// The step of single tokens by the GPU's own kernels.
    pub(super) fn decode_step(&self) -> Option<&DecodeStep> {
        self.decode.as_deref()
    }

    pub(super) fn ropes(&self) -> &[Arc<Rope>] {
        &self.ropes
    }

    /// What it is to a GPU's kernels.
    pub(super) fn decoder_parts(&self) -> std::result::Result<DecoderParts<'_>, Unsupported> {
        let c = &self.config;
        let Some(head) = self.head.as_ref().filter(|_| self.generates()) else {
            return Unsupported::new("a network without logits");
        };
        if self.positions.is_some() || self.types.is_some() || self.relative_bias.is_some() || self.projection.is_some() {
            return Unsupported::new("tables of positions");
        }
        let mut steps = Vec::new();
        for layer in &self.layers {
            steps.extend(layer.parts()?);
        }
        Ok(DecoderParts {
            embed: &self.embed,
            embed_scale: c.embed_scale,
            embed_norm: self.embed_norm.as_ref(),
            per_layer: self.per_layer.as_ref().map(PerLayer::part),
            steps,
            final_norm: self.final_norm.as_ref(),
            head: head.part(),
            logit_scale: c.logit_scale,
            logit_softcap: c.logit_softcap,
            ropes: self.ropes.iter().map(|rope| rope.dim / 2).collect(),
            kv_format: self.kv_format,
        })
    }

    /// What the network is made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it computes.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Whether it can predict the next token: it has an output matrix, and no token sees a later one.
    pub fn generates(&self) -> bool {
        self.head.is_some() && self.config.is_causal()
    }

    /// The states of a sequence without a token.
    pub fn new_states(&self) -> States {
        States::new(&self.config, self.kv_format, &self.backend)
    }

    /// Sequences of equal regime share their cached keys; see [`Rope::regime`].
    pub fn regime(&self, length: usize) -> usize {
        // One number of all: two ropes that change at different lengths have a regime each.
        self.ropes.iter().fold(0, |code: usize, rope| code.wrapping_mul(0x9e37_79b1).wrapping_add(rope.regime(length)))
    }

    /// Whether a rope changes with every token beyond the trained length.
    pub fn is_dynamic(&self) -> bool {
        self.ropes.iter().any(|rope| rope.is_dynamic())
    }

    /// The checkpoint's modules that are matrices, the embedding first.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The parameters of transformers' modules that hold a matrix of each expert, layer by layer.
    pub fn stacks(&self) -> &[Arc<ExpertStack>] {
        &self.stacks
    }

    /// The checkpoint's tensors of several experts, which are no modules.
    pub fn stored_stacks(&self) -> &[StoredStack] {
        &self.stored_stacks
    }

    /// Tensors that a saved checkpoint has in place of those that MLX's converter has made of them.
    pub fn restored(&self) -> &[Restored] {
        &self.restored
    }

    /// What a tensor of the checkpoint is called in a saved one, which has not the prefix of MLX's converter.
    pub fn saved_name(&self, name: &str) -> String {
        let Prefix { network, head, is_of_mlx } = self.prefix;
        let usual = self.config.names.prefixes.first().filter(|_| is_of_mlx);
        let Some(usual) = usual else { return name.to_string() };
        match (name.strip_prefix(network), name.strip_prefix(head)) {
            (Some(rest), _) => format!("{}{rest}", usual.network),
            (None, Some(rest)) => format!("{}{rest}", usual.head),
            (None, None) => name.to_string(),
        }
    }

    /// The full name of a large matrix of the checkpoint that no adapter changes.
    pub fn stored_table(&self) -> Option<&str> {
        self.table.as_deref()
    }

    /// The full name of a module in the checkpoint.
    pub fn stored_name(&self, module: &Module) -> String {
        let prefix = if module.role == Role::Head { self.prefix.head } else { self.prefix.network };
        format!("{prefix}{}", module.name)
    }

    /// Rows of a module's weight as the checkpoint orders them, in F32.
    ///
    /// # Errors
    /// A failed device operation; rows that the network has no use for.
    pub fn module_rows(&self, module: &Module, rows: Range<usize>) -> Result<Vec<f32>> {
        self.stored_rows((&module.name, module.inputs), rows, |row| {
            let (part, start) = module.parts.iter().find(|(part, _)| part.contains(&row))?;
            Some((part, module.linear, *start))
        })
    }

    /// The same of a stack of matrices.
    ///
    /// # Errors
    /// As [`module_rows`](Self::module_rows).
    pub fn stack_rows(&self, stack: &StoredStack, rows: Range<usize>) -> Result<Vec<f32>> {
        self.stored_rows((&stack.name, stack.inputs), rows, |row| {
            let (part, linear, start) = stack.pieces.iter().find(|(part, ..)| part.contains(&row))?;
            Some((part, *linear, *start))
        })
    }

    /// Rows of what is stored; `part` tells the rows among which one is, their matrix, and which output the first of them is.
    fn stored_rows<'a>(
        &self,
        (name, inputs): (&str, usize),
        rows: Range<usize>,
        part: impl Fn(usize) -> Option<(&'a Range<usize>, LinearId, usize)>,
    ) -> Result<Vec<f32>> {
        let (mut values, mut row) = (Vec::new(), rows.start);
        let len = rows.len() * inputs;
        values.try_reserve_exact(len).map_err(|_| OutOfMemory { what: format!("{len} values of {name}") })?;
        while row < rows.end {
            let Some((part, linear, start)) = part(row) else { bail!("row {row} of {name} is not in the network") };
            let matrix = self.linear(linear).map_or(&self.embed, |linear| &linear.weight);
            let end = part.end.min(rows.end);
            values.extend(matrix.rows(start + row - part.start..start + end - part.start)?);
            row = end;
        }
        Ok(values)
    }

    /// A module's bias as the checkpoint orders it; `None` without one.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn module_bias(&self, module: &Module) -> Result<Option<Vec<f32>>> {
        let Some(bias) = self.linear(module.linear).and_then(|linear| linear.bias.as_ref()) else { return Ok(None) };
        let (bias, mut values) = (bias.values()?, vec![0.0; module.outputs]);
        for (rows, start) in &module.parts {
            values[rows.clone()].copy_from_slice(&bias[*start..start + rows.len()]);
        }
        Ok(Some(values))
    }

    /// The matrices whose weights, and those whose biases, are not this network's and the other's in common.
    pub fn changes(&self, other: &Self) -> Changed {
        let mut changed = Changed::default();
        if !self.embed.is_same(&other.embed) {
            changed.weights.insert(LinearId::EMBEDDING);
        }
        let others = other.linears_by_id();
        for linear in self.linears() {
            let other = others.get(&linear.id);
            if !other.is_some_and(|other| linear.weight.is_same(&other.weight)) {
                changed.weights.insert(linear.id);
            }
            let bias = other.and_then(|other| other.bias.as_ref());
            if let Some(own) = &linear.bias
                && !bias.is_some_and(|bias| own.is_same(bias))
            {
                changed.biases.insert(linear.id);
            }
        }
        changed
    }

    /// Whether embedding and output matrix are one.
    pub fn is_tied(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.weight.is_same(&self.embed))
    }

    /// The output matrix's id.
    pub(super) fn head_id(&self) -> Option<LinearId> {
        self.head.as_ref().map(|head| head.id)
    }

    /// The embedding by its id.
    pub(super) fn table(&self, id: LinearId) -> Option<&Matrix> {
        (id == LinearId::EMBEDDING).then_some(&self.embed)
    }

    /// The matrix of an id, with its bias; the embedding is none with outputs.
    pub(super) fn linear(&self, id: LinearId) -> Option<&Linear> {
        self.linears().find(|linear| linear.id == id)
    }

    /// The matrices by their ids, for those who look for many.
    pub(super) fn linears_by_id(&self) -> HashMap<LinearId, &Linear> {
        self.linears().map(|linear| (linear.id, linear)).collect()
    }

    /// Every matrix for products.
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let per_layer = self.per_layer.iter().map(PerLayer::linear);
        per_layer.chain(self.layers.iter().flat_map(Layer::linears)).chain(&self.projection).chain(&self.head)
    }

    /// The weights that embedding and output matrix share.
    pub fn tied_parameters(&self) -> u64 {
        if self.is_tied() { self.embed.outputs() as u64 * self.embed.inputs() as u64 } else { 0 }
    }

    /// The type of matrices that adapters bring along.
    pub(super) fn computed_type(&self) -> Format {
        self.embed.computed_type()
    }

    /// The network that this one and adapters are together. What they do not change is shared.
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`, `ErrorKind::Device`.
    pub fn merged(&self, adapters: &Adapters) -> error::Result<Self> {
        let mut network = Self { decode: None, lacks: None, ..self.clone() };
        let per_layer = network.per_layer.iter_mut().map(PerLayer::linear_mut);
        let layers = network.layers.iter_mut().flat_map(Layer::linears_mut);
        for linear in per_layer.chain(layers).chain(&mut network.projection).chain(&mut network.head) {
            *linear = linear.merged(adapters.at(linear.id), &self.backend)?;
        }
        if let Some(change) = adapters.at(LinearId::EMBEDDING) {
            network.embed = change.merged_embedding(&self.embed, &self.backend)?;
            // What was one stays one, where both change alike.
            let as_embedding = |head: &Linear| adapters.at(head.id).is_some_and(|own| own.has_rows_alone(change.lists()));
            let is_one = |head: &&mut Linear| self.is_tied() && change.is_shared() && as_embedding(head);
            if let Some(head) = network.head.as_mut().filter(is_one) {
                head.weight = network.embed.clone();
            }
        }
        Ok(network)
    }

    /// Evaluates the tokens of several sequences in one pass. On the CPU each has the bits that it has alone.
    ///
    /// # Shape
    /// Returns the last layer's output `(T, C)` of all tokens, those of one step behind those of another, before the final norm.
    ///
    /// # Errors
    /// A failed device operation; some of the states may then be ahead of others: truncate them.
    pub fn forward(&self, steps: &mut [Step<'_>]) -> Result<Tensor> {
        let spans: Vec<_> =
            steps.iter().map(|step| (step.states.len()..step.states.len() + step.ids.len(), step.length)).collect();
        let adapters = || steps.iter().map(|step| (step.ids.len(), step.adapters));
        let starts = spans.iter().map(|(span, _)| span.start);
        let sequences: Vec<(&[u32], usize)> = steps.iter().map(|step| step.ids).zip(starts).collect();
        let adapters = RowAdapters::new(adapters());
        let cx = Context::forward(&self.backend);
        let x = self.embed(cx, &sequences, &[], &adapters)?;
        let layer_inputs = self.layer_inputs(cx, &x, &all_ids(&sequences), &adapters)?;
        let angles = self.angles(&spans)?;
        let mut first = 0;
        let past = steps.iter_mut().map(|step| {
            let rows = first..first + step.ids.len();
            first = rows.end;
            StepRows { rows, states: &mut *step.states, masks: Masks::default() }
        });
        self.run(x, &mut Call { angles, adapters, seen: Seen::Past(past.collect()), layer_inputs })
    }

    /// Evaluates whole sequences, each for itself.
    ///
    /// # Shape
    /// `ids`: the tokens of all sequences, one after another, below the vocabulary and as many as `lengths` sum to; returns the
    /// vectors of the tokens `(T, C)`, after the final norm and, where there is one, the projection behind it.
    ///
    /// # Errors
    /// A failed device operation; a sequence that is longer than the model's context.
    pub fn encode(&self, ids: &[u32], lengths: &[usize], adapters: Option<&Adapters>) -> Result<Tensor> {
        self.encode_typed((ids, &[]), lengths, adapters)
    }

    /// The same of tokens that have types, below the rows of their table; without any, all have the first.
    pub fn encode_typed(&self, (ids, types): (&[u32], &[u32]), lengths: &[usize], adapters: Option<&Adapters>) -> Result<Tensor> {
        let cx = Context::forward(&self.backend);
        let x = self.embed(cx, &sequences(ids, lengths), types, &RowAdapters::all(adapters))?;
        let mut call = self.whole_sequences(lengths, adapters)?;
        call.layer_inputs = self.layer_inputs(cx, &x, ids, &call.adapters)?;
        let x = self.run(x, &mut call)?;
        let x = self.final_normed(cx, x)?;
        self.projection.as_ref().map_or(Ok(x.clone()), |projection| projection.forward(cx, &x, &call.adapters))
    }

    /// What the layers need for sequences that lie one after another, but for what they take in besides the stream.
    pub(super) fn whole_sequences<'a>(&self, lengths: &[usize], adapters: Option<&'a Adapters>) -> Result<Call<'a>> {
        let spans: Vec<_> = lengths.iter().map(|&len| (0..len, len)).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let bias = self.relative_bias.as_ref().map(|bias| bias.by_distance(longest));
        let sequences = Sequences::new(lengths.to_vec(), bias, &self.backend)?;
        let seen = Seen::Nothing(sequences, self.config.shared_keys().map(|number| (number, None)).collect());
        Ok(Call { angles: self.angles(&spans)?, adapters: RowAdapters::all(adapters), seen, layer_inputs: Vec::new() })
    }

    /// What each layer takes in besides the stream, where the network has that; see [`PerLayer::forward`].
    pub(super) fn layer_inputs(
        &self,
        cx: Context<'_>,
        x: &Tensor,
        ids: &[u32],
        adapters: &RowAdapters<'_>,
    ) -> Result<Vec<Tensor>> {
        self.per_layer.as_ref().map_or(Ok(Vec::new()), |per_layer| per_layer.forward(cx, x, ids, adapters))
    }

    fn angles(&self, spans: &[(Range<usize>, usize)]) -> Result<Vec<RopeAngles>> {
        self.ropes.iter().map(|rope| rope.angles(spans, &self.backend)).collect()
    }

    fn run(&self, x: Tensor, call: &mut Call<'_>) -> Result<Tensor> {
        let cx = Context::forward(&self.backend);
        self.layers.iter().try_fold(x, |x, layer| layer.forward(cx, x, call))
    }

    /// One layer.
    ///
    /// # Shape
    /// `x`: `(T, C)`; returns the same.
    pub(super) fn layer(&self, cx: Context<'_>, i: usize, x: Tensor, call: &mut Call<'_>) -> Result<Tensor> {
        self.layers[i].forward(cx, x, call)
    }

    /// The vectors that the first layer reads, of tokens of several sequences, each with the position of its first one. Without `types`
    /// all tokens have the first.
    pub(super) fn embed(
        &self,
        cx: Context<'_>,
        sequences: &[(&[u32], usize)],
        types: &[u32],
        adapters: &RowAdapters<'_>,
    ) -> Result<Tensor> {
        let ids = all_ids(sequences);
        let mut x = adapters.embedding(cx, &self.embed, &ids, self.config.embed_scale)?;
        if let Some(table) = &self.types {
            let first;
            let types = if types.is_empty() {
                first = vec![0; ids.len()];
                &first
            } else {
                types
            };
            x = ops::add_scaled(cx, &x, ops::embedding(table, types, 1.0)?, 1.0, None)?;
        }
        if let Some(table) = &self.positions {
            x = ops::add_scaled(cx, &x, ops::embedding(table, &self.position_rows(sequences), 1.0)?, 1.0, None)?;
        }
        ops::optional_norm(cx, x, self.embed_norm.as_ref())
    }

    /// The row of each token in the table of positions.
    fn position_rows(&self, sequences: &[(&[u32], usize)]) -> Vec<u32> {
        let padding = self.config.positions.and_then(|positions| positions.padding);
        let mut rows = Vec::new();
        for (ids, first) in sequences {
            let mut next = *first as u32 + padding.map_or(0, |padding| padding + 1);
            for &id in *ids {
                if padding == Some(id) {
                    rows.push(id);
                } else {
                    rows.push(next);
                    next += 1;
                }
            }
        }
        rows
    }

    /// The output matrix alone.
    pub(super) fn head(&self) -> Option<AdaptedLinear<'_>> {
        self.head.as_ref().map(|head| head.changed(None))
    }

    /// Behind the last layer.
    pub(super) fn final_normed(&self, cx: Context<'_>, x: Tensor) -> Result<Tensor> {
        ops::optional_norm(cx, x, self.final_norm.as_ref())
    }

    /// The logits of every token of the vocabulary, for some rows of the last layer's output.
    ///
    /// # Shape
    /// `hidden`: `(T, C)`; `rows`: ascending, each with its adapters; `out` becomes `rows · V` values.
    ///
    /// # Errors
    /// If the network has no output matrix; see [`generates`](Self::generates).
    pub fn logits(&self, hidden: &Tensor, rows: &[usize], adapters: &RowAdapters<'_>, out: &mut Vec<f32>) -> Result<()> {
        let c = &self.config;
        let Some(head) = &self.head else { bail!("the model has no output matrix") };
        if rows.is_empty() {
            out.clear();
            return Ok(());
        }
        let cx = Context::forward(&self.backend);
        let x = self.final_normed(cx, ops::select_rows(cx, hidden, rows)?)?;
        let product = |x: &Tensor, change, out: &mut Vec<f32>| {
            ops::logits(&self.backend, x, head.changed(change), c.logit_scale, c.logit_softcap, out)
        };
        let groups = adapters.groups(head.id);
        if let [(_, change)] = groups[..] {
            return product(&x, change, out);
        }
        out.clear();
        let (mut first, mut logits) = (0, Vec::new());
        for (rows, change) in groups {
            product(&ops::narrow_rows(&x, first..first + rows)?, change, &mut logits)?;
            out.append(&mut logits);
            first += rows;
        }
        Ok(())
    }
}

/// The tokens of sequences, one after another.
fn all_ids(sequences: &[(&[u32], usize)]) -> Vec<u32> {
    sequences.iter().flat_map(|(ids, _)| ids.iter().copied()).collect()
}

/// Sequences that lie one after another.
pub(super) fn sequences<'a>(mut ids: &'a [u32], lengths: &[usize]) -> Vec<(&'a [u32], usize)> {
    let cut = |&len: &usize| {
        let (sequence, rest) = ids.split_at(len);
        ids = rest;
        (sequence, 0)
    };
    lengths.iter().map(cut).collect()
}

/// How norms are stored. MLX's converter adds what a family adds to them.
fn norm_of_stored(c: &Config, weights: &Weights<'_>) -> NormConfig {
    let offset = if weights.is_of_mlx() { 0.0 } else { c.norm.offset };
    NormConfig { offset, ..c.norm }
}

/// The prefix of the stored names, and whether the checkpoint lacks it: it was then saved without a head.
fn prefix(c: &Config, weights: &Weights<'_>) -> (Prefix, bool) {
    let layers = c.names.layers();
    let stored = c.names.prefixes.iter().find(|prefix| weights.has_any(&format!("{}{layers}", prefix.network)));
    match (stored, c.names.prefixes.first()) {
        (Some(prefix), _) => (*prefix, false),
        (None, Some(_)) if weights.has_any(layers) => (Prefix::of(""), true),
        (None, usual) => (usual.copied().unwrap_or(Prefix::of("")), false),
    }
}
