//! Rows of quantised matrices, made when they are read: blocks of a format that holds the very same values, or numbers.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::super::read_count::Reading;
use super::super::safetensors::Checkpoint;
use super::{MlxCodes, MlxFloat, Quantization};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Entry, TensorSource};
use crate::ops::{self, Format};

/// A checkpoint with quantised matrices as a source of those that the library knows.
pub struct QuantizedCheckpoint<'a> {
    checkpoint: Checkpoint<'a>,
    matrices: HashMap<String, Matrix>,
    /// What stands for a matrix and is none of its own.
    hidden: HashSet<String>,
    /// The matrix that was read last, with what all its rows need.
    last: Option<(String, Loaded)>,
}

/// A quantised matrix.
struct Matrix {
    entry: Entry,
    /// Rows and columns; of matrices of several experts the rows of all.
    dims: [usize; 2],
    /// The name of its module, with a dot behind it.
    module: String,
    codes: Codes,
}

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Codes {
    /// A little-endian stream of bits a row; `scale · q + bias` of groups of columns.
    Mlx { bits: usize, group: usize },
    /// The same of floats, whose scales are bytes too.
    MlxFloat(MlxFloat),
    /// A byte each; scales of blocks of so many rows and columns.
    Fp8 { block: [usize; 2] },
    /// The same of whole numbers with a sign.
    Int8 { block: [usize; 2] },
    /// Stored by columns, eight outputs a number in an order of their own.
    Awq { group: usize },
    /// Stored by columns, several of them a number.
    Gptq { bits: usize, group: usize, less_one: bool },
    /// Several columns a number, from the lowest bits on.
    Packed { bits: usize, group: usize, zeros: bool },
}

/// Rows that one thread makes at once: of codes that are stored by columns, those of a cache line.
const ROWS_AT_ONCE: usize = 64;

/// In which place of its number AWQ keeps each of eight outputs.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// What all rows of a matrix need, in memory.
#[derive(Default)]
struct Loaded {
    scales: Vec<f32>,
    /// Biases (MLX) or zeros, as many as scales; empty where there are none.
    offsets: Vec<f32>,
    /// All codes, where they are stored by columns; of MLX's floats the scales as they are stored.
    codes: Vec<u8>,
}

impl<'a> QuantizedCheckpoint<'a> {
    /// # Errors
    /// `Format` for tensors that do not go together, naming them; `Unsupported` for columns in another order.
    pub fn new(mut checkpoint: Checkpoint<'a>, quantization: &Quantization) -> Result<Self> {
        let names: Vec<String> = checkpoint.names().into_iter().map(str::to_string).collect();
        let (mut matrices, mut hidden) = (HashMap::new(), HashSet::new());
        // What says that a module is quantised, and what else belongs to it.
        let (marks, others): (&[&str], &[&str]) = match quantization {
            Quantization::Mlx(_) => (&["scales"], &["biases"]),
            // Scales have either name, by whoever wrote them.
            Quantization::Fp8 { .. } => (&["weight_scale", "weight_scale_inv"], &["input_scale", "activation_scale"]),
            Quantization::Awq { .. } => (&["qweight"], &["qzeros", "scales"]),
            Quantization::Gptq { .. } => (&["qweight"], &["qzeros", "scales", "g_idx"]),
            Quantization::Packed { .. } => (&["weight_packed"], &["weight_scale", "weight_shape", "weight_zero_point"]),
            Quantization::Int8 { .. } => (&["weight_scale"], &["input_scale", "input_zero_point"]),
            Quantization::Groups(_) => (
                &["weight_packed", "weight_scale"],
                &["weight_shape", "weight_zero_point", "input_scale", "input_zero_point", "activation_scale"],
            ),
        };
        for name in &names {
            if is_of_kv_cache(name) {
                hidden.insert(name.clone());
                continue;
            }
            let module = marks.iter().find_map(|mark| name.strip_suffix(mark)).filter(|module| module.ends_with('.'));
            let Some(module) = module else { continue };
            // Both marks of one matrix.
            if name.ends_with("weight_scale") && checkpoint.entry(&format!("{module}weight_packed")).is_some() {
                continue;
            }
            let (dims, codes) = shape(&mut checkpoint, module, quantization)?;
            let kept = kept(&mut checkpoint, module, dims, codes)?;
            let stored = checkpoint.entry(&format!("{module}weight")).map_or(&[][..], |entry| &entry.shape);
            let shape = if let [experts, rows, _] = *stored { vec![experts, rows, dims[1]] } else { dims.to_vec() };
            let entry = Entry { shape, stored: Ok(kept) };
            let belongs = others.iter().chain(marks).map(|field| format!("{module}{field}"));
            hidden.extend(belongs.filter(|name| checkpoint.entry(name).is_some()));
            matrices.insert(format!("{module}weight"), Matrix { entry, dims, module: module.to_string(), codes });
        }
        Ok(Self { checkpoint, matrices, hidden, last: None })
    }

    fn load(&mut self, name: &str) -> Result<()> {
        if self.last.as_ref().is_some_and(|(last, _)| last == name) {
            return Ok(());
        }
        self.last = None;
        let Some(matrix) = self.matrices.get(name) else { return Ok(()) };
        let (module, checkpoint, cols) = (&matrix.module, &mut self.checkpoint, matrix.dims[1]);
        let mut loaded = Loaded::default();
        match matrix.codes {
            Codes::Mlx { .. } => {
                loaded.scales = floats(checkpoint, &format!("{module}scales"))?;
                loaded.offsets = floats(checkpoint, &format!("{module}biases"))?;
            }
            Codes::MlxFloat(kind) => {
                loaded.codes = bytes(checkpoint, &format!("{module}scales"))?;
                loaded.scales = loaded.codes.iter().map(|byte| scale_of_float(kind, *byte)).collect();
            }
            Codes::Fp8 { .. } | Codes::Int8 { .. } => {
                let scale = scale_of_bytes(checkpoint, module);
                loaded.scales = floats(checkpoint, &scale)?;
            }
            Codes::Awq { .. } => {
                loaded.scales = floats(checkpoint, &format!("{module}scales"))?;
                let zeros = bytes(checkpoint, &format!("{module}qzeros"))?;
                let places = |output: usize| output / 8 * 8 + AWQ_PLACES[output % 8];
                loaded.offsets = (0..loaded.scales.len())
                    .map(|i| code(&zeros, 4, i / matrix.dims[0] * matrix.dims[0] + places(i % matrix.dims[0])))
                    .map(|zero| zero as f32)
                    .collect();
                loaded.codes = bytes(checkpoint, &format!("{module}qweight"))?;
            }
            Codes::Gptq { bits, group, less_one } => {
                let order = format!("{module}g_idx");
                if checkpoint.entry(&order).is_some() {
                    let order = bytes(checkpoint, &order)?;
                    let in_order = |(k, bytes): (usize, &[u8; 4])| u32::from_le_bytes(*bytes) as usize == k / group;
                    if order.len() != cols * 4 || !order.as_chunks().0.iter().enumerate().all(in_order) {
                        let message =
                            format!("{module}g_idx: expected columns in order, found others: act order is not supported");
                        return Err(Error::unsupported(message));
                    }
                }
                loaded.scales = floats(checkpoint, &format!("{module}scales"))?;
                let zeros = bytes(checkpoint, &format!("{module}qzeros"))?;
                // Counted on within their bits, as the reference does.
                let zero = |i: usize| (code(&zeros, bits, i) + u32::from(less_one)) & ((1 << bits) - 1);
                loaded.offsets = (0..loaded.scales.len()).map(|i| zero(i) as f32).collect();
                loaded.codes = bytes(checkpoint, &format!("{module}qweight"))?;
            }
            Codes::Packed { bits, zeros, .. } => {
                loaded.scales = floats(checkpoint, &format!("{module}weight_scale"))?;
                if zeros {
                    // Zeros lie above one another in a number of their own group, as GPTQ's codes.
                    let stored = self::bytes(checkpoint, &format!("{module}weight_zero_point"))?;
                    let (each, groups) = (32 / bits, loaded.scales.len() / matrix.dims[0]);
                    let place = |i: usize| (i / groups / each * groups + i % groups) * each + i / groups % each;
                    loaded.offsets = (0..loaded.scales.len()).map(|i| code(&stored, bits, place(i)) as f32).collect();
                }
            }
        }
        if let Some(x) = loaded.scales.iter().chain(&loaded.offsets).find(|x| !x.is_finite()) {
            return Err(Error::format(format!("{module}: expected finite scales, found {x}")));
        }
        self.last = Some((name.to_string(), loaded));
        Ok(())
    }

    /// Whole rows of a matrix that is loaded, made by all threads.
    fn rows(&mut self, name: &str, rows: Range<usize>, into: &mut [u8]) -> Result<()> {
        let (Some(matrix), Some((_, loaded))) = (self.matrices.get(name), &self.last) else { return Ok(()) };
        let (mut stored, stored_row) = (Vec::new(), matrix.stored_rows());
        if let Some((field, bytes)) = stored_row {
            resize(&mut stored, rows.len() * bytes)?;
            self.checkpoint.read(&format!("{}{field}", matrix.module), (rows.start * bytes) as u64, &mut stored)?;
        }
        let row_bytes = into.len() / rows.len().max(1);
        let write = |(i, out): (usize, &mut [u8])| {
            let stored = match stored_row {
                Some((_, bytes)) => &stored[i * ROWS_AT_ONCE * bytes..],
                None => &loaded.codes,
            };
            matrix.write(loaded, rows.start + i * ROWS_AT_ONCE, stored, out)
        };
        let chunk = (row_bytes * ROWS_AT_ONCE).max(1);
        let made = ops::install(|| into.par_chunks_mut(chunk).enumerate().try_for_each(write));
        made.map_err(|message| Error::format(format!("{name}: {message}")))
    }
}

impl Matrix {
    fn format(&self) -> Format {
        self.entry.stored.as_ref().map_or(Format::F32, |format| *format)
    }

    /// The tensor that holds codes row by row, and the bytes of a row.
    fn stored_rows(&self) -> Option<(&'static str, usize)> {
        let cols = self.dims[1];
        match self.codes {
            Codes::Mlx { bits, .. } => Some(("weight", cols * bits / 8)),
            Codes::MlxFloat(kind) => Some(("weight", cols * kind.bits() / 8)),
            Codes::Fp8 { .. } | Codes::Int8 { .. } => Some(("weight", cols)),
            Codes::Packed { bits, .. } => Some(("weight_packed", cols.div_ceil(32 / bits) * 4)),
            Codes::Awq { .. } | Codes::Gptq { .. } => None,
        }
    }

    /// Where the scale of a weight stands among scales.
    fn scale_at(&self, row: usize, column: usize) -> usize {
        let [rows, cols] = self.dims;
        match self.codes {
            Codes::Mlx { group, .. } => row * (cols / group) + column / group,
            Codes::MlxFloat(kind) => row * (cols / kind.group()) + column / kind.group(),
            Codes::Fp8 { block: [height, width] } | Codes::Int8 { block: [height, width] } => {
                row / height * cols.div_ceil(width) + column / width
            }
            Codes::Awq { group } | Codes::Gptq { group, .. } => column / group * rows + row,
            Codes::Packed { group, .. } => row * cols.div_ceil(group) + column / group,
        }
    }

    /// The code of a weight; `stored` is its row, or all of them.
    fn code(&self, stored: &[u8], row: usize, column: usize) -> u32 {
        let rows = self.dims[0];
        match self.codes {
            Codes::Mlx { bits, .. } | Codes::Packed { bits, .. } => code(stored, bits, column),
            Codes::MlxFloat(kind) => code(stored, kind.bits(), column),
            Codes::Fp8 { .. } => stored[column].into(),
            // Counted from the least one.
            Codes::Int8 { .. } => (stored[column] ^ 0x80).into(),
            Codes::Awq { .. } => code(stored, 4, column * rows + row / 8 * 8 + AWQ_PLACES[row % 8]),
            Codes::Gptq { bits, .. } => {
                // Columns lie above one another in a number of their own output.
                let each = 32 / bits;
                code(stored, bits, (column / each * rows + row) * each + column % each)
            }
        }
    }

    /// Writes rows from `first` on in the format that they are kept in; `stored` holds theirs, or all of them.
    fn write(&self, loaded: &Loaded, first: usize, stored: &[u8], out: &mut [u8]) -> std::result::Result<(), String> {
        let cols = self.dims[1];
        let of_row = |i: usize| self.stored_rows().map_or(stored, |(_, bytes)| &stored[i * bytes..][..bytes]);
        match self.format() {
            format @ (Format::F32 | Format::BF16) => {
                for (i, out) in out.chunks_exact_mut(cols * format.block_bytes()).enumerate() {
                    self.write_values(loaded, first + i, of_row(i), out)?;
                }
            }
            format => {
                let out = (out, format.row_bytes(cols).unwrap_or(usize::MAX));
                match self.codes {
                    Codes::MlxFloat(_) => {
                        for (i, out) in out.0.chunks_exact_mut(out.1).enumerate() {
                            self.write_floats(loaded, first + i, format, of_row(i), out);
                        }
                    }
                    Codes::Int8 { .. } => {
                        for (i, out) in out.0.chunks_exact_mut(out.1).enumerate() {
                            self.write_blocks(loaded, first + i, format, 8, of_row(i), out);
                        }
                    }
                    Codes::Mlx { bits, .. } | Codes::Packed { bits, .. } => {
                        for (i, out) in out.0.chunks_exact_mut(out.1).enumerate() {
                            self.write_blocks(loaded, first + i, format, bits, of_row(i), out);
                        }
                    }
                    _ => self.gather_blocks(loaded, first, format, stored, out),
                }
            }
        }
        Ok(())
    }

    /// A row of numbers.
    fn write_values(&self, loaded: &Loaded, row: usize, stored: &[u8], out: &mut [u8]) -> std::result::Result<(), String> {
        let size = self.format().block_bytes();
        for (column, out) in out.chunks_exact_mut(size).enumerate() {
            let (at, code) = (self.scale_at(row, column), self.code(stored, row, column));
            let scale = loaded.scales[at];
            let x = match self.codes {
                Codes::Mlx { .. } => scale * code as f32 + loaded.offsets[at],
                Codes::Fp8 { .. } | Codes::MlxFloat(MlxFloat::Mxfp8) => f8_e4m3(code as u8) * scale,
                Codes::MlxFloat(_) => E2M1[code as usize] * scale,
                Codes::Int8 { .. } => scale * (code as i32 - 128) as f32,
                Codes::Awq { .. } | Codes::Gptq { .. } => scale * (code as f32 - loaded.offsets[at]),
                Codes::Packed { bits, .. } => {
                    let zero = loaded.offsets.get(at).map_or(1 << (bits - 1), |zero| *zero as i32);
                    scale * (code as i32 - zero) as f32
                }
            };
            if !x.is_finite() {
                return Err(format!("expected finite weights, found {x} in row {row}"));
            }
            // The upper half of a number that BF16 holds is BF16.
            out.copy_from_slice(&x.to_le_bytes()[4 - size..]);
        }
        Ok(())
    }

    /// What stands in front of the codes of a block that begins with this column.
    fn header(&self, loaded: &Loaded, row: usize, column: usize) -> ([u8; 4], usize) {
        let at = self.scale_at(row, column);
        let [[a, b], [c, d]] =
            [Some(&loaded.scales[at]), loaded.offsets.get(at)].map(|x| f16::from_f32(*x.unwrap_or(&0.0)).to_le_bytes());
        match self.codes {
            Codes::Mlx { .. } => ([a, b, c, d], 4),
            Codes::Packed { bits, .. } => ([a, b, loaded.offsets.get(at).map_or(1 << (bits - 1), |zero| *zero as u8), 0], 3),
            Codes::Int8 { .. } => ([a, b, 128, 0], 3),
            _ => ([a, b, loaded.offsets[at] as u8, 0], 3),
        }
    }

    /// Blocks of a row whose codes are a stream already.
    fn write_blocks(&self, loaded: &Loaded, row: usize, format: Format, bits: usize, stored: &[u8], out: &mut [u8]) {
        let streams = stored.chunks_exact(format.block() * bits / 8);
        for (i, (out, stream)) in out.chunks_exact_mut(format.block_bytes()).zip(streams).enumerate() {
            let (header, len) = self.header(loaded, row, i * format.block());
            out[..len].copy_from_slice(&header[..len]);
            out[len..].copy_from_slice(stream);
            if matches!(self.codes, Codes::Int8 { .. }) {
                out[len..].iter_mut().for_each(|code| *code ^= 0x80);
            }
        }
    }

    /// Blocks of floats of four bits: scales, then of each run of columns the first half in low nibbles, the second in high ones.
    fn write_floats(&self, loaded: &Loaded, row: usize, format: Format, stored: &[u8], out: &mut [u8]) {
        let (block, first) = (format.block(), self.scale_at(row, 0));
        for (i, out) in out.chunks_exact_mut(format.block_bytes()).enumerate() {
            let (scales, codes) = out.split_at_mut(format.block_bytes() - block / 2);
            let (count, run) = (scales.len(), block / scales.len());
            scales.copy_from_slice(&loaded.codes[first + i * count..][..count]);
            for (j, byte) in codes.iter_mut().enumerate() {
                let column = i * block + j / (run / 2) * run + j % (run / 2);
                *byte = (code(stored, 4, column) | code(stored, 4, column + run / 2) << 4) as u8;
            }
        }
    }

    /// Blocks of several rows whose codes are stored by columns: neighbours in memory are of neighbouring rows.
    fn gather_blocks(&self, loaded: &Loaded, first: usize, format: Format, stored: &[u8], (out, row_bytes): (&mut [u8], usize)) {
        let (block, bytes) = (format.block(), format.block_bytes());
        let bits = (bytes - 3) * 8 / block;
        out.fill(0);
        for column in 0..self.dims[1] {
            let (at, place) = (column / block * bytes, column % block * bits);
            for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                if place == 0 {
                    out[at..at + 3].copy_from_slice(&self.header(loaded, first + i, column).0[..3]);
                }
                out[at + 3 + place / 8] |= (self.code(stored, first + i, column) << (place % 8)) as u8;
            }
        }
    }
}

/// What a matrix is kept in: the very values of its tensors, in as few bytes as they allow.
fn kept(checkpoint: &mut Checkpoint<'_>, module: &str, [_, cols]: [usize; 2], codes: Codes) -> Result<Format> {
    // Whether F16 holds all numbers of these tensors; what is stored as F16 need not be read for that.
    let mut is_f16 = |fields: &[&str]| -> Result<bool> {
        for field in fields {
            let name = format!("{module}{field}");
            let stored = checkpoint.entry(&name).and_then(|entry| entry.stored.clone().ok());
            if stored != Some(Format::F16) && floats(checkpoint, &name)?.iter().any(|x| f16::from_f32(*x).to_f32() != *x) {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let of = |kind: &str, bits: usize, group: usize| {
        let fits = |size: &&usize| group.is_multiple_of(**size) && cols.is_multiple_of(**size);
        let size = [128, 64, 32].iter().find(fits)?;
        Format::named(&format!("{kind}{bits}_{size}"))
    };
    let (format, fields): (_, &[&str]) = match codes {
        Codes::Mlx { bits, group } => (of("affine", bits, group), &["scales", "biases"]),
        Codes::Awq { group } => (of("zero", 4, group), &["scales"]),
        Codes::Gptq { bits, group, .. } => (of("zero", bits, group), &["scales"]),
        Codes::Packed { bits, group, .. } => (of("zero", bits, group), &["weight_scale"]),
        Codes::Int8 { block: [_, width] } => (of("zero", 8, width), &["weight_scale"]),
        Codes::Fp8 { .. } => {
            let scales = floats(checkpoint, &scale_of_bytes(checkpoint, module))?;
            return Ok(of_f8(scales.into_iter()));
        }
        Codes::MlxFloat(kind) => {
            let scales = bytes(checkpoint, &format!("{module}scales"))?;
            return Ok(match kind {
                MlxFloat::Mxfp4 => Format::MXFP4,
                MlxFloat::Mxfp8 => of_f8(scales.into_iter().map(|byte| scale_of_float(kind, byte))),
                // Its blocks read a scale of NaN as 0, and no signs of scales.
                MlxFloat::Nvfp4 if cols.is_multiple_of(Format::NVFP4.block()) && scales.iter().all(|byte| *byte < 0x7f) => {
                    Format::NVFP4
                }
                MlxFloat::Nvfp4 => Format::F32,
            });
        }
    };
    Ok(match format {
        Some(format) if is_f16(fields)? => format,
        _ => Format::F32,
    })
}

/// What holds all numbers of E4M3 times these scales: their four significant bits, and those of the scale.
fn of_f8(mut scales: impl Iterator<Item = f32>) -> Format {
    // NaN is found when it is read.
    let is_bf16 = |x: f32| x.to_bits() << 16 == 0 && x.is_finite();
    let exact = |scale: f32| (0..0x7f).all(|byte| is_bf16(f8_e4m3(byte) * scale));
    if scales.all(exact) { Format::BF16 } else { Format::F32 }
}

/// A byte that is the scale of floats: an exponent, or E4M3.
fn scale_of_float(kind: MlxFloat, byte: u8) -> f32 {
    match (kind, byte) {
        (MlxFloat::Nvfp4, byte) => f8_e4m3(byte),
        (_, 255) => f32::NAN,
        // No normal number.
        (_, 0) => f32::from_bits(1 << 22),
        (_, exponent) => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// Floats of four bits, by their code.
const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Whether a tensor is what the numbers of a KV cache are multiplied by, or their zero: as llm-compressor and others call them, behind
/// an attention's name or a projection's.
fn is_of_kv_cache(name: &str) -> bool {
    const FIELDS: [&str; 7] = ["k_scale", "v_scale", "q_scale", "kv_scale", "k_zero_point", "v_zero_point", "q_zero_point"];
    name.contains("attn.") && name.rsplit('.').next().is_some_and(|field| FIELDS.contains(&field))
}

/// The tensor with the scales of a matrix of bytes.
fn scale_of_bytes(checkpoint: &Checkpoint<'_>, module: &str) -> String {
    let inverse = format!("{module}weight_scale_inv");
    if checkpoint.entry(&inverse).is_some() { inverse } else { format!("{module}weight_scale") }
}

/// Rows and columns of a quantised matrix, and its codes, from the shapes of its tensors.
fn shape(checkpoint: &mut Checkpoint<'_>, module: &str, quantization: &Quantization) -> Result<([usize; 2], Codes)> {
    if let Quantization::Groups(ways) = quantization {
        return shape_of_one(checkpoint, module, ways);
    }
    let two = |field: &str, dtype: &[&str]| -> Result<[usize; 2]> {
        let name = format!("{module}{field}");
        let entry = checkpoint.entry(&name).ok_or_else(|| Error::format(format!("{name}: expected this tensor, found none")))?;
        let found = entry.stored.as_ref().map_or_else(String::as_str, |format| format.name());
        match entry.shape[..] {
            [rows, cols] if rows > 0 && cols > 0 && dtype.contains(&found) => Ok([rows, cols]),
            _ => Err(Error::format(format!("{name}: expected {dtype:?} in two dimensions, found {found} of {:?}", entry.shape))),
        }
    };
    // Of several experts, one after another.
    let stacked = |field: &str, dtype: &[&str]| -> Result<[usize; 2]> {
        match checkpoint.entry(&format!("{module}{field}")) {
            Some(Entry { shape, stored }) if shape.len() == 3 => {
                let found = stored.as_ref().map_or_else(String::as_str, |format| format.name());
                match (shape[0].checked_mul(shape[1]), dtype.contains(&found)) {
                    (Some(rows), true) if rows > 0 && shape[2] > 0 => Ok([rows, shape[2]]),
                    _ => Err(Error::format(format!("{module}{field}: expected {dtype:?}, found {found} of {shape:?}"))),
                }
            }
            _ => two(field, dtype),
        }
    };
    const FLOATS: &[&str] = &["F32", "F16", "BF16"];
    let bad = |message: String| Err(Error::format(format!("{module}: {message}")));
    let grouped = |cols: usize, group: usize| if group == 0 { cols } else { group };
    match quantization {
        Quantization::Mlx(mlx) => {
            let name = &module[..module.len() - 1];
            let (bits, group) = match mlx.modules.get(name).copied().unwrap_or(mlx.usual) {
                MlxCodes::Affine { bits, group } => (bits, group),
                MlxCodes::Float(kind) => {
                    let ([rows, words], [scale_rows, groups]) = (stacked("weight", &["U32"])?, stacked("scales", &["U8"])?);
                    let cols = words.saturating_mul(32 / kind.bits());
                    if checkpoint.entry(&format!("{module}global_scale")).is_some() {
                        return Err(Error::unsupported(format!("{module}global_scale: expected none: it is not supported")));
                    }
                    return if scale_rows == rows && groups.checked_mul(kind.group()) == Some(cols) {
                        Ok(([rows, cols], Codes::MlxFloat(kind)))
                    } else {
                        bad(format!(
                            "expected scales of {} columns of {rows} × {cols} weights, found {scale_rows} × {groups}",
                            kind.group()
                        ))
                    };
                }
            };
            let ([rows, words], [scale_rows, groups]) = (stacked("weight", &["U32"])?, stacked("scales", FLOATS)?);
            let cols = groups.checked_mul(group).filter(|cols| Some(cols * bits) == words.checked_mul(32));
            match cols {
                Some(cols) if scale_rows == rows && stacked("biases", FLOATS)? == [rows, groups] => {
                    Ok(([rows, cols], Codes::Mlx { bits, group }))
                }
                _ => bad(format!(
                    "expected {bits} bits and scales of {group} columns, found words {rows} × {words} and scales {scale_rows} × {groups}"
                )),
            }
        }
        // See above.
        Quantization::Groups(_) => bad("expected one way of quantising, found several".to_string()),
        Quantization::Fp8 { block } | Quantization::Int8 { block } => {
            let is_float = matches!(quantization, Quantization::Fp8 { .. });
            let [rows, cols] = two("weight", if is_float { &["F8_E4M3"] } else { &["I8"] })?;
            let name = scale_of_bytes(checkpoint, module);
            let found = checkpoint.entry(&name).map_or(&[][..], |entry| &entry.shape);
            // One scale may have any number of dimensions.
            let is_one = found.iter().all(|dim| *dim == 1);
            let block = match block {
                Some(block) => *block,
                None if is_one => [rows, cols],
                None => [1, cols],
            };
            let expected = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
            let fits = match found {
                [count] => expected[1] == 1 && *count == expected[0],
                found => *found == expected,
            };
            if fits || (is_one && expected == [1, 1]) {
                Ok(([rows, cols], if is_float { Codes::Fp8 { block } } else { Codes::Int8 { block } }))
            } else {
                Err(Error::format(format!("{name}: expected scales of shape {expected:?}, found {found:?}")))
            }
        }
        Quantization::Awq { group } => {
            let [cols, words] = two("qweight", &["I32"])?;
            let (rows, group) = (words.saturating_mul(8), grouped(cols, *group));
            let groups = cols / group.max(1);
            let fits = cols.is_multiple_of(group)
                && two("scales", FLOATS)? == [groups, rows]
                && two("qzeros", &["I32"])? == [groups, words];
            if fits {
                Ok(([rows, cols], Codes::Awq { group }))
            } else {
                bad(format!("expected scales and zeros of {group} columns of {rows} × {cols} weights"))
            }
        }
        Quantization::Gptq { bits, group, less_one } => {
            let [words, rows] = two("qweight", &["I32"])?;
            let cols = words.saturating_mul(32 / bits);
            let group = grouped(cols, *group);
            let groups = cols / group.max(1);
            let zeros = [groups, rows / (32 / bits)];
            let fits = cols.is_multiple_of(group)
                && rows.is_multiple_of(32 / bits)
                && two("scales", FLOATS)? == [groups, rows]
                && two("qzeros", &["I32"])? == zeros;
            let codes = Codes::Gptq { bits: *bits, group, less_one: *less_one };
            if fits {
                Ok(([rows, cols], codes))
            } else {
                bad(format!("expected scales and zeros of {group} columns of {rows} × {cols} weights"))
            }
        }
        Quantization::Packed { bits, zeros } => {
            let ([rows, words], [scale_rows, groups]) = (two("weight_packed", &["I32"])?, two("weight_scale", FLOATS)?);
            for field in ["weight_g_idx", "weight_zero_point"].into_iter().take(if *zeros { 1 } else { 2 }) {
                if checkpoint.entry(&format!("{module}{field}")).is_some() {
                    return Err(Error::unsupported(format!("{module}{field}: expected none: it is not supported")));
                }
            }
            let each = 32 / bits;
            if *zeros && two("weight_zero_point", &["I32"])? != [rows.div_ceil(each), groups] {
                return bad(format!("weight_zero_point: expected that of {rows} × {groups} scales, found another shape"));
            }
            let shape = bytes(checkpoint, &format!("{module}weight_shape"))?;
            let shape: Vec<u64> = shape.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
            let cols = match shape[..] {
                [n, k] if n == rows as u64 && k > 0 && k.div_ceil(each as u64) == words as u64 => k as usize,
                _ => return bad(format!("weight_shape: expected that of {rows} × {words} words, found {shape:?}")),
            };
            if scale_rows == rows && cols.is_multiple_of(groups) {
                Ok(([rows, cols], Codes::Packed { bits: *bits, group: cols / groups, zeros: *zeros }))
            } else {
                bad(format!("weight_scale: expected groups of {rows} × {cols} weights, found {scale_rows} × {groups}"))
            }
        }
    }
}

/// The same in that one of several ways which fits the tensors.
fn shape_of_one(checkpoint: &mut Checkpoint<'_>, module: &str, ways: &[Quantization]) -> Result<([usize; 2], Codes)> {
    let is_packed = checkpoint.entry(&format!("{module}weight_packed")).is_some();
    let (mut found, mut why_not) = (None, None);
    for way in ways.iter().filter(|way| matches!(way, Quantization::Packed { .. }) == is_packed) {
        match shape(checkpoint, module, way) {
            Ok(fitting) if found.is_some_and(|found| found != fitting) => {
                let message = "expected tensors that one group of config_groups fits, found several that do: not supported";
                return Err(Error::unsupported(format!("{module}: {message}")));
            }
            Ok(fitting) => found = Some(fitting),
            Err(error) => why_not = why_not.or(Some(error)),
        }
    }
    let none = || Error::format(format!("{module}: expected tensors of a group of config_groups, found others"));
    found.ok_or_else(|| why_not.unwrap_or_else(none))
}

/// The code of a place in a little-endian stream of bits.
fn code(stream: &[u8], bits: usize, place: usize) -> u32 {
    let at = place * bits;
    let byte = |i: usize| u32::from(stream.get(at / 8 + i).copied().unwrap_or(0));
    (byte(0) | byte(1) << 8) >> (at % 8) & ((1 << bits) - 1)
}

/// Four exponent bits, three of a fraction, no infinities: <https://arxiv.org/abs/2209.05433>.
fn f8_e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let value = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { value } else { -value }
}

/// All bytes of a tensor.
fn bytes(checkpoint: &mut Checkpoint<'_>, name: &str) -> Result<Vec<u8>> {
    let len = checkpoint.bytes(name).ok_or_else(|| Error::format(format!("{name}: expected this tensor, found none")))?;
    let mut bytes = Vec::new();
    resize(&mut bytes, usize::try_from(len).unwrap_or(usize::MAX))?;
    checkpoint.read(name, 0, &mut bytes)?;
    Ok(bytes)
}

/// All values of a small tensor of floats.
fn floats(checkpoint: &mut Checkpoint<'_>, name: &str) -> Result<Vec<f32>> {
    let format = checkpoint.entry(name).and_then(|entry| entry.stored.clone().ok());
    let format = format.ok_or_else(|| Error::format(format!("{name}: expected F32, F16 or BF16, found another type")))?;
    Ok(format.try_widen(&bytes(checkpoint, name)?)?)
}

fn resize(buffer: &mut Vec<u8>, len: usize) -> Result<()> {
    buffer.clear();
    buffer.try_reserve(len).map_err(|e| {
        Error::new(ErrorKind::OutOfMemory, format!("{len} bytes of a tensor do not fit the memory")).with_source(e)
    })?;
    buffer.resize(len, 0);
    Ok(())
}

impl TensorSource for QuantizedCheckpoint<'_> {
    fn entry(&self, name: &str) -> Option<&Entry> {
        self.matrices.get(name).map(|matrix| &matrix.entry).or_else(|| self.checkpoint.entry(name))
    }

    fn names(&self) -> Vec<&str> {
        let own = self.matrices.keys().map(String::as_str);
        let is_plain = |name: &&str| !self.hidden.contains(*name) && !self.matrices.contains_key(*name);
        own.chain(self.checkpoint.names().into_iter().filter(is_plain)).collect()
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        let Some(matrix) = self.matrices.get(name) else { return self.checkpoint.read(name, offset, into) };
        let [rows, cols] = matrix.dims;
        let row_bytes = matrix.format().row_bytes(cols).unwrap_or(usize::MAX);
        let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(into.len()));
        let (Some(end), Ok(start)) = (end.filter(|end| *end <= rows.saturating_mul(row_bytes)), usize::try_from(offset)) else {
            return Err(Error::format(format!("{name}: byte {offset} and {} more pass its rows", into.len())));
        };
        self.load(name)?;
        let (wanted, skipped) = (start / row_bytes..end.div_ceil(row_bytes), start % row_bytes);
        if skipped == 0 && into.len().is_multiple_of(row_bytes) {
            return self.rows(name, wanted, into);
        }
        // Less than whole rows.
        let mut all = Vec::new();
        resize(&mut all, wanted.len() * row_bytes)?;
        self.rows(name, wanted, &mut all)?;
        into.copy_from_slice(&all[skipped..][..into.len()]);
        Ok(())
    }
}

impl<'a> Reading for QuantizedCheckpoint<'a> {
    type Source = Checkpoint<'a>;

    fn source(&self) -> &Checkpoint<'a> {
        &self.checkpoint
    }

    fn source_mut(&mut self) -> &mut Checkpoint<'a> {
        &mut self.checkpoint
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::load::Json;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quantized").join(name)
    }

    /// The settings of each file, and what its matrix is kept in.
    const FILES: [(&str, &str, &str); 12] = [
        ("mlx2", r#"{"quantization": {"bits": 2, "group_size": 32}}"#, "affine2_32"),
        ("mlx3", r#"{"quantization": {"bits": 3, "group_size": 32}}"#, "affine3_32"),
        ("mlx4", r#"{"quantization": {"bits": 4, "group_size": 64, "mode": "affine"}}"#, "affine4_64"),
        ("mlx5", r#"{"quantization": {"bits": 5, "group_size": 32}}"#, "affine5_32"),
        ("mlx6", r#"{"quantization": {"bits": 8, "group_size": 32, "m": {"bits": 6, "group_size": 128}}}"#, "affine6_128"),
        ("mlx8", r#"{"quantization": {"bits": 8, "group_size": 64}}"#, "affine8_64"),
        ("fp8_blocks", r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [48, 32]}}"#, "F32"),
        (
            "fp8_rows",
            r#"{"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "symmetric": true}}}}}"#,
            "F32",
        ),
        (
            "awq",
            r#"{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}}"#,
            "zero4_32",
        ),
        ("gptq4", r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}"#, "zero4_32"),
        (
            "gptq8_v2",
            r#"{"quantization_config": {"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"}}"#,
            "zero8_128",
        ),
        (
            "packed4",
            r#"{"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups":
                {"group_0": {"weights": {"num_bits": 4, "type": "int", "symmetric": true, "group_size": 32}}}}}"#,
            "zero4_32",
        ),
    ];

    fn with<T>(name: &str, config: &str, then: impl FnOnce(Result<QuantizedCheckpoint<'_>>) -> T) -> T {
        let mut on_bytes = |_, _| Ok(());
        let quantization = Quantization::of(&Json::parse("config.json", config).unwrap()).unwrap().unwrap();
        let checkpoint = Checkpoint::open_file(&golden(&format!("{name}.safetensors")), &mut on_bytes).unwrap();
        then(QuantizedCheckpoint::new(checkpoint, &quantization))
    }

    #[test]
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn every_method_has_the_weights_of_its_reference() {
        for (name, config, kept) in FILES {
            with(name, config, |source| {
                let mut source = source.unwrap();
                let mut names = source.names();
                names.sort_unstable();
                assert_eq!(names, ["m.weight", "want"], "{name}");
                let entry = source.entry("m.weight").unwrap().clone();
                assert_eq!(entry.shape, source.entry("want").unwrap().shape, "{name}");
                let format = entry.stored.clone().unwrap();
                assert_eq!(format.name(), kept, "{name}");
                let bytes = entry.shape[0] * format.row_bytes(entry.shape[1]).unwrap();
                let mut found = vec![0; bytes];
                source.read("m.weight", 0, &mut found).unwrap();
                let mut want = vec![0; entry.shape[0] * entry.shape[1] * 4];
                source.read("want", 0, &mut want).unwrap();
                let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                assert!(bits(format.widen(&found)) == bits(Format::F32.widen(&want)), "{name}");
                // The same in any piece.
                for (start, len) in [(3, 5), (bytes / 2 - 7, 999), (bytes - 9, 9)] {
                    let mut piece = vec![0; len];
                    source.read("m.weight", start as u64, &mut piece).unwrap();
                    assert_eq!(piece, found[start..start + len], "{name}");
                }
                assert!(source.read("m.weight", bytes as u64 - 3, &mut [0; 4]).is_err());
            });
        }
    }

    #[test]
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn settings_that_the_tensors_deny_are_named() {
        for (name, config, says) in [
            ("mlx4", r#"{"quantization": {"bits": 8, "group_size": 64}}"#, "m.: expected 8 bits"),
            ("mlx4", r#"{"quantization": {"bits": 4, "group_size": 32}}"#, "m.: expected 4 bits"),
            ("fp8_blocks", r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}"#, "scale_inv"),
            ("awq", r#"{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 48}}"#, "48 columns"),
            ("gptq4", r#"{"quantization_config": {"quant_method": "gptq", "bits": 8, "group_size": 32}}"#, "m.: expected"),
            ("packed4", r#"{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}"#, ""),
        ] {
            with(name, config, |source| match (source, says) {
                // Nothing of that method is in the file: its own tensors are left over.
                (Ok(source), "") => assert!(source.entry("m.weight").is_none() && source.names().contains(&"m.weight_packed")),
                (Ok(_), says) => panic!("{name}: expected {says}"),
                (Err(error), says) => assert!(error.kind() == ErrorKind::Format && error.message().contains(says), "{error}"),
            });
        }
        with("gptq4_act_order", FILES[9].1, |source| {
            let error = source.unwrap().read("m.weight", 0, &mut [0; 4]).unwrap_err();
            assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("g_idx"), "{error}");
        });
    }

    #[test]
    fn scales_of_blocks_lie_as_their_matrix_does() {
        use safetensors::Dtype::{F8_E4M3, F32};
        use safetensors::tensor::TensorView;
        let quantization = |strategy: &str| {
            let config = format!(
                r#"{{"quantization_config": {{"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups":
                    {{"group_0": {{"weights": {{"num_bits": 8, "type": "float", "strategy": {strategy}}}}}}}}}}}"#
            );
            Quantization::of(&Json::parse("config.json", &config).unwrap()).map(Option::unwrap)
        };
        // Four rows of six; of blocks of two and three as many scales as rows, of groups of three twice as many.
        let codes: Vec<u8> = (0x30..0x48).collect();
        let scales: Vec<u8> = (1..=8u16).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        for (strategy, shape, place) in [
            (
                r#""block", "block_structure": [2, 3]"#,
                vec![2, 2],
                (|row, col| row / 2 * 2 + col / 3) as fn(usize, usize) -> usize,
            ),
            (r#""Block", "block_structure": [3, 6]"#, vec![2, 1], |row, _| row / 3),
            (r#""block", "block_structure": "2x3""#, vec![2, 2], |row, col| row / 2 * 2 + col / 3),
            (r#""group", "group_size": 3"#, vec![4, 2], |row, col| row * 2 + col / 3),
            (r#""channel""#, vec![4, 1], |row, _| row),
            (r#""channel""#, vec![4], |row, _| row),
            (r#""tensor""#, vec![1], |_, _| 0),
        ] {
            let count: usize = shape.iter().product();
            for (shape, fits) in [(shape, true), (vec![1, count, 1], count == 1), (vec![1, count], count == 1)] {
                let tensors = [
                    ("m.weight", TensorView::new(F8_E4M3, vec![4, 6], &codes).unwrap()),
                    ("m.weight_scale", TensorView::new(F32, shape.clone(), &scales[..count * 4]).unwrap()),
                ];
                safetensors::serialize_to_file(tensors, None, &path).unwrap();
                let mut on_bytes = |_, _| Ok(());
                let checkpoint = Checkpoint::open_file(&path, &mut on_bytes).unwrap();
                let source = QuantizedCheckpoint::new(checkpoint, &quantization(strategy).unwrap());
                let mut source = match source {
                    Ok(source) if fits => source,
                    Err(error) if !fits => {
                        assert!(error.message().contains("m.weight_scale: expected scales of shape"), "{error}");
                        continue;
                    }
                    other => panic!("{strategy} of {shape:?}: {:?}", other.map(drop)),
                };
                let format = source.entry("m.weight").unwrap().stored.clone().unwrap();
                let mut bytes = vec![0; 4 * format.row_bytes(6).unwrap()];
                source.read("m.weight", 0, &mut bytes).unwrap();
                let value = |(at, code): (usize, &u8)| f8_e4m3(*code) * (place(at / 6, at % 6) + 1) as f32;
                let expected: Vec<f32> = codes.iter().enumerate().map(value).collect();
                assert_eq!(format.widen(&bytes), expected, "{strategy} of {shape:?}");
            }
        }
        for strategy in [
            r#""tensor_group""#,
            r#""block""#,
            r#""block", "block_structure": [0, 3]"#,
            r#""block", "block_structure": "2x""#,
            r#""group""#,
        ] {
            assert!(quantization(strategy).is_err(), "{strategy}");
        }
    }

    #[test]
    fn one_scale_of_a_matrix_has_either_name() {
        use safetensors::Dtype::{F8_E4M3, F32};
        use safetensors::tensor::TensorView;
        let config = r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size": null}}"#;
        let quantization = Quantization::of(&Json::parse("config.json", config).unwrap()).unwrap().unwrap();
        let (codes, scale): (Vec<u8>, _) = ((0x30..0x38).collect(), 0.75f32.to_le_bytes());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        for name in ["m.weight_scale", "m.weight_scale_inv"] {
            let tensors = [
                ("m.weight", TensorView::new(F8_E4M3, vec![2, 4], &codes).unwrap()),
                (name, TensorView::new(F32, vec![], &scale).unwrap()),
                ("m.activation_scale", TensorView::new(F32, vec![], &scale).unwrap()),
            ];
            safetensors::serialize_to_file(tensors, None, &path).unwrap();
            let mut on_bytes = |_, _| Ok(());
            let checkpoint = Checkpoint::open_file(&path, &mut on_bytes).unwrap();
            let mut source = QuantizedCheckpoint::new(checkpoint, &quantization).unwrap();
            assert_eq!(source.names(), ["m.weight"], "{name}");
            let format = source.entry("m.weight").unwrap().stored.clone().unwrap();
            let mut bytes = vec![0; 2 * format.row_bytes(4).unwrap()];
            source.read("m.weight", 0, &mut bytes).unwrap();
            let expected: Vec<f32> = codes.iter().map(|&code| f8_e4m3(code) * 0.75).collect();
            assert_eq!(format.widen(&bytes), expected, "{name}");
        }
    }

    #[test]
    fn an_order_of_calibration_leaves_columns_where_they_are() {
        for order in ["null", "false", r#""weight""#, r#""static""#, r#""WEIGHT""#] {
            let weights = format!(r#"{{"num_bits": 4, "type": "int", "symmetric": true, "actorder": {order}}}"#);
            let config = format!(
                r#"{{"quantization_config": {{"quant_method": "compressed-tensors", "format": "pack-quantized",
                    "config_groups": {{"group_0": {{"weights": {weights}}}}}}}}}"#
            );
            let found = Quantization::of(&Json::parse("config.json", &config).unwrap()).unwrap();
            assert_eq!(found, Some(Quantization::Packed { bits: 4, zeros: false }), "{order}");
        }
    }

    #[test]
    fn methods_that_are_not_known_are_named() {
        for (config, key) in [
            (r#"{"quantization_config": {"quant_method": "bitsandbytes"}}"#, "bitsandbytes"),
            (r#"{"quantization_config": {"quant_method": "hqq"}}"#, "hqq"),
            (r#"{"quantization_config": {}}"#, "quant_method"),
            (r#"{"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp6"}}"#, "mxfp6"),
            (r#"{"quantization": {"bits": 8, "group_size": 32, "mode": "mxfp4"}}"#, "bits"),
            (r#"{"quantization": {"group_size": 64, "mode": "mxfp8"}}"#, "group_size"),
            (r#"{"quantization": {"bits": 4, "group_size": 64, "m": {"mode": "nvfp4", "global_scale": true}}}"#, "global_scale"),
            (r#"{"quantization": {"bits": 7, "group_size": 32}}"#, "bits"),
            (r#"{"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}"#, "gemv"),
            (r#"{"quantization_config": {"quant_method": "gptq", "bits": 3}}"#, "bits"),
        ] {
            let error = Quantization::of(&Json::parse("config.json", config).unwrap()).unwrap_err();
            assert!(error.kind() == ErrorKind::Unsupported && error.message().contains(key), "{error}");
        }
        let group = Quantization::of(&Json::parse("config.json", r#"{"quantization": {"bits": 4}}"#).unwrap()).unwrap_err();
        assert!(group.message().contains("group_size"), "{group}");
        assert_eq!(Quantization::of(&Json::parse("config.json", "{}").unwrap()).unwrap(), None);
    }

    /// A file of these tensors as a source, by what config.json says.
    fn made<T>(
        config: &str,
        tensors: &[(&str, safetensors::Dtype, Vec<usize>, Vec<u8>)],
        then: impl FnOnce(Result<QuantizedCheckpoint<'_>>) -> T,
    ) -> T {
        use safetensors::tensor::TensorView;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let views =
            tensors.iter().map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let mut on_bytes = |_, _| Ok(());
        let quantization = Quantization::of(&Json::parse("config.json", config).unwrap()).unwrap().unwrap();
        then(QuantizedCheckpoint::new(Checkpoint::open_file(&path, &mut on_bytes).unwrap(), &quantization))
    }

    /// The format of a matrix, and its values.
    fn values(source: &mut QuantizedCheckpoint<'_>, name: &str) -> (Format, Vec<f32>) {
        let Entry { shape, stored } = source.entry(name).unwrap().clone();
        let format = stored.unwrap();
        let (cols, rows) = (shape[shape.len() - 1], shape[..shape.len() - 1].iter().product::<usize>());
        let mut bytes = vec![0; rows * format.row_bytes(cols).unwrap()];
        source.read(name, 0, &mut bytes).unwrap();
        (format, format.widen(&bytes))
    }

    fn compressed(format: &str, weights: &str) -> String {
        format!(
            r#"{{"quantization_config": {{"quant_method": "compressed-tensors", "format": "{format}",
                "config_groups": {{"group_0": {{"weights": {weights}}}}}}}}}"#
        )
    }

    fn f32_bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    }

    #[test]
    fn floats_of_mlx_have_their_values() {
        use safetensors::Dtype::{U8, U32};
        // Two rows of 64 columns; every code comes, in each place of a run.
        let codes: Vec<u8> = (0..64).map(|i| (i * 37 + 11) as u8).collect();
        let eights: Vec<u8> = (0..128u32).map(|i| (i * 91 % 0x7f) as u8 | ((i & 1) << 7) as u8).collect();
        let four = |i: usize| E2M1[usize::from(codes[i / 2] >> (4 * (i % 2)) & 15)];
        let exponents = vec![120, 127, 130, 0];
        let scale = |i: usize| if exponents[i] == 0 { 2f32.powi(-127) } else { 2f32.powi(i32::from(exponents[i]) - 127) };
        let e4m3: Vec<u8> = vec![0x38, 0x01, 0x7e, 0x20, 0x00, 0x45, 0x3c, 0x11];
        for (mode, group, weight, scales, kept, value) in [
            ("mxfp4", 32, &codes, &exponents, "mxfp4", &(|i| four(i) * scale(i / 32)) as &dyn Fn(usize) -> f32),
            ("nvfp4", 16, &codes, &e4m3, "nvfp4", &|i| four(i) * f8_e4m3(e4m3[i / 16])),
            ("mxfp8", 32, &eights, &exponents, "F32", &|i| f8_e4m3(eights[i]) * scale(i / 32)),
        ] {
            let config = format!(r#"{{"quantization": {{"bits": 8, "group_size": 64, "m": {{"mode": "{mode}"}}}}}}"#);
            let tensors = [
                ("m.weight", U32, vec![2, weight.len() / 8], weight.clone()),
                ("m.scales", U8, vec![2, 64 / group], scales.clone()),
            ];
            made(&config, &tensors, |source| {
                let mut source = source.unwrap();
                assert_eq!(source.names(), ["m.weight"]);
                let (format, found) = values(&mut source, "m.weight");
                assert_eq!(format.name(), kept, "{mode}");
                let want: Vec<f32> = (0..128).map(value).collect();
                assert_eq!(found, want, "{mode}");
            });
            // Of all modules, and in a stack of two.
            let config = format!(r#"{{"quantization": {{"mode": "{mode}"}}}}"#);
            let tensors = [
                ("m.weight", U32, vec![2, 1, weight.len() / 8], weight.clone()),
                ("m.scales", U8, vec![2, 1, 64 / group], scales.clone()),
            ];
            made(&config, &tensors, |source| {
                let mut source = source.unwrap();
                assert_eq!(source.entry("m.weight").unwrap().shape, [2, 1, 64]);
                assert_eq!(values(&mut source, "m.weight").1, (0..128).map(value).collect::<Vec<_>>(), "{mode}");
            });
            // Too few scales, and a scale of the whole matrix, which nothing here has.
            let short = [tensors[0].clone(), ("m.scales", U8, vec![2, 1, 1], vec![120; 2])];
            made(&config, &short, |source| assert!(source.map(drop).unwrap_err().message().contains("expected scales of")));
            let global =
                [tensors[0].clone(), tensors[1].clone(), ("m.global_scale", safetensors::Dtype::F32, vec![1], vec![0; 4])];
            made(&config, &global, |source| assert!(source.map(drop).unwrap_err().message().contains("global_scale")));
        }
    }

    #[test]
    fn packed_codes_have_zeros_of_their_own() {
        use safetensors::Dtype::{F32, I32, I64};
        let weights = r#"{"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32}"#;
        let config = compressed("pack-quantized", weights);
        // Ten rows of 64 columns, and so two numbers of zeros above one another.
        let codes: Vec<u8> = (0..320u32).map(|i| (i * 73 + 5) as u8).collect();
        let zeros: Vec<u8> = (0..16u32).map(|i| (i * 59 + 3) as u8).collect();
        let scales: Vec<f32> = (0..20).map(|i| (i as f32 - 7.0) / 8.0).collect();
        let shape: Vec<u8> = [10i64, 64].iter().flat_map(|n| n.to_le_bytes()).collect();
        let tensors = vec![
            ("m.weight_packed", I32, vec![10, 8], codes.clone()),
            ("m.weight_scale", F32, vec![10, 2], f32_bytes(scales.clone())),
            ("m.weight_shape", I64, vec![2], shape),
            ("m.weight_zero_point", I32, vec![2, 2], zeros.clone()),
        ];
        let want: Vec<f32> = (0..640)
            .map(|i| {
                let (row, col) = (i / 64, i % 64);
                let code = codes[i / 2] >> (4 * (i % 2)) & 15;
                // Row r of group g: number r / 8 of that column, nibble r % 8.
                let zero = zeros[(row / 8 * 2 + col / 32) * 4 + row % 8 / 2] >> (4 * (row % 2)) & 15;
                scales[row * 2 + col / 32] * (f32::from(code) - f32::from(zero))
            })
            .collect();
        made(&config, &tensors, |source| {
            let mut source = source.unwrap();
            assert_eq!(source.names(), ["m.weight"]);
            let (format, found) = values(&mut source, "m.weight");
            assert_eq!((format.name(), found), ("zero4_32", want));
        });
        // Without zeros it would be another matrix, as with those that nobody asked for.
        made(&config, &tensors[..3], |source| assert!(source.map(drop).unwrap_err().message().contains("weight_zero_point")));
        let symmetric = compressed("pack-quantized", &weights.replace("false", "true"));
        made(&symmetric, &tensors, |source| assert_eq!(source.map(drop).unwrap_err().kind(), ErrorKind::Unsupported));
    }

    #[test]
    fn groups_of_a_checkpoint_may_have_ways_of_their_own() {
        use safetensors::Dtype::{F8_E4M3, F32, I8, I32, I64};
        let packed = |bits: usize| format!(r#"{{"num_bits": {bits}, "type": "int", "strategy": "group", "group_size": 32}}"#);
        let of_bytes = |kind: &str, more: &str| format!(r#"{{"num_bits": 8, "type": "{kind}", {more}}}"#);
        let (channel, blocks) =
            (r#""strategy": "channel""#, |rows: usize| format!(r#""strategy": "block", "block_structure": [{rows}, 64]"#));
        let ways = [
            ("a", "pack-quantized", packed(4)),
            ("b", "pack-quantized", packed(8)),
            ("c", "float-quantized", of_bytes("float", channel)),
            ("d", "int-quantized", of_bytes("int", channel)),
        ];
        let several = |ways: &[(&str, &str, String)], more: &str| {
            let group = |(name, format, weights): &(&str, &str, String)| {
                format!(r#""{name}": {{"format": "{format}", "targets": ["Linear"], "weights": {weights}}}"#)
            };
            let groups: Vec<String> = ways.iter().map(group).collect();
            format!(
                r#"{{"quantization_config": {{"quant_method": "compressed-tensors", "format": "mixed-precision",
                    "ignore": ["lm_head"], "config_groups": {{{}}}{more}}}}}"#,
                groups.join(", ")
            )
        };
        let codes = |len: u32| (0..len).map(|i| (i * 73 % 120) as u8).collect::<Vec<u8>>();
        let shape: Vec<u8> = [4i64, 64].iter().flat_map(|n| n.to_le_bytes()).collect();
        let of_groups = f32_bytes((0..8).map(|i| (i as f32 - 3.0) / 8.0));
        let of_rows = f32_bytes([0.5, -0.25, 2.0, 1.0]);
        let tensors = [
            ("a.weight_packed", I32, vec![4, 8], codes(128)),
            ("a.weight_scale", F32, vec![4, 2], of_groups.clone()),
            ("a.weight_shape", I64, vec![2], shape.clone()),
            ("b.weight_packed", I32, vec![4, 16], codes(256)),
            ("b.weight_scale", F32, vec![4, 2], of_groups),
            ("b.weight_shape", I64, vec![2], shape),
            ("c.weight", F8_E4M3, vec![4, 64], codes(256)),
            ("c.weight_scale", F32, vec![4, 1], of_rows.clone()),
            ("d.weight", I8, vec![4, 64], codes(256)),
            ("d.weight_scale", F32, vec![4, 1], of_rows),
            ("lm_head.weight", F32, vec![1, 2], f32_bytes([0.5, 2.0])),
        ];
        // Each has the values that it has alone.
        made(&several(&ways, ""), &tensors, |source| {
            let mut source = source.unwrap();
            let mut names = source.names();
            names.sort_unstable();
            assert_eq!(names, ["a.weight", "b.weight", "c.weight", "d.weight", "lm_head.weight"]);
            for (module, format, weights) in &ways {
                let own: Vec<_> = tensors.iter().filter(|tensor| tensor.0.starts_with(module)).cloned().collect();
                let name = format!("{module}.weight");
                let want = made(&compressed(format, weights), &own, |source| values(&mut source.unwrap(), &name));
                assert_eq!(values(&mut source, &name), want, "{module}");
            }
        });
        // Two ways alike are one, tensors that no way fits an error, and what two fit that differ.
        let alike = [ways[2].clone(), ("x", "float-quantized", of_bytes("float", channel))];
        made(&several(&alike, ""), &tensors[6..8], |source| assert!(source.is_ok()));
        made(&several(&ways[..2], ""), &tensors[6..8], |source| {
            assert!(source.map(drop).unwrap_err().message().contains("c.: expected tensors of a group"));
        });
        let two = [2, 3].map(|rows| ("x", "float-quantized", of_bytes("float", &blocks(rows))));
        let of_blocks = [tensors[6].clone(), ("c.weight_scale", F32, vec![2, 1], f32_bytes([0.5, 2.0]))];
        let config = several(&two, "").replacen("\"x\"", "\"y\"", 1);
        made(&config, &of_blocks, |source| {
            let error = source.map(drop).unwrap_err();
            assert!(
                error.kind() == ErrorKind::Unsupported && error.message().contains("c.: expected tensors that one"),
                "{error}"
            );
        });
        // Weights that were rotated are what they are; what rotates activations is missing here.
        for (place, is_read) in [("weight_input", true), ("input", false)] {
            let more = format!(
                r#", "transform_config": {{"config_groups": {{"R": {{"type": "hadamard", "apply": [{{"location": "{place}"}}]}}}}}}"#
            );
            let found = Quantization::of(&Json::parse("config.json", &several(&ways, &more)).unwrap());
            assert_eq!(found.is_ok(), is_read, "{place}");
            assert!(is_read || found.unwrap_err().message().contains("transform_config"), "{place}");
        }
    }

    #[test]
    fn whole_numbers_have_the_scale_of_their_row() {
        use safetensors::Dtype::{F32, I8};
        let codes: Vec<u8> = (0..128u32).map(|i| (i * 77 + 128) as u8).collect();
        for (strategy, scales, shape) in [("channel", vec![0.5, -0.25], vec![2, 1]), ("tensor", vec![0.75], vec![1])] {
            let weights = format!(r#"{{"num_bits": 8, "type": "int", "symmetric": true, "strategy": "{strategy}"}}"#);
            let tensors =
                [("m.weight", I8, vec![2, 64], codes.clone()), ("m.weight_scale", F32, shape, f32_bytes(scales.clone()))];
            made(&compressed("int-quantized", &weights), &tensors, |source| {
                let (format, found) = values(&mut source.unwrap(), "m.weight");
                let scale = |i: usize| scales.get(i / 64).unwrap_or(&scales[0]);
                let want: Vec<f32> = codes.iter().enumerate().map(|(i, code)| f32::from(*code as i8) * scale(i)).collect();
                assert_eq!((format.name(), found), ("zero8_64", want), "{strategy}");
            });
        }
    }

    #[test]
    fn scales_of_a_kv_cache_are_no_part_of_the_weights() {
        use safetensors::Dtype::{F8_E4M3, F32};
        let weights = r#"{"num_bits": 8, "type": "float", "symmetric": true, "strategy": "tensor"}"#;
        let one = || f32_bytes([0.5]);
        let tensors = [
            ("a.self_attn.q_proj.weight", F8_E4M3, vec![2, 2], vec![0x38; 4]),
            ("a.self_attn.q_proj.weight_scale", F32, vec![1], one()),
            ("a.self_attn.q_proj.input_scale", F32, vec![1], one()),
            ("a.self_attn.k_scale", F32, vec![1], one()),
            ("a.self_attn.v_scale", F32, vec![], one()),
            ("a.self_attn.k_proj.k_scale", F32, vec![1], one()),
            ("a.mlp.k_scale", F32, vec![1], one()),
        ];
        made(&compressed("float-quantized", weights), &tensors, |source| {
            let source = source.unwrap();
            let mut names = source.names();
            names.sort_unstable();
            assert_eq!(names, ["a.mlp.k_scale", "a.self_attn.q_proj.weight"]);
        });
    }

    #[test]
    fn every_byte_of_f8_is_what_the_paper_says() {
        assert_eq!([0, 1, 7, 8, 0x38, 0x7e].map(f8_e4m3), [0.0, 2f32.powi(-9), 7.0 / 512.0, 2f32.powi(-6), 1.0, 448.0]);
        assert!(f8_e4m3(0x7f).is_nan() && f8_e4m3(0xff).is_nan() && f8_e4m3(0xb8) == -1.0);
    }
}
