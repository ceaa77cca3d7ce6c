//! A model's chat template, from the files of its directory.
//!
//! ```no_run
//! use metal_candle::ChatTemplate;
//! # if !cfg!(reference_data) { return Ok(()); } // A package comes without models.
//! let template = ChatTemplate::load(std::path::Path::new("models/tiny-coder"))?;
//! assert!(template.is_some());
//! # Ok::<(), metal_candle::Error>(())
//! ```

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::program::Program;
use super::{json_type, no_template};
use crate::error::{Error, ErrorKind, Result};
use crate::load::read_text;

/// The templates of a model and the variables its files give them (`bos_token`, `eos_token`, …).
///
/// A model may have several: `default`, and `tool_use` for conversations with tools.
#[derive(Debug, Clone, Default)]
pub struct ChatTemplate {
    programs: Vec<(String, Program)>,
    variables: Map<String, Json>,
}

impl ChatTemplate {
    /// A template in Jinja and the variables that the model gives it.
    ///
    /// # Errors
    /// `ErrorKind::Template` with the line that is wrong.
    pub fn new(source: &str, variables: Map<String, Json>) -> Result<Self> {
        Ok(Self { programs: vec![(DEFAULT.to_owned(), Program::new(source)?)], variables })
    }

    /// The template of the model directory `dir`; `None` if no file there has one.
    ///
    /// The first of these counts, as in transformers: `chat_template.jinja`, `chat_template.json`, and `chat_template` in
    /// `tokenizer_config.json` (a string, or a list of `{name, template}`); `additional_chat_templates/NAME.jinja` add to it. The
    /// special tokens come from `tokenizer_config.json`; where that lists no `added_tokens_decoder`, `special_tokens_map.json` counts more,
    /// as in transformers. A template is compiled when it is first
    /// rendered, so that a broken one does not keep the model from loading.
    ///
    /// # Errors
    /// `ErrorKind::Io` if a file cannot be read; `ErrorKind::Format`, naming file and field, if it is over 16 MiB, not UTF-8, not
    /// JSON, or a field has another type.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        Ok(Some(Self::read(dir)?).filter(Self::has_template))
    }

    /// As [`load`](Self::load); without a template in the files, what they give to one that a conversation brings.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let config = Document::read(dir.join("tokenizer_config.json"))?;
        let mut template = Self::default();
        if let Some(source) = read_optional(&dir.join("chat_template.jinja"))? {
            template.set(DEFAULT, source);
        } else if let Some(document) = Document::read(dir.join("chat_template.json"))? {
            template.take_field(&document)?;
        } else if let Some(document) = &config {
            template.take_field(document)?;
        }
        for path in named_templates(dir)? {
            let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(source) = read_optional(&path)? {
                template.set(&name, source);
            }
        }
        let lists_tokens = config.as_ref().is_some_and(|config| config.fields.contains_key("added_tokens_decoder"));
        let map = if lists_tokens { None } else { Document::read(dir.join("special_tokens_map.json"))? };
        for document in map.iter().chain(&config) {
            template.take_special_tokens(document)?;
        }
        Ok(template)
    }

    /// The template that a tokenizer_config.json holds, or else what it gives to one that a conversation brings.
    ///
    /// # Errors
    /// `ErrorKind::Format` for a field of another type.
    pub(crate) fn of_config(config: &crate::load::Json) -> Result<Self> {
        let fields = config.value().as_object().cloned().unwrap_or_default();
        let document = Document { path: PathBuf::from("tokenizer_config.json"), fields };
        let mut template = Self::default();
        template.take_field(&document)?;
        template.take_special_tokens(&document)?;
        Ok(template)
    }

    /// Whether there is a template, and not its variables alone.
    pub(crate) fn has_template(&self) -> bool {
        !self.programs.is_empty()
    }

    /// The text of the template that conversations without tools use.
    pub fn source(&self) -> Option<&str> {
        self.named(DEFAULT).map(Program::source)
    }

    /// The variables that the model gives its template.
    pub(super) fn variables(&self) -> &Map<String, Json> {
        &self.variables
    }

    /// The template for a conversation with or without tools.
    pub(super) fn program(&self, has_tools: bool) -> Result<&Program> {
        if !self.has_template() {
            return Err(no_template());
        }
        let chosen = if has_tools { self.named(TOOL_USE) } else { None };
        chosen.or_else(|| self.named(DEFAULT)).ok_or_else(|| {
            let names: Vec<&str> = self.programs.iter().map(|(name, _)| name.as_str()).collect();
            let message = format!("chat template: none is named {DEFAULT:?} (the model has: {})", names.join(", "));
            Error::new(ErrorKind::Template, message)
        })
    }

    fn named(&self, wanted: &str) -> Option<&Program> {
        self.programs.iter().find(|(name, _)| name == wanted).map(|(_, program)| program)
    }

    fn set(&mut self, name: &str, source: String) {
        self.programs.retain(|(other, _)| other != name);
        self.programs.push((name.to_owned(), Program::deferred(source)));
    }

    /// `chat_template`: a string, a list of `{name, template}`, or an object of templates by their names.
    fn take_field(&mut self, document: &Document) -> Result<()> {
        match document.fields.get("chat_template") {
            None | Some(Json::Null) => {}
            Some(Json::String(source)) => self.set(DEFAULT, source.clone()),
            Some(Json::Array(items)) => {
                for (at, item) in items.iter().enumerate() {
                    let field = |name: &str| match item.get(name) {
                        Some(Json::String(text)) => Ok(text.clone()),
                        other => Err(document.expected(&format!("chat_template[{at}].{name}"), "a string", other)),
                    };
                    self.set(&field("name")?, field("template")?);
                }
            }
            Some(Json::Object(named)) => {
                for (name, template) in named {
                    match template {
                        Json::String(source) => self.set(name, source.clone()),
                        other => return Err(document.expected(&format!("chat_template.{name}"), "a string", Some(other))),
                    }
                }
            }
            other => return Err(document.expected("chat_template", "a string, a list or an object", other)),
        }
        Ok(())
    }

    /// The special tokens that no document before this one gave: those that every model may have, and its own, such as `image_token`.
    fn take_special_tokens(&mut self, document: &Document) -> Result<()> {
        let is_own = |name: &str, value: &Json| {
            let is_token = value.is_string() || value.get("content").is_some_and(Json::is_string);
            name.ends_with("_token") && is_token && super::check_variable_name(name).is_ok()
        };
        let own = document.fields.iter().filter(|(name, value)| !TOKENS.contains(&name.as_str()) && is_own(name, value));
        for name in TOKENS.into_iter().chain(own.map(|(name, _)| name.as_str())) {
            if let Some(token) = document.token(name, document.fields.get(name))? {
                self.variables.entry(name).or_insert(Json::String(token));
            }
        }
        for name in TOKEN_LISTS {
            let tokens = match document.fields.get(name) {
                None | Some(Json::Null) => continue,
                // transformers 5 names further tokens: {"image_token": "<image>"}.
                Some(Json::Object(named)) => {
                    for (name, token) in named {
                        if let Some(token) = document.token(name, Some(token))? {
                            self.variables.entry(name.as_str()).or_insert(Json::String(token));
                        }
                    }
                    continue;
                }
                Some(Json::Array(tokens)) => tokens,
                other => return Err(document.expected(name, "a list", other)),
            };
            let tokens: Result<Vec<_>> =
                tokens.iter().enumerate().map(|(at, token)| document.token(&format!("{name}[{at}]"), Some(token))).collect();
            let tokens = tokens?.into_iter().flatten().map(Json::String).collect();
            self.variables.entry(name).or_insert(Json::Array(tokens));
        }
        Ok(())
    }
}

/// A JSON file that holds an object.
struct Document {
    path: PathBuf,
    fields: Map<String, Json>,
}

impl Document {
    fn read(path: PathBuf) -> Result<Option<Self>> {
        let Some(text) = read_optional(&path)? else {
            return Ok(None);
        };
        match serde_json::from_str(&text) {
            Ok(Json::Object(fields)) => Ok(Some(Self { path, fields })),
            Ok(other) => Err(Error::format(format!("{}: expected an object, found {}", path.display(), json_type(Some(&other))))),
            Err(error) => Err(Error::format(format!("{}: expected JSON: {error}", path.display())).with_source(error)),
        }
    }

    /// A token: a string, or an object with `content`; null is none.
    fn token(&self, name: &str, value: Option<&Json>) -> Result<Option<String>> {
        match value {
            None | Some(Json::Null) => Ok(None),
            Some(Json::String(token)) => Ok(Some(token.clone())),
            Some(Json::Object(token)) => match token.get("content") {
                Some(Json::String(token)) => Ok(Some(token.clone())),
                other => Err(self.expected(&format!("{name}.content"), "a string", other)),
            },
            other => Err(self.expected(name, "a string", other)),
        }
    }

    fn expected(&self, field: &str, expectation: &str, found: Option<&Json>) -> Error {
        Error::format(format!("{}: {field}: expected {expectation}, found {}", self.path.display(), json_type(found)))
    }
}

/// The text of a file; `None` if there is no such file.
fn read_optional(path: &Path) -> Result<Option<String>> {
    match read_text(path, MAX_FILE_BYTES) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// The files of a model's further templates, by name.
pub(crate) fn named_templates(model: &Path) -> Result<Vec<PathBuf>> {
    let dir = &model.join(NAMED_TEMPLATES);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(dir, error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::io(dir, error))?.path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Where they lie, beside the weights.
pub(crate) const NAMED_TEMPLATES: &str = "additional_chat_templates";
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
const TOKENS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const TOKEN_LISTS: [&str; 3] = ["additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"];
const MAX_FILE_BYTES: u64 = 16 << 20;
