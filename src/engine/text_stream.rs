//! Tokens to text, piece by piece.

use std::collections::HashSet;

use unicode_segmentation::UnicodeSegmentation;

use super::Tokenizer;
use crate::error::{Error, ErrorKind, Result};

/// Tokens to text that may be shown, as they come: whole characters and grapheme clusters, without special tokens.
///
/// ```
/// # use metal_candle::{TextStream, Tokenizer};
/// # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
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

/// Tokens of single bytes that are looked back over.
const MOST_BYTES: usize = 256;

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

    /// The same behind tokens whose end the text continues.
    pub(super) fn behind(tokenizer: &Tokenizer, stop: &[String], held: &[u32]) -> Result<Self> {
        let mut stream = Self::with_stop(tokenizer, stop)?;
        stream.continue_from(held)?;
        Ok(stream)
    }

    /// Puts the end of what stands before into view: a token's text depends on the one before it (a space at a beginning is none),
    /// and bytes of a character may have come before.
    fn continue_from(&mut self, held: &[u32]) -> Result<()> {
        // Behind a special token a text begins.
        let begin = held.iter().rposition(|&token| self.tokenizer.is_special(token)).map_or(0, |at| at + 1);
        let mut from = begin.max(held.len().saturating_sub(MOST_WAITING));
        // Bytes that are tokens are a text or none all together.
        while from > begin && held.len() - from < MOST_BYTES && self.tokenizer.byte(held[from]).is_some() {
            from -= 1;
        }
        // Of those that are too many the last begin with a character.
        while from > begin && from < held.len() && self.tokenizer.byte(held[from]).is_some_and(|byte| byte & 0xC0 == 0x80) {
            from += 1;
        }
        self.tokens = held[from..].to_vec();
        self.read = self.tokens.len();
        self.known = self.tokenizer.decode_known(&self.tokens, true)?;
        // The tokens of a character that is not whole are still to be shown, with what comes.
        for count in 1..=self.tokens.len().min(3) {
            if !self.known.ends_with(char::REPLACEMENT_CHARACTER) {
                break;
            }
            let before = self.tokenizer.decode_known(&self.tokens[..self.tokens.len() - count], true)?;
            if !before.ends_with(char::REPLACEMENT_CHARACTER) {
                (self.read, self.known) = (self.tokens.len() - count, before);
                break;
            }
        }
        Ok(())
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

    /// What would stand behind all that was shown, were this token the next and the last one.
    pub(super) fn preview(&self, token: u32) -> Result<String> {
        let tokens = [self.tokens.as_slice(), &[token]].concat();
        let text = self.tokenizer.decode_known(&tokens, true)?;
        Ok(format!("{}{}", self.held, self.new_part(&text)))
    }

    /// What is not shown yet.
    pub(super) fn held(&self) -> &str {
        &self.held
    }

    /// Shows what was held back because of what might follow it: a mark does, which is no part of the text.
    pub(super) fn separate(&mut self, shown: &mut String) {
        shown.push_str(&std::mem::take(&mut self.held));
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

#[cfg(all(test, reference_data))]
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
    fn an_answer_in_pieces_is_the_answer_of_one_call() {
        let tokens = ["<s>", "▁the", "▁dog", "x", "<0xE2>", "<0x82>", "<0xAC>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "▁"];
        let vocab: Vec<String> = tokens.iter().enumerate().map(|(id, token)| format!("{token:?}: {id}")).collect();
        let text = format!(
            r#"{{"version": "1.0", "added_tokens": [{{"id": 0, "content": "<s>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}}], "decoder": {{"type": "Sequence", "decoders": [
                {{"type": "Replace", "pattern": {{"String": "▁"}}, "content": " "}}, {{"type": "ByteFallback"}}, {{"type": "Fuse"}},
                {{"type": "Strip", "content": " ", "start": 1, "stop": 0}}]}},
                "model": {{"type": "BPE", "vocab": {{{}}}, "merges": []}}}}"#,
            vocab.join(", ")
        );
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tokenizer.json"), text).unwrap();
        let tokenizer = Tokenizer::load(directory.path()).unwrap();
        let answer = |held: &[u32], ids: &[u32]| {
            let (mut stream, mut shown) = (TextStream::behind(&tokenizer, &[], held).unwrap(), String::new());
            ids.iter().for_each(|id| assert!(!stream.add(*id, &mut shown).unwrap()));
            stream.flush(&mut shown).unwrap();
            shown
        };
        for (held, ids, expected) in [
            (vec![0], vec![1, 2, 3, 1, 2], "the dogx the dog"),
            (vec![0], vec![4, 5, 6], "€"),
            (vec![0, 3], vec![7, 8, 9, 10, 4, 5, 6, 3], "😀€x"),
            // Behind a word, and behind a token at which a text begins.
            (vec![0, 1], vec![2, 1], " dog the"),
            (vec![0, 1, 0], vec![2], "dog"),
            (vec![0, 1, 4, 5], vec![6, 3], "€x"),
            (vec![0], [[4, 5, 6]; 100].concat(), &"€".repeat(100)),
        ] {
            assert_eq!(answer(&held, &ids), expected);
            for size in [1, 2, 3] {
                let (mut held, mut pieces) = (held.clone(), String::new());
                for ids in ids.chunks(size) {
                    pieces.push_str(&answer(&held, ids));
                    held.extend_from_slice(ids);
                }
                assert_eq!(pieces, expected, "{size}");
            }
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
