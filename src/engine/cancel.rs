//! A flag that stops work from another thread or from a signal handler.
//!
//! ```
//! use metal_candle::{Cancel, ErrorKind};
//! let cancel = Cancel::new();
//! let same = cancel.clone();
//! assert!(cancel.check().is_ok());
//! same.trigger();
//! assert_eq!(cancel.check().unwrap_err().kind(), ErrorKind::Cancelled);
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A shared flag; clones are the same flag. Read between tensors, prefill chunks and tokens.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops every call that was given this flag, now and until [`reset`](Self::reset). Safe in a signal handler.
    pub fn trigger(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Lets new calls run again.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the flag is triggered.
    pub fn is_triggered(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    /// `ErrorKind::Cancelled` if the flag is triggered.
    pub fn check(&self) -> Result<()> {
        if self.is_triggered() { Err(Error::cancelled()) } else { Ok(()) }
    }
}
