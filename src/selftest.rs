//! Every operation of `ops/` on a device against our kernels on the CPU: forward and back, in each type, on rows that lie alone in memory
//! and on rows within others. Whoever has a GPU that this library was never run on learns here whether it computes.
//!
//! ```no_run
//! use metal_candle::{Device, selftest};
//! let rows = selftest::operations(&Device::cpu_by_tensors());
//! assert!(rows.iter().all(selftest::Row::passed));
//! ```

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use crate::engine::{Device, Dtype};
use crate::error::OutOfMemory;
use crate::ops::{
    self, Activation, AdamW, AdaptedLinear, AddedRows, Angles, Backend, Context, ConvState, Convolution, Decay, DeltaPart,
    Dropout, ExpertRows, Format, GateClamp, Gradients, KvFormat, LayerCache, LowRankDelta, LowRankDeltas, Mask, Masks, Matrix,
    MatrixBuilder, Norm, NormKind, Optimized, ParameterValues, Pooling, Routed, Routing, ScanRule, ScanShape, ScanState, Scoring,
    Sequences, Tape, TorchActivation, Use, Vector,
};
pub use crate::ops::{Level, limit_instructions};

/// One operation in one type, forward or back.
pub struct Row {
    pub operation: String,
    pub dtype: Dtype,
    /// The largest error over the largest value of what the CPU gives, or why there is nothing to compare.
    pub error: std::result::Result<f32, String>,
    /// How the inputs with this error lay.
    pub layout: &'static str,
    pub tolerance: f32,
}

impl Row {
    /// Whether the device does what the CPU does.
    pub fn passed(&self) -> bool {
        self.error.as_ref().is_ok_and(|error| *error <= self.tolerance)
    }
}

/// Types, and what the roundings of a few operations one after another come to in each.
const TYPES: [(Dtype, f32); 3] = [(Dtype::F32, 5e-5), (Dtype::F16, 5e-3), (Dtype::BF16, 3e-2)];

/// Rows and columns of NaN around the rows of an input: one that is read shows in any type.
const LAYOUTS: [(&str, usize, usize); 3] = [("alone", 0, 0), ("offset", 2, 0), ("strided", 2, 3)];

const ROWS: usize = 7;

/// All of them, also those behind one that fails.
pub fn operations(device: &Device) -> Vec<Row> {
    let cpu = Backend::new(&candle_core::Device::Cpu);
    let mut checks = Checks { device, cpu, dtype: Dtype::F32, tolerance: 0.0, rows: Vec::new() };
    for (dtype, tolerance) in TYPES {
        checks = Checks { dtype, tolerance, ..checks };
        row_by_row(&mut checks);
        products(&mut checks);
        attention(&mut checks);
        recurrences(&mut checks);
        losses(&mut checks);
    }
    checks.rows
}

/// The GPU's own kernels, where the device has some: that they compile, and what they compute from weights and a cache of each type, twice
/// with the same bits. Between them numbers are F32.
pub fn gpu_kernels(device: &Device) -> Vec<Row> {
    let row = |(operation, error, tolerance)| Row { operation, dtype: Dtype::F16, error, layout: "kernel", tolerance };
    match device.work(|| Ok(device.backend().compare_gpu_kernels()?)) {
        Ok(rows) => rows.into_iter().map(row).collect(),
        Err(error) => vec![row(("kernels".to_string(), Err(error.to_string()), 0.0))],
    }
}

/// Whether an operation has a backward pass.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Forward,
    Both,
}

use Way::{Both, Forward};

fn row_by_row(checks: &mut Checks<'_>) {
    for (name, kind, weighted, biased) in [
        ("rms", NormKind::Rms, true, false),
        ("layer", NormKind::Layer, true, true),
        ("layer, plain", NormKind::Layer, false, false),
    ] {
        let norm = move |on: Target<'_>, width| {
            let vector = |wanted: bool, seed| wanted.then(|| on.vector(width, seed)).transpose();
            Ok::<_, candle_core::Error>(Norm { kind, eps: 1e-3, width, weight: vector(weighted, 5)?, bias: vector(biased, 6)? })
        };
        checks.add(&format!("norm, {name}"), &[(ROWS, 48)], Both, |on, x| ops::norm(on.cx, &x[0], &norm(on, 48)?));
        checks.add(&format!("norm of heads, {name}"), &[(ROWS, 48)], Both, |on, x| {
            ops::optional_norm(on.cx, x[0].clone(), Some(&norm(on, 12)?))
        });
        checks.add(&format!("sum, norm, {name}"), &[(ROWS, 48), (ROWS, 48)], Both, |on, x| {
            ops::add_scaled(on.cx, &x[0], own(on, &x[1])?, 0.3, Some(&norm(on, 48)?))
        });
    }
    checks.add("sum", &[(ROWS, 48), (ROWS, 48)], Both, |on, x| ops::add_scaled(on.cx, &x[0], own(on, &x[1])?, 1.0, None));
    for kind in Activation::ALL {
        checks.add(&format!("{kind:?}"), &[(ROWS, 48)], Both, |on, x| ops::activate(on.cx, own(on, &x[0])?, kind));
        checks.add(&format!("gate {kind:?}"), &[(ROWS, 96)], Both, |on, x| ops::gated(on.cx, &x[0], kind));
        // Where functions that are fast and not precise have no number any more; F16 has none for their squares.
        if kind != Activation::Relu2 {
            checks.add(&format!("gate {kind:?}, large"), &[(ROWS, 96)], Forward, |on, x| {
                ops::gated(on.cx, &ops::scaled(on.cx, &x[0], 60.0)?, kind)
            });
        }
    }
    for (name, kind) in TorchActivation::ALL {
        checks.add(&format!("torch's {name}"), &[], Forward, |on, _| {
            // Of pooled vectors, which are F32 whatever the weights are.
            let x = Tensor::from_vec(noise(ROWS * 48, 3), (ROWS, 48), &candle_core::Device::Cpu)?;
            ops::torch_activation(on.cx, on.cx.backend.upload(&x)?, kind)
        });
    }
    checks.add("gate, clamped", &[(ROWS, 96)], Both, |on, x| {
        ops::gated_clamped(on.cx, &x[0], GateClamp { limit: 0.55, slope: 1.7 })
    });
    for (name, adjacent, half) in [("halves", false, 6), ("neighbours", true, 6), ("part of a head", false, 4)] {
        checks.add(&format!("rope, {name}"), &[(ROWS, 48)], Both, |on, x| {
            let (cos, sin) = noise(ROWS * half, 3).iter().map(|x| (x.cos(), x.sin())).unzip();
            ops::rope(on.cx, &x[0], 12, adjacent, &Angles::new(cos, sin, half, on.cx.backend)?)
        });
    }
    for kind in Pooling::ALL {
        checks.add(&format!("pooling, {kind:?}"), &[(ROWS, 48)], Forward, |on, x| {
            // A text of a prompt alone, and one of the prompt and more.
            ops::pool(on.cx, &x[0], &[2, ROWS - 2], 2, &[kind])
        });
    }
    checks.add("rows, some", &[(ROWS, 48)], Both, |on, x| {
        let some = ops::select_rows(on.cx, &x[0], &[1, 2, 5])?;
        if ops::row_count(&some) == 3 { Ok(some) } else { bail!("select_rows: other rows") }
    });
    checks.add("rows, neighbours", &[(ROWS, 48)], Forward, |_, x| ops::narrow_rows(&x[0], 2..5));
    checks.add("rows of length 1", &[(ROWS, 48)], Forward, |on, x| {
        let rows = ops::pool(on.cx, &x[0], &[1; ROWS], 0, &[Pooling::Mean])?;
        ops::unit_rows(on.cx, ops::stack_rows(&[rows, ops::zero_rows(on.cx, 1, 48)?])?)
    });
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        checks.add(&format!("experts, {scoring:?}"), &[(ROWS, 5), (ROWS, 48)], Both, |on, x| {
            // Logits far apart: the choice is the same in any type.
            let logits = ops::scale(on.cx, own(on, &x[0])?, 4.0)?;
            let routing = Routing {
                top_k: 2,
                scoring,
                normalise: Some(1e-6),
                scale: 1.5,
                bias: None,
                factors: Some(on.vector(5, 6)?),
                groups: (1, 1),
            };
            let Routed { rows, weights } = ops::route(on.cx, &logits, &routing)?;
            let mut parts = Vec::new();
            for (expert, rows) in rows.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
                let output = ops::scale(on.cx, own(on, &ops::select_rows(on.cx, &x[1], &rows)?)?, 1.0 + expert as f32)?;
                parts.push(ExpertRows { expert, rows, output });
            }
            ops::combine(on.cx, parts, &weights)
        });
    }
    checks.add("scale", &[(ROWS, 48)], Both, |on, x| ops::scale(on.cx, own(on, &x[0])?, -0.4));
    checks.add("scaled, and read once more", &[(ROWS, 48)], Both, |on, x| {
        ops::add_scaled(on.cx, &x[0], ops::scaled(on.cx, &x[0], -0.4)?, 0.5, None)
    });
    checks.add("split, evenly", &[(ROWS, 48)], Both, |on, x| {
        let parts = ops::split_evenly(on.cx, &x[0], 4)?;
        let norm = Norm { kind: NormKind::Rms, eps: 1e-3, width: 12, weight: None, bias: None };
        ops::add_scaled(on.cx, &ops::norm(on.cx, &parts[0], &norm)?, ops::norm(on.cx, &parts[2], &norm)?, 0.5, None)
    });
    checks.add("clip", &[(ROWS, 48)], Both, |on, x| ops::clip(on.cx, &x[0], 0.5));
    checks.add("split", &[(ROWS, 48)], Both, |on, x| {
        let [a, b, _] = ops::split(on.cx, &x[0], [20, 20, 8])?;
        let norm = Norm { kind: NormKind::Rms, eps: 1e-3, width: 20, weight: None, bias: None };
        ops::add_scaled(on.cx, &ops::norm(on.cx, &a, &norm)?, ops::norm(on.cx, &b, &norm)?, 0.5, None)
    });
}

fn products(checks: &mut Checks<'_>) {
    // A token, a few, and many of more values than one tile of a product has.
    for (rows, inputs, outputs) in [(1, 48, 40), (ROWS, 48, 40), (70, 300, 130)] {
        let shape = format!("{rows} × {inputs} × {outputs}");
        checks.add(&format!("linear, {shape}"), &[(rows, inputs)], Both, |on, x| {
            let (weight, bias) = (on.matrix(outputs, inputs, 4)?, on.vector(outputs, 5)?);
            ops::linear(on.cx, &x[0], AdaptedLinear { weight: &weight, bias: Some(&bias), deltas: None })
        });
        checks.add(&format!("logits, {shape}"), &[(rows, inputs)], Forward, |on, x| {
            let weight = on.matrix(outputs, inputs, 4)?;
            let (product, mut out) = (AdaptedLinear { weight: &weight, bias: None, deltas: None }, Vec::new());
            ops::logits(on.cx.backend, &x[0], product, 0.5, Some(3.0), &mut out)?;
            Tensor::from_vec(out, (rows, outputs), &candle_core::Device::Cpu)
        });
    }
    for (name, gain) in [("LoRA", false), ("DoRA", true)] {
        let deltas = move |on: Target<'_>| {
            let part = |rows: Range<usize>, start, seed| {
                let (n, b, bias) = (rows.len(), on.matrix(rows.len(), 4, seed)?, on.vector(rows.len(), seed + 1)?);
                let part = DeltaPart { rows, start, b, bias: Some(bias), gain: None };
                if gain { part.with_gain(noise(n, seed + 2), on.cx.backend) } else { Ok(part) }
            };
            let delta = |parts, seed| {
                let a = on.matrix(4, 48, seed)?;
                Ok::<_, candle_core::Error>(LowRankDelta { a, parts, scale: 0.7, dropout: None, number: None })
            };
            Ok::<_, candle_core::Error>(vec![
                delta(vec![part(0..12, 21, 7)?, part(12..20, 5, 10)?], 6)?,
                delta(vec![part(0..30, 3, 13)?], 16)?,
            ])
        };
        checks.add(&format!("linear, {name}"), &[(ROWS, 48)], Forward, |on, x| {
            let (weight, bias, deltas) = (on.matrix(40, 48, 4)?, on.vector(40, 5)?, deltas(on)?);
            let bias = ops::summed_bias(Some(&bias), 40, &deltas, on.cx.backend)?;
            let deltas = LowRankDeltas::new(deltas, Vec::new(), &weight)?;
            ops::linear(on.cx, &x[0], AdaptedLinear { weight: &weight, bias: bias.as_ref(), deltas: Some(&deltas) })
        });
        checks.add(&format!("merged, {name}"), &[(ROWS, 48)], Forward, |on, x| {
            let (weight, bias) = (on.matrix(40, 48, 4)?, on.vector(40, 5)?);
            let (backend, deltas) = (on.cx.backend, deltas(on)?);
            let bias = ops::summed_bias(Some(&bias), 40, &deltas, backend)?;
            let Some(weight) = ops::merged(&weight, &deltas, &[], backend)? else { bail!("merged: no matrix") };
            ops::linear(on.cx, &x[0], AdaptedLinear { weight: &weight, bias: bias.as_ref(), deltas: None })
        });
    }
    let added = |on: Target<'_>| {
        let of = |ids: &[u32], seed| Ok(AddedRows { rows: on.matrix(ids.len(), 48, seed)?, ids: ids.into() });
        [of(&[39, 0, 7], 6), of(&[7], 7)].into_iter().collect::<candle_core::Result<Vec<_>>>()
    };
    checks.add("linear, rows added", &[(ROWS, 48)], Forward, move |on, x| {
        let weight = on.matrix(40, 48, 4)?;
        let deltas = LowRankDeltas::new(Vec::new(), added(on)?, &weight)?;
        ops::linear(on.cx, &x[0], AdaptedLinear { weight: &weight, bias: None, deltas: Some(&deltas) })
    });
    checks.add("merged, rows added", &[(ROWS, 48)], Forward, move |on, x| {
        let weight = on.matrix(40, 48, 4)?;
        let Some(weight) = ops::merged(&weight, &[], &added(on)?, on.cx.backend)? else { bail!("merged: no matrix") };
        ops::linear(on.cx, &x[0], AdaptedLinear { weight: &weight, bias: None, deltas: None })
    });
    for (name, dropout) in [("in training", None), ("in training, dropout", Some(Dropout { share: 0.3, seed: 5 }))] {
        checks.add(&format!("linear, {name}"), &[(ROWS, 48)], Both, |on, x| {
            let weight = on.matrix(40, 48, 4)?;
            // As a trainer has them: in F32, whatever the weights are.
            let delta = |number: usize, parts: &[(Range<usize>, usize)]| {
                let (rank, outputs) = (3 + number, parts.iter().map(|(rows, _)| rows.len()).sum::<usize>());
                let values = ParameterValues::new(noise(rank * (48 + outputs), 6), on.cx.backend)?;
                let part = |(rows, start): &(Range<usize>, usize)| {
                    let b = values.matrix(rank * (48 + rows.start)..rank * (48 + rows.end), rank)?;
                    Ok(DeltaPart { rows: rows.clone(), start: *start, b, bias: None, gain: None })
                };
                let parts = parts.iter().map(part).collect::<Result<_>>()?;
                let (a, number) = (values.matrix(0..rank * 48, 48)?, Some(number));
                Ok::<_, candle_core::Error>(LowRankDelta { a, parts, scale: 0.7, dropout, number })
            };
            let deltas = vec![delta(0, &[(0..8, 22), (8..20, 2)])?, delta(1, &[(0..40, 0)])?];
            let deltas = LowRankDeltas::new(deltas, Vec::new(), &weight)?;
            ops::linear(on.cx, &x[0], AdaptedLinear { weight: &weight, bias: None, deltas: Some(&deltas) })
        });
    }
    checks.add("AdamW", &[], Forward, |on, _| {
        let backend = on.cx.backend;
        let mut state = Optimized::new(noise(3000, 1), backend)?;
        for step in 1..4 {
            let gradient = |seed| ParameterValues::new(noise(1500, seed), backend);
            let gradient = ParameterValues::concat(vec![gradient(10 + step)?, gradient(20 + step)?], backend)?;
            let gradient = gradient.scaled(0.7, Some(&ParameterValues::new(noise(3000, 30), backend)?))?;
            let (beta1, beta2, epsilon, weight_decay, learning_rate) = (0.9, 0.999, 1e-6, 0.1, 0.01);
            let adam = AdamW { beta1, beta2, epsilon, weight_decay, learning_rate, step: step.into() };
            state.step(&adam, &gradient, 1.0 / gradient.norm()? as f32)?;
        }
        let all = ParameterValues::concat(vec![state.values, state.first, state.second], backend)?;
        Tensor::from_vec(all.values()?.into_owned(), (3, 3000), &candle_core::Device::Cpu)
    });
    checks.add("embedding", &[], Forward, |on, _| ops::embedding(&on.matrix(50, 48, 4)?, &[3, 49, 0, 3], 2.5));
    checks.add("embedding, in training", &[], Both, |on, _| {
        let (table, mut deltas) = (on.matrix(50, 48, 4)?, Vec::new());
        for rank in [2, 5] {
            let values = ParameterValues::new(noise(rank * (48 + 50), 6), on.cx.backend)?;
            let b = values.matrix(rank * 48..rank * (48 + 50), rank)?;
            let parts = vec![DeltaPart { rows: 0..50, start: 0, b, bias: None, gain: None }];
            let a = values.matrix(0..rank * 48, 48)?;
            deltas.push(LowRankDelta { a, parts, scale: 0.7, dropout: None, number: Some(rank) });
        }
        let deltas = LowRankDeltas::new(deltas, Vec::new(), &table)?;
        ops::adapted_embedding(on.cx, &table, Some(&deltas), &[3, 49, 0, 3], 2.5)
    });
}

fn attention(checks: &mut Checks<'_>) {
    let masks = [(None, None), (Some(3), None), (None, Some(0.7)), (Some(5), Some(2.0)), (None, Some(0.001))];
    let name = |window: Option<usize>, softcap: Option<f32>| {
        let window = window.map(|window| format!(", window {window}")).unwrap_or_default();
        window + &softcap.map(|cap| format!(", cap {cap}")).unwrap_or_default()
    };
    for (window, softcap) in masks {
        for (kind, causal) in [("to all", false), ("causal", true)] {
            let mask = Mask { causal, window, scale: 0.3, softcap };
            let label = format!("attention, {kind}{}", name(window, softcap));
            checks.add(&label, &[(12, 48), (12, 24), (12, 24)], Both, |on, x| {
                let mut sequences = Sequences::new(vec![4, 1, 7], None, on.cx.backend)?;
                ops::attention_within(on.cx, [&x[0], &x[1], &x[2]], 4, 2, mask, sinks(on, window)?.as_ref(), &mut sequences)
            });
        }
    }
    let mask = Mask { causal: false, window: None, scale: 0.3, softcap: None };
    checks.add("attention, bias by distance", &[(12, 48), (12, 48), (12, 48)], Forward, |on, x| {
        let mut sequences = Sequences::new(vec![4, 1, 7], Some(noise(4 * 13, 5)), on.cx.backend)?;
        ops::attention_within(on.cx, [&x[0], &x[1], &x[2]], 4, 4, mask, None, &mut sequences)
    });
    // Steps of one token and of several, across the sizes by which a cache grows; a width that has a fused step on Metal, and one that
    // has none.
    for (dim, rows) in [(64, 1040), (20, 270)] {
        for (window, softcap) in [(None, None), (Some(100), None), (None, Some(2.0))] {
            let mask = Mask { causal: true, window, scale: 0.125, softcap };
            for format in KvFormat::ALL.into_iter().filter(|format| checks.device.backend().keeps(*format)) {
                let label = format!("cached attention, {dim}, {}{}", format.name(), name(window, softcap));
                checks.add(&label, &[(rows, 4 * dim), (rows, 2 * dim), (rows, 2 * dim)], Forward, |on, x| {
                    cached(on, x, &[rows - 20, 1, 2, 1, 16], mask, (dim, format))
                });
            }
        }
    }
}

/// Sinks of four heads, where there is a window.
fn sinks(on: Target<'_>, window: Option<usize>) -> Result<Option<Vector>> {
    window.map(|_| on.vector(4, 9)).transpose()
}

/// Queries in steps, half of which go to a copy that was read back and written.
fn cached(on: Target<'_>, x: &[Tensor], steps: &[usize], mask: Mask, (dim, format): (usize, KvFormat)) -> Result<Tensor> {
    let new = || LayerCache::new(2, dim, format, on.cx.backend);
    let (mut cache, mut out, mut first) = (new(), Vec::new(), 0);
    for (i, &rows) in steps.iter().enumerate() {
        let [q, k, v] = [0, 1, 2].map(|i| x[i].narrow(0, first, rows));
        let (q, k, v) = (q?, k?, v?);
        out.push(ops::attention(
            &q,
            Some([&k, &v]),
            4,
            mask,
            sinks(on, mask.window)?.as_ref(),
            &mut cache,
            &mut Masks::default(),
        )?);
        // And again over what is there by then.
        out.push(ops::attention(&q, None, 4, mask, None, &mut cache, &mut Masks::default())?);
        first += rows;
        if i == 1 {
            let mut copy = new();
            copy.fill(&cache.fork()?.to_bytes()?, on.dtype())?;
            cache = copy;
        }
    }
    Tensor::cat(&out, 0)
}

fn recurrences(checks: &mut Checks<'_>) {
    for (name, kind) in [("product", None), ("sigmoid", Some(Activation::Sigmoid))] {
        for (of, count) in [("values", 48), ("heads", 4)] {
            checks.add(&format!("gate of {of}, {name}"), &[(ROWS, 48), (ROWS, count)], Both, |on, x| {
                ops::gate(on.cx, &x[0], &x[1], kind)
            });
        }
    }
    for (name, biased) in [("", false), (", bias", true)] {
        let by = move |on: Target<'_>| {
            let bias = biased.then(|| on.vector(48, 6)).transpose()?;
            Ok::<_, candle_core::Error>(Convolution { taps: 4, channels: 48, weight: on.vector(4 * 48, 5)?, bias })
        };
        checks.add(&format!("convolution{name}"), &[(12, 48)], Both, |on, x| {
            ops::convolution_within(on.cx, &x[0], &by(on)?, &Sequences::new(vec![4, 1, 7], None, on.cx.backend)?)
        });
        // Pieces that end within chunks and with them; half goes to a copy that was read back and written.
        checks.add(&format!("convolution in pieces{name}"), &[(60, 48)], Forward, |on, x| {
            let new = || ConvState::new(48, 4, on.cx.backend);
            let (mut state, mut out, mut first) = (new(), Vec::new(), 0);
            for rows in [1, 20, 11, 1, 2, 25] {
                out.push(ops::convolution(&x[0].narrow(0, first, rows)?, &by(on)?, &mut state)?);
                first += rows;
                let mut copy = new();
                copy.fill(&state.values()?, state.start(), state.len(), on.dtype())?;
                state = copy;
            }
            Tensor::cat(&out, 0)
        });
    }
    let decay = |on: Target<'_>, heads: usize| {
        let rate = noise(heads, 5).iter().map(|x| -x.abs()).collect();
        let rate = Some(Vector::new(rate, on.cx.backend)?);
        Ok::<_, candle_core::Error>(Decay { bias: on.vector(heads, 6)?, rate, limits: Decay::UNLIMITED })
    };
    let limited = move |on: Target<'_>, heads| Ok::<_, candle_core::Error>(Decay { limits: (0.4, 0.8), ..decay(on, heads)? });
    checks.add("decay", &[(ROWS, 48)], Both, |on, x| ops::decay(on.cx, &x[0], &decay(on, 48)?));
    checks.add("decay within limits", &[(ROWS, 48)], Both, |on, x| ops::decay(on.cx, &x[0], &limited(on, 48)?));
    checks.add("lengths of steps", &[(ROWS, 48)], Both, |on, x| {
        ops::decay(on.cx, &x[0], &Decay { rate: None, ..limited(on, 48)? })
    });
    let shape = ScanShape { heads: 4, groups: 2, key_dim: 8, value_dim: 12, rule: ScanRule::Delta };
    let inputs = move |on: Target<'_>, x: &[Tensor]| {
        // Keys of length 1 at most, as they are: longer ones would let errors grow.
        let unit = Norm {
            kind: NormKind::Rms,
            eps: 1e-3,
            width: 8,
            weight: Some(Vector::new(vec![0.3; 8], on.cx.backend)?),
            bias: None,
        };
        let keys = ops::norm(on.cx, &x[1], &unit)?;
        let beta = ops::activate(on.cx, own(on, &x[4])?, Activation::Sigmoid)?;
        Ok::<_, candle_core::Error>([x[0].clone(), keys, x[2].clone(), ops::decay(on.cx, &x[3], &decay(on, 4)?)?, beta])
    };
    let shapes = |rows| [(rows, 16), (rows, 16), (rows, 48), (rows, 4), (rows, 4)];
    for (name, rule) in [("delta rule", ScanRule::Delta), ("additive scan", ScanRule::Additive)] {
        let shape = ScanShape { rule, ..shape };
        // What Mamba 2 adds to what is read.
        let skip = move |on: Target<'_>| (rule == ScanRule::Additive).then(|| on.vector(4, 12)).transpose();
        for lengths in [vec![4, 1, 7], vec![3, 40]] {
            let label = format!("{name}, {} tokens", lengths.iter().sum::<usize>());
            checks.add(&label, &shapes(lengths.iter().sum()), Both, |on, x| {
                let (inputs, skip) = (inputs(on, x)?, skip(on)?);
                let sequences = Sequences::new(lengths.clone(), None, on.cx.backend)?;
                ops::scan_within(on.cx, inputs.each_ref(), shape, skip.as_ref(), &sequences)
            });
        }
        checks.add(&format!("{name} in pieces"), &shapes(60), Forward, |on, x| {
            let (all, skip) = (inputs(on, x)?, skip(on)?);
            let new = || ScanState::new(shape, on.cx.backend);
            let (mut state, mut out, mut first) = (new(), Vec::new(), 0);
            for rows in [1, 20, 11, 1, 2, 25] {
                let part = all.iter().map(|x| x.narrow(0, first, rows)).collect::<Result<Vec<_>>>()?;
                out.push(ops::scan(std::array::from_fn(|i| &part[i]), skip.as_ref(), &mut state)?);
                first += rows;
                let mut copy = new();
                copy.fill(&state.values()?, state.start(), state.len())?;
                state = copy;
            }
            Tensor::cat(&out, 0)
        });
    }
}

fn losses(checks: &mut Checks<'_>) {
    for (name, cap) in [("", None), (", cap", Some(1.5))] {
        let run = move |on: Target<'_>, x: &[Tensor], with_gradient| {
            let targets: Vec<u32> = (0..ROWS as u32).map(|i| i * 7).collect();
            let (weight, bias) = (on.matrix(50, 48, 4)?, on.vector(50, 5)?);
            let product = AdaptedLinear { weight: &weight, bias: Some(&bias), deltas: None };
            ops::cross_entropy(on.cx.backend, &x[0], product, (0.4, cap), &targets, with_gradient)
        };
        checks.add(&format!("cross entropy{name}"), &[(ROWS, 48)], Forward, |on, x| {
            Tensor::new(&[run(on, x, false)?.0 as f32], &candle_core::Device::Cpu)
        });
        checks.add(&format!("cross entropy{name}, gradient"), &[(ROWS, 48)], Forward, |on, x| match run(on, x, true)? {
            (_, Some(gradient)) => Ok(gradient),
            _ => bail!("cross entropy: no gradient"),
        });
    }
}

/// Where an operation computes, and the type of its matrices.
#[derive(Clone, Copy)]
struct Target<'a> {
    cx: Context<'a>,
    format: Format,
}

impl Target<'_> {
    fn matrix(self, rows: usize, cols: usize, seed: u32) -> Result<Matrix> {
        let builder = MatrixBuilder::new(rows, cols, self.format, Use::Product, self.cx.backend);
        let mut builder = builder.ok_or_else(|| OutOfMemory { what: "a matrix".to_string() })?;
        builder.fill_f32(0, &noise(rows * cols, seed));
        builder.finish()
    }

    fn vector(self, len: usize, seed: u32) -> Result<Vector> {
        Vector::new(noise(len, seed), self.cx.backend)
    }

    /// The type of activations.
    fn dtype(self) -> candle_core::DType {
        ops::dtype(if self.cx.backend.computes_in_f32() { Format::F32 } else { self.format })
    }
}

/// Multiples of 1/32 from -1 to 1, which every type holds; none of them within 0.03 of where a function has a corner: 0 and ±0.5.
fn noise(len: usize, mut seed: u32) -> Vec<f32> {
    let next = |_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((seed >> 27) as f32 + 0.5) / 16.0 - 1.0
    };
    (0..len).map(next).collect()
}

/// The same values in memory of their own, for operations that change them where they are.
fn own(on: Target<'_>, x: &Tensor) -> Result<Tensor> {
    ops::clip(on.cx, x, 1e4)
}

/// What runs in one type.
struct Checks<'a> {
    device: &'a Device,
    cpu: Backend,
    dtype: Dtype,
    tolerance: f32,
    rows: Vec<Row>,
}

impl Checks<'_> {
    fn add(
        &mut self,
        name: &str,
        shapes: &[(usize, usize)],
        way: Way,
        forward: impl Fn(Target<'_>, &[Tensor]) -> Result<Tensor>,
    ) {
        let run = |backend, above, beside| results(backend, self.dtype.into(), (above, beside), shapes, way, &forward);
        let want = run(&self.cpu, 0, 0).map_err(|e| format!("on the CPU: {e}"));
        let found = LAYOUTS.map(|(layout, above, beside)| {
            let found = self.device.work(|| Ok(run(self.device.backend(), above, beside)?));
            (layout, found.map_err(|e| e.to_string()))
        });
        let parts = [(name.to_string(), true), (format!("{name}, backward"), false)];
        for (operation, is_forward) in parts.into_iter().take(if way == Both { 2 } else { 1 }) {
            let part = |all: &[Vec<f32>]| if is_forward { all[..1].to_vec() } else { all[1..].to_vec() };
            let errors = found.iter().map(|(layout, found)| match (found, &want) {
                (Ok(found), Ok(want)) => (*layout, Ok(largest_error(&part(found), &part(want)))),
                (Err(error), _) | (_, Err(error)) => (*layout, Err(error.clone())),
            });
            // What cannot be compared is worse than any error.
            let rank = |error: &std::result::Result<f32, String>| error.as_ref().copied().unwrap_or(f32::INFINITY);
            let worst = errors.reduce(|a, b| if rank(&b.1) > rank(&a.1) { b } else { a });
            let Some((layout, error)) = worst else { continue };
            self.rows.push(Row { operation, dtype: self.dtype, error, layout, tolerance: self.tolerance });
        }
    }
}

/// The result, then the gradient of each input and trained matrix for a random one of the result.
fn results(
    backend: &Backend,
    format: Format,
    around: (usize, usize),
    shapes: &[(usize, usize)],
    way: Way,
    forward: &dyn Fn(Target<'_>, &[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Vec<f32>>> {
    let tape = Tape::default();
    let on = Target { cx: Context { backend, tape: (way == Both).then_some(&tape) }, format };
    let lay = |(&shape, seed): (&(usize, usize), u32)| within(shape, seed, around, on);
    let inputs = shapes.iter().zip(1..).map(lay).collect::<Result<Vec<_>>>()?;
    if way == Both {
        inputs.iter().for_each(|input| tape.track(input));
    }
    let y = forward(on, &inputs)?;
    let mut all = vec![ops::to_f32(&y)?];
    if way == Forward {
        return Ok(all);
    }
    let mut gradients = Gradients::default();
    gradients.add(&y, within(y.dims2()?, 99, (0, 0), on)?, backend)?;
    drop(y);
    tape.backward(&mut gradients)?;
    for input in &inputs {
        let Some(gradient) = gradients.take(input) else { bail!("an input gets no gradient") };
        all.push(ops::to_f32(&gradient)?);
    }
    let mut trained: Vec<_> = gradients.trained.into_iter().collect();
    trained.sort_unstable_by_key(|(number, _)| *number);
    for values in trained.iter().flat_map(|(_, gradient)| [&gradient.a, &gradient.b]) {
        all.push(values.values()?.into_owned());
    }
    Ok(all)
}

/// Random rows within rows and columns of NaN.
fn within((rows, cols): (usize, usize), seed: u32, (above, beside): (usize, usize), on: Target<'_>) -> Result<Tensor> {
    let (height, width) = (rows + 2 * above, cols + 2 * beside);
    let mut values = vec![f32::NAN; height * width];
    for (row, from) in noise(rows * cols, seed).chunks_exact(cols).enumerate() {
        values[(above + row) * width + beside..][..cols].copy_from_slice(from);
    }
    let all = Tensor::from_vec(values, (height, width), &candle_core::Device::Cpu)?.to_dtype(on.dtype())?;
    on.cx.backend.upload(&all)?.narrow(0, above, rows)?.narrow(1, beside, cols)
}

/// Over the largest value of each tensor; infinite where a value is missing or none.
fn largest_error(found: &[Vec<f32>], want: &[Vec<f32>]) -> f32 {
    let largest = |(found, want): (&Vec<f32>, &Vec<f32>)| {
        let scale = want.iter().fold(0f32, |max, x| max.max(x.abs()));
        let error = found.iter().zip(want).map(|(x, y)| (x - y).abs() / scale);
        if found.len() == want.len() {
            error.fold(0.0, |max, e| if e.is_nan() { f32::INFINITY } else { e.max(max) })
        } else {
            f32::INFINITY
        }
    };
    if found.len() == want.len() { found.iter().zip(want).map(largest).fold(0.0, f32::max) } else { f32::INFINITY }
}

#[cfg(test)]
mod tests {
    use candle_core::Storage;
    use candle_core::op::BackpropOp;

    use super::*;

    /// Whether our kernels compute.
    fn kernels(on: Target<'_>) -> bool {
        on.cx.backend.computes_in_f32()
    }

    fn checked(forward: impl Fn(Target<'_>, &[Tensor]) -> Result<Tensor>) -> Row {
        let (device, cpu) = (Device::cpu_by_tensors(), Backend::new(&candle_core::Device::Cpu));
        let (dtype, tolerance) = TYPES[2];
        let mut checks = Checks { device: &device, cpu, dtype, tolerance, rows: Vec::new() };
        checks.add("", &[(ROWS, 8)], Forward, forward);
        checks.rows.remove(0)
    }

    #[test]
    fn what_a_device_may_do_wrong_fails() {
        assert!(checked(|_, x| x[0].relu()).passed());
        let scaled = checked(|on, x| if kernels(on) { Ok(x[0].clone()) } else { &x[0] * 1.05 });
        assert!(!scaled.passed() && scaled.error.is_ok());
        // Reads what the view lies in from its beginning.
        let view_ignored = checked(|_, x| {
            let (storage, layout) = x[0].storage_and_layout();
            let Storage::Cpu(storage) = &*storage else { bail!("not on the CPU") };
            Ok(Tensor::from_storage(Storage::Cpu(storage.clone()), layout.shape(), BackpropOp::none(), false))
        });
        assert!(!view_ignored.passed() && view_ignored.layout != "alone" && view_ignored.error == Ok(f32::INFINITY));
        assert!(checked(|on, x| if kernels(on) { Ok(x[0].clone()) } else { bail!("no kernel") }).error.is_err());
        assert!(!checked(|on, x| if kernels(on) { Ok(x[0].clone()) } else { x[0].narrow(0, 0, 1) }).passed());
    }
}
