//! Attention: queries, keys and values of each token, what a token sees, and the projection of what it found.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::config::{Bias, Name, Slot};
use super::layer::Call;
use super::loader::Loader;
use super::mix::Part;
use super::{Linear, Pairs, Rope, RowAdapters};
use crate::error;
use crate::ops::{self, Activation, Angles, Context, Mask, Norm};

/// Which tokens one sees within its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// Itself and those before.
    Before,
    All,
}

/// How queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head, all with the same weights.
    Head,
    /// The whole projection at once.
    Width,
    /// Each head with its own weights, stored as one tensor `(heads, head_dim)`.
    EachHead,
    /// The same, stored as one tensor a head: `….norms.N.weight`.
    EachHeadApart,
}

/// Where queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNormPlace {
    BeforeRope,
    AfterRope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkNormConfig {
    pub kind: QkNorm,
    pub place: QkNormPlace,
    pub q: Name,
    pub k: Name,
}

/// One attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub q: Slot,
    pub k: Slot,
    pub v: Slot,
    pub o: Slot,
    /// What is found is multiplied by the sigmoid of this projection: a row for each value, or for each head.
    pub gate: Option<Slot>,
    pub qkv_bias: Bias,
    pub o_bias: Bias,
    pub visible: Visible,
    /// Keys nearer than this are seen, the query's own being at 0; `None` = all.
    pub window: Option<usize>,
    /// `None` = no position embedding.
    pub rope: Option<Arc<Rope>>,
    pub qk_norm: Option<QkNormConfig>,
    /// Factor of the scores.
    pub scale: f32,
    pub softcap: Option<f32>,
    /// Bound of the values of q, k and v.
    pub clip: Option<f32>,
}

impl AttentionConfig {
    pub fn is_causal(&self) -> bool {
        self.visible == Visible::Before
    }

    /// Values of a row's queries, keys and values.
    fn qkv_values(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Values of a row's gates.
    fn gate_values(&self) -> usize {
        self.gate.as_ref().map_or(0, Slot::len)
    }

    /// See [`Config::forward_values`](super::Config::forward_values).
    pub fn forward_values(&self) -> usize {
        self.qkv_values() + self.gate_values() + (2 + usize::from(self.gate.is_some())) * self.heads * self.head_dim
    }

    /// See [`Config::backward_values`](super::Config::backward_values).
    pub fn backward_values(&self) -> usize {
        self.qkv_values() + self.gate_values() + (1 + usize::from(self.gate.is_some())) * self.heads * self.head_dim
    }
}

/// A loaded attention.
#[derive(Clone)]
pub struct Attention {
    config: AttentionConfig,
    /// The number of its state, and of its rope among the network's.
    state: usize,
    rope: Option<usize>,
    /// With the gates behind them, where there are any.
    qkv: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    o: Linear,
}

impl Attention {
    pub(super) fn load(
        config: &AttentionConfig,
        ropes: &[Arc<Rope>],
        hidden_size: usize,
        loader: &mut Loader<'_, '_>,
    ) -> error::Result<Self> {
        let AttentionConfig { heads, kv_heads, qkv_bias, o_bias, .. } = *config;
        let rope = config.rope.as_ref().and_then(|rope| ropes.iter().position(|known| Arc::ptr_eq(known, rope) || known == rope));
        let one_tensor = config.q.name == config.v.name;
        let (other, value) = if one_tensor { (Part::Qkv, Part::Qkv) } else { (Part::Other, Part::Value) };
        let mut slots = vec![(&config.q, other), (&config.k, other), (&config.v, value)];
        slots.extend(config.gate.as_ref().map(|gate| (gate, other)));
        let qkv = loader.linear(&slots, hidden_size, qkv_bias)?;
        let mut qk_norm = |name: fn(&QkNormConfig) -> Name, heads| {
            config.qk_norm.as_ref().map(|norm| load_qk_norm(norm.kind, name(norm), heads, config.head_dim, loader)).transpose()
        };
        let (q_norm, k_norm) = (qk_norm(|norm| norm.q, heads)?, qk_norm(|norm| norm.k, kv_heads)?);
        let o = loader.linear(&[(&config.o, Part::Other)], heads * config.head_dim, o_bias)?;
        Ok(Self { config: config.clone(), state: loader.next_state(), rope, qkv, q_norm, k_norm, o })
    }

    pub(super) fn linears(&self) -> [&Linear; 2] {
        [&self.qkv, &self.o]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.qkv, &mut self.o]
    }

    /// What each token finds among those that it sees.
    ///
    /// # Shape
    /// `x`: `(T, C)`; returns `(T, H · D)`.
    pub(super) fn mix(&self, cx: Context<'_>, x: &Tensor, call: &mut Call<'_>) -> Result<Tensor> {
        let AttentionConfig { heads, kv_heads, window, scale, softcap, .. } = self.config;
        let ([q, k, v], gate) = self.queries_keys_values(cx, x, call)?;
        let mask = Mask { causal: self.config.is_causal(), window, scale, softcap };
        let found = call.attend(cx, [&q, &k, &v], (heads, kv_heads), mask, self.state)?;
        gate.map_or(Ok(found.clone()), |gate| ops::gate(cx, &found, &gate, Some(Activation::Sigmoid)))
    }

    /// # Shape
    /// `x`: `(T, C)`; returns `(T, H · D)`, `(T, K · D)`, `(T, K · D)`, and gates where there are any.
    fn queries_keys_values(&self, cx: Context<'_>, x: &Tensor, call: &Call<'_>) -> Result<([Tensor; 3], Option<Tensor>)> {
        let c = &self.config;
        let mut qkv = self.qkv.forward(cx, x, &call.adapters)?;
        if let Some(bound) = c.clip {
            qkv = ops::clip(cx, &qkv, bound)?;
        }
        let kv = c.kv_heads * c.head_dim;
        let [q, k, v, gate] = ops::split(cx, &qkv, [c.heads * c.head_dim, kv, kv, c.gate_values()])?;
        let angles = self.rope.map(|number| &call.angles[number]);
        let rotate = |x: Tensor, angles: Option<&Angles>| match (angles, &c.rope) {
            (Some(angles), Some(rope)) => ops::rope(cx, &x, c.head_dim, rope.pairs == Pairs::Neighbours, angles),
            _ => Ok(x),
        };
        let place = |x: Tensor, norm: &Option<Norm>, angles| match c.qk_norm.map(|norm| norm.place) {
            Some(QkNormPlace::AfterRope) => ops::optional_norm(cx, rotate(x, angles)?, norm.as_ref()),
            _ => rotate(ops::optional_norm(cx, x, norm.as_ref())?, angles),
        };
        let (of_q, of_k) = (angles.map(|angles| &angles.queries), angles.map(|angles| &angles.keys));
        Ok(([place(q, &self.q_norm, of_q)?, place(k, &self.k_norm, of_k)?, v], c.gate.is_some().then_some(gate)))
    }

    /// The projection of what was found, each row for itself.
    ///
    /// # Shape
    /// `(T, H · D)` to `(T, C)`.
    pub(super) fn project(&self, cx: Context<'_>, mixed: &Tensor, adapters: &RowAdapters<'_>) -> Result<Tensor> {
        self.o.forward(cx, mixed, adapters)
    }
}

fn load_qk_norm(kind: QkNorm, name: Name, heads: usize, head_dim: usize, loader: &mut Loader<'_, '_>) -> error::Result<Norm> {
    let whole = |values| vec![(name.to_string(), values)];
    let (width, parts) = match kind {
        QkNorm::Head => (head_dim, whole(head_dim)),
        QkNorm::Width => (heads * head_dim, whole(heads * head_dim)),
        QkNorm::EachHead => (head_dim, whole(heads * head_dim)),
        QkNorm::EachHeadApart => (head_dim, (0..heads).map(|h| (format!("{name}.norms.{h}"), head_dim)).collect()),
    };
    loader.norm_of(&parts, width)
}
