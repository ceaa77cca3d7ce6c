//! Jinja2's filters and tests, what each costs, and those where minijinja's differ or take a size from the template unseen.
//!
//! ```text
//! {{ 'x'|int(7) }}  →  7
//! {{ undefined|length }}  →  0
//! ```

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, State, Value};

use super::cases::capitalize;
use super::list::{measure, too_large};
use super::markup::{alike, escape, escaped_args};
use super::meter::{Cost, UNITS_PER_ITEM, UNITS_PER_LETTER, charge, made, read};
use super::methods::{DictMethod, split_lines, strip};
use super::python::{check_text, invalid, is_dict, is_namespace, to_str};
use super::view::{self, View};
use super::{MAX_ATTRIBUTES, MAX_BYTES, format, json, operators, pprint, texts};

/// The filters of Jinja2, and what each reads of its arguments.
pub(super) fn table() -> Vec<(&'static str, Value, Cost)> {
    use minijinja::filters as own;
    vec![
        ("safe", Value::from_function(safe_filter), Cost::Deep),
        ("escape", Value::from_function(escape), Cost::Letters),
        ("e", Value::from_function(escape), Cost::Letters),
        ("lower", Value::from_function(lower_filter), Cost::Letters),
        ("upper", Value::from_function(upper_filter), Cost::Letters),
        ("title", Value::from_function(title_filter), Cost::Letters),
        ("capitalize", Value::from_function(capitalize_filter), Cost::Letters),
        ("dictsort", by_position(&["case_sensitive", "by", "reverse"], Value::from_function(dictsort_filter)), Cost::Sort),
        ("items", Value::from_function(items_filter), Cost::Items),
        ("reverse", Value::from_function(reverse_filter), Cost::Items),
        ("round", Value::from_function(round_filter), Cost::Constant),
        ("abs", Value::from_function(abs_filter), Cost::Constant),
        ("attr", Value::from_function(attr_filter), Cost::Search),
        ("first", Value::from_function(first_filter), Cost::Constant),
        ("last", Value::from_function(last_filter), Cost::Items),
        ("min", by_position(&["case_sensitive", "attribute"], Value::from_function(min_filter)), Cost::Sort),
        ("max", by_position(&["case_sensitive", "attribute"], Value::from_function(max_filter)), Cost::Sort),
        ("sort", by_position(&["reverse", "case_sensitive", "attribute"], Value::from_function(sort_filter)), Cost::Sort),
        ("list", Value::from_function(own::list), Cost::Items),
        ("select", Value::from_function(own::select), Cost::Items),
        ("reject", Value::from_function(own::reject), Cost::Items),
        ("selectattr", with_path(true, Value::from_function(own::selectattr)), Cost::Items),
        ("rejectattr", with_path(true, Value::from_function(own::rejectattr)), Cost::Items),
        ("map", with_path(false, Value::from_function(own::map)), Cost::Items),
        ("groupby", by_position(&["attribute", "default", "case_sensitive"], Value::from_function(groupby_filter)), Cost::Sort),
        ("unique", by_position(&["case_sensitive", "attribute"], Value::from_function(unique_filter)), Cost::Sort),
        ("pprint", Value::from_function(pprint::pprint), Cost::Deep),
        ("tojson", Value::from_function(json::tojson), Cost::Letters),
        ("string", Value::from_function(string_filter), Cost::Deep),
        ("join", Value::from_function(join_filter), Cost::Deep),
        ("replace", Value::from_function(replace_filter), Cost::Search),
        ("default", Value::from_function(default_filter), Cost::Constant),
        ("d", Value::from_function(default_filter), Cost::Constant),
        ("length", Value::from_function(length_filter), Cost::Search),
        ("count", Value::from_function(length_filter), Cost::Search),
        ("trim", Value::from_function(trim_filter), Cost::Search),
        ("int", Value::from_function(int_filter), Cost::Letters),
        ("float", Value::from_function(float_filter), Cost::Letters),
        ("indent", Value::from_function(indent_filter), Cost::Letters),
        ("batch", Value::from_function(batch_filter), Cost::Items),
        ("slice", Value::from_function(slice_filter), Cost::Items),
        ("format", Value::from_function(format_filter), Cost::Constant),
        ("sum", Value::from_function(sum_filter), Cost::Items),
        (
            "truncate",
            by_position(&["length", "killwords", "end", "leeway"], Value::from_function(texts::truncate)),
            Cost::Letters,
        ),
        ("center", by_position(&["width"], Value::from_function(texts::center)), Cost::Letters),
        ("wordcount", Value::from_function(texts::wordcount), Cost::Letters),
        ("forceescape", Value::from_function(texts::force_escape), Cost::Letters),
        ("urlencode", Value::from_function(texts::urlencode), Cost::Letters),
    ]
}

/// The tests that read more than one item, or differ from minijinja's.
pub(super) fn tests() -> Vec<(&'static str, Value, Cost)> {
    use minijinja::tests as own;
    vec![
        ("startingwith", Value::from_function(own::is_startingwith), Cost::Search),
        ("endingwith", Value::from_function(own::is_endingwith), Cost::Search),
        ("lower", Value::from_function(is_lower), Cost::Deep),
        ("upper", Value::from_function(is_upper), Cost::Deep),
        ("even", Value::from_function(|value: &Value| is_remainder(value, 0)), Cost::Constant),
        ("odd", Value::from_function(|value: &Value| is_remainder(value, 1)), Cost::Constant),
        ("mapping", Value::from_function(is_dict), Cost::Constant),
        ("sameas", Value::from_function(own::is_sameas), Cost::Deep),
        ("filter", Value::from_function(own::is_filter), Cost::Search),
        ("test", Value::from_function(own::is_test), Cost::Search),
        ("sequence", Value::from_function(is_sequence), Cost::Constant),
        ("iterable", Value::from_function(is_iterable), Cost::Constant),
        ("number", Value::from_function(is_number), Cost::Constant),
    ]
}

/// A filter that minijinja gives its arguments by their names, which Jinja2 takes by their places too. A place in a list may be an
/// attribute.
fn by_position(names: &'static [&'static str], filter: Value) -> Value {
    Value::from_function(move |state: &mut State, value: Value, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        let (given, named): (&[Value], Kwargs) = from_args(&args)?;
        if given.len() > names.len() {
            return Err(invalid(format!("expected at most {} arguments, found {}", names.len(), given.len())));
        }
        let mut all: Vec<(&str, Value)> = names.iter().copied().zip(given.iter().cloned()).collect();
        for name in named.args() {
            if all.iter().any(|(other, _)| *other == name) {
                return Err(invalid(format!("{name}: expected one value, found two")));
            }
            all.push((name, named.peek::<Value>(name)?));
        }
        for (name, value) in &mut all {
            if *name == "attribute" && value.is_integer() {
                *value = Value::from(value.to_string());
            }
        }
        if let Some((_, path)) = all.iter().find(|(name, _)| *name == "attribute") {
            charge_path(state, &value, path)?;
        }
        // None means that nothing is given.
        all.retain(|(name, value)| *name == "default" || !value.is_none());
        filter.call(state, &[value, Value::from(all.into_iter().collect::<Kwargs>())])
    })
}

/// A filter of items by an attribute, which is its first argument or has its name.
fn with_path(is_first: bool, filter: Value) -> Value {
    Value::from_function(move |state: &mut State, value: Value, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        let (given, named): (&[Value], Kwargs) = from_args(&args)?;
        let path = if is_first { given.first().cloned() } else { named.peek::<Option<Value>>("attribute")? };
        if let Some(path) = path {
            charge_path(state, &value, &path)?;
        }
        filter.call(state, &[&[value][..], &args].concat())
    })
}

/// What it costs to take such an attribute of each item: the place of a letter is counted from the start of its text.
fn charge_path(state: &mut State, items: &Value, path: &Value) -> Result<(), Error> {
    let path = to_str(path)?;
    if path.len() > MAX_PATH_BYTES {
        return Err(invalid(format!("attribute: expected up to {MAX_PATH_BYTES} bytes, found {}", path.len())));
    }
    let parts = path.matches('.').count();
    charge(state, parts.saturating_mul(items.len().unwrap_or(0)).saturating_mul(UNITS_PER_ITEM))?;
    if !path.contains(|letter: char| letter.is_ascii_digit()) || items.as_str().is_some() {
        return Ok(());
    }
    for item in items.try_iter()? {
        for path in path.split(',') {
            let mut value = item.clone();
            for part in path.split('.') {
                read(state, Cost::Search, &value)?;
                value = value.get_item(&key_of(part)).unwrap_or_default();
            }
        }
    }
    Ok(())
}

fn key_of(part: &str) -> Value {
    part.parse::<u32>().map_or_else(|_| Value::from(part), Value::from)
}

/// The keys by which items are compared; Python orders none of two kinds.
fn check_keys(items: &[Value], attribute: Option<&str>, default: &Value) -> Result<(), Error> {
    let mut keys = items.iter().map(|item| attribute.map_or_else(|| item.clone(), |path| at_path(item, path, default)));
    let Some(first) = keys.next() else { return Ok(()) };
    keys.try_for_each(|key| operators::check_order(&first, &key))
}

fn at_path(item: &Value, path: &str, default: &Value) -> Value {
    let mut value = item.clone();
    for part in path.split('.') {
        value = value.get_item(&key_of(part)).unwrap_or_default();
    }
    if value.is_undefined() { default.clone() } else { value }
}

fn items_of(value: &Value) -> Result<Vec<Value>, Error> {
    Ok(value.try_iter()?.collect())
}

/// The filter `sort`.
fn sort_filter(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let items = items_of(&value)?;
    match kwargs.peek::<Option<&str>>("attribute")? {
        // Attributes are compared as lists of them, in which equal ones need no order.
        Some(attribute) => attribute.split(',').try_for_each(|path| {
            let mut keys = items.iter().map(|item| at_path(item, path.trim(), &Value::UNDEFINED));
            let Some(first) = keys.next() else { return Ok(()) };
            keys.filter(|key| *key != first).try_for_each(|key| operators::check_order(&first, &key))
        })?,
        None => check_keys(&items, None, &Value::UNDEFINED)?,
    }
    minijinja::filters::sort(state, value, kwargs)
}

/// The filters `min` and `max`: of equal items the first.
fn min_filter(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    check_keys(&items_of(&value)?, kwargs.peek::<Option<&str>>("attribute")?, &Value::UNDEFINED)?;
    minijinja::filters::min(state, value, kwargs)
}

fn max_filter(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let mut items = items_of(&value)?;
    check_keys(&items, kwargs.peek::<Option<&str>>("attribute")?, &Value::UNDEFINED)?;
    // minijinja takes the last.
    items.reverse();
    minijinja::filters::max(state, Value::from(items), kwargs)
}

/// The filter `groupby`.
fn groupby_filter(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let default = kwargs.peek::<Option<Value>>("default")?.unwrap_or_default();
    check_keys(&items_of(&value)?, kwargs.peek::<Option<&str>>("attribute")?, &default)?;
    minijinja::filters::groupby(value, None, kwargs)
}

/// The filter `dictsort`.
fn dictsort_filter(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let by = kwargs.peek::<Option<&str>>("by")?.unwrap_or("key");
    let keys = items_of(value)?;
    match by {
        "key" => check_keys(&keys, None, &Value::UNDEFINED)?,
        "value" => {
            let values = keys.iter().map(|key| value.get_item(key)).collect::<Result<Vec<_>, _>>()?;
            check_keys(&values, None, &Value::UNDEFINED)?;
        }
        other => return Err(invalid(format!("dictsort: by: expected \"key\" or \"value\", found {other:?}"))),
    }
    minijinja::filters::dictsort(value, kwargs)
}

/// The filter `unique`, of what Python can hash.
fn unique_filter(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let attribute = kwargs.peek::<Option<&str>>("attribute")?;
    for item in value.try_iter()? {
        let key = attribute.map_or_else(|| item.clone(), |path| at_path(&item, path, &Value::UNDEFINED));
        if is_dict(&key) || (key.kind() == ValueKind::Seq && !key.is_tuple()) {
            return Err(invalid(format!("unique: a value of type {} cannot be compared by its hash", key.kind())));
        }
    }
    minijinja::filters::unique(state, value, kwargs)
}

/// The function `dict`: of a dict, or of pairs.
pub(super) fn dict(state: &mut State, value: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let Some(pairs) = value.as_ref().filter(|value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)) else {
        return minijinja::functions::dict(value, kwargs);
    };
    let mut fields = Vec::new();
    for (at, pair) in pairs.try_iter()?.enumerate() {
        charge(state, UNITS_PER_FIELD)?;
        let [key, value] = items_of(&pair)?
            .try_into()
            .map_err(|found: Vec<Value>| invalid(format!("dict: item {at}: expected a pair, found {} values", found.len())))?;
        if is_dict(&key) || (key.kind() == ValueKind::Seq && !key.is_tuple()) {
            return Err(invalid(format!("dict: item {at}: expected a key, found a value of type {}", key.kind())));
        }
        fields.push((key, value));
    }
    minijinja::functions::dict(Some(Value::from_pairs(fields)), kwargs)
}

/// What a loop is about to iterate: its items are there, and its letters or keys are counted.
pub(super) fn iterate(state: &mut State, value: Value) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        // Letters as a list: the loop knows how many there are.
        (Some(text), _) => {
            read(state, Cost::Items, &value)?;
            Ok(text.chars().map(Value::from).collect())
        }
        (None, ValueKind::Map) => {
            read(state, Cost::Items, &value)?;
            Ok(value)
        }
        (None, ValueKind::Iterable) => made(state, value),
        _ => Ok(value),
    }
}

/// A key that is about to be looked up.
pub(super) fn key(state: &mut State, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Number {
        read(state, Cost::Deep, &value)?;
    }
    Ok(value)
}

/// The function `namespace`. minijinja copies the names of all attributes to tell whether there are any.
pub(super) fn namespace(attributes: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let namespace = minijinja::functions::namespace(attributes)?;
    let len = namespace.len().unwrap_or(0);
    if len > MAX_ATTRIBUTES {
        return Err(invalid(format!("namespace: {len} attributes are not supported (up to {MAX_ATTRIBUTES})")));
    }
    Ok(namespace)
}

/// What a function looks at in whole.
pub(super) fn touch(state: &mut State, value: Value) -> Result<Value, Error> {
    read(state, Cost::Deep, &value)?;
    Ok(value)
}

/// The filter `string`.
pub(super) fn string_filter(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value.clone()) } else { to_str(value).map(Value::from) }
}

/// The filter `safe`.
pub(super) fn safe_filter(value: &Value) -> Result<Value, Error> {
    if value.is_safe() { Ok(value.clone()) } else { to_str(value).map(Value::from_safe_string) }
}

pub(super) fn lower_filter(value: &Value) -> Result<Value, Error> {
    Ok(alike(value, to_str(value)?.to_lowercase()))
}

pub(super) fn upper_filter(value: &Value) -> Result<Value, Error> {
    Ok(alike(value, to_str(value)?.to_uppercase()))
}

pub(super) fn capitalize_filter(value: &Value) -> Result<Value, Error> {
    Ok(alike(value, capitalize(&to_str(value)?)))
}

/// The filter `title`: words end at white space, hyphens and opening brackets alone.
pub(super) fn title_filter(state: &mut State, value: &Value) -> Result<String, Error> {
    let text = to_str(value)?;
    let mut titled = String::with_capacity(text.len());
    let is_end = |letter: char| super::methods::is_space(letter) || matches!(letter, '-' | '(' | '{' | '[' | '<');
    for word in text.split_inclusive(is_end) {
        let first = word.chars().next().map_or(0, char::len_utf8);
        if word.is_ascii() {
            titled.extend(word[..first].chars().map(|letter| letter.to_ascii_uppercase()));
            titled.extend(word[first..].chars().map(|letter| letter.to_ascii_lowercase()));
        } else {
            charge(state, UNITS_PER_WORD)?;
            titled.push_str(&word[..first].to_uppercase());
            titled.push_str(&word[first..].to_lowercase());
        }
        check_text(&titled, 0)?;
    }
    Ok(titled)
}

/// The filter `attr`: attributes, which keys of a dict are not.
pub(super) fn attr_filter(value: &Value, name: &Value) -> Result<Value, Error> {
    let name = to_str(name)?;
    if is_dict(value) {
        let is_method = super::source::DICT_METHODS.contains(&name.as_str());
        return Ok(if is_method { Value::from_object(DictMethod) } else { Value::UNDEFINED });
    }
    if value.kind() == ValueKind::Map || value.kind() == ValueKind::Seq { value.get_attr(&name) } else { Ok(Value::UNDEFINED) }
}

/// The filter `reverse`.
pub(super) fn reverse_filter(value: &Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return Ok(alike(value, text.chars().rev().collect()));
    }
    let mut items: Vec<Value> = value.try_iter()?.collect();
    items.reverse();
    Ok(Value::from(items))
}

/// The filter `round`; rounding up or down gives a float.
pub(super) fn round_filter(value: &Value, precision: Option<i32>, method: Option<&str>, kwargs: Kwargs) -> Result<Value, Error> {
    let precision = precision.map_or_else(|| kwargs.get::<Option<i32>>("precision"), |given| Ok(Some(given)))?.unwrap_or(0);
    let named = kwargs.get::<Option<String>>("method")?;
    kwargs.assert_all_used()?;
    let method = method.map(str::to_owned).or(named).unwrap_or_else(|| "common".to_owned());
    let number = f64::try_from(value.clone()).map_err(|_| invalid(format!("round: expected a number, found {}", value.kind())));
    let number = if value.kind() == ValueKind::Bool { f64::from(u8::from(value.is_true())) } else { number? };
    match method.as_str() {
        "common" if value.kind() == ValueKind::Bool => Ok(Value::from(number as i64)),
        "common" if value.is_integer() && precision >= 0 => Ok(value.clone()),
        "common" => {
            let rounded = round_half_even(number, precision);
            Ok(if value.is_integer() { Value::from(rounded as i64) } else { Value::from(rounded) })
        }
        "ceil" | "floor" => {
            let scale = 10f64.powi(precision);
            let scaled = number * scale;
            Ok(Value::from(if method == "ceil" { scaled.ceil() } else { scaled.floor() } / scale))
        }
        _ => Err(invalid("round: method must be common, ceil or floor")),
    }
}

/// CPython's `round`: by the decimal digits of the exact value, half to even.
fn round_half_even(number: f64, precision: i32) -> f64 {
    if !number.is_finite() {
        return number;
    }
    match usize::try_from(precision) {
        // Rust writes the exact value with so many digits, half to even.
        Ok(digits) => format!("{number:.0$}", digits.min(400)).parse().unwrap_or(number),
        Err(_) => {
            let scale = 10f64.powi(-precision);
            (number / scale).round_ties_even() * scale
        }
    }
}

/// The filter `join`, with the attribute that it may take from each item.
pub(super) fn join_filter(
    state: &mut State,
    value: &Value,
    separator: Option<Value>,
    attribute: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let separator = match separator {
        Some(separator) => separator,
        None => kwargs.get::<Option<Value>>("d")?.unwrap_or_else(|| Value::from("")),
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => kwargs.get::<Option<Value>>("attribute")?,
    };
    kwargs.assert_all_used()?;
    let separator = to_str(&separator)?;
    let mut joined = String::new();
    for (at, item) in value.try_iter()?.enumerate() {
        charge(state, UNITS_PER_ITEM)?;
        check_text(&joined, 0)?;
        joined.push_str(if at == 0 { "" } else { &separator });
        let item = match &attribute {
            Some(attribute) => item.get_item(attribute)?,
            None => item,
        };
        match item.as_str() {
            Some(text) => joined.push_str(text),
            None => joined.push_str(&to_str(&item)?),
        }
    }
    Ok(Value::from(joined))
}

/// The filter `replace`, and the method.
pub(super) fn replace_filter(
    state: &mut State,
    value: &Value,
    from: &Value,
    to: &Value,
    count: Option<i64>,
) -> Result<Value, Error> {
    replace(state, &to_str(value)?, &to_str(from)?, &to_str(to)?, count)
}

/// Python's `str.replace`; a negative `count` is all of them.
pub(super) fn replace(state: &mut State, text: &str, from: &str, to: &str, count: Option<i64>) -> Result<Value, Error> {
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    charge_matches(state, text, from)?;
    let found = text.matches(from).take(count).count();
    charge(state, found.saturating_mul(2 * UNITS_PER_MATCH))?;
    let len = (text.len() - (found * from.len()).min(text.len())).saturating_add(found.saturating_mul(to.len()));
    if len > MAX_BYTES {
        return Err(too_large());
    }
    Ok(Value::from(text.replacen(from, to, count)))
}

/// What it costs to find a part in all its places, of which there may be so many.
pub(super) fn charge_matches(state: &mut State, text: &str, part: &str) -> Result<(), Error> {
    charge(state, UNITS_PER_MATCH.saturating_mul(text.len() / part.len().max(1)))
}

/// The filter `sum`, with the attribute that it takes from each item.
pub(super) fn sum_filter(
    state: &mut State,
    value: &Value,
    attribute: Option<Value>,
    start: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let attribute = attribute.map_or_else(|| kwargs.get::<Option<Value>>("attribute"), |attribute| Ok(Some(attribute)))?;
    let start = start.map_or_else(|| kwargs.get::<Option<Value>>("start"), |start| Ok(Some(start)))?;
    kwargs.assert_all_used()?;
    let mut sum = start.unwrap_or_else(|| Value::from(0));
    for item in value.try_iter()? {
        let item = match attribute.as_ref().filter(|attribute| !attribute.is_none()) {
            Some(attribute) => {
                read(state, Cost::Search, &item)?;
                item.get_item(attribute)?
            }
            None => item,
        };
        sum = operators::add(state, &sum, &item)?;
    }
    Ok(sum)
}

/// The filter `default`: for what is undefined, or with `boolean` for what is false.
pub(super) fn default_filter(
    value: &Value,
    default: Option<Value>,
    boolean: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let boolean = boolean.map_or_else(|| kwargs.get::<Option<bool>>("boolean"), |boolean| Ok(Some(boolean)))?.unwrap_or(false);
    let default = default.map_or_else(|| kwargs.get::<Option<Value>>("default_value"), |default| Ok(Some(default)))?;
    kwargs.assert_all_used()?;
    let is_missing = value.is_undefined() || (boolean && !value.is_true());
    Ok(if is_missing { default.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

/// The filter `items`: what is not there has none.
fn items_filter(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::from(Vec::<Value>::new())) } else { minijinja::filters::items(value) }
}

/// The filter `first`, of nothing undefined.
fn first_filter(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::UNDEFINED) } else { minijinja::filters::first(value) }
}

/// The filter `last`, of a dict its last key.
fn last_filter(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(Value::UNDEFINED),
        ValueKind::Map => Ok(value.try_iter()?.last().unwrap_or_default()),
        _ => minijinja::filters::last(value),
    }
}

/// The filter `abs`: a boolean is a number.
fn abs_filter(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        _ => minijinja::filters::abs(value),
    }
}

/// The filter `length`: 0 for what is undefined.
pub(super) fn length_filter(value: &Value) -> Result<usize, Error> {
    match (value.len(), value.kind()) {
        (Some(len), _) => Ok(len),
        (None, ValueKind::Undefined) => Ok(0),
        (None, ValueKind::Iterable) => Ok(value.try_iter()?.count()),
        (None, kind) => Err(invalid(format!("a value of type {kind} has no length"))),
    }
}

/// The filter `trim`.
pub(super) fn trim_filter(state: &mut State, value: &Value, chars: Option<&str>) -> Result<Value, Error> {
    charge(state, chars.map_or(0, |chars| 5 * UNITS_PER_LETTER * chars.len()))?;
    let text = to_str(value)?;
    let stripped = strip(&text, chars, true, true);
    charge(state, UNITS_PER_LETTER * (text.len() - stripped.len()))?;
    Ok(alike(value, stripped.to_owned()))
}

/// The filter `int`: 0 or the default for what is no number.
pub(super) fn int_filter(value: &Value, default: Option<Value>, base: Option<u32>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => kwargs.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0)),
    };
    let base = match base {
        Some(base) => base,
        None => kwargs.get::<Option<u32>>("base")?.unwrap_or(10),
    };
    kwargs.assert_all_used()?;
    if !(2..=36).contains(&base) {
        return Err(invalid(format!("int: base: expected 2 to 36, found {base}")));
    }
    let parsed = match value.as_str() {
        Some(text) => parse_int(text, base),
        None if value.kind() == ValueKind::Bool => Some(i128::from(value.is_true())),
        None if value.is_integer() => return Ok(value.clone()),
        None => f64::try_from(value.clone()).ok().filter(|float| float.is_finite()).map(|float| float.trunc() as i128),
    };
    Ok(parsed.map_or(default, Value::from))
}

fn parse_int(text: &str, base: u32) -> Option<i128> {
    let digits = strip(text, None, true, true).replace('_', "").to_lowercase();
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = digits.strip_prefix(prefix).unwrap_or(&digits);
    let float = || digits.parse::<f64>().ok().filter(|float| float.is_finite()).map(|float| float.trunc() as i128);
    i128::from_str_radix(digits, base).ok().or_else(float)
}

/// The filter `float`: 0.0 or the default for what is no number.
pub(super) fn float_filter(value: &Value, default: Option<Value>) -> Value {
    let parsed = match value.as_str() {
        Some(text) => strip(text, None, true, true).replace('_', "").parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    parsed.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

/// The filter `indent`, by a number of spaces or a string.
pub(super) fn indent_filter(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let width = match width {
        Some(width) => width,
        None => kwargs.get::<Option<Value>>("width")?.unwrap_or_else(|| Value::from(4)),
    };
    let first = first.map_or_else(|| kwargs.get::<Option<bool>>("first"), |first| Ok(Some(first)))?.unwrap_or(false);
    let blank = blank.map_or_else(|| kwargs.get::<Option<bool>>("blank"), |blank| Ok(Some(blank)))?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let indentation = match (width.as_str(), width.as_i64()) {
        (Some(text), _) => text.to_owned(),
        (None, Some(spaces)) => padding(' ', usize::try_from(spaces).unwrap_or(0), "")?,
        (None, None) => return Err(invalid("indent: width is neither an integer nor a string")),
    };
    let text = to_str(value)? + "\n";
    let mut indented = String::new();
    for (at, line) in split_lines(&text, false).enumerate() {
        indented.push_str(if at == 0 { "" } else { "\n" });
        if if at == 0 { first } else { blank || !line.is_empty() } {
            indented.push_str(&indentation);
        }
        check_text(&indented, 0)?;
        indented.push_str(line);
    }
    Ok(Value::from(indented))
}

/// The filters `batch` and `slice`, whose count must not be a size to allocate.
pub(super) fn batch_filter(state: &State, value: Value, count: usize, fill_with: Option<Value>) -> Result<Value, Error> {
    check_width(count)?;
    minijinja::filters::batch(state, value, count, fill_with)
}

pub(super) fn slice_filter(state: &State, value: Value, count: usize, fill_with: Option<Value>) -> Result<Value, Error> {
    check_width(count)?;
    minijinja::filters::slice(state, value, count, fill_with)
}

/// The filter `format`, `'%s'|format(x)`.
pub(super) fn format_filter(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let (text, args) = (to_str(value)?, args.into_values());
    check_format(state, &text, &args)?;
    let (given, named): (&[Value], Kwargs) = from_args(&args)?;
    let escaped = |args: &[Value]| if value.is_safe() { escaped_args(args) } else { Ok(args.to_vec()) };
    if named.args().next().is_none() {
        return Ok(alike(value, format::printf(&text, &escaped(given)?, None)?));
    }
    if !given.is_empty() {
        return Err(invalid("format: expected arguments by their places or by their names, found both"));
    }
    let values: Vec<Value> = named.args().map(|name| named.peek(name)).collect::<Result<_, Error>>()?;
    let mapping = Value::from_pairs(named.args().zip(escaped(&values)?));
    Ok(alike(value, format::printf(&text, std::slice::from_ref(&mapping), Some(&mapping))?))
}

/// A width or a precision of five digits is a size that nobody needs, and each field may hold the largest of the arguments.
pub(super) fn check_format(state: &mut State, format: &str, args: &[Value]) -> Result<(), Error> {
    read(state, Cost::Letters, &Value::from(format))?;
    let is_huge = format.split(|letter: char| !letter.is_ascii_digit()).any(|digits| digits.len() > 4);
    if is_huge {
        return Err(invalid("format: a number of more than four digits is not supported"));
    }
    let mut largest = 0;
    for arg in args {
        // A letter may become an escape of ten, and a value has some around it.
        let size = measure(state, arg)?;
        largest = largest.max(if arg.as_str().is_some() { size.bytes } else { 10 * size.bytes + 32 * size.values });
    }
    let fields = format.matches(['%', '{']).count();
    let len = fields.saturating_mul(largest.saturating_add(1 << 14)).saturating_add(format.len());
    if fields > 0 && largest > (1 << 14) && len > MAX_BYTES {
        return Err(too_large());
    }
    charge(state, fields.saturating_mul(UNITS_PER_FIELD + UNITS_PER_LETTER * largest))
}

pub(super) fn check_width(width: usize) -> Result<(), Error> {
    if width > MAX_WIDTH { Err(invalid(format!("a size of {width} is not supported (up to {MAX_WIDTH})"))) } else { Ok(()) }
}

/// The function `range`.
pub(super) fn range(state: &mut State, start: i64, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (start, stop) = stop.map_or((0, start), |stop| (start, stop));
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("range: the step cannot be zero"));
    }
    let range = view::Range { start, stop, step };
    let len = range.len();
    if len > MAX_RANGE {
        return Err(invalid(format!("range: {len} numbers are not supported (up to {MAX_RANGE})")));
    }
    charge(state, UNITS_PER_NUMBER * len)?;
    Ok(View::range(range))
}

/// The test `sequence`: in Python whatever has a length and items, so strings, dicts and what is undefined too.
pub(super) fn is_sequence(value: &Value) -> bool {
    let is_state = value.kind() == ValueKind::Map && !is_dict(value);
    let has_items = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map);
    value.is_undefined() || (has_items && !is_state && !matches!(View::of(value), Some(View::Dict { .. })))
}

/// The test `iterable`: not None, other than in minijinja.
pub(super) fn is_iterable(value: &Value) -> bool {
    let is_state = value.kind() == ValueKind::Map && !is_dict(value);
    is_sequence(value) || View::of(value).is_some() || (is_state && !is_namespace(value))
}

/// The tests `lower` and `upper`: of what a value prints.
pub(super) fn is_lower(value: &Value) -> Result<bool, Error> {
    let text = to_str(value)?;
    Ok(text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase))
}

pub(super) fn is_upper(value: &Value) -> Result<bool, Error> {
    let text = to_str(value)?;
    Ok(text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase))
}

/// The tests `even` and `odd`, of floats too.
fn is_remainder(value: &Value, wanted: u8) -> Result<bool, Error> {
    let number = match value.kind() {
        ValueKind::Bool => f64::from(u8::from(value.is_true())),
        ValueKind::Number if value.is_integer() => {
            let integer = i128::try_from(value.clone())?;
            return Ok(integer.rem_euclid(2) == i128::from(wanted));
        }
        ValueKind::Number => f64::try_from(value.clone())?,
        kind => return Err(invalid(format!("a value of type {kind} is neither even nor odd"))),
    };
    Ok(number.rem_euclid(2.0) == f64::from(wanted))
}

/// The test `number`: a boolean is one in Python.
pub(super) fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

/// What is missing to `width` letters.
pub(super) fn padding(fill: char, width: usize, text: &str) -> Result<String, Error> {
    check_width(width)?;
    Ok(std::iter::repeat_n(fill, width.saturating_sub(text.chars().count())).collect())
}

/// A width, a count or an indentation.
const MAX_WIDTH: usize = 1 << 16;
const UNITS_PER_NUMBER: usize = 10;
/// A place where a text is found.
const UNITS_PER_MATCH: usize = 12;
/// A pair that becomes a field of a dict, or a field of a format.
const UNITS_PER_FIELD: usize = 200;
/// A word that takes two texts of its own.
const UNITS_PER_WORD: usize = 100;
/// `a.b.0.c`.
const MAX_PATH_BYTES: usize = 256;
/// As in Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;
