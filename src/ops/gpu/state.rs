//! States of sequences as the kernels of a step read and change them.

use candle_core::{DType, Result, bail};

use crate::kernels::gpu::{GpuCache, GpuView, ListKey};
use crate::ops::{ConvState, LayerCache, ScanState};

/// What one mixer remembers of a sequence.
pub enum StepState<'a> {
    Kv(&'a mut LayerCache),
    Conv(&'a mut ConvState),
    Scan(&'a mut ConvState, &'a mut ScanState),
}

/// The same on the device.
#[derive(Clone, Copy)]
pub(super) enum GpuState<'a> {
    Kv(GpuCache<'a>),
    /// `(RING, channels)`
    Conv(GpuView<'a>),
    /// The ring, and of each head matrix, keys, updates and g.
    Scan(GpuView<'a>, GpuView<'a>),
}

impl StepState<'_> {
    /// Tokens held, and the position that it can be cut back to.
    pub(super) fn span(&self) -> (usize, usize) {
        match self {
            Self::Kv(cache) => (cache.len(), 0),
            Self::Conv(conv) => (conv.len(), conv.start()),
            Self::Scan(conv, scan) => (conv.len().min(scan.len()), conv.start().max(scan.start())),
        }
    }

    /// Where kernels find it, with room for so many tokens more; `activation` is the type of activations.
    pub(super) fn view(&mut self, rows: usize, activation: DType) -> Result<GpuState<'_>> {
        match self {
            Self::Kv(LayerCache::Tensors(cache)) => {
                let (keys, values) = cache.room(rows, activation)?;
                let capacity = keys.dims()[1];
                Ok(GpuState::Kv(GpuCache { keys: GpuView::of(keys)?, values: GpuView::of(values)?, capacity }))
            }
            Self::Conv(ConvState::Tensors(conv)) => Ok(GpuState::Conv(GpuView::of(conv.ring()?)?)),
            Self::Scan(ConvState::Tensors(conv), ScanState::Tensors(scan)) => {
                Ok(GpuState::Scan(GpuView::of(conv.ring()?)?, GpuView::of(scan.whole()?)?))
            }
            Self::Kv(_) | Self::Conv(_) | Self::Scan(..) => bail!("a step: expected states of tensors"),
        }
    }

    /// Holds so many tokens more, which kernels have taken up.
    pub(super) fn advance(&mut self, rows: usize) {
        match self {
            Self::Kv(LayerCache::Tensors(cache)) => cache.advance(rows),
            Self::Conv(ConvState::Tensors(conv)) => conv.advance(rows),
            Self::Scan(ConvState::Tensors(conv), ScanState::Tensors(scan)) => {
                conv.advance(rows);
                scan.advance(rows);
            }
            Self::Kv(_) | Self::Conv(_) | Self::Scan(..) => {}
        }
    }

    /// Forgets all, where kernels that failed may have changed it in place.
    pub(super) fn forget(&mut self) {
        match self {
            Self::Kv(_) => {}
            Self::Conv(conv) => conv.truncate(0),
            Self::Scan(conv, scan) => {
                conv.truncate(0);
                scan.truncate(0);
            }
        }
    }
}

impl<'a> GpuState<'a> {
    /// What a list of launches depends on of it.
    pub(super) fn add_to(self, key: &mut ListKey<'a>) {
        match self {
            Self::Kv(cache) => {
                key.number(cache.capacity);
                key.view(cache.keys);
                key.view(cache.values);
            }
            Self::Conv(ring) => key.view(ring),
            Self::Scan(ring, state) => {
                key.view(ring);
                key.view(state);
            }
        }
    }

    pub(super) fn cache(self) -> Result<GpuCache<'a>> {
        if let Self::Kv(cache) = self { Ok(cache) } else { bail!("attention met the state of another mixer") }
    }

    pub(super) fn ring(self) -> Result<GpuView<'a>> {
        if let Self::Conv(ring) = self { Ok(ring) } else { bail!("a convolution met the state of another mixer") }
    }

    /// The ring, and the scan's own.
    pub(super) fn scan(self) -> Result<(GpuView<'a>, GpuView<'a>)> {
        if let Self::Scan(ring, state) = self { Ok((ring, state)) } else { bail!("a scan met the state of another mixer") }
    }
}
