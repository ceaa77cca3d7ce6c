//! Attention: queries, keys and values of each token, what a token sees, and the projection of what it found.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::config::{Bias, Name, Slot};
use super::layer::Call;
use super::loader::Loader;
use super::mix::Part;
use super::{Linear, Pairs, Rope, RowAdapters};
use crate::error;
use crate::ops::{
    self, Activation, Angles, AttentionPart, Context, GatePart, KeysPart, Mask, Norm, RopePart, Unsupported, Vector,
};

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

/// Where an attention has keys and values from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeysAndValues {
    /// Projections of its input.
    Own { k: Slot, v: Slot },
    /// One projection: values are what it gives, before keys are normalised and rotated.
    Same(Slot),
    /// The mixer of this number, an attention with heads of the same sizes that runs before: it has no state of its own.
    Of(usize),
}

/// One attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub q: Slot,
    pub kv: KeysAndValues,
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
    /// Whether the values of each head are normalised, without a weight.
    pub v_norm: bool,
    /// A score for each head that takes its share of the softmax and brings no value: a full name.
    pub sinks: Option<Name>,
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

    /// Whether it keeps keys and values of its own.
    pub fn has_state(&self) -> bool {
        !matches!(self.kv, KeysAndValues::Of(_))
    }

    /// Values of a row's queries, keys and values.
    fn qkv_values(&self) -> usize {
        self.heads * self.head_dim + self.projected_values().iter().sum::<usize>()
    }

    /// Values of a row's keys, and of its values, as far as they are projections of their own.
    fn projected_values(&self) -> [usize; 2] {
        let values = self.kv_heads * self.head_dim;
        match self.kv {
            KeysAndValues::Own { .. } => [values; 2],
            KeysAndValues::Same(_) => [values, 0],
            KeysAndValues::Of(_) => [0; 2],
        }
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
    v_norm: Option<Norm>,
    sinks: Option<Vector>,
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
        let one_tensor = matches!(&config.kv, KeysAndValues::Own { v, .. } if v.name == config.q.name);
        let (other, value) = if one_tensor { (Part::Qkv, Part::Qkv) } else { (Part::Other, Part::Value) };
        let mut slots = vec![(&config.q, other)];
        match &config.kv {
            KeysAndValues::Own { k, v } => slots.extend([(k, other), (v, value)]),
            KeysAndValues::Same(k) => slots.push((k, value)),
            KeysAndValues::Of(_) => {}
        }
        slots.extend(config.gate.as_ref().map(|gate| (gate, other)));
        let qkv = loader.linear(&slots, hidden_size, qkv_bias)?;
        let mut qk_norm = |name: fn(&QkNormConfig) -> Name, heads| {
            config.qk_norm.as_ref().map(|norm| load_qk_norm(norm.kind, name(norm), heads, config.head_dim, loader)).transpose()
        };
        let q_norm = qk_norm(|norm| norm.q, heads)?;
        let k_norm = if config.has_state() { qk_norm(|norm| norm.k, kv_heads)? } else { None };
        let v_norm = config.v_norm.then(|| loader.bare_norm(config.head_dim));
        let sinks = match config.sinks {
            Some(name) => {
                let name = loader.at(name);
                Some(loader.weights.vector(&name, heads, 0.0)?)
            }
            None => None,
        };
        let o = loader.linear(&[(&config.o, Part::Other)], heads * config.head_dim, o_bias)?;
        let state = match config.kv {
            KeysAndValues::Of(number) => number,
            KeysAndValues::Own { .. } | KeysAndValues::Same(_) => loader.next_state(),
        };
        Ok(Self { config: config.clone(), state, rope, qkv, q_norm, k_norm, v_norm, sinks, o })
    }

    pub(super) fn linears(&self) -> [&Linear; 2] {
        [&self.qkv, &self.o]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 2] {
        [&mut self.qkv, &mut self.o]
    }

    /// What it is to a GPU's kernels.
    pub(super) fn part(&self) -> std::result::Result<AttentionPart<'_>, Unsupported> {
        let c = &self.config;
        // Every field by its name: what is added to attention is decided on here.
        let AttentionConfig {
            heads,
            kv_heads,
            head_dim,
            kv,
            gate,
            window,
            qk_norm,
            scale,
            softcap,
            clip,
            v_norm: _,
            visible: _,
            rope: _,
            sinks: _,
            q: _,
            o: _,
            qkv_bias: _,
            o_bias: _,
        } = c;
        if clip.is_some() {
            return Unsupported::new("a bound of queries, keys and values");
        }
        let keys = match kv {
            KeysAndValues::Own { .. } => KeysPart::Own,
            KeysAndValues::Same(_) => KeysPart::Same,
            KeysAndValues::Of(_) => KeysPart::Shared,
        };
        let gate = match gate.as_ref().map(Slot::len) {
            None => GatePart::None,
            Some(gates) if gates == heads * head_dim => GatePart::Values,
            Some(gates) if gates == *heads => GatePart::Heads,
            Some(_) => return Unsupported::new("a gate of this size"),
        };
        let norm_after = qk_norm.is_some_and(|norm| norm.place == QkNormPlace::AfterRope);
        // A factor of the angles would be lost in a statistic that is taken before the rotation.
        if norm_after && c.rope.as_ref().is_some_and(|rope| rope.has_factor()) {
            return Unsupported::new("a norm behind a rotation with a factor");
        }
        let adjacent = c.rope.as_ref().is_some_and(|rope| rope.pairs == Pairs::Neighbours);
        Ok(AttentionPart {
            qkv: self.qkv.part(),
            o: self.o.part(),
            keys,
            gate,
            heads: *heads,
            kv_heads: *kv_heads,
            head_dim: *head_dim,
            q_norm: self.q_norm.as_ref(),
            k_norm: self.k_norm.as_ref(),
            v_norm: self.v_norm.as_ref(),
            norm_after,
            rope: self.rope.map(|number| RopePart { number, adjacent }),
            mask: Mask { causal: c.is_causal(), window: *window, scale: *scale, softcap: *softcap },
            sinks: self.sinks.as_ref(),
            state: self.state,
        })
    }

    /// What each token finds among those that it sees.
    ///
    /// # Shape
    /// `x`: `(T, C)`; returns `(T, H · D)`.
    pub(super) fn mix(&self, cx: Context<'_>, x: &Tensor, call: &mut Call<'_>) -> Result<Tensor> {
        let AttentionConfig { heads, kv_heads, window, scale, softcap, .. } = self.config;
        let Projected { q, kv, gate } = self.queries_keys_values(cx, x, call)?;
        let mask = Mask { causal: self.config.is_causal(), window, scale, softcap };
        let found = call.attend(cx, &q, kv.as_ref(), (heads, kv_heads), (mask, self.sinks.as_ref()), self.state)?;
        gate.map_or(Ok(found.clone()), |gate| ops::gate(cx, &found, &gate, Some(Activation::Sigmoid)))
    }

    fn queries_keys_values(&self, cx: Context<'_>, x: &Tensor, call: &Call<'_>) -> Result<Projected> {
        let c = &self.config;
        let mut qkv = self.qkv.forward(cx, x, &call.adapters)?;
        // A norm of all of them goes before the bound.
        let is_wide = c.qk_norm.is_some_and(|norm| norm.kind == QkNorm::Width);
        if let Some(bound) = c.clip.filter(|_| !is_wide) {
            qkv = ops::clip(cx, &qkv, bound)?;
        }
        let clip = |x: Tensor| c.clip.filter(|_| is_wide).map_or(Ok(x.clone()), |bound| ops::clip(cx, &x, bound));
        let [keys, values] = c.projected_values();
        let [q, k, v, gate] = ops::split(cx, &qkv, [c.heads * c.head_dim, keys, values, c.gate_values()])?;
        let angles = self.rope.map(|number| &call.angles[number]);
        let rotate = |x: Tensor, angles: Option<&Angles>| match (angles, &c.rope) {
            (Some(angles), Some(rope)) => ops::rope(cx, &x, c.head_dim, rope.pairs == Pairs::Neighbours, angles),
            _ => Ok(x),
        };
        let place = |x: Tensor, norm: &Option<Norm>, angles| match c.qk_norm.map(|norm| norm.place) {
            Some(QkNormPlace::AfterRope) => ops::optional_norm(cx, rotate(x, angles)?, norm.as_ref()),
            _ => rotate(clip(ops::optional_norm(cx, x, norm.as_ref())?)?, angles),
        };
        let v = match c.kv {
            KeysAndValues::Own { .. } => Some(v),
            KeysAndValues::Same(_) => Some(k.clone()),
            KeysAndValues::Of(_) => None,
        };
        let q = place(q, &self.q_norm, angles.map(|angles| &angles.queries))?;
        let kv = match v {
            Some(v) => {
                let k = place(k, &self.k_norm, angles.map(|angles| &angles.keys))?;
                Some([k, ops::optional_norm(cx, clip(v)?, self.v_norm.as_ref())?])
            }
            None => None,
        };
        Ok(Projected { q, kv, gate: c.gate.is_some().then_some(gate) })
    }

    /// The projection of what was found, each row for itself.
    ///
    /// # Shape
    /// `(T, H · D)` to `(T, C)`.
    pub(super) fn project(&self, cx: Context<'_>, mixed: &Tensor, adapters: &RowAdapters<'_>) -> Result<Tensor> {
        self.o.forward(cx, mixed, adapters)
    }
}

/// Of some rows.
struct Projected {
    /// `(T, H · D)`
    q: Tensor,
    /// `(T, K · D)` each, unless they are another's.
    kv: Option<[Tensor; 2]>,
    /// `(T, H · D)` or `(T, H)`.
    gate: Option<Tensor>,
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
