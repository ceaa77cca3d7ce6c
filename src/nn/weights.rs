//! Slots filled from stored tensors. Remembers what was read, so that a tensor nobody asked for is an error.

use std::collections::HashSet;
use std::ops::Range;

use super::Slot;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Backend, Matrix, MatrixBuilder, Quant, StoredType, Use, Vector, widen};

/// What a file says of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub shape: Vec<usize>,
    /// The file's own name of the type, where it is none that weights have (old checkpoints carry position numbers along).
    pub stored: std::result::Result<StoredType, String>,
}

impl Entry {
    /// The type of a tensor that holds weights.
    fn stored(&self, name: &str) -> Result<StoredType> {
        self.stored.clone().map_err(|found| Error::format(format!("{name}: dtype: expected F32, F16 or BF16, found {found:?}")))
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

/// Bytes that are read in one piece: progress and cancel are looked at in between.
const PIECE: usize = 1 << 20;

/// Fills slots and counts the bytes that they take.
pub struct Weights<'a> {
    source: &'a mut dyn TensorSource,
    backend: &'a Backend,
    /// The type that matrices are kept in; `None` = as stored.
    stored: Option<StoredType>,
    /// What matrices for products are kept in instead.
    quant: Option<Quant>,
    used: HashSet<String>,
    /// Allocate and read nothing, only check and count.
    dry: bool,
    bytes: u64,
    parameters: u64,
    buffer: Vec<u8>,
}

impl<'a> Weights<'a> {
    /// Reads matrices as `stored`, or as they are in the file.
    pub fn new(source: &'a mut dyn TensorSource, backend: &'a Backend, stored: Option<StoredType>) -> Self {
        let used = HashSet::new();
        Self { source, backend, stored, quant: None, used, dry: false, bytes: 0, parameters: 0, buffer: Vec::new() }
    }

    /// Quantises the matrices for products, which then are for our kernels; tables that are looked up stay as they are.
    pub fn quantized(self, quant: Option<Quant>) -> Self {
        Self { quant, ..self }
    }

    /// Checks names and shapes and counts bytes; what it returns is empty.
    pub fn dry(source: &'a mut dyn TensorSource, backend: &'a Backend, stored: Option<StoredType>) -> Self {
        Self { dry: true, ..Self::new(source, backend, stored) }
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

    /// Marks a tensor as seen that needs no slot.
    pub fn skip(&mut self, name: &str) {
        self.used.insert(name.to_string());
    }

    /// Whether the name of a tensor begins like this.
    pub fn has_any(&self, start: &str) -> bool {
        self.source.names().iter().any(|name| name.starts_with(start))
    }

    /// # Errors
    /// `ErrorKind::Format` naming tensors that no slot asked for, but for those that `unused` knows and buffers that old
    /// checkpoints carry along.
    pub fn finish(&self, unused: impl Fn(&str) -> bool) -> Result<()> {
        let buffers = [".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias"];
        let stale = |name: &str| unused(name) || buffers.iter().any(|buffer| name.ends_with(buffer));
        let mut left: Vec<&str> =
            self.source.names().into_iter().filter(|name| !self.used.contains(*name) && !stale(name)).collect();
        left.sort_unstable();
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
            if entry.shape.iter().product::<usize>() != *len || entry.shape.len() > 2 {
                return Err(Error::format(format!("{name}: expected {len} values, found shape {:?}", entry.shape)));
            }
            let stored = entry.stored(name)?;
            if !self.dry {
                let mut bytes = vec![0; len * stored.size()];
                self.source.read(name, 0, &mut bytes)?;
                // Now that the file is known to hold so many: a configuration may ask for any number.
                values.extend(widen(&bytes, stored));
            }
            self.parameters += *len as u64;
            self.bytes += (*len * size_of::<f32>()) as u64;
            self.used.insert(name.clone());
        }
        Ok(values)
    }

    /// Stored rows of several tensors as one matrix of `cols` inputs.
    pub fn matrix(&mut self, slots: &[Slot], cols: usize) -> Result<Matrix> {
        self.matrix_for(Use::Product, slots, cols)
    }

    /// A matrix whose rows are looked up.
    pub fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        self.matrix_for(Use::Lookup, &[Slot::whole(name, rows)], cols)
    }

    fn matrix_for(&mut self, purpose: Use, slots: &[Slot], cols: usize) -> Result<Matrix> {
        let mut types = Vec::new();
        for slot in slots {
            let name = format!("{}.weight", slot.name);
            let entry = self.source.entry(&name).ok_or_else(|| missing(&name))?;
            if entry.shape != [slot.total(), cols] {
                return Err(Error::format(format!("{name}: expected shape [{}, {cols}], found {:?}", slot.total(), entry.shape)));
            }
            types.push(entry.stored(&name)?);
        }
        // Parts of different types meet in the one that holds them all.
        let common = if types.windows(2).all(|pair| pair[0] == pair[1]) { types[0] } else { StoredType::F32 };
        let stored = self.stored.unwrap_or(common);
        let quant = self.quant.filter(|_| purpose == Use::Product);
        let rows: usize = slots.iter().map(Slot::len).sum();
        self.bytes += match quant {
            Some(quant) => MatrixBuilder::quantized_bytes(rows, cols, quant),
            None => MatrixBuilder::bytes(rows, cols, stored, purpose, self.backend),
        };
        self.parameters += rows as u64 * cols as u64;
        self.used.extend(slots.iter().map(|slot| format!("{}.weight", slot.name)));
        let room = if self.dry { 0 } else { rows };
        let builder = match quant {
            Some(quant) => MatrixBuilder::quantized(room, cols, quant),
            None => MatrixBuilder::new(room, cols, stored, purpose, self.backend),
        };
        let mut builder = builder.ok_or_else(|| {
            Error::new(ErrorKind::OutOfMemory, format!("{}.weight: {rows} × {cols} weights do not fit the memory", slots[0].name))
        })?;
        if !self.dry {
            let mut first = 0;
            for (slot, from) in slots.iter().zip(types) {
                for rows in slot.ranges() {
                    let len = rows.len();
                    self.fill(&mut builder, quant, first, (&slot.name, rows), cols, from)?;
                    first += len;
                }
            }
        }
        Ok(builder.finish()?)
    }

    fn fill(
        &mut self,
        builder: &mut MatrixBuilder,
        quant: Option<Quant>,
        first: usize,
        (name, rows): (&str, Range<usize>),
        cols: usize,
        from: StoredType,
    ) -> Result<()> {
        let name = format!("{name}.weight");
        let row_bytes = cols * from.size();
        // Whole panels of sixteen rows, so that a piece does not end within one.
        let piece = (PIECE / row_bytes / 16 * 16).max(16);
        let mut row = rows.start;
        while row < rows.end {
            let count = piece.min(rows.end - row);
            self.buffer.resize(count * row_bytes, 0);
            self.source.read(&name, (row * row_bytes) as u64, &mut self.buffer)?;
            if !builder.fill(first + row - rows.start, &self.buffer, from) {
                let message = match quant {
                    Some(_) => "is not finite or beyond 8.3 million, and cannot be quantised; load it without quantization",
                    None => "is beyond the range of f16; load it as f32 or bf16",
                };
                return Err(Error::format(format!("{name}: a value {message}")));
            }
            row += count;
        }
        Ok(())
    }

    /// Whether two stored tensors hold the same values.
    pub fn equal(&mut self, a: &str, b: &str) -> Result<bool> {
        let (Some(x), Some(y)) = (self.source.entry(a), self.source.entry(b)) else { return Ok(false) };
        if x != y {
            return Ok(false);
        }
        let total = x.shape.iter().product::<usize>() * x.stored(a)?.size();
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
