//! The tokenizer of a GGUF file, which holds the vocabulary and, of all else in a tokenizer.json, names and a few flags.
//!
//! ```ignore
//! let vocabulary = GgufVocabulary::read(gguf.metadata())?.expect("a vocabulary");
//! let tokenizer = vocabulary.tokenizer()?; // what tokenizers::Tokenizer::from_file makes of the model's tokenizer.json
//! let ends = vocabulary.ends();
//! ```
//!
//! Building one takes less time than reading the tokenizer.json that it stands for.

mod bpe;
mod pre;
mod sentencepiece;
mod unigram;
mod wordpiece;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::{Map, Value as JsonValue, json};
use tokenizers::models::bpe::Vocab as TokenIds;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, Tokenizer};

use super::metadata::{Metadata, clip};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::check_room;
use crate::load::parse_tokenizer;

/// Sixteen times the largest vocabulary of today.
const MAX_TOKENS: usize = 1 << 22;
/// The same of merges.
const MAX_MERGES: usize = 1 << 23;

/// What is built here writes bytes by two, or spaces by three and what a charsmap of SentencePiece makes of a character.
const BUILT_GROWTH: usize = 99;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
const HUGGINGFACE: &str = "tokenizer.huggingface.json";
/// Neither transformers nor this library adds to a tokenizer.json of this class.
pub const WHOLE_CLASS: &str = "PreTrainedTokenizerFast";
const TEMPLATE: &str = "tokenizer.chat_template";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const CLASS: &str = "tokenizer.ggml.cls_token_id";
/// The format's own spelling.
const SEPARATOR: &str = "tokenizer.ggml.seperator_token_id";

/// What kind of model `tokenizer.ggml.model` names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    /// `gpt2`: BPE over bytes written as characters.
    ByteLevel,
    /// `llama`: BPE of SentencePiece, over characters, with a score a token instead of merges.
    SentencePiece,
    /// `gemma4`: the same with merges. Also `gpt2`, if `tokenizer.ggml.pre` is one of [`PRE_OF_GEMMA4`].
    Gemma4,
    /// `bert`.
    WordPiece,
    /// `t5`.
    Unigram,
}

const ALGORITHMS: [(&str, Algorithm); 5] = [
    ("gpt2", Algorithm::ByteLevel),
    ("llama", Algorithm::SentencePiece),
    ("gemma4", Algorithm::Gemma4),
    ("bert", Algorithm::WordPiece),
    ("t5", Algorithm::Unigram),
];

/// Names of pre-tokenizers whose texts are not written as bytes, though the converter calls their model `gpt2`.
const PRE_OF_GEMMA4: [&str; 2] = ["gemma4", "granite-embed-multi-311m"];

/// What a token is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TokenType {
    Normal,
    Unknown,
    Control,
    /// Added by the model's makers; part of texts.
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    /// In the order of their numbers, from 1.
    const ALL: [Self; 6] = [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte];
}

/// What a GGUF file says of its tokenizer. Lists have one item a token, ids are those of tokens.
pub struct GgufVocabulary<'m> {
    metadata: &'m Metadata,
    /// A whole tokenizer.json, which stands for everything else.
    json: Option<&'m str>,
    algorithm: Algorithm,
    tokens: Vec<&'m str>,
    types: Vec<TokenType>,
    /// Ids by role.
    pub special: SpecialIds,
}

/// The tokens that have a role; `None` for those that a file does not name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// End of a turn.
    pub eot: Option<u32>,
    /// End of a message.
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub separator: Option<u32>,
    pub padding: Option<u32>,
    pub class: Option<u32>,
    pub mask: Option<u32>,
}

/// Tokens that end an answer in the models that have them, whatever a file says of their type: wrong types are common.
///
/// # Source
/// llama.cpp's list, and two of Cohere's and EXAONE's.
const ENDS: [&str; 35] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<|END_OF_TURN_TOKEN|>",
    "[|endofturn|]",
    // What follows the middle that was asked for: nothing, another file, another repository.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
    MARKUP_END,
];
/// What a token and its merge take in the tables of the crate.
const BYTES_PER_TOKEN: usize = 800;
/// A tag of HTML as well: it ends answers only where it is a control token.
const MARKUP_END: &str = "</s>";

impl<'m> GgufVocabulary<'m> {
    /// `None` if the file has no tokenizer.
    ///
    /// # Errors
    /// `Format` for values that contradict each other, `Unsupported` for a model that this library does not know, each with the
    /// key; `OutOfMemory`.
    pub fn read(metadata: &'m Metadata) -> Result<Option<Self>> {
        let json = metadata.text(HUGGINGFACE)?;
        let algorithm = match metadata.text(MODEL)? {
            Some("no_vocab" | "none") if json.is_none() => return Ok(None),
            None if json.is_none() && !metadata.has(TOKENS) => return Ok(None),
            None if json.is_some() => Algorithm::ByteLevel,
            None => return Err(metadata.expected(MODEL, &names(&ALGORITHMS.map(|(name, _)| name)))),
            Some(name) => match ALGORITHMS.iter().find(|(known, _)| *known == name) {
                Some((_, Algorithm::ByteLevel)) if metadata.text(PRE)?.is_some_and(|pre| PRE_OF_GEMMA4.contains(&pre)) => {
                    Algorithm::Gemma4
                }
                Some((_, algorithm)) => *algorithm,
                None if json.is_some() => Algorithm::ByteLevel,
                None => return Err(metadata.unsupported(MODEL, &names(&ALGORITHMS.map(|(name, _)| name)))),
            },
        };
        let tokens = metadata.strings(TOKENS)?.unwrap_or_default();
        if (tokens.is_empty() && json.is_none()) || tokens.len() > MAX_TOKENS {
            return Err(metadata.expected(TOKENS, &format!("1 to {MAX_TOKENS} texts")));
        }
        let types = types(metadata, &tokens)?;
        let special = SpecialIds::read(metadata, tokens.len())?;
        Ok(Some(Self { metadata, json, algorithm, tokens, types, special }))
    }

    /// Builds it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// How many times longer it makes a text at most comes along.
    pub fn tokenizer(&self) -> Result<(Tokenizer, usize)> {
        match self.json {
            Some(json) => parse_tokenizer(json).map_err(|e| self.metadata.invalid(HUGGINGFACE, e.message()).with_source(e)),
            None => Ok((self.build(true)?, BUILT_GROWTH)),
        }
    }

    /// `markup`: whether control tokens written out in a text are recognised.
    fn build(&self, markup: bool) -> Result<Tokenizer> {
        let texts = self.tokens.iter().map(|token| token.len()).sum::<usize>();
        // Merges are at most as many as tokens, or a few more.
        check_room(TOKENS, 8 * texts + self.tokens.len().saturating_mul(BYTES_PER_TOKEN))?;
        let mut tokenizer = match self.algorithm {
            Algorithm::ByteLevel => self.byte_level()?,
            Algorithm::SentencePiece => self.sentencepiece()?,
            Algorithm::Gemma4 => self.gemma4()?,
            Algorithm::WordPiece => self.wordpiece()?,
            Algorithm::Unigram => self.unigram()?,
        };
        let added = self.added_tokens(markup);
        tokenizer.add_tokens(added).map_err(|e| self.failed(TOKENS, e))?;
        tokenizer.with_post_processor(self.template()?);
        Ok(tokenizer)
    }

    /// The ids that end an answer: EOS first, then ends of turns and messages, then tokens that are known to be ends.
    pub fn ends(&self) -> Vec<u32> {
        let SpecialIds { eos, eot, eom, .. } = self.special;
        let controls: Vec<(u32, &str)> = self.of_type(TokenType::Control).map(|id| (id, self.tokens[id as usize])).collect();
        let has = |token: &str| controls.iter().any(|(_, control)| *control == token);
        let is_end = |token: &str| match token {
            // In the formats of gpt-oss and Solar each message ends with it, and an answer has several.
            "<|end|>" => !(has("<|return|>") && has("<|call|>") || has("<|flush|>") && (has("<|call|>") || has("<|calls|>"))),
            // Gemma 4's is markup.
            MARKUP_END => !has("<|tool_response>"),
            token => ENDS.contains(&token),
        };
        let known = controls.iter().filter(|(_, token)| is_end(token)).map(|(id, _)| *id);
        let mut ends = Vec::new();
        for id in [eos, eot, eom].into_iter().flatten().chain(known) {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        ends
    }

    /// What stands in a tokenizer_config.json, but for what the tokenizer holds: `chat_template`, alone or by name,
    /// `bos_token`, `eos_token` and so on, and the class of those that tokenizer.json says all of.
    pub fn config(&self) -> Result<JsonValue> {
        let mut config = Map::new();
        config.insert("tokenizer_class".to_string(), WHOLE_CLASS.into());
        let named = self.metadata.keys().filter_map(|key| key.strip_prefix(TEMPLATE)?.strip_prefix('.'));
        let mut templates = Vec::new();
        for name in named {
            if let Some(template) = self.metadata.text(&format!("{TEMPLATE}.{name}"))? {
                templates.push(json!({ "name": name, "template": template }));
            }
        }
        let default = self.metadata.text(TEMPLATE)?;
        if templates.is_empty() {
            config.extend(default.map(|template| ("chat_template".to_string(), template.into())));
        } else {
            templates.extend(default.map(|template| json!({ "name": "default", "template": template })));
            config.insert("chat_template".to_string(), templates.into());
        }
        for (role, id) in self.special.named() {
            if let Some(token) = id.and_then(|id| self.tokens.get(id as usize)) {
                config.insert(format!("{role}_token"), (*token).into());
            }
        }
        Ok(config.into())
    }

    fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// A token as the models know it. Empty ones have a name, as in llama.cpp: nothing of a text is ever nothing.
    fn token(&self, id: u32) -> Cow<'m, str> {
        match self.tokens[id as usize] {
            "" => Cow::Owned(format!("[EMPTY_{id}]")),
            token => Cow::Borrowed(token),
        }
    }

    fn of_type(&self, kind: TokenType) -> impl Iterator<Item = u32> {
        (0..self.len()).filter(move |&id| self.types[id as usize] == kind)
    }

    /// The id of the first token that is written so.
    fn id_of(&self, token: &str) -> Option<u32> {
        (0..self.len()).find(|&id| self.tokens[id as usize] == token)
    }

    /// What stands for characters that no token has.
    fn unknown(&self) -> Option<u32> {
        self.of_type(TokenType::Unknown).next().or(self.special.unknown)
    }

    /// Ids by token, spelled as the model wants it.
    fn ids(&self, spelled: impl Fn(u32) -> String) -> Result<TokenIds> {
        let mut ids = TokenIds::default();
        ids.try_reserve(self.tokens.len()).map_err(|e| self.no_memory(TOKENS, self.tokens.len(), e))?;
        for id in 0..self.len() {
            let token = spelled(id);
            let before = ids.insert(token, id);
            if let Some(before) = before {
                let token = clip(self.tokens[id as usize]);
                return Err(self.metadata.invalid(TOKENS, &format!("token {id} is token {before} again, {token:?}")));
            }
        }
        Ok(ids)
    }

    /// One score a token.
    fn scores(&self) -> Result<Vec<f32>> {
        let wanted = || format!("{} numbers, one a token", self.tokens.len());
        let scores = self.metadata.floats(SCORES)?.filter(|scores| scores.len() == self.tokens.len());
        let scores = scores.ok_or_else(|| self.metadata.expected(SCORES, &wanted()))?;
        match scores.iter().position(|score| !score.is_finite()) {
            Some(id) => {
                let message = format!("score {id}: expected a finite number, found {}", scores[id]);
                Err(self.metadata.invalid(SCORES, &message))
            }
            None => Ok(scores),
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.metadata.bool(&format!("tokenizer.ggml.{name}"))?.unwrap_or(default))
    }

    /// Tokens that texts are searched for before anything else. A file does not say which take the spaces around them.
    fn added_tokens(&self, markup: bool) -> Vec<AddedToken> {
        let architecture = self.metadata.text("general.architecture");
        let phi3 = self.algorithm == Algorithm::SentencePiece && architecture.is_ok_and(|name| name == Some("phi3"));
        let added = |id: u32| {
            let token = self.token(id);
            let special = match self.types[id as usize] {
                TokenType::UserDefined => false,
                TokenType::Control | TokenType::Unknown if markup => true,
                _ => return None,
            };
            // Of RoBERTa and ModernBERT; BERT's own takes none.
            let mask = token == "<mask>" || (token == "[MASK]" && self.algorithm == Algorithm::ByteLevel);
            let takes_next = phi3 && special && !["<unk>", "<s>", "<|endoftext|>"].contains(&&*token);
            Some(AddedToken::from(token, special).normalized(false).lstrip(mask).rstrip(takes_next))
        };
        (0..self.len()).filter_map(added).collect()
    }

    /// What the tokenizer puts around a text.
    fn template(&self) -> Result<Option<TemplateProcessing>> {
        let [begin, end] = self.around()?;
        if begin.is_none() && end.is_none() {
            return Ok(None);
        }
        let special = |name: &str, id: u32| SpecialToken::new(name.to_string(), vec![id], vec![self.token(id).into_owned()]);
        // Names of the template's own, for a token may have the signs in it that a template is written with.
        let (mut single, mut tokens) = (vec!["$A"], Vec::new());
        if let Some(id) = begin {
            single.insert(0, "begin");
            tokens.push(special("begin", id));
        }
        if let Some(id) = end {
            single.push("end");
            tokens.push(special("end", id));
        }
        let tokens = tokens.into_iter().collect::<tokenizers::Result<Vec<_>>>().map_err(|e| self.failed(TOKENS, e))?;
        let mut template = TemplateProcessing::builder();
        let template = template.try_single(single).map_err(|e| self.metadata.invalid(TOKENS, &e))?.special_tokens(tokens);
        template.build().map(Some).map_err(|e| self.metadata.invalid(TOKENS, &e.to_string()))
    }

    fn around(&self) -> Result<[Option<u32>; 2]> {
        let SpecialIds { bos, eos, class, separator, .. } = self.special;
        if self.algorithm == Algorithm::WordPiece {
            let begin = class.or(bos).or_else(|| self.id_of("[CLS]"));
            let end = separator.or(eos).or_else(|| self.id_of("[SEP]"));
            let begin = begin.ok_or_else(|| self.metadata.expected(CLASS, "an id, or a token [CLS]"))?;
            let end = end.ok_or_else(|| self.metadata.expected(SEPARATOR, "an id, or a token [SEP]"))?;
            return Ok([Some(begin), Some(end)]);
        }
        let (begins, ends) = match self.algorithm {
            Algorithm::SentencePiece => (true, false),
            Algorithm::Unigram => (false, true),
            Algorithm::ByteLevel => (self.pre()?.add_bos, false),
            // Early files deny it.
            Algorithm::Gemma4 | Algorithm::WordPiece => (true, false),
        };
        let begins = self.algorithm == Algorithm::Gemma4 || self.flag("add_bos_token", begins)?;
        let begin = self.one_around("add_bos_token", begins, bos.or(class), BOS, "<s>")?;
        let end = self.one_around("add_eos_token", self.flag("add_eos_token", ends)?, eos, EOS, "</s>")?;
        Ok([begin, end])
    }

    /// `usual`: what the token is called in SentencePiece's models, whose files of 2023 name no ids.
    fn one_around(&self, flag: &str, add: bool, id: Option<u32>, key: &str, usual: &str) -> Result<Option<u32>> {
        if !add {
            return Ok(None);
        }
        let sentencepiece = self.algorithm != Algorithm::ByteLevel;
        let id = id.or_else(|| self.id_of(usual).filter(|_| sentencepiece));
        if id.is_none() && self.metadata.has(&format!("tokenizer.ggml.{flag}")) {
            return Err(self.metadata.expected(key, &format!("an id, for tokenizer.ggml.{flag} is true")));
        }
        Ok(id)
    }

    /// An error of the crate tokenizers about a value.
    fn failed(&self, key: &str, error: tokenizers::Error) -> Error {
        self.metadata.invalid(key, &error.to_string()).with_source(error)
    }

    fn no_memory(&self, key: &str, len: usize, error: std::collections::TryReserveError) -> Error {
        let message = self.metadata.invalid(key, &format!("{len} items do not fit the memory"));
        Error::new(ErrorKind::OutOfMemory, message.message()).with_source(error)
    }
}

impl SpecialIds {
    fn read(metadata: &Metadata, tokens: usize) -> Result<Self> {
        let read = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = metadata.u32(&key)?;
            Ok::<_, Error>((key, id, id.is_none_or(|id| (id as usize) < tokens || tokens == 0)))
        };
        // Files name a token that was never added, or say -1 for none.
        let id = |name: &str| {
            let (key, id, is_known) = read(name)?;
            if let (Some(id), false) = (id, is_known) {
                log::warn!("{key}: {id} is no id below {tokens}, taken as none");
            }
            Ok::<_, Error>(id.filter(|_| is_known))
        };
        Ok(Self {
            bos: id("bos")?,
            eos: id("eos")?,
            eot: id("eot")?,
            eom: id("eom")?,
            unknown: id("unknown")?,
            // The format's own spelling.
            separator: id("seperator")?,
            padding: id("padding")?,
            class: id("cls")?,
            mask: id("mask")?,
        })
    }

    /// By the names of transformers.
    fn named(&self) -> [(&'static str, Option<u32>); 7] {
        [
            ("bos", self.bos),
            ("eos", self.eos),
            ("unk", self.unknown),
            ("sep", self.separator),
            ("pad", self.padding),
            ("cls", self.class),
            ("mask", self.mask),
        ]
    }
}

/// One type a token: normal if the file has none, or a number that stands for none.
fn types(metadata: &Metadata, tokens: &[&str]) -> Result<Vec<TokenType>> {
    let mut types = vec![TokenType::Normal; tokens.len()];
    if let Some(numbers) = metadata.ints(TYPES)? {
        if numbers.len() != tokens.len() {
            return Err(metadata.expected(TYPES, &format!("{} whole numbers, one a token", tokens.len())));
        }
        for (kind, number) in types.iter_mut().zip(numbers) {
            let known = usize::try_from(number).ok().and_then(|number| TokenType::ALL.get(number.checked_sub(1)?));
            *kind = known.copied().unwrap_or(TokenType::Normal);
        }
    }
    let ends = ENDS.into_iter().filter(|end| *end != MARKUP_END).collect::<HashSet<_>>();
    for (kind, token) in types.iter_mut().zip(tokens) {
        if *kind != TokenType::Control && ends.contains(token) {
            *kind = TokenType::Control;
        }
    }
    Ok(types)
}

fn names(names: &[&str]) -> String {
    format!("one of {}", names.join(", "))
}
