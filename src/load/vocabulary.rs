//! The tokenizer of a directory that has no tokenizer.json but the files of before: vocab.txt, vocab.json with merges.txt, or
//! tokenizer.model. They hold a vocabulary and leave the rest to the class that reads them, so a tokenizer.json is put together as that
//! class would write it.
//!
//! # Source
//! The classes of transformers 5.24; `sentencepiece_model.proto` of <https://github.com/google/sentencepiece>.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::sentencepiece::{SentencePiece, SentencePieceKind, pieces};
use super::{Json, read_text};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::check_room;

/// As large as a tokenizer.json may be.
const MAX_BYTES: u64 = 1 << 28;
/// More merges than any vocabulary has.
const MAX_MERGES: usize = 1 << 23;
/// What a token or a merge takes as values, and once more as text.
const BYTES_PER_ITEM: usize = 256;

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a class calls the tokens that have a role, where no file does.
type RoleDefaults = [(&'static str, &'static str)];
const OF_BERT: &RoleDefaults =
    &[("unk_token", "[UNK]"), ("sep_token", "[SEP]"), ("pad_token", "[PAD]"), ("cls_token", "[CLS]"), ("mask_token", "[MASK]")];
const OF_ROBERTA: &RoleDefaults = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];
const OF_GPT2: &RoleDefaults = &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];
const OF_LLAMA: &RoleDefaults = &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];

/// The tokenizer.json that a class makes of what a directory has; `None` where it lacks the files of that class, or the class is one
/// whose vocabulary alone does not say how texts are cut.
///
/// # Errors
/// `Io`, `OutOfMemory`; `Format` naming the file and what is wrong in it.
pub fn vocabulary_json(directory: &Path, class: &str, config: Option<&Json>) -> Result<Option<String>> {
    let has = |name: &str| directory.join(name).exists();
    let vocabulary = match class {
        "BertTokenizer" | "DistilBertTokenizer" if has("vocab.txt") => ClassVocabulary::of_words(directory, OF_BERT, config)?,
        "RobertaTokenizer" if has("vocab.json") && has("merges.txt") => ClassVocabulary::of_bytes(directory, OF_ROBERTA, config)?,
        "GPT2Tokenizer" | "Qwen2Tokenizer" if has("vocab.json") && has("merges.txt") => {
            // Those of Qwen 2 stand beside the vocabulary, and so its files name them.
            ClassVocabulary::of_bytes(directory, if class == "Qwen2Tokenizer" { &[] } else { OF_GPT2 }, config)?
        }
        // Whether a text begins with a token, version 5 no longer knows by itself.
        "LlamaTokenizer" if has("tokenizer.model") && config.is_some_and(|config| config.get("add_bos_token").is_some()) => {
            match ClassVocabulary::of_sentencepiece(directory, config)? {
                Some(vocabulary) => vocabulary,
                None => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    let byte_level = |add_prefix_space: bool, use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex });
    let flag = |name: &str, default: bool| config.map_or(Ok(default), |config| config.flag(name, default));
    // BERT's normaliser, and what LlamaTokenizer puts around its vocabulary, are made of the configuration later, as for a tokenizer.json.
    let (normalizer, cuts, processor, decoder) = match class {
        "BertTokenizer" | "DistilBertTokenizer" => (
            json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true }),
            json!({ "type": "BertPreTokenizer" }),
            vocabulary.pair_template()?,
            json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        ),
        "RobertaTokenizer" => {
            let (sep, cls) = (vocabulary.role("sep_token")?, vocabulary.role("cls_token")?);
            let (trims, prefix) = (flag("trim_offsets", true)?, flag("add_prefix_space", false)?);
            let processor =
                json!({ "type": "RobertaProcessing", "sep": sep, "cls": cls, "trim_offsets": trims, "add_prefix_space": prefix });
            (Value::Null, byte_level(prefix, true), processor, byte_level(true, true))
        }
        "Qwen2Tokenizer" => {
            let split = json!({ "type": "Split", "pattern": { "Regex": QWEN2 }, "behavior": "Isolated", "invert": false });
            let cuts =
                json!({ "type": "Sequence", "pretokenizers": [split, byte_level(flag("add_prefix_space", false)?, false)] });
            (json!({ "type": "NFC" }), cuts, vocabulary.template(&flag)?, byte_level(true, true))
        }
        "GPT2Tokenizer" => {
            let prefix = flag("add_prefix_space", false)?;
            (Value::Null, byte_level(prefix, true), vocabulary.template(&flag)?, byte_level(true, true))
        }
        _ => {
            let prefix = flag("add_prefix_space", true)?;
            let scheme = match (prefix, flag("legacy", false)?) {
                (true, true) => "always",
                (true, false) => "first",
                (false, _) => "never",
            };
            let cuts = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
            let spaces = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
            let mut decoders = vec![spaces, json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
            if prefix {
                decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
            }
            (Value::Null, cuts, vocabulary.template(&flag)?, json!({ "type": "Sequence", "decoders": decoders }))
        }
    };
    let whole = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added,
        "normalizer": normalizer,
        "pre_tokenizer": cuts,
        "post_processor": processor,
        "decoder": decoder,
        "model": vocabulary.model,
    });
    Ok(Some(whole.to_string()))
}

/// A vocabulary, as tokenizer.json has it.
struct ClassVocabulary {
    /// What it was read from.
    file: &'static str,
    model: Value,
    /// Tokens that texts are searched for before anything else.
    added: Vec<Value>,
    /// Names and ids by role.
    roles: HashMap<&'static str, (String, u32)>,
}

impl ClassVocabulary {
    /// vocab.txt: a token a line.
    fn of_words(directory: &Path, defaults: &RoleDefaults, config: Option<&Json>) -> Result<Self> {
        const FILE: &str = "vocab.txt";
        let text = read_text(&directory.join(FILE), MAX_BYTES)?;
        check_room(FILE, 2 * text.len() + text.lines().count().saturating_mul(2 * BYTES_PER_ITEM))?;
        // Of two lines alike the last one counts.
        let ids: Map<String, Value> =
            text.lines().zip(0u32..).map(|(line, id)| (line.trim_end().to_string(), id.into())).collect();
        let (roles, added) = roles(FILE, directory, defaults, config, &ids)?;
        let unknown = roles.get("unk_token").map_or("[UNK]", |(name, _)| name);
        let model = json!({ "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids });
        Ok(Self { file: FILE, model, added, roles })
    }

    /// vocab.json and merges.txt, of which each line is two tokens.
    fn of_bytes(directory: &Path, defaults: &RoleDefaults, config: Option<&Json>) -> Result<Self> {
        const FILE: &str = "vocab.json";
        let text = read_text(&directory.join(FILE), MAX_BYTES)?;
        super::check_json_room(FILE, &text)?;
        let json = Json::parse(FILE, &text)?;
        let ids = json.value().as_object().ok_or_else(|| json.expected("an object of ids by tokens"))?;
        if let Some((token, id)) = ids.iter().find(|(_, id)| id.as_u64().is_none_or(|id| id > u64::from(u32::MAX))) {
            return Err(json.invalid(token, &format!("expected an id, found {id}")));
        }
        let listed = read_text(&directory.join("merges.txt"), MAX_BYTES)?;
        check_room("merges.txt", 2 * listed.len() + listed.lines().count().saturating_mul(2 * BYTES_PER_ITEM))?;
        let mut merges = Vec::new();
        for (number, line) in (1..).zip(listed.lines()).filter(|(_, line)| !line.starts_with("#version") && !line.is_empty()) {
            let pair = line.split_once(' ').filter(|(_, right)| !right.contains(' '));
            let (left, right) = pair.ok_or_else(|| {
                let found = line.chars().take(80).collect::<String>();
                Error::format(format!("merges.txt: line {number}: expected two tokens, found {found:?}"))
            })?;
            merges.push(json!([left, right]));
        }
        let (roles, added) = roles(FILE, directory, defaults, config, ids)?;
        let model = json!({ "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": merges });
        Ok(Self { file: FILE, model, added, roles })
    }

    /// tokenizer.model of Llama; `None` for one that LlamaTokenizer would read otherwise than SentencePiece.
    fn of_sentencepiece(directory: &Path, config: Option<&Json>) -> Result<Option<Self>> {
        const FILE: &str = "tokenizer.model";
        let Some(pieces) = pieces(&directory.join(FILE), FILE)? else { return Ok(None) };
        check_room(FILE, pieces.len().saturating_mul(8 * BYTES_PER_ITEM))?;
        let mut ids = Map::new();
        for (id, piece) in (0u32..).zip(&pieces) {
            if let Some(before) = ids.insert(piece.text.clone(), id.into()) {
                return Err(Error::format(format!("{FILE}: piece {id} is piece {before} again, {:?}", piece.text)));
            }
        }
        let merges = merges(FILE, &pieces)?;
        let (roles, mut added) = roles(FILE, directory, OF_LLAMA, config, &ids)?;
        let has_role = |piece: &SentencePiece| roles.values().any(|(name, _)| *name == piece.text);
        for (id, piece) in (0u32..).zip(&pieces).filter(|(_, piece)| !has_role(piece)) {
            if matches!(piece.kind, SentencePieceKind::Control | SentencePieceKind::UserDefined) {
                added.push(added_token(&piece.text, id, piece.kind == SentencePieceKind::Control));
            }
        }
        let model = json!({ "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": ids, "merges": merges });
        Ok(Some(Self { file: FILE, model, added, roles }))
    }

    /// Name and id of a token that stands around texts.
    fn role(&self, role: &str) -> Result<(&str, u32)> {
        let found = self.roles.get(role).map(|(name, id)| (name.as_str(), *id));
        found.ok_or_else(|| Error::format(format!("{}: expected a token that is the {role}, found none", self.file)))
    }

    /// What BERT puts around one text, and around two.
    fn pair_template(&self) -> Result<Value> {
        let (cls, sep) = (self.role("cls_token")?, self.role("sep_token")?);
        let special = |name: &str, of: u32| json!({ "SpecialToken": { "id": name, "type_id": of } });
        let text = |name: &str, of: u32| json!({ "Sequence": { "id": name, "type_id": of } });
        let single = [special(cls.0, 0), text("A", 0), special(sep.0, 0)];
        let second = [text("B", 1), special(sep.0, 1)];
        Ok(of_template(&single, &[&single[..], &second].concat(), &[cls, sep]))
    }

    /// Tokens at the beginning and at the end, where the configuration asks for them.
    fn template(&self, flag: &dyn Fn(&str, bool) -> Result<bool>) -> Result<Value> {
        let bos = if flag("add_bos_token", false)? { Some(self.role("bos_token")?) } else { None };
        let eos = if flag("add_eos_token", false)? { Some(self.role("eos_token")?) } else { None };
        let around = |text: &str, of: u32| {
            let special =
                |token: Option<(&str, u32)>| token.map(|(name, _)| json!({ "SpecialToken": { "id": name, "type_id": of } }));
            let text = json!({ "Sequence": { "id": text, "type_id": of } });
            special(bos).into_iter().chain([text]).chain(special(eos)).collect::<Vec<_>>()
        };
        let (single, second) = (around("A", 0), around("B", 1));
        let tokens: Vec<_> = bos.into_iter().chain(eos).collect();
        Ok(of_template(&single, &[&single[..], &second].concat(), &tokens))
    }
}

fn of_template(single: &[Value], pair: &[Value], tokens: &[(&str, u32)]) -> Value {
    let token = |(name, id): &(&str, u32)| (name.to_string(), json!({ "id": name, "ids": [id], "tokens": [name] }));
    let tokens: Map<String, Value> = tokens.iter().map(token).collect();
    json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens })
}

fn added_token(content: &str, id: u32, special: bool) -> Value {
    json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special })
}

type RoleTokens = HashMap<&'static str, (String, u32)>;

/// The tokens that have a role, by special_tokens_map.json, tokenizer_config.json or the class: their names and ids, and how they are
/// added. What the files name and the vocabulary lacks they add beside it.
fn roles(
    file: &str,
    directory: &Path,
    defaults: &RoleDefaults,
    config: Option<&Json>,
    ids: &Map<String, Value>,
) -> Result<(RoleTokens, Vec<Value>)> {
    let map = Json::read_optional(&directory.join("special_tokens_map.json"))?;
    let (mut roles, mut added) = (RoleTokens::new(), Vec::new());
    for (role, default) in defaults {
        let said = [map.as_ref(), config].into_iter().flatten().find_map(|json| json.get(role));
        let (is_default, mut name, mut flags) = (said.is_none(), default.to_string(), Vec::new());
        if let Some(token) = &said {
            if token.value().is_object() {
                name = token.text("content")?.unwrap_or_default();
                for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
                    flags.push((flag, token.flag(flag, false)?));
                }
            } else if let Some(text) = token.value().as_str() {
                name = text.to_string();
            }
        }
        match ids.get(&name).and_then(Value::as_u64) {
            Some(id) => {
                if !roles.values().any(|(known, _): &(String, u32)| *known == name) {
                    let mut token = added_token(&name, id as u32, true);
                    flags.into_iter().for_each(|(flag, is_set)| token[flag] = is_set.into());
                    added.push(token);
                }
                roles.insert(*role, (name, id as u32));
            }
            None if is_default => return Err(Error::format(format!("{file}: expected the token {name:?}, found none"))),
            None => {}
        }
    }
    added.sort_by_key(|token| token["id"].as_u64());
    Ok((roles, added))
}

/// Each cut of each piece into two, the best whole first; of those the one with the longest left half.
fn merges(file: &str, pieces: &[SentencePiece]) -> Result<Vec<Value>> {
    let ids: HashMap<&str, usize> = pieces.iter().enumerate().map(|(id, piece)| (piece.text.as_str(), id)).collect();
    let mut cuts = Vec::new();
    for (whole, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.is_merged()) {
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                if cuts.len() == MAX_MERGES {
                    return Err(Error::format(format!("{file}: expected pieces of up to {MAX_MERGES} pairs, found more")));
                }
                cuts.try_reserve(1).map_err(|e| {
                    let message = format!("{file}: {} pairs of pieces do not fit the memory", cuts.len());
                    Error::new(ErrorKind::OutOfMemory, message).with_source(e)
                })?;
                cuts.push((whole, std::cmp::Reverse(at), left, right));
            }
        }
    }
    check_room(file, cuts.len().saturating_mul(BYTES_PER_ITEM))?;
    cuts.sort_by(|a, b| pieces[b.0].score.total_cmp(&pieces[a.0].score).then_with(|| a.cmp(b)));
    Ok(cuts.iter().map(|(_, _, left, right)| json!([pieces[*left].text, pieces[*right].text])).collect())
}
