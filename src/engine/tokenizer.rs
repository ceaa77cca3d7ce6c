//! Text to token ids and back, by tokenizer.json.

use std::path::Path;

use crate::error::Result;

#[derive(Clone)]
pub struct Tokenizer {}

impl Tokenizer {
    /// `path`: a tokenizer.json or a directory that holds one.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let _ = path.as_ref();
        todo!()
    }
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        todo!("{text} {add_special}")
    }
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        todo!("{tokens:?} {skip_special}")
    }
    /// # Errors
    /// `ErrorKind::NotFound` if the vocabulary lacks the token.
    pub fn token_id(&self, token: &str) -> Result<u32> {
        todo!("{token}")
    }
    /// With added tokens.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
}
