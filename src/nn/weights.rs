//! Slots filled from stored tensors. Remembers what was read, so that a tensor nobody asked for is an error.

use std::collections::HashSet;
use std::ops::Range;

use super::Slot;
use super::mix::{Mix, Part};
use crate::error::{Error, ErrorKind, OutOfMemory, Result};
use crate::ops::{Arithmetic, Backend, Format, Kept, Matrix, MatrixBuilder, Use, Vector, beside, zeros};

/// What a file says of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub shape: Vec<usize>,
    /// The file's own name of the type, where it is none that weights have (old checkpoints carry position numbers along).
    pub stored: std::result::Result<Format, String>,
}

impl Entry {
    /// The format of a tensor that holds weights.
    fn format(&self, name: &str) -> Result<Format> {
        self.stored.clone().map_err(|found| Error::format(format!("{name}: dtype: expected F32, F16 or BF16, found {found:?}")))
    }

    /// Bytes of a row: the values of the last dimension.
    fn row_bytes(&self, name: &str) -> Result<usize> {
        let (format, cols) = (self.format(name)?, self.shape.last().copied().unwrap_or(1));
        format.row_bytes(cols).ok_or_else(|| {
            let block = format.block();
            Error::format(format!("{name}: row: expected whole blocks of {block} values, found {cols} values"))
        })
    }

    /// Bytes of all rows.
    fn bytes(&self, name: &str) -> Result<usize> {
        let (_, above) = self.shape.split_last().unwrap_or((&1, &[]));
        let bytes = above.iter().try_fold(self.row_bytes(name)?, |bytes, &dim| bytes.checked_mul(dim));
        bytes.ok_or_else(|| Error::format(format!("{name}: no memory has the bytes of shape {:?}", self.shape)))
    }
}

/// Where tensors come from. Names and order of values are those of transformers, whatever the file format.
pub trait TensorSource {
    /// What the source holds under a name.
    fn entry(&self, name: &str) -> Option<&Entry>;
    /// Every name.
    fn names(&self) -> Vec<&str>;
    /// Copies little-endian bytes of a tensor, from byte `offset` on.
    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> Result<()>;
}

/// Whether convolutions are stored as `(channels, taps, 1)`: MLX's converter has done so, and what else it does to a family.
pub fn is_of_mlx(source: &dyn TensorSource) -> bool {
    let is_conv = |name: &&&str| name.ends_with("conv1d.weight");
    let has_taps_first = |name: &&str| source.entry(name).is_some_and(|e| matches!(e.shape[..], [_, taps, 1] if taps > 1));
    source.names().iter().filter(is_conv).any(has_taps_first)
}

/// Bytes that are read in one piece: progress and cancel are looked at in between.
const PIECE: usize = 1 << 20;

/// Fills slots and counts the bytes that they take.
pub struct Weights<'a> {
    source: &'a mut dyn TensorSource,
    backend: &'a Backend,
    /// What matrices are kept in; `None` = as stored.
    format: Option<Format>,
    /// Whether that is meant for others than quantised ones.
    keeps_quantised: bool,
    /// What matrices for products are quantised to instead.
    mix: Option<&'static Mix>,
    arithmetic: Arithmetic,
    used: HashSet<String>,
    /// Allocate and read nothing, only check and count.
    dry: bool,
    bytes: u64,
    parameters: u64,
    /// The next piece of a matrix, and the one that is packed.
    buffers: [Vec<u8>; 2],
}

impl<'a> Weights<'a> {
    /// Keeps matrices in `format`, or as they are in the file.
    pub fn new(source: &'a mut dyn TensorSource, backend: &'a Backend, format: Option<Format>) -> Self {
        let (used, arithmetic) = (HashSet::new(), Arithmetic::F32);
        Self {
            source,
            backend,
            format,
            keeps_quantised: false,
            mix: None,
            arithmetic,
            used,
            dry: false,
            bytes: 0,
            parameters: 0,
            buffers: [Vec::new(), Vec::new()],
        }
    }

    /// Keeps quantised matrices as they are stored, whatever others are kept in.
    pub fn keeping_quantised(self, keeps_quantised: bool) -> Self {
        Self { keeps_quantised, ..self }
    }

    /// Quantises the matrices for products, which then are for our kernels; tables that are looked up stay as they are.
    pub fn quantized(self, mix: Option<&'static Mix>) -> Self {
        Self { mix, ..self }
    }

    /// What products with quantised matrices compute in on the CPU; without, it is F32.
    pub fn computing_in(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// Checks names and shapes and counts bytes; what it returns is empty.
    pub fn dry(source: &'a mut dyn TensorSource, backend: &'a Backend, format: Option<Format>) -> Self {
        Self { dry: true, ..Self::new(source, backend, format) }
    }

    /// The bytes of all slots filled so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The stored values of all slots filled so far.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Where slots are filled.
    pub fn backend(&self) -> &Backend {
        self.backend
    }

    /// Whether the source holds a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.source.entry(name).is_some()
    }

    /// The shape of a tensor; empty if the source does not hold it.
    pub fn shape(&self, name: &str) -> &[usize] {
        self.source.entry(name).map_or(&[], |entry| &entry.shape)
    }

    /// Marks a tensor as seen that needs no slot.
    pub fn skip(&mut self, name: &str) {
        self.used.insert(name.to_string());
    }

    /// See [`is_of_mlx`].
    pub fn is_of_mlx(&self) -> bool {
        is_of_mlx(self.source)
    }

    /// Whether the name of a tensor begins like this.
    pub fn has_any(&self, start: &str) -> bool {
        self.source.names().iter().any(|name| name.starts_with(start))
    }

    /// # Errors
    /// `ErrorKind::Format` naming tensors that no slot asked for, but for those that `unused` knows, which the log is told, and
    /// buffers that old checkpoints carry along.
    pub fn finish(&self, unused: impl Fn(&str) -> bool) -> Result<()> {
        let buffers = [".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias"];
        let stale = |name: &str| unused(name) || buffers.iter().any(|buffer| name.ends_with(buffer));
        let mut left: Vec<&str> =
            self.source.names().into_iter().filter(|name| !self.used.contains(*name) && !stale(name)).collect();
        left.sort_unstable();
        let names = self.source.names();
        let skipped = || names.iter().filter(|name| !self.used.contains(**name) && unused(name));
        if let (Some(first), false) = (skipped().min(), self.dry) {
            log::info!("{} tensors have no part in this network and are not read, {first} among them", skipped().count());
        }
        match left.as_slice() {
            [] => Ok(()),
            [first, rest @ ..] => Err(Error::format(format!(
                "{first}: a tensor that the configuration has no place for{}",
                if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) }
            ))),
        }
    }

    /// A vector of `len` values in F32, plus `offset`.
    pub fn vector(&mut self, name: &str, len: usize, offset: f32) -> Result<Vector> {
        self.vector_of(&[(name.to_string(), len)], offset)
    }

    /// Several stored vectors, or flattened small matrices, one after another.
    pub fn vector_of(&mut self, parts: &[(String, usize)], offset: f32) -> Result<Vector> {
        let mut values = self.values(parts)?;
        values.iter_mut().for_each(|x| *x += offset);
        Ok(Vector::new(values, self.backend)?)
    }

    /// The same as plain numbers; nothing in a dry run.
    pub fn values(&mut self, parts: &[(String, usize)]) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for (name, len) in parts {
            let entry = self.source.entry(name).ok_or_else(|| missing(name))?;
            let found = entry.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
            // A convolution of each channel is stored as `(channels, 1, taps)`, or as MLX has it, which is the same order.
            let is_flat = entry.shape.len() <= 2 || matches!(entry.shape[..], [_, 1, _] | [_, _, 1]);
            if found != Some(*len) || !is_flat {
                return Err(Error::format(format!("{name}: expected {len} values, found shape {:?}", entry.shape)));
            }
            let (format, bytes) = (entry.format(name)?, entry.bytes(name)?);
            if !self.dry {
                let mut bytes = zeros(bytes)?;
                self.source.read(name, 0, &mut bytes)?;
                if !format.has_finite_scales(&bytes) {
                    return Err(Error::format(format!("{name}: a scale is not finite")));
                }
                // Now that the file is known to hold so many: a configuration may ask for any number.
                let some = format.try_widen(&bytes)?;
                values.try_reserve(some.len()).map_err(|_| OutOfMemory { what: format!("{} values of {name}", some.len()) })?;
                values.extend(some);
            }
            self.parameters += *len as u64;
            self.bytes += (*len * size_of::<f32>()) as u64;
            self.used.insert(name.clone());
        }
        Ok(values)
    }

    /// Stored rows of several tensors as one matrix of `cols` inputs.
    pub fn matrix(&mut self, slots: &[Slot], cols: usize) -> Result<Matrix> {
        self.matrix_of(slots, &vec![Part::Other; slots.len()], (0, 1), cols)
    }

    /// The same of slots that are these parts of one of so many layers.
    pub fn matrix_of(&mut self, slots: &[Slot], parts: &[Part], depth: (usize, usize), cols: usize) -> Result<Matrix> {
        let formats: Option<Vec<_>> = self.mix.map(|mix| parts.iter().map(|part| mix.format(*part, depth, cols)).collect());
        self.matrix_for(Use::Product, slots, cols, formats.as_deref())
    }

    /// A matrix whose rows are looked up.
    pub fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        self.matrix_for(Use::Lookup, &[Slot::whole(name, rows)], cols, None)
    }

    /// `formats` are those that the slots are quantised to.
    fn matrix_for(&mut self, purpose: Use, slots: &[Slot], cols: usize, formats: Option<&[Format]>) -> Result<Matrix> {
        let mut parts = Vec::new();
        for slot in slots {
            let name = if slot.is_stack { slot.name.clone() } else { format!("{}.weight", slot.name) };
            let entry = self.source.entry(&name).ok_or_else(|| missing(&name))?;
            let fits = match entry.shape[..] {
                [rows, width] => !slot.is_stack && rows == slot.total() && width == cols,
                [count, rows, width] => slot.is_stack && count.checked_mul(rows) == Some(slot.total()) && width == cols,
                _ => false,
            };
            if !fits {
                let expected = if slot.is_stack { "matrices of so many rows in all" } else { "shape" };
                let total = slot.total();
                return Err(Error::format(format!("{name}: expected {expected} [{total}, {cols}], found {:?}", entry.shape)));
            }
            parts.push((slot, name.clone(), entry.format(&name)?, entry.row_bytes(&name)?));
        }
        // Each part stays what it is, or becomes what it or all are to be.
        let own = |stored: Format| if self.keeps_quantised && stored.is_quantised() { None } else { self.format };
        let asked = |i: usize, stored| formats.map(|formats| formats[i]).or(own(stored)).unwrap_or(stored);
        let mut kept: Vec<_> =
            parts.iter().enumerate().map(|(i, (slot, _, stored, _))| (slot.len(), asked(i, *stored))).collect();
        let purpose = Kept { purpose, computed: self.format.unwrap_or(Format::F32) };
        // Of parts that cannot be one matrix as they are, none is quantised to less than another.
        if let Some(finest) = formats.and_then(|formats| Format::finest(formats.iter().copied()))
            && !MatrixBuilder::can_hold(&kept)
        {
            kept.iter_mut().for_each(|part| part.1 = finest);
        }
        let rows: usize = slots.iter().map(Slot::len).sum();
        self.bytes += MatrixBuilder::bytes(&kept, cols, purpose, self.backend);
        self.parameters += rows as u64 * cols as u64;
        self.used.extend(parts.iter().map(|(_, name, ..)| name.clone()));
        let builder = if self.dry {
            MatrixBuilder::new(0, cols, Format::F32, purpose.purpose, self.backend)
        } else {
            MatrixBuilder::of_parts(&kept, cols, purpose, self.backend)?
        };
        let mut builder = builder.ok_or_else(|| {
            Error::new(ErrorKind::OutOfMemory, format!("{}.weight: {rows} × {cols} weights do not fit the memory", slots[0].name))
        })?;
        if !self.dry {
            let mut first = 0;
            for ((slot, name, from, row_bytes), (_, kept)) in parts.into_iter().zip(kept) {
                for rows in slot.ranges() {
                    let len = rows.len();
                    self.fill(&mut builder, kept, first, (&name, rows), from, row_bytes)?;
                    first += len;
                }
            }
        }
        Ok(builder.computing_in(self.arithmetic).finish()?)
    }

    fn fill(
        &mut self,
        builder: &mut MatrixBuilder,
        kept: Format,
        first: usize,
        (name, rows): (&str, Range<usize>),
        from: Format,
        row_bytes: usize,
    ) -> Result<()> {
        // Whole panels of sixteen rows, so that a piece does not end within one.
        let piece = (PIECE / row_bytes / 16 * 16).max(16);
        let Self { source, buffers: [next, current], .. } = self;
        // The pool packs a piece while this thread reads the next.
        let mut read = |row: usize, into: &mut Vec<u8>| {
            let len = piece.min(rows.end - row) * row_bytes;
            let no_memory = |e| Error::new(ErrorKind::OutOfMemory, format!("{name}: {len} bytes")).with_source(e);
            into.try_reserve(len.saturating_sub(into.len())).map_err(no_memory)?;
            into.resize(len, 0);
            if into.is_empty() { Ok(()) } else { source.read(name, row as u64 * row_bytes as u64, into) }
        };
        read(rows.start, next)?;
        let mut row = rows.start;
        while row < rows.end {
            std::mem::swap(current, next);
            let (at, mut fits) = (first + row - rows.start, false);
            row += current.len() / row_bytes;
            let done = beside(|| fits = builder.fill(at, current, from), || read(row, next));
            if !fits {
                let message = match kept {
                    _ if !from.has_finite_scales(current) => "a scale is not finite",
                    Format::F16 => "a value is beyond the range of f16; load it as f32 or bf16",
                    _ => "a value is not finite or too large, and cannot be quantised; load it without quantization",
                };
                return Err(Error::format(format!("{name}: {message}")));
            }
            done?;
        }
        Ok(())
    }

    /// Whether two stored tensors hold the same values.
    pub fn equal(&mut self, a: &str, b: &str) -> Result<bool> {
        let (Some(x), Some(y)) = (self.source.entry(a), self.source.entry(b)) else { return Ok(false) };
        if x != y {
            return Ok(false);
        }
        let total = x.bytes(a)?;
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for offset in (0..total).step_by(PIECE) {
            let len = PIECE.min(total - offset);
            left.resize(len, 0);
            right.resize(len, 0);
            self.source.read(a, offset as u64, &mut left)?;
            self.source.read(b, offset as u64, &mut right)?;
            if left != right {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn missing(name: &str) -> Error {
    Error::format(format!("{name}: the model needs this tensor, and the files do not hold it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tensor.
    struct Source(Entry, Vec<u8>);

    impl TensorSource for Source {
        fn entry(&self, name: &str) -> Option<&Entry> {
            (name == "m.weight").then_some(&self.0)
        }
        fn names(&self) -> Vec<&str> {
            vec!["m.weight"]
        }
        fn read(&mut self, _: &str, offset: u64, into: &mut [u8]) -> Result<()> {
            into.copy_from_slice(&self.1[offset as usize..][..into.len()]);
            Ok(())
        }
    }

    #[test]
    fn stored_blocks_are_loaded_by_rows() {
        let cpu = Backend::new(&candle_core::Device::Cpu);
        // 40 rows of two blocks; block n has the scale 2^-(n mod 3) and holds n mod 100 everywhere.
        let scale = |n: u8| half::f16::from_f32(0.5f32.powi(i32::from(n % 3)));
        let block = |n: u8| [scale(n).to_le_bytes().to_vec(), vec![n % 100; 32]].concat();
        let value = |n: usize| (n % 100) as f32 * 0.5f32.powi(n as i32 % 3);
        let entry = |cols| Entry { shape: vec![40, cols], stored: Ok(Format::Q8_0) };
        let mut source = Source(entry(64), (0..80).flat_map(block).collect());
        let want: Vec<f32> = (20..72).flat_map(|n| [value(n); 32]).collect();
        let slots = [Slot::part("m", &[10, 26, 4], 1)];
        let blocks = 32 * 2 * 34;
        for (format, bytes) in [(None, blocks), (Some(Format::Q8_0), blocks), (Some(Format::F32), 32 * 64 * 4)] {
            let mut weights = Weights::new(&mut source, &cpu, format);
            let matrix = weights.matrix(&slots, 64).unwrap();
            assert_eq!(matrix.rows(0..26).unwrap(), want, "{format:?}");
            assert_eq!(weights.bytes(), bytes, "{format:?}");
        }
        let of_each_half = Slot { repeats: 2, ..Slot::part("m", &[6, 10, 4], 1) };
        let matrix = Weights::new(&mut source, &cpu, None).matrix(&[of_each_half], 64).unwrap();
        let rows: Vec<f32> = (12..32).chain(52..72).flat_map(|n| [value(n); 32]).collect();
        assert_eq!(matrix.rows(0..20).unwrap(), rows);
        let all = Weights::new(&mut source, &cpu, None).values(&[("m.weight".to_string(), 40 * 64)]).unwrap();
        assert_eq!(all[20 * 32..72 * 32], want);
        assert!(Weights::new(&mut source, &cpu, None).equal("m.weight", "m.weight").unwrap());

        // One bad scale, in the last block.
        let at = source.1.len() - 34;
        source.1[at..at + 2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
        for format in [None, Some(Format::F32), Some(Format::F16)] {
            let error = Weights::new(&mut source, &cpu, format).matrix(&[Slot::whole("m", 40)], 64).err().unwrap();
            assert_eq!(error.message(), "m.weight: a scale is not finite", "{format:?}");
        }
        let error = Weights::new(&mut source, &cpu, None).values(&[("m.weight".to_string(), 40 * 64)]).unwrap_err();
        assert_eq!(error.message(), "m.weight: a scale is not finite");

        source.0 = entry(45);
        for dry in [true, false] {
            let mut weights = Weights { dry, ..Weights::new(&mut source, &cpu, None) };
            let error = weights.matrix(&slots, 45).err().unwrap();
            assert!(["m.weight", "32", "45"].iter().all(|part| error.message().contains(part)), "{error}");
        }
    }
}
