//! tokenizer.json, by the crate `tokenizers`. The crate trusts it: what it would panic on is refused here.

use std::panic::catch_unwind;

use tokenizers::{NormalizerWrapper, Tokenizer};

use crate::error::{Error, Result};

/// The charsmaps of SentencePiece have up to 320 kB.
const MAX_CHARSMAP: usize = 4 << 20;

/// Reads the text of a tokenizer.json.
///
/// # Errors
/// `Format`.
pub fn parse_tokenizer(json: &str) -> Result<Tokenizer> {
    // It joins the halves of a merge in a room that is as long as the longest token.
    let parsed = catch_unwind(|| Tokenizer::from_bytes(json));
    let parsed = parsed.map_err(|_| Error::format("not a tokenizer: the crate tokenizers panicked"))?;
    let tokenizer = parsed.map_err(|e| Error::format(format!("not a tokenizer: {e}")).with_source(e))?;
    if let Some(normalizer) = tokenizer.get_normalizer() {
        check_normalizer(normalizer)?;
    }
    Ok(tokenizer)
}

fn check_normalizer(normalizer: &NormalizerWrapper) -> Result<()> {
    match normalizer {
        NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().try_for_each(check_normalizer),
        NormalizerWrapper::Precompiled(map) => {
            let key = "precompiled_charsmap";
            // The crate shows it in this form alone.
            let text = serde_json::to_value(map).map_err(|e| Error::format(format!("{key}: {e}")).with_source(e))?;
            let bytes = text[key].as_str().map(base64).unwrap_or_default();
            check_charsmap(&bytes).map_err(|expected| Error::format(format!("{key}: expected {expected}")))
        }
        _ => Ok(()),
    }
}

/// The bytes of a text that an encoder wrote.
fn base64(text: &str) -> Vec<u8> {
    let six = |sign: u8| match sign {
        b'A'..=b'Z' => u32::from(sign - b'A'),
        b'a'..=b'z' => u32::from(sign - b'a') + 26,
        b'0'..=b'9' => u32::from(sign - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let text = text.trim_end_matches('=').as_bytes();
    let three = |signs: &[u8]| {
        let bits = signs.iter().enumerate().fold(0, |bits, (at, &sign)| bits | six(sign) << (18 - 6 * at));
        bits.to_be_bytes().into_iter().skip(1).take(signs.len() * 6 / 8)
    };
    text.chunks(4).flat_map(three).collect()
}

/// Holds a charsmap, by which SentencePiece normalises, against what the crate reads of it without looking: a trie of u32 behind
/// its length in bytes, whose leaves are places in the texts behind it, each ended by a zero. The error is what was expected.
///
/// # Source
/// `DoubleArrayUnit` of Darts-clone, <https://github.com/s-yata/darts-clone/blob/master/include/darts.h>.
pub fn check_charsmap(bytes: &[u8]) -> std::result::Result<(), &'static str> {
    if bytes.len() > MAX_CHARSMAP {
        return Err("up to 4 MiB");
    }
    let (len, rest) = bytes.split_first_chunk::<4>().ok_or("the length of a trie")?;
    let len = u32::from_le_bytes(*len) as usize;
    if len == 0 || !len.is_multiple_of(4) || len > rest.len() {
        return Err("a trie of whole units");
    }
    let (trie, texts) = rest.split_at(len);
    let texts = std::str::from_utf8(texts).map_err(|_| "texts in UTF-8 behind the trie")?;
    let units: Vec<u32> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let mut seen = vec![false; units.len()];
    let mut open = vec![0];
    while let Some(node) = open.pop() {
        let unit = units[node];
        let base = node ^ offset(unit);
        // A byte of a text changes the low eight bits.
        if base | 0xff >= units.len() {
            return Err("a trie whose offsets stay within it");
        }
        if node != 0 && unit & (1 << 8) != 0 && !texts.is_char_boundary((units[base] & !(1 << 31)) as usize) {
            return Err("leaves that are places in the texts");
        }
        for byte in 1..=0xff {
            let child = base ^ byte;
            // The top bit is that of leaves.
            if units[child] & (1 << 31 | 0xff) == byte as u32 && !seen[child] {
                seen[child] = true;
                open.push(child);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `A` becomes `a`.
    fn charsmap() -> Vec<u8> {
        let mut units = vec![0u32; 0x300];
        units[0] = 0x100 << 10;
        units[0x141] = (0x141 ^ 0x200) << 10 | 1 << 8 | 0x41;
        units[0x200] = 1 << 31;
        let trie = units.iter().flat_map(|unit| unit.to_le_bytes());
        (4 * 0x300u32).to_le_bytes().into_iter().chain(trie).chain(*b"a\0").collect()
    }

    /// With one unit of the trie changed.
    fn spoiled(unit: usize, value: u32) -> Vec<u8> {
        let mut bytes = charsmap();
        bytes[4 + 4 * unit..][..4].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    #[test]
    fn a_charsmap_is_walked_before_it_is_used() {
        let map = charsmap();
        assert_eq!(check_charsmap(&map), Ok(()));
        let trie = 4 + 4 * 0x300;
        let cases: [(&[u8], &str); 8] = [
            (&[], "the length of a trie"),
            (&map[..trie - 1], "a trie of whole units"),
            (&[0, 0, 0, 0, 97, 0], "a trie of whole units"),
            (&[&map[..trie], &[0xff]].concat(), "texts in UTF-8 behind the trie"),
            (&spoiled(0, 0x300 << 10), "a trie whose offsets stay within it"),
            (&spoiled(0x141, 0x7ff << 10 | 0x41), "a trie whose offsets stay within it"),
            (&spoiled(0x200, 1 << 31 | 3), "leaves that are places in the texts"),
            (&vec![0; MAX_CHARSMAP + 1], "up to 4 MiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(check_charsmap(bytes), Err(expected));
        }
    }

    #[test]
    fn what_the_crate_panics_on_is_refused() {
        let tokenizer = |normalizer: &str, merge: &str| {
            format!(
                r#"{{"version": "1.0", "added_tokens": [], "normalizer": {normalizer},
                    "model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1, "aa": 2}}, "merges": ["{merge}"]}}}}"#
            )
        };
        // The trie of `charsmap`, then one that leaves itself.
        let map = |bytes: &[u8]| {
            let signs = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let mut bits = bytes.chunks(3).map(|three| (three, three.iter().fold(0u32, |bits, &b| bits << 8 | u32::from(b))));
            let text: String = bits
                .by_ref()
                .flat_map(|(three, bits)| {
                    let bits = bits << (8 * (3 - three.len()));
                    let keep = three.len() + 1;
                    (0..4).map(move |at| if at < keep { signs[(bits >> (18 - 6 * at)) as usize & 63] as char } else { '=' })
                })
                .collect();
            format!(r#"{{"type": "Sequence", "normalizers": [{{"type": "Precompiled", "precompiled_charsmap": "{text}"}}]}}"#)
        };
        for extra in 0..3 {
            let bytes = [charsmap(), vec![0; extra]].concat();
            assert_eq!(base64(map(&bytes).split('"').nth(13).unwrap()), bytes);
        }
        let good = parse_tokenizer(&tokenizer(&map(&charsmap()), "a a")).unwrap();
        assert_eq!(good.encode("AA", false).unwrap().get_ids(), [2]);
        let error = |json: &str| parse_tokenizer(json).unwrap_err().to_string();
        let spoiled = error(&tokenizer(&map(&spoiled(0, 0x300 << 10)), "a a"));
        assert_eq!(spoiled, "precompiled_charsmap: expected a trie whose offsets stay within it");
        assert!(error(&tokenizer("null", "aa aa")).contains("panicked"));
        assert!(error(&tokenizer("null", "b b")).contains("out of vocabulary"));
    }
}
