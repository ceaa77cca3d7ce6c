//! Attention over a cache and within each of several sequences; the cache of one layer.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::cpu::attention as cpu;
use super::tensors::attention as tensors;
use super::{Backend, Context, Format, Mask, On, Vector};
use crate::error::OutOfMemory;
use crate::kernels::{KvFormat, KvHeads};

pub use super::tensors::attention::Masks;

/// Keys and values of one layer.
pub type LayerCache = On<KvHeads, tensors::Cache>;

impl LayerCache {
    /// An empty cache in a format that the backend [keeps](Backend::keeps); F32 stands for the type of activations.
    pub fn new(kv_heads: usize, head_dim: usize, format: KvFormat, backend: &Backend) -> Self {
        match backend {
            Backend::Cpu => Self::Cpu(KvHeads::new(kv_heads, head_dim, format)),
            Backend::Tensors(device) => Self::Tensors(tensors::Cache::new(kv_heads, head_dim, format, device)),
        }
    }

    /// What keys and values are kept in.
    pub fn format(&self) -> KvFormat {
        match self {
            Self::Cpu(heads) => heads.format(),
            Self::Tensors(cache) => cache.format(),
        }
    }

    /// Key-value heads and the values of each.
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Cpu(heads) => heads.shape(),
            Self::Tensors(cache) => cache.shape(),
        }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        match self {
            Self::Cpu(heads) => heads.len(),
            Self::Tensors(cache) => cache.len(),
        }
    }

    /// Bytes of a cache of `positions`; `activation` is the type of activations.
    pub fn bytes(
        (kv_heads, head_dim): (usize, usize),
        positions: usize,
        format: KvFormat,
        activation: Format,
        backend: &Backend,
    ) -> u64 {
        match backend {
            Backend::Cpu => KvHeads::bytes(kv_heads, head_dim, positions, format),
            Backend::Tensors(_) => tensors::Cache::bytes(kv_heads, head_dim, positions, format, activation),
        }
    }

    /// Values of a position: those of its keys and those of its values.
    pub fn token_values(&self) -> usize {
        let (kv_heads, head_dim) = self.shape();
        2 * kv_heads * head_dim
    }

    /// Bytes of a position in [`to_bytes`](Self::to_bytes).
    pub fn token_bytes(&self) -> usize {
        let (kv_heads, head_dim) = self.shape();
        2 * kv_heads * self.format().row_bytes(head_dim)
    }

    /// The bytes that it takes now, with room for more.
    pub fn held_bytes(&self) -> u64 {
        match self {
            Self::Cpu(memory) => memory.held_bytes(),
            Self::Tensors(memory) => memory.held_bytes(),
        }
    }

    /// Forgets all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::Cpu(heads) => heads.truncate(len),
            Self::Tensors(cache) => cache.truncate(len),
        }
    }

    /// A copy that shares nothing.
    pub fn fork(&self) -> Result<Self> {
        Ok(match self {
            Self::Cpu(heads) => Self::Cpu(heads.fork().map_err(no_memory)?),
            Self::Tensors(cache) => Self::Tensors(cache.fork()?),
        })
    }

    /// All keys, then all values, little-endian: `(position, head, D)` each, in the format that they are kept in. A head in Q8_0 is
    /// blocks, each its scale and then its values.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Cpu(heads) => heads.to_bytes().map_err(no_memory),
            Self::Tensors(cache) => cache.to_bytes(),
        }
    }

    /// Fills an empty cache with what [`to_bytes`](Self::to_bytes) gave; `dtype` is that of activations.
    pub fn fill(&mut self, bytes: &[u8], dtype: DType) -> Result<()> {
        match self {
            Self::Cpu(heads) => heads.append_bytes(bytes).map_err(no_memory),
            Self::Tensors(cache) => cache.fill(bytes, dtype),
        }
    }
}

pub(super) fn no_memory(error: std::collections::TryReserveError) -> candle_core::Error {
    OutOfMemory { what: format!("no room for keys and values: {error}") }.into()
}

/// Appends keys and values to the cache, where there are any; the queries attend to what they may see of it. Without any they are
/// queries of its last positions.
///
/// # Shape
/// `q`: `(T, H · D)`, `kv`: `(T, K · D)` each; `sinks`: `(H)`, a score each that takes its share of the softmax and brings no value; returns
/// `(T, H · D)`. Scores and softmax are F32.
pub fn attention(
    q: &Tensor,
    kv: Option<[&Tensor; 2]>,
    heads: usize,
    mask: Mask,
    sinks: Option<&Vector>,
    cache: &mut LayerCache,
    masks: &mut Masks,
) -> Result<Tensor> {
    let (kv_heads, head_dim) = cache.shape();
    check(q, kv, heads, kv_heads, head_dim)?;
    if kv.is_none() && q.dims2()?.0 > cache.len() {
        bail!("attention: expected queries of {} positions at most, found {}", cache.len(), q.dims2()?.0)
    }
    match cache {
        LayerCache::Cpu(cache) => cpu::over_cache(q, kv, heads, mask, by_kernels(sinks)?, cache),
        LayerCache::Tensors(cache) => tensors::over_cache(q, kv, heads, (mask, by_tensors(sinks)?), cache, masks),
    }
}

fn by_kernels(sinks: Option<&Vector>) -> Result<Option<&[f32]>> {
    match sinks {
        None => Ok(None),
        Some(Vector::Cpu(sinks)) => Ok(Some(sinks)),
        Some(Vector::Tensors(_)) => bail!("attention: sinks of another backend"),
    }
}

fn by_tensors(sinks: Option<&Vector>) -> Result<Option<&Tensor>> {
    match sinks {
        None => Ok(None),
        Some(Vector::Tensors(sinks)) => Ok(Some(sinks)),
        Some(Vector::Cpu(_)) => bail!("attention: sinks of another backend"),
    }
}

fn check(q: &Tensor, kv: Option<[&Tensor; 2]>, heads: usize, kv_heads: usize, head_dim: usize) -> Result<()> {
    let (rows, _) = q.dims2()?;
    let is_of = |x: &Tensor, heads: usize| x.dims() == [rows, heads * head_dim];
    if !is_of(q, heads) || !kv.iter().flatten().all(|x| is_of(x, kv_heads)) || !heads.is_multiple_of(kv_heads) {
        let found: Vec<_> = [q].into_iter().chain(kv.into_iter().flatten()).map(Tensor::dims).collect();
        bail!("attention: expected {heads} heads over {kv_heads}, {head_dim} values each, found {found:?}")
    }
    Ok(())
}

/// Sequences whose rows lie one after another, and what attention within them needs in every layer.
pub type Sequences = On<cpu::Sequences, tensors::Sequences>;

impl Sequences {
    /// `bias`: `(H, 2 · longest - 1)`, added to the scores by the key's position minus the query's, which is 0 in the
    /// middle.
    pub fn new(lengths: Vec<usize>, bias: Option<Vec<f32>>, backend: &Backend) -> Result<Self> {
        Ok(match backend {
            Backend::Cpu => Self::Cpu(cpu::Sequences { lengths: lengths.into(), bias: bias.map(Arc::from) }),
            Backend::Tensors(device) => Self::Tensors(tensors::Sequences::new(lengths, bias, device)?),
        })
    }

    fn has_bias(&self) -> bool {
        match self {
            Self::Cpu(sequences) => sequences.bias.is_some(),
            Self::Tensors(sequences) => sequences.has_bias(),
        }
    }
}

/// The queries of each sequence attend to what they may see of it.
///
/// # Shape
/// `q`: `(T, H · D)`, `k` and `v`: `(T, K · D)`, with the rows of all sequences one after another; returns `(T, H · D)`. Scores and softmax
/// are F32; `sinks` as [`attention`] has them, which get no gradient.
///
/// # Errors
/// If a gradient is asked for and the scores have a bias.
pub fn attention_within(
    cx: Context<'_>,
    [q, k, v]: [&Tensor; 3],
    heads: usize,
    kv_heads: usize,
    mask: Mask,
    sinks: Option<&Vector>,
    sequences: &mut Sequences,
) -> Result<Tensor> {
    check(q, Some([k, v]), heads, kv_heads, q.dims2()?.1 / heads)?;
    let tracked = [q, k, v].iter().any(|x| cx.tracks(x));
    if tracked && sequences.has_bias() {
        bail!("attention with a bias by distance has no backward pass")
    }
    let y = match sequences {
        Sequences::Cpu(sequences) => cpu::within([q, k, v], (heads, kv_heads), mask, by_kernels(sinks)?, sequences)?,
        Sequences::Tensors(sequences) => tensors::within([q, k, v], (heads, kv_heads), (mask, by_tensors(sinks)?), sequences)?,
    };
    if tracked {
        let (inputs, mut sequences, sinks) = ([q, k, v].map(Tensor::clone), sequences.clone(), sinks.cloned());
        cx.record([q, k, v], &y, move |dy, _| {
            let (inputs, heads, sinks) = (inputs.each_ref(), (heads, kv_heads), sinks.as_ref());
            match &mut sequences {
                Sequences::Cpu(sequences) => cpu::within_backward(inputs, &dy, heads, (mask, by_kernels(sinks)?), sequences),
                Sequences::Tensors(sequences) => {
                    tensors::within_backward(inputs, &dy, heads, (mask, by_tensors(sinks)?), sequences)
                }
            }
        });
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::to_f32;

    #[test]
    fn an_empty_cache_is_read_and_written() {
        for backend in [Backend::Cpu, Backend::TENSORS_ON_CPU] {
            for format in KvFormat::ALL.into_iter().filter(|format| backend.keeps(*format)) {
                let mut cache = LayerCache::new(2, 8, format, &backend);
                let bytes = cache.to_bytes().unwrap();
                cache.fill(&bytes, DType::F32).unwrap();
                assert_eq!((bytes.len(), cache.len(), cache.format()), (0, 0, format), "{backend:?}");
            }
        }
    }

    #[test]
    fn backends_keep_the_same_bytes_of_a_format() {
        let values = |seed: u32| (0..5 * 16).map(|i| ((i * 37 + seed) % 101) as f32 * 0.013 - 0.6).collect::<Vec<_>>();
        let [q, k, v] = [1, 2, 3].map(|seed| Tensor::from_vec(values(seed), (5, 16), &Device::Cpu).unwrap());
        let mask = Mask { causal: true, window: None, scale: 0.3, softcap: None };
        for format in [KvFormat::F32, KvFormat::F16] {
            let bytes = [Backend::Cpu, Backend::TENSORS_ON_CPU].map(|backend| {
                let mut cache = LayerCache::new(2, 8, format, &backend);
                attention(&q, Some([&k, &v]), 2, mask, None, &mut cache, &mut Masks::default()).unwrap();
                assert_eq!(cache.token_bytes() * 5, cache.to_bytes().unwrap().len());
                cache.to_bytes().unwrap()
            });
            assert_eq!(bytes[0], bytes[1], "{format:?}");
            for backend in [Backend::Cpu, Backend::TENSORS_ON_CPU] {
                let mut cache = LayerCache::new(2, 8, format, &backend);
                cache.fill(&bytes[0], DType::F32).unwrap();
                assert_eq!((cache.to_bytes().unwrap(), cache.len()), (bytes[0].clone(), 5), "{format:?} {backend:?}");
            }
        }
    }

    #[test]
    fn what_f16_cannot_hold_is_no_number_with_each_backend() {
        let mut values = vec![0.5f32; 32];
        (values[3], values[17], values[20]) = (65504.0, 65520.0, -1e6);
        let x = Tensor::from_vec(values, (2, 16), &Device::Cpu).unwrap();
        let mask = Mask { causal: true, window: None, scale: 1.0, softcap: None };
        for backend in [Backend::Cpu, Backend::TENSORS_ON_CPU] {
            let mut cache = LayerCache::new(2, 8, KvFormat::F16, &backend);
            attention(&x, Some([&x, &x]), 2, mask, None, &mut cache, &mut Masks::default()).unwrap();
            let kept = Format::F16.widen(&cache.to_bytes().unwrap());
            let lost: Vec<usize> = (0..kept.len()).filter(|&i| kept[i].is_nan()).collect();
            assert_eq!((lost, kept[3], kept[16]), (vec![17, 20, 49, 52], 65504.0, 0.5), "{backend:?}");
        }
    }

    #[test]
    fn queries_alone_attend_to_what_is_there() {
        let values = |seed: u32, width: usize| {
            let values = (0..9 * width).map(|i| ((i as u32 * 37 + seed) % 101) as f32 * 0.013 - 0.6).collect();
            Tensor::from_vec(values, (9, width), &Device::Cpu).unwrap()
        };
        let ([q, other], [k, v]) = ([1, 4].map(|seed| values(seed, 32)), [2, 3].map(|seed| values(seed, 16)));
        for backend in [Backend::Cpu, Backend::TENSORS_ON_CPU] {
            for window in [None, Some(3)] {
                let mask = Mask { causal: true, window, scale: 0.3, softcap: None };
                let whole = || {
                    let mut cache = LayerCache::new(2, 8, KvFormat::F32, &backend);
                    attention(&q, Some([&k, &v]), 4, mask, None, &mut cache, &mut Masks::default()).unwrap();
                    cache
                };
                let again =
                    |q: &Tensor, cache: &mut LayerCache| attention(q, None, 4, mask, None, cache, &mut Masks::default()).unwrap();
                let want = {
                    let mut cache = LayerCache::new(2, 8, KvFormat::F32, &backend);
                    attention(&other, Some([&k, &v]), 4, mask, None, &mut cache, &mut Masks::default()).unwrap()
                };
                let (mut cache, want) = (whole(), to_f32(&want).unwrap());
                assert_eq!(to_f32(&again(&other, &mut cache)).unwrap(), want, "{backend:?}");
                let last = to_f32(&again(&other.narrow(0, 7, 2).unwrap(), &mut cache)).unwrap();
                assert!(last.iter().zip(&want[7 * 32..]).all(|(x, y)| (x - y).abs() < 1e-6), "{backend:?}");
                assert_eq!(cache.len(), 9);
                cache.truncate(3);
                assert!(attention(&other, None, 4, mask, None, &mut cache, &mut Masks::default()).is_err());
            }
        }
    }

    #[test]
    fn tensors_keep_no_blocks() {
        let backend = Backend::TENSORS_ON_CPU;
        assert!(!backend.keeps(KvFormat::Q8_0) && Backend::Cpu.keeps(KvFormat::Q8_0));
        let mut cache = LayerCache::new(2, 8, KvFormat::Q8_0, &backend);
        let x = Tensor::zeros((1, 16), DType::F32, &Device::Cpu).unwrap();
        let mask = Mask { causal: true, window: None, scale: 1.0, softcap: None };
        let error = attention(&x, Some([&x, &x]), 2, mask, None, &mut cache, &mut Masks::default()).unwrap_err();
        assert!(error.to_string().contains("q8_0"), "{error}");
    }
}
