//! What is between the products of a batch, forward and backward, each operation one launch on tensors of a device.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::device::{Gpu, GpuKernel, GpuView};
use super::launch::{THREADS, number};
use super::{Element, Library};
use crate::kernels::{Activation, Mask, NormKind};

// Flags of params.h.
const LAYER: u32 = 8;
const SHIFT: u32 = 16;
const WEIGHTED: u32 = 32;
const WEIGHT_EACH: u32 = 64;
const ADJACENT: u32 = 1;
const INVERSE: u32 = 16;
const GATED: u32 = 1;
const ACTIVATION: u32 = 16;
const CAUSAL: u32 = 1;
const SINKS: u32 = 2;
const BY_DISTANCE: u32 = 4;

/// Threads of a threadgroup whose threads make a value each, or its simdgroups a row: fewer where each is a fiber of the tests' executor.
const BLOCK: usize = if cfg!(test) { 64 } else { 256 };

/// The kernels of a type of activations, compiled.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchKernels {
    element: Element,
    norm: [GpuKernel; 2],
    rotate: GpuKernel,
    activate: [GpuKernel; 2],
    cross_entropy: GpuKernel,
    /// From F32, and to it.
    block: [GpuKernel; 2],
    place: [GpuKernel; 2],
    softmax: [GpuKernel; 2],
}

/// The kernels that a device has compiled, by the type of activations, or why it could not.
#[derive(Debug, Default)]
pub(super) struct CompiledBatch([OnceLock<std::result::Result<BatchKernels, String>>; 3]);

/// The operations on a device, for activations of one type.
#[derive(Debug, Clone)]
pub struct BatchOps {
    gpu: Gpu,
    kernels: BatchKernels,
}

/// How groups of `width` values of a row are normalised.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    pub kind: NormKind,
    pub eps: f32,
    pub width: usize,
    /// `(width)`, or `(groups · width)` where each has its own; F32.
    pub weight: Option<&'a Tensor>,
    /// `(width)`, F32.
    pub bias: Option<&'a Tensor>,
}

/// How heads are rotated: the first values of each, `half` pairs.
#[derive(Debug, Clone, Copy)]
pub struct BatchRotation<'a> {
    pub head_dim: usize,
    pub adjacent: bool,
    /// Whether they are turned back.
    pub inverse: bool,
    /// `(T, half)`, F32.
    pub cos: &'a Tensor,
    pub sin: &'a Tensor,
}

/// Neighbouring rows and columns of a matrix, times a number, and where they go.
#[derive(Debug)]
pub struct BatchBlock<'a> {
    pub x: &'a Tensor,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    /// The row and the column of the first value.
    pub to: (usize, usize),
    pub factor: f32,
}

impl BatchBlock<'_> {
    /// Whether both are written to one place at least.
    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: (usize, usize), b: (usize, usize)| a.0.max(b.0) < (a.0 + a.1).min(b.0 + b.1);
        meet((self.to.0, self.rows.len()), (other.to.0, other.rows.len()))
            && meet((self.to.1, self.cols.len()), (other.to.1, other.cols.len()))
    }
}

/// Sequences whose rows lie one after another, and the places of the longest for each.
#[derive(Debug, Clone)]
pub struct BatchPlaces {
    /// The first row of each, and how many there are.
    firsts: Tensor,
    /// Of each row its place, sequence · longest + position.
    places: Tensor,
    sequences: usize,
    longest: usize,
    rows: usize,
}

/// Scores of attention: `(sequences · heads · queries, keys)`.
#[derive(Debug, Clone, Copy)]
pub struct BatchScores<'a> {
    pub heads: usize,
    /// Of each sequence; those of a cache are its last positions.
    pub queries: usize,
    pub keys: usize,
    pub mask: Mask,
    /// `(H)`, F32: a score each that takes its share of the softmax.
    pub sinks: Option<&'a Tensor>,
    /// `(H, 2 · queries - 1)`, F32: added to the scores by the key's position minus the query's.
    pub bias: Option<&'a Tensor>,
}

/// Rows whose values lie one after another, and how far they are from each other.
struct Rows<'a> {
    tensor: Cow<'a, Tensor>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Copied where their values do not lie so, or begin where kernels cannot.
    fn of(x: &'a Tensor) -> Result<Self> {
        let (rows, cols) = x.dims2()?;
        let offset = x.layout().start_offset() * x.dtype().size_in_bytes();
        match *x.stride() {
            [stride, 1] if stride >= cols && offset.is_multiple_of(16) => {
                Ok(Self { tensor: Cow::Borrowed(x), rows, cols, stride })
            }
            _ => Ok(Self { tensor: Cow::Owned(x.force_contiguous()?), rows, cols, stride: cols }),
        }
    }

    fn view(&self) -> Result<GpuView<'_>> {
        let spanned = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.cols };
        GpuView::spanning(&self.tensor, spanned)
    }
}

impl BatchOps {
    /// The operations for rows like `x`; `None` where its device has no kernels, or did not compile them.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn of(x: &Tensor) -> Result<Option<Self>> {
        Self::for_type(x.dtype(), x.device())
    }

    /// The same for activations of a type.
    pub fn for_type(dtype: DType, device: &Device) -> Result<Option<Self>> {
        Ok(Self::compiled(dtype, device)?.and_then(std::result::Result::ok))
    }

    /// What of the operations for a type a device lacks that has kernels: the compiler's message.
    pub fn lacks(dtype: DType, device: &Device) -> Option<String> {
        Self::compiled(dtype, device).ok()??.err()
    }

    /// `None` where there are no kernels for the device, or for the type; or why they could not be compiled.
    fn compiled(dtype: DType, device: &Device) -> Result<Option<std::result::Result<Self, String>>> {
        let element = match dtype {
            DType::F32 => Element::F32,
            DType::F16 => Element::F16,
            DType::BF16 => Element::BF16,
            _ => return Ok(None),
        };
        if !Gpu::is_for(device) {
            return Ok(None);
        }
        let Some(gpu) = Gpu::of(device)? else { return Ok(None) };
        let compiled = gpu.launcher.batch().0[element as usize].get_or_init(|| {
            BatchKernels::new(&gpu, element).map_err(|error| {
                log::warn!("batches are evaluated by tensor operations alone: {error}");
                error.to_string()
            })
        });
        let compiled = compiled.as_ref().map_err(Clone::clone).copied();
        Ok(Some(compiled.map(|kernels| Self { gpu, kernels })))
    }

    fn start(&self, kernel: GpuKernel, groups: usize, threads: usize, buffers: &[GpuView<'_>], words: &[u32]) -> Result<()> {
        let Ok(groups) = u32::try_from(groups) else { bail!("a batch of {groups} threadgroups") };
        if groups == 0 {
            return Ok(());
        }
        let mut list = self.gpu.list();
        list.push(kernel, [groups, 1, 1], threads as u32, buffers, words)?;
        list.start()
    }

    /// The normalised groups of rows. Statistics are F32.
    ///
    /// # Shape
    /// `x`: `(T, groups · width)`; returns the same.
    pub fn norm(&self, x: &Tensor, by: BatchNorm<'_>) -> Result<Tensor> {
        self.normed(x, None, by)
    }

    /// The gradient of what was normalised.
    ///
    /// # Shape
    /// `x`, `dy`: `(T, groups · width)`; returns the same.
    pub fn norm_backward(&self, x: &Tensor, dy: &Tensor, by: BatchNorm<'_>) -> Result<Tensor> {
        self.normed(x, Some(dy), by)
    }

    fn normed(&self, x: &Tensor, dy: Option<&Tensor>, by: BatchNorm<'_>) -> Result<Tensor> {
        let x = Rows::of(x)?;
        let (rows, cols) = (x.rows, x.cols);
        let groups = cols / by.width.max(1);
        let own = by.weight.map_or(0, Tensor::elem_count);
        if by.width * groups != cols || ![0, by.width, cols].contains(&own) {
            bail!("norm: expected groups of {} with a weight for each value, found rows of {cols} and {own} weights", by.width)
        }
        let y = self.gpu.room((rows, cols), x.tensor.dtype())?;
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        let flags = flag(by.kind == NormKind::Layer, LAYER)
            | flag(own > 0, WEIGHTED)
            | flag(own == cols && groups > 1, WEIGHT_EACH)
            | flag(by.bias.is_some(), SHIFT);
        let words = [by.width as u32, groups as u32, x.stride as u32, flags, by.eps.to_bits()];
        let threads = by.width.div_ceil(32).clamp(1, 8) * 32;
        let (input, out) = (x.view()?, GpuView::of(&y)?);
        let weight = vector(by.weight, own, input)?;
        let Some(dy) = dy else {
            let bias = vector(by.bias, by.width, input)?;
            self.start(self.kernels.norm[0], rows * groups, threads, &[input, weight, bias, out], &words)?;
            return Ok(y);
        };
        let dy = contiguous(dy, &[rows, cols], y.dtype())?;
        self.start(self.kernels.norm[1], rows * groups, threads, &[input, GpuView::of(&dy)?, weight, out], &words)?;
        Ok(y)
    }

    /// Rotated heads.
    ///
    /// # Shape
    /// `x`: `(T, H · D)`; returns the same.
    pub fn rotate(&self, x: &Tensor, by: BatchRotation<'_>) -> Result<Tensor> {
        let x = Rows::of(x)?;
        let (rows, cols, (positions, half), dim) = (x.rows, x.cols, by.cos.dims2()?, by.head_dim);
        if positions != rows || !dim.is_multiple_of(2) || 2 * half > dim || dim == 0 || !cols.is_multiple_of(dim) {
            bail!("rotate: expected {positions} rows of heads of {dim}, {half} pairs each, found ({rows}, {cols})")
        }
        let y = self.gpu.room((rows, cols), x.tensor.dtype())?;
        let flags = if by.adjacent { ADJACENT } else { 0 } | if by.inverse { INVERSE } else { 0 };
        let count = threads_of(rows * cols / 2)?;
        let words = [count, (cols / dim) as u32, dim as u32, 2 * half as u32, x.stride as u32, flags];
        let input = x.view()?;
        let [cos, sin] = [by.cos, by.sin].map(|angles| vector(Some(angles), rows * half, input));
        self.each(self.kernels.rotate, count, &[input, cos?, sin?, GpuView::of(&y)?], &words)?;
        Ok(y)
    }

    /// `activation(x)`, or of gates and as many values `activation(gate) · up`.
    ///
    /// # Shape
    /// `x`: `(T, F)`, or `(T, 2 · F)` with a row's gates first; returns `(T, F)`.
    pub fn activate(&self, x: &Tensor, kind: Activation, is_gated: bool) -> Result<Tensor> {
        let x = Rows::of(x)?;
        let width = if is_gated { x.cols / 2 } else { x.cols };
        let y = self.gpu.room((x.rows, width), x.tensor.dtype())?;
        let words = activation(&x, width, kind, is_gated)?;
        self.each(self.kernels.activate[0], words[0], &[x.view()?, GpuView::of(&y)?], &words)?;
        Ok(y)
    }

    /// The gradient of what was activated.
    ///
    /// # Shape
    /// `x` as [`activate`](Self::activate) has it, `dy`: `(T, F)`; returns the shape of `x`.
    pub fn activate_backward(&self, x: &Tensor, dy: &Tensor, kind: Activation, is_gated: bool) -> Result<Tensor> {
        let x = Rows::of(x)?;
        let width = if is_gated { x.cols / 2 } else { x.cols };
        let dx = self.gpu.room((x.rows, x.cols), x.tensor.dtype())?;
        let dy = contiguous(dy, &[x.rows, width], dx.dtype())?;
        let words = activation(&x, width, kind, is_gated)?;
        self.each(self.kernels.activate[1], words[0], &[x.view()?, GpuView::of(&dy)?, GpuView::of(&dx)?], &words)?;
        Ok(dx)
    }

    /// The cross entropy of each row against its target, and the gradient of the scores, if it is asked for: in their place.
    ///
    /// # Shape
    /// `scores`: `(T, N)`, which nobody else has; `targets`: `(T)`, U32 below `N`; returns `(T)` in F32.
    pub fn cross_entropy(
        &self,
        scores: Tensor,
        targets: &Tensor,
        (scale, cap): (f32, Option<f32>),
        with_gradient: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (rows, cols) = scores.dims2()?;
        let (losses, ids) = (self.gpu.room(rows, DType::F32)?, GpuView::of(targets)?);
        if targets.dtype() != DType::U32 || cols == 0 {
            bail!("cross entropy: expected targets in U32 and rows of scores, found {:?} and {cols}", targets.dtype())
        }
        ids.holds(rows, "cross entropy: targets")?;
        let words = [cols as u32, u32::from(with_gradient), scale.to_bits(), cap.unwrap_or(0.0).to_bits()];
        let view = GpuView::of(&scores)?;
        self.start(self.kernels.cross_entropy, rows, BLOCK, &[view, ids, GpuView::of(&losses)?, view], &words)?;
        Ok((losses, with_gradient.then_some(scores)))
    }

    /// A matrix that is made of blocks of others, which do not overlap in it; zero elsewhere. Between F32 and the type of these activations.
    ///
    /// # Shape
    /// Returns `(rows, cols)`.
    pub fn matrix_of(&self, (rows, cols): (usize, usize), dtype: DType, blocks: &[BatchBlock<'_>]) -> Result<Tensor> {
        // Where two were written, the order of the device's threads would decide.
        if let Some((a, b)) =
            (1..blocks.len()).flat_map(|i| (0..i).map(move |k| (&blocks[k], &blocks[i]))).find(|(a, b)| a.overlaps(b))
        {
            bail!("blocks of a matrix: expected none that overlap, found {a:?} and {b:?}")
        }
        let covered: usize = blocks.iter().map(|block| block.rows.len() * block.cols.len()).sum();
        let y = if covered == rows * cols {
            self.gpu.room((rows, cols), dtype)?
        } else {
            Tensor::zeros((rows, cols), dtype, self.gpu.device())?
        };
        threads_of(rows * cols)?;
        let sources =
            blocks.iter().map(|block| contiguous(block.x, block.x.dims(), block.x.dtype())).collect::<Result<Vec<_>>>()?;
        let (out, mut list) = (GpuView::of(&y)?, self.gpu.list());
        for (block, x) in blocks.iter().zip(&sources) {
            let ((height, width), (first_row, first_col)) = (x.dims2()?, block.to);
            let count = threads_of(block.rows.len() * block.cols.len())?;
            let is_within = block.rows.end <= height && block.cols.end <= width;
            if !is_within || first_row + block.rows.len() > rows || first_col + block.cols.len() > cols {
                bail!("a block: expected a part of ({height}, {width}) for one of ({rows}, {cols}), found {block:?}")
            }
            let kernel = match (x.dtype(), dtype) {
                (DType::F32, dtype) if dtype == self.kernels.dtype() => self.kernels.block[0],
                (found, DType::F32) if found == self.kernels.dtype() => self.kernels.block[1],
                (found, _) => bail!("a block: expected {:?} from F32, or F32 from it, found {found:?}", self.kernels.dtype()),
            };
            let (from, to) = (block.rows.start * width + block.cols.start, first_row * cols + first_col);
            let [from, from_stride, to, to_stride] = [from, width, to, cols].map(|x| x as u32);
            let words = [count, block.cols.len() as u32, from, from_stride, to, to_stride, block.factor.to_bits()];
            threads_of(x.elem_count())?;
            if count > 0 {
                list.push(kernel, [count.div_ceil(BLOCK as u32), 1, 1], BLOCK as u32, &[GpuView::of(x)?, out], &words)?;
            }
        }
        list.start()?;
        Ok(y)
    }

    /// Rows at the places of their sequences, zeros where a sequence is shorter than the longest.
    ///
    /// # Shape
    /// `x`: `(T, heads · D)`; returns `(sequences, heads, longest, D)`.
    pub fn place(&self, x: &Tensor, heads: usize, by: &BatchPlaces) -> Result<Tensor> {
        let x = Rows::of(x)?;
        if heads == 0 || !x.cols.is_multiple_of(heads) || x.rows != by.rows {
            bail!("places: expected {} rows of {heads} heads, found ({}, {})", by.rows, x.rows, x.cols)
        }
        let shape = (by.sequences, heads, by.longest, x.cols / heads);
        let y = self.gpu.room(shape, x.tensor.dtype())?;
        let count = threads_of(y.elem_count())?;
        let words = [count, heads as u32, shape.3 as u32, by.longest as u32, x.stride as u32];
        self.each(self.kernels.place[0], count, &[x.view()?, GpuView::of(&by.firsts)?, GpuView::of(&y)?], &words)?;
        Ok(y)
    }

    /// The rows of what is at places.
    ///
    /// # Shape
    /// `x`: `sequences · heads · longest · D` values in this order; returns `(T, heads · D)`.
    pub fn unplace(&self, x: &Tensor, heads: usize, by: &BatchPlaces) -> Result<Tensor> {
        let x = contiguous(x, x.dims(), x.dtype())?;
        let of_place = by.sequences * heads * by.longest;
        if of_place == 0 || !x.elem_count().is_multiple_of(of_place) {
            bail!(
                "places: expected values of {} sequences, {heads} heads and {} places, found {:?}",
                by.sequences,
                by.longest,
                x.dims()
            )
        }
        let dim = x.elem_count() / of_place;
        let y = self.gpu.room((by.rows, heads * dim), x.dtype())?;
        let count = threads_of(y.elem_count())?;
        let words = [count, heads as u32, dim as u32, by.longest as u32, 0];
        self.each(self.kernels.place[1], count, &[GpuView::of(&x)?, GpuView::of(&by.places)?, GpuView::of(&y)?], &words)?;
        Ok(y)
    }

    /// What each query takes of the values, in place of the products of queries with keys, which nobody else has.
    ///
    /// # Shape
    /// `products`: `(sequences · heads · queries · keys)` values in this order; returns the same.
    pub fn softmax(&self, products: Tensor, by: BatchScores<'_>, sequences: &BatchPlaces) -> Result<Tensor> {
        let (rows, words) = by.words(&products, sequences)?;
        let view = GpuView::of(&products)?;
        let sinks = vector(by.sinks, by.heads, view)?;
        let bias = vector(by.bias, by.heads * (2 * by.queries).saturating_sub(1), view)?;
        let buffers = [view, GpuView::of(&sequences.firsts)?, sinks, bias, view];
        self.start(self.kernels.softmax[0], rows.div_ceil(BLOCK / 32), BLOCK, &buffers, &words)?;
        Ok(products)
    }

    /// From the gradients of those weights, in their place, to those of the products.
    ///
    /// # Shape
    /// As [`softmax`](Self::softmax) has it; `of_weights` has the shape of `products`, and nobody else has it.
    pub fn softmax_backward(
        &self,
        products: &Tensor,
        of_weights: Tensor,
        by: BatchScores<'_>,
        sequences: &BatchPlaces,
    ) -> Result<Tensor> {
        let (rows, words) = by.words(products, sequences)?;
        if of_weights.dims() != products.dims() || of_weights.dtype() != products.dtype() || by.bias.is_some() {
            bail!("softmax: expected gradients of {:?} and no bias, found {:?}", products.dims(), of_weights.dims())
        }
        let (view, gradient) = (GpuView::of(products)?, GpuView::of(&of_weights)?);
        let buffers = [view, gradient, GpuView::of(&sequences.firsts)?, vector(by.sinks, by.heads, view)?, gradient];
        self.start(self.kernels.softmax[1], rows.div_ceil(BLOCK / 32), BLOCK, &buffers, &words)?;
        Ok(of_weights)
    }

    /// A kernel with a thread for each of so many values.
    fn each(&self, kernel: GpuKernel, count: u32, buffers: &[GpuView<'_>], words: &[u32]) -> Result<()> {
        self.start(kernel, (count as usize).div_ceil(BLOCK), BLOCK, buffers, words)
    }
}

impl BatchKernels {
    pub fn new(gpu: &Gpu, element: Element) -> Result<Self> {
        let kernel = |name: &str| gpu.kernel(Library::Batch { element }, name, THREADS);
        let both = |forward: &str, backward: &str| Ok::<_, candle_core::Error>([kernel(forward)?, kernel(backward)?]);
        Ok(Self {
            element,
            norm: both("norm_batch", "norm_batch_backward")?,
            rotate: kernel("rotate_batch")?,
            activate: both("activate_batch", "activate_batch_backward")?,
            cross_entropy: kernel("cross_entropy")?,
            block: both("block_from_f32", "block_to_f32")?,
            place: both("place_batch", "unplace_batch")?,
            softmax: both("softmax_batch", "softmax_batch_backward")?,
        })
    }

    /// The type of activations.
    fn dtype(&self) -> DType {
        match self.element {
            Element::F32 => DType::F32,
            Element::F16 => DType::F16,
            Element::BF16 => DType::BF16,
        }
    }
}

impl BatchPlaces {
    /// Of sequences of these lengths, one after another.
    pub fn new(lengths: &[usize], device: &Device) -> Result<Self> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let (mut firsts, mut places) = (vec![0u32], Vec::new());
        for (sequence, &len) in lengths.iter().enumerate() {
            places.extend((0..len).map(|position| (sequence * longest + position) as u32));
            firsts.push(places.len() as u32);
        }
        let (sequences, rows) = (lengths.len(), places.len());
        Ok(Self { firsts: Tensor::new(firsts, device)?, places: Tensor::new(places, device)?, sequences, longest, rows })
    }

    /// Of each row its place, sequence · longest + position. `(T)`, U32.
    pub fn places(&self) -> &Tensor {
        &self.places
    }
}

impl BatchScores<'_> {
    /// Rows of scores, and what the kernels are told.
    fn words(&self, products: &Tensor, sequences: &BatchPlaces) -> Result<(usize, [u32; 9])> {
        let Self { heads, queries, keys, mask, .. } = *self;
        let rows = sequences.sequences * heads * queries;
        if products.elem_count() != rows * keys || queries > keys || keys != sequences.longest || rows > u32::MAX as usize {
            bail!("softmax: expected scores of {rows} queries and {} keys, found {:?}", sequences.longest, products.dims())
        }
        // Distances are counted from a query of the same number on.
        if self.bias.is_some() && queries != keys {
            bail!("softmax: expected as many queries as keys with a bias by distance, found {queries} and {keys}")
        }
        let flags = if mask.causal { CAUSAL } else { 0 }
            | if self.sinks.is_some() { SINKS } else { 0 }
            | if self.bias.is_some() { BY_DISTANCE } else { 0 };
        let window = mask.window.map_or(0, |window| window.min(u32::MAX as usize) as u32);
        let [scale, cap] = [mask.scale, mask.softcap.unwrap_or(0.0)].map(f32::to_bits);
        let [height, width, heads, queries, first] = [rows, keys, heads, queries, keys - queries].map(|x| x as u32);
        Ok((rows, [height, width, heads, queries, first, window, flags, scale, cap]))
    }
}

/// What the kernels of an activation are told.
fn activation(x: &Rows<'_>, width: usize, kind: Activation, is_gated: bool) -> Result<[u32; 4]> {
    let flags = (ACTIVATION * number(kind)) | if is_gated { GATED } else { 0 };
    Ok([threads_of(x.rows * width)?, width as u32, x.stride as u32, flags])
}

/// Threads for so many values.
fn threads_of(values: usize) -> Result<u32> {
    match u32::try_from(values) {
        Ok(count) if count <= u32::MAX - BLOCK as u32 => Ok(count),
        _ => bail!("a batch: expected less than 2^32 values at once, found {values}"),
    }
}

/// A vector of F32; `none` stands for one that is not there.
fn vector<'a>(x: Option<&'a Tensor>, len: usize, none: GpuView<'a>) -> Result<GpuView<'a>> {
    let Some(x) = x else { return Ok(none) };
    if x.dtype() != DType::F32 {
        bail!("a vector: expected F32, found {:?}", x.dtype())
    }
    let view = GpuView::of(x)?;
    view.holds(len, "a vector")?;
    Ok(view)
}

/// A tensor of this shape and type, copied where kernels cannot read it in one piece.
fn contiguous<'a>(x: &'a Tensor, shape: &[usize], dtype: DType) -> Result<Cow<'a, Tensor>> {
    if x.dims() != shape || x.dtype() != dtype {
        bail!("a batch: expected {shape:?} in {dtype:?}, found {:?} in {:?}", x.dims(), x.dtype())
    }
    let offset = x.layout().start_offset() * x.dtype().size_in_bytes();
    Ok(if x.is_contiguous() && offset.is_multiple_of(16) { Cow::Borrowed(x) } else { Cow::Owned(x.force_contiguous()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_by_distance_is_for_as_many_queries_as_keys() {
        let lengths = BatchPlaces::new(&[3], &Device::Cpu).unwrap();
        let zeros = |count| Tensor::zeros(count, DType::F32, &Device::Cpu).unwrap();
        let (bias, mask) = (zeros(2 * 5), Mask { causal: true, window: None, scale: 1.0, softcap: None });
        let words = |queries: usize, bias| {
            let by = BatchScores { heads: 2, queries, keys: 3, mask, sinks: None, bias };
            by.words(&zeros(2 * queries * 3), &lengths).map(|_| ()).map_err(|error| error.to_string())
        };
        assert!(words(2, None).is_ok() && words(3, Some(&bias)).is_ok());
        assert!(words(2, Some(&bias)).unwrap_err().contains("as many queries as keys"));
    }

    #[test]
    fn blocks_that_share_a_place_are_refused_and_neighbours_are_not() {
        let x = Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap();
        let block = |rows, cols, to| BatchBlock { x: &x, rows: 0..rows, cols: 0..cols, to, factor: 1.0 };
        let own = block(2, 3, (1, 1));
        for (other, overlaps) in [
            (block(2, 3, (1, 1)), true),
            (block(1, 1, (2, 3)), true),
            (block(4, 4, (0, 0)), true),
            (block(1, 4, (0, 0)), false),
            (block(2, 1, (1, 4)), false),
            (block(1, 1, (3, 2)), false),
            (block(0, 3, (1, 1)), false),
        ] {
            assert_eq!((own.overlaps(&other), other.overlaps(&own)), (overlaps, overlaps), "{other:?}");
        }
    }
}
