//! Tokens to text, piece by piece.

use std::collections::HashSet;

use unicode_segmentation::UnicodeSegmentation;

use super::Tokenizer;
use crate::error::{Error, ErrorKind, Result};

/// Tokens to text that may be shown, as they come: whole characters and grapheme clusters, without special tokens.
///
/// ```
/// # use metal_candle::{TextStream, Tokenizer};
/// let tokenizer = Tokenizer::load("models/tiny-coder")?;
/// let (mut stream, mut text) = (TextStream::new(&tokenizer), String::new());
/// for token in tokenizer.encode("naïve 👩‍🚀", false)? {
///     text += &stream.push(token)?;
/// }
/// text += &stream.finish()?;
/// assert_eq!(text, "naïve 👩‍🚀");
/// # Ok::<(), metal_candle::Error>(())
/// ```
#[derive(Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    stop: Vec<String>,
    /// Special tokens that are stop texts by themselves; their text is never shown.
    stop_tokens: HashSet<u32>,
    /// The last tokens: those that the text depends on, then those whose text is not yet known.
    tokens: Vec<u32>,
    /// How many of them are in `known`.
    read: usize,
    /// The text of the first `read` tokens.
    known: String,
    /// Decoded, not yet shown.
    held: String,
}

/// Tokens that a character may be waited for. Four bytes are four tokens at most, but where tokens end within characters one
/// unfinished character follows the other; a model that writes no UTF-8 at all must still be shown.
const MOST_WAITING: usize = 16;

impl TextStream {
    /// A stream at its beginning.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            stop: Vec::new(),
            stop_tokens: HashSet::new(),
            tokens: Vec::new(),
            read: 0,
            known: String::new(),
            held: String::new(),
        }
    }

    /// The text that became certain with a token; may be empty. An id without a token has no text.
    ///
    /// # Errors
    /// `InvalidArgument` if the tokenizer refuses the token.
    pub fn push(&mut self, token: u32) -> Result<String> {
        let mut shown = String::new();
        self.add(token, &mut shown)?;
        Ok(shown)
    }

    /// What was held back; the stream is then at its beginning. Bytes of a character that never became whole are dropped.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<String> {
        let mut shown = String::new();
        self.flush(&mut shown)?;
        Ok(shown)
    }

    /// A stream that ends before a stop text, and shows nothing that may become one.
    pub(super) fn with_stop(tokenizer: &Tokenizer, stop: &[String]) -> Result<Self> {
        if stop.iter().any(String::is_empty) {
            return Err(Error::new(ErrorKind::InvalidArgument, "stop: expected at least one byte, found an empty text"));
        }
        let stop_tokens =
            stop.iter().filter_map(|text| tokenizer.token_id(text).ok()).filter(|&id| tokenizer.is_special(id)).collect();
        Ok(Self { stop: stop.to_vec(), stop_tokens, ..Self::new(tokenizer) })
    }

    /// Appends what became certain to `shown`; `true` if a stop text appeared.
    pub(super) fn add(&mut self, token: u32, shown: &mut String) -> Result<bool> {
        if self.stop_tokens.contains(&token) {
            self.flush(shown)?;
            return Ok(true);
        }
        self.tokens.push(token);
        let text = self.tokenizer.decode_known(&self.tokens, true)?;
        // A tokenizer shows an unfinished character as U+FFFD.
        if text.ends_with(char::REPLACEMENT_CHARACTER) && self.tokens.len() - self.read < MOST_WAITING {
            return Ok(false);
        }
        self.held.push_str(self.new_part(&text));
        // A token's text depends on the one before it (spaces at a beginning), so the last that has a text stays in view.
        let rest = self.tokenizer.decode_known(&self.tokens[self.read..], true)?;
        if rest.is_empty() {
            self.known = text;
        } else {
            self.tokens.drain(..self.read);
            self.known = rest;
        }
        self.read = self.tokens.len();

        if self.cut_at_stop() {
            shown.push_str(&std::mem::take(&mut self.held));
            return Ok(true);
        }
        let certain = self.held.len() - self.open_stop().max(open_cluster(&self.held));
        shown.extend(self.held.drain(..certain));
        Ok(false)
    }

    /// Shows what was held back; bytes of a character that never became whole are dropped.
    pub(super) fn flush(&mut self, shown: &mut String) -> Result<()> {
        let text = self.tokenizer.decode_known(&self.tokens, true)?;
        self.held.push_str(self.new_part(&text).trim_end_matches(char::REPLACEMENT_CHARACTER));
        self.tokens.clear();
        (self.read, self.known) = (0, String::new());
        self.cut_at_stop();
        shown.push_str(&std::mem::take(&mut self.held));
        Ok(())
    }

    /// What of the window's text is not in `known`.
    fn new_part<'a>(&self, text: &'a str) -> &'a str {
        text.strip_prefix(self.known.as_str()).unwrap_or_else(|| &text[common_prefix(text, &self.known)..])
    }

    /// Ends the held text before a stop text, if there is one.
    fn cut_at_stop(&mut self) -> bool {
        let at = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        self.held.truncate(at.unwrap_or(self.held.len()));
        at.is_some()
    }

    /// Bytes at the end of the held text that may be the beginning of a stop text.
    fn open_stop(&self) -> usize {
        let begins = |stop: &String| (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && self.held.ends_with(&stop[..n]));
        self.stop.iter().filter_map(begins).max().unwrap_or(0)
    }
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map_or(a.len().min(b.len()), |((at, _), _)| at)
}

/// Bytes of the last grapheme cluster, if what follows may still join it: emoji grow by joiners, skin tones
/// and flags, digits become keycaps.
fn open_cluster(text: &str) -> usize {
    let Some(cluster) = text.graphemes(true).next_back() else { return 0 };
    let grows = |c: char| matches!(c, '0'..='9' | '#' | '*' | '\u{200d}' | '\u{fe0f}' | '\u{20e3}' | '\u{2190}'..='\u{2bff}' | '\u{3030}' | '\u{303d}' | '\u{3297}' | '\u{3299}' | '\u{1f000}'..='\u{1faff}' | '\u{e0020}'..='\u{e007f}');
    if cluster.chars().any(grows) { cluster.len() } else { 0 }
}

impl std::fmt::Debug for TextStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextStream(holding {:?})", self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clusters_that_may_grow_are_held() {
        assert_eq!(open_cluster("abc"), 0);
        assert_eq!(open_cluster("日本"), 0);
        assert_eq!(open_cluster("a 👩"), "👩".len());
        assert_eq!(open_cluster("👩\u{200d}"), "👩\u{200d}".len());
        assert_eq!(open_cluster("👩 "), 0);
        assert_eq!(open_cluster("🇩"), "🇩".len());
    }

    fn stream(stop: &[&str]) -> TextStream {
        let tokenizer = Tokenizer::load("models/tiny-coder").unwrap();
        TextStream::with_stop(&tokenizer, &stop.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    /// All pieces of a text, and whether a stop text ended it.
    fn pieces(text: &str, stop: &[&str]) -> (Vec<String>, bool) {
        let mut stream = stream(stop);
        let mut pieces = Vec::new();
        for token in stream.tokenizer.encode(text, false).unwrap() {
            let mut piece = String::new();
            let stopped = stream.add(token, &mut piece).unwrap();
            pieces.push(piece);
            if stopped {
                return (pieces, true);
            }
        }
        let mut rest = String::new();
        stream.flush(&mut rest).unwrap();
        pieces.push(rest);
        (pieces, false)
    }

    #[test]
    fn emoji_cjk_and_joined_sequences_are_never_split() {
        for text in ["👩‍👩‍👧‍👦", "a👍🏽b", "🇩🇪🇫🇷", "你好，世界", "naïve é ü", "👩‍🚀 x 👩‍🚀", "1️⃣2️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿!"]
        {
            let (pieces, _) = pieces(text, &[]);
            assert_eq!(pieces.concat(), text);
            let whole: Vec<&str> = text.graphemes(true).collect();
            let parts: Vec<String> =
                pieces.iter().flat_map(|p| p.graphemes(true).map(str::to_string).collect::<Vec<_>>()).collect();
            assert_eq!(parts, whole, "{text}");
        }
    }

    #[test]
    fn a_stop_text_over_several_tokens_is_never_shown() {
        let (shown, stopped) = pieces("let x = 1; // END of it", &["// END"]);
        assert!(stopped);
        assert_eq!(shown.concat(), "let x = 1; ");
        let (shown, stopped) = pieces("a // EN", &["// END"]);
        assert!(!stopped);
        assert_eq!(shown.concat(), "a // EN", "what did not become a stop text is shown at the end");
        let (shown, stopped) = pieces("aaab", &["aab"]);
        assert_eq!((shown.concat().as_str(), stopped), ("a", true));
    }

    #[test]
    fn a_special_token_can_be_a_stop_text() {
        let (shown, stopped) = pieces("yes<|im_start|>no", &["<|im_start|>"]);
        assert_eq!((shown.concat().as_str(), stopped), ("yes", true));
    }

    #[test]
    fn an_unfinished_character_at_the_end_is_dropped() {
        let mut stream = stream(&[]);
        let tokens = stream.tokenizer.encode("ab 𝔘", false).unwrap();
        let mut shown = String::new();
        for &token in &tokens[..tokens.len() - 1] {
            stream.add(token, &mut shown).unwrap();
        }
        stream.flush(&mut shown).unwrap();
        assert!(shown.starts_with("ab") && !shown.contains(char::REPLACEMENT_CHARACTER), "{shown:?}");
    }

    #[test]
    fn a_skipped_special_token_does_not_eat_the_space_after_it() {
        let mut stream = stream(&[]);
        let mut shown = String::new();
        for token in stream.tokenizer.encode("one<|im_start|> two", false).unwrap() {
            stream.add(token, &mut shown).unwrap();
        }
        stream.flush(&mut shown).unwrap();
        assert_eq!(shown, "one two");
    }
}
