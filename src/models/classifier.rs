//! The heads of `…ForSequenceClassification`: what the vectors of a text's tokens go through to become its score.
//!
//! Equal to those of transformers 5.24.

use super::base;
use crate::error::Result;
use crate::load::Json;
use crate::nn::Config;
use crate::ops::{Activation, Pooling};

/// Most labels of any classifier.
const MAX_LABELS: usize = 1 << 20;

/// A head with one output.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    pub pooling: Pooling,
    /// Whether the scores of tokens are pooled, and not their vectors.
    pub is_late: bool,
    pub layers: Vec<ClassifierLayer>,
    /// A token that counts for nothing at the end of a text.
    pub padding: Option<u32>,
}

/// One step from the pooled vector to the score; its name is that of stored tensors, in front of which the network's prefix may stand.
#[derive(Debug, Clone, PartialEq)]
pub enum ClassifierLayer {
    Dense { name: &'static str, outputs: usize, bias: bool, activation: Option<Activation> },
    LayerNorm { name: &'static str, eps: f32, bias: bool },
}

/// Whether config.json describes a network with such a head.
pub fn is_classifier(json: &Json) -> Result<bool> {
    Ok(json
        .texts("architectures")?
        .is_some_and(|list| list.first().is_some_and(|name| name.ends_with("ForSequenceClassification"))))
}

/// The head of a network that [is a classifier](is_classifier).
///
/// # Errors
/// `ErrorKind::Unsupported` for more labels than one, which make no score, and for settings that are not implemented.
pub fn classifier(json: &Json, config: &Config) -> Result<Classifier> {
    let size = config.vector_size();
    let labels = match json.object("id2label")? {
        Some(labels) => labels.value().as_object().map_or(0, serde_json::Map::len),
        None => json.count("num_labels", MAX_LABELS)?.unwrap_or(2),
    };
    if labels != 1 {
        return Err(json.unsupported("id2label", &format!("expected one label, which is a score, and not {labels} labels")));
    }
    let dense = |name, bias, activation| ClassifierLayer::Dense { name, outputs: size, bias, activation };
    let score = |name, bias| ClassifierLayer::Dense { name, outputs: 1, bias, activation: None };
    let head =
        |pooling, layers: &[ClassifierLayer]| Classifier { pooling, is_late: false, layers: layers.to_vec(), padding: None };
    Ok(match json.text("model_type")?.as_deref() {
        Some("bert" | "nomic_bert") => {
            if json.has("n_embd") {
                return Err(json.unsupported("n_embd", "expected the keys of transformers for a classifier"));
            }
            head(Pooling::Cls, &[dense("pooler.dense", true, Some(Activation::Tanh)), score("classifier", true)])
        }
        Some("roberta" | "xlm-roberta" | "camembert" | "mpnet") => {
            head(Pooling::Cls, &[dense("classifier.dense", true, Some(Activation::Tanh)), score("classifier.out_proj", true)])
        }
        Some("distilbert") => {
            head(Pooling::Cls, &[dense("pre_classifier", true, Some(Activation::Relu)), score("classifier", true)])
        }
        Some("modernbert") => {
            let activation = base::activation(json, "classifier_activation", "gelu")?;
            let norm =
                ClassifierLayer::LayerNorm { name: "head.norm", eps: config.norm.eps, bias: json.flag("norm_bias", false)? };
            let inner = dense("head.dense", json.flag("classifier_bias", false)?, Some(activation));
            let pooling = match json.text("classifier_pooling")?.as_deref() {
                None | Some("cls") => Pooling::Cls,
                Some("mean") => Pooling::Mean,
                Some(_) => return Err(json.unsupported("classifier_pooling", "expected \"cls\" or \"mean\"")),
            };
            head(pooling, &[inner, norm, score("classifier", true)])
        }
        Some("eurobert") => {
            let layers = [dense("dense", true, Some(Activation::Gelu)), score("classifier", true)];
            match json.text("classifier_pooling")?.as_deref() {
                None | Some("late") => Classifier { is_late: true, ..head(Pooling::Mean, &layers) },
                Some("mean") => head(Pooling::Mean, &layers),
                Some("bos") => head(Pooling::Cls, &layers),
                Some(_) => return Err(json.unsupported("classifier_pooling", "expected \"late\", \"bos\" or \"mean\"")),
            }
        }
        _ => {
            if !config.is_causal() {
                return Err(json.unsupported("is_causal", "expected true with the score of a last token"));
            }
            let padding = json.count("pad_token_id", base::MAX_VOCAB)?.map(|id| id as u32);
            Classifier { padding, ..head(Pooling::Last, &[score("score", false)]) }
        }
    })
}
