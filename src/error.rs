//! The one error type: what kind of failure it is, one line that names the subject, the expectation and what was found,
//! and the chain of causes below it.
//!
//! ```
//! use metal_candle::{Error, ErrorKind};
//! let error = Error::new(ErrorKind::Format, "config.json: hidden_size: expected a positive integer, found -3");
//! assert_eq!(error.kind(), ErrorKind::Format);
//! ```

use std::{fmt, io};

/// What kind of failure an [`Error`] is; each kind is one status code of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The work was stopped by its cancel flag; what was finished is kept.
    Cancelled,
    /// An argument or option is outside its range.
    InvalidArgument,
    /// Text is not UTF-8.
    InvalidUtf8,
    /// A file, directory, token or device does not exist.
    NotFound,
    /// Reading or writing failed.
    Io,
    /// A download failed.
    Network,
    /// A file's content contradicts its format.
    Format,
    /// The input is well formed, and this library does not implement it.
    Unsupported,
    /// More tokens than the context holds.
    ContextFull,
    /// Memory ran out, or a size would pass what can be allocated.
    OutOfMemory,
    /// The compute device failed.
    Device,
    /// The device is suspended; resume it first.
    Suspended,
    /// The object is in use by another call.
    Busy,
    /// Two things that must belong together do not (a session file and its model).
    Mismatch,
    /// An earlier panic left the object in an unknown state.
    Poisoned,
    /// A chat template failed or refused the conversation.
    Template,
    /// A defect of this library: a panic was caught at the boundary.
    Panic,
}

/// A failure with its kind, a one-line message and an optional cause.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a cause. Messages are lower case, without a full stop: `subject: expected, found`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error with the failure that led to it.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error with `subject: ` in front of its message.
    pub fn within(mut self, subject: impl fmt::Display) -> Self {
        self.message = format!("{subject}: {}", self.message);
        self
    }

    /// The same error, told of `path` where it tells of the file beside it that was written in its place.
    pub(crate) fn of_place(mut self, beside: &std::path::Path, path: &std::path::Path) -> Self {
        self.message = self.message.replace(&beside.display().to_string(), &path.display().to_string());
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The one-line message, without the causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The message and every cause below it, one a line.
    pub fn details(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str("\ncaused by: ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// [`ErrorKind::InvalidArgument`].
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// [`ErrorKind::Format`].
    pub fn format(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Format, message)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// [`ErrorKind::Cancelled`].
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }

    /// A failed file operation: [`ErrorKind::NotFound`] if the file is missing, else [`ErrorKind::Io`].
    pub fn io(path: &std::path::Path, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format!("{}: {error}", path.display())).with_source(error)
    }
}

/// No memory within a tensor operation.
///
/// candle has no such error. `Io` is the one of its kinds that keeps a type from another crate, and that of the
/// standard library says what it is.
#[derive(Debug, thiserror::Error)]
#[error("out of memory: {what}")]
pub(crate) struct OutOfMemory {
    pub what: String,
}

impl From<OutOfMemory> for Error {
    fn from(error: OutOfMemory) -> Self {
        Self::new(ErrorKind::OutOfMemory, error.to_string())
    }
}

impl From<OutOfMemory> for candle_core::Error {
    fn from(error: OutOfMemory) -> Self {
        io::Error::new(io::ErrorKind::OutOfMemory, error).into()
    }
}

/// What CUDA, its matrix library and Metal call it. Their errors are types of crates that are linked for one device
/// only, and reach candle as text in part: the names of the drivers must do.
const NO_GPU_MEMORY: [&str; 3] =
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "kIOGPUCommandBufferCallbackErrorOutOfMemory"];

impl From<candle_core::Error> for Error {
    /// A tensor operation failed: on a GPU that is the device, on the CPU a shape that the library got wrong.
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        let no_memory = is_out_of_memory(&error) || NO_GPU_MEMORY.iter().any(|name| text.contains(name));
        let kind = if no_memory { ErrorKind::OutOfMemory } else { ErrorKind::Device };
        Self::new(kind, format!("tensor operation: {text}")).with_source(error)
    }
}

/// Whether it is [`OutOfMemory`], with whatever candle put around it.
fn is_out_of_memory(error: &candle_core::Error) -> bool {
    use candle_core::Error::{Context, Io, WithBacktrace, WithPath, WrappedContext};
    match error {
        Io(error) => error.kind() == io::ErrorKind::OutOfMemory,
        WithBacktrace { inner, .. } | Context { inner, .. } | WithPath { inner, .. } => is_out_of_memory(inner),
        WrappedContext { wrapped, .. } => wrapped.downcast_ref().is_some_and(is_out_of_memory),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_memory_is_a_type_whatever_lies_around_it() {
        use candle_core::Context;
        let error = || candle_core::Error::from(OutOfMemory { what: "no room".to_string() });
        let backtrace = Box::new(std::backtrace::Backtrace::disabled());
        let within = candle_core::Error::WithBacktrace { inner: Box::new(error()), backtrace };
        let wrapped = Err::<(), _>(error().bt()).context("a layer").unwrap_err();
        for error in [error(), error().bt(), error().context("a layer"), error().with_path("a file"), within, wrapped] {
            let error = Error::from(error);
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
            assert!(error.message().contains("no room"), "{error}");
        }
        assert_eq!(Error::from(error()).message(), "tensor operation: out of memory: no room");
        assert_eq!(Error::from(candle_core::Error::msg("out of memory: no room")).kind(), ErrorKind::Device);
        assert_eq!(Error::from(candle_core::Error::from(io::Error::other("no room"))).kind(), ErrorKind::Device);
    }

    #[test]
    fn a_full_gpu_is_out_of_memory_by_the_name_that_its_driver_gives_it() {
        for name in NO_GPU_MEMORY {
            let error = candle_core::Error::msg(format!(r#"DriverError({name}, "out of memory")"#));
            assert_eq!(Error::from(error).kind(), ErrorKind::OutOfMemory);
        }
        assert_eq!(Error::from(candle_core::Error::msg("shape mismatch")).kind(), ErrorKind::Device);
    }

    #[test]
    fn an_error_tells_its_causes() {
        let error = Error::io(std::path::Path::new("here"), io::ErrorKind::NotFound.into()).within("subject");
        assert_eq!(error.to_string(), error.message());
        assert_eq!(error.details(), "subject: here: entity not found\ncaused by: entity not found");
        assert!(std::error::Error::source(&Error::cancelled()).is_none());
    }
}
