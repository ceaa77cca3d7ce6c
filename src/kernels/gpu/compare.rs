//! The kernels of GPUs against the CPU's own on the same inputs, by whatever runs them: the CPU's executor, or a device.

use candle_core::{Tensor, bail};
use half::f16;

use super::super::{
    Activation, Epilogue, Format, KvFormat, KvHeads, Mask, NormKind, Normalise, Packed, Use, add_scaled, attend, exp_sum,
    first_at, gated, highest, matmul, noise, normalise, random_blocks, rotate, scale_softcap,
};
#[cfg(feature = "selftest")]
use super::GpuFormat;
#[cfg(feature = "selftest")]
use super::batch::BatchKernels;
use super::matrix::GpuMatrix;
use super::{BestToken, Element, Gpu, GpuSlice, Library};

/// What a kernel gave: its name; ‖a − b‖ / ‖b‖ of its result and the CPU's, or why there is nothing to compare; what is allowed.
pub type Comparison = (String, Result<f32, String>, f32);

/// Every kernel that the CPU has the like of, with the libraries of `tests/gpu` that hold F16.
pub fn compare(gpu: &Gpu) -> Vec<Comparison> {
    let mut rows = Rows { gpu, rows: Vec::new() };
    rows.norms();
    rows.argmax();
    for format in FORMATS {
        rows.products(format);
    }
    rows.attention();
    rows.rows
}

/// Every library that decoders are made of, compiled: its name, and why that failed.
#[cfg(feature = "selftest")]
pub fn compile(gpu: &Gpu) -> Vec<Comparison> {
    let mut rows = Vec::new();
    let mut add =
        |name: String, done: candle_core::Result<()>| rows.push((name, done.map(|()| 0.0).map_err(|e| e.to_string()), 0.0));
    for (element, kind) in [(Element::F16, "F16"), (Element::BF16, "BF16"), (Element::F32, "F32")] {
        add(format!("compiled: norms, {kind}"), gpu.row_kernels(element).map(drop));
        add(format!("compiled: batches, {kind}"), BatchKernels::new(gpu, element).map(drop));
        for format in GpuFormat::ALL {
            // Codes are decoded to F32 by the libraries of the others.
            if element != Element::F32 || format == GpuFormat::dense {
                add(format!("compiled: products, {kind}, {}", format.row().name), gpu.product_kernels(element, format).map(drop));
            }
        }
        for dim in [64, 80, 96, 128, 256] {
            add(format!("compiled: attention, {kind}, {dim}"), gpu.attention_kernels(element, dim).map(drop));
        }
    }
    rows
}

/// Of every format that the libraries hold some that files have.
const FORMATS: [Format; 12] = [
    Format::F16,
    Format::Q4_1,
    Format::Q4_K,
    Format::AFFINE4_64,
    Format::Q5_1,
    Format::Q5_K,
    Format::Q6_K,
    Format::AFFINE8_64,
    Format::IQ4_NL,
    Format::IQ4_XS,
    Format::IQ3_S,
    Format::MXFP4,
];

const ROW: Library = Library::Row { element: Element::F16 };
const ATTENTION: Library = Library::Attention { element: Element::F16, dim: 64, heads: 7, parts: 2, keys: 4 };

// Flags of params.h.
const ADD_BEFORE: u32 = 1;
const LAYER: u32 = 8;
const SHIFT: u32 = 16;
const QK_NORM: u32 = 2;

/// One launch of a kernel.
#[derive(Clone, Copy)]
struct Launch<'a> {
    library: Library,
    kernel: &'static str,
    /// Threadgroups.
    grid: [u32; 3],
    /// Of a threadgroup; a multiple of 32.
    threads: u32,
    /// The struct of `params.h`, by words.
    params: &'a [u32],
}

struct Rows<'a> {
    gpu: &'a Gpu,
    rows: Vec<Comparison>,
}

/// The bits of numbers.
fn words(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|bits| f32::from_bits(*bits)).collect()
}

/// Two numbers of 16 bits a word.
fn pairs(values: &[u16]) -> Vec<u32> {
    values.chunks(2).map(|pair| u32::from(pair[0]) | pair.get(1).map_or(0, |upper| u32::from(*upper) << 16)).collect()
}

/// Two F16 a word.
fn halves(words: &[u32]) -> Vec<f32> {
    words.iter().flat_map(|word| [f16::from_bits(*word as u16), f16::from_bits((word >> 16) as u16)]).map(f16::to_f32).collect()
}

/// Room for what a kernel writes; NaN, so that what it does not write shows.
fn nan(words: usize) -> Vec<u32> {
    vec![u32::MAX; words]
}

/// A row of `n` values whose column k lies where `lane_order` of `common.h` has it.
fn out_of_lane_order(row: &[f32]) -> Vec<f32> {
    let n = row.len();
    (0..n).map(|k| row[(k / 4 % 8 * (n / 32) + k / 32) * 4 + k % 4]).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let length: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    if a.len() == b.len() { (difference / length).sqrt() as f32 } else { f32::NAN }
}

/// About what weights are: values quantised, or, where nothing is quantised to a format, random blocks whose values are small.
fn weights_of(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let values: Vec<f32> = noise(rows * cols, 5).iter().map(|x| 0.1 * x).collect();
    let mut bytes = Vec::new();
    if format.write(&values, &mut bytes) {
        return bytes;
    }
    let small = |block: &Vec<u8>| format.widen(block).iter().all(|x| x.abs() < 4.0);
    (1..).map(|seed| random_blocks(format, 1, seed)).filter(small).take(rows * cols / format.block()).flatten().collect()
}

impl Rows<'_> {
    fn add(&mut self, kernel: String, limit: f32, found: candle_core::Result<Vec<f32>>, want: &[f32]) {
        let error = found.map(|found| distance(&found, want)).map_err(|error| error.to_string());
        self.rows.push((kernel, error, limit));
    }

    /// What a kernel leaves in one of its buffers.
    fn run(&self, launch: Launch<'_>, buffers: Vec<Vec<u32>>, result: usize) -> candle_core::Result<Vec<u32>> {
        Ok(self.run_all(launch, buffers)?.swap_remove(result))
    }

    /// What it leaves in all of them, the same bits each time.
    fn run_all(&self, launch: Launch<'_>, buffers: Vec<Vec<u32>>) -> candle_core::Result<Vec<Vec<u32>>> {
        let [first, second] = [self.run_once(launch, &buffers)?, self.run_once(launch, &buffers)?];
        if first != second {
            bail!("{}: a second run gave other bits", launch.kernel)
        }
        Ok(first)
    }

    fn run_once(&self, launch: Launch<'_>, buffers: &[Vec<u32>]) -> candle_core::Result<Vec<Vec<u32>>> {
        let kernel = self.gpu.kernel(launch.library, launch.kernel)?;
        let tensors = buffers.iter().map(|words| Tensor::from_slice(words, words.len(), self.gpu.device()));
        let tensors = tensors.collect::<candle_core::Result<Vec<_>>>()?;
        let slices = tensors.iter().map(GpuSlice::of).collect::<candle_core::Result<Vec<_>>>()?;
        let views: Vec<_> = slices.iter().map(GpuSlice::view).collect();
        let mut list = self.gpu.list();
        list.push(kernel, launch.grid, launch.threads, &views, launch.params)?;
        list.start()?;
        tensors.iter().map(Tensor::to_vec1).collect()
    }

    fn norms(&mut self) {
        let (rows, cols, eps) = (3, 200, 1e-3f32);
        let (x, added) = (noise(rows * cols, 1), noise(rows * cols, 2));
        let (weight, bias) = (noise(cols, 3), noise(cols, 4));
        let norm = Normalise { kind: NormKind::Rms, eps, width: cols, weight: Some(&weight), bias: None };
        let run = |to: &Self, flags: u32, result: usize| {
            let params = [cols as u32, flags, eps.to_bits()];
            let launch = Launch { library: ROW, kernel: "norm_f32", grid: [rows as u32, 1, 1], threads: 96, params: &params };
            let vectors = [&x, &added, &weight, &bias].map(|values| words(values));
            to.run(launch, [vectors.to_vec(), vec![nan(rows * cols), nan(rows * cols)]].concat(), result)
                .map(|words| floats(&words))
        };
        let mut want = vec![0.0; rows * cols];
        normalise(norm, &x, cols, cols, &mut want);
        self.add("norm_f32".into(), 1e-6, run(self, 0, 5), &want);
        normalise(Normalise { kind: NormKind::Layer, bias: Some(&bias), ..norm }, &x, cols, cols, &mut want);
        self.add("norm_f32, layer".into(), 1e-6, run(self, LAYER | SHIFT, 5), &want);
        let mut sum = added.clone();
        add_scaled(&x, 1.0, &mut sum, cols, None);
        self.add("norm_f32, sum".into(), 0.0, run(self, ADD_BEFORE, 4), &sum);
        normalise(norm, &sum, cols, cols, &mut want);
        self.add("norm_f32, norm of the sum".into(), 1e-6, run(self, ADD_BEFORE, 5), &want);
    }

    fn argmax(&mut self) {
        let (count, cap) = (5003, 0.75f32);
        let scores = noise(2 * count, 6);
        let words_of_row = BestToken::words(count);
        let params = [count as u32, 1024, cap.to_bits()];
        let launch = Launch { library: ROW, kernel: "argmax", grid: [5, 2, 1], threads: 256, params: &params };
        let found = self.run(launch, vec![words(&scores), nan(2 * words_of_row)], 1).map(|words| floats(&words));
        let found = found.map(|words| words.chunks_exact(words_of_row).map(BestToken::of).collect::<Vec<_>>());
        // The id as well as what it is worth.
        let values = |id: u32, logprob: f32| [id as f32, logprob];
        let found = found.map(|best| best.iter().flat_map(|best| values(best.id, best.logprob)).collect());
        let mut want = Vec::new();
        for row in scores.chunks_exact(count) {
            let mut row = row.to_vec();
            scale_softcap(&mut row, 1.0, Some(cap));
            let best = highest(&row).unwrap_or(f32::NAN);
            let id = first_at(&row, best).unwrap_or(0);
            want.extend(values(id as u32, -exp_sum(&row, best).ln() as f32));
        }
        self.add("argmax".into(), 1e-6, found, &want);
    }

    fn products(&mut self, format: Format) {
        let (outputs, inputs) = (64, 768);
        let bytes = weights_of(format, outputs, inputs);
        let Some(mut matrix) = GpuMatrix::new(&[(outputs, format)], inputs) else { return self.no_matrix(format) };
        // The reference has the values that the kernels read: what becomes of a file's scales is no matter of theirs.
        let mut values = vec![0.0; outputs * inputs];
        let filled = matrix.fill(0, &bytes, format);
        values.chunks_exact_mut(inputs).enumerate().for_each(|(row, out)| matrix.row(row, out));
        let Some(packed) = Packed::from_f32(&values, inputs, Use::Product).filter(|_| filled) else {
            return self.no_matrix(format);
        };
        let (codes, extra, scales) = matrix.parts();
        let scales: Vec<u16> = scales.iter().map(|scale| scale.to_bits()).collect();
        let weight = || vec![codes.to_vec(), extra.to_vec(), pairs(&scales)];
        let library = Library::Product { element: Element::F16, stage: 512, format: matrix.format() };
        let limit = 4e-5;
        let x = noise(inputs, 3);
        let run = |rows: &Self, kernel, outputs: usize| {
            // The columns of a row of W shared by two simdgroups; no flags.
            let params = [outputs as u32, inputs as u32, 1, 2, matrix.group_shift(), 0, 0, 1f32.to_bits()];
            let launch = Launch { library, kernel, grid: [3, 1, 1], threads: 128, params: &params };
            let buffers = [weight(), vec![words(&x), nan(1), nan(1), nan(1), nan(outputs)]].concat();
            rows.run(launch, buffers, 7).map(|words| floats(&words))
        };
        let mut want = vec![0.0; outputs];
        if matmul(&x, inputs, &packed, Epilogue::default(), &mut want).is_err() {
            return self.no_matrix(format);
        }
        for kernel in ["product_r1n2", "product_r1n4"] {
            self.add(format!("{kernel}, {}", format.name()), limit, run(self, kernel, outputs), &want);
        }
        let mut activated = vec![0.0; outputs / 2];
        gated(Activation::Silu, &want, outputs / 2, &mut activated);
        let found = run(self, "product_gated_r1n2", outputs / 2).map(|row| out_of_lane_order(&row));
        self.add(format!("product_gated_r1n2, {}", format.name()), 4.0 * limit, found, &activated);

        let params = [inputs as u32, matrix.group_shift(), u32::MAX, 1f32.to_bits()];
        let launch = Launch { library, kernel: "rows", grid: [1, 1, 1], threads: 256, params: &params };
        let found = self.run(launch, [weight(), vec![vec![7], nan(inputs)]].concat(), 4).map(|words| floats(&words));
        self.add(format!("rows, {}", format.name()), 1e-6, found, &values[7 * inputs..8 * inputs]);
    }

    fn no_matrix(&mut self, format: Format) {
        self.rows.push((format.name().into(), Err("its matrix could not be made".into()), 0.0));
    }

    /// A prompt token by token, then attention of its last row, and of all rows at once.
    fn attention(&mut self) {
        let (heads, kv_heads, dim, capacity, len, eps) = (14, 2, 64, 80, 70, 1e-3f32);
        let (all, width) = (heads + 2 * kv_heads, heads * dim);
        let half = dim / 4;
        let qkv = noise(len * all * dim, 11);
        let (q_weight, k_weight) = (noise(dim, 12), noise(dim, 13));
        let angle = |i: usize| (i / half) as f64 / 10000f64.powf((i % half) as f64 / half as f64);
        let cos: Vec<f32> = (0..len * half).map(|i| angle(i).cos() as f32).collect();
        let sin: Vec<f32> = (0..len * half).map(|i| angle(i).sin() as f32).collect();
        let angles: Vec<u32> = cos.iter().zip(&sin).flat_map(|(c, s)| [c.to_bits(), s.to_bits()]).collect();

        // The CPU's.
        let normed = |first: usize, count: usize, weight: &[f32]| {
            let x: Vec<f32> = qkv.chunks_exact(all * dim).flat_map(|row| &row[first * dim..][..count * dim]).copied().collect();
            let norm = Normalise { kind: NormKind::Rms, eps, width: dim, weight: Some(weight), bias: None };
            let (mut normed, mut rotated) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            normalise(norm, &x, count * dim, count * dim, &mut normed);
            rotate(&normed, count * dim, count, dim, false, &cos, &sin, half, &mut rotated);
            rotated
        };
        let (want_q, want_k) = (normed(0, heads, &q_weight), normed(heads, kv_heads, &k_weight));
        let mut cache = KvHeads::new(kv_heads, dim, KvFormat::F16);
        let values = &qkv[(heads + kv_heads) * dim..];
        let appended = cache.append(&want_k, kv_heads * dim, values, all * dim, len);
        let bytes = match appended.and_then(|()| cache.to_bytes()) {
            Ok(bytes) => bytes,
            Err(error) => return self.rows.push(("the CPU's cache".into(), Err(error.to_string()), 0.0)),
        };
        let cached: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect();

        let with_sinks = noise(heads, 14);
        // Of one token; `splits` threadgroups share the keys.
        let token = |rows: &Self, at: usize, mask: Mask, sinks: bool, splits: u32, caches: [Vec<u32>; 2]| {
            let (window, cap) = (mask.window.unwrap_or(0) as u32, mask.softcap.unwrap_or(0.0).to_bits());
            let [heads, kv_heads, capacity, rotated] = [heads, kv_heads, capacity, 2 * half].map(|n| n as u32);
            let (sinks, eps, scale) = (u32::from(sinks), eps.to_bits(), mask.scale.to_bits());
            let params = [heads, kv_heads, capacity, splits, window, sinks, rotated, QK_NORM, eps, scale, cap];
            let launch = Launch { library: ATTENTION, kernel: "attention", grid: [2, splits, 1], threads: 448, params: &params };
            let own = angles[2 * half * at..][..2 * half].to_vec();
            let mut buffers = vec![words(&qkv[at * all * dim..][..all * dim]), vec![at as u32], own.clone(), own];
            buffers.extend([words(&q_weight), words(&k_weight), words(&with_sinks)]);
            buffers.extend(caches);
            let parts = if splits > 1 { heads as usize * splits as usize * (dim + 2) } else { 1 };
            let mut found = rows.run_all(launch, [buffers, vec![nan(width), nan(parts)]].concat())?;
            if let (true, Some(parts)) = (splits > 1, found.pop()) {
                let launch = Launch { kernel: "combine", grid: [heads, 1, 1], threads: 64, ..launch };
                found[9] = rows.run(launch, vec![parts, words(&with_sinks), nan(width)], 2)?;
            }
            let (out, values, keys) = (found.swap_remove(9), found.swap_remove(8), found.swap_remove(7));
            Ok::<_, candle_core::Error>((out_of_lane_order(&floats(&out)), [keys, values]))
        };
        let plain = Mask { causal: true, window: None, scale: 0.125, softcap: None };
        let none = || nan(kv_heads * capacity * dim / 2);
        let filled = (0..len).try_fold([none(), none()], |caches, at| Ok(token(self, at, plain, false, 1, caches)?.1));
        let [keys, values] = match filled {
            Ok(caches) => caches,
            Err::<_, candle_core::Error>(error) => return self.rows.push(("attention".into(), Err(error.to_string()), 0.0)),
        };
        // (head, position, dim) as (position, head, dim); a value between two halves may become either.
        let by_position = |words: &[u32]| {
            let all = halves(words);
            let vector = |t: usize, h: usize| all[(h * capacity + t) * dim..][..dim].to_vec();
            (0..len).flat_map(|t| (0..kv_heads).map(move |h| (t, h))).flat_map(|(t, h)| vector(t, h)).collect::<Vec<f32>>()
        };
        let found = [by_position(&keys), by_position(&values)].concat();
        self.add("attention, cache".into(), 2e-5, Ok(found), &cached);

        let cases =
            [("all", None, None, 0), ("window", Some(20), None, 0), ("softcap", None, Some(3.0), 0), ("sinks", None, None, 1)];
        for (name, window, softcap, sinks) in cases {
            let mask = Mask { causal: true, window, scale: 0.125, softcap };
            let mut want = vec![0.0; len * width];
            attend(&want_q, width, heads, &cache, mask, (sinks > 0).then_some(&with_sinks), &mut want);
            // Of the last row three threadgroups share the keys.
            let found = token(self, len - 1, mask, sinks > 0, 3, [keys.clone(), values.clone()]).map(|(out, _)| out);
            self.add(format!("attention, {name}"), 1e-5, found, &want[(len - 1) * width..]);

            let (window, cap) = (window.unwrap_or(0) as u32, softcap.unwrap_or(0f32).to_bits());
            let params = [heads as u32, kv_heads as u32, capacity as u32, len as u32, 0, window, sinks, 0.125f32.to_bits(), cap];
            let grid = [len.div_ceil(32) as u32, heads as u32, 1];
            let launch = Launch { library: ATTENTION, kernel: "flash", grid, threads: 128, params: &params };
            let buffers = vec![words(&want_q), keys.clone(), values.clone(), words(&with_sinks), nan(len * width / 2)];
            let found = self.run(launch, buffers, 4);
            self.add(format!("flash, {name}"), 6e-4, found.map(|words| halves(&words)), &want);
        }
    }
}
