//! What changes of a checkpoint's tensors when a model is written anew.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::ops::Format;

/// Takes the next bytes of a tensor that is written.
pub type Put<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Gives rows of a matrix in F32, flattened; of a vector each value is a row.
pub type Rows<'a> = dyn Fn(Range<usize>) -> Result<Vec<f32>> + 'a;

/// What becomes of a tensor.
pub struct Rewrite<'a> {
    /// What a matrix is written in.
    pub format: Format,
    /// Its new values; `None` = those of the files.
    pub rows: Option<Box<Rows<'a>>>,
}

/// Values that are made at once, on the way to the file.
const VALUES: usize = 1 << 20;

/// Writes all rows of a tensor in a format.
///
/// # Errors
/// `ErrorKind::Format` for a value that the format cannot hold.
pub fn write_rows(name: &str, rows: usize, format: Format, values: &Rows<'_>, put: &mut Put<'_>) -> Result<()> {
    let (mut bytes, mut row, mut at_once) = (Vec::new(), 0, 1);
    while row < rows {
        let count = at_once.min(rows - row);
        let values = values(row..row + count)?;
        bytes.clear();
        if !format.write(&values, &mut bytes) {
            return Err(Error::format(format!("{name}: a value does not fit the type {}", format.name())));
        }
        put(&bytes)?;
        row += count;
        // The first row says how long one is.
        at_once = (VALUES * count / values.len().max(1)).max(1);
    }
    Ok(())
}
