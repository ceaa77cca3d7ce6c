//! How texts are cut before BPE: what a GGUF file names in `tokenizer.ggml.pre`, and what the named tokenizers do.
//!
//! A file has the name alone. What stands here are the patterns of the tokenizer.json of those models, for the engine that reads
//! them there too; llama.cpp's own differ where its engine lacks look-ahead and classes.

/// What a name of `tokenizer.ggml.pre` stands for.
pub(super) struct Pre {
    pub names: &'static [&'static str],
    /// The text is cut by one pattern after another: matches, and what lies between.
    pub patterns: &'static [&'static str],
    /// Whether texts are composed first (Unicode's form C). No file says it: here where the models' own tokenizers do.
    pub nfc: bool,
    /// Whether a piece that is a token is not put together from merges.
    pub ignore_merges: bool,
    /// Whether BOS comes first where the file does not say.
    pub add_bos: bool,
}

impl Pre {
    /// # Errors
    /// `None` for a name that is not in the table.
    pub fn named(name: &str) -> Option<&'static Self> {
        TABLE.iter().find(|pre| pre.names.contains(&name))
    }

    /// What llama.cpp does for files of 2023, which name none.
    pub const UNNAMED: &str = "default";
}

/// GPT-2's own: contractions, letters, digits, others, each with one space before; spaces.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Marks are letters.
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Line ends are no part of punctuation.
const SEED: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}",
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Words end where a capital follows a small letter.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// As GPT-4o's, with digits one by one.
const YOUTU: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const BAILING: &str =
    concat!(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}", r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+");
const MINICPM5: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// BLOOM's: everything up to a space or the punctuation of some languages.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const DEEPSEEK_V3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The letters of scripts with two cases, as DeepSeek LLM lists them.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}\x{370}-\x{373}",
    r"\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}",
    r"\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}",
    r"\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}",
    r"\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}",
    r"\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}",
    r"\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}",
    r"\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}",
    r"\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}",
    r"\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}",
    r"\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}",
    r"\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+"
);
/// Groups of three digits, counted from the end of a number. Theirs ends with `\b` alone: in words of Oniguruma, which they were
/// made with, the fractions and powers of Latin-1 are letters.
const THREES: &str = r"\d{1,3}(?=(?:\d{3})*\b(?![²³¹¼½¾]))";
const PLAIN: Pre = Pre { names: &[], patterns: &[GPT2], nfc: false, ignore_merges: false, add_bos: false };

const TABLE: &[Pre] = &[
    Pre { names: &[Pre::UNNAMED], patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"], ..PLAIN },
    Pre {
        names: &[
            "gpt-2",
            "phi-2",
            "jais",
            "exaone4",
            "trillion",
            "roberta-bpe",
            "jina-v1-en",
            "jina-v2-code",
            "jina-v2-de",
            "jina-v2-es",
            "jina-de",
            "jina-es",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "granite-docling",
        ],
        ..PLAIN
    },
    // Tokenizers made from that of GPT-NeoX.
    Pre { names: &["mpt", "olmo", "modern-bert"], nfc: true, ..PLAIN },
    Pre {
        names: &["starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        patterns: &[DIGIT, GPT2],
        ..PLAIN
    },
    Pre { names: &["command-r"], patterns: &[DIGIT, GPT2], nfc: true, ..PLAIN },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], patterns: &[LLAMA3], ..PLAIN },
    Pre { names: &["glm4", "glm5"], patterns: &[LLAMA3], ignore_merges: true, ..PLAIN },
    Pre { names: &["minicpm5"], patterns: &[r"\p{N}{1,3}", MINICPM5], ignore_merges: true, ..PLAIN },
    // The three are the vocabulary of Qwen 2 with other tokens added.
    Pre { names: &["qwen2", "deepseek-r1-qwen", "f2llmv2"], patterns: &[QWEN2], nfc: true, ..PLAIN },
    Pre { names: &["stablelm2", "kormo", "megrez", "hunyuan", "grok-2", "solar-open"], patterns: &[QWEN2], ..PLAIN },
    Pre { names: &["qwen35"], patterns: &[QWEN35], nfc: true, ..PLAIN },
    Pre { names: &["ufakzeka"], patterns: &[UFAKZEKA], ..PLAIN },
    Pre { names: &["seed-coder"], patterns: &[SEED], ..PLAIN },
    Pre { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN },
    Pre { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], patterns: &[GPT4O], ..PLAIN },
    Pre { names: &["granite-embed-multi-97m"], patterns: &[GPT4O], ignore_merges: true, ..PLAIN },
    Pre { names: &["tiny_aya", "cohere2moe"], patterns: &[THREES, GPT4O], ..PLAIN },
    Pre {
        names: &["youtu"],
        patterns: &["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", YOUTU],
        ignore_merges: true,
        ..PLAIN
    },
    Pre { names: &["falcon"], patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"], ..PLAIN },
    Pre {
        names: &["deepseek-llm"],
        patterns: &[r"[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", DIGIT],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-coder"], patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT], ..PLAIN
    },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"],
        patterns: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3],
        ..PLAIN
    },
    Pre { names: &["bloom", "poro-chat", "gpt3-finnish"], patterns: &[BLOOM], ..PLAIN },
    Pre { names: &["viking"], patterns: &[BLOOM, DIGIT], ..PLAIN },
    Pre { names: &["superbpe"], patterns: &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"], ..PLAIN },
    Pre { names: &["bailingmoe", "bailingmoe2", "llada-moe"], patterns: &[BAILING], ..PLAIN },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokenizers::SplitDelimiterBehavior::Isolated;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{PreTokenizedString, PreTokenizer};

    use super::*;

    #[test]
    fn every_name_is_there_once_and_every_pattern_compiles() {
        let mut names = BTreeSet::new();
        for pre in TABLE {
            for pattern in pre.patterns {
                Split::new(SplitPattern::Regex((*pattern).to_string()), Isolated, false).unwrap();
            }
            assert!(pre.names.iter().all(|name| names.insert(name)), "{:?}", pre.names);
        }
        assert!(names.len() > 60 && Pre::named("no such").is_none());
    }

    #[test]
    fn texts_are_cut_as_the_models_own_tokenizers_cut_them() {
        let cut = |name: &str, text: &str| -> Vec<String> {
            let mut pieces = PreTokenizedString::from(text);
            for pattern in Pre::named(name).unwrap().patterns {
                let split = Split::new(SplitPattern::Regex((*pattern).to_string()), Isolated, false).unwrap();
                split.pre_tokenize(&mut pieces).unwrap();
            }
            let pieces = pieces.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
            pieces.into_iter().map(|(piece, ..)| piece.to_string()).collect()
        };
        let text = "I'LL say  it's 12345\n\n  now";
        assert_eq!(cut("gpt-2", text), ["I", "'", "LL", " say", " ", " it", "'s", " 12345", "\n\n ", " now"]);
        assert_eq!(cut("starcoder", "a 123"), ["a", " ", "1", "2", "3"]);
        assert_eq!(cut("llama-bpe", text), ["I", "'LL", " say", " ", " it", "'s", " ", "123", "45", "\n\n", " ", " now"]);
        assert_eq!(cut("qwen2", "12 x"), ["1", "2", " x"]);
        assert_eq!(cut("qwen2", "e\u{301}x"), ["e", "\u{301}x"]);
        assert_eq!(cut("qwen35", "e\u{301}x"), ["e\u{301}x"]);
        assert_eq!(cut("seed-coder", "a;\n"), ["a", ";", "\n"]);
        assert_eq!(cut("tekken", "camelCase a/\n"), ["camel", "Case", " a", "/\n"]);
        assert_eq!(cut("gpt-4o", "We'Ve 1234"), ["We'Ve", " ", "123", "4"]);
        assert_eq!(cut("tiny_aya", "1234567 14½"), ["1", "234", "567", " ", "14½"]);
        assert_eq!(cut("deepseek-v3", "a, 1234漢字!x"), ["a", ",", " ", "123", "4", "漢字", "!x"]);
        assert_eq!(cut("bloom", "a b, c."), ["a", " b", ",", " c", "."]);
        assert_eq!(cut("viking", "a12"), ["a", "1", "2"]);
        assert_eq!(cut("falcon", "a``1234"), ["a", "``", "123", "4"]);
        assert_eq!(cut("superbpe", "one 1234567"), ["one ", "1", "234", "567"]);
        assert_eq!(cut(Pre::UNNAMED, "a+b 1234"), ["a", "+", "b", " ", "123", "4"]);
    }
}
