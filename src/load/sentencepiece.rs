//! The pieces of a SentencePiece model, a message of protocol buffers.
//!
//! # Source
//! `sentencepiece_model.proto` of <https://github.com/google/sentencepiece>; <https://protobuf.dev/programming-guides/encoding>.

use std::io::Read;
use std::path::Path;

use super::text::open_file;
use crate::error::{Error, Result};
use crate::kernels::check_room;

/// Larger than any model.
const MAX_BYTES: u64 = 1 << 26;
/// The longest piece in bytes: every cut of one is looked up.
const MAX_PIECE: usize = 512;

/// A piece of a text, by its id.
pub struct SentencePiece {
    pub text: String,
    pub score: f32,
    pub kind: SentencePieceKind,
}

/// What a piece is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SentencePieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Byte,
    Unused,
}

impl SentencePiece {
    /// Whether texts are put together to it.
    pub fn is_merged(&self) -> bool {
        matches!(self.kind, SentencePieceKind::Normal | SentencePieceKind::UserDefined | SentencePieceKind::Unused)
    }
}

/// The pieces of a model of byte pairs that changes no text but for a space in front; `None` for another one.
///
/// # Errors
/// `Io`, `OutOfMemory`; `Format` for what is no such message.
pub fn pieces(path: &Path, file: &str) -> Result<Option<Vec<SentencePiece>>> {
    let mut bytes = Vec::new();
    open_file(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::format(format!("{file}: expected up to {MAX_BYTES} bytes, found more")));
    }
    // The shortest piece takes five bytes there.
    check_room(file, bytes.len().saturating_mul(size_of::<SentencePiece>().div_ceil(5) + 32))?;
    let bad = || Error::format(format!("{file}: expected a model of SentencePiece, found other bytes"));
    parsed(&bytes).ok_or_else(bad)
}

/// `None` for what is no model, and within for a model of another kind.
fn parsed(bytes: &[u8]) -> Option<Option<Vec<SentencePiece>>> {
    // What a message leaves out.
    let (mut pieces, mut kind, mut falls_back, mut has_map, mut trims, mut prefix) = (Vec::new(), 1, false, false, true, true);
    for field in WireFields(bytes) {
        match field? {
            (1, WireField::Bytes(piece)) => pieces.push(piece_of(piece)?),
            (2, WireField::Bytes(trainer)) => {
                for field in WireFields(trainer) {
                    match field? {
                        (3, WireField::Number(number)) => kind = number,
                        (35, WireField::Number(number)) => falls_back = number != 0,
                        _ => {}
                    }
                }
            }
            (3, WireField::Bytes(normalizer)) => {
                for field in WireFields(normalizer) {
                    match field? {
                        (2, WireField::Bytes(map)) => has_map = !map.is_empty(),
                        (3, WireField::Number(number)) => prefix = number != 0,
                        (4, WireField::Number(number)) => trims = number != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    const BYTE_PAIRS: u64 = 2;
    if pieces.is_empty() {
        return None;
    }
    Some((kind == BYTE_PAIRS && falls_back && prefix && !has_map && !trims).then_some(pieces))
}

fn piece_of(bytes: &[u8]) -> Option<SentencePiece> {
    const KINDS: [SentencePieceKind; 6] = [
        SentencePieceKind::Normal,
        SentencePieceKind::Unknown,
        SentencePieceKind::Control,
        SentencePieceKind::UserDefined,
        SentencePieceKind::Unused,
        SentencePieceKind::Byte,
    ];
    let mut piece = SentencePiece { text: String::new(), score: 0.0, kind: SentencePieceKind::Normal };
    for field in WireFields(bytes) {
        match field? {
            (1, WireField::Bytes(text)) if text.len() <= MAX_PIECE => piece.text = std::str::from_utf8(text).ok()?.to_string(),
            (1, _) => return None,
            (2, WireField::Fixed(bits)) => piece.score = Some(f32::from_bits(bits)).filter(|score| score.is_finite())?,
            (3, WireField::Number(number)) => piece.kind = *KINDS.get(usize::try_from(number).ok()?.checked_sub(1)?)?,
            _ => {}
        }
    }
    Some(piece)
}

enum WireField<'a> {
    Number(u64),
    /// Four bytes.
    Fixed(u32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message with their numbers; `None` once it is none.
struct WireFields<'a>(&'a [u8]);

impl<'a> WireFields<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.0.split_off_first()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self, len: u64) -> Option<&'a [u8]> {
        self.0.split_off(..usize::try_from(len).ok()?)
    }

    fn field(&mut self) -> Option<(u64, WireField<'a>)> {
        let tag = self.number()?;
        let field = match tag & 7 {
            0 => WireField::Number(self.number()?),
            1 => self.bytes(8).map(|_| WireField::Other)?,
            2 => {
                let len = self.number()?;
                WireField::Bytes(self.bytes(len)?)
            }
            5 => WireField::Fixed(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, field))
    }
}

impl<'a> Iterator for WireFields<'a> {
    type Item = Option<(u64, WireField<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}
