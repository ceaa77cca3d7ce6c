//! A JSON schema as JSON Schema means it, made into what the grammar's compiler takes.
//!
//! The compiler (`llguidance`) is strict where JSON Schema is not, and knows a little less: keywords that change nothing are errors
//! to it, `$ref` is no URI, numbers are doubles, patterns are Rust's, and some numbers keep it busy for minutes. All of this is
//! settled here, on the schema's own text.
//!
//! ```ignore
//! adapt(r##"{"$ref": "#/$defs/a%20b", "$defs": {"a b": {"type": "string", "format": "color", "uniqueItems": true}}}"##)
//!     // {"$ref": "#/$defs/reference 0", "$defs": {"a b": …, "reference 0": {"type": "string"}}}
//! ```

mod formats;
mod numbers;
mod pattern;

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What a schema becomes.
#[derive(Debug, PartialEq)]
pub(super) enum Adapted {
    Schema(Value),
    /// A regular expression of whole answers, for integers that a double cannot hold.
    Pattern(String),
}

/// # Errors
/// `InvalidArgument` naming the keyword.
pub(super) fn adapt(text: &str) -> Result<Adapted> {
    let text = numbers::mark_large(text)?;
    let mut root: Value = serde_json::from_str(&text).map_err(|e| invalid(format!("not JSON: {e}")))?;
    if let Some(pattern) = numbers::whole_pattern(&root)? {
        return Ok(Adapted::Pattern(pattern));
    }
    resolve_references(&mut root)?;
    each_schema(&mut root, &mut adapt_one)?;
    check_conjunctions(&root)?;
    Ok(Adapted::Schema(root))
}

/// Takes out what tells readers of a schema something, and changes nothing.
pub(super) fn remove_annotations(schema: &mut Value) -> Result<()> {
    each_schema(schema, &mut |fields| {
        remove(fields, &["$comment", "default", "description", "example", "examples", "title"]);
        Ok(())
    })
}

/// A pattern of JSON Schema as grammars take it, or why it cannot be one.
pub(super) fn translated(pattern: &str) -> std::result::Result<String, String> {
    pattern::translate(pattern)
}

fn invalid(message: impl std::fmt::Display) -> Error {
    Error::argument(message.to_string())
}

/// Keywords whose value is a schema, a list of schemas, or an object of schemas.
const ONE: [&str; 12] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
const LIST: [&str; 5] = ["allOf", "anyOf", "items", "oneOf", "prefixItems"];
const NAMED: [&str; 5] = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// Calls for each schema in a schema, the inner ones first. JSON texts nest 128 deep at most.
fn each_schema(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>) -> Result<()>) -> Result<()> {
    let Value::Object(fields) = schema else { return Ok(()) };
    for (key, value) in fields.iter_mut() {
        match value {
            Value::Object(_) if ONE.contains(&key.as_str()) => each_schema(value, change)?,
            Value::Object(named) if NAMED.contains(&key.as_str()) => {
                named.values_mut().try_for_each(|schema| each_schema(schema, change))?;
            }
            Value::Array(items) if LIST.contains(&key.as_str()) => {
                items.iter_mut().try_for_each(|schema| each_schema(schema, change))?;
            }
            _ => {}
        }
    }
    change(fields)
}

fn adapt_one(fields: &mut Map<String, Value>) -> Result<()> {
    // Annotations that the compiler does not know.
    remove(fields, &["deprecated", "contentSchema", "$vocabulary", "$dynamicAnchor", "$recursiveAnchor", "$anchor"]);
    whole_counts(fields);
    numbers::adapt(fields)?;
    drop_without_effect(fields);
    name_each_once(fields)?;
    formats::adapt(fields);
    if let Some(Value::String(pattern)) = fields.get_mut("pattern") {
        *pattern = pattern::translate(pattern).map_err(|reason| invalid(format!("pattern: {reason}")))?;
    }
    if let Some(Value::Object(patterns)) = fields.get_mut("patternProperties") {
        let translated = std::mem::take(patterns).into_iter().map(|(pattern, schema)| {
            let pattern = pattern::translate(&pattern).map_err(|reason| invalid(format!("patternProperties: {reason}")))?;
            Ok((pattern, schema))
        });
        *patterns = translated.collect::<Result<_>>()?;
    }
    Ok(())
}

const COUNTS: [&str; 8] =
    ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"];

/// A count may be written 2.0.
fn whole_counts(fields: &mut Map<String, Value>) {
    for key in COUNTS {
        let Some(value) = fields.get_mut(key) else { continue };
        if let Some(count) = value.as_f64().filter(|count| value.is_f64() && count.fract() == 0.0 && (0.0..9e15).contains(count))
        {
            *value = Value::from(count as u64);
        }
    }
}

/// Whether a value of this type may conform, as far as `type`, `enum` and `const` say.
fn may_be(fields: &Map<String, Value>, kind: &str) -> bool {
    let is_kind = |value: &Value| match value {
        Value::Array(_) => kind == "array",
        Value::Object(_) => kind == "object",
        _ => false,
    };
    let by_type = match fields.get("type") {
        Some(Value::String(name)) => name == kind,
        Some(Value::Array(names)) => names.iter().any(|name| name.as_str() == Some(kind)),
        _ => true,
    };
    let by_enum = fields.get("enum").and_then(Value::as_array).is_none_or(|values| values.iter().any(is_kind));
    by_type && by_enum && fields.get("const").is_none_or(is_kind)
}

fn remove(fields: &mut Map<String, Value>, keys: &[&str]) {
    for key in keys {
        fields.shift_remove(*key);
    }
}

/// Takes out what changes nothing where it stands.
fn drop_without_effect(fields: &mut Map<String, Value>) {
    let any = |value: Option<&Value>| {
        matches!(value, Some(Value::Bool(true))) || value.and_then(Value::as_object).is_some_and(Map::is_empty)
    };
    let count = |fields: &Map<String, Value>, key: &str| fields.get(key).and_then(Value::as_u64);
    if !fields.contains_key("if") {
        fields.shift_remove("then");
        fields.shift_remove("else");
    }
    if (!fields.contains_key("then") || any(fields.get("then"))) && (!fields.contains_key("else") || any(fields.get("else"))) {
        remove(fields, &["if", "then", "else"]);
    }
    if fields.get("not") == Some(&Value::Bool(false)) {
        fields.shift_remove("not");
    }
    if !may_be(fields, "array") {
        remove(fields, &["uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"]);
    }
    let longest = count(fields, "maxItems");
    if fields.get("uniqueItems") == Some(&Value::Bool(false)) || longest.is_some_and(|longest| longest <= 1) {
        fields.shift_remove("uniqueItems");
    }
    if !fields.contains_key("contains") {
        fields.shift_remove("minContains");
        fields.shift_remove("maxContains");
    } else if any(fields.get("contains")) {
        // Every item is one that is asked for.
        let least = count(fields, "minContains").unwrap_or(1).max(count(fields, "minItems").unwrap_or(0));
        if least > 0 {
            fields.insert("minItems".to_owned(), least.into());
        }
        if let Some(most) = count(fields, "maxContains") {
            fields.insert("maxItems".to_owned(), longest.map_or(most, |longest| longest.min(most)).into());
        }
        remove(fields, &["contains", "minContains", "maxContains"]);
    } else if count(fields, "minContains") == Some(0) && !fields.contains_key("maxContains") {
        remove(fields, &["contains", "minContains"]);
    }
    let has = |fields: &Map<String, Value>, keys: &[&str]| keys.iter().any(|key| fields.contains_key(*key));
    // `items` and `additionalProperties` leave nothing unevaluated.
    let applies = ["$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "contains"];
    for (key, own) in [("unevaluatedItems", "items"), ("unevaluatedProperties", "additionalProperties")] {
        if any(fields.get(key)) || fields.get(own).is_some_and(|own| !own.is_array()) {
            fields.shift_remove(key);
        } else if fields.contains_key(key)
            && !has(fields, &applies)
            && let Some(schema) = fields.shift_remove(key)
        {
            fields.insert(own.to_owned(), schema);
        }
    }
    if !may_be(fields, "object") {
        remove(fields, &["dependentRequired", "dependentSchemas", "dependencies", "propertyNames", "unevaluatedProperties"]);
    }
    if any(fields.get("propertyNames")) {
        fields.shift_remove("propertyNames");
    }
    for key in ["dependentSchemas", "dependencies"] {
        if fields.get(key).and_then(Value::as_object).is_some_and(Map::is_empty) {
            fields.shift_remove(key);
        }
    }
    require_dependents(fields);
}

/// Names that are free may come twice, and then are one: an object that wants more of them than one has those that are listed alone.
fn name_each_once(fields: &mut Map<String, Value>) -> Result<()> {
    let Some(least) = fields.get("minProperties").and_then(Value::as_u64) else { return Ok(()) };
    let names = |key: &str| match fields.get(key) {
        Some(Value::Object(listed)) => listed.len(),
        Some(Value::Array(listed)) => listed.iter().collect::<HashSet<_>>().len(),
        _ => 0,
    } as u64;
    let patterns = names("patternProperties");
    let is_closed = patterns == 0 && fields.get("additionalProperties") == Some(&Value::Bool(false));
    let is_listed = fields.contains_key("enum") || fields.contains_key("const");
    if is_closed || is_listed || least <= names("required") + 1 || !may_be(fields, "object") {
        return Ok(());
    }
    if patterns > 0 || names("properties") < least {
        let message = format!(
            "minProperties: expected at most {}, the required ones and one more, where names are free and may come twice, found {least}",
            names("required") + 1
        );
        return Err(invalid(message));
    }
    fields.insert("additionalProperties".to_owned(), Value::Bool(false));
    Ok(())
}

/// `dependentRequired` whose condition always or never holds is `required` or nothing.
fn require_dependents(fields: &mut Map<String, Value>) {
    let Some(Value::Object(dependents)) = fields.get("dependentRequired").cloned() else { return };
    let texts = |value: Option<&Value>| -> Vec<Value> { value.and_then(Value::as_array).cloned().unwrap_or_default() };
    let mut required = texts(fields.get("required"));
    let mut left = Map::new();
    for (name, needs) in dependents {
        let needs: Vec<Value> = texts(Some(&needs)).into_iter().filter(|need| need.as_str() != Some(&name)).collect();
        let missing: Vec<Value> = needs.into_iter().filter(|need| !required.contains(need)).collect();
        if required.iter().any(|known| known.as_str() == Some(&name)) {
            required.extend(missing);
        } else if !missing.is_empty() {
            left.insert(name, Value::Array(missing));
        }
    }
    if left.is_empty() {
        fields.shift_remove("dependentRequired");
        if !required.is_empty() {
            fields.insert("required".to_owned(), Value::Array(required));
        }
    }
}

/// Makes each `$ref` a path of plain names: what is named with escapes, by an anchor or through the schema's own `$id` is copied to
/// a name of ours.
fn resolve_references(root: &mut Value) -> Result<()> {
    let own_id = root.get("$id").or(root.get("id")).and_then(Value::as_str).map(|id| id.trim_end_matches('#').to_owned());
    let mut names = HashSet::new();
    each_schema(root, &mut |fields| {
        names.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
        Ok(())
    })?;
    let mut renamed: HashMap<String, String> = HashMap::new();
    let mut copies: Vec<(String, Value)> = Vec::new();
    let mut copied = 0;
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    let anchors = Anchors::of(root);
    for name in names {
        let Some(fragment) = own_fragment(&name, own_id.as_deref()) else { continue };
        let Some((pointer, target)) = target(root, &anchors, fragment) else { continue };
        let plain = pointer.iter().all(|part| !part.is_empty() && !part.contains('/'));
        let path = format!("#/{}", pointer.join("/"));
        if plain {
            if path != name && name != "#" {
                renamed.insert(name, if pointer.is_empty() { "#".to_owned() } else { path });
            }
            continue;
        }
        copied += size(target);
        if copied > MAX_COPIED {
            return Err(invalid(format!("$ref: expected at most {MAX_COPIED} values behind names with escapes, found more")));
        }
        let copy = format!("reference {}", copies.len());
        copies.push((copy.clone(), target.clone()));
        renamed.insert(name, format!("#/$defs/{copy}"));
    }
    if renamed.is_empty() {
        return Ok(());
    }
    if let Some(fields) = root.as_object_mut().filter(|_| !copies.is_empty()) {
        let defs = fields.entry("$defs").or_insert_with(|| Value::Object(Map::new()));
        let defs = defs.as_object_mut().ok_or_else(|| invalid("$defs: expected an object"))?;
        for (name, schema) in copies {
            if defs.insert(name.clone(), schema).is_some() {
                return Err(invalid(format!("$defs: {name:?}: the name is taken by a reference with escapes")));
            }
        }
    }
    each_schema(root, &mut |fields| {
        if let Some(Value::String(name)) = fields.get_mut("$ref")
            && let Some(path) = renamed.get(name.as_str())
        {
            name.clone_from(path);
        }
        Ok(())
    })
}

/// What stands behind the `#` of a name in this schema; `None` for one of another.
fn own_fragment<'n>(name: &'n str, own_id: Option<&str>) -> Option<&'n str> {
    let (document, fragment) = name.split_once('#').unwrap_or((name, ""));
    let is_own = document.is_empty()
        || own_id.is_some_and(|id| id == document || id.rsplit('/').next().is_some_and(|last| last == document));
    is_own.then_some(fragment)
}

/// What a fragment names: a JSON pointer (RFC 6901), percent-encoded, or an anchor; and the path to it.
fn target<'s>(root: &'s Value, anchors: &Anchors<'s>, fragment: &str) -> Option<(Vec<String>, &'s Value)> {
    let fragment = percent_decoded(fragment)?;
    if fragment.is_empty() || fragment == "/" {
        return Some((Vec::new(), root));
    }
    let Some(pointer) = fragment.strip_prefix('/') else {
        return anchors.0.get(fragment.as_str()).cloned();
    };
    let (mut value, mut path) = (root, Vec::new());
    for part in pointer.split('/') {
        let part = part.replace("~1", "/").replace("~0", "~");
        value = match value {
            Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
            value => value.get(&part)?,
        };
        path.push(part);
    }
    Some((path, value))
}

/// What has a name of its own, and the path to it; of several the first.
struct Anchors<'s>(HashMap<&'s str, (Vec<String>, &'s Value)>);

impl<'s> Anchors<'s> {
    fn of(root: &'s Value) -> Self {
        let mut anchors = Self(HashMap::new());
        anchors.add(root, &mut Vec::new());
        anchors
    }

    fn add(&mut self, value: &'s Value, path: &mut Vec<String>) {
        let named = |key: &str| value.get(key).and_then(Value::as_str);
        for anchor in named("$anchor").into_iter().chain(named("$id").and_then(|id| id.strip_prefix('#'))) {
            self.0.entry(anchor).or_insert_with(|| (path.clone(), value));
        }
        let mut child = |key: String, value| {
            path.push(key);
            self.add(value, path);
            path.pop();
        };
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| child(key.clone(), value)),
            Value::Array(items) => items.iter().enumerate().for_each(|(at, value)| child(at.to_string(), value)),
            _ => {}
        }
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        if let (b'%', Some(high), Some(low)) = (byte, digit(0), digit(1)) {
            bytes.push((16 * high + low) as u8);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.values().map(size).sum(),
        _ => 0usize,
    }
}

/// Refuses what must hold of one value all together and would keep the compiler busy: the automaton of several factors has as many
/// states as their product, and that of several patterns the product of theirs.
fn check_conjunctions(root: &Value) -> Result<()> {
    let mut references = References { root, anchors: Anchors::of(root), known: HashMap::new() };
    let (mut open, mut visited) = (vec![root], 0);
    while let Some(schema) = open.pop() {
        let Value::Object(fields) = schema else {
            open.extend(schema.as_array().into_iter().flatten());
            continue;
        };
        open.extend(fields.values());
        let mut both = Conjunction { factor: 1, patterns: 0, visited: 0 };
        both.add(&mut references, schema, &mut Vec::new())?;
        visited += both.visited;
        if visited > MAX_VISITED_IN_ALL {
            return Err(invalid("expected a schema with fewer values and references, found one that takes too long to check"));
        }
        if both.patterns > MAX_PATTERNS {
            return Err(invalid(format!("expected at most {MAX_PATTERNS} patterns for one text, found {}", both.patterns)));
        }
    }
    Ok(())
}

/// What the references of a schema name, each looked up once.
struct References<'s> {
    root: &'s Value,
    anchors: Anchors<'s>,
    /// By where the reference's text lies.
    known: HashMap<*const u8, Option<&'s Value>>,
}

impl<'s> References<'s> {
    fn target(&mut self, name: &'s str) -> Option<&'s Value> {
        let (root, anchors) = (self.root, &self.anchors);
        let find = || Some(target(root, anchors, own_fragment(name, None)?)?.1);
        *self.known.entry(name.as_ptr()).or_insert_with(find)
    }
}

struct Conjunction {
    factor: u128,
    patterns: usize,
    visited: usize,
}

impl Conjunction {
    fn add<'s>(&mut self, references: &mut References<'s>, schema: &'s Value, names: &mut Vec<&'s str>) -> Result<()> {
        let Value::Object(fields) = schema else { return Ok(()) };
        self.visited += 1;
        if self.visited > MAX_VISITED {
            return Err(invalid(format!("expected at most {MAX_VISITED} schemas for one value, found more")));
        }
        if let Some(factor) = fields.get("multipleOf").and_then(Value::as_f64) {
            self.multiply(factor)?;
        }
        self.patterns += usize::from(fields.contains_key("pattern")) + usize::from(fields.contains_key("format"));
        for key in ["allOf", "anyOf", "oneOf"] {
            let cases = fields.get(key).and_then(Value::as_array).into_iter().flatten();
            let before = self.patterns;
            let mut most = before;
            for case in cases {
                if key != "allOf" {
                    // One of them holds at a time.
                    self.patterns = before;
                }
                self.add(references, case, names)?;
                most = most.max(self.patterns);
            }
            self.patterns = most;
        }
        if let Some(name) = fields.get("$ref").and_then(Value::as_str)
            && !names.contains(&name)
            && let Some(named) = references.target(name)
        {
            names.push(name);
            self.add(references, named, names)?;
            names.pop();
        }
        Ok(())
    }

    /// The least common multiple, without the twos, fives and tens of a decimal point that is moved.
    fn multiply(&mut self, factor: f64) -> Result<()> {
        let expected =
            || invalid(format!("multipleOf: expected factors with a common multiple of up to {MAX_FACTOR}, found more"));
        let text = format!("{}", factor.abs());
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        if digits.len() > 15 {
            return Err(expected());
        }
        let factor: u128 = digits.parse().unwrap_or(1).max(1);
        let gcd = |mut a: u128, mut b: u128| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        self.factor = self.factor / gcd(self.factor, factor) * factor;
        if self.factor > MAX_FACTOR { Err(expected()) } else { Ok(()) }
    }
}

/// States of an automaton; a few thousand take a tenth of a second.
const MAX_FACTOR: u128 = 10_000;
/// Patterns that one text must match all.
const MAX_PATTERNS: usize = 6;
/// Schemas that apply to one value.
const MAX_VISITED: usize = 2048;
const MAX_VISITED_IN_ALL: usize = 2_000_000;
/// Values that are copied as their names have escapes.
const MAX_COPIED: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn adapted(schema: Value) -> Value {
        match adapt(&schema.to_string()).unwrap() {
            Adapted::Schema(schema) => schema,
            Adapted::Pattern(pattern) => panic!("{pattern}"),
        }
    }

    #[test]
    fn what_changes_nothing_is_dropped() {
        let hit = json!({"enum": ["hit"]});
        for extra in [
            json!({"if": {"const": 1}}),
            json!({"then": {"const": 1}}),
            json!({"else": false}),
            json!({"if": false, "then": true, "else": {}}),
            json!({"not": false}),
            json!({"uniqueItems": true}),
            json!({"contains": {"const": 1}}),
            json!({"dependentRequired": {"a": ["b"]}}),
            json!({"propertyNames": false}),
            json!({"unevaluatedProperties": true}),
            json!({"deprecated": true}),
            json!({"format": "color"}),
        ] {
            let mut schema = hit.clone();
            schema.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            assert_eq!(adapted(schema), hit, "{extra}");
        }
        for (schema, expected) in [
            (json!({"type": "array", "uniqueItems": false}), json!({"type": "array"})),
            (json!({"type": "array", "uniqueItems": true, "maxItems": 1.0}), json!({"type": "array", "maxItems": 1})),
            (json!({"type": "array", "contains": true, "minContains": 0}), json!({"type": "array"})),
            (json!({"type": "array", "contains": {"const": 1}, "minContains": 0.0}), json!({"type": "array"})),
            (json!({"type": "array", "contains": {}, "maxContains": 2}), json!({"type": "array", "minItems": 1, "maxItems": 2})),
            (json!({"type": "object", "unevaluatedProperties": false}), json!({"type": "object", "additionalProperties": false})),
            (json!({"required": ["a"], "dependentRequired": {"a": ["a", "b"], "c": ["c"]}}), json!({"required": ["a", "b"]})),
            (json!({"minLength": 2.0}), json!({"minLength": 2})),
            // What does change something stays.
            (json!({"type": "array", "uniqueItems": true}), json!({"type": "array", "uniqueItems": true})),
            (json!({"if": {"const": 1}, "then": {"type": "null"}}), json!({"if": {"const": 1}, "then": {"type": "null"}})),
            (json!({"const": {"if": 1, "not": false}}), json!({"const": {"if": 1, "not": false}})),
            (json!({"properties": {"if": {"not": false}}}), json!({"properties": {"if": {}}})),
        ] {
            assert_eq!(adapted(schema.clone()), expected, "{schema}");
        }
    }

    #[test]
    fn free_names_that_may_come_twice_do_not_make_up_for_others() {
        let object = |more: Value| {
            let mut schema = json!({"type": "object", "minProperties": 2});
            schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            schema
        };
        let two = json!({"a": true, "b": true});
        assert_eq!(adapted(object(json!({"properties": two})))["additionalProperties"], json!(false));
        // As they are: one of the free names is enough, no name is free, no object is made.
        for more in [
            json!({"properties": two, "required": ["a"]}),
            json!({"minProperties": 1}),
            json!({"properties": two, "additionalProperties": false}),
            json!({"enum": [{"c": 1, "d": 2}]}),
            json!({"type": "string"}),
        ] {
            assert_eq!(adapted(object(more.clone())), object(more));
        }
        for (more, most) in [
            (json!({}), 1),
            (json!({"additionalProperties": {"type": "null"}}), 1),
            (json!({"required": ["a", "a"], "minProperties": 3}), 2),
            (json!({"properties": two, "patternProperties": {"^c$": true}, "additionalProperties": false}), 1),
        ] {
            let error = adapt(&object(more.clone()).to_string()).err().unwrap();
            let want = format!("minProperties: expected at most {most}, ");
            assert!(error.message().contains(&want), "{more}: {error}");
        }
    }

    #[test]
    fn references_are_decoded() {
        for (name, reference) in [
            ("a b", "#/$defs/a%20b"),
            ("Record<string>", "#/$defs/Record%3Cstring%3E"),
            ("a~b", "#/$defs/a~0b"),
            ("100%", "#/$defs/100%25"),
            ("é", "#/$defs/%C3%A9"),
            ("x", "https://a.example/s.json#/$defs/x"),
            ("x", "s.json#/$defs/x"),
        ] {
            let schema = json!({"$id": "https://a.example/s.json", "$ref": reference, "$defs": {name: {"const": 1}}});
            assert_eq!(adapted(schema)["$ref"], format!("#/$defs/{name}"), "{reference}");
        }
        let schema = adapted(json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"items": {"$ref": "#/$defs/a~1b"}}}}));
        assert_eq!(schema["$ref"], "#/$defs/reference 0");
        assert_eq!(schema["$defs"]["reference 0"]["items"]["$ref"], "#/$defs/reference 0");
        let schema = adapted(json!({"$ref": "#here", "$defs": {"x": {"$anchor": "here", "const": 1}}}));
        assert_eq!(schema["$ref"], "#/$defs/x");
        assert_eq!(adapted(json!({"$ref": "#", "type": "null"}))["$ref"], "#");
    }

    #[test]
    fn what_would_take_minutes_is_refused() {
        let pattern = |letter: u8| json!({"pattern": format!(".*{}.*", char::from(letter))});
        let many: Vec<Value> = (b'a'..=b't').map(pattern).collect();
        for (schema, message) in [
            (json!({"multipleOf": 999_983}), "multipleOf: "),
            (json!({"multipleOf": 67_108_864}), "multipleOf: "),
            (json!({"allOf": [{"multipleOf": 997}, {"multipleOf": 1009}]}), "multipleOf: "),
            (json!({"items": {"multipleOf": 997, "$ref": "#/$defs/a"}, "$defs": {"a": {"multipleOf": 1009}}}), "multipleOf: "),
            (json!({"multipleOf": 0.999983}), "multipleOf: "),
            (json!({"allOf": many}), "at most 6 patterns"),
        ] {
            let error = adapt(&schema.to_string()).unwrap_err();
            assert!(error.message().contains(message), "{schema}: {error}");
        }
        for schema in [
            json!({"anyOf": many}),
            json!({"multipleOf": 0.01}),
            json!({"properties": {"a": {"multipleOf": 997}, "b": {"multipleOf": 1009}}}),
        ] {
            adapted(schema);
        }
        // A name that nothing has is looked for once, not at each of two million visits.
        let properties: Map<String, Value> = (0..900).map(|i| (format!("p{i}"), json!({"$ref": "#/$defs/d"}))).collect();
        let nowhere = vec![json!({"$ref": "#z"}); 2000];
        adapted(json!({"properties": properties, "$defs": {"d": {"allOf": nowhere}}}));
    }
}
