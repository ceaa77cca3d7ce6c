//! What lies between the products: norms, rotary embedding, activations, residual sums. Each is one pass over its rows.

use super::attention::Strided;
use super::math;
use super::parallel::{Shared, split};
use super::simd::{Kernel, Simd, dispatch};

/// Values below which a second thread does not pay.
const GRAIN: usize = 1 << 14;

/// The activation functions of the supported families, by the names of transformers' `ACT2FN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// `x · Φ(x)` with the error function
    Gelu,
    /// GELU's tanh form
    GeluTanh,
    /// `x · sigmoid(1.702 x)`
    QuickGelu,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    Relu2,
    /// The hyperbolic tangent
    Tanh,
    /// `1 / (1 + e⁻ˣ)`
    Sigmoid,
}

#[cfg(any(test, feature = "selftest"))]
impl Activation {
    /// Every one.
    pub const ALL: [Self; 8] =
        [Self::Silu, Self::Gelu, Self::GeluTanh, Self::QuickGelu, Self::Relu, Self::Relu2, Self::Tanh, Self::Sigmoid];
}

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps)`
    Rms,
    /// `(x - mean) / sqrt(variance + eps)`
    Layer,
}

#[inline(always)]
fn activation<S: Simd>(kind: Activation, x: f32) -> f32 {
    match kind {
        Activation::Silu => math::silu::<S>(x),
        Activation::Gelu => math::gelu_erf::<S>(x),
        Activation::GeluTanh => math::gelu_tanh::<S>(x),
        Activation::QuickGelu => x / (1.0 + math::exp::<S>(-1.702 * x)),
        Activation::Relu => relu(x),
        Activation::Relu2 => relu(x) * relu(x),
        Activation::Tanh => math::tanh::<S>(x),
        Activation::Sigmoid => 1.0 / (1.0 + math::exp::<S>(-x)),
    }
}

/// NaN stays, which the larger one of it and 0 would not be.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn slope<S: Simd>(kind: Activation, x: f32) -> f32 {
    match kind {
        Activation::Silu => math::slope::silu::<S>(x),
        Activation::Gelu => math::slope::gelu_erf::<S>(x),
        Activation::GeluTanh => math::slope::gelu_tanh::<S>(x),
        Activation::QuickGelu => math::slope::silu::<S>(1.702 * x),
        Activation::Relu => {
            if x > 0.0 {
                1.0
            } else {
                0.0
            }
        }
        Activation::Relu2 => 2.0 * relu(x),
        Activation::Tanh => {
            let y = math::tanh::<S>(x);
            1.0 - y * y
        }
        Activation::Sigmoid => {
            let y = 1.0 / (1.0 + math::exp::<S>(-x));
            y * (1.0 - y)
        }
    }
}

/// What a row kernel does with one row.
pub(super) trait RowWork: Sync {
    /// Writes the row `row` of the output, `out`. Must be `#[inline(always)]`.
    fn row<S: Simd>(&self, row: usize, out: &mut [f32]);
}

/// A loop body to be compiled for the widest lanes.
struct RowKernel<'a, F> {
    work: &'a F,
    out: Shared<f32>,
    len: usize,
    width: usize,
    range: std::ops::Range<usize>,
}

impl<F: RowWork> Kernel for RowKernel<'_, F> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for row in self.range {
            let start = row * self.width;
            let width = self.width.min(self.len - start);
            // SAFETY: it lies within the `len` values of `out`, and `each_row` hands it to this task alone.
            let out = unsafe { std::slice::from_raw_parts_mut(self.out.get().add(start), width) };
            self.work.row::<S>(row, out);
        }
    }
}

/// Hands out rows of `width` values, on all threads; the last may be shorter.
pub(super) fn each_row<F: RowWork>(out: &mut [f32], width: usize, work: &F) {
    let (len, rows) = (out.len(), out.len().div_ceil(width));
    let out = Shared::new(out);
    split(rows, GRAIN.div_ceil(width), |range| dispatch(RowKernel { work, out, len, width, range }));
}

/// What a norm does to a row.
///
/// # Shape
/// A row is groups of `width` values: the whole row, or each head of it. `weight` and `bias`: `width` values where the norm has them;
/// `weight` also as many as a row has, for a norm with its own weights a head.
#[derive(Clone, Copy)]
pub struct Normalise<'a> {
    pub kind: NormKind,
    pub eps: f32,
    pub width: usize,
    pub weight: Option<&'a [f32]>,
    pub bias: Option<&'a [f32]>,
}

impl Normalise<'_> {
    fn check(&self, cols: usize) {
        let (width, weight) = (self.width, self.weight);
        assert!(cols.is_multiple_of(width), "whole groups");
        assert!(weight.is_none_or(|w| w.len() == width || w.len() == cols), "a weight for each value");
        assert!(self.bias.is_none_or(|b| b.len() == width), "a bias for each value");
    }

    /// What is subtracted from a group, and by what it is then multiplied. Statistics are F32.
    #[inline(always)]
    fn statistics(&self, x: &[f32]) -> (f32, f32) {
        let mean = match self.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => math::lane_sum(x, |x| x) / self.width as f32,
        };
        let variance = math::lane_sum(x, |x| (x - mean) * (x - mean)) / self.width as f32;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }

    #[inline(always)]
    fn weight_of(&self, group: usize) -> Option<&[f32]> {
        self.weight.map(|weight| &weight[group * self.width % weight.len()..][..self.width])
    }

    #[inline(always)]
    fn row(&self, row: &mut [f32]) {
        for (group, x) in row.chunks_exact_mut(self.width).enumerate() {
            let (mean, scale) = self.statistics(x);
            match self.weight_of(group) {
                Some(weight) => {
                    for (x, w) in x.iter_mut().zip(weight) {
                        *x = (*x - mean) * scale * w;
                    }
                }
                None => x.iter_mut().for_each(|x| *x = (*x - mean) * scale),
            }
            if let Some(bias) = self.bias {
                for (x, b) in x.iter_mut().zip(bias) {
                    *x += b;
                }
            }
        }
    }
}

impl Normalise<'_> {
    /// `dy` becomes the gradient of the row `x`.
    #[inline(always)]
    fn row_back(&self, x: &[f32], dy: &mut [f32]) {
        for (group, (x, dy)) in x.chunks_exact(self.width).zip(dy.chunks_exact_mut(self.width)).enumerate() {
            let (mean, scale) = self.statistics(x);
            if let Some(weight) = self.weight_of(group) {
                dy.iter_mut().zip(weight).for_each(|(dy, w)| *dy *= w);
            }
            // The gradient may not move the mean, nor the length, which the norm takes away.
            let shift = match self.kind {
                NormKind::Rms => 0.0,
                NormKind::Layer => math::lane_sum(dy, |dy| dy) / self.width as f32,
            };
            let along = math::lane_dot(dy, x, |x| (x - mean) * scale) / self.width as f32;
            for (dy, x) in dy.iter_mut().zip(x) {
                *dy = (*dy - shift - (x - mean) * scale * along) * scale;
            }
        }
    }
}

/// `dy`, the gradient of the normalised rows of `x`, becomes that of `x`.
///
/// # Shape
/// `x`: rows of `cols` values, `stride` apart; `dy`: rows of `cols` values.
pub fn normalise_backward(norm: Normalise<'_>, x: &[f32], stride: usize, cols: usize, dy: &mut [f32]) {
    struct Work<'a>(Normalise<'a>, &'a [f32], usize);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, dy: &mut [f32]) {
            let Self(norm, x, stride) = *self;
            norm.row_back(&x[row * stride..][..dy.len()], dy);
        }
    }
    norm.check(cols);
    each_row(dy, cols, &Work(norm, x, stride));
}

/// The normalised rows of `x`, which are `stride` apart.
///
/// # Shape
/// `out`: rows of `cols` values.
pub fn normalise(norm: Normalise<'_>, x: &[f32], stride: usize, cols: usize, out: &mut [f32]) {
    struct Work<'a>(Normalise<'a>, &'a [f32], usize);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, out: &mut [f32]) {
            let Self(norm, x, stride) = *self;
            out.copy_from_slice(&x[row * stride..][..out.len()]);
            norm.row(out);
        }
    }
    norm.check(cols);
    each_row(out, cols, &Work(norm, x, stride));
}

/// `y` becomes `x + scale · y`, normalised where there is a norm.
///
/// # Shape
/// `x`, `y`: rows of `cols` values.
pub fn add_scaled(x: &[f32], scale: f32, y: &mut [f32], cols: usize, norm: Option<Normalise<'_>>) {
    struct Work<'a>(&'a [f32], f32, usize, Option<Normalise<'a>>);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, y: &mut [f32]) {
            let Self(x, scale, cols, norm) = *self;
            for (y, x) in y.iter_mut().zip(&x[row * cols..][..cols]) {
                *y = S::fma1(scale, *y, *x);
            }
            if let Some(norm) = norm {
                norm.row(y);
            }
        }
    }
    assert_eq!(x.len(), y.len(), "as many of one as of the other");
    if let Some(norm) = norm {
        norm.check(cols);
    }
    each_row(y, cols, &Work(x, scale, cols, norm));
}

/// Rotary embedding of the first `2 · half` values of each head.
///
/// # Shape
/// `x`: rows of `heads · dim` values, `stride` apart; `cos`, `sin`: `(rows, half)`; `out`: `(rows, heads · dim)`.
///
/// # Source
/// Su et al. 2021, <https://arxiv.org/abs/2104.09864>; value `i` is paired with `i + half`, or with its neighbour if `adjacent`.
#[allow(clippy::too_many_arguments)]
pub fn rotate(
    x: &[f32],
    stride: usize,
    heads: usize,
    dim: usize,
    adjacent: bool,
    cos: &[f32],
    sin: &[f32],
    half: usize,
    out: &mut [f32],
) {
    struct Work<'a> {
        x: &'a [f32],
        stride: usize,
        heads: usize,
        dim: usize,
        adjacent: bool,
        cos: &'a [f32],
        sin: &'a [f32],
        half: usize,
    }
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, out: &mut [f32]) {
            let width = self.heads * self.dim;
            let (cos, sin) = (&self.cos[row * self.half..][..self.half], &self.sin[row * self.half..][..self.half]);
            let x = &self.x[row * self.stride..][..width];
            for (x, y) in x.chunks_exact(self.dim).zip(out.chunks_exact_mut(self.dim)) {
                let (x, pass) = x.split_at(2 * self.half);
                let (y, rest) = y.split_at_mut(2 * self.half);
                rest.copy_from_slice(pass);
                if self.adjacent {
                    for ((x, y), (c, s)) in x.chunks_exact(2).zip(y.chunks_exact_mut(2)).zip(cos.iter().zip(sin)) {
                        y[0] = x[0] * c - x[1] * s;
                        y[1] = x[1] * c + x[0] * s;
                    }
                } else {
                    let (a, b) = x.split_at(self.half);
                    let (ya, yb) = y.split_at_mut(self.half);
                    for i in 0..self.half {
                        ya[i] = a[i] * cos[i] - b[i] * sin[i];
                        yb[i] = b[i] * cos[i] + a[i] * sin[i];
                    }
                }
            }
        }
    }
    let rows = out.len() / (heads * dim);
    assert!(2 * half <= dim && cos.len() == rows * half && sin.len() == rows * half, "an angle for each pair");
    each_row(out, heads * dim, &Work { x, stride, heads, dim, adjacent, cos, sin, half });
}

/// `activation(gate) · up` of rows that hold the gate's `width` values, then up's.
pub fn gated(kind: Activation, x: &[f32], width: usize, out: &mut [f32]) {
    struct Work<'a>(Activation, &'a [f32], usize);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, out: &mut [f32]) {
            let Self(kind, x, width) = *self;
            let (gate, up) = x[row * 2 * width..][..2 * width].split_at(width);
            out.copy_from_slice(gate);
            with_activation::<S>(kind, out);
            for (y, up) in out.iter_mut().zip(up) {
                *y *= up;
            }
        }
    }
    let rows = out.len() / width;
    assert_eq!(x.len(), rows * 2 * width, "gate and up for each output");
    each_row(out, width, &Work(kind, x, width));
}

/// `min(g, limit) · sigmoid(slope · min(g, limit)) · (clamp(up, ±limit) + 1)`, gpt-oss's gated activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateClamp {
    pub limit: f32,
    pub slope: f32,
}

impl GateClamp {
    /// The gate as it counts, its sigmoid, and the value that it is for.
    #[inline(always)]
    fn parts<S: Simd>(self, gate: f32, up: f32) -> (f32, f32, f32) {
        // What is no number stays so.
        let gate = if gate > self.limit { self.limit } else { gate };
        (gate, 1.0 / (1.0 + math::exp::<S>(-self.slope * gate)), up.clamp(-self.limit, self.limit) + 1.0)
    }
}

/// The same of rows that hold the gate's `width` values, then up's.
pub fn gated_clamped(clamp: GateClamp, x: &[f32], width: usize, out: &mut [f32]) {
    struct Work<'a>(GateClamp, &'a [f32], usize);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, out: &mut [f32]) {
            let Self(clamp, x, width) = *self;
            let (gate, up) = x[row * 2 * width..][..2 * width].split_at(width);
            for ((y, gate), up) in out.iter_mut().zip(gate).zip(up) {
                let (gate, sigmoid, up) = clamp.parts::<S>(*gate, *up);
                *y = gate * sigmoid * up;
            }
        }
    }
    let rows = out.len() / width;
    assert!(x.len() == rows * 2 * width && clamp.limit > 0.0, "gate and up for each output, a bound above 0");
    each_row(out, width, &Work(clamp, x, width));
}

/// The gradient of [`gated_clamped`]'s input from that of its output.
///
/// # Shape
/// `x`, `dx`: rows of `2 · width` values; `dy`: rows of `width`.
pub fn gated_clamped_backward(clamp: GateClamp, x: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) {
    struct Work<'a>(GateClamp, &'a [f32], &'a [f32], usize);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, dx: &mut [f32]) {
            let Self(clamp, x, dy, width) = *self;
            let (gates, ups) = x[row * 2 * width..][..2 * width].split_at(width);
            let (d_gate, d_up) = dx.split_at_mut(width);
            for (i, dy) in dy[row * width..][..width].iter().enumerate() {
                let (gate, sigmoid, up) = clamp.parts::<S>(gates[i], ups[i]);
                let slope = sigmoid * (1.0 + clamp.slope * gate * (1.0 - sigmoid));
                d_gate[i] = if gates[i] > clamp.limit { 0.0 } else { dy * up * slope };
                d_up[i] = if ups[i].abs() > clamp.limit { 0.0 } else { dy * gate * sigmoid };
            }
        }
    }
    let rows = dy.len() / width;
    assert!(x.len() == rows * 2 * width && dx.len() == x.len() && clamp.limit > 0.0, "gate and up for each output");
    each_row(dx, 2 * width, &Work(clamp, x, dy, width));
}

/// `x · f(gate)`, or `x · gate` without a function.
///
/// # Shape
/// `x`: rows of `width` values; `gates`: rows of `width`, or fewer, each then for as many neighbours; `out`: `(rows, width)`.
pub fn gate(kind: Option<Activation>, x: Strided<'_>, gates: Strided<'_>, (width, count): (usize, usize), out: &mut [f32]) {
    struct Work<'a>(Option<Activation>, Strided<'a>, Strided<'a>, (usize, usize));
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, out: &mut [f32]) {
            let Self(kind, x, gates, (width, count)) = *self;
            spread(&gates.values[row * gates.stride..][..count], out);
            if let Some(kind) = kind {
                with_activation::<S>(kind, out);
            }
            out.iter_mut().zip(&x.values[row * x.stride..][..width]).for_each(|(y, x)| *y *= x);
        }
    }
    assert!(width.is_multiple_of(count), "as many values for each gate");
    each_row(out, width, &Work(kind, x, gates, (width, count)));
}

/// The gradient of the gates of [`gate`] from that of its output, `dy`.
///
/// # Shape
/// `x`, `dy`: rows of `width` values; `gates` and `out`: rows of `count`.
pub fn gate_backward(
    kind: Option<Activation>,
    [x, dy]: [Strided<'_>; 2],
    gates: Strided<'_>,
    (width, count): (usize, usize),
    out: &mut [f32],
) {
    struct Work<'a>(Option<Activation>, [Strided<'a>; 2], Strided<'a>, (usize, usize));
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, out: &mut [f32]) {
            let Self(kind, [x, dy], gates, (width, count)) = *self;
            let [x, dy] = [x, dy].map(|x| &x.values[row * x.stride..][..width]);
            match kind {
                Some(kind) => {
                    out.copy_from_slice(&gates.values[row * gates.stride..][..count]);
                    with_slope::<S>(kind, out);
                }
                None => out.fill(1.0),
            }
            if width == count {
                out.iter_mut().zip(x.iter().zip(dy)).for_each(|(out, (x, dy))| *out *= x * dy);
                return;
            }
            let groups = x.chunks_exact(width / count).zip(dy.chunks_exact(width / count));
            out.iter_mut().zip(groups).for_each(|(out, (x, dy))| *out *= math::lane_dot(x, dy, |dy| dy));
        }
    }
    assert!(width.is_multiple_of(count), "as many values for each gate");
    each_row(out, count, &Work(kind, [x, dy], gates, (width, count)));
}

/// Each value for as many neighbours as there is room for.
#[inline(always)]
fn spread(values: &[f32], out: &mut [f32]) {
    if values.len() == out.len() {
        return out.copy_from_slice(values);
    }
    for (out, value) in out.chunks_exact_mut(out.len() / values.len()).zip(values) {
        out.fill(*value);
    }
}

/// `activation(x)` of every value, in place.
pub fn activate(kind: Activation, x: &mut [f32], width: usize) {
    struct Work(Activation);
    impl RowWork for Work {
        #[inline(always)]
        fn row<S: Simd>(&self, _: usize, x: &mut [f32]) {
            with_activation::<S>(self.0, x);
        }
    }
    each_row(x, width, &Work(kind));
}

/// The gradient of [`gated`]'s input from that of its output.
///
/// # Shape
/// `x`, `dx`: rows of `2 · width` values; `dy`: rows of `width`.
pub fn gated_backward(kind: Activation, x: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) {
    struct Work<'a>(Activation, &'a [f32], &'a [f32], usize);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, dx: &mut [f32]) {
            let Self(kind, x, dy, width) = *self;
            let (gate, up) = x[row * 2 * width..][..2 * width].split_at(width);
            let dy = &dy[row * width..][..width];
            let (d_gate, d_up) = dx.split_at_mut(width);
            d_gate.copy_from_slice(gate);
            with_slope::<S>(kind, d_gate);
            d_up.copy_from_slice(gate);
            with_activation::<S>(kind, d_up);
            for ((d_gate, d_up), (up, dy)) in d_gate.iter_mut().zip(d_up).zip(up.iter().zip(dy)) {
                *d_gate *= up * dy;
                *d_up *= dy;
            }
        }
    }
    let rows = dy.len() / width;
    assert!(x.len() == rows * 2 * width && dx.len() == x.len(), "gate and up for each output");
    each_row(dx, 2 * width, &Work(kind, x, dy, width));
}

/// `dy`, the gradient of the activations of `x`, becomes that of `x`.
///
/// # Shape
/// `x`, `dy`: rows of `width` values.
pub fn activate_backward(kind: Activation, x: Strided<'_>, dy: &mut [f32], width: usize) {
    struct Work<'a>(Activation, Strided<'a>, usize);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, dy: &mut [f32]) {
            let Self(kind, x, width) = *self;
            // A part of a row at a time, so that slopes need no memory of their own.
            let mut slopes = [0f32; 256];
            for (x, dy) in x.values[row * x.stride..][..width].chunks(slopes.len()).zip(dy.chunks_mut(slopes.len())) {
                let slopes = &mut slopes[..x.len()];
                slopes.copy_from_slice(x);
                with_slope::<S>(kind, slopes);
                dy.iter_mut().zip(slopes).for_each(|(dy, slope)| *dy *= *slope);
            }
        }
    }
    let rows = dy.len() / width;
    assert!(rows == 0 || x.values.len() >= (rows - 1) * x.stride + width, "a value for each gradient");
    each_row(dy, width, &Work(kind, x, width));
}

/// The choice outside, the loop inside: each arm is a vector loop of its own.
macro_rules! each_kind {
    ($kind:ident, $x:ident, $function:ident: $($arm:ident)*) => {
        match $kind {
            $(Activation::$arm => for x in $x.iter_mut() { *x = $function::<S>(Activation::$arm, *x); })*
        }
    };
}

#[inline(always)]
fn with_activation<S: Simd>(kind: Activation, x: &mut [f32]) {
    each_kind!(kind, x, activation: Silu Gelu GeluTanh QuickGelu Relu Relu2 Tanh Sigmoid)
}

#[inline(always)]
fn with_slope<S: Simd>(kind: Activation, x: &mut [f32]) {
    each_kind!(kind, x, slope: Silu Gelu GeluTanh QuickGelu Relu Relu2 Tanh Sigmoid)
}

/// Cross entropy of rows of scores, in nats, each against one id; the scores become its gradient.
///
/// # Shape
/// `scores`: `(rows, width)`, before `cap · tanh(scale · score / cap)`, or `scale · score` where there is no cap; `targets`: below
/// `width`; `losses`: one a row.
pub fn cross_entropy(scores: &mut [f32], width: usize, targets: &[u32], scale: f32, cap: Option<f32>, losses: &mut [f64]) {
    struct Work<'a>(&'a [u32], f32, Option<f32>, Shared<f64>);
    impl RowWork for Work<'_> {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, scores: &mut [f32]) {
            let Self(targets, scale, cap, losses) = *self;
            let target = targets[row] as usize;
            match cap {
                Some(cap) => scores.iter_mut().for_each(|x| *x = cap * math::tanh::<S>(*x * scale / cap)),
                None => scores.iter_mut().for_each(|x| *x *= scale),
            }
            let (max, own) = (math::largest(scores), scores[target]);
            // Blocks in F32, their sums in F64: a vocabulary has too many small terms for one F32.
            let sum: f64 = scores.chunks(4096).map(|block| f64::from(math::lane_sum(block, |x| math::exp::<S>(x - max)))).sum();
            // SAFETY: there is a loss for each row, and only who has the row writes it.
            unsafe { *losses.get().add(row) = sum.ln() + f64::from(max) - f64::from(own) };
            let part = (1.0 / sum) as f32;
            match cap {
                Some(cap) => {
                    let slope = |x: f32| scale * (1.0 - (x / cap) * (x / cap));
                    scores.iter_mut().for_each(|x| *x = math::exp::<S>(*x - max) * part * slope(*x));
                    scores[target] -= slope(own);
                }
                None => {
                    scores.iter_mut().for_each(|x| *x = math::exp::<S>(*x - max) * part * scale);
                    scores[target] -= scale;
                }
            }
        }
    }
    assert!(scores.len() == width * targets.len() && losses.len() == targets.len(), "a target and a loss for each row");
    assert!(targets.iter().all(|&target| (target as usize) < width), "targets of this vocabulary");
    each_row(scores, width, &Work(targets, scale, cap, Shared::new(losses)));
}

/// `x` with some values set to 0 and the others multiplied by `1 / (1 - share)`, so that sums stay what they are on average. Which ones,
/// `seed` and a value's place decide and nothing else: called twice, it drops the same.
///
/// # Source
/// Srivastava et al. 2014; the mixing is the finaliser of MurmurHash3.
pub fn dropout(x: &mut [f32], share: f32, seed: u64) {
    struct Work(u32, f32, u64);
    const WIDTH: usize = 4096;
    impl RowWork for Work {
        #[inline(always)]
        fn row<S: Simd>(&self, row: usize, x: &mut [f32]) {
            let Self(threshold, keep, seed) = *self;
            let start = seed ^ (row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let (low, high) = (start as u32, (start >> 32) as u32);
            for (i, x) in x.iter_mut().enumerate() {
                let mut h = low ^ (i as u32).wrapping_mul(0x9e37_79b1);
                h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b) ^ high;
                h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
                h ^= h >> 16;
                *x = if h < threshold { 0.0 } else { *x * keep };
            }
        }
    }
    let threshold = (f64::from(share) * f64::from(u32::MAX)) as u32;
    each_row(x, WIDTH, &Work(threshold, 1.0 / (1.0 - share), seed));
}

/// `x · scale`, soft-capped by `cap · tanh(x / cap)`, in place.
pub fn scale_softcap(x: &mut [f32], scale: f32, cap: Option<f32>) {
    struct Work(f32, Option<f32>);
    impl RowWork for Work {
        #[inline(always)]
        fn row<S: Simd>(&self, _: usize, x: &mut [f32]) {
            let Self(scale, cap) = *self;
            match cap {
                Some(cap) => x.iter_mut().for_each(|x| *x = cap * math::tanh::<S>(*x * scale / cap)),
                None => x.iter_mut().for_each(|x| *x *= scale),
            }
        }
    }
    each_row(x, 4096, &Work(scale, cap));
}

/// What a vector is divided by at least.
pub const LEAST_LENGTH: f32 = 1e-12;

/// A vector to length 1; one of zeros stays one, and one that holds NaN becomes that.
pub fn unit_length(row: &mut [f32]) {
    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
    let length = if length < LEAST_LENGTH { LEAST_LENGTH } else { length };
    row.iter_mut().for_each(|x| *x /= length);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_equal_their_formulas() {
        let x: Vec<f32> = (0..70).map(|i| (i as f32 * 0.37).sin() * 3.0 + 0.5).collect();
        let w: Vec<f32> = (0..35).map(|i| 0.5 + i as f32 * 0.01).collect();
        for kind in [NormKind::Rms, NormKind::Layer] {
            let mut y = vec![0.0; 70];
            let norm = Normalise { kind, eps: 1e-3, width: 35, weight: Some(&w), bias: Some(&w) };
            normalise(norm, &x, 35, 35, &mut y);
            let mut sum = x.clone();
            add_scaled(&[0.5; 70], 2.0, &mut sum, 35, Some(norm));
            let mut plain = x.clone();
            add_scaled(&[0.5; 70], 2.0, &mut plain, 35, None);
            let mut after = vec![0.0; 70];
            normalise(norm, &plain, 35, 35, &mut after);
            assert_eq!(sum, after);
            for (row, out) in x.chunks(35).zip(y.chunks(35)) {
                let mean = if kind == NormKind::Rms { 0.0 } else { row.iter().map(|&x| f64::from(x)).sum::<f64>() / 35.0 };
                let var = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / 35.0;
                for i in 0..35 {
                    let want = (f64::from(row[i]) - mean) / (var + 1e-3).sqrt() * f64::from(w[i]) + f64::from(w[i]);
                    assert!((f64::from(out[i]) - want).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        // In whole vectors, and behind the last one.
        for at in [3, 16, 34] {
            let mut x: Vec<f32> = (0..35).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
            let clean = x.clone();
            x[at] = f32::NAN;
            let check = |what: &dyn std::fmt::Debug, found: &[f32], want: &[f32]| {
                for (i, (found, want)) in found.iter().zip(want).enumerate() {
                    let is_same = if i == at { found.is_nan() } else { found.to_bits() == want.to_bits() };
                    assert!(is_same, "{what:?} at {i} of NaN at {at}: {found} {want}");
                }
            };
            for kind in Activation::ALL {
                let of = |x: &[f32]| {
                    let mut y = x.to_vec();
                    activate(kind, &mut y, 35);
                    y
                };
                check(&kind, &of(&x), &of(&clean));
                // As gate, and as what is gated.
                for pair in [[&x, &clean], [&clean, &x]] {
                    let of = |pair: [&[f32]; 2]| {
                        let mut y = vec![0.0; 35];
                        gated(kind, &pair.concat(), 35, &mut y);
                        y
                    };
                    check(&kind, &of(pair.map(|x| x.as_slice())), &of([&clean, &clean]));
                }
            }
            for cap in [None, Some(30.0)] {
                let of = |x: &[f32]| {
                    let mut y = x.to_vec();
                    scale_softcap(&mut y, 0.5, cap);
                    y
                };
                check(&cap, &of(&x), &of(&clean));
            }
            for kind in [NormKind::Rms, NormKind::Layer] {
                let norm = Normalise { kind, eps: 1e-3, width: 35, weight: None, bias: None };
                let mut y = vec![0.0; 70];
                normalise(norm, &[x.as_slice(), &clean].concat(), 35, 35, &mut y);
                assert!(y[..35].iter().all(|y| y.is_nan()) && y[35..].iter().all(|y| y.is_finite()), "{kind:?}");
            }
            unit_length(&mut x);
            assert!(x.iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn rotation_keeps_the_length_and_the_rest() {
        let x: Vec<f32> = (0..24).map(|i| i as f32).collect(); // 1 row, 2 heads of 12, 8 rotated
        let angles: Vec<f32> = (0..4).map(|i| 0.3 + i as f32).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        for adjacent in [false, true] {
            let mut y = vec![0.0; 24];
            rotate(&x, 24, 2, 12, adjacent, &cos, &sin, 4, &mut y);
            for h in 0..2 {
                let (x, y) = (&x[h * 12..][..12], &y[h * 12..][..12]);
                assert_eq!(x[8..], y[8..]);
                for i in 0..4 {
                    let (a, b) = if adjacent { (2 * i, 2 * i + 1) } else { (i, i + 4) };
                    assert!((y[a] - (x[a] * cos[i] - x[b] * sin[i])).abs() < 1e-4);
                    assert!((y[b] - (x[b] * cos[i] + x[a] * sin[i])).abs() < 1e-4);
                }
            }
        }
    }
}
