//! A compiled chat template and the bounded run that turns variables into text.
//!
//! The environment is transformers': `trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, `tojson`
//! without HTML escaping and `{% generation %}`. A template comes with a model, so it is untrusted: what it does, recursion and
//! output are bounded, and it reaches no file.
//!
//! ```text
//! Program::new("{{ bos_token }}{{ messages[0].content|trim }}")?.render(variables, now, None)
//! ```

use std::borrow::Cow;
use std::cmp::Ordering;
use std::io;
use std::sync::{Arc, OnceLock};

use minijinja::value::{Rest, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, ErrorKind as JinjaError, Output, State, Value};

use super::list::check_memory;
use super::meter::{CancelFlag, Cost};
use super::{CHECK, CHECK_ATTRIBUTE, ITERATE, KEY, LOOK, MAX_BYTES, MAX_STEPS, START, TOUCH};
use super::{filters, literal, markup, meter, methods, operators, python, source, time};
use crate::engine::cancel::Cancel;
use crate::error::{Error, ErrorKind, OutOfMemory, Result};

/// A template's text; it is compiled once, when first used.
#[derive(Clone)]
pub(super) struct Program(Arc<Inner>);

struct Inner {
    source: String,
    environment: OnceLock<Environment<'static>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Program").field(&self.0.source).finish()
    }
}

impl Program {
    /// A program that is compiled already.
    ///
    /// # Errors
    /// `ErrorKind::Template` with the line, if the text is no template.
    pub fn new(source: impl Into<String>) -> Result<Self> {
        let program = Self::deferred(source);
        program.environment()?;
        Ok(program)
    }

    /// A program that is compiled when it is first used: a model with a broken template still completes text.
    pub fn deferred(source: impl Into<String>) -> Self {
        Self(Arc::new(Inner { source: source.into(), environment: OnceLock::new() }))
    }

    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The text for these variables; `now` is what `strftime_now` tells, in seconds since 1970.
    ///
    /// # Errors
    /// `ErrorKind::Template` with the line; `ErrorKind::Cancelled` if `cancel` was triggered meanwhile.
    pub fn render(&self, mut variables: Vec<(String, Value)>, now: i64, cancel: Option<&Cancel>) -> Result<String> {
        let strftime_now = move |format: &str| {
            time::strftime(format, now).map_err(|message| minijinja::Error::new(JinjaError::InvalidOperation, message))
        };
        variables.push(("strftime_now".to_owned(), Value::from_function(strftime_now)));
        if let Some(cancel) = cancel {
            variables.push((meter::CANCEL.to_owned(), Value::from_object(CancelFlag(cancel.clone()))));
        }
        let template = self.environment()?.get_template(NAME).map_err(template_error)?;
        let mut text = BoundedText(Vec::new());
        let rendered = template.render_captured_to(Value::from_pairs(variables), &mut text);
        if cancel.is_some_and(Cancel::is_triggered) {
            return Err(Error::cancelled());
        }
        rendered.map_err(template_error)?;
        let text = String::from_utf8(text.0)
            .map_err(|error| Error::new(ErrorKind::Template, "chat template: output is not UTF-8").with_source(error))?;
        if !literal::may_have_surrogates(&self.0.source) {
            return Ok(text);
        }
        literal::surrogates_joined(text).map_err(|message| at_line(None, &message))
    }

    fn environment(&self) -> Result<&Environment<'static>> {
        if let Some(environment) = self.0.environment.get() {
            return Ok(environment);
        }
        let environment = compile(&self.0.source)?;
        Ok(self.0.environment.get_or_init(|| environment))
    }
}

fn compile(text: &str) -> Result<Environment<'static>> {
    if text.len() > MAX_SOURCE_BYTES {
        let message = format!("chat template: {} bytes are not supported (up to {MAX_SOURCE_BYTES})", text.len());
        return Err(Error::new(ErrorKind::Template, message));
    }
    let text = source::rewrite(text).map_err(|error| at_line(Some(error.line), &error.message))?;
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(false);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_formatter(print);
    environment.set_unknown_method_callback(call_method);
    environment.add_function(START, meter::start);
    environment.add_function(LOOK, meter::look);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("range", filters::range);
    environment.add_function("dict", metered(Value::from_function(filters::dict), Cost::Deep));
    environment.add_function("namespace", metered(Value::from_function(filters::namespace), Cost::Deep));
    // minijinja's own: it would print what the host has set.
    environment.remove_global("debug");
    add_operators(&mut environment);
    // Those of minijinja that Jinja2 lacks.
    for name in ["bool", "chain", "lines", "split", "zip"] {
        environment.remove_filter(name);
    }
    for (name, filter, cost) in filters::table() {
        environment.add_filter(name, metered(filter, cost));
    }
    for (name, test, cost) in filters::tests() {
        environment.add_test(name, metered_test(test, cost));
    }
    let text = format!("{{% do {START}() %}}{text}");
    environment.add_template_owned(NAME, text).map_err(template_error)?;
    Ok(environment)
}

/// What [`source`] writes instead of operators, and around what a loop, a subscript or `{% set %}` takes.
fn add_operators(environment: &mut Environment) {
    environment.add_filter(CHECK, python::check);
    environment.add_filter(CHECK_ATTRIBUTE, python::check_attribute);
    environment.add_filter(ITERATE, filters::iterate);
    environment.add_filter(KEY, filters::key);
    environment.add_filter(TOUCH, filters::touch);
    environment.add_filter(operators::ADD, operators::add);
    environment.add_filter(operators::SUBTRACT, operators::subtract);
    environment.add_filter(operators::MULTIPLY, operators::multiply);
    environment.add_filter(operators::DIVIDE, operators::divide);
    environment.add_filter(operators::DIVIDE_FLOOR, operators::divide_floor);
    environment.add_filter(operators::REMAINDER, operators::remainder);
    environment.add_filter(operators::POWER, operators::power);
    environment.add_filter(operators::CONCAT, operators::concat);
    environment.add_filter(operators::COMPARE, operators::compare);
    for name in ["eq", "equalto", "=="] {
        environment.add_test(name, |state: &mut State, left: &Value, right: &Value| operators::equal(state, left, right));
    }
    for name in ["ne", "!="] {
        environment
            .add_test(name, |state: &mut State, left: &Value, right: &Value| operators::equal(state, left, right).map(|is| !is));
    }
    type Accepts = fn(Ordering) -> bool;
    let orders: [(&[&str], Accepts); 4] = [
        (&["lt", "lessthan", "<"], Ordering::is_lt),
        (&["le", "<="], Ordering::is_le),
        (&["gt", "greaterthan", ">"], Ordering::is_gt),
        (&["ge", ">="], Ordering::is_ge),
    ];
    for (names, accepts) in orders {
        for name in names.iter().copied() {
            environment.add_test(name, move |state: &mut State, left: &Value, right: &Value| {
                operators::order(state, left, right).map(accepts)
            });
        }
    }
    environment.add_test("in", operators::contains);
}

/// A filter or function that counts what it reads and makes.
fn metered(
    function: Value,
    cost: Cost,
) -> impl Fn(&mut State, Rest<ValueOrKwargs>) -> std::result::Result<Value, minijinja::Error> + Send + Sync + 'static {
    move |state: &mut State, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        args.iter().try_for_each(|arg| meter::read(state, cost, arg))?;
        check_arguments(cost, &args)?;
        let made = function.call(state, &args)?;
        meter::made(state, made)
    }
}

/// The memory that a filter or a method may take for an argument: a few copies of a text, or of a list's items.
fn worked_bytes(cost: Cost, value: &Value) -> usize {
    let items = |count: usize| count.saturating_mul(4 * size_of::<Value>());
    match (value.as_str(), cost) {
        (Some(text), Cost::Items | Cost::Sort) => items(text.len()),
        (Some(text), _) => 6 * text.len(),
        (None, _) => items(value.len().unwrap_or(0)),
    }
}

/// A method. What it works out beforehand is not in its frame: macros that call each other are as deep as the stack lets them.
fn call_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> std::result::Result<Value, minijinja::Error> {
    check_method(value, name, args)?;
    methods::call_method(state, value, name, args)
}

/// Whether there is room for what a method makes, which may be more than it is called on: of a text that is split each part is a value.
#[inline(never)]
fn check_method(value: &Value, name: &str, args: &[Value]) -> std::result::Result<(), minijinja::Error> {
    let mut bytes = args.iter().chain([value]).map(|value| worked_bytes(Cost::Search, value)).sum();
    if let (Some(text), "split" | "rsplit" | "splitlines") = (value.as_str(), name) {
        let first = args.first().and_then(Value::as_str).and_then(|separator| separator.bytes().next());
        let parts = text.bytes().filter(|byte| byte.is_ascii_whitespace() || Some(*byte) == first).count();
        bytes += 4 * size_of::<Value>() * parts;
    }
    check_memory(bytes)
}

#[inline(never)]
fn check_arguments(cost: Cost, args: &[Value]) -> std::result::Result<(), minijinja::Error> {
    check_memory(args.iter().map(|arg| worked_bytes(cost, arg)).sum())
}

fn metered_test(
    test: Value,
    cost: Cost,
) -> impl Fn(&mut State, Rest<ValueOrKwargs>) -> std::result::Result<bool, minijinja::Error> + Send + Sync + 'static {
    move |state: &mut State, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        args.iter().try_for_each(|arg| meter::read(state, cost, arg))?;
        Ok(test.call(state, &args)?.is_true())
    }
}

/// `{{ value }}`: Python's `str`. Counts what is printed, because a macro's text is a value that grows where no writer sees it.
fn print(out: &mut Output, state: &mut State, value: &Value) -> std::result::Result<(), minijinja::Error> {
    meter::read(state, Cost::Deep, value)?;
    check_memory(value.as_str().map_or(0, str::len))?;
    let escaped;
    let is_escaped = !matches!(state.auto_escape(), AutoEscape::None);
    let text = match value.as_str() {
        _ if is_escaped => {
            escaped = markup::escape(value)?;
            Cow::Borrowed(escaped.as_str().unwrap_or_default())
        }
        Some(text) => Cow::Borrowed(text),
        None => Cow::Owned(python::to_str(value)?),
    };
    let printed = state.get_or_insert_extension(Printed(0));
    printed.0 += text.len();
    if printed.0 > MAX_PRINTED_BYTES {
        return Err(minijinja::Error::new(
            JinjaError::InvalidOperation,
            format!("stopped after {MAX_PRINTED_BYTES} bytes of text"),
        ));
    }
    out.write_str(&text).map_err(minijinja::Error::from)
}

/// How many bytes a run printed, in macros and blocks too.
struct Printed(usize);

fn raise_exception(message: &Value) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(JinjaError::InvalidOperation, python::to_str(message)?))
}

fn template_error(error: minijinja::Error) -> Error {
    let message = match (error.kind(), error.detail()) {
        (JinjaError::OutOfFuel, _) => format!("stopped after {MAX_STEPS} steps"),
        (JinjaError::WriteFailure, _) => format!("stopped after {MAX_BYTES} bytes of output"),
        // What the template itself raised stands alone.
        (JinjaError::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    let is_memory = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<OutOfMemory>()
            || cause.downcast_ref().is_some_and(|cause: &io::Error| cause.kind() == io::ErrorKind::OutOfMemory)
    };
    if std::iter::successors(std::error::Error::source(&error), |cause| cause.source()).any(is_memory) {
        let message = format!("chat template: expected memory to work in: {error}");
        return Error::new(ErrorKind::OutOfMemory, message).with_source(error);
    }
    at_line(error.line(), &message).with_source(error)
}

fn at_line(line: Option<usize>, message: &str) -> Error {
    let message = match line {
        Some(line) => format!("chat template, line {line}: {message}"),
        None => format!("chat template: {message}"),
    };
    Error::new(ErrorKind::Template, message)
}

/// A buffer that refuses to grow past [`MAX_BYTES`].
struct BoundedText(Vec<u8>);

impl io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.0.try_reserve(bytes.len())?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template's name in minijinja's errors.
const NAME: &str = "chat template";
/// The real templates have up to 17 kB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// The text itself, and as much again that a macro or a block collects.
const MAX_PRINTED_BYTES: usize = 2 * MAX_BYTES;
/// A macro's call costs 4, a block 1; half of minijinja's own limit, which is too much for a stack of 512 KiB.
const RECURSION_LIMIT: usize = 200;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_run_that_another_thread_cancels_ends_soon() {
        // What it does in between costs nothing but minijinja's own steps.
        for body in ["{% if j %}{% endif %}", "{% set a = j %}", "{% if s %}{% set a = s %}{% endif %}"] {
            let source = format!(
                "{{% set s = 'a' * 1000 %}}{{% for i in range(100000) %}}{{% if seen(i) %}}{{% endif %}}{{% for j in range(1000) %}}{body}{{% endfor %}}{{% endfor %}}"
            );
            let (cancel, passes) = (Cancel::new(), Arc::new(AtomicUsize::new(0)));
            let (flag, counted) = (cancel.clone(), passes.clone());
            let seen = move |i: usize| {
                counted.fetch_add(1, Ordering::Relaxed);
                if i == 3 {
                    let flag = flag.clone();
                    std::thread::spawn(move || flag.trigger()).join().unwrap_or_default();
                }
                true
            };
            let variables = vec![("seen".to_owned(), Value::from_function(seen))];
            let error = Program::new(source).and_then(|program| program.render(variables, 0, Some(&cancel))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{body}");
            // A million units are some thousands of the inner loop's passes.
            let passes = passes.load(Ordering::Relaxed);
            assert!((4..40).contains(&passes), "{body}: {passes}");
        }
    }
}
