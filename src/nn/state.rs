//! What the layers remember of the tokens evaluated so far.
//!
//! Keys and values can be cut back to any length. States of fixed size cannot, but within the last few tokens: of these there are
//! snapshots, taken where a conversation is likely to be taken up again.

use candle_core::{DType, Result};

use super::layer::OperationConfig;
use super::{AttentionConfig, Config, DeltaNetConfig, Mamba2Config, ShortConvConfig};
use crate::ops::{Backend, CHUNK, ConvState, Format, KvFormat, LayerCache, ScanState};

/// Snapshots that are kept: of where the last two turns begin, so that one that is rewritten just before its end, by the template of the
/// next turn, is taken up at the end of the one before, and of the last prompt within a turn, behind a call of a tool.
pub const SNAPSHOTS: usize = 3;
/// Of these, the beginnings of turns that no other takes the place of.
const TURNS: usize = 2;

/// What one mixer remembers.
pub enum LayerState {
    /// Keys and values of each token.
    Kv(LayerCache),
    /// The inputs of a short convolution.
    Conv(ConvState),
    /// The inputs of a convolution, and the state of the scan behind it.
    Scan(ConvState, ScanState),
}

impl LayerState {
    fn new(mixer: MixerConfig<'_>, format: KvFormat, backend: &Backend) -> Self {
        match mixer {
            MixerConfig::Attention(a) => Self::Kv(LayerCache::new(a.kv_heads, a.head_dim, format, backend)),
            MixerConfig::ShortConv(c) => Self::Conv(ConvState::new(c.channels, c.taps, backend)),
            MixerConfig::DeltaNet(net) => {
                let conv = ConvState::new(net.channels(), net.taps, backend);
                Self::Scan(conv, ScanState::new(net.shape, backend))
            }
            MixerConfig::Mamba2(mamba) => {
                let conv = ConvState::new(mamba.channels(), mamba.taps, backend);
                Self::Scan(conv, ScanState::new(mamba.shape, backend))
            }
        }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.len(),
            Self::Conv(conv) => conv.len(),
            // Behind a pass that failed between the two, what both hold.
            Self::Scan(conv, scan) => conv.len().min(scan.len()),
        }
    }

    /// How many of the first `len` tokens it could keep and forget the others.
    fn keeps(&self, len: usize) -> usize {
        match self {
            Self::Kv(cache) => len.min(cache.len()),
            Self::Conv(conv) => keeps(conv.len(), conv.start(), len),
            Self::Scan(conv, scan) => {
                let both = |len| keeps(conv.len(), conv.start(), len).min(keeps(scan.len(), scan.start(), len));
                both(both(len))
            }
        }
    }

    fn held_bytes(&self) -> u64 {
        match self {
            Self::Kv(cache) => cache.held_bytes(),
            Self::Conv(conv) => conv.held_bytes(),
            Self::Scan(conv, scan) => conv.held_bytes() + scan.held_bytes(),
        }
    }

    /// Forgets all but the first `len` tokens; all of them where it cannot.
    fn truncate(&mut self, len: usize) {
        match self {
            Self::Kv(cache) => cache.truncate(len),
            Self::Conv(conv) => conv.truncate(len),
            Self::Scan(conv, scan) => {
                conv.truncate(len);
                scan.truncate(len);
            }
        }
    }

    fn fork(&self) -> Result<Self> {
        match self {
            Self::Kv(cache) => cache.fork().map(Self::Kv),
            Self::Conv(conv) => conv.fork().map(Self::Conv),
            Self::Scan(conv, scan) => Ok(Self::Scan(conv.fork()?, scan.fork()?)),
        }
    }

    /// Whether it takes as much memory for any number of tokens.
    fn has_fixed_size(&self) -> bool {
        match self {
            Self::Kv(_) => false,
            Self::Conv(_) | Self::Scan(..) => true,
        }
    }

    /// A copy, where the state has a fixed size.
    fn copy(&self) -> Result<Option<Self>> {
        if self.has_fixed_size() { self.fork().map(Some) } else { Ok(None) }
    }

    /// What it is and how it is kept.
    pub fn kind(&self) -> StateKind {
        match self {
            Self::Kv(cache) => StateKind::Kv(cache.format()),
            Self::Conv(_) => StateKind::Conv,
            Self::Scan(..) => StateKind::Scan,
        }
    }

    /// Values of each token; of all, where their number does not grow.
    pub fn values(&self) -> usize {
        match self {
            Self::Kv(cache) => cache.token_values(),
            Self::Conv(conv) => conv.value_count(),
            Self::Scan(conv, scan) => conv.value_count() + scan.value_count(),
        }
    }

    /// Bytes of so many tokens in [`to_bytes`](Self::to_bytes); `None` if no memory has as many.
    pub fn bytes(&self, tokens: u64) -> Option<u64> {
        match self {
            Self::Kv(cache) => tokens.checked_mul(cache.token_bytes() as u64),
            Self::Conv(_) | Self::Scan(..) => Some((size_of::<u64>() + self.values() * size_of::<f32>()) as u64),
        }
    }

    /// All that it remembers, as it is kept. Keys, then values, `(token, head, head_dim)` each. Or the position that it can be cut back
    /// to, a multiple of 16, then F32: what [`ConvState::values`] and [`ScanState::values`] give.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Kv(cache) => cache.to_bytes(),
            Self::Conv(conv) => Ok(fixed_bytes(conv.start(), &[conv.values()?])),
            Self::Scan(conv, scan) => Ok(fixed_bytes(scan.start(), &[conv.values()?, scan.values()?])),
        }
    }

    /// Whether bytes are those of so many tokens.
    pub fn is_of(&self, bytes: &[u8], tokens: usize) -> bool {
        match self {
            Self::Kv(_) => true,
            Self::Conv(_) | Self::Scan(..) => {
                let start = start_of(bytes) as usize;
                start.is_multiple_of(CHUNK) && start <= tokens && tokens - start <= CHUNK
            }
        }
    }

    /// Fills an empty one with what [`to_bytes`](Self::to_bytes) gave of so many tokens; `dtype` is that of activations.
    pub fn fill(&mut self, bytes: &[u8], tokens: usize, dtype: DType) -> Result<()> {
        match self {
            Self::Kv(cache) => cache.fill(bytes, dtype),
            Self::Conv(conv) => {
                let values = Format::F32.try_widen(&bytes[size_of::<u64>()..])?;
                conv.fill(&values, start_of(bytes) as usize, tokens, dtype)
            }
            Self::Scan(conv, scan) => {
                let values = Format::F32.try_widen(&bytes[size_of::<u64>()..])?;
                let (of_conv, of_scan) = values.split_at(conv.value_count());
                let start = start_of(bytes) as usize;
                conv.fill(of_conv, start, tokens, dtype)?;
                scan.fill(of_scan, start, tokens)
            }
        }
    }
}

/// How many of the first `len` tokens a state of so many keeps that can be cut back to `start`.
fn keeps(held: usize, start: usize, len: usize) -> usize {
    if len >= held {
        held
    } else if len >= start {
        len
    } else {
        0
    }
}

/// A state of fixed size.
fn fixed_bytes(start: usize, values: &[Vec<f32>]) -> Vec<u8> {
    let values = values.iter().flatten().flat_map(|x| x.to_le_bytes());
    (start as u64).to_le_bytes().into_iter().chain(values).collect()
}

/// The position in front of a state of fixed size.
fn start_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(u64::MAX, |start| u64::from_le_bytes(*start))
}

/// What a state is and how it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateKind {
    /// Keys and values in this format.
    Kv(KvFormat),
    Scan,
    Conv,
}

impl StateKind {
    /// What a file calls each.
    const NUMBERS: [(u64, Self); 5] = [
        (1, Self::Kv(KvFormat::F32)),
        (2, Self::Kv(KvFormat::F16)),
        (3, Self::Kv(KvFormat::Q8_0)),
        (4, Self::Scan),
        (5, Self::Conv),
    ];

    /// What it holds, for people.
    pub fn label(self) -> String {
        match self {
            Self::Kv(format) => format!("keys and values in {}", format.name()),
            Self::Scan => "the state of a scan".to_string(),
            Self::Conv => "the state of a convolution".to_string(),
        }
    }

    /// What a file calls it.
    pub fn number(self) -> u64 {
        Self::NUMBERS.iter().find(|(_, kind)| *kind == self).map_or(0, |(number, _)| *number)
    }

    /// The kind that a file calls this.
    pub fn numbered(number: u64) -> Option<Self> {
        Self::NUMBERS.iter().find(|(known, _)| *known == number).map(|(_, kind)| *kind)
    }
}

/// What has a state.
#[derive(Clone, Copy)]
enum MixerConfig<'a> {
    Attention(&'a AttentionConfig),
    ShortConv(&'a ShortConvConfig),
    DeltaNet(&'a DeltaNetConfig),
    Mamba2(&'a Mamba2Config),
}

/// All of a network that have one, in the order of computation.
fn mixers(config: &Config) -> impl Iterator<Item = MixerConfig<'_>> {
    config.operations().filter_map(|operation| match operation {
        OperationConfig::Attention(attention) => attention.has_state().then_some(MixerConfig::Attention(attention)),
        OperationConfig::ShortConv(conv) => Some(MixerConfig::ShortConv(conv)),
        OperationConfig::DeltaNet(net) => Some(MixerConfig::DeltaNet(net)),
        OperationConfig::Mamba2(mamba) => Some(MixerConfig::Mamba2(mamba)),
        OperationConfig::Dense(_) | OperationConfig::Experts(_) | OperationConfig::LayerInput(_) => None,
    })
}

/// The states of one sequence, one for each mixer of the network.
pub struct States {
    all: Vec<LayerState>,
    /// The oldest first.
    snapshots: Vec<Snapshot>,
}

/// States of fixed size as they were.
struct Snapshot {
    len: usize,
    /// Whether a turn begins behind it, which the next turn may rewrite as a whole.
    begins_turn: bool,
    /// `None` = it can be cut back to any length.
    states: Vec<Option<LayerState>>,
}

impl Snapshot {
    /// Makes it one of the first `len` tokens, where it is of more; `false` if it cannot be.
    fn cut_back(&mut self, len: usize) -> bool {
        if self.len <= len {
            return true;
        }
        let states = || self.states.iter().flatten();
        if len == 0 || states().any(|state| state.keeps(len) != len) {
            return false;
        }
        self.states.iter_mut().flatten().for_each(|state| state.truncate(len));
        self.len = len;
        true
    }
}

impl States {
    /// Empty ones.
    pub fn new(config: &Config, kv_format: KvFormat, backend: &Backend) -> Self {
        Self { all: mixers(config).map(|mixer| LayerState::new(mixer, kv_format, backend)).collect(), snapshots: Vec::new() }
    }

    /// The bytes of those of `tokens`, with their snapshots; `activation` is the type of activations.
    pub fn bytes(config: &Config, tokens: usize, kv_format: KvFormat, activation: Format, backend: &Backend) -> u64 {
        let fixed = |bytes: u64| (1 + SNAPSHOTS as u64) * bytes;
        let of = |mixer: MixerConfig<'_>| match mixer {
            MixerConfig::Attention(a) => LayerCache::bytes((a.kv_heads, a.head_dim), tokens, kv_format, activation, backend),
            MixerConfig::ShortConv(conv) => fixed(ConvState::bytes(conv.channels, conv.taps)),
            MixerConfig::DeltaNet(net) => fixed(ConvState::bytes(net.channels(), net.taps) + ScanState::bytes(net.shape)),
            MixerConfig::Mamba2(mamba) => fixed(ConvState::bytes(mamba.channels(), mamba.taps) + ScanState::bytes(mamba.shape)),
        };
        mixers(config).map(of).sum()
    }

    /// The bytes that they take now, with their snapshots. What a snapshot shares on a GPU is counted in both.
    pub fn held_bytes(&self) -> u64 {
        let snapshots = self.snapshots.iter().flat_map(|snapshot| snapshot.states.iter().flatten());
        self.all.iter().chain(snapshots).map(LayerState::held_bytes).sum()
    }

    /// Tokens held: what every state holds.
    pub fn len(&self) -> usize {
        self.all.iter().map(LayerState::len).min().unwrap_or(0)
    }

    /// Forgets all but the first `len` tokens, also of states that a failed pass left ahead of the others. Returns how many could
    /// be kept: what was computed from later tokens alone cannot always be taken back, and then the nearest snapshot is gone back to.
    pub fn truncate(&mut self, len: usize) -> usize {
        let own = |at: usize| &self.all[at];
        let mut kept = most_kept(len, (0..self.all.len()).map(own));
        let mut restored = None;
        for (number, snapshot) in self.snapshots.iter().enumerate() {
            let state = |at: usize| snapshot.states[at].as_ref().unwrap_or(own(at));
            let by_this = most_kept(len, (0..self.all.len()).map(state));
            if by_this > kept {
                (kept, restored) = (by_this, Some(number));
            }
        }
        if let Some(number) = restored {
            for (state, old) in self.all.iter_mut().zip(&self.snapshots[number].states) {
                match old.as_ref().map(LayerState::fork).transpose() {
                    Ok(Some(copy)) => *state = copy,
                    Ok(None) => {}
                    // No memory for it: all is computed anew.
                    Err(_) => kept = 0,
                }
            }
        }
        self.all.iter_mut().for_each(|state| state.truncate(kept));
        self.snapshots.retain_mut(|snapshot| snapshot.cut_back(kept));
        self.snapshots.dedup_by(|later, earlier| {
            let is_same = later.len == earlier.len;
            earlier.begins_turn |= is_same && later.begins_turn;
            is_same
        });
        kept
    }

    /// Remembers the states of fixed size as they are, to go back to, in place of those that are [needed least](Self::needed_least).
    /// `begins_turn`: all behind it is likely to be rewritten together. Without memory for them nothing is remembered: going back is then
    /// computing anew.
    pub fn take_snapshot(&mut self, begins_turn: bool) {
        let len = self.len();
        if let Some(known) = self.snapshots.iter_mut().find(|snapshot| snapshot.len == len) {
            known.begins_turn |= begins_turn;
            return;
        }
        if len == 0 || !self.all.iter().any(LayerState::has_fixed_size) {
            return;
        }
        // Before the copy is made: there are never more than are counted.
        if self.snapshots.len() >= SNAPSHOTS {
            self.snapshots.remove(self.needed_least(len, begins_turn));
        }
        let Ok(states) = self.all.iter().map(LayerState::copy).collect::<Result<Vec<_>>>() else { return };
        self.snapshots.push(Snapshot { len, begins_turn, states });
    }

    /// Which snapshot goes where one of `len` tokens comes: none of where the last two turns begin; of the others that without which
    /// going back evaluates the fewest tokens again, for each token that is taken back. So what is kept lies the closer together the
    /// nearer the end, and going far back for a few tokens is rare, also where nobody says what a turn is.
    fn needed_least(&self, len: usize, begins_turn: bool) -> usize {
        let mut turns = usize::from(begins_turn);
        let (mut least, mut at) = (f64::INFINITY, 0);
        for (number, snapshot) in self.snapshots.iter().enumerate().rev() {
            turns += usize::from(snapshot.begins_turn);
            if snapshot.begins_turn && turns <= TURNS {
                continue;
            }
            let before = number.checked_sub(1).map_or(0, |before| self.snapshots[before].len);
            let cost = (snapshot.len - before) as f64 / len.saturating_sub(snapshot.len).max(1) as f64;
            if cost < least {
                (least, at) = (cost, number);
            }
        }
        at
    }

    /// Of each snapshot, the oldest first, the tokens that it is of, whether a turn begins there, and its states.
    pub fn snapshots(&self) -> impl Iterator<Item = (usize, bool, impl Iterator<Item = &LayerState>)> {
        self.snapshots.iter().map(|snapshot| (snapshot.len, snapshot.begins_turn, snapshot.states.iter().flatten()))
    }

    /// The states that a snapshot has.
    pub fn of_snapshot(&self) -> impl Iterator<Item = &LayerState> {
        self.all.iter().filter(|state| state.has_fixed_size())
    }

    /// Adds a snapshot of so many tokens, each of whose states, empty, is handed to `fill`; `begins_turn` as it was taken.
    ///
    /// # Errors
    /// `ErrorKind::OutOfMemory`, a failed device operation, and those of `fill`.
    pub fn add_snapshot(
        &mut self,
        len: usize,
        begins_turn: bool,
        mut fill: impl FnMut(&mut LayerState) -> crate::error::Result<()>,
    ) -> crate::error::Result<()> {
        let mut states = self.all.iter().map(LayerState::copy).collect::<Result<Vec<_>>>()?;
        for state in states.iter_mut().flatten() {
            state.truncate(0);
            fill(state)?;
        }
        self.snapshots.push(Snapshot { len, begins_turn, states });
        Ok(())
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self> {
        let snapshot = |snapshot: &Snapshot| {
            let states = snapshot.states.iter().map(|state| state.as_ref().map(LayerState::fork).transpose());
            Ok(Snapshot { len: snapshot.len, begins_turn: snapshot.begins_turn, states: states.collect::<Result<_>>()? })
        };
        let all = self.all.iter().map(LayerState::fork).collect::<Result<_>>()?;
        Ok(Self { all, snapshots: self.snapshots.iter().map(snapshot).collect::<Result<_>>()? })
    }

    /// That of one mixer.
    pub(super) fn at(&mut self, number: usize) -> &mut LayerState {
        &mut self.all[number]
    }

    pub fn iter(&self) -> impl Iterator<Item = &LayerState> {
        self.all.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut LayerState> {
        self.all.iter_mut()
    }
}

/// How many of the first `len` tokens all states can keep.
fn most_kept<'a>(mut len: usize, states: impl Iterator<Item = &'a LayerState> + Clone) -> usize {
    loop {
        // What one cannot keep, another may not keep either, or not as it is.
        let kept = states.clone().map(|state| state.keeps(len)).min().unwrap_or(0);
        if kept == len {
            return kept;
        }
        len = kept;
    }
}
