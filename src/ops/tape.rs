//! What a forward pass leaves behind for the backward pass through it.
//!
//! candle's own graph is not used: it copies every gradient that it passes on, keeps all activations until the end, and asks for the
//! gradients of frozen weights. Here a gradient belongs to one tensor alone and moves, and what an operation kept is free once it is done.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use candle_core::{Result, Tensor, TensorId};

use super::{Backend, ParameterValues, add_scaled};

/// Where an operation computes, and the tape that it writes to, if a backward pass follows.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub backend: &'a Backend,
    pub tape: Option<&'a Tape>,
}

impl<'a> Context<'a> {
    /// Forward alone.
    pub fn forward(backend: &'a Backend) -> Self {
        Self { backend, tape: None }
    }

    /// Notes how the gradient of `output` becomes those of `inputs`, if a gradient of one of them is asked for.
    pub(super) fn record<const N: usize>(
        self,
        inputs: [&Tensor; N],
        output: &Tensor,
        backward: impl FnOnce(Tensor, &Backend) -> Result<[Tensor; N]> + 'static,
    ) {
        let Some(tape) = self.tape else { return };
        let ids = inputs.map(|input| tape.tracks(input).then(|| input.id()));
        if ids.iter().all(Option::is_none) {
            return;
        }
        let (output_id, backend) = (output.id(), self.backend.clone());
        tape.push([output], move |gradients| {
            let Some(gradient) = gradients.take_from(output_id) else { return Ok(()) };
            for (id, gradient) in ids.into_iter().zip(backward(gradient, &backend)?) {
                if let Some(id) = id {
                    gradients.add_to(id, gradient, &backend)?;
                }
            }
            Ok(())
        });
    }

    /// Whether the gradient of a tensor is asked for.
    pub(super) fn tracks(self, x: &Tensor) -> bool {
        self.tape.is_some_and(|tape| tape.tracks(x))
    }
}

type Node = Box<dyn FnOnce(&mut Gradients) -> Result<()>>;

/// The operations of a forward pass, each with its backward pass.
#[derive(Default)]
pub struct Tape {
    nodes: RefCell<Vec<Node>>,
    tracked: RefCell<HashSet<TensorId>>,
}

impl Tape {
    /// Asks for the gradient of a tensor.
    pub fn track(&self, x: &Tensor) {
        self.tracked.borrow_mut().insert(x.id());
    }

    fn tracks(&self, x: &Tensor) -> bool {
        self.tracked.borrow().contains(&x.id())
    }

    /// Adds a backward pass that takes the gradients of `outputs`.
    pub(super) fn push<'t>(
        &self,
        outputs: impl IntoIterator<Item = &'t Tensor>,
        node: impl FnOnce(&mut Gradients) -> Result<()> + 'static,
    ) {
        outputs.into_iter().for_each(|output| self.track(output));
        self.nodes.borrow_mut().push(Box::new(node));
    }

    /// The backward pass of all operations, the last first.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn backward(self, gradients: &mut Gradients) -> Result<()> {
        self.nodes.into_inner().into_iter().rev().try_for_each(|node| node(gradients))
    }
}

/// The gradient of a trained low-rank change.
pub struct Gradient {
    /// `(R, inputs)`, row-major.
    pub a: ParameterValues,
    /// `(outputs, R)`, row-major.
    pub b: ParameterValues,
}

/// Gradients on their way. Each is a tensor of its own, in memory that nothing else uses.
#[derive(Default)]
pub struct Gradients {
    of: HashMap<TensorId, Tensor>,
    /// By the number of the change.
    pub trained: HashMap<usize, Gradient>,
}

impl Gradients {
    /// Adds to the gradient of a tensor.
    pub fn add(&mut self, of: &Tensor, gradient: Tensor, backend: &Backend) -> Result<()> {
        self.add_to(of.id(), gradient, backend)
    }

    /// The gradient of a tensor, which has none from here on.
    pub fn take(&mut self, of: &Tensor) -> Option<Tensor> {
        self.take_from(of.id())
    }

    /// Gives the gradient of a tensor to one that was computed in its place.
    pub fn hand_over(&mut self, from: &Tensor, to: &Tensor, backend: &Backend) -> Result<()> {
        match self.take(from) {
            Some(gradient) => self.add(to, gradient, backend),
            None => Ok(()),
        }
    }

    pub(super) fn add_to(&mut self, id: TensorId, gradient: Tensor, backend: &Backend) -> Result<()> {
        let sum = match self.of.remove(&id) {
            Some(sum) => add_scaled(Context::forward(backend), &sum, gradient, 1.0, None)?,
            None => gradient,
        };
        self.of.insert(id, sum);
        Ok(())
    }

    pub(super) fn take_from(&mut self, id: TensorId) -> Option<Tensor> {
        self.of.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::gpu::{Gpu, with_executor};
    use crate::kernels::{ScanRule, ScanShape};
    use crate::ops::{
        self, Activation, AdaptedLinear, Angles, Format, Mask, Matrix, MatrixBuilder, NormKind, Sequences, Use, Vector,
    };

    const ROWS: usize = 7;

    /// By our kernels, by tensor operations, and by those with a GPU's kernels between them, where the executor is.
    fn on_each_backend(test: impl Fn(&Backend)) {
        test(&Backend::Cpu);
        test(&Backend::TENSORS_ON_CPU);
        with_executor(|| test(&Backend::TENSORS_ON_CPU));
    }

    /// Values between -1 and 1, none of them within 0.03 of where a function has a corner: 0 and ±0.5.
    fn noise(len: usize, mut seed: u32) -> Vec<f32> {
        let next = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((seed >> 27) as f32 + 0.5) / 16.0 - 1.0
        };
        (0..len).map(next).collect()
    }

    fn rows(values: Vec<f32>) -> Tensor {
        let width = values.len() / ROWS;
        Tensor::from_vec(values, (ROWS, width), &Device::Cpu).unwrap()
    }

    fn matrix(values: &[f32], cols: usize, backend: &Backend) -> Matrix {
        let mut builder = MatrixBuilder::new(values.len() / cols, cols, Format::F32, Use::Product, backend).unwrap();
        builder.fill_f32(0, values);
        builder.finish().unwrap()
    }

    /// The same values in memory of their own, for operations that change them where they are.
    fn own(cx: Context<'_>, x: &Tensor) -> Tensor {
        ops::clip(cx, x, 1e9).unwrap()
    }

    /// Holds the gradient of each input, for a random one of the output, against the slope of the output in each value.
    fn check(name: &str, backend: &Backend, widths: &[usize], forward: impl Fn(Context<'_>, &[Tensor]) -> Tensor) {
        let inputs: Vec<Vec<f32>> = widths.iter().zip(1..).map(|(width, seed)| noise(ROWS * width, seed)).collect();
        let tensors = |inputs: &[Vec<f32>]| inputs.iter().map(|input| rows(input.clone())).collect::<Vec<_>>();
        let (tape, given) = (Tape::default(), tensors(&inputs));
        let ids: Vec<TensorId> = given.iter().map(Tensor::id).collect();
        given.iter().for_each(|input| tape.track(input));
        let y = forward(Context { backend, tape: Some(&tape) }, &given);
        let weights = noise(y.elem_count(), 99);
        let mut gradients = Gradients::default();
        gradients.add(&y, Tensor::from_vec(weights.clone(), y.shape(), &Device::Cpu).unwrap(), backend).unwrap();
        tape.backward(&mut gradients).unwrap();
        let sum = |inputs: &[Vec<f32>]| -> f64 {
            let y = ops::to_f32(&forward(Context::forward(backend), &tensors(inputs))).unwrap();
            y.iter().zip(&weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
        };
        for (input, id) in ids.into_iter().enumerate() {
            let gradient = ops::to_f32(&gradients.take_from(id).unwrap_or_else(|| panic!("{name}: no gradient"))).unwrap();
            // Where each thread is a fiber, some values have to do.
            let step = if Gpu::is_for(&Device::Cpu) { 11 } else { 1 };
            for (at, found) in gradient.into_iter().enumerate().step_by(step) {
                let moved = |step: f32| {
                    let mut moved = inputs.clone();
                    moved[input][at] += step;
                    // The step as it was rounded.
                    (sum(&moved), f64::from(moved[input][at]) - f64::from(inputs[input][at]))
                };
                let h = 0.01;
                let slope = |h: f32| {
                    let ((up, to), (down, from)) = (moved(h), moved(-h));
                    (up - down) / (to - from)
                };
                let want = (4.0 * slope(h) - slope(2.0 * h)) / 3.0;
                let error = (f64::from(found) - want).abs();
                assert!(error < 1e-3, "{name}, {backend:?}: input {input}, value {at}: {found} {want}");
            }
        }
    }

    #[test]
    fn every_operation_has_the_gradient_of_its_slopes() {
        on_each_backend(|backend| {
            let vector = |len, seed| Some(Vector::new(noise(len, seed), backend).unwrap());
            for (kind, weight, bias) in [
                (NormKind::Rms, vector(12, 5), None),
                (NormKind::Layer, vector(12, 5), vector(12, 6)),
                (NormKind::Layer, None, None),
            ] {
                let norm = ops::Norm { kind, eps: 1e-3, width: 12, weight, bias };
                check("norm", backend, &[12], |cx, x| ops::norm(cx, &x[0], &norm).unwrap());
                check("sum and norm", backend, &[12, 12], |cx, x| {
                    add_scaled(cx, &x[0], own(cx, &x[1]), 0.3, Some(&norm)).unwrap()
                });
            }
            let heads = ops::Norm { kind: NormKind::Rms, eps: 1e-3, width: 6, weight: vector(12, 7), bias: None };
            check("norm of heads", backend, &[12], |cx, x| ops::norm(cx, &x[0], &heads).unwrap());
            check("one tensor used twice", backend, &[12], |cx, x| {
                add_scaled(cx, &x[0], ops::norm(cx, &x[0], &heads).unwrap(), 1.0, None).unwrap()
            });
            for kind in Activation::ALL {
                check(&format!("gated {kind:?}"), backend, &[12], |cx, x| ops::gated(cx, &x[0], kind).unwrap());
                check(&format!("{kind:?}"), backend, &[12], |cx, x| ops::activate(cx, own(cx, &x[0]), kind).unwrap());
            }
            let clamp = ops::GateClamp { limit: 0.5, slope: 1.7 };
            check("gated clamped", backend, &[12], |cx, x| ops::gated_clamped(cx, &x[0], clamp).unwrap());
            for adjacent in [false, true] {
                let (cos, sin) = noise(ROWS * 2, 3).iter().map(|x| (x.cos(), x.sin())).unzip();
                let angles = Angles::new(cos, sin, 2, backend).unwrap();
                check("rope", backend, &[12], |cx, x| ops::rope(cx, &x[0], 6, adjacent, &angles).unwrap());
            }
            for (scoring, normalise) in [
                (ops::Scoring::Softmax, Some(0.0)),
                (ops::Scoring::Softmax, None),
                (ops::Scoring::Sigmoid, Some(0.1)),
                (ops::Scoring::Sigmoid, None),
            ] {
                // The same choice wherever the logits are moved.
                let bias = Vector::new(vec![4.0, 0.0, 8.0, -4.0], backend).ok();
                let routing =
                    ops::Routing { top_k: 2, scoring, normalise, scale: 1.5, bias, factors: vector(4, 6), groups: (1, 1) };
                check(&format!("experts {scoring:?}"), backend, &[4, 6], |cx, x| {
                    let ops::Routed { rows, weights } = ops::route(cx, &x[0], &routing).unwrap();
                    let part = |(expert, rows): (usize, Vec<usize>)| {
                        let x = ops::select_rows(cx, &x[1], &rows).unwrap();
                        let output = ops::scale(cx, own(cx, &x), 1.0 + expert as f32).unwrap();
                        ops::ExpertRows { expert, rows, output }
                    };
                    let some = rows.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
                    ops::combine(cx, some.map(part).collect(), &weights).unwrap()
                });
            }
            check("scale", backend, &[12], |cx, x| ops::scale(cx, own(cx, &x[0]), -0.4).unwrap());
            check("even parts", backend, &[12], |cx, x| {
                let parts = ops::split_evenly(cx, &x[0], 3).unwrap();
                add_scaled(cx, &own(cx, &parts[0]), own(cx, &parts[2]), 0.7, None).unwrap()
            });
            check("clip", backend, &[12], |cx, x| ops::clip(cx, &x[0], 0.5).unwrap());
            check("split", backend, &[12], |cx, x| {
                let [a, b, _] = ops::split(cx, &x[0], [5, 5, 2]).unwrap();
                let plain = ops::Norm { kind: NormKind::Rms, eps: 1e-3, width: 5, weight: None, bias: None };
                add_scaled(cx, &own(cx, &a), ops::norm(cx, &b, &plain).unwrap(), 1.0, None).unwrap()
            });
            for (window, softcap) in [(None, None), (Some(2), None), (None, Some(0.7)), (Some(3), Some(2.0))] {
                for causal in [true, false] {
                    let mask = Mask { causal, window, scale: 0.8, softcap };
                    let attend = |cx: Context<'_>, x: &[Tensor]| {
                        let mut sequences = Sequences::new(vec![4, 1, 2], None, backend).unwrap();
                        let sinks = window.and_then(|_| vector(4, 9));
                        ops::attention_within(cx, [&x[0], &x[1], &x[2]], 4, 2, mask, sinks.as_ref(), &mut sequences).unwrap()
                    };
                    check("attention", backend, &[12, 6, 6], attend);
                }
            }
            for kind in [None, Some(Activation::Silu), Some(Activation::Sigmoid)] {
                check(&format!("gate {kind:?}"), backend, &[12, 12], |cx, x| ops::gate(cx, &x[0], &x[1], kind).unwrap());
                check(&format!("gate of heads {kind:?}"), backend, &[12, 3], |cx, x| ops::gate(cx, &x[0], &x[1], kind).unwrap());
            }
            // Some of the lengths are above the limit, some below the other; none is near: these are those of ±13/32.
            for (rate, limits) in [
                (Some(rates(5, backend)), ops::Decay::UNLIMITED),
                (None, ops::Decay::UNLIMITED),
                (Some(rates(5, backend)), (0.5105, 0.91676)),
                (None, (0.5105, 0.91676)),
            ] {
                let decay = ops::Decay { bias: vector(5, 3).unwrap(), rate, limits };
                check("decay", backend, &[5], |cx, x| ops::decay(cx, &x[0], &decay).unwrap());
            }
            for bias in [None, vector(12, 8)] {
                let convolution = ops::Convolution { taps: 3, channels: 12, weight: vector(36, 7).unwrap(), bias };
                check("convolution", backend, &[12], |cx, x| {
                    let sequences = Sequences::new(vec![4, 1, 2], None, backend).unwrap();
                    ops::convolution_within(cx, &x[0], &convolution, &sequences).unwrap()
                });
            }
            let (weight, bias) = (matrix(&noise(20 * 12, 4), 12, backend), vector(20, 5));
            let product = AdaptedLinear { weight: &weight, bias: bias.as_ref(), deltas: None };
            check("linear", backend, &[12], |cx, x| ops::linear(cx, &x[0], product).unwrap());
            for dropout in [None, Some(ops::Dropout { share: 0.3, seed: 5 })] {
                let delta = |number: usize, parts: &[(std::ops::Range<usize>, usize)]| {
                    let (rank, seed) = (3 + number, 6 + 2 * number as u32);
                    let part = |(rows, start): &(std::ops::Range<usize>, usize)| {
                        let b = matrix(&noise(rows.len() * rank, seed + 1), rank, backend);
                        ops::DeltaPart { rows: rows.clone(), start: *start, b, bias: None, gain: None }
                    };
                    let (a, parts) = (matrix(&noise(rank * 12, seed), 12, backend), parts.iter().map(part).collect());
                    ops::LowRankDelta { a, parts, scale: 0.7 - number as f32, dropout, number: Some(number) }
                };
                let deltas = vec![delta(0, &[(0..4, 11), (4..10, 2)]), delta(1, &[(0..20, 0)])];
                let deltas = ops::LowRankDeltas::new(deltas, Vec::new(), &weight).unwrap();
                let product = AdaptedLinear { deltas: Some(&deltas), ..product };
                check("linear in training", backend, &[12], |cx, x| ops::linear(cx, &x[0], product).unwrap());
            }
        });
    }

    /// At most 0.
    fn rates(len: usize, backend: &Backend) -> Vector {
        Vector::new(noise(len, 9).iter().map(|x| -x.abs()).collect(), backend).unwrap()
    }

    #[test]
    fn scans_have_the_gradient_of_their_slopes() {
        on_each_backend(|backend| {
            [ScanRule::Delta, ScanRule::Additive].into_iter().for_each(|rule| {
                let skip = (rule == ScanRule::Additive).then(|| Vector::new(vec![0.5, -0.8, 0.0, 1.5], backend).unwrap());
                // One chunk, a part of one, and more than two, of which the first forgets little.
                for (lengths, copies) in [(vec![4, 1, 2], 1), (vec![35], 5)] {
                    let shape = ScanShape { heads: 4, groups: 2, key_dim: 3, value_dim: 2, rule };
                    let rate = Some(Vector::new(vec![-0.1; 4], backend).unwrap());
                    let bias = Vector::new(vec![0.0; 4], backend).unwrap();
                    let decay = ops::Decay { bias, rate, limits: ops::Decay::UNLIMITED };
                    let forward = |cx: Context<'_>, x: &[Tensor]| {
                        let x: Vec<Tensor> = x.iter().map(|x| repeated(cx, x, copies)).collect();
                        let g = ops::decay(cx, &x[3], &decay).unwrap();
                        let beta = ops::activate(cx, own(cx, &x[4]), Activation::Sigmoid).unwrap();
                        let sequences = Sequences::new(lengths.clone(), None, backend).unwrap();
                        ops::scan_within(cx, [&x[0], &x[1], &x[2], &g, &beta], shape, skip.as_ref(), &sequences).unwrap()
                    };
                    check(&format!("scan, {rule:?}"), backend, &[6, 6, 8, 4, 4], forward);
                }
            })
        });
    }

    /// The rows again and again, each time a little smaller: more of them with as few inputs.
    fn repeated(cx: Context<'_>, x: &Tensor, copies: usize) -> Tensor {
        let parts: Vec<Tensor> = (0..copies).map(|i| add_scaled(cx, x, own(cx, x), -0.2 * i as f32, None).unwrap()).collect();
        let all = crate::ops::stack_rows(&parts).unwrap();
        if let Some(tape) = cx.tape.filter(|_| copies > 1 && cx.tracks(x)) {
            let (id, ids, backend) = (all.id(), parts.iter().map(Tensor::id).collect::<Vec<_>>(), cx.backend.clone());
            tape.push([&all], move |gradients| {
                let Some(dy) = gradients.take_from(id) else { return Ok(()) };
                for (i, id) in ids.into_iter().enumerate() {
                    gradients.add_to(id, dy.narrow(0, i * ROWS, ROWS)?.force_contiguous()?, &backend)?;
                }
                Ok(())
            });
        }
        all
    }

    #[test]
    fn cross_entropy_has_the_gradient_of_its_slopes() {
        on_each_backend(|backend| {
            [None, Some(1.5)].into_iter().for_each(|cap| {
                let (weight, bias) = (matrix(&noise(50 * 12, 4), 12, backend), Vector::new(noise(50, 5), backend).unwrap());
                let product = AdaptedLinear { weight: &weight, bias: Some(&bias), deltas: None };
                let targets: Vec<u32> = (0..ROWS as u32).map(|i| i * 7).collect();
                let x = noise(ROWS * 12, 1);
                let loss = |x: &[f32], with| {
                    ops::cross_entropy(backend, &rows(x.to_vec()), product, (1.2, cap), &targets, with).unwrap()
                };
                let gradient = ops::to_f32(&loss(&x, true).1.unwrap()).unwrap();
                assert!(loss(&x, false).1.is_none());
                for (at, found) in gradient.into_iter().enumerate() {
                    let moved = |step: f32| {
                        let mut moved = x.clone();
                        moved[at] += step;
                        (loss(&moved, false).0, f64::from(moved[at]))
                    };
                    let ((up, to), (down, from)) = (moved(0.01), moved(-0.01));
                    let want = (up - down) / (to - from);
                    assert!((f64::from(found) - want).abs() < 1e-3, "{backend:?}, cap {cap:?}: {found} {want}");
                }
            })
        });
    }

    #[test]
    fn dropout_keeps_the_mean_and_drops_its_share() {
        let drop = |seed| {
            let mut x = vec![1f32; 100_000];
            crate::kernels::dropout(&mut x, 0.3, seed);
            x
        };
        let (x, other) = (drop(1), drop(2));
        let dropped = x.iter().filter(|x| **x == 0.0).count() as f32 / x.len() as f32;
        assert!((dropped - 0.3).abs() < 0.006 && x.iter().all(|x| *x == 0.0 || (x - 1.0 / 0.7).abs() < 1e-6), "{dropped}");
        assert_eq!(x, drop(1));
        // Independent of each other: both drop a value as often as chance has it.
        let both = x.iter().zip(&other).filter(|(x, y)| **x == 0.0 && **y == 0.0).count() as f32 / x.len() as f32;
        assert!((both - 0.09).abs() < 0.006, "{both}");
        let neighbours = x.windows(2).filter(|pair| pair == &[0.0, 0.0]).count() as f32 / x.len() as f32;
        assert!((neighbours - 0.09).abs() < 0.006, "{neighbours}");
    }
}
