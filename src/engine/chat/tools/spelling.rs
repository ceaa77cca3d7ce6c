//! How a model writes a call that it has to make: each format's spelling, from which the grammar of an answer is made.
//!
//! What is written by a spelling, the format's own `parse` reads, with arguments that conform to the tool's schema. Where that cannot
//! be promised, as of a text that is bare and has a `format`, the schema is refused.
//!
//! ```text
//! hermes:     <tool_call>⏎{"name": "f", "arguments": JSON}⏎</tool_call>
//! qwen3-xml:  <tool_call>⏎<function=f>⏎<parameter=a>⏎TEXT⏎</parameter>⏎</function>⏎</tool_call>
//! ```

use serde_json::{Map, Value as Json};

use super::named::is_name;
use super::{Tool, ToolFormat, Tools};
use crate::error::{Error, Result};

/// One way in which models of a format write calls.
pub(in crate::engine::chat) struct Spelling {
    /// What the template has or a token is, where the format has several; "" = any.
    pub needs: &'static str,
    /// In front of all calls.
    pub open: &'static str,
    /// A call, with `$name` and `$arguments` in it.
    pub call: &'static str,
    /// Between two calls; `None` = there is one.
    pub between: Option<&'static str>,
    /// Behind all calls.
    pub close: &'static str,
    pub arguments: Written,
}

/// How arguments are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::chat) enum Written {
    /// A JSON object.
    Json,
    /// `<parameter=key>⏎value⏎</parameter>`, one behind another.
    QwenTags,
    /// `<arg_key>key</arg_key>⏎<arg_value>value</arg_value>`
    GlmTags,
    /// `key=value, …`, whose values are JSON.
    Keywords,
    /// `{key:value,…}`, texts between these marks.
    Gemma(&'static str),
}

/// A piece of the text that an answer may be.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) enum Piece {
    /// These letters, or a special token of this name.
    Text(String),
    /// A JSON value that conforms to a schema.
    Json(Json),
    /// A text as it is.
    Bare(Bare),
    Choice(Vec<Vec<Piece>>),
    Optional(Vec<Piece>),
    /// Once or more, with a text between.
    Many(Vec<Piece>, String),
}

/// A text between two others, in which `end` is not, and which matches all patterns.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::engine) struct Bare {
    pub before: String,
    pub after: String,
    pub end: &'static str,
    pub patterns: Vec<String>,
    pub may_be_empty: bool,
}

impl ToolFormat {
    /// The spelling of the models whose template or tokens have what it needs.
    pub(in crate::engine::chat) fn spelling(&self, contains: impl Fn(&str) -> bool) -> &'static Spelling {
        let fits = |spelling: &&Spelling| spelling.needs.is_empty() || contains(spelling.needs);
        let last = self.spellings.len() - 1;
        self.spellings.iter().find(fits).unwrap_or(&self.spellings[last])
    }
}

impl Spelling {
    /// What an answer may be that consists of calls: of one tool a single one, else of any tools, and several where the format does not
    /// number them.
    ///
    /// # Errors
    /// `InvalidArgument` without such a tool; `Unsupported` naming what the format cannot write exactly.
    pub(in crate::engine::chat) fn pieces(&self, tools: &Tools, name: Option<&str>) -> Result<Vec<Piece>> {
        let chosen: Vec<&Tool> = tools.0.iter().filter(|tool| name.is_none_or(|name| tool.name == name)).collect();
        if chosen.is_empty() {
            let known = tools.0.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::argument(match name {
                Some(name) => format!("tool_choice: expected auto, none, required or a tool ({known}), found {name:?}"),
                None => "tool_choice: expected tools with \"required\", found none".to_string(),
            }));
        }
        let calls = chosen.into_iter().map(|tool| self.call(tools, tool)).collect::<Result<Vec<_>>>()?;
        let calls = vec![Piece::Choice(calls)];
        let calls = match self.between {
            Some(between) if name.is_none() => Piece::Many(calls, between.to_string()),
            _ => calls.into_iter().next().unwrap_or(Piece::Choice(Vec::new())),
        };
        Ok(vec![text(self.open), calls, text(self.close)])
    }

    fn call(&self, tools: &Tools, tool: &Tool) -> Result<Vec<Piece>> {
        if tool.name.is_empty() {
            return Err(Error::argument("tool_choice: tool \"\": expected a name, found an empty one"));
        }
        let quoted = self.call.contains("\"$name\"");
        if !quoted && !is_name(&tool.name) {
            return Err(Error::unsupported(format!(
                "tool_choice: tool {:?}: expected a name of letters, digits, \"_-.:/\" in this format of calls",
                tool.name
            )));
        }
        let json_name = Json::from(tool.name.as_str()).to_string();
        // Without the quotes around it alone: the name may have its own.
        let name = if quoted { json_name[1..json_name.len() - 1].to_string() } else { tool.name.clone() };
        let (before, after) = self.call.split_once("$arguments").unwrap_or((self.call, ""));
        let within = |error: Error| error.within(format!("tool_choice: tool {:?}: parameters", tool.name));
        let arguments = self.arguments(tools, tool).map_err(within)?;
        Ok([vec![text(&before.replace("$name", &name))], arguments, vec![text(after)]].concat())
    }

    fn arguments(&self, tools: &Tools, tool: &Tool) -> Result<Vec<Piece>> {
        let object = Object::of(&tool.parameters, self.arguments == Written::Json)?;
        match self.arguments {
            // Without parameters there is one way to write them.
            Written::Json if object.is_empty() => Ok(vec![text("{}")]),
            Written::Json => Ok(vec![Piece::Json(object.whole())]),
            Written::QwenTags => object.each(|key, schema| {
                check_key(key, |letter| !"<>\"\n".contains(letter))?;
                let before = format!("<parameter={key}>\n");
                tag_value(tools, &tool.name, (key, schema), (before, "\n</parameter>\n"), "</parameter>")
            }),
            Written::GlmTags => object.each(|key, schema| {
                check_key(key, |letter| !"<>\n".contains(letter))?;
                let before = format!("<arg_key>{key}</arg_key>\n<arg_value>");
                tag_value(tools, &tool.name, (key, schema), (before, "</arg_value>\n"), "</arg_value>")
            }),
            Written::Keywords => object.list(", ", |key, schema| {
                check_key(key, |letter| letter.is_alphanumeric() || letter == '_')?;
                Ok(vec![text(&format!("{key}=")), Piece::Json(bounded(schema))])
            }),
            Written::Gemma(quote) => gemma_object(&object, quote, 0),
        }
    }
}

fn text(text: &str) -> Piece {
    Piece::Text(text.to_string())
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::unsupported(message.into())
}

/// Keywords that do not change which values conform.
const ANNOTATIONS: [&str; 12] = [
    "$comment",
    "$id",
    "$schema",
    "default",
    "deprecated",
    "description",
    "example",
    "examples",
    "readOnly",
    "strict",
    "title",
    "writeOnly",
];

/// The keywords of a schema that say something.
fn keywords(schema: &Json) -> Vec<&str> {
    let fields = schema.as_object().into_iter().flat_map(|fields| fields.keys());
    fields.map(String::as_str).filter(|key| !ANNOTATIONS.contains(key)).collect()
}

fn only(schema: &Json, known: &[&str]) -> Result<()> {
    match keywords(schema).into_iter().find(|key| !known.contains(key)) {
        Some(key) => Err(unsupported(format!("{key}: not supported in a value that is no JSON in this format of calls"))),
        None => Ok(()),
    }
}

/// A schema of objects, taken apart.
struct Object<'s> {
    schema: &'s Json,
    properties: Vec<(&'s str, Json, bool)>,
}

impl<'s> Object<'s> {
    /// `is_whole`: it is written as one JSON value, and may say what it likes.
    fn of(schema: &'s Json, is_whole: bool) -> Result<Self> {
        if schema.get("type").is_some() && !types_of(schema).contains(&"object") {
            return Err(Error::argument(format!("type: expected \"object\", found {}", schema["type"])));
        }
        if is_whole {
            return Ok(Self { schema, properties: Vec::new() });
        }
        only(schema, &["type", "properties", "required", "additionalProperties", "$defs", "definitions"])?;
        let required: Vec<&str> =
            schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
        let named = schema.get("properties").and_then(Json::as_object);
        let properties: Vec<(&str, Json, bool)> = named
            .into_iter()
            .flatten()
            .map(|(key, property)| (key.as_str(), with_definitions(property, schema), required.contains(&key.as_str())))
            .collect();
        match required.iter().find(|name| !properties.iter().any(|(key, ..)| key == *name)) {
            Some(name) => {
                Err(unsupported(format!("required: expected one of properties in this format of calls, found {name:?}")))
            }
            None => Ok(Self { schema, properties }),
        }
    }

    /// Whether no property is named and nothing else is said of them, which chat APIs take for none.
    fn is_empty(&self) -> bool {
        let says_nothing = |key: &&str| match (*key, &self.schema[*key]) {
            ("type" | "$defs" | "definitions", _) => true,
            ("properties", Json::Object(named)) => named.is_empty(),
            ("required", Json::Array(names)) => names.is_empty(),
            ("additionalProperties", value) => value == &Json::Bool(false),
            _ => false,
        };
        keywords(self.schema).iter().all(says_nothing)
    }

    /// As one schema.
    fn whole(&self) -> Json {
        let mut whole = self.schema.as_object().cloned().unwrap_or_default();
        whole.insert("type".to_string(), Json::from("object"));
        Json::Object(whole)
    }

    /// The properties one behind another, without those that need not be there or with them.
    fn each(&self, mut write: impl FnMut(&str, &Json) -> Result<Vec<Piece>>) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for (key, schema, is_required) in &self.properties {
            let written = write(key, schema).map_err(|error| error.within(format!("properties: {key}")))?;
            if *is_required { pieces.extend(written) } else { pieces.push(Piece::Optional(written)) }
        }
        Ok(pieces)
    }

    /// The same with a text between those that are there.
    fn list(&self, between: &str, mut write: impl FnMut(&str, &Json) -> Result<Vec<Piece>>) -> Result<Vec<Piece>> {
        if self.properties.len() > MAX_LISTED {
            let found = self.properties.len();
            return Err(unsupported(format!("properties: expected at most {MAX_LISTED} in this format of calls, found {found}")));
        }
        let mut written = Vec::new();
        for (key, schema, is_required) in &self.properties {
            written.push((write(key, schema).map_err(|error| error.within(format!("properties: {key}")))?, *is_required));
        }
        // What follows, from the last on: behind another one, and as the first.
        let (mut behind, mut first) = (Vec::new(), Vec::new());
        for (pieces, is_required) in written.into_iter().rev() {
            let with = [pieces.clone(), behind.clone()].concat();
            first = if is_required { with } else { vec![Piece::Choice(vec![with, first])] };
            let next = [vec![text(between)], pieces].concat();
            behind = if is_required { [next, behind].concat() } else { [vec![Piece::Optional(next)], behind].concat() };
        }
        Ok(first)
    }
}

/// What stands behind each of them is written once more for each that may be left out.
const MAX_LISTED: usize = 48;

/// A part of a schema, with what it may refer to.
fn with_definitions(part: &Json, root: &Json) -> Json {
    let mut part = part.clone();
    if let (Json::Object(fields), true) = (&mut part, part_refers(root)) {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(key) {
                fields.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    part
}

fn part_refers(root: &Json) -> bool {
    ["$defs", "definitions"].iter().any(|key| root.get(key).is_some())
}

/// The same with bounds for numbers that have none: what reads bare values holds doubles.
fn bounded(schema: &Json) -> Json {
    let mut schema = schema.clone();
    bound(&mut schema);
    schema
}

fn bound(schema: &mut Json) {
    match schema {
        Json::Array(items) => items.iter_mut().for_each(bound),
        Json::Object(fields) => {
            let is_number = |kind: &Json| kind == "number" || kind == "integer";
            let numbers = match fields.get("type") {
                Some(Json::Array(kinds)) => kinds.iter().any(is_number),
                Some(kind) => is_number(kind),
                None => false,
            };
            if numbers && !fields.contains_key("enum") && !fields.contains_key("const") {
                for (key, exclusive, limit) in [("minimum", "exclusiveMinimum", -MOST), ("maximum", "exclusiveMaximum", MOST)] {
                    if !fields.contains_key(key) && !fields.contains_key(exclusive) {
                        fields.insert(key.to_string(), Json::from(limit));
                    }
                }
            }
            fields.values_mut().for_each(bound);
        }
        _ => {}
    }
}

/// Whole numbers up to it are all doubles.
const MOST: i64 = 1 << 53;

fn check_key(key: &str, is_letter: impl Fn(char) -> bool) -> Result<()> {
    if !key.is_empty() && key.trim() == key && key.chars().all(is_letter) {
        return Ok(());
    }
    Err(unsupported(format!("{key:?}: expected a name that this format of calls can write")))
}

/// A value between tags, which is read as [`Tools::value`] does.
fn tag_value(
    tools: &Tools,
    tool: &str,
    (key, schema): (&str, &Json),
    (before, after): (String, &str),
    end: &'static str,
) -> Result<Vec<Piece>> {
    let around = |piece: Piece| vec![text(&before), piece, text(after)];
    let bare = |patterns: Patterns| vec![patterns.between(&before, after, end)];
    let known = keywords(schema);
    let known: Vec<&str> = known.into_iter().filter(|key| !["$defs", "definitions"].contains(key)).collect();
    if known.is_empty() && schema != &Json::Bool(false) {
        return Ok(bare(Patterns::default()));
    }
    if let Some(values) = members(schema) {
        only(schema, &["type", "enum", "const", "$defs", "definitions"])?;
        let written = |value: &Json| {
            let written = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let is_same = !written.contains(end) && tools.value(tool, key, &written) == *value && is_of_type(schema, value);
            is_same.then(|| vec![text(&format!("{before}{written}{after}"))])
        };
        let choices: Vec<Vec<Piece>> = values.iter().filter_map(written).collect();
        if choices.is_empty() {
            return Err(unsupported("enum: expected a value that this format of calls can write"));
        }
        return Ok(vec![Piece::Choice(choices)]);
    }
    let mut types = Vec::new();
    super::add_types(schema, &mut types);
    let is_union = ["anyOf", "oneOf"].iter().any(|key| schema.get(key).is_some());
    if types.is_empty() && !is_union || !types.is_empty() && !is_union && !types.contains(&"string") {
        return Ok(around(Piece::Json(bounded(schema))));
    }
    let cases = || ["anyOf", "oneOf"].into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    if is_union {
        only(schema, &["anyOf", "oneOf", "$defs", "definitions"])?;
        let kinds: Vec<Vec<&str>> = cases().map(types_of).collect();
        if kinds.iter().all(|kinds| !kinds.is_empty() && !kinds.contains(&"string")) {
            return Ok(around(Piece::Json(bounded(schema))));
        }
        // Text is what everything could be, if nothing more is asked of it.
        if cases().all(|case| keywords(case) == ["type"]) {
            return Ok(bare(Patterns::default()));
        }
        return Err(unsupported("anyOf: expected no texts with other values in this format of calls"));
    }
    if types.len() > 1 {
        only(schema, &["type", "$defs", "definitions"])?;
        return Ok(bare(Patterns::default()));
    }
    only(schema, &["type", "minLength", "maxLength", "pattern", "$defs", "definitions"])?;
    Ok(bare(Patterns::of(schema)?))
}

/// The types that a schema names itself.
fn types_of(schema: &Json) -> Vec<&str> {
    match schema.get("type") {
        Some(Json::String(name)) => vec![name],
        Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    }
}

fn members(schema: &Json) -> Option<Vec<Json>> {
    match (schema.get("const"), schema.get("enum").and_then(Json::as_array)) {
        (Some(value), None) => Some(vec![value.clone()]),
        (None, Some(values)) => Some(values.clone()),
        (Some(value), Some(values)) => Some(values.iter().filter(|other| *other == value).cloned().collect()),
        (None, None) => None,
    }
}

fn is_of_type(schema: &Json, value: &Json) -> bool {
    let types = types_of(schema);
    let is = |kind: &str| match kind {
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    types.is_empty() || types.into_iter().any(is)
}

/// What a text must match.
#[derive(Default)]
struct Patterns(Vec<String>, bool);

impl Patterns {
    fn between(self, before: &str, after: &str, end: &'static str) -> Piece {
        let Self(patterns, is_never_empty) = self;
        Piece::Bare(Bare { before: before.to_string(), after: after.to_string(), end, patterns, may_be_empty: !is_never_empty })
    }

    /// As a schema of texts says it.
    fn of(schema: &Json) -> Result<Self> {
        let count = |key: &str| match schema.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|count| count.fract() == 0.0 && (0.0..=MOST_LETTERS).contains(count)) {
                Some(count) => Ok(Some(count as u64)),
                None => Err(unsupported(format!(
                    "{key}: expected a number up to {MOST_LETTERS} in this format of calls, found {value}"
                ))),
            },
        };
        let mut patterns = Vec::new();
        let (least, most) = (count("minLength")?, count("maxLength")?);
        // A pattern that the empty text matches does without it.
        let is_never_empty = least.is_some_and(|least| least > 0) || schema.get("pattern").is_some();
        if least.is_some() || most.is_some() {
            let most = most.map_or(String::new(), |most| most.to_string());
            patterns.push(format!("(?s:.){{{},{most}}}", least.unwrap_or(0)));
        }
        if let Some(pattern) = schema.get("pattern").and_then(Json::as_str) {
            // A pattern matches anywhere; anchors are not what grammars know.
            let (start, rest) = pattern.strip_prefix('^').map_or(("(?s:.*)", pattern), |rest| ("", rest));
            let is_end = rest.ends_with('$') && rest.bytes().rev().skip(1).take_while(|byte| *byte == b'\\').count() % 2 == 0;
            let (rest, end) = if is_end { (&rest[..rest.len() - 1], "") } else { (rest, "(?s:.*)") };
            if rest.contains('|') && (start.is_empty() || end.is_empty()) {
                return Err(unsupported(format!(
                    "pattern: expected no | beside ^ or $ in this format of calls, found {pattern:?}"
                )));
            }
            let inner =
                crate::engine::schema::translated(rest).map_err(|reason| Error::argument(format!("pattern: {reason}")))?;
            patterns.push(format!("{start}(?:{inner}){end}"));
        }
        Ok(Self(patterns, is_never_empty))
    }
}

/// Each letter is a state of the grammar.
const MOST_LETTERS: f64 = 10_000.0;

fn gemma_object(object: &Object<'_>, quote: &'static str, depth: usize) -> Result<Vec<Piece>> {
    let fields = object.list(",", |key, schema| {
        check_key(key, |letter| letter.is_alphanumeric() || "_-".contains(letter))?;
        Ok([vec![text(&format!("{key}:"))], gemma_value(schema, quote, depth + 1)?].concat())
    })?;
    Ok([vec![text("{")], fields, vec![text("}")]].concat())
}

/// A value as Gemma writes it: JSON but for its texts, and without quotes around keys.
fn gemma_value(schema: &Json, quote: &'static str, depth: usize) -> Result<Vec<Piece>> {
    const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
    if depth > MOST_LEVELS {
        return Err(unsupported(format!("expected at most {MOST_LEVELS} levels in this format of calls")));
    }
    let quoted = |patterns: Patterns| vec![patterns.between(quote, quote, quote)];
    if let Some(name) = schema.get("$ref").and_then(Json::as_str) {
        only(schema, &["$ref", "$defs", "definitions"])?;
        let path =
            name.strip_prefix('#').ok_or_else(|| unsupported(format!("$ref: expected one within the schema, found {name:?}")))?;
        let named = schema.pointer(path).ok_or_else(|| Error::argument(format!("$ref: nothing is called {name:?}")))?;
        return gemma_value(&with_definitions(named, schema), quote, depth + 1);
    }
    if let Some(values) = members(schema) {
        only(schema, &["type", "enum", "const", "$defs", "definitions"])?;
        let written = |value: &Json| match value {
            Json::String(string) if !string.contains(quote) => Some(vec![text(quote), text(string), text(quote)]),
            Json::Number(_) | Json::Bool(_) | Json::Null if is_of_type(schema, value) => Some(vec![text(&value.to_string())]),
            _ => None,
        };
        let choices: Vec<Vec<Piece>> = values.iter().filter(|value| is_of_type(schema, value)).filter_map(written).collect();
        if choices.is_empty() {
            return Err(unsupported("enum: expected a value that this format of calls can write"));
        }
        return Ok(vec![Piece::Choice(choices)]);
    }
    if let Some(cases) = schema.get("anyOf").and_then(Json::as_array) {
        only(schema, &["anyOf", "$defs", "definitions"])?;
        let cases = cases.iter().map(|case| gemma_value(&with_definitions(case, schema), quote, depth + 1));
        return Ok(vec![Piece::Choice(cases.collect::<Result<_>>()?)]);
    }
    let types = types_of(schema);
    if types.len() > 1 {
        let one = |kind: &&str| {
            let mut schema = schema.clone();
            schema["type"] = Json::from(*kind);
            gemma_value(&schema, quote, depth + 1)
        };
        return Ok(vec![Piece::Choice(types.iter().map(one).collect::<Result<_>>()?)]);
    }
    match types.first().copied() {
        Some("string") => {
            only(schema, &["type", "minLength", "maxLength", "pattern", "$defs", "definitions"])?;
            Ok(quoted(Patterns::of(schema)?))
        }
        Some("integer" | "number" | "boolean" | "null") => Ok(vec![Piece::Json(bounded(schema))]),
        Some("array") => {
            only(schema, &["type", "items", "minItems", "maxItems", "$defs", "definitions"])?;
            gemma_array(schema, quote, depth)
        }
        Some("object") => gemma_object(&Object::of(schema, false)?, quote, depth),
        Some(other) => Err(Error::argument(format!("type: {other:?} is not one of JSON Schema"))),
        // Anything: a text is.
        None => {
            only(schema, &DEFINITIONS)?;
            Ok(quoted(Patterns::default()))
        }
    }
}

fn gemma_array(schema: &Json, quote: &'static str, depth: usize) -> Result<Vec<Piece>> {
    let anything = Json::Object(Map::new());
    let items = with_definitions(schema.get("items").unwrap_or(&anything), schema);
    let item = gemma_value(&items, quote, depth + 1)?;
    let count = |key: &str| match schema.get(key) {
        None => Ok(None),
        Some(value) => match value.as_u64().filter(|count| *count <= MOST_ITEMS) {
            Some(count) => Ok(Some(count)),
            None => {
                Err(unsupported(format!("{key}: expected a number up to {MOST_ITEMS} in this format of calls, found {value}")))
            }
        },
    };
    let (least, most) = (count("minItems")?.unwrap_or(0), count("maxItems")?);
    let next = [vec![text(",")], item.clone()].concat();
    // From the last one on: what may follow, and what must.
    let mut rest = match most {
        None => vec![Piece::Optional(vec![text(","), Piece::Many(item.clone(), ",".to_string())])],
        Some(most) => (least.max(1)..most).fold(Vec::new(), |rest, _| vec![Piece::Optional([next.clone(), rest].concat())]),
    };
    rest = (1..least).fold(rest, |rest, _| [next.clone(), rest].concat());
    let some = [item, rest].concat();
    let items = match (least, most) {
        (_, Some(0)) => Vec::new(),
        (0, _) => vec![Piece::Optional(some)],
        _ => some,
    };
    Ok([vec![text("[")], items, vec![text("]")]].concat())
}

const MOST_LEVELS: usize = 16;
const MOST_ITEMS: u64 = 64;
