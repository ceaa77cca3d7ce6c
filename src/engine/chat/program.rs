//! A compiled chat template and the bounded run that turns variables into text.
//!
//! The environment is transformers': `trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, `tojson`
//! without HTML escaping and `{% generation %}`. A template comes with a model, so it is untrusted: steps, recursion and output
//! are bounded, and it reaches no file.
//!
//! ```text
//! Program::new("{{ bos_token }}{{ messages[0].content|trim }}")?.render(variables, now)
//! ```

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, OnceLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, ErrorKind as JinjaError, Output, State, Value};

use super::{CHECK, CHECK_ATTRIBUTE, MAX_BYTES, filters, json, methods, python, source, time};
use crate::error::{Error, ErrorKind, Result};

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
    pub fn render(&self, mut variables: Vec<(String, Value)>, now: i64) -> Result<String> {
        let strftime_now = move |format: &str| {
            time::strftime(format, now).map_err(|message| minijinja::Error::new(JinjaError::InvalidOperation, message))
        };
        variables.push(("strftime_now".to_owned(), Value::from_function(strftime_now)));
        let template = self.environment()?.get_template(NAME).map_err(template_error)?;
        let mut text = BoundedText(Vec::new());
        template.render_captured_to(Value::from_pairs(variables), &mut text).map_err(template_error)?;
        String::from_utf8(text.0)
            .map_err(|error| Error::new(ErrorKind::Template, "chat template: output is not UTF-8").with_source(error))
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
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(template_error)?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(false);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_formatter(print);
    environment.set_unknown_method_callback(methods::call_method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("range", filters::range);
    environment.add_function(CHECK, python::check);
    environment.add_function(CHECK_ATTRIBUTE, python::check_attribute);
    environment.add_filter(CHECK, python::check);
    // minijinja's own: it would print what the host has set.
    environment.remove_global("debug");
    environment.add_filter("tojson", |value: &Value, kwargs: Kwargs| json::tojson(value, kwargs));
    environment.add_filter("string", filters::string_filter);
    environment.add_filter("join", filters::join_filter);
    environment.add_filter("default", filters::default_filter);
    environment.add_filter("d", filters::default_filter);
    environment.add_filter("length", filters::length_filter);
    environment.add_filter("count", filters::length_filter);
    environment.add_filter("trim", filters::trim_filter);
    environment.add_filter("int", filters::int_filter);
    environment.add_filter("float", filters::float_filter);
    environment.add_filter("indent", filters::indent_filter);
    environment.add_filter("batch", filters::batch_filter);
    environment.add_filter("slice", filters::slice_filter);
    environment.add_filter("format", filters::format_filter);
    environment.add_test("sequence", filters::is_sequence);
    environment.add_test("iterable", filters::is_iterable);
    environment.add_test("number", filters::is_number);
    environment.add_template_owned(NAME, text).map_err(template_error)?;
    Ok(environment)
}

/// `{{ value }}`: Python's `str`. Counts what is printed, because a macro's text is a value that grows where no writer sees it.
fn print(out: &mut Output, state: &mut State, value: &Value) -> std::result::Result<(), minijinja::Error> {
    let text = match value.as_str() {
        Some(text) => Cow::Borrowed(text),
        None => Cow::Owned(python::to_str(value)?),
    };
    let printed = state.get_or_insert_extension(Printed(0));
    printed.0 += text.len();
    if printed.0 > MAX_PRINTED_BYTES {
        return Err(minijinja::Error::new(JinjaError::InvalidOperation, format!("stopped after {MAX_PRINTED_BYTES} bytes of text")));
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
/// About a second. Ten thousand messages take a tenth of that with the dearest of 28 real templates.
const MAX_STEPS: u64 = 50_000_000;
const MAX_PRINTED_BYTES: usize = 4 * MAX_BYTES;
/// A macro's call costs 4, a block 1; half of minijinja's own limit, which is too much for a stack of 512 KiB.
const RECURSION_LIMIT: usize = 200;
