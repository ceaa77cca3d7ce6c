//! One token of a decoder by the GPU's own kernels: 6 launches a layer of the plainest, 7 where keys are many, over one workspace, with
//! no allocation on the device and no tensor operation in between. Activations are F32, whatever weights and cache are kept as.
//!
//! Weights, keys and values are the tensors that prompts are evaluated with; of a step only the logits come back.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};

use super::weight::element;
use super::{AttentionPart, DecoderParts, DeviceMatrix, LinearPart, MlpPart, OperationPart, ResidualPart, Unsupported};
use crate::error::OutOfMemory;
use crate::kernels::gpu::{
    AttentionKernels, DecodedRows, Element, Gated, Gpu, GpuAngles, GpuCache, GpuNorm, GpuSlice, GpuWeight, HeadCounts,
    MOST_SPLITS, ProductWith, QkNorms, RowKernels,
};
use crate::kernels::scale_softcap;
use crate::ops::{Activation, Backend, KvFormat, LayerCache, Mask, Norm, NormKind, Vector, fault};

/// A decoder, ready to evaluate one token of a sequence at a time.
pub struct DecodeStep {
    gpu: Gpu,
    /// One step at a time: they share the workspace.
    launches: Mutex<Launches>,
    embed: GpuWeight,
    embed_scale: f32,
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
}

/// Vectors of a step; each is a part of one tensor.
struct Workspace {
    /// The token's id, its position and the angles of its row, which are uploaded together.
    inputs: GpuSlice,
    ids: GpuSlice,
    positions: GpuSlice,
    /// Of each rope.
    angles: Vec<GpuAngles>,
    /// The stream, and what it becomes in a step of several branches.
    x: GpuSlice,
    sum: GpuSlice,
    normed: GpuSlice,
    branch: GpuSlice,
    qkv: GpuSlice,
    q: GpuSlice,
    attended: GpuSlice,
    parts: GpuSlice,
    hidden: GpuSlice,
    logits: GpuSlice,
}

enum Launch {
    Norm { x: GpuSlice, by: GpuNorm, added: Option<GpuSlice>, y: GpuSlice },
    Product { weight: GpuWeight, bias: Option<GpuSlice>, x: GpuSlice, norm: Option<GpuNorm>, then: Then, y: GpuSlice },
    Attention(Box<AttentionLaunch>),
}

/// What becomes of a product.
#[derive(Clone)]
enum Then {
    Scale(f32),
    /// Of an input in lane order: what it is added to, and the factor before.
    Add(Option<GpuSlice>, f32),
    Activate(Gated, Activation),
}

struct AttentionLaunch {
    kernels: AttentionKernels,
    counts: HeadCounts,
    norms: Option<QkNorms>,
    /// The rope's number, and whether neighbours are pairs.
    rope: Option<(usize, bool)>,
    mask: Mask,
    sinks: Option<GpuSlice>,
    state: usize,
}

impl DecodeStep {
    /// The step of a network on a backend; `None` where the backend has no kernels.
    ///
    /// # Errors
    /// A failed device operation; what of the network the kernels lack is the inner error.
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
        let rows = gpu.row_kernels(element)?;
        let workspace = Workspace::new(parts, &gpu)?;
        let mut builder = Builder { gpu: &gpu, kv_element, workspace: &workspace, list: Vec::new(), attention: Vec::new() };
        let x = &workspace.x;
        if let Some(norm) = parts.embed_norm {
            builder.norm(x, norm, None, x)?;
        }
        for step in &parts.steps {
            builder.step(step)?;
        }
        let (input, norm) = builder.normed(x, parts.final_norm)?;
        builder.product(parts.head, input, norm, Then::Scale(parts.logit_scale), &workspace.logits)?;
        let list = builder.list;
        let mixers = parts.steps.iter().flat_map(|step| &step.branches);
        let states = mixers.filter(|branch| matches!(branch.operation, OperationPart::Attention(_))).count();
        Ok(Some(Ok(Self {
            embed: first_segment(embed, &gpu)?,
            embed_scale: parts.embed_scale,
            activation: embed.dtype(),
            ropes: parts.ropes.clone(),
            states,
            logit_softcap: parts.logit_softcap,
            vocab_size: parts.head.weight.outputs(),
            launches: Mutex::new(Launches { workspace, list, rows, words: Vec::new() }),
            gpu,
        })))
    }

    /// Evaluates a token behind those that the caches hold, which take it up; `out` becomes the logits behind it, `(V)`.
    ///
    /// `turns`: cosine and sine of each pair at the token's position, of each rope first for queries and then for keys.
    ///
    /// # Errors
    /// A failed device operation; the caches then hold what they held.
    pub fn run(&self, id: u32, caches: &mut [&mut LayerCache], turns: &[f32], out: &mut Vec<f32>) -> Result<()> {
        let angles: usize = self.ropes.iter().map(|half| 4 * half).sum();
        let Some(position) = caches.first().map(|cache| cache.len()) else { bail!("a step without a cache") };
        if caches.len() != self.states || turns.len() != angles || caches.iter().any(|cache| cache.len() != position) {
            bail!("a step: expected {} caches of one length and {angles} turns, found {}", self.states, turns.len())
        }
        if id as usize >= self.embed.outputs() {
            bail!("token id {id} is outside a vocabulary of {}", self.embed.outputs())
        }
        let no_memory = |_| OutOfMemory { what: format!("{} logits", self.vocab_size) };
        out.try_reserve_exact(self.vocab_size.saturating_sub(out.len())).map_err(no_memory)?;
        out.resize(self.vocab_size, 0.0);
        let mut kept = Vec::with_capacity(caches.len());
        for cache in caches.iter_mut() {
            kept.push(slices(cache, self.activation)?);
        }
        let mut launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        let Launches { workspace, list, rows, words } = &mut *launches;
        words.clear();
        words.extend([id, 0, 0, 0, position as u32, 0, 0, 0]);
        for (rope, half) in self.ropes.iter().enumerate() {
            let first: usize = self.ropes[..rope].iter().map(|half| 4 * half).sum();
            for values in turns[first..first + 4 * half].chunks_exact(2 * half) {
                words.extend(values.iter().map(|x| x.to_bits()));
                words.resize(words.len().next_multiple_of(4), 0);
            }
        }
        let gpu = &self.gpu;
        gpu.upload(&workspace.inputs, words)?;
        gpu.decode(&self.embed, DecodedRows::ById(&workspace.ids, 1), self.embed_scale, &workspace.x, false)?;
        for launch in list.iter() {
            launch.start(gpu, *rows, workspace, &kept, position + 1)?;
        }
        gpu.download(&workspace.logits, out)?;
        for cache in caches {
            if let LayerCache::Tensors(cache) = cache {
                cache.advance(1);
            }
        }
        if self.logit_softcap.is_some() {
            scale_softcap(out, 1.0, self.logit_softcap);
        }
        Ok(())
    }
}

impl Launch {
    /// `caches`: by the numbers of the states; `length`: positions with this one.
    fn start(&self, gpu: &Gpu, rows: RowKernels, workspace: &Workspace, caches: &[GpuCache], length: usize) -> Result<()> {
        match self {
            Self::Norm { x, by, added, y } => gpu.norm(rows, x, by, added.as_ref(), y),
            Self::Product { weight, bias, x, norm, then, y } => {
                fault::product()?;
                let norm = norm.as_ref().map(|norm| (&norm.weight, norm.eps));
                let with = ProductWith { norm, bias: bias.as_ref(), ..ProductWith::default() };
                gpu.product(
                    weight,
                    x,
                    y,
                    match then {
                        Then::Scale(scale) => ProductWith { scale: *scale, ..with },
                        Then::Add(residual, scale) => {
                            ProductWith { residual: residual.as_ref(), scale: *scale, ordered: true, ..with }
                        }
                        Then::Activate(gated, kind) => ProductWith { activation: Some((*gated, *kind)), ..with },
                    },
                )
            }
            Self::Attention(launch) => {
                let AttentionLaunch { kernels, counts, norms, rope, mask, sinks, state } = &**launch;
                let Workspace { qkv, q, positions, attended, parts, angles, .. } = workspace;
                let Some(cache) = caches.get(*state) else { bail!("attention without its keys and values") };
                let angles = rope.map(|(number, adjacent)| GpuAngles { adjacent, ..angles[number].clone() });
                gpu.heads(*kernels, *counts, qkv, positions, norms.as_ref(), angles.as_ref(), q, cache)?;
                gpu.attention(*kernels, *counts, q, cache, (positions, length), *mask, sinks.as_ref(), (attended, parts))
            }
        }
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
        let mut input: Option<(GpuSlice, Option<GpuNorm>)> = None;
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
                self.norm(branch, norm, Some(from), to)?;
            }
        }
        if let Some(norm) = step.norm_sum {
            self.norm(x, norm, None, x)?;
        }
        Ok(())
    }

    /// The last matrix of an operation and its input, which is in lane order.
    fn operation<'p>(
        &mut self,
        operation: &OperationPart<'p>,
        x: GpuSlice,
        norm: Option<GpuNorm>,
    ) -> Result<(LinearPart<'p>, GpuSlice)> {
        let workspace = self.workspace;
        match operation {
            OperationPart::Mlp(MlpPart { is_gated, activation, up, down }) => {
                let gated = if *is_gated { Gated::Yes } else { Gated::No };
                self.product(*up, x, norm, Then::Activate(gated, *activation), &workspace.hidden)?;
                Ok((*down, workspace.hidden.clone()))
            }
            OperationPart::Attention(attention) => {
                self.product(attention.qkv, x, norm, Then::Scale(1.0), &workspace.qkv)?;
                self.attention(attention)?;
                Ok((attention.o, workspace.attended.clone()))
            }
        }
    }

    fn attention(&mut self, part: &AttentionPart<'_>) -> Result<()> {
        let AttentionPart { heads, kv_heads, head_dim, .. } = *part;
        let qkv = &self.workspace.qkv;
        let mut norms = None;
        if let (Some(q), Some(k)) = (part.q_norm, part.k_norm) {
            let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
            if q.width == head_dim {
                let weights = [gpu_norm(q, self.gpu)?.weight, gpu_norm(k, self.gpu)?.weight];
                let each = heads > 1 && weights[0].len() == queries;
                let [q_weight, k_weight] = weights;
                norms = Some(QkNorms { q: q_weight, k: k_weight, eps: q.eps, after: part.norm_after, each });
            } else {
                let (queries, keys) = (qkv.words(0, queries)?, qkv.words(queries, keys)?);
                self.norm(&queries, q, None, &queries)?;
                self.norm(&keys, k, None, &keys)?;
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
            counts: HeadCounts { heads, kv_heads },
            norms,
            rope: part.rope.map(|rope| (rope.number, rope.adjacent)),
            mask: part.mask,
            sinks,
            state: part.state,
        })));
        Ok(())
    }

    /// What a product reads of `x` behind a norm: `x` itself, where the product can norm it.
    fn normed(&mut self, x: &GpuSlice, norm: Option<&Norm>) -> Result<(GpuSlice, Option<GpuNorm>)> {
        let Some(norm) = norm else { return Ok((x.clone(), None)) };
        if norm.kind == NormKind::Rms && norm.bias.is_none() {
            return Ok((x.clone(), Some(gpu_norm(norm, self.gpu)?)));
        }
        let normed = &self.workspace.normed;
        self.norm(x, norm, None, normed)?;
        Ok((normed.clone(), None))
    }

    fn norm(&mut self, x: &GpuSlice, by: &Norm, added: Option<&GpuSlice>, y: &GpuSlice) -> Result<()> {
        self.list.push(Launch::Norm { x: x.clone(), by: gpu_norm(by, self.gpu)?, added: added.cloned(), y: y.clone() });
        Ok(())
    }

    fn product(&mut self, linear: LinearPart<'_>, x: GpuSlice, norm: Option<GpuNorm>, then: Then, y: &GpuSlice) -> Result<()> {
        let bias = linear.bias.map(vector).transpose()?;
        for (first, weight) in linear.weight.tensors()?.segments(self.gpu)? {
            let own = |slice: &GpuSlice| match weight.outputs() == linear.weight.outputs() {
                true => Ok(slice.clone()),
                false => slice.words(first, weight.outputs()),
            };
            let bias = bias.as_ref().map(own).transpose()?;
            let (y, then) = match &then {
                Then::Activate(..) => (y.clone(), then.clone()),
                Then::Scale(_) => (own(y)?, then.clone()),
                Then::Add(residual, scale) => (own(y)?, Then::Add(residual.as_ref().map(own).transpose()?, *scale)),
            };
            self.list.push(Launch::Product { weight, bias, x: x.clone(), norm: norm.clone(), then, y });
        }
        Ok(())
    }
}

impl Workspace {
    fn new(parts: &DecoderParts<'_>, gpu: &Gpu) -> Result<Self> {
        let (width, vocab_size) = (parts.embed.inputs(), parts.head.weight.outputs());
        let (mut qkv, mut q, mut hidden, mut split) = (0, 0, 0, 0);
        for branch in parts.steps.iter().flat_map(|step| &step.branches) {
            match &branch.operation {
                OperationPart::Attention(AttentionPart { heads, kv_heads, head_dim, .. }) => {
                    qkv = qkv.max((heads + 2 * kv_heads) * head_dim);
                    q = q.max(heads * head_dim);
                    split = split.max(heads * MOST_SPLITS * (head_dim + 2));
                }
                OperationPart::Mlp(mlp) => hidden = hidden.max(mlp.down.weight.inputs()),
            }
        }
        let angles: Vec<usize> = parts.ropes.iter().map(|half| (2 * half).next_multiple_of(4)).collect();
        let inputs = 8 + 2 * angles.iter().sum::<usize>();
        let sizes = [inputs, width, width, width, width, qkv, q, q, split, hidden, vocab_size];
        // A multiple of 256 bytes each.
        let total = sizes.iter().map(|words| words.next_multiple_of(64)).sum::<usize>();
        let all = GpuSlice::of(&Tensor::zeros(total, DType::F32, gpu.device())?)?;
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
        let Ok([inputs, x, sum, normed, branch, qkv, q, attended, parts_, hidden, logits]) = <[GpuSlice; 11]>::try_from(taken)
        else {
            bail!("a workspace of other parts")
        };
        let mut next = 8;
        let mut of_ropes = Vec::with_capacity(angles.len());
        for (words, half) in angles.into_iter().zip(&parts.ropes) {
            let (queries, keys) = (inputs.words(next, words)?, inputs.words(next + words, words)?);
            of_ropes.push(GpuAngles { queries, keys, half: *half, adjacent: false });
            next += 2 * words;
        }
        let (ids, positions) = (inputs.words(0, 4)?, inputs.words(4, 4)?);
        let parts = parts_;
        Ok(Self { inputs, ids, positions, angles: of_ropes, x, sum, normed, branch, qkv, q, attended, parts, hidden, logits })
    }
}

/// What of a network the kernels lack.
fn check(parts: &DecoderParts<'_>) -> std::result::Result<(), Unsupported> {
    let whole = |what: &str, values: usize| {
        if values.is_multiple_of(32) { Ok(()) } else { Err(Unsupported(format!("{what} of {values} values, no multiple of 32"))) }
    };
    whole("a stream", parts.embed.inputs())?;
    for step in &parts.steps {
        if step.branches.is_empty() || (step.branches.len() > 1 && step.norm_out.is_some()) {
            return Unsupported::new("a norm of the sum of several branches");
        }
        for branch in &step.branches {
            match (branch.norm_out, step.norm_out) {
                (Some(_), Some(_)) => return Unsupported::new("two norms of a branch"),
                (Some(_), None) | (None, Some(_)) if step.scale != 1.0 => {
                    return Unsupported::new("a factor behind a norm");
                }
                _ => {}
            }
            match &branch.operation {
                OperationPart::Mlp(mlp) => {
                    whole("an MLP", mlp.down.weight.inputs())?;
                    if !mlp.up.weight.tensors().is_ok_and(DeviceMatrix::is_whole) {
                        return Unsupported::new("an MLP whose gate and up projections are kept in two formats");
                    }
                }
                OperationPart::Attention(attention) => check_attention(attention)?,
            }
        }
    }
    Ok(())
}

fn check_attention(part: &AttentionPart<'_>) -> std::result::Result<(), Unsupported> {
    let AttentionPart { heads, head_dim, .. } = *part;
    if !head_dim.is_multiple_of(8) || head_dim > 256 || !(heads * head_dim).is_multiple_of(32) {
        return Err(Unsupported(format!("{heads} heads of {head_dim} values")));
    }
    if !part.mask.causal {
        return Unsupported::new("attention to later tokens");
    }
    match (part.q_norm, part.k_norm) {
        (None, None) => Ok(()),
        (Some(q), Some(k)) => {
            let is_plain = |norm: &Norm| norm.kind == NormKind::Rms && norm.bias.is_none();
            let is_per_head = q.width == head_dim && k.width == head_dim;
            if is_per_head && is_plain(q) && is_plain(k) && q.eps == k.eps {
                return Ok(());
            }
            if is_per_head || part.norm_after {
                return Unsupported::new("norms of queries and keys of this kind");
            }
            Ok(())
        }
        _ => Unsupported::new("a norm of queries or keys alone"),
    }
}

/// Keys and values with room for a position more.
fn slices(cache: &mut LayerCache, activation: DType) -> Result<GpuCache> {
    let LayerCache::Tensors(cache) = cache else { bail!("a step: expected keys and values of tensors") };
    let (keys, values) = cache.room(1, activation)?;
    Ok(GpuCache { keys: GpuSlice::of(keys)?, values: GpuSlice::of(values)?, capacity: keys.dims()[1] })
}

/// A matrix of one format.
fn first_segment(matrix: &DeviceMatrix, gpu: &Gpu) -> Result<GpuWeight> {
    match matrix.segments(gpu)?.pop() {
        Some((0, weight)) => Ok(weight),
        _ => bail!("a step: expected an embedding of one format"),
    }
}

fn vector(vector: &Vector) -> Result<GpuSlice> {
    let tensor = vector.tensors()?;
    if tensor.dtype() != DType::F32 {
        bail!("a vector of kernels: expected F32, found {:?}", tensor.dtype())
    }
    GpuSlice::of(tensor)
}

fn gpu_norm(norm: &Norm, gpu: &Gpu) -> Result<GpuNorm> {
    let weight = match &norm.weight {
        Some(weight) => vector(weight)?,
        None => GpuSlice::of(&Tensor::ones(norm.width, DType::F32, gpu.device())?)?,
    };
    let bias = norm.bias.as_ref().map(vector).transpose()?;
    Ok(GpuNorm { kind: norm.kind, eps: norm.eps, width: norm.width, weight, bias })
}
