use super::backward::Transpose;
use super::*;
use crate::kernels::format::Format;
use crate::kernels::packed::Use;
use crate::kernels::planes::Planes;
use crate::kernels::simd::Portable;
use crate::kernels::{noise, random_blocks};

fn pack(values: &[f32], rows: usize, cols: usize, kept: Format) -> Packed {
    let mut packed = Packed::new(rows, cols, kept, Use::Product).unwrap();
    assert!(packed.fill_f32(0, values));
    packed
}

/// The formats that numbers of so many columns are written in.
fn written(cols: usize) -> impl Iterator<Item = Format> {
    Format::written().filter(move |format| *format == Format::Q8_0 || cols.is_multiple_of(format.block()))
}

#[test]
fn every_shape_equals_the_naive_product() {
    for (rows, n, k) in [
        (1, 1, 1),
        (1, 16, 7),
        (3, 17, 32),
        (5, 31, 9),
        (12, 32, 64),
        (13, 48, 33),
        (130, 70, 1100),
        (7, 100, 2100),
        (5, 40, 1280),
    ] {
        for kept in written(k) {
            let (x, w, bias) = (noise(rows * k, 1), noise(n * k, 2), noise(n, 3));
            let packed = pack(&w, n, k, kept);
            let mut y = vec![f32::NAN; rows * n];
            matmul(&x, k, &packed, Epilogue { bias: Some(&bias), ..Epilogue::default() }, &mut y).unwrap();
            for t in 0..rows {
                for o in 0..n {
                    let mut row = vec![0.0; k];
                    packed.row(o, &mut row);
                    let want: f64 = (0..k).map(|i| f64::from(x[t * k + i]) * f64::from(row[i])).sum::<f64>() + f64::from(bias[o]);
                    assert!((f64::from(y[t * n + o]) - want).abs() < 1e-4, "{rows} {n} {k}: {} {want}", y[t * n + o]);
                }
            }
        }
    }
}

#[test]
fn products_with_the_transpose_and_sums_over_rows_equal_the_naive_ones() {
    for (rows, n, k) in [(1, 1, 1), (3, 17, 32), (13, 48, 33), (130, 600, 70), (70, 33, 1100), (9, 50, 768)] {
        // Rows that lie apart: what is between them stays.
        let (x, w, y) = (noise(rows * (n + 3), 1), noise(n * k, 2), noise(rows * (k + 2), 3));
        for kept in written(k) {
            let packed = pack(&w, n, k, kept);
            let mut sum = y.clone();
            matmul_transposed_add(rows, (&x, n + 3), &packed, (&mut sum, k + 2)).unwrap();
            let mut rows_of_w = vec![0.0; n * k];
            rows_of_w.chunks_exact_mut(k).enumerate().for_each(|(o, row)| packed.row(o, row));
            for (i, (sum, y)) in sum.iter().zip(&y).enumerate() {
                let (row, col) = (i / (k + 2), i % (k + 2));
                let product = |o: usize| f64::from(x[row * (n + 3) + o]) * f64::from(rows_of_w[o * k + col]);
                let outputs = if col < k { 0..n } else { 0..0 };
                let want = f64::from(*y) + outputs.map(product).sum::<f64>();
                assert!((f64::from(*sum) - want).abs() < 1e-4, "{rows} {n} {k}: {sum} {want}");
            }
        }
        let a = noise(rows * 6, 4);
        let mut sum = vec![f32::NAN; 5 * n];
        outer_sum(rows, (&a, 6), (&x, n + 3), n, &mut sum);
        for (i, sum) in sum.iter().enumerate() {
            let want = (0..rows).map(|t| f64::from(a[t * 6 + i / n]) * f64::from(x[t * (n + 3) + i % n])).sum::<f64>();
            assert!((f64::from(*sum) - want).abs() < 1e-4, "{rows} {n}: {sum} {want}");
        }
    }
}

#[test]
fn an_epilogue_changes_its_outputs_alone() {
    let (n, k) = (600, 70);
    // Start, rank, outputs: they begin and end within panels, overlap, and cross the threads' parts.
    let terms = [(37, 3, 401), (1, 5, 17), (438, 1030, 20), (599, 2, 1), (16, 4, 48)];
    for (rows, kept) in [1, 29, 250].into_iter().flat_map(|rows| written(1).map(move |kept| (rows, kept))) {
        let (x, packed) = (noise(rows * k, 1), pack(&noise(n * k, 2), n, k, kept));
        let (gain, bias) = (noise(n, 3), noise(n, 4));
        let b = terms.map(|(_, rank, n)| pack(&noise(n * rank, 5), n, rank, kept));
        // Inner values of neighbouring rows lie apart.
        let inner = terms.map(|(_, rank, ..)| noise(rows * (rank + 1), 6));
        let product = |first: usize, rows: usize, all: bool, nan: bool| {
            let none = inner.each_ref().map(|inner| vec![f32::NAN; inner.len()]);
            let term = |i: usize| {
                let (start, rank, _) = terms[i];
                let inner = &(if nan { &none } else { &inner })[i][first * (rank + 1)..][..rows * (rank + 1)];
                LowRankTerm { inner, stride: rank + 1, b: &b[i], start }
            };
            let low_rank = [0, 1, 2, 3, 4].map(term);
            let low_rank = if all { &low_rank[..] } else { &[] };
            let epilogue = Epilogue { gain: Some(&gain), bias: Some(&bias), low_rank };
            matmul_new(&x[first * k..], k, &packed, epilogue, rows).unwrap()
        };
        let (found, plain) = (product(0, rows, true, false), product(0, rows, false, false));
        let mut want: Vec<f64> = plain.iter().map(|y| f64::from(*y)).collect();
        let mut changed = vec![false; n];
        for (((start, rank, n_of), b), inner) in terms.into_iter().zip(&b).zip(&inner) {
            let mut row = vec![0.0; rank];
            for o in 0..n_of {
                b.row(o, &mut row);
                changed[start + o] = true;
                for (t, inner) in inner.chunks_exact(rank + 1).enumerate() {
                    want[t * n + start + o] += inner.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                }
            }
        }
        for (i, (found, want)) in found.iter().zip(&want).enumerate() {
            assert!((f64::from(*found) - want).abs() < 1e-4, "{kept:?}, {rows} rows, {i}: {found} {want}");
        }
        for (i, (found, plain)) in product(0, rows, true, true).iter().zip(&plain).enumerate() {
            let same = if changed[i % n] { found.is_nan() } else { found.to_bits() == plain.to_bits() };
            assert!(same, "{kept:?}, {rows} rows, {i}: {found} {plain}");
        }
        for (t, all) in found.chunks_exact(n).enumerate() {
            assert_eq!(product(t, 1, true, false), all, "{kept:?}, row {t}");
        }
        // Without terms and with no factor it is the product alone.
        let mut alone = vec![0.0; rows * n];
        matmul(&x, k, &packed, Epilogue::default(), &mut alone).unwrap();
        for ((y, plain), (g, b)) in alone.iter().zip(&plain).zip(gain.iter().zip(&bias).cycle()) {
            assert_eq!(y * g + b, *plain);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    let (rows, n, k) = (29, 75, 1536);
    let x = noise(rows * k, 5);
    for kept in written(k) {
        let packed = pack(&noise(n * k, 6), n, k, kept);
        let mut all = vec![0.0; rows * n];
        matmul(&x, k, &packed, Epilogue::default(), &mut all).unwrap();
        for t in 0..rows {
            let mut one = vec![0.0; n];
            matmul(&x[t * k..][..k], k, &packed, Epilogue::default(), &mut one).unwrap();
            assert_eq!(one, all[t * n..][..n], "{kept:?}");
        }
    }
}

#[test]
fn a_quantised_matrix_gives_the_bits_of_the_one_that_it_stands_for() {
    let (rows, n, k) = (29, 75, 1500);
    let (x, quantised) = (noise(rows * k, 5), pack(&noise(n * k, 6), n, k, Format::Q8_0));
    let mut values = vec![0.0; n * k];
    values.chunks_exact_mut(k).enumerate().for_each(|(o, row)| quantised.row(o, row));
    let dense = pack(&values, n, k, Format::F32);
    let product = |packed: &Packed| {
        let mut y = vec![0.0; rows * n];
        matmul(&x, k, packed, Epilogue::default(), &mut y).unwrap();
        let mut back = vec![0.0; rows * k];
        matmul_transposed_add(rows, (&y, n), packed, (&mut back, k)).unwrap();
        (y, back)
    };
    assert_eq!(product(&quantised), product(&dense));
}

/// Sixteen rows of each of these formats and five more of the last, and the same in F32.
fn of_formats(formats: &[Format], k: usize) -> (Packed, Packed) {
    let rows = |i: usize| if i + 1 < formats.len() { LANES } else { LANES + 5 };
    let parts: Vec<_> = formats.iter().enumerate().map(|(i, format)| (rows(i), *format)).collect();
    let (mut packed, mut values) = (Packed::of_parts(&parts, k, Use::Product).unwrap(), Vec::new());
    assert!(matches!(packed.panels, Panels::Planes(_)));
    for (rows, format) in parts {
        let blocks = random_blocks(format, rows * k / format.block(), k as u64);
        assert!(packed.fill(values.len() / k, &blocks, format));
        values.extend(format.widen(&blocks));
    }
    let n = packed.rows;
    (packed, pack(&values, n, k, Format::F32))
}

/// The same, or what sums of numbers near the largest become.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

#[test]
fn a_matrix_of_a_file_gives_the_bits_of_the_one_that_it_stands_for() {
    let quantised: Vec<Format> = Format::all().filter(|format| format.is_quantised()).collect();
    let each = quantised.iter().map(std::slice::from_ref);
    let mixed: [&[Format]; 2] = [&[Format::Q4_K, Format::Q4_K, Format::Q6_K], &quantised];
    for formats in each.chain(mixed) {
        // Blocks of columns with a short one behind them.
        let k = 1280;
        let (planes, dense) = of_formats(formats, k);
        for rows in [1, 2, 5, 29] {
            let (x, bias) = (noise(rows * k, 5), noise(planes.rows, 6));
            let a = noise(rows * 3, 7);
            let b = pack(&noise(3 * planes.rows, 8), planes.rows, 3, Format::F32);
            let product = |packed: &Packed| {
                let low_rank = [LowRankTerm { inner: &a, stride: 3, b: &b, start: 0 }];
                let epilogue = Epilogue { bias: Some(&bias), low_rank: &low_rank, ..Epilogue::default() };
                let y = matmul_new(&x, k, packed, epilogue, rows).unwrap();
                let mut back = vec![0.0; rows * k];
                matmul_transposed_add(rows, (&noise(rows * packed.rows, 9), packed.rows), packed, (&mut back, k)).unwrap();
                (y, back)
            };
            let (found, want) = (product(&planes), product(&dense));
            assert!(same(&found.0, &want.0) && same(&found.1, &want.1), "{formats:?}, {rows} rows");
        }
    }
}

#[test]
fn every_instruction_set_gives_the_products_of_the_matrix_that_a_file_stands_for() {
    let quantised: Vec<Format> = Format::all().filter(|format| format.is_quantised()).collect();
    for (formats, rows) in quantised.iter().map(std::slice::from_ref).chain([&*quantised]).flat_map(|f| [(f, 17), (f, 1)]) {
        let k = 256;
        let (packed, dense) = of_formats(formats, k);
        let (x, shape) = (noise(rows * k, 8), (packed.rows, k));
        let (Panels::Planes(planes), Panels::F32(dense)) = (&packed.panels, &dense.panels) else { continue };
        let runs = crate::kernels::simd::levels::<Products<'_, &Planes>>();
        for ((name, run), (_, run_dense)) in runs.into_iter().zip(crate::kernels::simd::levels::<Products<'_, &[f32]>>()) {
            let (found, want) = (run(Products(&x, planes, shape)), run_dense(Products(&x, dense, shape)));
            assert!(same(&found, &want), "{formats:?}, {rows} rows: {name}");
        }
    }
}

struct Products<'a, W>(&'a [f32], W, (usize, usize));

impl<W: PanelSource> Kernel for Products<'_, W> {
    type Output = Vec<f32>;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<f32> {
        let Self(x, w, (n, k)) = self;
        let (rows, outputs) = (x.len() / k, 0..n);
        let (mut y, mut transposed) = (vec![0.0; rows * n], vec![0.0; n * k.next_multiple_of(LANES)]);
        let (start, y_stride) = (Start::Bias(None), n);
        let part = Partition { x, x_stride: k, w, k, start, y: Shared::new(&mut y), y_stride, rows: 0..rows, outputs };
        let transpose = Transpose { w, k, outputs: 0..n, panels: 0..k.div_ceil(LANES), transposed: &mut transposed };
        // SAFETY: passed on from the caller.
        unsafe {
            part.run::<S>();
            transpose.run::<S>();
        }
        y.extend(transposed);
        y
    }
}

#[test]
fn every_instruction_set_gives_the_same_products() {
    fn compare<W: PanelSource>(x: &[f32], w: W, shape: (usize, usize)) {
        let widest = dispatch(Products(x, w, shape));
        for (name, run) in crate::kernels::simd::levels::<Products<'_, W>>() {
            for (a, b) in run(Products(x, w, shape)).iter().zip(&widest) {
                // Without a fused multiply-add each step rounds once more.
                let unfused = name == "portable" && !Portable::FUSED;
                assert!((a - b).abs() <= if unfused { 1e-5 } else { 0.0 }, "{name}: {a} {b}");
            }
        }
    }
    let (n, k) = (50, 70);
    for (kept, rows) in written(k).flat_map(|kept| [(kept, 17), (kept, 1)]) {
        let x = noise(rows * k, 8);
        match &pack(&noise(n * k, 9), n, k, kept).panels {
            Panels::F32(w) => compare(&x, w.as_slice(), (n, k)),
            Panels::F16(w) => compare(&x, w.as_slice(), (n, k)),
            Panels::BF16(w) => compare(&x, w.as_slice(), (n, k)),
            Panels::Planes(w) => compare(&x, w, (n, k)),
            Panels::Blocks(..) => unreachable!(),
        }
    }
}
