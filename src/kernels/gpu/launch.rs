//! Launches of the kernels, each with its buffers held against what its parameters make it touch.

use std::ops::Range;

use candle_core::{Result, bail};

use super::device::{Gpu, GpuKernel, GpuSlice, GpuView, LaunchList};
use super::{Element, GpuFormat, Library};
use crate::kernels::{Activation, CHUNK, Mask, NormKind, ScanShape};

// Flags of params.h.
const ADD_AFTER: u32 = 2;
const LANE_ORDER: u32 = 4;
const LAYER: u32 = 8;
const SHIFT: u32 = 16;
const NORM: u32 = 1;
const BIAS: u32 = 2;
const RESIDUAL: u32 = 4;
const ACTIVATE: u32 = 8;
const ACTIVATION: u32 = 16;
const ADJACENT: u32 = 1;
const QK_NORM: u32 = 2;
const NORM_AFTER: u32 = 4;
const NORM_EACH: u32 = 8;
const V_NORM: u32 = 16;
const SAME: u32 = 32;
const SHARED_KEYS: u32 = 64;
const GATE_VALUES: u32 = 128;
const GATE_HEADS: u32 = 256;
const FACTOR: u32 = 128;

/// Rows of a ring, which has the input of position t as row `t % RING`.
pub const RING: usize = 32;
/// Taps of a convolution at most: those that a ring has behind a whole chunk.
pub const MOST_TAPS: usize = RING - CHUNK;
/// Keys and values of a head of a scan at most.
pub const WIDEST_SCAN: usize = 256;

/// Threads of a threadgroup at most, but of attention.
pub(super) const THREADS: u32 = 256;
/// Columns of activations that a threadgroup of a product holds.
const STAGE: u32 = 4096;
/// Threadgroups that share the keys of a head at most.
pub const MOST_SPLITS: usize = 16;

/// How many threadgroups share the keys of a head in the attention of the last of so many positions.
pub fn attention_splits(mask: Mask, length: usize) -> usize {
    let seen = mask.window.map_or(length, |window| window.min(length));
    (seen / 512).clamp(1, MOST_SPLITS)
}

/// Rows of a launch at most: threadgroups in that direction of a CUDA grid.
pub const MOST_ROWS: usize = 65_535;

/// The kernels for rows: norms, the greedy choice, and mixers of states that do not grow.
#[derive(Debug, Clone, Copy)]
pub struct RowKernels {
    norm: GpuKernel,
    short_conv: GpuKernel,
    delta_net: GpuKernel,
    pub(super) argmax: GpuKernel,
}

/// The kernels for products with matrices of one format.
#[derive(Debug, Clone, Copy)]
pub struct ProductKernels {
    format: GpuFormat,
    element: Element,
    /// Two rows of W a simdgroup, and four.
    staged: [GpuKernel; 2],
    /// Four rows, two of gates and two of values.
    gated: GpuKernel,
    direct: [GpuKernel; 2],
    /// Of four rows of activations at once, in lane order: plain and gated.
    of_rows: [GpuKernel; 2],
    /// Rows of a matrix as F32, and as the element.
    rows: GpuKernel,
    rows_t: GpuKernel,
}

/// The kernels for attention with heads of one size.
#[derive(Debug, Clone, Copy)]
pub struct AttentionKernels {
    element: Element,
    head_dim: usize,
    /// Simdgroups of a head in a threadgroup.
    parts: u32,
    attention: GpuKernel,
    combine: GpuKernel,
}

/// A matrix on a device, as the kernels read it.
#[derive(Debug, Clone)]
pub struct GpuWeight {
    kernels: ProductKernels,
    outputs: usize,
    inputs: usize,
    group_shift: u32,
    codes: GpuSlice,
    extra: GpuSlice,
    scales: GpuSlice,
}

/// Which rows of a matrix are decoded.
#[derive(Debug, Clone)]
pub enum DecodedRows<'a> {
    Neighbours(Range<usize>),
    /// So many rows by their numbers, which are below those of the matrix.
    ById(GpuView<'a>, usize),
}

/// What a product does besides multiplying.
#[derive(Debug, Clone, Copy)]
pub struct ProductWith<'a> {
    /// Of the input.
    pub rows: usize,
    /// The weight and epsilon of a root-mean-square norm of the input, in the order of columns.
    pub norm: Option<(GpuView<'a>, f32)>,
    pub bias: Option<GpuView<'a>>,
    /// What the result is added to, times `scale`.
    pub residual: Option<GpuView<'a>>,
    /// Of an MLP: the matrix is gate over up, or up alone.
    pub activation: Option<(Gated, Activation)>,
    /// Of one without a gate: what is activated is multiplied by this.
    pub factor: Option<GpuView<'a>>,
    /// Whether the input is in lane order, as attention and MLPs give it.
    pub ordered: bool,
    pub scale: f32,
}

impl Default for ProductWith<'_> {
    /// Of one row, and nothing.
    fn default() -> Self {
        Self { rows: 1, norm: None, bias: None, residual: None, activation: None, factor: None, ordered: false, scale: 1.0 }
    }
}

/// Whether an MLP has a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gated {
    Yes,
    No,
}

/// A norm of rows.
#[derive(Debug, Clone)]
pub struct GpuNorm {
    pub kind: NormKind,
    pub eps: f32,
    pub width: usize,
    pub weight: GpuSlice,
    pub bias: Option<GpuSlice>,
}

/// What becomes of a norm: `y = scale · (added + norm)`, in lane order where it is `ordered`.
#[derive(Debug, Clone, Copy)]
pub struct NormWith<'a> {
    pub added: Option<GpuView<'a>>,
    pub scale: f32,
    pub ordered: bool,
}

impl Default for NormWith<'_> {
    /// Nothing.
    fn default() -> Self {
        Self { added: None, scale: 1.0, ordered: false }
    }
}

/// The norms of queries and keys.
#[derive(Debug, Clone)]
pub struct QkNorms {
    pub q: GpuSlice,
    /// Read where there are keys.
    pub k: GpuSlice,
    pub eps: f32,
    /// Whether the weights are applied behind the rotation.
    pub after: bool,
    /// Whether each head has weights of its own.
    pub each: bool,
}

/// The angles of a row, cosine and sine of each pair.
#[derive(Debug, Clone)]
pub struct GpuAngles {
    pub queries: GpuSlice,
    pub keys: GpuSlice,
    /// Pairs of a head.
    pub half: usize,
}

/// Which values of a head a rope rotates together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// Of the two halves of what is rotated, as GPT-NeoX has it.
    Halves,
    /// Neighbours, as GPT-J has it.
    Adjacent,
}

/// Keys and values `(K, capacity, D)` of a layer on a device.
#[derive(Debug, Clone, Copy)]
pub struct GpuCache<'a> {
    pub keys: GpuView<'a>,
    pub values: GpuView<'a>,
    pub capacity: usize,
}

/// Query and key heads.
#[derive(Debug, Clone, Copy)]
pub struct HeadCounts {
    pub heads: usize,
    pub kv_heads: usize,
}

/// What a row of attention has behind its queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysPart {
    /// Keys and values.
    Own,
    /// One projection, which both are.
    Same,
    /// Neither: another attention has brought them.
    Shared,
}

/// A gate, whose sigmoid multiplies what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatePart {
    None,
    /// One for each value.
    Values,
    /// One for each head.
    Heads,
}

/// The values of a row of attention.
#[derive(Debug, Clone, Copy)]
pub struct QkvLayout {
    pub keys: KeysPart,
    pub gate: GatePart,
}

impl QkvLayout {
    /// How many there are of heads of `dim` values.
    pub fn values(self, HeadCounts { heads, kv_heads }: HeadCounts, dim: usize) -> usize {
        let keys = match self.keys {
            KeysPart::Own => 2 * kv_heads,
            KeysPart::Same => kv_heads,
            KeysPart::Shared => 0,
        };
        let gates = match self.gate {
            GatePart::None => 0,
            GatePart::Values => heads * dim,
            GatePart::Heads => heads,
        };
        (heads + keys) * dim + gates
    }

    fn flags(self) -> u32 {
        let keys = match self.keys {
            KeysPart::Own => 0,
            KeysPart::Same => SAME,
            KeysPart::Shared => SHARED_KEYS,
        };
        keys | match self.gate {
            GatePart::None => 0,
            GatePart::Values => GATE_VALUES,
            GatePart::Heads => GATE_HEADS,
        }
    }
}

/// A short convolution of one row.
#[derive(Debug, Clone, Copy)]
pub struct ConvolutionRow<'a> {
    /// b, c and x, one after another.
    pub inputs: GpuView<'a>,
    /// The row's position.
    pub position: GpuView<'a>,
    pub taps: usize,
    pub channels: usize,
    /// `(taps, channels)`
    pub weight: GpuView<'a>,
    pub bias: Option<GpuView<'a>>,
    /// `(RING, channels)`
    pub ring: GpuView<'a>,
    /// The result, in lane order.
    pub out: GpuView<'a>,
}

/// What a delta net is made of, but for its projections.
#[derive(Debug, Clone)]
pub struct GpuDeltaNet {
    pub shape: ScanShape,
    pub taps: usize,
    /// Of the convolution, `(taps, channels)`.
    pub conv: GpuSlice,
    /// What is added to a projection, and the rate of fading, `(heads)` each.
    pub bias: GpuSlice,
    pub rates: GpuSlice,
    /// Added to the squared length of a query or a key.
    pub length_eps: f32,
    /// Of what is read of a head: `(value_dim)`.
    pub norm: GpuNorm,
}

/// A delta net of one row.
#[derive(Debug, Clone, Copy)]
pub struct DeltaNetRow<'a> {
    /// q, k and v before the convolution, gates, beta and decay.
    pub inputs: GpuView<'a>,
    /// The row's position, and where the chunk of tokens begins that the state holds apart.
    pub position: GpuView<'a>,
    pub by: &'a GpuDeltaNet,
    /// `(RING, channels)`
    pub ring: GpuView<'a>,
    /// Of each head matrix, keys, updates and g, `(heads, …)`.
    pub state: GpuView<'a>,
    /// The result, in lane order.
    pub out: GpuView<'a>,
}

/// What the attention of a row is made of.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRow<'a> {
    pub counts: HeadCounts,
    /// The row's heads of queries, keys and values, side by side, and gates behind them.
    pub qkv: GpuView<'a>,
    pub layout: QkvLayout,
    pub norms: Option<&'a QkNorms>,
    /// Epsilon of the norm of values, which has no weight; that of [`norms`](Self::norms) where there are any.
    pub v_norm: Option<f32>,
    pub angles: Option<(&'a GpuAngles, RopePairs)>,
    pub cache: GpuCache<'a>,
    /// Where the row's position stands, which is `length - 1`.
    pub position: GpuView<'a>,
    pub length: usize,
    pub mask: Mask,
    pub sinks: Option<GpuView<'a>>,
    /// The result, in lane order.
    pub out: GpuView<'a>,
    /// Room where keys are shared by several threadgroups.
    pub parts: GpuView<'a>,
}

/// The number that params.h has for it.
pub(super) fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::QuickGelu => 3,
        Activation::Relu => 4,
        Activation::Relu2 => 5,
        Activation::Tanh => 6,
        Activation::Sigmoid => 7,
    }
}

/// How a product is cut over the device: rows of W of a simdgroup, simdgroups that share their columns, threads of a threadgroup,
/// threadgroups. The first and the last change no bits of a result.
struct Cut {
    rows: u32,
    split: u32,
    threads: u32,
    groups: u32,
}

impl Cut {
    fn new(outputs: usize, chunks: usize, gated: bool, staged: bool, units: u32) -> Self {
        let (outputs, chunks) = (outputs as u32, chunks as u32);
        let rows = if gated || outputs >= 4096 { 4 } else { 2 };
        let made = if gated { rows / 2 } else { rows };
        // Columns are shared while there are too few simdgroups for the device and each lane still gets a chunk.
        let mut split = 1;
        while split < 8
            && u64::from(outputs / if gated { 2 } else { rows }) * u64::from(split) < 16 * u64::from(units)
            && chunks >= 64 * split
        {
            split *= 2;
        }
        let threads = THREADS;
        let blocks = outputs.div_ceil(threads / 32 / split * made);
        // As many groups as the device holds at once, where each brings the input into its memory; each the same number of blocks.
        let most = if staged { if rows == 4 { 3 * units } else { 4 * units } } else { u32::MAX };
        Self { rows, split, threads, groups: blocks.div_ceil(blocks.div_ceil(most)) }
    }
}

impl Cut {
    /// The same for kernels that make two rows of W at once and stage nothing; the sums have the same order.
    fn of_two(self, outputs: usize, gated: bool) -> Self {
        let made = if gated { 1 } else { 2 };
        Self { rows: 2, groups: (outputs as u32).div_ceil(self.threads / 32 / self.split * made), ..self }
    }
}

impl Gpu {
    pub fn row_kernels(&self) -> Result<RowKernels> {
        let library = Library::Row;
        let kernel = |name: &str| self.kernel(library, name, THREADS);
        Ok(RowKernels {
            norm: kernel("norm_f32")?,
            argmax: kernel("argmax")?,
            short_conv: kernel("short_conv")?,
            delta_net: kernel("delta_net")?,
        })
    }

    pub fn product_kernels(&self, element: Element, format: GpuFormat) -> Result<ProductKernels> {
        let stage = if cfg!(test) { 512 } else { STAGE };
        let library = Library::Product { element, stage, format };
        let kernel = |name: &str| self.kernel(library, name, THREADS);
        let both = |two: &str, four: &str| Ok::<_, candle_core::Error>([kernel(two)?, kernel(four)?]);
        Ok(ProductKernels {
            format,
            element,
            staged: both("product_r1n2", "product_r1n4")?,
            gated: kernel("product_gated_r1n4")?,
            direct: both("product_direct_r1n2", "product_direct_r1n4")?,
            of_rows: both("product_direct_r4n2", "product_gated_direct_r4n2")?,
            rows: kernel("rows")?,
            rows_t: kernel("rows_t")?,
        })
    }

    /// Heads of up to 512 values, a multiple of eight.
    pub fn attention_kernels(&self, element: Element, head_dim: usize) -> Result<AttentionKernels> {
        // One head a threadgroup and many simdgroups: measured best up to 32,768 keys, but for the executor's fibers.
        // Of large heads fewer: their results have to fit a threadgroup's memory, and keys in flight registers.
        let is_large = head_dim > 256;
        let parts = if cfg!(test) {
            4
        } else if is_large {
            8
        } else {
            16
        };
        let keys = if is_large { 2 } else { 4 };
        let library = Library::Attention { element, dim: head_dim as u32, heads: 1, parts, keys };
        let attention = self.kernel(library, "attention", 32 * parts)?;
        let combine = self.kernel(library, "combine", combine_threads(head_dim))?;
        Ok(AttentionKernels { element, head_dim, parts, attention, combine })
    }
}

/// Of the kernel that brings the splits of a head together.
fn combine_threads(head_dim: usize) -> u32 {
    (head_dim.next_multiple_of(32) as u32).min(THREADS)
}

impl<'a> LaunchList<'a> {
    /// Rows of a matrix times `scale`, as the kernels' element or as F32; at most [`MOST_ROWS`].
    pub fn decode(
        &mut self,
        weight: &'a GpuWeight,
        rows: DecodedRows<'a>,
        scale: f32,
        y: GpuView<'a>,
        is_element: bool,
    ) -> Result<()> {
        let (first, count) = match &rows {
            DecodedRows::Neighbours(rows) => (rows.start as u32, rows.len()),
            DecodedRows::ById(ids, count) => {
                ids.holds(*count, "decode: ids")?;
                (u32::MAX, *count)
            }
        };
        if matches!(&rows, DecodedRows::Neighbours(rows) if rows.end > weight.outputs) || count > MOST_ROWS {
            bail!("decode: expected at most {MOST_ROWS} rows of {}, found {rows:?}", weight.outputs)
        }
        if count == 0 {
            return Ok(());
        }
        let kernels = weight.kernels;
        let (kernel, bytes) = if is_element { (kernels.rows_t, kernels.element.bytes()) } else { (kernels.rows, 4) };
        y.holds_bytes(count * weight.inputs * bytes, "decode: y")?;
        let ids = match rows {
            DecodedRows::ById(ids, _) => ids,
            DecodedRows::Neighbours(_) => weight.codes.view(),
        };
        let params = [weight.inputs as u32, weight.group_shift, first, scale.to_bits()];
        let grid = [weight.inputs.div_ceil(8 * THREADS as usize) as u32, count as u32, 1];
        let [codes, extra, scales] = weight.buffers();
        self.push(kernel, grid, THREADS, &[codes, extra, scales, ids, y], &params)
    }

    /// `y = norm(x)`, and what becomes of it; of rows side by side. Unless in lane order, `y` may be `x` or what is added.
    pub fn norm(
        &mut self,
        kernels: RowKernels,
        (x, rows): (GpuView<'a>, usize),
        by: &'a GpuNorm,
        y: GpuView<'a>,
        with: NormWith<'a>,
    ) -> Result<()> {
        let NormWith { added, scale, ordered } = with;
        let cols = by.width;
        let weight = by.weight.view();
        let bias = by.bias.as_ref().map_or(weight, GpuSlice::view);
        weight.holds(cols, "norm: weight")?;
        bias.holds(cols, "norm: bias")?;
        for (slice, what) in [(x, "norm: x"), (y, "norm: y")].into_iter().chain(added.map(|added| (added, "norm: sum"))) {
            slice.holds(rows * cols, what)?;
        }
        if rows == 0 || rows > MOST_ROWS || (ordered && !cols.is_multiple_of(32)) {
            bail!("norm: expected 1 to {MOST_ROWS} rows, in lane order of a multiple of 32 values, found {rows} of {cols}")
        }
        let layer = if by.kind == NormKind::Layer { LAYER } else { 0 };
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        let flags = layer | flag(by.bias.is_some(), SHIFT) | flag(added.is_some(), ADD_AFTER) | flag(ordered, LANE_ORDER);
        let threads = (cols.next_multiple_of(32) as u32).clamp(32, THREADS);
        let buffers = [x, added.unwrap_or(x), weight, bias, y];
        self.push(kernels.norm, [rows as u32, 1, 1], threads, &buffers, &[cols as u32, flags, by.eps.to_bits(), scale.to_bits()])
    }

    /// `y = x Wᵀ`, and what comes with it. Where there is an activation `y` is in lane order.
    pub fn product(&mut self, weight: &'a GpuWeight, x: GpuView<'a>, y: GpuView<'a>, with: ProductWith<'a>) -> Result<()> {
        let GpuWeight { kernels, inputs, .. } = *weight;
        let gated = matches!(with.activation, Some((Gated::Yes, _)));
        let outputs = if gated { weight.outputs / 2 } else { weight.outputs };
        let rows = with.rows;
        if rows == 0 || rows > MOST_ROWS {
            bail!("product: expected 1 to {MOST_ROWS} rows, found {rows}")
        }
        x.holds(rows * inputs, "product: x")?;
        y.holds(rows * outputs, "product: y")?;
        with.norm.iter().try_for_each(|(weight, _)| weight.holds(inputs, "product: norm"))?;
        with.bias.iter().try_for_each(|bias| bias.holds(weight.outputs, "product: bias"))?;
        with.residual.iter().try_for_each(|residual| residual.holds(rows * outputs, "product: residual"))?;
        with.factor.iter().try_for_each(|factor| factor.holds(rows * outputs, "product: factor"))?;
        let is_activated_alone = matches!(with.activation, Some((Gated::No, _)));
        if with.factor.is_some() && (!is_activated_alone || with.residual.is_some()) {
            bail!("product: expected a factor of what is activated without a gate, and nothing that is added")
        }
        // Of several rows in lane order four share what is read of W.
        let of_rows = with.ordered && rows > 1;
        let is_known = !with.ordered || (with.norm.is_none() && (of_rows || !gated));
        if (with.activation.is_some() && !outputs.is_multiple_of(32)) || !is_known {
            bail!("product: expected an input by columns and outputs in whole runs of 32, found {outputs} outputs")
        }
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        let flags = flag(with.norm.is_some(), NORM)
            | flag(with.bias.is_some(), BIAS)
            | flag(with.residual.is_some(), RESIDUAL)
            | flag(with.factor.is_some(), FACTOR)
            | with.activation.map_or(0, |(gated, kind)| flag(gated == Gated::No, ACTIVATE) | (ACTIVATION * number(kind)));
        let chunks = inputs / kernels.format.row().columns;
        let mut cut = Cut::new(outputs, chunks, gated, !with.ordered, self.gpu.launcher.units());
        if of_rows {
            cut = cut.of_two(outputs, gated);
        }
        let (norm, eps) = with.norm.unwrap_or((x, 0.0));
        let params = [
            outputs as u32,
            inputs as u32,
            rows as u32,
            cut.split,
            weight.group_shift,
            flags,
            eps.to_bits(),
            with.scale.to_bits(),
        ];
        let is_four = usize::from(cut.rows == 4);
        let kernel = match (with.ordered, gated) {
            _ if of_rows => kernels.of_rows[usize::from(gated)],
            (true, _) => kernels.direct[is_four],
            (false, true) => kernels.gated,
            (false, false) => kernels.staged[is_four],
        };
        let passes = if of_rows { rows.div_ceil(4) } else { rows };
        let (bias, residual) = (with.bias.unwrap_or(x), with.residual.or(with.factor).unwrap_or(x));
        let [codes, extra, scales] = weight.buffers();
        let buffers = [codes, extra, scales, x, norm, bias, residual, y];
        self.push(kernel, [cut.groups, passes as u32, 1], cut.threads, &buffers, &params)
    }

    /// The gated short convolution of one row, whose input the ring takes up: `c · conv(b · x)`.
    pub fn short_conv(&mut self, kernels: RowKernels, row: ConvolutionRow<'a>) -> Result<()> {
        let ConvolutionRow { inputs, position, taps, channels, weight, bias, ring, out } = row;
        inputs.holds(3 * channels, "a short convolution: inputs")?;
        position.holds(1, "a short convolution: position")?;
        weight.holds(taps * channels, "a short convolution: weight")?;
        bias.iter().try_for_each(|bias| bias.holds(channels, "a short convolution: bias"))?;
        ring.holds(RING * channels, "a short convolution: ring")?;
        out.holds(channels, "a short convolution: out")?;
        if taps == 0 || taps > MOST_TAPS || !channels.is_multiple_of(32) {
            bail!("a short convolution: expected up to {MOST_TAPS} taps of whole runs of 32 channels, found {taps} of {channels}")
        }
        let params = [channels as u32, taps as u32, if bias.is_some() { BIAS } else { 0 }];
        let groups = channels.div_ceil(THREADS as usize) as u32;
        self.push(
            kernels.short_conv,
            [groups, 1, 1],
            THREADS,
            &[inputs, position, weight, bias.unwrap_or(weight), ring, out],
            &params,
        )
    }

    /// The delta net of one row, which ring and state take up.
    pub fn delta_net(&mut self, kernels: RowKernels, row: DeltaNetRow<'a>) -> Result<()> {
        let DeltaNetRow { inputs, position, by, ring, state, out } = row;
        let GpuDeltaNet { shape, taps, conv, bias, rates, length_eps, norm } = by;
        let ScanShape { heads, groups, key_dim, value_dim, .. } = *shape;
        let values = heads * value_dim;
        let channels = 2 * groups * key_dim + values;
        inputs.holds(channels + values + 2 * heads, "a delta net: inputs")?;
        position.holds(2, "a delta net: position")?;
        conv.view().holds(taps * channels, "a delta net: convolution")?;
        bias.view().holds(heads, "a delta net: bias")?;
        rates.view().holds(heads, "a delta net: rates")?;
        norm.weight.view().holds(value_dim, "a delta net: norm")?;
        ring.holds(RING * channels, "a delta net: ring")?;
        state.holds(heads * (key_dim * value_dim + CHUNK * (key_dim + value_dim + 1)), "a delta net: state")?;
        out.holds(values, "a delta net: out")?;
        let fits = (1..=WIDEST_SCAN).contains(&key_dim) && (1..=WIDEST_SCAN).contains(&value_dim) && value_dim.is_multiple_of(4);
        let is_even = groups > 0 && heads.is_multiple_of(groups) && values.is_multiple_of(32);
        if !fits || !is_even || *taps == 0 || *taps > MOST_TAPS || norm.width != value_dim {
            bail!(
                "a delta net: expected up to {MOST_TAPS} taps and heads of up to {WIDEST_SCAN} values, found {taps} and {shape:?}"
            )
        }
        let [heads, groups, keys, values, taps] = [heads, groups, key_dim, value_dim, *taps].map(|n| n as u32);
        let params = [heads, groups, keys, values, taps, length_eps.to_bits(), norm.eps.to_bits()];
        let buffers = [inputs, position, conv.view(), bias.view(), rates.view(), norm.weight.view(), ring, state, out];
        self.push(kernels.delta_net, [heads, 1, 1], THREADS, &buffers, &params)
    }

    /// Attention of one row, whose key and value the cache takes up.
    pub fn attention(&mut self, kernels: AttentionKernels, row: AttentionRow<'a>) -> Result<()> {
        let AttentionRow { counts, qkv, layout, norms, v_norm, angles, cache, position, length, mask, sinks, out, parts } = row;
        let HeadCounts { heads, kv_heads } = counts;
        let dim = kernels.head_dim;
        let splits = attention_splits(mask, length);
        qkv.holds(layout.values(counts, dim), "attention: qkv")?;
        position.holds(1, "attention: position")?;
        out.holds(heads * dim, "attention: out")?;
        parts.holds(if splits > 1 { heads * splits * (dim + 2) } else { 0 }, "attention: parts")?;
        sinks.iter().try_for_each(|sinks| sinks.holds(heads, "attention: sinks"))?;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || !(heads * dim).is_multiple_of(32) || !mask.causal {
            bail!("attention: expected a causal mask and heads of a multiple of 32 values that share key heads, found {counts:?}")
        }
        let bytes = kv_heads * cache.capacity * dim * kernels.element.bytes();
        cache.keys.holds_bytes(bytes, "attention: keys")?;
        cache.values.holds_bytes(bytes, "attention: values")?;
        let mut flags = layout.flags() | if v_norm.is_some() { V_NORM } else { 0 };
        if let (Some(norms), Some(eps)) = (norms, v_norm)
            && norms.eps != eps
        {
            bail!("attention: expected norms with one epsilon, found {} and {eps}", norms.eps)
        }
        if let Some(norms) = norms {
            let own = |heads: usize| if norms.each { heads * dim } else { dim };
            norms.q.view().holds(own(heads), "attention: norm of q")?;
            norms.k.view().holds(if layout.keys == KeysPart::Shared { 0 } else { own(kv_heads) }, "attention: norm of k")?;
            flags |= QK_NORM | if norms.after { NORM_AFTER } else { 0 } | if norms.each { NORM_EACH } else { 0 };
        }
        let mut half = 0;
        if let Some((angles, pairs)) = angles {
            half = angles.half;
            if 2 * half > dim {
                bail!("attention: expected at most {} pairs, found {half}", dim / 2)
            }
            angles.queries.view().holds(2 * half, "attention: angles of q")?;
            angles.keys.view().holds(2 * half, "attention: angles of k")?;
            flags |= if pairs == RopePairs::Adjacent { ADJACENT } else { 0 };
        }
        let (q_angles, k_angles) = angles.map_or((qkv, qkv), |(angles, _)| (angles.queries.view(), angles.keys.view()));
        let (q_norm, k_norm) = norms.map_or((qkv, qkv), |norms| (norms.q.view(), norms.k.view()));
        let window = mask.window.map_or(0, |window| window.min(u32::MAX as usize) as u32);
        let eps = norms.map(|norms| norms.eps).or(v_norm).unwrap_or(0.0);
        let [eps, scale, cap] = [eps, mask.scale, mask.softcap.unwrap_or(0.0)].map(f32::to_bits);
        let [heads, kv_heads, capacity, splits, rotated] = [heads, kv_heads, cache.capacity, splits, 2 * half].map(|n| n as u32);
        let params = [heads, kv_heads, capacity, splits, window, u32::from(sinks.is_some()), rotated, flags, eps, scale, cap];
        let sinks = sinks.unwrap_or(qkv);
        let buffers = [qkv, position, q_angles, k_angles, q_norm, k_norm, sinks, cache.keys, cache.values, out, parts];
        self.push(kernels.attention, [heads, splits, 1], 32 * kernels.parts, &buffers, &params)?;
        if splits == 1 {
            return Ok(());
        }
        self.push(kernels.combine, [heads, 1, 1], combine_threads(dim), &[parts, sinks, qkv, out], &params)
    }
}

impl GpuWeight {
    /// A matrix `(outputs, inputs)` as `format.h` has it. `dense` has no extra and no scales.
    ///
    /// # Errors
    /// If a buffer is too small, or rows are no multiples of 32 columns.
    pub fn new(
        kernels: ProductKernels,
        (outputs, inputs): (usize, usize),
        group_shift: u32,
        codes: GpuSlice,
        others: Option<(GpuSlice, GpuSlice)>,
    ) -> Result<Self> {
        let format = kernels.format.row();
        let values = outputs * inputs;
        if !inputs.is_multiple_of(32.max(format.columns << group_shift)) || values / format.columns > u32::MAX as usize {
            bail!("a matrix of kernels: expected rows of whole groups of 32 columns, found ({outputs}, {inputs})")
        }
        let bits = if kernels.format == GpuFormat::dense { 8 * kernels.element.bytes() } else { format.low_bits() as usize };
        codes.view().holds_bytes(values / 8 * bits, "a matrix of kernels: codes")?;
        let (extra, scales) = others.unwrap_or_else(|| (codes.clone(), codes.clone()));
        if kernels.format != GpuFormat::dense {
            let groups = values / (format.columns << group_shift);
            scales.view().holds_bytes(groups * if format.symmetric { 2 } else { 4 }, "a matrix of kernels: scales")?;
            let words = if format.table { 16 } else { values / 32 * format.upper_bits() };
            extra.view().holds(words, "a matrix of kernels: upper bits")?;
        }
        Ok(Self { kernels, outputs, inputs, group_shift, codes, extra, scales })
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Codes, what else the format has, and scales.
    fn buffers(&self) -> [GpuView<'_>; 3] {
        [self.codes.view(), self.extra.view(), self.scales.view()]
    }

    pub fn format(&self) -> GpuFormat {
        self.kernels.format
    }
}
