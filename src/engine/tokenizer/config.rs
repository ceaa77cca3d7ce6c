//! What the files beside tokenizer.json say of a tokenizer: its class, more tokens and which of them are special, how texts are cleaned up.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::normalizers::{BertNormalizer, Replace};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as Cuts;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{AddedToken, DecoderWrapper, Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::{Inner, Tokenizer, bad_normalizer, collect_parts, special_ids};
use crate::error::{Error, Result};
use crate::load::Json;

/// Families whose tokenizer.json transformers takes as it is, whatever class their files name.
pub(super) const OF_FILE: [&str; 24] = [
    "ernie4_5",
    "glm",
    "glm4",
    "granite",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "ministral3",
    "mistral",
    "mistral3",
    "mixtral",
    "modernbert",
    "modernbert-decoder",
    "nemotron",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "stablelm",
];

const TOKEN_ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const EXTRA: &str = "extra_special_tokens";
/// What `EXTRA` was called before version 5.
const ADDITIONAL: &str = "additional_special_tokens";

impl Tokenizer {
    /// The same with what tokenizer_config.json and config.json, `model`, say of a class that the reference does not take from
    /// tokenizer.json: BERT's and MPNet's normaliser, the first space of RoBERTa's and GPT-2's kind, where words of Llama and
    /// XLM-RoBERTa begin.
    ///
    /// # Source
    /// The classes of transformers 5.24, and what `AutoTokenizer` chooses among them.
    pub(crate) fn configured(self, config: Option<&Json>, model: Option<&Json>, model_type: &str) -> Result<Self> {
        if OF_FILE.contains(&model_type) {
            return Ok(self);
        }
        let class = tokenizer_class(config, model, model_type)?;
        let flag = |name: &str, default: bool| config.map_or(Ok(default), |config| config.flag(name, default));
        // Its only holder needs no copy: vocabularies take megabytes.
        let mut inner = Arc::try_unwrap(self.0).unwrap_or_else(|shared| (*shared).clone());
        let tokenizer = &mut inner.tokenizer;
        match class.as_str() {
            "BertTokenizer" | "DistilBertTokenizer" | "MPNetTokenizer" => {
                let says = config.is_some_and(|config| config.get("strip_accents").is_some());
                let accents = if says { Some(flag("strip_accents", false)?) } else { None };
                let (chinese, lower) = (flag("tokenize_chinese_chars", true)?, flag("do_lower_case", true)?);
                let normalizer = BertNormalizer::new(true, chinese, accents, lower);
                tokenizer.with_normalizer(Some(normalizer)).map_err(bad_normalizer)?;
            }
            "RobertaTokenizer" | "GPT2Tokenizer" | "GPTNeoXTokenizer" | "CodeGenTokenizer" | "CohereTokenizer"
            | "Qwen2Tokenizer" => {
                with_prefix_space(tokenizer, flag("add_prefix_space", false)?);
            }
            "XLMRobertaTokenizer" | "CamembertTokenizer" => {
                let longer = as_xlm_roberta(tokenizer, flag("add_prefix_space", true)?)?;
                inner.growth = inner.growth.saturating_mul(longer);
            }
            "LlamaTokenizer" if !is_byte_level(tokenizer) => {
                as_llama(tokenizer, flag("add_prefix_space", true)?, flag("legacy", false)?)?;
                // A space becomes three bytes, and one more may come first.
                inner.growth = inner.growth.max(6);
            }
            _ => {}
        }
        Ok(Self(Arc::new(inner)))
    }

    /// The same with the tokens that only the files beside tokenizer.json declare: tokenizer_config.json, and where that lists none,
    /// special_tokens_map.json and added_tokens.json.
    ///
    /// # Errors
    /// `ErrorKind::Io`, `ErrorKind::Format`.
    ///
    /// # Source
    /// `PreTrainedTokenizerFast` of transformers 5.24: which come in what order, and which are special.
    pub(crate) fn declared(self, directory: &Path) -> Result<Self> {
        let read = |name: &str| Json::read_optional(&directory.join(name));
        let config = match read("tokenizer_config.json")? {
            Some(config) => config,
            None => Json::parse("tokenizer_config.json", "{}")?,
        };
        let listed = config.object("added_tokens_decoder")?;
        let (map, added) = match &listed {
            Some(_) => (None, None),
            None => (read("special_tokens_map.json")?, read("added_tokens.json")?),
        };
        let named = NamedTokens::of(&config, map.as_ref())?;
        let has_role: HashSet<&str> = named.roles.iter().map(|token| token.content.as_str()).collect();
        let mut tokens = Vec::new();
        for (id, token) in numbered(listed.as_ref())? {
            let special = token.value().get("special").and_then(serde_json::Value::as_bool).unwrap_or(false);
            let token = declared_token(&token, special)?;
            let special = token.special || has_role.contains(token.content.as_str());
            tokens.push((id, token.special(special)));
        }
        tokens.sort_by_key(|(id, _)| *id);
        let mut tokens: Vec<AddedToken> = tokens.into_iter().map(|(_, token)| token).collect();
        let is_listed: HashSet<&str> = named.listed.iter().map(|token| token.content.as_str()).collect();
        let is_named = |content: &str| has_role.contains(content) || is_listed.contains(content);
        let mut from_map: Vec<(u64, AddedToken)> = Vec::new();
        for (content, id) in added.iter().flat_map(|json| json.value().as_object()).flatten() {
            let id =
                id.as_u64().ok_or_else(|| Error::format(format!("added_tokens.json: {content}: expected an id, found {id}")))?;
            from_map.push((id, AddedToken::from(content.as_str(), is_named(content)).normalized(!is_named(content))));
        }
        from_map.sort_by_key(|(id, _)| *id);
        tokens.extend(from_map.into_iter().map(|(_, token)| token));
        let own: Vec<AddedToken> = self.0.tokenizer.get_added_tokens_decoder().into_values().collect();
        let known: HashSet<String> = own.iter().chain(&tokens).map(|token| token.content.clone()).collect();
        // Each is named once.
        tokens.extend(named.roles.iter().chain(&named.listed).filter(|token| !known.contains(&token.content)).cloned());
        if listed.is_none() {
            // What has a role is special, whatever tokenizer.json says.
            let wrong = own.into_iter().filter(|token| !token.special && has_role.contains(token.content.as_str()));
            tokens.extend(wrong.map(|token| token.special(true)));
        }
        let splits = config.flag("split_special_tokens", false)?;
        let cleans_up = config.flag("clean_up_tokenization_spaces", false)?
            && (!matches!(self.0.tokenizer.get_model(), ModelWrapper::BPE(_))
                || config.flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", false)?);
        if tokens.is_empty() && !splits && !cleans_up {
            return Ok(self);
        }
        let Inner { mut tokenizer, growth, cut, .. } = Arc::try_unwrap(self.0).unwrap_or_else(|shared| (*shared).clone());
        let refused = |e: tokenizers::Error| Error::format(format!("tokenizer_config.json: added tokens: {e}"));
        // All at once: whatever is added, it makes the automaton that finds them anew.
        tokenizer.add_tokens(tokens).map_err(refused)?;
        tokenizer.set_encode_special_tokens(splits);
        let special = special_ids(&tokenizer);
        Ok(Self(Arc::new(Inner { tokenizer, special, growth, cut, cleans_up })))
    }
}

/// What `clean_up_tokenization` of transformers 5.24 does to a decoded text: one replacement after another.
pub(super) fn cleaned_up(text: &str) -> String {
    const REPLACED: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACED.into_iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}

/// The class of transformers that reads the files of a tokenizer, without the `Fast` of version 4; empty for the base of all.
pub(super) fn tokenizer_class(config: Option<&Json>, model: Option<&Json>, model_type: &str) -> Result<String> {
    let mut class = None;
    for json in [config, model].into_iter().flatten() {
        class = class.map_or_else(|| json.text("tokenizer_class"), |class| Ok(Some(class)))?;
    }
    let class = class.unwrap_or_else(|| {
        let class = match model_type {
            "bert" | "distilbert" | "nomic_bert" => "BertTokenizer",
            "mpnet" => "MPNetTokenizer",
            "roberta" => "RobertaTokenizer",
            "phi" | "starcoder2" => "GPT2Tokenizer",
            "cohere" | "cohere2" => "CohereTokenizer",
            "olmo" | "olmoe" => "GPTNeoXTokenizer",
            "xlm-roberta" => "XLMRobertaTokenizer",
            "camembert" => "CamembertTokenizer",
            _ => "",
        };
        class.to_string()
    });
    Ok(class.strip_suffix("Fast").unwrap_or(&class).to_string())
}

/// Whether transformers hands a network the types of tokens besides their ids.
pub(in crate::engine) fn gives_types(config: Option<&Json>, model: Option<&Json>, model_type: &str) -> Result<bool> {
    if let Some(names) = config.map_or(Ok(None), |config| config.texts("model_input_names"))? {
        return Ok(names.iter().any(|name| name == "token_type_ids"));
    }
    let without = ["DistilBertTokenizer", "MPNetTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer"];
    Ok(!without.contains(&tokenizer_class(config, model, model_type)?.as_str()))
}

/// Whether bytes are written as characters, as GPT-2 does.
fn is_byte_level(tokenizer: &tokenizers::Tokenizer) -> bool {
    let mut decoders = Vec::new();
    tokenizer.get_decoder().into_iter().for_each(|decoder| collect_parts(decoder, &mut decoders));
    let cuts_bytes = |part: &PreTokenizerWrapper| matches!(part, PreTokenizerWrapper::ByteLevel(_));
    let before = match tokenizer.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::Sequence(parts)) => parts.as_ref().iter().any(cuts_bytes),
        Some(part) => cuts_bytes(part),
        None => false,
    };
    before || decoders.iter().any(|part| matches!(part, DecoderWrapper::ByteLevel(_)))
}

/// Everything around the vocabulary as `XLMRobertaTokenizer` and `CamembertTokenizer` make it: of the normaliser SentencePiece's map
/// alone is left, white space separates words whatever it is, and a word begins with `▁`. Returns how many times longer texts may get
/// than the file made them.
fn as_xlm_roberta(tokenizer: &mut tokenizers::Tokenizer, add_prefix_space: bool) -> Result<usize> {
    let ModelWrapper::Unigram(_) = tokenizer.get_model() else { return Ok(1) };
    let is_map = |normalizer: &&NormalizerWrapper| matches!(normalizer, NormalizerWrapper::Precompiled(_));
    let map = match tokenizer.get_normalizer() {
        Some(NormalizerWrapper::Sequence(steps)) => steps.as_ref().iter().find(is_map).cloned(),
        own => own.filter(is_map).cloned(),
    };
    let writes = |part: &PreTokenizerWrapper| matches!(part, PreTokenizerWrapper::Metaspace(_));
    let wrote = match tokenizer.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::Sequence(parts)) => parts.as_ref().iter().any(writes),
        own => own.is_some_and(writes),
    };
    let words = Metaspace::new('▁', if add_prefix_space { PrependScheme::Always } else { PrependScheme::Never }, true);
    tokenizer.with_normalizer(map).map_err(bad_normalizer)?;
    tokenizer.with_pre_tokenizer(Some(Cuts::new(vec![WhitespaceSplit.into(), words.clone().into()])));
    tokenizer.with_decoder(Some(words));
    Ok(if wrote { 1 } else { '▁'.len_utf8() })
}

/// Whether a text that begins with no space gets one, where bytes are written as characters.
fn with_prefix_space(tokenizer: &mut tokenizers::Tokenizer, adds: bool) {
    let changed = match tokenizer.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::ByteLevel(bytes)) => Some(PreTokenizerWrapper::ByteLevel(bytes.add_prefix_space(adds))),
        Some(PreTokenizerWrapper::Sequence(parts)) => {
            let part = |part: &PreTokenizerWrapper| match part {
                PreTokenizerWrapper::ByteLevel(bytes) => PreTokenizerWrapper::ByteLevel(bytes.add_prefix_space(adds)),
                other => other.clone(),
            };
            Some(Cuts::new(parts.as_ref().iter().map(part).collect()).into())
        }
        _ => None,
    };
    if changed.is_some() {
        tokenizer.with_pre_tokenizer(changed);
    }
}

/// Everything around the vocabulary as `LlamaTokenizer` makes it: no normaliser, a word begins with `▁`.
fn as_llama(tokenizer: &mut tokenizers::Tokenizer, add_prefix_space: bool, legacy: bool) -> Result<()> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return Ok(()) };
    let has_bytes = || (0..=u8::MAX).all(|byte| model.token_to_id(&format!("<0x{byte:02X}>")).is_some());
    // Where every byte has a token, no text has an unknown one; then its copy is not worth the time.
    if !(model.fuse_unk && model.byte_fallback && has_bytes()) {
        let mut model = model.clone();
        (model.fuse_unk, model.byte_fallback, model.unk_token) = (true, true, None);
        tokenizer.with_model(model);
    }
    let scheme = match (add_prefix_space, legacy) {
        (true, true) => PrependScheme::Always,
        (true, false) => PrependScheme::First,
        (false, _) => PrependScheme::Never,
    };
    tokenizer.with_normalizer(None::<NormalizerWrapper>).map_err(bad_normalizer)?;
    tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
    let spaces = Replace::new("▁", " ").map_err(bad_normalizer)?;
    let mut decoders = vec![spaces.into(), ByteFallback::new().into(), Fuse::new().into()];
    if add_prefix_space {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
    Ok(())
}

/// The fields of an object of tokens, by their ids.
fn numbered(json: Option<&Json>) -> Result<Vec<(u32, Json)>> {
    let fields = json.and_then(|json| Some((json, json.value().as_object()?)));
    let Some((json, fields)) = fields else { return Ok(Vec::new()) };
    let token = |key: &String| {
        let id = key.parse().map_err(|_| json.invalid(key, "expected an id"))?;
        let token = json.object(key)?.ok_or_else(|| json.invalid(key, "expected an object, found null"))?;
        Ok((id, token))
    };
    fields.keys().map(token).collect()
}

/// A token as its fields describe it. `special`: whether it is one where nothing else is said.
fn declared_token(json: &Json, special: bool) -> Result<AddedToken> {
    let content = json.text("content")?.ok_or_else(|| json.invalid("content", "expected text, found nothing"))?;
    Ok(AddedToken::from(content, special)
        .single_word(json.flag("single_word", false)?)
        .lstrip(json.flag("lstrip", false)?)
        .rstrip(json.flag("rstrip", false)?)
        .normalized(json.flag("normalized", !special)?))
}

/// The tokens that files name, each once.
#[derive(Default)]
struct NamedTokens {
    /// Of [`TOKEN_ROLES`], then of a model's own, such as `image_token`.
    roles: Vec<AddedToken>,
    /// Of lists, as far as they have no role.
    listed: Vec<AddedToken>,
}

impl NamedTokens {
    /// `map`: special_tokens_map.json, if it counts.
    fn of(config: &Json, map: Option<&Json>) -> Result<Self> {
        // What is said last counts, in the place of what was said first.
        let mut roles: Vec<(String, AddedToken)> = Vec::new();
        for role in TOKEN_ROLES {
            let from = [map, Some(config)].into_iter().flatten().find(|json| json.get(role).is_some());
            if let Some(token) = from.map(|json| named_token(json, role)).transpose()?.flatten() {
                roles.push((role.to_string(), token));
            }
        }
        let is_own = |key: &str| key.ends_with("_token") && !TOKEN_ROLES.contains(&key);
        let own = |json: &Json, takes: &dyn Fn(&str, &serde_json::Value) -> bool| -> Result<Vec<(String, AddedToken)>> {
            let fields = json.value().as_object().into_iter().flatten().filter(|(key, value)| takes(key, value));
            let tokens = fields.map(|(key, _)| Ok(named_token(json, key)?.map(|token| (key.clone(), token))));
            Ok(tokens.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        };
        let is_object = |value: &serde_json::Value| value.get("__type").is_some_and(|kind| kind == "AddedToken");
        let mut tokens = own(config, &|key, value| is_own(key) && is_object(value))?;
        if let Some(map) = map {
            tokens.extend(own(map, &|key, value| is_own(key) && (value.is_string() || value.is_object()))?);
        }
        let mut explicit = own(config, &|key, value| is_own(key) && value.is_string())?;
        for extra in [Some(config), map].into_iter().flatten().filter_map(|json| json.get(EXTRA)) {
            explicit.extend(own(&extra, &|_, _| true)?);
        }
        if let (true, Some(given)) = (explicit.is_empty(), config.object("model_specific_special_tokens")?) {
            explicit = own(&given, &|_, _| true)?;
        }
        let mut places: HashMap<String, usize> = roles.iter().enumerate().map(|(at, (key, _))| (key.clone(), at)).collect();
        for (key, token) in tokens.into_iter().chain(explicit) {
            let at = *places.entry(key.clone()).or_insert(roles.len());
            match roles.get_mut(at) {
                Some((_, known)) => *known = token,
                None => roles.push((key, token)),
            }
        }

        let mut listed = list(config, EXTRA)?;
        if listed.is_empty() {
            listed = list(config, ADDITIONAL)?;
        }
        if let Some(map) = map {
            listed.extend(list(map, EXTRA)?);
            let has_list = config.get(EXTRA).is_some_and(|extra| extra.value().is_array());
            if !has_list && !config.has(ADDITIONAL) {
                listed.extend(list(map, ADDITIONAL)?);
            }
        }
        let mut known = HashSet::new();
        let mut first = |token: &AddedToken| known.insert(token.content.clone());
        let roles: Vec<_> = roles.into_iter().map(|(_, token)| token).filter(&mut first).collect();
        Ok(Self { roles, listed: listed.into_iter().filter(first).collect() })
    }
}

/// The token of a field: text, or an object.
fn named_token(json: &Json, key: &str) -> Result<Option<AddedToken>> {
    match json.get(key) {
        None => Ok(None),
        Some(field) if field.value().is_object() => declared_token(&field, true).map(Some),
        Some(_) => Ok(json.text(key)?.map(|content| AddedToken::from(content, true))),
    }
}

/// The tokens of a list; none where there is an object, whose tokens have roles.
fn list(json: &Json, key: &str) -> Result<Vec<AddedToken>> {
    let Some(field) = json.get(key) else { return Ok(Vec::new()) };
    match field.value() {
        serde_json::Value::Object(_) => Ok(Vec::new()),
        serde_json::Value::Array(items) => {
            let tokens = items.iter().map(|item| named_token(&Json::of(key, item.clone()), "token"));
            Ok(tokens.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        }
        _ => Err(json.invalid(key, "expected a list or an object of tokens")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_those_that_transformers_declares() {
        let vocab: Vec<String> = ["<", "n", "e", "w", ">", "x", "u", "s", "r", "user", " ", "t"]
            .iter()
            .enumerate()
            .map(|(id, token)| format!("{token:?}: {id}"))
            .collect();
        let text = format!(
            r#"{{"version": "1.0", "added_tokens": [{{"id": 12, "content": "<e>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}}, {{"id": 13, "content": "<t>", "special": false,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}}], "decoder": {{"type": "Fuse"}},
                "model": {{"type": "BPE", "vocab": {{{}}}, "merges": []}}}}"#,
            vocab.join(", ")
        );
        let plain: &[u32] = &[0, 1, 2, 3, 4, 5];
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a [u32], &'a str);
        let cases: &[Case<'_>] = &[
            (&[], "<new>x", plain, "<new>x"),
            (
                &[("tokenizer_config.json", r#"{"added_tokens_decoder": {"14": {"content": "<new>", "special": true}}}"#)],
                "<new>x",
                &[14, 5],
                "x",
            ),
            (
                &[("tokenizer_config.json", r#"{"added_tokens_decoder": {"13": {"content": "<t>", "special": true}}}"#)],
                "x<t>",
                &[5, 13],
                "x",
            ),
            (&[("added_tokens.json", r#"{"<new>": 14}"#)], "<new>x", &[14, 5], "<new>x"),
            (
                &[("added_tokens.json", r#"{"<new>": 14}"#), ("special_tokens_map.json", r#"{"eos_token": "<new>"}"#)],
                "<new>x",
                &[14, 5],
                "x",
            ),
            (&[("tokenizer_config.json", r#"{"eos_token": "<new>"}"#)], "<new>x", &[14, 5], "x"),
            (&[("tokenizer_config.json", r#"{"eos_token": {"content": "<new>", "lstrip": false}}"#)], "<new>x", &[14, 5], "x"),
            (&[("tokenizer_config.json", r#"{"additional_special_tokens": ["<e>", "<new>"]}"#)], "<new>x", &[14, 5], "x"),
            (&[("tokenizer_config.json", r#"{"extra_special_tokens": {"image_token": "<new>"}}"#)], "<new>x", &[14, 5], "x"),
            (&[("tokenizer_config.json", r#"{"bos_token": "user"}"#)], "userx", &[9, 5], "x"),
            (&[("tokenizer_config.json", r#"{"split_special_tokens": true}"#)], "<e>x", &[0, 2, 4, 5], "<e>x"),
            // What has a role is special although tokenizer.json says that it is not; what a list names is not.
            (&[("tokenizer_config.json", r#"{"eos_token": "<t>"}"#)], "x<t>", &[5, 13], "x"),
            (&[("tokenizer_config.json", r#"{"image_token": "<t>"}"#)], "x<t>", &[5, 13], "x"),
            (&[("tokenizer_config.json", r#"{"extra_special_tokens": ["<t>"]}"#)], "x<t>", &[5, 13], "x<t>"),
            (
                &[(
                    "tokenizer_config.json",
                    r#"{"added_tokens_decoder": {"14": {"content": "<new>", "special": false}},
                        "additional_special_tokens": ["<new>"]}"#,
                )],
                "<new>x",
                &[14, 5],
                "<new>x",
            ),
            (
                &[(
                    "tokenizer_config.json",
                    r#"{"added_tokens_decoder": {"14": {"content": "<new>", "special": false}}, "image_token": "<new>"}"#,
                )],
                "<new>x",
                &[14, 5],
                "x",
            ),
            // Roles of a model's own.
            (
                &[(
                    "tokenizer_config.json",
                    r#"{"image_token": {"__type": "AddedToken", "content": "<new>"}, "eos_token": "xx"}"#,
                )],
                "<new>xx",
                &[15, 14],
                "",
            ),
            (&[("tokenizer_config.json", r#"{"model_specific_special_tokens": {"a": "<new>"}}"#)], "<new>x", &[14, 5], "x"),
            (
                &[("special_tokens_map.json", r#"{"video_token": {"content": "<new>"}, "other": "xx"}"#)],
                "<new>xx",
                &[14, 5, 5],
                "xx",
            ),
            (
                &[
                    ("tokenizer_config.json", r#"{"image_token": "<new>"}"#),
                    ("special_tokens_map.json", r#"{"image_token": "xx"}"#),
                ],
                "<new>xx",
                &[14, 5, 5],
                "xx",
            ),
            // Lists in two places.
            (
                &[
                    ("tokenizer_config.json", r#"{"extra_special_tokens": ["xx"]}"#),
                    ("special_tokens_map.json", r#"{"extra_special_tokens": ["<new>"]}"#),
                ],
                "<new>xx",
                &[15, 14],
                "",
            ),
            (
                &[
                    ("tokenizer_config.json", r#"{"additional_special_tokens": ["xx"]}"#),
                    ("special_tokens_map.json", r#"{"additional_special_tokens": ["<new>"]}"#),
                ],
                "<new>xx",
                &[0, 1, 2, 3, 4, 14],
                "<new>",
            ),
            (
                &[("tokenizer_config.json", r#"{"additional_special_tokens": ["xx"], "extra_special_tokens": ["<new>"]}"#)],
                "<new>xx",
                &[14, 5, 5],
                "xx",
            ),
        ];
        for (files, written, ids, shown) in cases {
            let directory = directory(&[&[("tokenizer.json", text.as_str())], *files].concat());
            let tokenizer = Tokenizer::load(directory.path()).unwrap();
            assert_eq!(tokenizer.encode(written, false).unwrap(), *ids, "{files:?}");
            assert_eq!(tokenizer.decode(ids, true).unwrap(), *shown, "{files:?}");
        }
    }

    /// A directory of these files.
    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(directory.path().join(name), text).unwrap());
        directory
    }

    #[test]
    fn words_of_llama_begin_where_its_class_says() {
        // As converted from SentencePiece: a space first, always.
        let tokenizer = r#"{"version": "1.0", "added_tokens": [{"id": 2, "content": "</s>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "h": 4, "i": 5, "hi": 6, "▁hi": 7},
                "merges": ["h i", "▁ hi"]}}"#;
        // Of transformers 5.24: `"hi"`, `" hi"` and `"hi</s>hi"`.
        let cases: [(&str, &str, [&[u32]; 3]); 6] = [
            ("llama", r#"{"tokenizer_class": "LlamaTokenizer"}"#, [&[7], &[7], &[7, 2, 6]]),
            ("llama", r#"{"tokenizer_class": "LlamaTokenizerFast", "legacy": false}"#, [&[7], &[7], &[7, 2, 6]]),
            ("llama", r#"{"tokenizer_class": "LlamaTokenizer", "legacy": true}"#, [&[7], &[7], &[7, 2, 7]]),
            ("llama", r#"{"tokenizer_class": "LlamaTokenizer", "add_prefix_space": false}"#, [&[6], &[7], &[6, 2, 6]]),
            ("llama", r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#, [&[7], &[3, 7], &[7, 2, 7]]),
            ("mistral", r#"{"tokenizer_class": "LlamaTokenizer"}"#, [&[7], &[3, 7], &[7, 2, 7]]),
        ];
        for (model_type, config, want) in cases {
            let model = format!(r#"{{"model_type": "{model_type}"}}"#);
            let files = [("tokenizer.json", tokenizer), ("tokenizer_config.json", config), ("config.json", &model)];
            let tokenizer = Tokenizer::load(directory(&files).path()).unwrap();
            for (text, want) in ["hi", " hi", "hi</s>hi"].into_iter().zip(want) {
                assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{model_type} {config} {text:?}");
            }
            let shown = if config.contains("add_prefix_space") { " hihi" } else { "hihi" };
            assert_eq!(tokenizer.decode(&[7, 6], true).unwrap(), shown, "{config}");
        }
    }

    /// A tokenizer of SentencePiece with what stands around the vocabulary.
    fn unigram(around: &str) -> String {
        let vocab = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "▁a", "b", "\u{c4}", "\u{e4}"];
        let vocab: Vec<String> = vocab.iter().enumerate().map(|(i, piece)| format!("[{piece:?}, {}]", -(i as f64))).collect();
        format!(
            r#"{{"version": "1.0", "added_tokens": [{{"id": 2, "content": "</s>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}}], {around}
                "decoder": {{"type": "Metaspace", "replacement": "▁", "add_prefix_space": true}},
                "model": {{"type": "Unigram", "unk_id": 3, "vocab": [{}]}}}}"#,
            vocab.join(", ")
        )
    }

    #[test]
    fn words_of_xlm_roberta_are_separated_by_white_space() {
        let metaspace = r#""pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": true},"#;
        let spaces = r#"{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}"#;
        // As XLM-RoBERTa is converted by most versions of transformers 4: a trailing space is a token.
        let of_4 = unigram(&format!(r#""normalizer": {{"type": "Sequence", "normalizers": [{spaces}]}}, {metaspace}"#));
        let other = unigram(&format!(r#""normalizer": {{"type": "Lowercase"}}, {metaspace}"#));
        let none = unigram("");
        let own: [&[u32]; 4] = [&[6, 4], &[4], &[6], &[6, 2, 4, 7]];
        // Of transformers 5.24: `"a "`, `" "`, `" a"` and `"a</s>  b"`.
        let want: [&[u32]; 4] = [&[6], &[], &[6], &[6, 2, 4, 7]];
        let class = |name: &str| format!(r#"{{"tokenizer_class": "{name}"}}"#);
        let model = |name: &str| format!(r#"{{"model_type": "{name}"}}"#);
        let plain = class("PreTrainedTokenizerFast");
        let cases = [
            (&of_4, Some(class("XLMRobertaTokenizer")), model("xlm-roberta"), want),
            (&of_4, Some(class("XLMRobertaTokenizerFast")), model("bert"), want),
            (&of_4, Some(class("CamembertTokenizer")), model("camembert"), want),
            (&of_4, Some("{}".to_string()), model("xlm-roberta"), want),
            (&of_4, None, model("camembert"), want),
            (&of_4, None, r#"{"model_type": "bert", "tokenizer_class": "XLMRobertaTokenizer"}"#.to_string(), want),
            (&none, Some(class("XLMRobertaTokenizer")), model("bert"), want),
            (&of_4, Some(plain), model("xlm-roberta"), own),
            (&of_4, Some(class("XLMRobertaTokenizer")), model("modernbert"), own),
        ];
        for (tokenizer, config, model, want) in cases {
            let mut files = vec![("tokenizer.json", tokenizer.as_str()), ("config.json", &model)];
            files.extend(config.as_ref().map(|config| ("tokenizer_config.json", config.as_str())));
            let tokenizer = Tokenizer::load(directory(&files).path()).unwrap();
            for (text, want) in ["a ", " ", " a", "a</s>  b"].into_iter().zip(want) {
                assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{config:?} {model} {text:?}");
            }
            assert_eq!(tokenizer.decode(&[6, 6], true).unwrap(), "a a");
        }
        // Of the normaliser a map of SentencePiece alone is left.
        for (name, want) in [("XLMRobertaTokenizer", 8), ("PreTrainedTokenizerFast", 9)] {
            let (config, model) = (class(name), model("xlm-roberta"));
            let files = [("tokenizer.json", other.as_str()), ("tokenizer_config.json", &config), ("config.json", &model)];
            assert_eq!(Tokenizer::load(directory(&files).path()).unwrap().encode("a\u{c4}", false).unwrap(), [6, want]);
        }
        let config = r#"{"tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": false}"#;
        let directory = directory(&[("tokenizer.json", of_4.as_str()), ("tokenizer_config.json", config)]);
        assert_eq!(Tokenizer::load(directory.path()).unwrap().encode("a b", false).unwrap(), [5, 7]);
    }

    #[test]
    fn a_class_is_what_a_model_is_read_with_that_names_none() {
        let pieces = r###"{"version": "1.0", "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                "lowercase": false}, "pre_tokenizer": {"type": "BertPreTokenizer"}, "model": {"type": "WordPiece",
                "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                "vocab": {"[UNK]": 0, "A": 1, "a": 2}}}"###;
        // Of transformers 5.24: `"A"`.
        for (config, model, want) in [
            (None, r#"{"model_type": "bert"}"#, 2),
            (None, r#"{"model_type": "distilbert"}"#, 2),
            (None, r#"{"model_type": "nomic_bert"}"#, 2),
            (Some("{}"), r#"{"model_type": "nomic_bert"}"#, 2),
            (Some(r#"{"do_lower_case": false}"#), r#"{"model_type": "nomic_bert"}"#, 1),
            (Some("{}"), r#"{"model_type": "bert", "tokenizer_class": "PreTrainedTokenizerFast"}"#, 1),
            (Some(r#"{"tokenizer_class": "BertTokenizer"}"#), r#"{"model_type": "eurobert"}"#, 2),
            (Some(r#"{"tokenizer_class": "BertTokenizer"}"#), r#"{"model_type": "modernbert"}"#, 1),
            (None, r#"{"model_type": "modernbert"}"#, 1),
        ] {
            let mut files = vec![("tokenizer.json", pieces), ("config.json", model)];
            files.extend(config.map(|config| ("tokenizer_config.json", config)));
            let tokenizer = Tokenizer::load(directory(&files).path()).unwrap();
            assert_eq!(tokenizer.encode("A", false).unwrap(), [want], "{config:?} {model}");
        }
    }

    #[test]
    fn a_first_space_comes_where_the_class_puts_one() {
        let bytes = |adds: bool| {
            format!(r#"{{"type": "ByteLevel", "add_prefix_space": {adds}, "trim_offsets": true, "use_regex": false}}"#)
        };
        let tokenizer = |pre_tokenizer: &str| {
            format!(
                r#"{{"version": "1.0", "pre_tokenizer": {pre_tokenizer}, "decoder": {{"type": "ByteLevel", "add_prefix_space": true,
                    "trim_offsets": true, "use_regex": true}}, "model": {{"type": "BPE", "vocab": {{"h": 0, "Ġ": 1}}, "merges": []}}}}"#
            )
        };
        let split = r#"{"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": false}"#;
        let sequence = |adds| format!(r#"{{"type": "Sequence", "pretokenizers": [{split}, {}]}}"#, bytes(adds));
        let (plain, spaced): (&[u32], &[u32]) = (&[0], &[1, 0]);
        // Of transformers 5.24.
        for (model_type, config, pre_tokenizer, want) in [
            ("starcoder2", r#"{"add_prefix_space": true}"#, bytes(false), spaced),
            ("llama", r#"{"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": true}"#, bytes(false), spaced),
            ("llama", r#"{"tokenizer_class": "GPT2Tokenizer"}"#, bytes(true), plain),
            ("qwen3", r#"{"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": true}"#, sequence(false), spaced),
            ("llama", r#"{"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": true}"#, sequence(false), plain),
            ("llama", r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#, bytes(true), spaced),
            ("granite", r#"{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true}"#, bytes(false), plain),
        ] {
            let (text, model) = (tokenizer(&pre_tokenizer), format!(r#"{{"model_type": "{model_type}"}}"#));
            let files = [("tokenizer.json", text.as_str()), ("tokenizer_config.json", config), ("config.json", &model)];
            let tokenizer = Tokenizer::load(directory(&files).path()).unwrap();
            assert_eq!(tokenizer.encode("h", false).unwrap(), want, "{model_type} {config} {pre_tokenizer}");
        }
    }

    #[test]
    fn the_files_of_some_families_count_more_than_the_class_that_they_name() {
        let tokenizer = r###"{"version": "1.0", "model": {"type": "WordPiece", "unk_token": "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1, "A": 2}}}"###;
        let ids = |model_type: &str, config: &str| {
            let model = format!(r#"{{"model_type": "{model_type}"}}"#);
            let files = [("tokenizer.json", tokenizer), ("tokenizer_config.json", config), ("config.json", &model)];
            Tokenizer::load(directory(&files).path()).unwrap().encode("A", false).unwrap()
        };
        for (model_type, config, want) in [
            ("bert", r#"{"tokenizer_class": "BertTokenizer"}"#, 1),
            ("nomic_bert", "{}", 1),
            ("modernbert", r#"{"tokenizer_class": "BertTokenizer"}"#, 2),
        ] {
            assert_eq!(ids(model_type, config), [want], "{model_type}");
        }
    }

    #[test]
    fn a_directory_without_a_tokenizer_json_is_told_how_to_get_one() {
        let error = |files: &[(&str, &str)]| {
            let directory = directory(files);
            let error = Tokenizer::load(directory.path()).err().unwrap();
            assert_eq!(error.kind(), crate::ErrorKind::NotFound);
            error.message().replace(&directory.path().display().to_string(), "directory")
        };
        assert_eq!(error(&[]), "directory: expected tokenizer.json, found none");
        assert_eq!(
            error(&[("vocab.json", "{}"), ("merges.txt", "")]),
            "directory: expected tokenizer.json, found none but vocab.json, of which transformers makes one: \
             AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
        );
    }

    #[test]
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn a_vocabulary_alone_is_read_as_its_class_reads_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vocabularies");
        let golden = std::fs::read_to_string(root.join("golden.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
        let texts = |key: &str| golden[key].as_array().unwrap().clone();
        let ids = |value: &serde_json::Value| serde_json::from_value::<Vec<u32>>(value.clone()).unwrap();
        let found = golden["found"].as_object().unwrap();
        assert!(found.len() >= 10);
        for (name, want) in found {
            let tokenizer = Tokenizer::load(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            for (i, text) in texts("texts").iter().enumerate() {
                let text = text.as_str().unwrap();
                assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&want["ids"][i]), "{name}: {text:?}");
                assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&want["plain"][i]), "{name}: {text:?}");
            }
            for (i, pair) in texts("pairs").iter().enumerate() {
                let pair = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
                let encoding = tokenizer.0.tokenizer.encode(pair, true).unwrap();
                assert_eq!(encoding.get_ids(), ids(&want["pairs"][i]), "{name}: {pair:?}");
            }
            // What is saved with a model is whole.
            let folder = directory(&[("tokenizer.json", &tokenizer.to_json().unwrap())]);
            let again = Tokenizer::load(folder.path()).unwrap();
            for (i, text) in texts("texts").iter().enumerate() {
                assert_eq!(again.encode(text.as_str().unwrap(), true).unwrap(), ids(&want["ids"][i]), "{name}: {text}");
            }
        }
    }

    #[test]
    #[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
    fn a_vocabulary_that_says_too_little_is_not_guessed_at() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vocabularies");
        // Files of a golden directory, some of them others.
        let load = |name: &str, changed: &[(&str, &[u8])]| {
            let folder = tempfile::tempdir().unwrap();
            for entry in std::fs::read_dir(root.join(name)).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
            for (file, bytes) in changed {
                std::fs::write(folder.path().join(file), bytes).unwrap();
            }
            Tokenizer::load(folder.path()).map(drop)
        };
        // Whether a text begins with a token, how texts are cut.
        for (name, file, text) in [
            ("llama", "tokenizer_config.json", r#"{"tokenizer_class": "LlamaTokenizer"}"#),
            ("llama", "config.json", r#"{"model_type": "mistral"}"#),
            ("llama", "tokenizer_config.json", r#"{"tokenizer_class": "GemmaTokenizer", "add_bos_token": true}"#),
            ("qwen3", "tokenizer_config.json", r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#),
        ] {
            let error = load(name, &[(file, text.as_bytes())]).unwrap_err();
            assert!(error.kind() == crate::ErrorKind::NotFound && error.message().contains("found none but"), "{text}: {error}");
        }
        let model = std::fs::read(root.join("llama/tokenizer.model")).unwrap();
        let damaged = [&[0xff; 16], model.as_slice()].concat();
        for (name, file, bytes, part) in [
            ("bert", "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[MASK]\n".as_bytes(), "vocab.txt: expected the token \"[SEP]\""),
            ("roberta", "vocab.json", br#"{"<s>": 0, "a": "b"}"#, "vocab.json: a: expected an id, found \"b\""),
            ("gpt2", "vocab.json", b"[]", "expected an object"),
            ("gpt2", "merges.txt", b"#version: 0.2\na b c\n", "merges.txt: line 2: expected two tokens, found \"a b c\""),
            ("gpt2", "merges.txt", b"zz yy\n", "not a tokenizer"),
            ("llama", "tokenizer.model", b"", "tokenizer.model: expected a model of SentencePiece"),
            ("llama", "tokenizer.model", &damaged, "tokenizer.model: expected a model of SentencePiece"),
        ] {
            let error = load(name, &[(file, bytes)]).unwrap_err();
            assert!(error.kind() == crate::ErrorKind::Format && error.message().contains(part), "{part}: {error}");
        }
        // Wherever it is cut, it is an error or a vocabulary.
        for len in (0..model.len()).step_by(7) {
            let _ = load("llama", &[("tokenizer.model", &model[..len])]);
        }
    }

    #[test]
    fn what_is_decoded_is_cleaned_up_where_its_files_say_so() {
        let vocab = r#"{"[UNK]": 0, "it": 1, "'": 2, "s": 3, ",": 4, "don": 5, "t": 6, ".": 7}"#;
        let pieces = format!(
            r###"{{"version": "1.0", "decoder": {{"type": "WordPiece", "prefix": "##", "cleanup": false}}, "model": {{"type": "WordPiece",
                "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {vocab}}}}}"###
        );
        let bpe = format!(
            r###"{{"version": "1.0", "decoder": {{"type": "WordPiece", "prefix": "##", "cleanup": false}},
                "model": {{"type": "BPE", "vocab": {vocab}, "merges": []}}}}"###
        );
        let kept = "it ' s , don ' t .";
        let on = r#"{"clean_up_tokenization_spaces": true}"#;
        let corrupts = r#"{"clean_up_tokenization_spaces": true,
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": true}"#;
        let cases = [
            (&pieces, on, "it's, don't."),
            (&pieces, r#"{"clean_up_tokenization_spaces": false}"#, kept),
            (&pieces, "{}", kept),
            (&bpe, on, kept),
            (&bpe, corrupts, "it's, don't."),
        ];
        for (tokenizer, config, want) in cases {
            let directory = directory(&[("tokenizer.json", tokenizer), ("tokenizer_config.json", config)]);
            let tokenizer = Tokenizer::load(directory.path()).unwrap();
            assert_eq!(tokenizer.decode(&[1, 2, 3, 4, 5, 2, 6, 7], true).unwrap(), want, "{config}");
        }
    }

    #[test]
    fn many_declared_tokens_are_a_matter_of_a_moment() {
        let directory = tempfile::tempdir().unwrap();
        let tokenizer =
            r#"{"version": "1.0", "decoder": {"type": "Fuse"}, "model": {"type": "BPE", "vocab": {"x": 0}, "merges": []}}"#;
        std::fs::write(directory.path().join("tokenizer.json"), tokenizer).unwrap();
        const COUNT: u32 = 60_000;
        let listed: Vec<String> = (1..COUNT).map(|id| format!(r#""{id}": {{"content": "<{id}>", "special": true}}"#)).collect();
        let named: Vec<String> = (1..COUNT).map(|id| format!("\"<{id}>\"")).collect();
        let with_roles: Vec<String> = (1..COUNT).map(|id| format!(r#""{id}_token": "<{id}>""#)).collect();
        let added: Vec<String> = (1..COUNT).map(|id| format!(r#""<{id}>": {id}"#)).collect();
        let (listed, named, with_roles) = (listed.join(","), named.join(","), with_roles.join(","));
        for (config, map) in [
            (format!(r#"{{"added_tokens_decoder": {{{listed}}}, "additional_special_tokens": [{named}]}}"#), "{}".to_string()),
            (format!(r#"{{"additional_special_tokens": [{named}], {with_roles}}}"#), format!("{{{with_roles}}}")),
        ] {
            std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
            std::fs::write(directory.path().join("special_tokens_map.json"), map).unwrap();
            std::fs::write(directory.path().join("added_tokens.json"), format!("{{{}}}", added.join(","))).unwrap();
            let tokenizer = Tokenizer::load(directory.path()).unwrap();
            assert_eq!(tokenizer.encode("x<77>x<59999>", false).unwrap(), [0, 77, 0, COUNT - 1]);
        }
    }
}
