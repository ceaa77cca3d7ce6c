//! The formats that numbers are kept in, in files and in memory: one table.
//!
//! Values come in blocks: of one in plain floats, of those that share a scale in quantised formats. A new format
//! is `format/x.rs` with its unpacker, and a row here.

use half::{bf16, f16};

pub mod q8_0;

/// What the table says of a format.
pub struct FormatRow {
    /// As headers of safetensors and the option `quantization` spell it.
    name: &'static str,
    /// Values of a block.
    block: usize,
    /// Bytes of a block in a file.
    bytes: usize,
    /// Its number in `ggml_type`, <https://github.com/ggml-org/ggml/blob/master/include/ggml.h>.
    gguf: u32,
    /// Widens the blocks of a file.
    unpack: fn(&[u8], &mut [f32]),
}

/// Declares each format with its row, so that none can lack one.
macro_rules! formats {
    ($($format:ident: $row:expr;)*) => {
        /// A format of numbers. Arithmetic is F32 with each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Format {
            $($format,)*
        }

        /// The rows, in the order of the formats.
        static FORMATS: &[(Format, FormatRow)] = &[$((Format::$format, $row),)*];
    };
}

formats! {
    F32: FormatRow { name: "F32", block: 1, bytes: 4, gguf: 0, unpack: |b, to| each(b, to, f32::from_le_bytes) };
    F16: FormatRow { name: "F16", block: 1, bytes: 2, gguf: 1, unpack: |b, to| each(b, to, f16_from_le_bytes) };
    BF16: FormatRow { name: "BF16", block: 1, bytes: 2, gguf: 30, unpack: |b, to| each(b, to, bf16_from_le_bytes) };
    Q8_0: q8_0::ROW;
}

impl Format {
    /// Every format.
    pub fn all() -> impl Iterator<Item = Self> {
        FORMATS.iter().map(|(format, _)| *format)
    }

    /// The format of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|format| format.name() == name)
    }

    /// The format of this number in `ggml_type`.
    pub fn of_ggml(number: u32) -> Option<Self> {
        Self::all().find(|format| format.row().gguf == number)
    }

    /// As headers of safetensors and the option `quantization` spell it.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Whether values share a scale.
    pub fn is_quantised(self) -> bool {
        self.block() > 1
    }

    /// Values of a block.
    pub fn block(self) -> usize {
        self.row().block
    }

    /// Bytes of a block in a file.
    pub fn block_bytes(self) -> usize {
        self.row().bytes
    }

    /// Bytes of a row of `cols` values in a file; `None` if they are no whole blocks, or too many.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let blocks = cols.is_multiple_of(self.block()).then(|| cols / self.block())?;
        blocks.checked_mul(self.block_bytes())
    }

    /// The values of blocks in a file.
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / self.block_bytes() * self.block()];
        (self.row().unpack)(bytes, &mut values);
        values
    }

    fn row(self) -> &'static FormatRow {
        &FORMATS[self as usize].1
    }
}

pub fn f16_from_le_bytes(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

pub fn bf16_from_le_bytes(bytes: [u8; 2]) -> f32 {
    bf16::from_le_bytes(bytes).to_f32()
}

fn each<const N: usize>(bytes: &[u8], to: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    to.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, bytes)| *x = read(*bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_in_whole_blocks() {
        // As ggml.h has them: number, values of a block, bytes of a block.
        let rows = [("F32", 0, 1, 4), ("F16", 1, 1, 2), ("BF16", 30, 1, 2), ("q8_0", 8, 32, 34)];
        for (name, gguf, block, bytes) in rows {
            let format = Format::named(name).unwrap();
            assert_eq!((format.row().gguf, format.block()), (gguf, block), "{name}");
            assert_eq!(format.row_bytes(96), Some(96 / block * bytes), "{name}");
            assert_eq!(format.row_bytes(97), (block == 1).then_some(97 * bytes), "{name}");
            assert_eq!(format.row_bytes(usize::MAX - 31), None, "{name}");
        }
        assert_eq!(Format::all().count(), rows.len());
        assert_eq!((Format::named("f32"), Format::named("Q8_0")), (None, None));
    }
}
