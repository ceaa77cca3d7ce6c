//! The only forward pass.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::adapter::{Adapters, BlockChanges, Change, Module, Place};
use super::linear::Linear;
use super::relative_bias::RelativeBias;
use super::weights::Slot;
use super::{Config, KvCache, QkNorm, Rope, Source, Weights};
use crate::error;
use crate::ops::{self, Angles, Backend, Context, Format, Mask, Masks, Matrix, Norm, Product, Sequences};

/// A decoder or an encoder with its weights; immutable, clones share the weights.
#[derive(Clone)]
pub struct Transformer {
    config: Config,
    backend: Backend,
    embed: Matrix,
    positions: Option<Matrix>,
    types: Option<Matrix>,
    embed_norm: Option<Norm>,
    relative_bias: Option<RelativeBias>,
    layers: Vec<Block>,
    final_norm: Option<Norm>,
    /// `None` = the checkpoint gives vectors of tokens, and no scores of the next one.
    head: Option<Linear>,
}

/// One layer; a norm that the family does not have at a place is `None`.
#[derive(Clone)]
struct Block {
    attn_in: Option<Norm>,
    qkv: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    o: Linear,
    attn_out: Option<Norm>,
    attn_sum: Option<Norm>,
    mlp_in: Option<Norm>,
    /// Gate and up as one matrix, or up alone.
    up: Linear,
    down: Linear,
    mlp_out: Option<Norm>,
    mlp_sum: Option<Norm>,
}

impl Transformer {
    /// Fills every slot that the configuration declares.
    ///
    /// # Errors
    /// `ErrorKind::Format` naming a tensor that is missing, has another shape, or is left over.
    pub fn load(config: Config, weights: &mut Weights<'_>) -> error::Result<Self> {
        let c = &config;
        let (prefix, bare) = prefix(c, weights);
        let at = |name: &str| format!("{prefix}{name}");
        let (embed_name, head_name) = (at(c.names.embed), c.names.head);
        let has = |weights: &Weights<'_>, name: &str| weights.has(&format!("{name}.weight"));
        let mut tied = c.tied && head_name.is_some();
        // A tied checkpoint may hold the shared matrix under either name, or under both.
        let shared = match head_name {
            Some(head) if tied && !has(weights, &embed_name) => head,
            _ => embed_name.as_str(),
        };
        if let Some(head) = head_name
            && tied
            && shared == embed_name
            && has(weights, head)
        {
            // transformers ties equal matrices only; different ones are both used.
            let (embed, head) = (format!("{embed_name}.weight"), format!("{head}.weight"));
            tied = weights.equal(&embed, &head)?;
            weights.skip(&head);
        }
        let embed = if tied {
            weights.matrix(&[Slot::whole(shared, c.vocab_size)], c.hidden_size)?
        } else {
            weights.table(shared, c.vocab_size, c.hidden_size)?
        };
        let positions = c.positions.map(|p| weights.table(&at(c.names.positions), p.rows, c.hidden_size)).transpose()?;
        let types = c.token_types.map(|rows| weights.table(&at(c.names.types), rows, c.hidden_size)).transpose()?;
        let relative_bias = c.relative_buckets.map(|n| RelativeBias::load(weights, &at(c.names.relative_bias), n, c.num_heads));
        let norm = |weights: &mut Weights<'_>, name: Option<&'static str>| {
            name.map(|name| load_norm(c, weights, &at(name), c.hidden_size)).transpose()
        };
        let embed_norm = norm(weights, c.names.embed_norm)?;
        let layers = (0..c.layers.len()).map(|i| Block::load(c, i, &prefix, weights)).collect::<error::Result<_>>()?;
        let final_norm = norm(weights, c.names.final_norm)?;
        let head = match head_name {
            None => None,
            // Saved without a head: a model of embeddings.
            Some(head) if bare && !tied && !has(weights, head) => None,
            Some(head) => {
                let slot = Slot::whole(head, c.vocab_size);
                let weight = if tied { embed.clone() } else { weights.matrix(&[slot], c.hidden_size)? };
                let bias = if c.bias.head { Some(weights.vector(&format!("{head}.bias"), c.vocab_size, 0.0)?) } else { None };
                Some(Linear { weight, bias })
            }
        };
        weights.finish(|name| {
            let name = name.strip_prefix(&prefix).unwrap_or(name);
            c.names.unused.iter().any(|unused| name.starts_with(unused))
        })?;
        let (backend, relative_bias) = (weights.backend().clone(), relative_bias.transpose()?);
        Ok(Self { backend, embed, positions, types, embed_norm, relative_bias, layers, final_norm, head, config })
    }

    /// What the network is made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it computes.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Whether it can tell the next token: it has an output matrix, and no token sees a later one.
    pub fn generates(&self) -> bool {
        self.head.is_some() && self.config.causal
    }

    /// An empty cache for this network.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.config, &self.backend)
    }

    /// Sequences of equal regime share their cached keys; see [`Rope::regime`].
    pub fn regime(&self, length: usize) -> usize {
        self.config.ropes.iter().map(|rope| rope.regime(length)).max().unwrap_or(0)
    }

    /// Whether a rope changes with every token beyond the trained length.
    pub fn is_dynamic(&self) -> bool {
        self.config.ropes.iter().any(Rope::is_dynamic)
    }

    /// The checkpoint's modules that adapters can change: those that are matrices.
    pub fn modules(&self) -> Vec<Module> {
        let c = &self.config;
        let mut modules = vec![Module::whole(c.names.embed, c.hidden_size, c.vocab_size, false, Place::Embed)];
        for layer in 0..c.layers.len() {
            let products = products(c, &c.names.layer.replace("{}", &layer.to_string()));
            let first = modules.len();
            let places = [Place::Qkv(layer), Place::O(layer), Place::Up(layer), Place::Down(layer)];
            for (place, Stored { slots, inputs, bias }) in places.into_iter().zip(products) {
                let mut start = 0;
                for slot in slots {
                    let known = (first..modules.len()).find(|&at| modules[at].name == slot.name);
                    let at = known.unwrap_or_else(|| {
                        modules.push(Module { parts: Vec::new(), ..Module::whole(&slot.name, inputs, slot.total, bias, place) });
                        modules.len() - 1
                    });
                    let rows = slot.rows.len();
                    // Neighbours in both orders are one part: a stored q|k|v is the network's.
                    match modules[at].parts.last_mut() {
                        Some((last, first)) if last.end == slot.rows.start && *first + last.len() == start => {
                            last.end = slot.rows.end;
                        }
                        _ => modules[at].parts.push((slot.rows, start)),
                    }
                    start += rows;
                }
            }
        }
        if let (Some(_), Some(name)) = (&self.head, c.names.head) {
            modules.push(Module::whole(name, c.hidden_size, c.vocab_size, c.bias.head, Place::Head));
        }
        modules
    }

    /// The matrix at a place, with its bias; the embedding is none with outputs.
    pub(super) fn linear(&self, place: Place) -> Option<&Linear> {
        match place {
            Place::Qkv(layer) => self.layers.get(layer).map(|block| &block.qkv),
            Place::O(layer) => self.layers.get(layer).map(|block| &block.o),
            Place::Up(layer) => self.layers.get(layer).map(|block| &block.up),
            Place::Down(layer) => self.layers.get(layer).map(|block| &block.down),
            Place::Head => self.head.as_ref(),
            Place::Embed => None,
        }
    }

    /// The weights that embedding and output matrix share.
    pub fn tied_parameters(&self) -> u64 {
        let shares = |head: &Linear| head.weight.is_same(&self.embed);
        let size = self.embed.outputs() as u64 * self.embed.inputs() as u64;
        if self.head.as_ref().is_some_and(shares) { size } else { 0 }
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
        let mut network = self.clone();
        let backend = &self.backend;
        for (i, block) in network.layers.iter_mut().enumerate() {
            let changes = adapters.block(i);
            block.qkv = block.qkv.merged(changes.qkv, backend)?;
            block.o = block.o.merged(changes.o, backend)?;
            block.up = block.up.merged(changes.up, backend)?;
            block.down = block.down.merged(changes.down, backend)?;
        }
        network.head = match &self.head {
            Some(head) => Some(head.merged(adapters.at(Place::Head), backend)?),
            None => None,
        };
        if let Some(embed) = adapters.at(Place::Embed).and_then(|change| change.weight.as_ref()) {
            network.embed = embed.clone();
        }
        Ok(network)
    }

    /// Evaluates tokens behind those in the cache, and adds them to it.
    ///
    /// # Shape
    /// `ids`: `T` ids below the vocabulary; returns the last layer's output `(T, C)`, before the final norm. `length`: tokens
    /// of the whole sequence that this call is a part of; it decides the frequencies of dynamic ropes. `adapters`: those that the
    /// cache was computed with.
    ///
    /// # Errors
    /// A failed device operation; some layers of the cache may then be ahead of others: truncate it.
    pub fn forward(&self, ids: &[u32], cache: &mut KvCache, length: usize, adapters: Option<&Adapters>) -> Result<Tensor> {
        let c = &self.config;
        let first = cache.len();
        let angles = self.angles(&[(first..first + ids.len(), length)])?;
        let mut masks = Masks::default();
        self.run(ids, &positions_of(c, ids, &[ids.len()], first), &angles, adapters, |layer, q, k, v, mask| {
            ops::attention(q, k, v, c.num_heads, mask, &mut cache.layers[layer], &mut masks)
        })
    }

    /// Evaluates whole sequences, which lie one after another in `ids`, each for itself.
    ///
    /// # Shape
    /// `ids`: `T` ids below the vocabulary, as many as `lengths` sum to; returns the vectors of the tokens `(T, C)`, after the final norm.
    ///
    /// # Errors
    /// A failed device operation; a sequence that is longer than the model's context.
    pub fn encode(&self, ids: &[u32], lengths: &[usize], adapters: Option<&Adapters>) -> Result<Tensor> {
        let c = &self.config;
        let (angles, mut sequences) = self.packed(lengths)?;
        let cx = Context::forward(&self.backend);
        let x = self.run(ids, &positions_of(c, ids, lengths, 0), &angles, adapters, |_, q, k, v, mask| {
            ops::attention_within(cx, [q, k, v], c.num_heads, c.num_kv_heads, mask, &mut sequences)
        })?;
        normed(cx, &self.final_norm, &x)
    }

    /// What sequences that lie one after another need in every layer.
    pub(super) fn packed(&self, lengths: &[usize]) -> Result<(Vec<Angles>, Sequences)> {
        let spans: Vec<_> = lengths.iter().map(|&len| (0..len, len)).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let bias = self.relative_bias.as_ref().map(|bias| bias.by_distance(longest));
        Ok((self.angles(&spans)?, Sequences::new(lengths.to_vec(), bias, &self.backend)?))
    }

    fn angles(&self, spans: &[(Range<usize>, usize)]) -> Result<Vec<Angles>> {
        self.config.ropes.iter().map(|rope| rope.angles(spans, &self.backend)).collect()
    }

    /// All layers; `attend` knows which tokens see which.
    fn run(
        &self,
        ids: &[u32],
        positions: &[u32],
        angles: &[Angles],
        adapters: Option<&Adapters>,
        mut attend: impl FnMut(usize, &Tensor, &Tensor, &Tensor, Mask) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let cx = Context::forward(&self.backend);
        let x = self.embed(ids, positions, adapters)?;
        (0..self.layers.len())
            .try_fold(x, |x, i| self.layer(cx, i, x, angles, adapters, |q, k, v, mask| attend(i, q, k, v, mask)))
    }

    /// The vectors of tokens that the first layer reads.
    pub(super) fn embed(&self, ids: &[u32], positions: &[u32], adapters: Option<&Adapters>) -> Result<Tensor> {
        let cx = Context::forward(&self.backend);
        let own_embed = adapters.and_then(|adapters| adapters.at(Place::Embed)?.weight.as_ref());
        let mut x = ops::embedding(own_embed.unwrap_or(&self.embed), ids, self.config.embed_scale)?;
        if let Some(types) = &self.types {
            x = ops::add_scaled(cx, &x, ops::embedding(types, &vec![0; ids.len()], 1.0)?, 1.0, None)?;
        }
        if let Some(table) = &self.positions {
            x = ops::add_scaled(cx, &x, ops::embedding(table, positions, 1.0)?, 1.0, None)?;
        }
        normed(cx, &self.embed_norm, &x)
    }

    /// One layer.
    ///
    /// # Shape
    /// `x`: `(T, C)`; returns the same.
    pub(super) fn layer(
        &self,
        cx: Context<'_>,
        i: usize,
        x: Tensor,
        angles: &[Angles],
        adapters: Option<&Adapters>,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor, Mask) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (c, layer) = (&self.config, &self.config.layers[i]);
        let mask = Mask { causal: c.causal, window: layer.window, scale: c.attn_scale, softcap: c.attn_softcap };
        let angles = layer.rope.map(|i| &angles[i]);
        let changes = adapters.map(|adapters| adapters.block(i)).unwrap_or_default();
        self.layers[i].forward(cx, c, x, angles, changes, |q, k, v| attend(q, k, v, mask))
    }

    /// The row of each token in the table of positions.
    pub(super) fn positions(&self, ids: &[u32], lengths: &[usize]) -> Vec<u32> {
        positions_of(&self.config, ids, lengths, 0)
    }

    /// The output matrix alone.
    pub(super) fn head(&self) -> Option<Product<'_>> {
        self.head.as_ref().map(|head| head.changed(None))
    }

    /// Behind the last layer.
    pub(super) fn final_normed(&self, cx: Context<'_>, x: &Tensor) -> Result<Tensor> {
        normed(cx, &self.final_norm, x)
    }

    /// The scores of every token of the vocabulary, for each row of the last layer's output.
    ///
    /// # Shape
    /// `hidden`: `(T, C)`; `out` becomes `T · V` values.
    ///
    /// # Errors
    /// If the network has no output matrix; see [`generates`](Self::generates).
    pub fn logits(&self, hidden: &Tensor, out: &mut Vec<f32>, adapters: Option<&Adapters>) -> Result<()> {
        let c = &self.config;
        let Some(head) = &self.head else { bail!("the model has no output matrix") };
        let x = normed(Context::forward(&self.backend), &self.final_norm, hidden)?;
        let product = head.changed(adapters.and_then(|adapters| adapters.at(Place::Head)));
        ops::logits(&self.backend, &x, product, c.logit_scale, c.logit_softcap, out)
    }
}

impl Block {
    fn load(c: &Config, layer: usize, prefix: &str, weights: &mut Weights<'_>) -> error::Result<Self> {
        let n = &c.names;
        let prefix = format!("{prefix}{}", n.layer.replace("{}", &layer.to_string()));
        let at = |name: &str| format!("{prefix}.{name}");
        let norm = |weights: &mut Weights<'_>, name: Option<&'static str>| {
            name.map(|name| load_norm(c, weights, &at(name), c.hidden_size)).transpose()
        };
        let [qkv, o, up, down] = products(c, &prefix);
        Ok(Self {
            attn_in: norm(weights, n.attn_in.filter(|_| c.layers[layer].attn_in))?,
            qkv: load_linear(weights, &qkv)?,
            q_norm: c.qk_norm.map(|kind| load_qk_norm(c, weights, kind, &at(n.q_norm), c.num_heads)).transpose()?,
            k_norm: c.qk_norm.map(|kind| load_qk_norm(c, weights, kind, &at(n.k_norm), c.num_kv_heads)).transpose()?,
            o: load_linear(weights, &o)?,
            attn_out: norm(weights, n.attn_out)?,
            attn_sum: norm(weights, n.attn_sum)?,
            mlp_in: norm(weights, n.mlp_in)?,
            up: load_linear(weights, &up)?,
            down: load_linear(weights, &down)?,
            mlp_out: norm(weights, n.mlp_out)?,
            mlp_sum: norm(weights, n.mlp_sum)?,
        })
    }

    /// # Shape
    /// `x`: `(T, C)`; returns the same.
    fn forward(
        &self,
        cx: Context<'_>,
        c: &Config,
        x: Tensor,
        angles: Option<&Angles>,
        changes: BlockChanges<'_>,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let attn_in = normed(cx, &self.attn_in, &x)?;
        let [q, k, v] = self.queries_keys_values(cx, c, &attn_in, angles, changes.qkv)?;
        let attn = attend(&q, &k, &v)?;
        drop((q, k, v));
        if changes.counts_rows() {
            return self.behind_attention(cx, c, &x, &attn_in, &attn, changes);
        }
        ops::by_row_blocks(cx, [&x, &attn_in, &attn], |[x, attn_in, attn]| {
            self.behind_attention(cx, c, x, attn_in, attn, changes)
        })
    }

    /// What of a layer lies behind attention; each row for itself.
    ///
    /// # Shape
    /// `x`, `attn_in`: `(T, C)`, `attn`: `(T, H · D)`; returns `(T, C)`.
    fn behind_attention(
        &self,
        cx: Context<'_>,
        c: &Config,
        x: &Tensor,
        attn_in: &Tensor,
        attn: &Tensor,
        changes: BlockChanges<'_>,
    ) -> Result<Tensor> {
        let attn = normed(cx, &self.attn_out, &self.o.forward(cx, attn, changes.o)?)?;
        let add = |x: &Tensor, y: Tensor, norm: &Option<Norm>| ops::add_scaled(cx, x, y, c.residual_scale, norm.as_ref());
        if c.parallel {
            let own = self.mlp_in.is_some().then(|| normed(cx, &self.mlp_in, x)).transpose()?;
            let mlp = normed(cx, &self.mlp_out, &self.mlp(cx, c, own.as_ref().unwrap_or(attn_in), changes)?)?;
            return add(&add(x, attn, &None)?, mlp, &None);
        }
        let x = add(x, attn, &self.attn_sum)?;
        let mlp = normed(cx, &self.mlp_out, &self.mlp(cx, c, &normed(cx, &self.mlp_in, &x)?, changes)?)?;
        add(&x, mlp, &self.mlp_sum)
    }

    /// # Shape
    /// `x`: `(T, C)`; returns `(T, H · D)`, `(T, K · D)`, `(T, K · D)`.
    fn queries_keys_values(
        &self,
        cx: Context<'_>,
        c: &Config,
        x: &Tensor,
        angles: Option<&Angles>,
        change: Option<&Change>,
    ) -> Result<[Tensor; 3]> {
        let mut qkv = self.qkv.forward(cx, x, change)?;
        if let Some(bound) = c.qkv_clip {
            qkv = ops::clip(cx, &qkv, bound)?;
        }
        let turn = |x: &Tensor| angles.map_or(Ok(x.clone()), |angles| ops::rope(cx, x, c.head_dim, self.adjacent(c), angles));
        let place = |x: Tensor, norm: &Option<Norm>| {
            if c.qk_norm_after_rope { normed(cx, norm, &turn(&x)?) } else { turn(&normed(cx, norm, &x)?) }
        };
        let kv = c.num_kv_heads * c.head_dim;
        let [q, k, v] = ops::split(cx, &qkv, [c.num_heads * c.head_dim, kv, kv])?;
        Ok([place(q, &self.q_norm)?, place(k, &self.k_norm)?, v])
    }

    /// Pairing is a property of the family, so every rope of a model has the same.
    fn adjacent(&self, c: &Config) -> bool {
        c.ropes.first().is_some_and(|rope| rope.adjacent)
    }

    fn mlp(&self, cx: Context<'_>, c: &Config, x: &Tensor, changes: BlockChanges<'_>) -> Result<Tensor> {
        let up = self.up.forward(cx, x, changes.up)?;
        let activated = if c.gated { ops::gated(cx, &up, c.activation)? } else { ops::activate(cx, up, c.activation)? };
        self.down.forward(cx, &activated, changes.down)
    }
}

/// The prefix of the stored names, and whether the checkpoint lacks it: it was then saved without a head.
fn prefix(c: &Config, weights: &Weights<'_>) -> (String, bool) {
    let layers = c.names.layer.split("{}").next().unwrap_or_default();
    let stored = c.names.prefixes.iter().find(|prefix| weights.has_any(&format!("{prefix}{layers}")));
    match (stored, c.names.prefixes.first()) {
        (Some(prefix), _) => ((*prefix).to_string(), false),
        (None, Some(_)) if weights.has_any(layers) => (String::new(), true),
        (None, usual) => (usual.copied().unwrap_or_default().to_string(), false),
    }
}

/// The row of each token in the table of positions.
fn positions_of(c: &Config, ids: &[u32], lengths: &[usize], first: usize) -> Vec<u32> {
    let Some(positions) = c.positions else { return Vec::new() };
    let mut rows = Vec::with_capacity(ids.len());
    let mut ids = ids.iter();
    for &len in lengths {
        let mut next = first as u32 + positions.padding.map_or(0, |padding| padding + 1);
        for &id in ids.by_ref().take(len) {
            if positions.padding == Some(id) {
                rows.push(id);
            } else {
                rows.push(next);
                next += 1;
            }
        }
    }
    rows
}

/// Applies a norm where there is one.
fn normed(cx: Context<'_>, norm: &Option<Norm>, x: &Tensor) -> Result<Tensor> {
    norm.as_ref().map_or(Ok(x.clone()), |norm| ops::norm(cx, x, norm))
}

/// A matrix of a layer: the stored rows that it is made of.
struct Stored {
    slots: Vec<Slot>,
    inputs: usize,
    bias: bool,
}

/// The matrices of a layer in the order q|k|v, o, gate|up, down; `prefix` is the layer's own.
fn products(c: &Config, prefix: &str) -> [Stored; 4] {
    let n = &c.names;
    let (q, kv, ffn) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.intermediate_size);
    let at = |name: &str| format!("{prefix}.{name}");
    // `sizes` are the parts of a fused tensor; a projection of its own has the size of its part.
    let slot = |source: Source, part: usize, sizes: &[usize]| match source {
        Source::Own(name) => Slot { name: at(name), rows: 0..sizes[part], total: sizes[part] },
        Source::Part(name, part) => {
            let start = sizes[..part].iter().sum();
            Slot { name: at(name), rows: start..start + sizes[part], total: sizes.iter().sum() }
        }
    };
    let qkv = vec![slot(n.q, 0, &[q, kv, kv]), slot(n.k, 1, &[q, kv, kv]), slot(n.v, 2, &[q, kv, kv])];
    let up = if c.gated { vec![slot(n.gate, 0, &[ffn, ffn]), slot(n.up, 1, &[ffn, ffn])] } else { vec![slot(n.up, 0, &[ffn])] };
    [
        Stored { slots: qkv, inputs: c.hidden_size, bias: c.bias.qkv },
        Stored { slots: vec![slot(n.o, 0, &[c.hidden_size])], inputs: q, bias: c.bias.o },
        Stored { slots: up, inputs: c.hidden_size, bias: c.bias.mlp },
        Stored { slots: vec![slot(n.down, 0, &[c.hidden_size])], inputs: ffn, bias: c.bias.mlp },
    ]
}

fn load_linear(weights: &mut Weights<'_>, product: &Stored) -> error::Result<Linear> {
    let weight = weights.matrix(&product.slots, product.inputs)?;
    if !product.bias {
        return Ok(Linear { weight, bias: None });
    }
    // Parts of one fused tensor are consecutive, and so are their biases: each stored bias is read once.
    let bias_of = |slot: &Slot| (format!("{}.bias", slot.name), slot.total);
    let mut parts: Vec<(String, usize)> = product.slots.iter().map(bias_of).collect();
    parts.dedup();
    Ok(Linear { weight, bias: Some(weights.vector_of(&parts, 0.0)?) })
}

fn load_norm(c: &Config, weights: &mut Weights<'_>, name: &str, width: usize) -> error::Result<Norm> {
    let weight = if c.norm_weight { Some(weights.vector(&format!("{name}.weight"), width, c.norm_offset)?) } else { None };
    let bias = if c.norm_bias { Some(weights.vector(&format!("{name}.bias"), width, 0.0)?) } else { None };
    Ok(Norm { kind: c.norm, eps: c.eps, width, weight, bias })
}

fn load_qk_norm(c: &Config, weights: &mut Weights<'_>, kind: QkNorm, name: &str, heads: usize) -> error::Result<Norm> {
    let (width, parts) = match kind {
        QkNorm::Head => (c.head_dim, vec![(format!("{name}.weight"), c.head_dim)]),
        QkNorm::Width => (heads * c.head_dim, vec![(format!("{name}.weight"), heads * c.head_dim)]),
        QkNorm::EachHead => (c.head_dim, vec![(format!("{name}.weight"), heads * c.head_dim)]),
        QkNorm::EachHeadApart => (c.head_dim, (0..heads).map(|h| (format!("{name}.norms.{h}.weight"), c.head_dim)).collect()),
    };
    let weight = Some(weights.vector_of(&parts, c.norm_offset)?);
    Ok(Norm { kind: c.norm, eps: c.eps, width, weight, bias: None })
}
