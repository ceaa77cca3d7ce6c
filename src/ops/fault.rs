//! Failing on purpose, so that tests see what a device that fails in the middle of a step leaves behind.

use candle_core::Result;

#[cfg(feature = "fault-injection")]
static LEFT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// Makes a product with a weight matrix fail, once: the one after so many others, on whatever thread and model it is. Every layer has
/// four, and the output matrix is one.
#[cfg(feature = "fault-injection")]
pub fn inject_device_failure(after: usize) {
    LEFT.store(after + 1, std::sync::atomic::Ordering::Relaxed);
}

/// Counts a product.
pub(super) fn product() -> Result<()> {
    #[cfg(feature = "fault-injection")]
    {
        use std::sync::atomic::Ordering::Relaxed;
        if LEFT.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) == Ok(1) {
            candle_core::bail!("injected failure of a device")
        }
    }
    Ok(())
}
