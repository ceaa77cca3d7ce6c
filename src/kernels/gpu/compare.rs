//! The kernels of GPUs against the CPU's own on the same inputs, by whatever runs them: the CPU's executor, or a device.

use candle_core::{Result, Tensor, bail};
use half::{bf16, f16};

use super::super::{
    Activation, CHUNK, ConvMemory, Decaying, Epilogue, Format, KvFormat, KvHeads, Mask, NormKind, Normalise, Packed, ScanInputs,
    ScanMemory, ScanRule, ScanShape, Strided, Taps, Use, add_scaled, attend, chunk_start, convolve, decay, exp_sum, first_at,
    gated, highest, matmul, noise, normalise, random_blocks, rotate, scale_softcap, scan,
};
#[cfg(feature = "selftest")]
use super::batch::BatchKernels;
use super::matrix::GpuMatrix;
use super::{
    AttentionRow, BestToken, ConvolutionRow, DecodedRows, DeltaNetRow, Element, GatePart, Gated, Gpu, GpuAngles, GpuCache,
    GpuDeltaNet, GpuFormat, GpuNorm, GpuSlice, GpuView, GpuWeight, HeadCounts, KeysPart, LaunchList, MOST_SPLITS, NormWith,
    ProductWith, QkNorms, QkvLayout, RING, RopePairs,
};

/// What a kernel gave: its name; ‖a − b‖ / ‖b‖ of its result and the CPU's, or why there is nothing to compare; what is allowed.
pub type Comparison = (String, std::result::Result<f32, String>, f32);

/// Every kernel of a step, as the step starts it, with weights and caches of these types.
pub fn compare(gpu: &Gpu, elements: &[Element]) -> Vec<Comparison> {
    let mut rows = Rows { gpu, rows: Vec::new() };
    rows.all("norms", Rows::norms);
    rows.all("argmax", Rows::argmax);
    rows.all("short convolutions", Rows::short_conv);
    rows.all("delta nets", Rows::delta_net);
    for &element in elements {
        for format in FORMATS {
            // Codes are decoded to F32 by the libraries of the others.
            if element != Element::F32 || format == Format::F16 {
                let name = format!("products, {}, {}", element.name(), format.name());
                rows.all(&name, |rows| rows.products(element, format));
            }
        }
        for &dim in DIMS {
            rows.all(&format!("attention, {}, {dim}", element.name()), |rows| rows.attention(element, dim));
        }
    }
    rows.rows
}

/// Every library that decoders are made of, compiled: its name, and why that failed.
#[cfg(feature = "selftest")]
pub fn compile(gpu: &Gpu) -> Vec<Comparison> {
    let mut rows = Vec::new();
    let mut add = |name: String, done: Result<()>| rows.push((name, done.map(|()| 0.0).map_err(|e| e.to_string()), 0.0));
    add("compiled: norms".to_string(), gpu.row_kernels().map(drop));
    for element in Element::ALL {
        let kind = element.name();
        add(format!("compiled: batches, {kind}"), BatchKernels::new(gpu, element).map(drop));
        for format in GpuFormat::ALL {
            // Codes are decoded to F32 by the libraries of the others.
            if element != Element::F32 || format == GpuFormat::dense {
                add(format!("compiled: products, {kind}, {}", format.row().name), gpu.product_kernels(element, format).map(drop));
            }
        }
        for dim in [64, 80, 96, 128, 256, 512] {
            add(format!("compiled: attention, {kind}, {dim}"), gpu.attention_kernels(element, dim).map(drop));
        }
    }
    rows
}

/// Numbers, and of every format that the libraries hold some that files have.
const FORMATS: [Format; 19] = [
    Format::F16,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q4_K,
    Format::AFFINE4_64,
    Format::Q2_K,
    Format::Q3_K,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q5_K,
    Format::AFFINE6_64,
    Format::Q6_K,
    Format::Q8_0,
    Format::AFFINE8_64,
    Format::IQ4_NL,
    Format::IQ4_XS,
    Format::IQ3_S,
    Format::IQ2_S,
    Format::MXFP4,
];

/// Sizes of heads; those of which a simdgroup uses all lanes, and others.
const DIMS: &[usize] = if cfg!(test) { &[24, 64] } else { &[64, 80, 96, 128, 256, 512] };

/// Rows of a large matrix, of which simdgroups make four at once; the tests' executor takes its time for them.
fn is_wide_too(format: Format) -> bool {
    !cfg!(test) || [Format::F16, Format::Q4_0, Format::Q6_K].contains(&format)
}

struct Rows<'a> {
    gpu: &'a Gpu,
    rows: Vec<Comparison>,
}

/// The bits of numbers.
fn words(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Numbers of a type one after another, by words.
fn stored(values: &[f32], element: Element) -> Vec<u32> {
    match element {
        Element::F32 => words(values),
        Element::F16 => pairs(&values.iter().map(|x| f16::from_f32(*x).to_bits()).collect::<Vec<_>>()),
        Element::BF16 => pairs(&values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect::<Vec<_>>()),
    }
}

/// What [`stored`] has made.
fn widened(words: &[f32], element: Element) -> Vec<f32> {
    let both = words.iter().flat_map(|word| [word.to_bits() as u16, (word.to_bits() >> 16) as u16]);
    match element {
        Element::F32 => words.to_vec(),
        Element::F16 => both.map(|bits| f16::from_bits(bits).to_f32()).collect(),
        Element::BF16 => both.map(|bits| bf16::from_bits(bits).to_f32()).collect(),
    }
}

fn rounded(values: &[f32], element: Element) -> Vec<f32> {
    let words = stored(values, element);
    let mut all = widened(&words.into_iter().map(f32::from_bits).collect::<Vec<_>>(), element);
    all.truncate(values.len());
    all
}

/// Two numbers of 16 bits a word.
fn pairs(values: &[u16]) -> Vec<u32> {
    values.chunks(2).map(|pair| u32::from(pair[0]) | pair.get(1).map_or(0, |upper| u32::from(*upper) << 16)).collect()
}

/// Where column `k` of a row of `n` values lies in the order that `lane_order` of `common.h` has.
fn lane_order(k: usize, n: usize) -> usize {
    (k / 4 % 8 * (n / 32) + k / 32) * 4 + k % 4
}

/// Rows of `n` values in the order of columns.
fn out_of_lane_order(rows: &[f32], n: usize) -> Vec<f32> {
    rows.chunks_exact(n).flat_map(|row| (0..n).map(|k| row[lane_order(k, n)])).collect()
}

/// The same in lane order.
fn in_lane_order(rows: &[f32], n: usize) -> Vec<f32> {
    let mut ordered = rows.to_vec();
    for (row, out) in rows.chunks_exact(n).zip(ordered.chunks_exact_mut(n)) {
        row.iter().enumerate().for_each(|(k, x)| out[lane_order(k, n)] = *x);
    }
    ordered
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
    /// Some kernels, under the name of all of them where one cannot be had.
    fn all(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = work(self) {
            self.rows.push((name.to_string(), Err(error.to_string()), 0.0));
        }
    }

    fn add(&mut self, kernel: String, limit: f32, found: &[f32], want: &[f32]) {
        self.rows.push((kernel, Ok(distance(found, want)), limit));
    }

    fn slice(&self, words: &[u32]) -> Result<GpuSlice> {
        GpuSlice::of(&Tensor::from_slice(words, words.len(), self.gpu.device())?)
    }

    fn floats(&self, values: &[f32]) -> Result<GpuSlice> {
        self.slice(&words(values))
    }

    /// What kernels leave in `y`, the same bits each time.
    fn run<'s>(&'s self, y: &'s GpuSlice, add: impl Fn(&mut LaunchList<'s>, GpuView<'s>) -> Result<()>) -> Result<Vec<f32>> {
        let once = || {
            // NaN, so that what they do not write shows.
            self.gpu.upload(y, &vec![u32::MAX; y.len()])?;
            let mut list = self.gpu.list();
            add(&mut list, y.view())?;
            list.start()?;
            self.read(y)
        };
        let (first, second) = (once()?, once()?);
        if words(&first) != words(&second) {
            bail!("a second run gave other bits")
        }
        Ok(first)
    }

    fn read(&self, slice: &GpuSlice) -> Result<Vec<f32>> {
        let mut out = vec![0.0; slice.len()];
        self.gpu.download(slice, 0, &mut out)?;
        Ok(out)
    }

    fn norms(&mut self) -> Result<()> {
        let (rows, cols, eps) = (3, 416, 1e-3f32);
        let (x, added) = (noise(rows * cols, 1), noise(rows * cols, 2));
        let (weight, bias) = (noise(cols, 3), noise(cols, 4));
        let kernels = self.gpu.row_kernels()?;
        let (of_x, of_added, y) = (self.floats(&x)?, self.floats(&added)?, self.slice(&vec![0; rows * cols])?);
        let plain = GpuNorm { kind: NormKind::Rms, eps, width: cols, weight: self.floats(&weight)?, bias: None };
        let layer = GpuNorm { kind: NormKind::Layer, bias: Some(self.floats(&bias)?), ..plain.clone() };
        let norm = Normalise { kind: NormKind::Rms, eps, width: cols, weight: Some(&weight), bias: None };
        let (mut want, mut of_layer, mut sum) = (vec![0.0; rows * cols], vec![0.0; rows * cols], added.clone());
        normalise(norm, &x, cols, cols, &mut want);
        normalise(Normalise { kind: NormKind::Layer, bias: Some(&bias), ..norm }, &x, cols, cols, &mut of_layer);
        add_scaled(&want, 1.0, &mut sum, cols, None);
        for (name, by, added, ordered, want) in [
            ("norm_f32", &plain, None, false, &want),
            ("norm_f32, in lane order", &plain, None, true, &want),
            ("norm_f32, layer", &layer, None, false, &of_layer),
            ("norm_f32, added", &plain, Some(&of_added), false, &sum),
        ] {
            let added = added.map(GpuSlice::view);
            let found =
                self.run(&y, |list, y| list.norm(kernels, (of_x.view(), rows), by, y, NormWith { added, ordered, scale: 1.0 }))?;
            let found = if ordered { out_of_lane_order(&found, cols) } else { found };
            self.add(name.to_string(), 1e-6, &found, want);
        }
        Ok(())
    }

    fn argmax(&mut self) -> Result<()> {
        let (rows, count, cap) = (2, 5003, 0.75f32);
        let (scores, of_row) = (noise(rows * count, 6), BestToken::words(count));
        let (kernels, of_scores, y) = (self.gpu.row_kernels()?, self.floats(&scores)?, self.slice(&vec![0; rows * of_row])?);
        let found = self.run(&y, |list, y| list.argmax(kernels, (of_scores.view(), rows, count), Some(cap), y))?;
        // The id as well as what it is worth.
        let values = |id: u32, logprob: f32| [id as f32, logprob];
        let best = found.chunks_exact(of_row).map(BestToken::of);
        let found: Vec<f32> = best.flat_map(|best| values(best.id, best.logprob)).collect();
        let mut want = Vec::new();
        for row in scores.chunks_exact(count) {
            let mut row = row.to_vec();
            scale_softcap(&mut row, 1.0, Some(cap));
            let best = highest(&row).unwrap_or(f32::NAN);
            let id = first_at(&row, best).unwrap_or(0);
            want.extend(values(id as u32, -exp_sum(&row, best).ln() as f32));
        }
        self.add("argmax".into(), 1e-6, &found, &want);
        Ok(())
    }

    /// Tokens one after another, so many that the ring comes round.
    fn short_conv(&mut self) -> Result<()> {
        let (taps, channels, tokens) = (4, 416, 40);
        let (inputs, weight, bias) = (noise(tokens * 3 * channels, 21), noise(taps * channels, 22), noise(channels, 23));
        let part = |part: usize| {
            let rows = inputs.chunks_exact(3 * channels);
            rows.flat_map(|row| &row[part * channels..][..channels]).copied().collect::<Vec<f32>>()
        };
        let [b, c, x] = [part(0), part(1), part(2)];
        let gated: Vec<f32> = b.iter().zip(&x).map(|(b, x)| b * x).collect();
        let mut want = vec![0.0; tokens * channels];
        let mut memory = ConvMemory::new(channels, taps);
        let by = Taps { weight: &weight, bias: Some(&bias), channels };
        convolve(by, Strided { values: &gated, stride: channels }, &mut memory, &mut want).map_err(candle_core::Error::wrap)?;
        want.iter_mut().zip(&c).for_each(|(y, c)| *y *= c);

        let (kernels, ring) = (self.gpu.row_kernels()?, self.slice(&vec![u32::MAX; RING * channels])?);
        let (of_weight, of_bias, y) = (self.floats(&weight)?, self.floats(&bias)?, self.slice(&vec![0; channels])?);
        let mut found = Vec::new();
        for (position, row) in inputs.chunks_exact(3 * channels).enumerate() {
            let (own, at) = (self.floats(row)?, self.slice(&[position as u32, 0, 0, 0])?);
            found.extend(self.run(&y, |list, out| {
                let (inputs, position, weight) = (own.view(), at.view(), of_weight.view());
                let (bias, ring) = (Some(of_bias.view()), ring.view());
                list.short_conv(kernels, ConvolutionRow { inputs, position, taps, channels, weight, bias, ring, out })
            })?);
        }
        self.add("short_conv".into(), 1e-6, &out_of_lane_order(&found, channels), &want);
        Ok(())
    }

    /// Tokens one after another, over the ends of two chunks.
    fn delta_net(&mut self) -> Result<()> {
        let shape = ScanShape { heads: 4, groups: 2, key_dim: 128, value_dim: 128, rule: ScanRule::Delta };
        let ScanShape { heads, groups, key_dim, value_dim, .. } = shape;
        let (taps, tokens, eps, length_eps) = (4, 35, 1e-3f32, 1e-6f32);
        let (keys, values) = (groups * key_dim, heads * value_dim);
        let channels = 2 * keys + values;
        let all = channels + values + 2 * heads;
        let (inputs, conv, norm) = (noise(tokens * all, 31), noise(taps * channels, 32), noise(value_dim, 33));
        let (bias, rates) = (noise(heads, 34), noise(heads, 35).iter().map(|x| -x.abs()).collect::<Vec<f32>>());

        // The CPU's.
        let of = |first: usize| Strided { values: &inputs[first..], stride: all };
        let rows = |first: usize, width: usize| {
            inputs.chunks_exact(all).flat_map(|row| &row[first..][..width]).copied().collect::<Vec<f32>>()
        };
        let no_memory = candle_core::Error::wrap;
        let mut line = vec![0.0; tokens * channels];
        let mut memory = ConvMemory::new(channels, taps);
        convolve(Taps { weight: &conv, bias: None, channels }, of(0), &mut memory, &mut line).map_err(no_memory)?;
        let silu = |x: f32| x / (1.0 + (-x).exp());
        line.iter_mut().for_each(|x| *x = silu(*x));
        let unit = |first: usize, scale: f32| {
            let heads = line.chunks_exact(channels).flat_map(|row| row[first..][..keys].chunks_exact(key_dim));
            let unit = heads.flat_map(|head| {
                let length = (head.iter().map(|x| x * x).sum::<f32>() + length_eps).sqrt();
                head.iter().map(move |x| scale * x / length)
            });
            unit.collect::<Vec<f32>>()
        };
        let (q, k) = (unit(0, 1.0 / (key_dim as f32).sqrt()), unit(keys, 1.0));
        let mut g = vec![0.0; tokens * heads];
        let by = Decaying { bias: &bias, rate: Some(&rates), limits: (0.0, f32::INFINITY) };
        decay(of(channels + values + heads), by, &mut g);
        let beta: Vec<f32> = rows(channels + values, heads).iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        let whole = |values, stride| Strided { values, stride };
        let (mut read, mut memory) = (vec![0.0; tokens * values], ScanMemory::new(shape));
        let scanned = ScanInputs {
            q: whole(&q, keys),
            k: whole(&k, keys),
            v: Strided { values: &line[2 * keys..], stride: channels },
            g: whole(&g, heads),
            beta: whole(&beta, heads),
            skip: None,
        };
        scan(scanned, &mut memory, &mut read).map_err(no_memory)?;
        let mut want = vec![0.0; tokens * values];
        let of_norm = Normalise { kind: NormKind::Rms, eps, width: value_dim, weight: Some(&norm), bias: None };
        normalise(of_norm, &read, values, values, &mut want);
        want.iter_mut().zip(rows(channels, values)).for_each(|(y, gate)| *y *= silu(gate));

        let by = GpuDeltaNet {
            shape,
            taps,
            conv: self.floats(&conv)?,
            bias: self.floats(&bias)?,
            rates: self.floats(&rates)?,
            length_eps,
            norm: GpuNorm { kind: NormKind::Rms, eps, width: value_dim, weight: self.floats(&norm)?, bias: None },
        };
        let (kernels, ring) = (self.gpu.row_kernels()?, self.slice(&vec![0; RING * channels])?);
        let state = self.slice(&vec![0; heads * (key_dim * value_dim + CHUNK * (key_dim + value_dim + 1))])?;
        let (y, mut found) = (self.slice(&vec![0; values])?, Vec::new());
        for (position, row) in inputs.chunks_exact(all).enumerate() {
            let (own, start) = (self.floats(row)?, chunk_start(position));
            let at = self.slice(&[position as u32, start as u32, 0, 0])?;
            // Once: where a chunk ends, a second run would add it again.
            let mut list = self.gpu.list();
            let (inputs, position, ring, state) = (own.view(), at.view(), ring.view(), state.view());
            list.delta_net(kernels, DeltaNetRow { inputs, position, by: &by, ring, state, out: y.view() })?;
            list.start()?;
            found.extend(self.read(&y)?);
        }
        self.add("delta_net".into(), 1e-5, &out_of_lane_order(&found, values), &want);
        Ok(())
    }

    /// A matrix as the kernels have it, and the values that they read: what becomes of a file's scales is no matter of theirs.
    fn weight(&self, element: Element, format: Format, outputs: usize, inputs: usize) -> Result<(GpuWeight, Vec<f32>)> {
        if format == Format::F16 {
            let values: Vec<f32> = noise(outputs * inputs, 5).iter().map(|x| 0.1 * x).collect();
            let (codes, kernels) = (self.slice(&stored(&values, element))?, self.gpu.product_kernels(element, GpuFormat::dense)?);
            return Ok((GpuWeight::new(kernels, (outputs, inputs), 0, codes, None)?, rounded(&values, element)));
        }
        let matrix = GpuMatrix::new(&[(outputs, format)], inputs);
        let bytes = weights_of(format, outputs, inputs);
        let matrix = matrix.and_then(|mut matrix| matrix.fill(0, &bytes, format).then_some(matrix));
        let Some(matrix) = matrix else { bail!("its matrix could not be made") };
        let mut values = vec![0.0; outputs * inputs];
        values.chunks_exact_mut(inputs).enumerate().for_each(|(row, out)| matrix.row(row, out));
        let kernels = self.gpu.product_kernels(element, matrix.format())?;
        let group_shift = matrix.group_shift();
        let (codes, extra, scales) = matrix.parts();
        let scales: Vec<u16> = scales.iter().map(|scale| scale.to_bits()).collect();
        let others = (self.slice(extra)?, self.slice(&pairs(&scales))?);
        Ok((GpuWeight::new(kernels, (outputs, inputs), group_shift, self.slice(codes)?, Some(others))?, values))
    }

    fn products(&mut self, element: Element, format: Format) -> Result<()> {
        let name = if format == Format::F16 { element.name() } else { format.name() };
        let name =
            if element == Element::BF16 && format != Format::F16 { format!("{name} beside bf16") } else { name.to_string() };
        self.some_products(element, format, (64, 768), &name)?;
        if is_wide_too(format) { self.some_products(element, format, (4160, 256), &format!("{name}, wide")) } else { Ok(()) }
    }

    /// Of one row, whose input a threadgroup holds or reads where it is, and of several; with all that may come with them.
    fn some_products(&mut self, element: Element, format: Format, (outputs, inputs): (usize, usize), name: &str) -> Result<()> {
        const ROWS: usize = 3;
        let (weight, values) = self.weight(element, format, outputs, inputs)?;
        let (x, norm, bias) = (noise(ROWS * inputs, 3), noise(inputs, 4), noise(outputs, 7));
        let (residual, eps, scale) = (noise(ROWS * outputs, 8), 1e-3f32, 0.5f32);
        let no_memory = || candle_core::Error::msg("no memory for the CPU's");
        let packed = Packed::from_f32(&values, inputs, Use::Product).ok_or_else(no_memory)?;
        let product = |x: &[f32]| {
            let mut y = vec![0.0; x.len() / inputs * outputs];
            matmul(x, inputs, &packed, Epilogue::default(), &mut y).map_err(candle_core::Error::wrap)?;
            Ok::<_, candle_core::Error>(y)
        };
        let plain = product(&x)?;
        let with_residual: Vec<f32> = residual.iter().zip(&plain).map(|(sum, y)| sum + scale * y).collect();
        let mut normed = vec![0.0; inputs];
        let by = Normalise { kind: NormKind::Rms, eps, width: inputs, weight: Some(&norm), bias: None };
        normalise(by, &x[..inputs], inputs, inputs, &mut normed);
        let with_norm: Vec<f32> = product(&normed)?.iter().zip(&bias).map(|(y, bias)| y + bias).collect();
        let half = outputs / 2;
        let mut activated = vec![0.0; ROWS * half];
        gated(Activation::Silu, &plain, half, &mut activated);

        let (of_x, of_ordered) = (self.floats(&x)?, self.floats(&in_lane_order(&x, inputs))?);
        let [of_norm, of_bias, of_residual] = [self.floats(&norm)?, self.floats(&bias)?, self.floats(&residual)?];
        let mut found = Vec::new();
        let mut add = |kernel: &str, rows: usize, made: usize, with: ProductWith<'_>, want: &[f32]| {
            let y = self.slice(&vec![0; rows * made])?;
            let row = if with.ordered { &of_ordered } else { &of_x };
            let out = self.run(&y, |list, y| list.product(&weight, row.view(), y, ProductWith { rows, ..with }))?;
            let out = if with.activation.is_some() { out_of_lane_order(&out, made) } else { out };
            found.push((format!("{kernel}, {name}"), out, want[..rows * made].to_vec()));
            Ok::<_, candle_core::Error>(())
        };
        let ordered = ProductWith { residual: Some(of_residual.view()), scale, ordered: true, ..ProductWith::default() };
        let with = ProductWith { norm: Some((of_norm.view(), eps)), bias: Some(of_bias.view()), ..ProductWith::default() };
        let gate = ProductWith { activation: Some((Gated::Yes, Activation::Silu)), ..ProductWith::default() };
        add("product", ROWS, outputs, ProductWith::default(), &plain)?;
        add("product, norm", 1, outputs, with, &with_norm)?;
        add("product_direct", 1, outputs, ordered, &with_residual)?;
        add("product_direct, rows", ROWS, outputs, ordered, &with_residual)?;
        add("product_gated", 1, half, gate, &activated)?;
        add("product_gated_direct, rows", ROWS, half, ProductWith { ordered: true, ..gate }, &activated)?;
        for (kernel, out, want) in found {
            // Behind an activation's slope errors are larger than before.
            self.add(kernel.clone(), if kernel.contains("gated") { 1.6e-4 } else { 4e-5 }, &out, &want);
        }

        let (ids, y) = (self.slice(&[7, 0])?, self.slice(&vec![0; 2 * inputs])?);
        let out = self.run(&y, |list, y| list.decode(&weight, DecodedRows::ById(ids.view(), 2), 1.0, y, false))?;
        self.add(format!("rows, {name}"), 1e-6, &out, &[&values[7 * inputs..][..inputs], &values[..inputs]].concat());
        let y = self.slice(&vec![0; 2 * inputs * element.bytes() / 4])?;
        let out = self.run(&y, |list, y| list.decode(&weight, DecodedRows::Neighbours(5..7), 0.5, y, true))?;
        let want: Vec<f32> = values[5 * inputs..7 * inputs].iter().map(|x| 0.5 * x).collect();
        // A value between two of the type may become either.
        let limit = if element == Element::BF16 { 1e-4 } else { 2e-5 };
        self.add(format!("rows_t, {name}"), limit, &widened(&out, element), &rounded(&want, element));
        Ok(())
    }

    /// The last two tokens of so many: one whose keys one threadgroup has, and one whose keys several share.
    fn attention(&mut self, element: Element, dim: usize) -> Result<()> {
        for (length, capacity) in [(70, 80), (1030, 1040)] {
            for (name, window, softcap, has_sinks, pairs) in [
                ("all", None, None, false, RopePairs::Halves),
                ("adjacent pairs", None, None, false, RopePairs::Adjacent),
                ("window", Some(20), None, false, RopePairs::Halves),
                ("softcap", None, Some(3.0), false, RopePairs::Halves),
                ("sinks", None, None, true, RopePairs::Halves),
            ] {
                let mask = Mask { causal: true, window, scale: 0.125, softcap };
                let name = format!("attention, {}, {dim}, {length} keys, {name}", element.name());
                self.attention_of(element, dim, (length, capacity), mask, (has_sinks, pairs), &name)?;
            }
        }
        Ok(())
    }

    fn attention_of(
        &mut self,
        element: Element,
        dim: usize,
        (length, capacity): (usize, usize),
        mask: Mask,
        (has_sinks, pairs): (bool, RopePairs),
        name: &str,
    ) -> Result<()> {
        let (counts, eps, half) = (HeadCounts { heads: 8, kv_heads: 2 }, 1e-3f32, dim / 4);
        let HeadCounts { heads, kv_heads } = counts;
        let (all, width) = ((heads + 2 * kv_heads) * dim, heads * dim);
        let qkv = noise(length * all, 11);
        let (q_weight, k_weight, sinks) = (noise(dim, 12), noise(dim, 13), noise(heads, 14));
        let angle = |i: usize| (i / half) as f64 / 10000f64.powf((i % half) as f64 / half as f64);
        let cos: Vec<f32> = (0..length * half).map(|i| angle(i).cos() as f32).collect();
        let sin: Vec<f32> = (0..length * half).map(|i| angle(i).sin() as f32).collect();

        // The CPU's, of keys and values as they are stored.
        let turned = |first: usize, count: usize, weight: &[f32]| {
            let x: Vec<f32> = qkv.chunks_exact(all).flat_map(|row| &row[first * dim..][..count * dim]).copied().collect();
            let norm = Normalise { kind: NormKind::Rms, eps, width: dim, weight: Some(weight), bias: None };
            let (mut normed, mut turned) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            normalise(norm, &x, count * dim, count * dim, &mut normed);
            rotate(&normed, count * dim, count, dim, pairs == RopePairs::Adjacent, &cos, &sin, half, &mut turned);
            turned
        };
        let queries = turned(0, heads, &q_weight);
        let keys = rounded(&turned(heads, kv_heads, &k_weight), element);
        let of_row = |row: &[f32]| row[(heads + kv_heads) * dim..].to_vec();
        let values = rounded(&qkv.chunks_exact(all).flat_map(of_row).collect::<Vec<_>>(), element);
        let mut cache = KvHeads::new(kv_heads, dim, KvFormat::F32);
        cache.append(&keys, kv_heads * dim, &values, kv_heads * dim, length).map_err(candle_core::Error::wrap)?;
        let mut want = vec![0.0; 2 * width];
        let last = &queries[(length - 2) * width..];
        attend(last, width, heads, &cache, mask, has_sinks.then_some(&sinks), &mut want);

        // (position, head, dim) as (head, capacity, dim), without the last two: those the kernels bring.
        let before = |rows: &[f32]| {
            let mut to = vec![0.0; kv_heads * capacity * dim];
            for (i, vector) in rows.chunks_exact(dim).take((length - 2) * kv_heads).enumerate() {
                to[(i % kv_heads * capacity + i / kv_heads) * dim..][..dim].copy_from_slice(vector);
            }
            self.slice(&stored(&to, element))
        };
        let (of_keys, of_values) = (before(&keys)?, before(&values)?);
        let kernels = self.gpu.attention_kernels(element, dim)?;
        let norms = QkNorms { q: self.floats(&q_weight)?, k: self.floats(&k_weight)?, eps, after: false, each: false };
        let (of_sinks, y) = (self.floats(&sinks)?, self.slice(&vec![0; width])?);
        let parts = self.slice(&vec![0; heads * MOST_SPLITS * (dim + 2)])?;
        let mut found = Vec::new();
        for at in length - 2..length {
            let turns: Vec<f32> = (at * half..(at + 1) * half).flat_map(|i| [cos[i], sin[i]]).collect();
            let angles = GpuAngles { queries: self.floats(&turns)?, keys: self.floats(&turns)?, half };
            let (own, position) = (self.floats(&qkv[at * all..][..all])?, self.slice(&[at as u32, 0, 0, 0])?);
            found.extend(self.run(&y, |list, out| {
                let cache = GpuCache { keys: of_keys.view(), values: of_values.view(), capacity };
                list.attention(
                    kernels,
                    AttentionRow {
                        counts,
                        qkv: own.view(),
                        layout: QkvLayout { keys: KeysPart::Own, gate: GatePart::None },
                        v_norm: None,
                        norms: Some(&norms),
                        angles: Some((&angles, pairs)),
                        cache,
                        position: position.view(),
                        length: at + 1,
                        mask,
                        sinks: has_sinks.then(|| of_sinks.view()),
                        out,
                        parts: parts.view(),
                    },
                )
            })?);
        }
        self.add(name.to_string(), 1e-5, &out_of_lane_order(&found, width), &want);
        let held = |slice: &GpuSlice| {
            let all = widened(&self.read(slice)?, element);
            let vector = |t: usize, h: usize| all[(h * capacity + t) * dim..][..dim].to_vec();
            let rows = (0..length).flat_map(|t| (0..kv_heads).map(move |h| (t, h)));
            Ok::<_, candle_core::Error>(rows.flat_map(|(t, h)| vector(t, h)).collect::<Vec<f32>>())
        };
        // A value between two of the type may become either.
        let limit = if element == Element::BF16 { 2e-4 } else { 2e-5 };
        let (found, want) = ([held(&of_keys)?, held(&of_values)?].concat(), [keys, values].concat());
        self.add(format!("{name}, cache"), limit, &found, &want);
        Ok(())
    }
}
