use std::path::Path;

use serde_json::Value;

use super::super::build::Build;
use super::super::header::{FileKind, Header};
use super::*;

fn metadata(file: &Build) -> Metadata {
    let bytes = file.bytes();
    Header::read(Path::new("model.gguf"), &mut bytes.as_slice(), bytes.len() as u64, FileKind::Model).unwrap().metadata
}

fn build(file: &Build) -> Result<Tokenizer> {
    let metadata = metadata(file);
    GgufVocabulary::read(&metadata)?.expect("a tokenizer").tokenizer().map(|(tokenizer, _)| tokenizer)
}

fn refused(file: &Build, kind: ErrorKind, message: &str) {
    let error = build(file).err().unwrap_or_else(|| panic!("built, expected {message:?}"));
    assert_eq!((error.kind(), error.message()), (kind, format!("model.gguf: {message}").as_str()), "{}", error.details());
}

fn encode(tokenizer: &Tokenizer, text: &str, add_special: bool) -> Vec<u32> {
    tokenizer.encode_fast(text, add_special).unwrap().get_ids().to_vec()
}

fn package(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Texts of words, spaces, line ends and characters of all planes, the same each time.
fn texts(count: usize) -> Vec<String> {
    let mut state = 7u64;
    let mut below = move |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let words = [
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "don't",
        "I'LL",
        "12345",
        "3.14½",
        "camelCase",
        "e\u{301}",
        "नमस्ते",
        "漢字",
        "한국어",
        "👩‍🚀",
        "<mask>",
        "<s>",
        "[MASK]",
        "▁",
        "##",
        "\u{a0}",
        "\u{3000}",
        "...",
        "/\n",
        "ſ",
        "İ",
        "ﬁ",
        "٣٤",
        "let x = vec![1];",
    ];
    let planes = [(0x20, 0x5f), (0x20, 0x5f), (0xa0, 0x1b0), (0x300, 0x70), (0x370, 0x1c0), (0x900, 0x500), (0x1e00, 0x2c0)];
    let high =
        [(0x2100, 0x6c0), (0x3000, 0x100), (0x4e00, 0x5200), (0xac00, 0x2ba4), (0x1f300, 0x800), (0x20000, 0xa6e0), (0, 0x20)];
    let planes = [planes, high].concat();
    let mut text = |_| {
        let mut text = String::new();
        for _ in 0..1 + below(12) {
            let (first, len) = planes[below(planes.len())];
            match below(3) {
                0 => text.push_str(words[below(words.len())]),
                1 => text.push(' '),
                _ => text.extend((0..1 + below(4)).filter_map(|_| char::from_u32(first + below(len as usize) as u32))),
            }
        }
        text
    };
    (0..count).map(&mut text).collect()
}

/// A tokenizer.json as llama.cpp's converter writes it down.
fn converted(json: &Value, model: &str, pre: &str) -> Build {
    let mut tokens: Vec<(String, f32, i32)> = Vec::new();
    let mut set = |id: usize, token: &str, score: f32, kind: i32| {
        if tokens.len() <= id {
            tokens.resize(id + 1, (String::new(), 0.0, 1));
        }
        tokens[id] = (token.to_string(), score, kind);
    };
    match &json["model"]["vocab"] {
        Value::Object(vocab) => vocab.iter().for_each(|(token, id)| set(id.as_u64().unwrap() as usize, token, 0.0, 1)),
        Value::Array(vocab) => vocab
            .iter()
            .enumerate()
            .for_each(|(id, piece)| set(id, piece[0].as_str().unwrap(), piece[1].as_f64().unwrap() as f32, 1)),
        other => panic!("{other}"),
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let kind = if added["special"].as_bool().unwrap() { 3 } else { 4 };
        set(added["id"].as_u64().unwrap() as usize, added["content"].as_str().unwrap(), 0.0, kind);
    }
    if let Some(unknown) = json["model"]["unk_id"].as_u64() {
        tokens[unknown as usize].2 = 2;
    }
    if model == "bert" {
        for (token, _, kind) in &mut tokens {
            *token = match token.strip_prefix("##") {
                _ if *kind == 3 => continue,
                Some(rest) => rest.to_string(),
                None => format!("▁{token}"),
            };
        }
    }
    let names: Vec<&str> = tokens.iter().map(|(token, ..)| token.as_str()).collect();
    let id = |name: &str| names.iter().position(|token| *token == name).unwrap() as u32;
    let mut file = Build::new()
        .text("tokenizer.ggml.model", model)
        .text("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.tokens", &names)
        .ints("tokenizer.ggml.token_type", &tokens.iter().map(|(.., kind)| *kind).collect::<Vec<_>>());
    if let Some(merges) = json["model"]["merges"].as_array() {
        let pair = |merge: &Value| match merge {
            Value::String(pair) => pair.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        let merges: Vec<String> = merges.iter().map(pair).collect();
        file = file.strings("tokenizer.ggml.merges", &merges.iter().map(String::as_str).collect::<Vec<_>>());
    }
    if model == "t5" {
        file = file.floats("tokenizer.ggml.scores", &tokens.iter().map(|(_, score, _)| *score).collect::<Vec<_>>());
    }
    for name in ["lowercase", "strip_accents"] {
        if let Some(flag) = json["normalizer"][name].as_bool() {
            file = file.bool(&format!("tokenizer.ggml.normalizer.{name}"), flag);
        }
    }
    // The first and the last token of the template, or of RoBERTa's own kind of it.
    let post = &json["post_processor"];
    let special = |piece: &Value| piece["SpecialToken"]["id"].as_str().map(id);
    let single = post["single"].as_array();
    let begin = single.and_then(|single| special(&single[0])).or_else(|| post["cls"][0].as_str().map(id));
    let end = single.and_then(|single| special(&single[single.len() - 1])).or_else(|| post["sep"][0].as_str().map(id));
    for (name, id) in [("bos", begin), ("eos", end)] {
        file = file.bool(&format!("tokenizer.ggml.add_{name}_token"), id.is_some());
        if let Some(id) = id {
            file = file.u32(&format!("tokenizer.ggml.{name}_token_id"), id);
        }
    }
    file
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn ids_are_those_of_the_tokenizer_json_that_was_converted() {
    let folders = [
        ("models/tiny-coder", "gpt2", "qwen2"),
        ("models/tiny-embed", "bert", "tiny"),
        ("tests/golden/encoders/bert_cls", "bert", "tiny"),
        ("tests/golden/encoders/modernbert_mean_new", "gpt2", "modern-bert"),
        ("tests/golden/embedders/eurobert_mean", "gpt2", "modern-bert"),
        ("tests/golden/embedders/roberta_mean", "gpt2", "roberta-bpe"),
        ("tests/golden/encoders/xlmr_mean_e5", "t5", "default"),
        ("tests/golden/embedders/camembert_cls", "t5", "default"),
    ];
    for (folder, model, pre) in folders {
        let text = std::fs::read_to_string(package(folder).join("tokenizer.json")).unwrap();
        let mut want = Tokenizer::from_bytes(&text).unwrap();
        want.with_truncation(None).unwrap().with_padding(None);
        let json: Value = serde_json::from_str(&text).unwrap();
        let found = build(&converted(&json, model, pre)).unwrap();
        for text in texts(1500) {
            for add_special in [false, true] {
                let ids = encode(&want, &text, add_special);
                assert_eq!(encode(&found, &text, add_special), ids, "{folder}: {text:?}");
                assert_eq!(found.decode(&ids, true).unwrap(), want.decode(&ids, true).unwrap(), "{folder}: {text:?}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn files_of_llama_cpp_have_the_ids_of_the_models_they_were_made_from() {
    let mut seen = 0;
    for entry in std::fs::read_dir(package("tests/golden/gguf")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".gguf") {
            continue;
        }
        let folder = if name.starts_with("tiny-coder") { "models/tiny-coder" } else { "tests/golden/gguf" };
        let want = crate::Tokenizer::load(package(folder).join("tokenizer.json")).unwrap();
        let found = crate::Tokenizer::load(&path).unwrap();
        for text in texts(100) {
            let ids = want.encode(&text, true).unwrap();
            assert_eq!(found.encode(&text, true).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(found.decode(&ids, true).unwrap(), want.decode(&ids, true).unwrap(), "{name}: {text:?}");
        }
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

/// Bytes are characters, as GPT-2 writes them; `merges` make the rest.
fn byte_level(pre: &str, more: &[&str], merges: &[&str]) -> Build {
    let mut letters = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect::<Vec<char>>();
    letters.sort_unstable();
    let letters: Vec<String> = letters.into_iter().map(String::from).collect();
    let tokens: Vec<&str> = letters.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let types: Vec<i32> = tokens.iter().map(|token| if token.starts_with("<|") { 3 } else { 1 }).collect();
    Build::new()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.tokens", &tokens)
        .ints("tokenizer.ggml.token_type", &types)
        .strings("tokenizer.ggml.merges", merges)
}

fn tokens_of(tokenizer: &Tokenizer, text: &str, add_special: bool) -> Vec<String> {
    tokenizer.encode(text, add_special).unwrap().get_tokens().to_vec()
}

#[test]
fn bytes_are_merged_in_the_order_of_the_list() {
    let merges = ["a b", "b c", "Ġ ab", "Ġab c"];
    let more = ["ab", "bc", "Ġab", "Ġabc", "xyz", "<|bos|>", "<|im_end|>"];
    let file = byte_level("llama-bpe", &more, &merges).u32("tokenizer.ggml.bos_token_id", 261);
    let tokenizer = build(&file).unwrap();
    assert_eq!(tokens_of(&tokenizer, "abc abc", false), ["ab", "c", "Ġabc"]);
    assert_eq!(tokens_of(&tokenizer, "xyz<|im_end|>é", true), ["<|bos|>", "xyz", "<|im_end|>", "Ã", "©"]);
    assert_eq!(tokenizer.decode(&encode(&tokenizer, "naïve <|im_end|>\n日本 👩‍🚀", true), true).unwrap(), "naïve \n日本 👩‍🚀");
    // No merge makes `xyz`, and but for `llama-bpe` nothing begins a text where the file does not say so.
    let tokenizer = build(&byte_level("qwen2", &more, &merges).u32("tokenizer.ggml.bos_token_id", 261)).unwrap();
    assert_eq!(tokens_of(&tokenizer, "xyz", true), ["x", "y", "z"]);
    let file = byte_level("qwen2", &more, &merges).bool("tokenizer.ggml.add_eos_token", true);
    let tokenizer = build(&file.u32("tokenizer.ggml.eos_token_id", 262)).unwrap();
    assert_eq!(tokens_of(&tokenizer, "bc", true), ["bc", "<|im_end|>"]);
    assert!(tokens_of(&build(&byte_level("qwen2", &more, &merges)).unwrap(), "", false).is_empty());
}

/// `<unk>`, `<s>`, `</s>`, 256 bytes, then pieces of falling score.
fn pieces(pieces: &[&str], more: &[(&str, i32)]) -> Build {
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let tokens = ["<unk>", "<s>", "</s>"].into_iter().chain(bytes.iter().map(String::as_str)).chain(pieces.iter().copied());
    let tokens: Vec<&str> = tokens.chain(more.iter().map(|(token, _)| *token)).collect();
    let kinds = [2, 3, 3].into_iter().chain([6; 256]).chain(pieces.iter().map(|_| 1)).chain(more.iter().map(|(_, kind)| *kind));
    Build::new()
        .text("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .ints("tokenizer.ggml.token_type", &kinds.collect::<Vec<i32>>())
        .floats("tokenizer.ggml.scores", &(0..tokens.len()).map(|id| 259.0 - id as f32).collect::<Vec<_>>())
}

#[test]
fn pieces_are_merged_by_their_scores() {
    let words = ["▁a", "bc", "▁ab", "abc", "▁", "a", "b", "c"];
    let tokenizer = build(&pieces(&words, &[("<|end|>", 3), ("  ", 4)])).unwrap();
    // `▁a` comes before `bc`, which comes before `▁ab`.
    assert_eq!(tokens_of(&tokenizer, "abc", true), ["<s>", "▁a", "bc"]);
    assert_eq!(tokens_of(&tokenizer, "ab é", false), ["▁ab", "▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(tokens_of(&tokenizer, "b<|end|>a", false), ["▁", "b", "<|end|>", "▁a"]);
    assert_eq!(tokens_of(&tokenizer, "b  c", false), ["▁", "b", "  ", "▁", "c"]);
    for text in ["abc", " abc\n", "naïve 日本 👩‍🚀"] {
        assert_eq!(tokenizer.decode(&encode(&tokenizer, text, true), true).unwrap(), text);
    }
    let bare = build(&pieces(&words, &[("  ", 4)]).bool("tokenizer.ggml.add_space_prefix", false)).unwrap();
    assert_eq!(tokens_of(&bare, "abc", false), ["abc"]);
    assert_eq!(bare.decode(&encode(&bare, "  b a", false), false).unwrap(), "  b a");
    let phi = build(&pieces(&words, &[("<|end|>", 3)]).text("general.architecture", "phi3")).unwrap();
    assert_eq!(tokens_of(&phi, "<|end|>\n a<s>\nb", false), ["<|end|>\n ", "▁a", "<s>", "▁", "<0x0A>", "b"]);
}

#[test]
fn of_equal_wholes_the_longest_left_half_is_merged_first() {
    let words = ["▁", "aaaa", "aaa", "aa", "a"];
    let metadata = metadata(&pieces(&words, &[]));
    let vocabulary = GgufVocabulary::read(&metadata).unwrap().unwrap();
    let merges = vocabulary.merges_by_score(&vocabulary.ids(|id| vocabulary.token(id).into_owned()).unwrap()).unwrap();
    let merges: Vec<String> = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
    assert_eq!(merges, ["aaa a", "aa aa", "a aaa", "aa a", "a aa", "a a"]);
}

#[test]
fn merges_of_characters_keep_to_a_line() {
    let words = ["▁", "a", "b", "\n", "\n\n", "▁a", "▁ab"];
    // The converter calls the same another model where it is not Gemma's.
    for (model, pre) in [("gemma4", "default"), ("gpt2", "granite-embed-multi-311m"), ("gpt2", "gemma4")] {
        let file = pieces(&words, &[]).text("tokenizer.ggml.pre", pre);
        let file = replaced(&file, "tokenizer.ggml.model", |file| file.text("tokenizer.ggml.model", model));
        let file = file.strings("tokenizer.ggml.merges", &["\n \n", "▁ a", "▁a b"]);
        let tokenizer = build(&file).unwrap();
        assert_eq!(tokens_of(&tokenizer, "a ab\n\n\né", true), ["<s>", "a", "▁ab", "\n\n", "\n", "<0xC3>", "<0xA9>"]);
        assert_eq!(tokenizer.decode(&encode(&tokenizer, " a ab\n\n\né", true), true).unwrap(), " a ab\n\n\né");
    }
}

#[test]
fn words_are_cut_into_pieces() {
    let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁un", "able", "▁able", "[unused0]", "▁,", "."];
    let file = Build::new()
        .text("tokenizer.ggml.model", "bert")
        .strings("tokenizer.ggml.tokens", &tokens)
        .ints("tokenizer.ggml.token_type", &[3, 3, 3, 3, 1, 1, 1, 1, 1, 1]);
    let tokenizer = build(&file).unwrap();
    assert_eq!(tokens_of(&tokenizer, "ÚNABLE, able!", true), ["[CLS]", "un", "##able", ",", "able", "[UNK]", "[SEP]"]);
    assert_eq!(tokenizer.id_to_token(7).unwrap(), "[unused0]");
    assert_eq!(tokenizer.decode(&encode(&tokenizer, "unable, able", true), true).unwrap(), "unable, able");
    let cased = build(&file.clone().bool("tokenizer.ggml.normalizer.lowercase", false)).unwrap();
    assert_eq!(tokens_of(&cased, "Un un", false), ["[UNK]", "un"]);
}

fn unigram() -> Build {
    let tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁ab", "x"];
    Build::new()
        .text("tokenizer.ggml.model", "t5")
        .strings("tokenizer.ggml.tokens", &tokens)
        .ints("tokenizer.ggml.token_type", &[3, 3, 3, 2, 1, 1, 1, 1, 4])
        .floats("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -3.0, -4.0, -5.0])
        .u32("tokenizer.ggml.eos_token_id", 2)
}

/// `A` becomes `a`: a trie of 768 units, then texts.
fn charsmap() -> Vec<u8> {
    let mut units = vec![0u32; 0x300];
    (units[0], units[0x141], units[0x200]) = (0x100 << 10, (0x141 ^ 0x200) << 10 | 1 << 8 | 0x41, 1 << 31);
    let trie = units.iter().flat_map(|unit| unit.to_le_bytes());
    (4 * 0x300u32).to_le_bytes().into_iter().chain(trie).chain(*b"a\0").collect()
}

#[test]
fn the_likeliest_pieces_are_chosen() {
    let tokenizer = build(&unigram()).unwrap();
    assert_eq!(tokens_of(&tokenizer, "  ab   a c x", true), ["▁ab", "▁", "a", "▁", "c", "x", "</s>"]);
    assert_eq!(encode(&tokenizer, "c", false), [4, 3]);
    let map = charsmap();
    let mapped = unigram().list("tokenizer.ggml.precompiled_charsmap", 0, map.len() as u64, &map);
    assert_eq!(tokens_of(&build(&mapped).unwrap(), "Ab", false), ["▁ab"]);
    let bare = unigram().bool("tokenizer.ggml.add_space_prefix", false);
    assert_eq!(tokens_of(&build(&bare).unwrap(), "  ab  ab ", false), ["a", "b", "▁ab"]);
    let spaces = unigram().bool("tokenizer.ggml.remove_extra_whitespaces", false);
    assert_eq!(tokens_of(&build(&spaces).unwrap(), "ab  ab", false), ["▁ab", "▁", "▁ab"]);
    let encoder = spaces.text("general.architecture", "bert");
    assert_eq!(tokens_of(&build(&encoder).unwrap(), "ab  ab ", false), ["▁ab", "▁ab"]);
}

/// The file without a key, then with what `then` adds.
fn replaced(file: &Build, key: &str, then: impl Fn(Build) -> Build) -> Build {
    let metadata = metadata(file);
    let mut rest = Build::new();
    for (name, value) in metadata.values.iter().filter(|(name, _)| *name != key) {
        let text = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
        let start = |at: usize| if at == 0 { 0 } else { value.ends[at - 1] };
        let texts = value.ends.iter().enumerate().flat_map(|(at, &end)| text(&value.bytes[start(at)..end])).collect::<Vec<u8>>();
        let kind = value.kind as u32;
        rest = match (value.list, value.kind.bytes()) {
            (true, Some(bytes)) => rest.list(name, kind, (value.bytes.len() / bytes) as u64, &value.bytes),
            (true, None) => rest.list(name, kind, value.ends.len() as u64, &texts),
            (false, Some(_)) => rest.key(name, kind, &value.bytes),
            (false, None) => rest.key(name, kind, &text(&value.bytes)),
        };
    }
    then(rest)
}

#[test]
fn a_file_that_contradicts_itself_is_refused_by_the_key() {
    use ErrorKind::{Format, Unsupported};
    let bytes = || byte_level("qwen2", &["ab"], &["a b"]);
    let key = "tokenizer.ggml";
    let cases: &[(Build, ErrorKind, &str)] = &[
        (
            Build::new().text("tokenizer.ggml.model", "rwkv"),
            Unsupported,
            "model: expected one of gpt2, llama, gemma4, bert, t5, found the text \"rwkv\"",
        ),
        (Build::new().text("tokenizer.ggml.model", "gpt2"), Format, "tokens: expected 1 to 4194304 texts, found nothing"),
        (
            Build::new().text("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", &[]),
            Format,
            "tokens: expected 1 to 4194304 texts, found a list of 0 text",
        ),
        (byte_level("gpt-5", &[], &[]), Unsupported, "pre: expected the name of a known pre-tokenizer, found the text \"gpt-5\""),
        (
            bytes().bool("tokenizer.ggml.add_bos_token", true),
            Format,
            "bos_token_id: expected an id, for tokenizer.ggml.add_bos_token is true, found nothing",
        ),
        (byte_level("qwen2", &["ab", "c", "ab"], &[]), Format, "tokens: token 257 is token 66 again, \"c\""),
        (
            byte_level("qwen2", &["ab"], &["ab"]),
            Format,
            "merges: merge 0: expected two tokens with a space between, which together are a token, found \"ab\"",
        ),
        (
            byte_level("qwen2", &["ab"], &["a b", "ab ab"]),
            Format,
            "merges: merge 1: expected two tokens with a space between, which together are a token, found \"ab ab\"",
        ),
        (byte_level("qwen2", &["abc"], &["a b"]), Format, "merges: Token `ab` out of vocabulary"),
        (byte_level("qwen2", &["abcdefghi"], &["日 本"]), Format, "merges: Token `日` out of vocabulary"),
        (replaced(&bytes(), "tokenizer.ggml.merges", |file| file), Format, "merges: expected up to 8388608 texts, found nothing"),
        (
            replaced(&bytes(), "tokenizer.ggml.token_type", |file| file.ints("tokenizer.ggml.token_type", &[1, 1])),
            Format,
            "token_type: expected 257 whole numbers, one a token, found a list of 2 i32",
        ),
        (
            replaced(&unigram(), "tokenizer.ggml.scores", |file| file.floats("tokenizer.ggml.scores", &[f32::NAN; 9])),
            Format,
            "scores: score 0: expected a finite number, found NaN",
        ),
        (
            replaced(&pieces(&["a"], &[]), "tokenizer.ggml.scores", |file| file),
            Format,
            "scores: expected 260 numbers, one a token, found nothing",
        ),
        (
            replaced(&unigram(), "tokenizer.ggml.token_type", |file| file),
            Format,
            "unknown_token_id: expected an id, or a token of type 2, found nothing",
        ),
        (pieces(&[&"a".repeat(513)], &[]), Format, "tokens: token 259: expected up to 512 bytes, found 513"),
        (
            Build::new().text("tokenizer.ggml.model", "bert").strings("tokenizer.ggml.tokens", &["a", "[UNK]"]),
            Format,
            "cls_token_id: expected an id, or a token [CLS], found nothing",
        ),
        (
            Build::new().text("tokenizer.ggml.model", "bert").strings("tokenizer.ggml.tokens", &["a"]),
            Format,
            "unknown_token_id: expected an id, or a token [UNK], found nothing",
        ),
        (
            unigram().list("tokenizer.ggml.precompiled_charsmap", 0, 4, &[1, 2, 3, 4]),
            Format,
            "precompiled_charsmap: expected a trie of whole units",
        ),
    ];
    for (file, kind, message) in cases {
        refused(file, *kind, &format!("{key}.{message}"));
    }
}

#[test]
fn no_charsmap_makes_a_text_panic() {
    let good = charsmap();
    let mut state = 1u32;
    let mut random = move || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        state >> 8
    };
    let mut accepted = 0;
    for _ in 0..300 {
        let mut map = good.clone();
        // Units that the text below comes by, and their leaves.
        for _ in 0..1 + random() % 3 {
            let unit = [0, 0x141, 0x200, 0x100 ^ 0xc3, random() as usize % 0x300][random() as usize % 5];
            let value = [random(), random() << 10 | 1 << 8 | 0x41, 0x80000000 | (random() % 4), (random() % 3) << 18 | 0xc3];
            map[4 + 4 * unit..][..4].copy_from_slice(&value[random() as usize % 4].to_le_bytes());
        }
        let file = unigram().list("tokenizer.ggml.precompiled_charsmap", 0, map.len() as u64, &map);
        let Ok(tokenizer) = build(&file) else { continue };
        accepted += 1;
        for text in ["A aAé\u{e9}ÃÄ 日本", "ÁÂA\u{301}"] {
            encode(&tokenizer, text, true);
        }
    }
    assert!((20..280).contains(&accepted), "{accepted}");
}

#[test]
fn a_million_merges_are_a_matter_of_a_moment() {
    let tokens: Vec<String> = ('\u{4e00}'..'\u{4f00}').flat_map(|a| [a.to_string(), format!("a{a}"), format!("aa{a}")]).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let merges: Vec<String> = ('\u{4e00}'..'\u{4f00}').map(|a| format!("a {a}")).collect();
    let merges: Vec<&str> = merges.iter().map(String::as_str).cycle().take(1_000_000).collect();
    assert!(build(&byte_level("qwen2", &tokens, &merges)).is_ok());
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn a_whole_tokenizer_json_comes_first() {
    let text = std::fs::read_to_string(package("models/tiny-coder/tokenizer.json")).unwrap();
    let want = Tokenizer::from_bytes(&text).unwrap();
    let file = byte_level("no such", &[], &[]).text("tokenizer.huggingface.json", &text);
    assert_eq!(encode(&build(&file).unwrap(), "let x = 1;", true), encode(&want, "let x = 1;", true));
    let alone = Build::new().text("tokenizer.huggingface.json", &text).u32("tokenizer.ggml.eos_token_id", 3);
    assert!(build(&alone).is_ok());
    let long = r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}}"#;
    for (bad, says) in [("{}", "not a tokenizer: "), (long, "model: merges: expected tokens of up to 1 bytes")] {
        let error = build(&Build::new().text("tokenizer.huggingface.json", bad)).unwrap_err();
        assert!(error.kind() == ErrorKind::Format && error.message().contains(says), "{error}");
        assert!(error.message().starts_with("model.gguf: tokenizer.huggingface.json: "), "{error}");
    }
}

#[test]
fn templates_ends_and_special_tokens_stand_in_the_configuration() {
    let more = ["<|im_end|>", "<|endoftext|>", "<|eot|>", "<|im_start|>", "</s>", ""];
    let file = byte_level("qwen2", &more, &[])
        .u32("tokenizer.ggml.eos_token_id", 257)
        .u32("tokenizer.ggml.eot_token_id", 258)
        .u32("tokenizer.ggml.padding_token_id", 257)
        .text("tokenizer.chat_template", "{{ a }}");
    let read = |file: &Build| {
        let metadata = metadata(file);
        let vocabulary = GgufVocabulary::read(&metadata).unwrap().unwrap();
        (vocabulary.ends(), vocabulary.config().unwrap())
    };
    // As of gpt-oss, whose messages end with the one that ends answers elsewhere.
    let harmony = byte_level("qwen2", &["<|return|>", "<|end|>", "<|call|>", "<|endoftext|>"], &[]);
    assert_eq!(read(&harmony.u32("tokenizer.ggml.eos_token_id", 256)).0, [256, 258, 259]);
    assert_eq!(read(&byte_level("qwen2", &["<|return|>", "<|end|>"], &[])).0, [256, 257]);
    // Types that are wrong, or stand for nothing.
    let typed = |more: &[&str], of_them: i32| {
        let types: Vec<i32> = (0..256).map(|_| 0).chain(more.iter().map(|_| of_them)).collect();
        let file = byte_level("qwen2", more, &[]);
        replaced(&file, "tokenizer.ggml.token_type", |file| file.ints("tokenizer.ggml.token_type", &types))
    };
    for of_them in [0, 1, 3, 4, 99] {
        let gemma = typed(&["<eos>", "<turn|>", "<|tool_response>", "</s>"], of_them);
        assert_eq!(read(&gemma).0, [256, 257, 258], "{of_them}");
        let (tokenizer, _) = GgufVocabulary::read(&metadata(&gemma)).unwrap().unwrap().tokenizer().unwrap();
        assert_eq!(tokenizer.encode("a<turn|>", false).unwrap().get_ids().last(), Some(&257), "{of_them}");
        assert_eq!(tokenizer.decode(&[257], true).unwrap(), "", "{of_them}");
        let solar = typed(&["<|flush|>", "<|end|>", "<|calls|>", "</s>"], of_them);
        assert_eq!(read(&solar).0, if of_them == 3 { vec![256, 258, 259] } else { vec![256, 258] }, "{of_them}");
    }
    // Ids that were named and never added, and none.
    let file_of = |key: &str, id: u32| byte_level("qwen2", &more, &[]).u32(&format!("tokenizer.ggml.{key}_token_id"), id);
    assert_eq!(read(&file_of("eos", 262)).0, read(&byte_level("qwen2", &more, &[])).0);
    assert!(read(&file_of("bos", u32::MAX)).1.get("bos_token").is_none());
    let padded = |id: u32| read(&byte_level("qwen2", &more, &[]).u32("tokenizer.ggml.padding_token_id", id)).1;
    assert_eq!(padded(256)["pad_token"], "<|im_end|>");
    assert!([262, u32::MAX].iter().all(|&id| padded(id).get("pad_token").is_none()));
    let (ends, config) = read(&file);
    // `</s>` is no control token here.
    assert_eq!(ends, [257, 258, 256]);
    let want = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{{ a }}",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    });
    assert_eq!(config, want);
    let (_, config) =
        read(&file.text("tokenizer.chat_template.tool_use", "{{ b }}").strings("tokenizer.chat_templates", &["tool_use"]));
    let named = json!([{ "name": "tool_use", "template": "{{ b }}" }, { "name": "default", "template": "{{ a }}" }]);
    assert_eq!(config["chat_template"], named);
    let metadata = metadata(&byte_level("qwen2", &more, &[]));
    let (tokenizer, _) = GgufVocabulary::read(&metadata).unwrap().unwrap().tokenizer().unwrap();
    assert_eq!(tokenizer.id_to_token(261).unwrap(), "[EMPTY_261]");
}

#[test]
fn a_file_may_have_no_tokenizer() {
    for file in [Build::new(), Build::new().text("tokenizer.ggml.model", "no_vocab")] {
        assert!(GgufVocabulary::read(&metadata(&file)).unwrap().is_none());
    }
}

#[test]
fn a_gguf_file_is_loaded_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.GGUF");
    std::fs::write(&path, byte_level("qwen2", &["ab", "<|im_end|>"], &["a b"]).bytes()).unwrap();
    let tokenizer = crate::Tokenizer::load(&path).unwrap();
    assert_eq!(tokenizer.encode("ab<|im_end|>", true).unwrap(), [256, 257]);
    assert!(tokenizer.is_special(257) && !tokenizer.is_special(256));
    std::fs::write(&path, Build::new().bytes()).unwrap();
    let error = crate::Tokenizer::load(&path).err().unwrap();
    assert!(error.kind() == ErrorKind::NotFound && error.message().ends_with("the file has no tokenizer"), "{error}");
    std::fs::write(&path, b"{}").unwrap();
    assert_eq!(crate::Tokenizer::load(&path).err().unwrap().kind(), ErrorKind::Format);
}
