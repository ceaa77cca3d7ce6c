//! What a network is made of, in neutral terms. A model family is a function from config.json to this.
//!
//! A layer is a list of residual steps, a step adds the sum of its branches, a branch is one operation between two norms; see
//! [`LayerConfig`]. Sizes belong to the operations: layers may differ in them.

use std::ops::Range;
use std::sync::Arc;

use super::{AttentionConfig, KeysAndValues, LayerConfig, OperationConfig, PerLayerConfig, Rope};
use crate::ops::NormKind;

/// The name of a stored tensor, without `.weight`: below its layer, or below the network.
pub type Name = &'static str;

/// Rows of a stored matrix: in each of `repeats` equal blocks of rows the `index`-th of `parts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    /// Rows of each part of a block.
    pub parts: Vec<usize>,
    pub index: usize,
    pub repeats: usize,
    /// Whether it is a tensor of three dimensions, the last of which is a row: matrices of several experts. Its name is then a full one.
    pub is_stack: bool,
}

impl Slot {
    /// All rows of a tensor.
    pub fn whole(name: impl Into<String>, rows: usize) -> Self {
        Self::part(name, &[rows], 0)
    }

    /// One of several parts that lie one after another.
    pub fn part(name: impl Into<String>, parts: &[usize], index: usize) -> Self {
        Self { name: name.into(), parts: parts.to_vec(), index, repeats: 1, is_stack: false }
    }

    /// `len` rows from `start` on, of so many in a stack of matrices.
    pub fn of_stack(name: impl Into<String>, (start, len): (usize, usize), total: usize) -> Self {
        Self { is_stack: true, ..Self::part(name, &[start, len, total.saturating_sub(start + len)], 1) }
    }

    /// The same below a place.
    pub fn below(&self, place: &str) -> Self {
        Self { name: format!("{place}{}", self.name), ..self.clone() }
    }

    /// Rows of the whole tensor.
    pub fn total(&self) -> usize {
        self.parts.iter().sum::<usize>() * self.repeats
    }

    /// Its rows.
    pub fn len(&self) -> usize {
        self.parts[self.index] * self.repeats
    }

    /// Where they are in the tensor.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let (block, start) = (self.parts.iter().sum::<usize>(), self.parts[..self.index].iter().sum::<usize>());
        (0..self.repeats).map(move |i| i * block + start..i * block + start + self.parts[self.index])
    }
}

/// Whether a projection has a stored bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bias {
    #[default]
    None,
    Stored,
}

impl From<bool> for Bias {
    fn from(is_stored: bool) -> Self {
        if is_stored { Self::Stored } else { Self::None }
    }
}

/// What of a norm is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormParts {
    Nothing,
    Weight,
    WeightAndBias,
}

/// The norms of a network: all are of one kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormConfig {
    pub kind: NormKind,
    pub eps: f32,
    /// Added to stored weights (Gemma stores `w - 1`).
    pub offset: f32,
    pub parts: NormParts,
}

/// A table of learned positions, added to the embedding of each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    pub rows: usize,
    /// RoBERTa's way: positions count from behind the padding's id, and a padding token in the text has that id as its position.
    pub padding: Option<u32>,
}

/// A table of T5's buckets of distances, which all layers share: each has a value a head that is added to the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativeBiasConfig {
    pub name: Name,
    pub buckets: usize,
    pub heads: usize,
}

/// Whether the output matrix is the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tying {
    Tied,
    Separate,
}

/// What stands in front of the stored names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Of all names but the head's.
    pub network: &'static str,
    pub head: &'static str,
    /// Whether MLX's converter alone puts it there.
    pub is_of_mlx: bool,
}

impl Prefix {
    /// Of a network whose head stands beside it.
    pub const fn of(network: &'static str) -> Self {
        Self { network, head: "", is_of_mlx: false }
    }
}

/// The names of the stored tensors outside of layers; `None` = the family has no such tensor.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// What a checkpoint of a network with a task's head may have in front; the first is usual.
    pub prefixes: &'static [Prefix],
    pub embed: Name,
    /// Read where there is a table of positions.
    pub positions: Name,
    /// Read where there are token types.
    pub types: Name,
    pub embed_norm: Option<Name>,
    /// `{}` is the layer's number.
    pub layer: Name,
    pub final_norm: Option<Name>,
    pub head: Option<Name>,
    /// How names of tensors begin that have no part in this network: heads of tasks that it was trained for, other networks of a
    /// multimodal model.
    pub unused: &'static [&'static str],
}

impl Names {
    /// The name of a layer.
    pub fn layer(&self, number: usize) -> String {
        self.layer.replace("{}", &number.to_string())
    }

    /// How the names of layers begin.
    pub fn layers(&self) -> &'static str {
        self.layer.split("{}").next().unwrap_or_default()
    }
}

/// A decoder or an encoder, every choice made.
#[derive(Debug, Clone)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Tokens.
    pub context_length: usize,
    pub positions: Option<Positions>,
    /// Rows of the table of token types, of which the first is added to every token.
    pub token_types: Option<usize>,
    pub relative_bias: Option<RelativeBiasConfig>,
    pub per_layer: Option<PerLayerConfig>,
    pub layers: Vec<LayerConfig>,
    pub names: Names,
    pub norm: NormConfig,
    pub embed_scale: f32,
    pub residual_scale: f32,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
    pub tying: Tying,
    pub head_bias: Bias,
    /// Behind the final norm of a network that gives vectors: its name, and the values of these.
    pub projection: Option<(Name, usize)>,
}

impl Config {
    /// The values of a token's vector, as a network without a head gives it.
    pub fn vector_size(&self) -> usize {
        self.projection.map_or(self.hidden_size, |(_, size)| size)
    }

    /// Every operation, in the order of computation.
    pub fn operations(&self) -> impl Iterator<Item = &OperationConfig> {
        self.layers.iter().flat_map(LayerConfig::operations)
    }

    /// Every attention, in the order of computation.
    pub fn attentions(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.operations().filter_map(OperationConfig::attention)
    }

    /// The mixers whose keys and values others read, by their numbers.
    pub fn shared_keys(&self) -> impl Iterator<Item = usize> {
        let source = |attention: &AttentionConfig| match attention.kv {
            KeysAndValues::Of(number) => Some(number),
            KeysAndValues::Own { .. } | KeysAndValues::Same(_) => None,
        };
        self.attentions().filter_map(source)
    }

    /// Of how many experts a checkpoint of safetensors holds stacks by inputs; `None` = it holds none so.
    pub fn stacks_of_inputs(&self) -> Option<usize> {
        self.operations().find_map(|operation| match operation {
            OperationConfig::Experts(experts) if experts.is_stack_of_inputs => Some(experts.count),
            _ => None,
        })
    }

    /// Whether no token sees a later one.
    pub fn is_causal(&self) -> bool {
        self.attentions().all(AttentionConfig::is_causal)
    }

    /// The different ropes of the network.
    pub fn ropes(&self) -> Vec<Arc<Rope>> {
        let mut ropes: Vec<Arc<Rope>> = Vec::new();
        for rope in self.attentions().filter_map(|attention| attention.rope.as_ref()) {
            if !ropes.iter().any(|known| Arc::ptr_eq(known, rope) || known == rope) {
                ropes.push(rope.clone());
            }
        }
        ropes
    }

    /// The values of one row that are in memory at a time while a pass goes forward, at most.
    pub fn forward_values(&self) -> usize {
        let per_layer = self.per_layer.as_ref().map_or(0, |per_layer| per_layer.forward_values(self.layers.len()));
        4 * self.hidden_size + self.operations().map(OperationConfig::forward_values).max().unwrap_or(0) + per_layer
    }

    /// The scores of so many rows with the keys that they see of so many tokens, of the layer that has most.
    pub fn score_values(&self, rows: usize, tokens: usize) -> usize {
        let of = |operation: &OperationConfig| match operation {
            OperationConfig::Attention(attention) => {
                let window = attention.window.map_or(tokens, |window| window.saturating_add(rows - 1));
                attention.heads.saturating_mul(rows).saturating_mul(tokens.min(window))
            }
            _ => 0,
        };
        self.operations().map(of).max().unwrap_or(0)
    }

    /// The values of one row that the backward pass of the largest layer needs: the inputs of its norms, products and activations.
    pub fn backward_values(&self) -> usize {
        let of_layer = |layer: &LayerConfig| {
            let operations = layer.operations().map(OperationConfig::backward_values);
            2 * self.hidden_size * layer.operations().count() + operations.sum::<usize>()
        };
        self.layers.iter().map(of_layer).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_rows_of_one_block_or_of_each() {
        let ranges = |slot: &Slot| slot.ranges().map(|rows| (rows.start, rows.end)).collect::<Vec<_>>();
        let whole = Slot::whole("w", 6);
        assert_eq!((ranges(&whole), whole.len(), whole.total()), (vec![(0, 6)], 6, 6));
        let part = Slot::part("w", &[4, 2, 2], 1).below("layers.0.");
        assert_eq!((part.name.as_str(), ranges(&part), part.len(), part.total()), ("layers.0.w", vec![(4, 6)], 2, 8));
        // Head by head: three rows of the query, three of its gate.
        let gate = Slot { repeats: 2, ..Slot::part("w", &[3, 3], 1) };
        assert_eq!((ranges(&gate), gate.len(), gate.total()), (vec![(3, 6), (9, 12)], 6, 12));
    }
}
