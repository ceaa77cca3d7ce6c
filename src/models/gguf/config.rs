//! config.json from the metadata of a file.

use std::cell::RefCell;
use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::super::base::MAX_LAYERS;
use super::super::falcon_h1::MULTIPLIED;
use super::Architecture;
use crate::error::Result;
use crate::load::{Gguf, Json, Metadata};
use crate::ops::Pooling;

/// The fields of a config.json in the making.
pub struct ConfigFields<'a> {
    gguf: &'a Gguf,
    /// In front of the architecture's own keys.
    prefix: &'a str,
    all: Map<String, Value>,
    /// The divisors of the frequencies that a tensor of the file holds, for short contexts and for long ones.
    factors: Option<[Vec<f32>; 2]>,
    /// The architecture's own keys that something looked at.
    asked: RefCell<HashSet<String>>,
}

/// Settings of some architectures. Another one that has them would be computed without, so that is an error.
const SETTINGS: [&str; 16] = [
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_gating_func",
    "expert_group_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "use_parallel_residual",
];

/// Architectures whose MLPs may be experts.
const WITH_EXPERTS: [&str; 12] = [
    "gemma4",
    "gpt-oss",
    "granite_swa",
    "granitehybrid",
    "granitemoe",
    "lfm2moe",
    "llama",
    "nemotron_h",
    "nemotron_h_moe",
    "olmoe",
    "qwen35moe",
    "qwen3moe",
];

/// Architectures of which no layer has an MLP whose width is told by `feed_forward_length`, which files then may lack.
const ONLY_EXPERTS: [&str; 2] = ["qwen35moe", "qwen3moe"];

/// Architectures of which some layers have no attention: their number of heads of keys is 0.
const PARTLY_ATTENTION: [&str; 5] = ["granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe"];

/// config.json of an architecture.
pub fn json(gguf: &mut Gguf, architecture: &Architecture) -> Result<Json> {
    let factors = factors(gguf)?;
    let mut fields = ConfigFields { gguf, prefix: architecture.name, all: Map::new(), factors, asked: RefCell::default() };
    fields.set("model_type", architecture.model_type);
    fields.sizes()?;
    fields.special_tokens()?;
    fields.norms_and_biases()?;
    fields.rope()?;
    (architecture.keys)(&mut fields)?;
    fields.check_settings()?;
    let text = format!("{:#}\n", Value::Object(fields.all));
    Json::parse(&format!("{}: config.json", gguf.metadata().name()), &text)
}

fn factors(gguf: &mut Gguf) -> Result<Option<[Vec<f32>; 2]>> {
    for [short, long] in [["rope_factors_short", "rope_factors_long"], ["rope_freqs", "rope_freqs"]] {
        let [short, long] = [short, long].map(|name| format!("{name}.weight"));
        if gguf.tensor(&short).is_some() || gguf.tensor(&long).is_some() {
            let factors = [gguf.vector(&short)?, gguf.vector(&long)?];
            for (name, factors) in [short, long].iter().zip(&factors) {
                if let Some(factor) = factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
                    return Err(gguf.metadata().invalid(name, &format!("expected finite numbers above 0, found {factor}")));
                }
            }
            return Ok(Some(factors));
        }
    }
    Ok(None)
}

/// How the vectors of texts are pooled, where the file says so.
pub fn pooling(gguf: &Gguf, architecture: &Architecture) -> Result<Option<Pooling>> {
    let key = format!("{}.pooling_type", architecture.name);
    Ok(match gguf.metadata().u32(&key)? {
        None | Some(0) => None,
        Some(1) => Some(Pooling::Mean),
        Some(2) => Some(Pooling::Cls),
        Some(3) => Some(Pooling::Last),
        Some(_) => return Err(gguf.metadata().unsupported(&key, "1 (mean), 2 (the first token) or 3 (the last)")),
    })
}

impl ConfigFields<'_> {
    fn metadata(&self) -> &Metadata {
        self.gguf.metadata()
    }

    /// The full name of one of the architecture's own keys.
    fn key(&self, name: &str) -> String {
        self.asked.borrow_mut().insert(name.to_string());
        format!("{}.{name}", self.prefix)
    }

    /// No setting is left that nothing looked at.
    fn check_settings(&self) -> Result<()> {
        let unread: Vec<&str> = SETTINGS.into_iter().filter(|name| !self.asked.borrow().contains(*name)).collect();
        if let Some(key) = unread.into_iter().map(|name| self.key(name)).find(|key| self.metadata().has(key)) {
            return Err(self.metadata().unsupported(&key, "none in this architecture"));
        }
        // The converter writes this one for any: as long as it says nothing new.
        let (base, sliding) = ("rope.freq_base", "rope.freq_base_swa");
        let is_read = self.asked.borrow().contains(sliding);
        match self.number(sliding)? {
            Some(theta) if !is_read && self.number(base)? != Some(theta) => {
                Err(self.metadata().unsupported(&self.key(sliding), &format!("that of {base} in this architecture")))
            }
            _ => Ok(()),
        }
    }

    fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.all.insert(field.to_string(), value.into());
    }

    /// A whole number; a list of one for each layer must be of one number.
    fn count(&self, name: &str) -> Result<Option<u32>> {
        let key = self.key(name);
        let layers = self.key("block_count");
        if !self.metadata().is_list(&key) || key == layers {
            return self.metadata().u32(&key);
        }
        let list = self.metadata().ints(&key)?.unwrap_or_default();
        let layers = self.metadata().u32(&layers)?.unwrap_or_default();
        if list.len() != layers as usize || layers == 0 {
            return Err(self.metadata().expected(&key, &format!("a number, or one for each of {layers} layers")));
        }
        match u32::try_from(list[0]) {
            Ok(first) if list.iter().all(|x| *x == i64::from(first)) => Ok(Some(first)),
            _ => Err(self.metadata().unsupported(&key, "the same number for each layer")),
        }
    }

    /// A whole number, or a list of one for each layer.
    fn counts(&self, name: &str) -> Result<Option<Vec<u32>>> {
        let layers = self.needed("block_count")? as usize;
        if layers > MAX_LAYERS {
            return Err(self.metadata().expected(&self.key("block_count"), &format!("at most {MAX_LAYERS}")));
        }
        let key = self.key(name);
        if !self.metadata().is_list(&key) {
            return Ok(self.metadata().u32(&key)?.map(|count| vec![count; layers]));
        }
        let list = self.metadata().ints(&key)?.unwrap_or_default();
        let counts: Vec<u32> = list.iter().filter_map(|count| u32::try_from(*count).ok()).collect();
        if counts.len() != layers || list.len() != layers {
            return Err(self.metadata().expected(&key, &format!("a number, or one for each of {layers} layers")));
        }
        Ok(Some(counts))
    }

    /// Heads of keys and values; some have a number for each layer, 0 for those without attention.
    fn kv_heads(&self) -> Result<Option<u32>> {
        let name = "attention.head_count_kv";
        let key = self.key(name);
        if self.prefix == "gemma4" {
            return Ok(self.counts(name)?.and_then(|heads| heads.first().copied()));
        }
        if !PARTLY_ATTENTION.contains(&self.prefix) || !self.metadata().is_list(&key) {
            return self.count(name);
        }
        let list = self.metadata().ints(&key)?.unwrap_or_default();
        if !list.is_empty() && list.iter().all(|heads| *heads == 0) {
            // No layer has attention, and no number says anything.
            return self.needed("attention.head_count").map(Some);
        }
        let mut heads = list.iter().copied().filter(|heads| *heads != 0);
        let first = heads.next().unwrap_or(0);
        match u32::try_from(first) {
            Ok(found) if found > 0 && heads.all(|other| other == first) => Ok(Some(found)),
            _ => Err(self.metadata().unsupported(&key, "0, or one number for all other layers")),
        }
    }

    fn needed(&self, name: &str) -> Result<u32> {
        match self.count(name)? {
            Some(count) if count > 0 => Ok(count),
            _ => Err(self.metadata().expected(&self.key(name), "a whole number above 0")),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f32>> {
        self.metadata().f32(&self.key(name))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.metadata().bool(&self.key(name))
    }

    fn needed_number(&self, name: &str) -> Result<f32> {
        self.number(name)?.ok_or_else(|| self.metadata().expected(&self.key(name), "a number"))
    }

    /// A number; 0 says that there is none.
    fn number_or_0(&self, name: &str) -> Result<Option<f32>> {
        Ok(self.number(name)?.filter(|x| *x != 0.0))
    }

    /// Sets a field to a number, where the file has one.
    fn copy(&mut self, field: &str, name: &str) -> Result<()> {
        if let Some(x) = self.number_or_0(name)? {
            self.set(field, x);
        }
        Ok(())
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensor(tensor).is_some()
    }

    /// Whether queries have a bias, of their own or together with those of keys and values.
    fn has_query_bias(&self) -> Result<bool> {
        // Of some the first layers have no attention.
        let layers = (self.needed("block_count")? as usize).min(MAX_LAYERS);
        Ok((0..layers).any(|i| ["attn_q", "attn_qkv"].iter().any(|part| self.has(&format!("blk.{i}.{part}.bias")))))
    }

    /// The rows of a matrix; 0 if there is none.
    fn rows(&self, tensor: &str) -> usize {
        self.gguf.tensor(tensor).and_then(|tensor| tensor.entry().shape.first().copied()).unwrap_or(0)
    }

    /// The columns of a matrix; 0 if there is none.
    fn columns(&self, tensor: &str) -> usize {
        self.gguf.tensor(tensor).and_then(|tensor| tensor.entry().shape.last().copied()).unwrap_or(0)
    }

    /// The width of a head: what the file says, else what its tensors have.
    fn head_dim(&self) -> Result<f64> {
        if let Some(dim) = self.count("attention.key_length")? {
            return Ok(dim.into());
        }
        let heads = self.needed("attention.head_count")? as usize;
        let kv_heads = self.kv_heads()?.map_or(heads, |heads| heads as usize);
        let (all, parts, of) = match (self.rows("blk.0.attn_q.weight"), self.rows("blk.0.attn_qkv.weight")) {
            (0, 0) => (self.needed("embedding_length")? as usize, heads, "the width"),
            (0, rows) => match self.columns("blk.0.attn_output.weight") {
                0 => (rows, heads.saturating_add(kv_heads.saturating_mul(2)), "the rows of queries, keys and values"),
                columns => (columns, heads, "the columns of the output"),
            },
            (rows, _) => (rows, heads, "the rows of queries"),
        };
        if !all.is_multiple_of(parts) {
            let expected = format!("heads that divide {of}, {all}");
            return Err(self.metadata().expected(&self.key("attention.head_count"), &expected));
        }
        Ok((all / parts) as f64)
    }

    fn sizes(&mut self) -> Result<()> {
        for (field, name) in [
            ("hidden_size", "embedding_length"),
            ("num_attention_heads", "attention.head_count"),
            ("max_position_embeddings", "context_length"),
        ] {
            let value = self.needed(name)?;
            self.set(field, value);
        }
        // Of some a number for each layer, 0 where there is no MLP.
        let has_list = self.prefix == "gemma4" || self.prefix.starts_with("nemotron_h");
        let widths = if has_list { self.counts("feed_forward_length")?.unwrap_or_default() } else { Vec::new() };
        let width = match widths.iter().find(|width| **width > 0) {
            Some(width) => *width,
            // What no layer has needs a number all the same.
            None if has_list && !widths.is_empty() => 1,
            None if ONLY_EXPERTS.contains(&self.prefix) => self.count("feed_forward_length")?.unwrap_or(1),
            None => self.needed("feed_forward_length")?,
        };
        self.set("intermediate_size", width);
        // Behind the network's own stand those that predict further tokens.
        let layers = self.needed("block_count")?;
        let further = self.count("nextn_predict_layers")?.unwrap_or_default();
        if further > 0 && (!self.prefix.starts_with("qwen35") || further >= layers) {
            return Err(self.metadata().unsupported(&self.key("nextn_predict_layers"), "0"));
        }
        self.set("num_hidden_layers", layers - further);
        let dim = self.head_dim()?;
        if let Some(heads) = self.kv_heads()? {
            self.set("num_key_value_heads", heads);
        }
        if self.count("attention.value_length")?.is_some_and(|values| f64::from(values) != dim) {
            return Err(self.metadata().unsupported(&self.key("attention.value_length"), &format!("{dim}, as keys have")));
        }
        self.set("head_dim", dim as u64);
        if self.has_experts()? && !WITH_EXPERTS.contains(&self.prefix) {
            return Err(self.metadata().unsupported(&self.key("expert_count"), "0"));
        }
        let vocab_size = self.vocab_size()?;
        self.set("vocab_size", vocab_size);
        self.set("tie_word_embeddings", !self.has("output.weight"));
        if self.flag("attention.causal")? == Some(false) {
            self.set("is_causal", false);
        }
        Ok(())
    }

    /// Null where there is none: transformers would else take the family's own, which the vocabulary may not have.
    fn special_tokens(&mut self) -> Result<()> {
        let rows = self.rows("token_embd.weight");
        for (field, role) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            let id = self.metadata().u32(&format!("tokenizer.ggml.{role}_token_id"))?.filter(|id| (*id as usize) < rows);
            self.set(field, id);
        }
        Ok(())
    }

    /// As many as the embedding has rows, which may be fewer than the original has: the converter cuts off those that the tokenizer
    /// does not know. `vocab_size` is then the original's.
    fn vocab_size(&self) -> Result<usize> {
        let rows = self.rows("token_embd.weight");
        let expected = format!("{rows}, as many as token_embd.weight has rows");
        match self.metadata().list_len(TOKENS) {
            Some(tokens) if tokens != rows => Err(self.metadata().expected(TOKENS, &expected)),
            None if self.count("vocab_size")?.is_some_and(|size| size as usize != rows) => {
                Err(self.metadata().expected(&self.key("vocab_size"), &expected))
            }
            _ => Ok(rows),
        }
    }

    fn norms_and_biases(&mut self) -> Result<()> {
        let [rms, layer] = ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"];
        let eps = self.number(layer)?.or(self.number(rms)?);
        let eps = eps.ok_or_else(|| self.metadata().expected(&self.key(rms), "a number"))?;
        ["rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon"].into_iter().for_each(|field| self.set(field, eps));
        let attention = self.has_query_bias()?;
        let mlp = self.has("blk.0.ffn_up.bias");
        self.set("attention_bias", attention);
        self.set("mlp_bias", mlp);
        Ok(())
    }

    fn rope(&mut self) -> Result<()> {
        let theta = self.number("rope.freq_base")?;
        self.set("rope_theta", theta.unwrap_or(10_000.0));
        let scaling = self.scaling()?;
        self.set("rope_scaling", scaling);
        Ok(())
    }

    /// `rope_scaling`, null where there is none.
    fn scaling(&self) -> Result<Value> {
        let key = self.key("rope.scaling.type");
        let factor = self.number_or_0("rope.scaling.factor")?;
        // As old files say it.
        let linear = self.number_or_0("rope.scale_linear")?.filter(|factor| *factor != 1.0);
        // llama.cpp's, where nothing is said.
        let usual = if factor.or(linear).is_some() { "linear" } else { "none" };
        let kind = self.metadata().text(&key)?.unwrap_or(usual);
        let original = match self.count("rope.scaling.original_context_length")? {
            Some(original) => original,
            None => self.needed("context_length")?,
        };
        if let Some([short, long]) = &self.factors {
            if kind != "none" && factor.or(linear).is_some_and(|factor| factor != 1.0) {
                return Err(self.metadata().unsupported(&self.key("rope.scaling.factor"), "none beside factors in a tensor"));
            }
            // Frequencies that a file lists are those of a longrope that is the same for all lengths.
            let attention_factor = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
            return Ok(json!({
                "rope_type": "longrope",
                "short_factor": short,
                "long_factor": long,
                "original_max_position_embeddings": original,
                "attention_factor": attention_factor,
            }));
        }
        match kind {
            "none" => Ok(Value::Null),
            "linear" => match factor.or(linear) {
                Some(factor) => Ok(json!({ "rope_type": "linear", "factor": factor })),
                None => Err(self.metadata().expected(&self.key("rope.scaling.factor"), "a number")),
            },
            "yarn" => {
                let factor = factor.ok_or_else(|| self.metadata().expected(&self.key("rope.scaling.factor"), "a number"))?;
                let mut yarn = json!({ "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original });
                for (field, name) in [
                    ("beta_fast", "yarn_beta_fast"),
                    ("beta_slow", "yarn_beta_slow"),
                    ("attention_factor", "yarn_attn_factor"),
                    ("mscale", "yarn_log_multiplier"),
                    ("mscale_all_dim", "yarn_log_multiplier"),
                ] {
                    if let Some(x) = self.number(&format!("rope.scaling.{name}"))? {
                        yarn[field] = x.into();
                    }
                }
                // Below 0: as the type says.
                if self.number("rope.scaling.yarn_ext_factor")?.is_some_and(|x| x >= 0.0 && x != 1.0) {
                    return Err(self.metadata().unsupported(&self.key("rope.scaling.yarn_ext_factor"), "1"));
                }
                Ok(yarn)
            }
            "longrope" => {
                Err(self.metadata().invalid(&key, "expected the tensors rope_factors_short and rope_factors_long, found none"))
            }
            _ => Err(self.metadata().unsupported(&key, "none, linear, yarn or longrope")),
        }
    }

    /// The part of a head that is rotated: all of it where nothing is said.
    fn partial_rotary_factor(&mut self) -> Result<()> {
        let head_dim = self.head_dim()?;
        let rotated = self.count("rope.dimension_count")?.map_or(head_dim, f64::from);
        if !(rotated > 0.0 && rotated <= head_dim) {
            let expected = format!("1 to {head_dim}, the width of a head");
            return Err(self.metadata().expected(&self.key("rope.dimension_count"), &expected));
        }
        self.set("partial_rotary_factor", rotated / head_dim);
        Ok(())
    }

    /// Heads are rotated whole.
    fn whole_heads(&self) -> Result<()> {
        let dim = self.head_dim()?;
        match self.count("rope.dimension_count")? {
            Some(found) if f64::from(found) != dim => {
                Err(self.metadata().unsupported(&self.key("rope.dimension_count"), &format!("{dim}, the width of a head")))
            }
            _ => Ok(()),
        }
    }

    fn has_experts(&self) -> Result<bool> {
        Ok(self.count("expert_count")?.is_some_and(|count| count > 0))
    }

    /// How many experts there are, and how many of them a token goes to.
    fn experts(&mut self) -> Result<()> {
        for (fields, name) in
            [(&["num_local_experts", "num_experts"][..], "expert_count"), (&["num_experts_per_tok"], "expert_used_count")]
        {
            let count = self.needed(name)?;
            fields.iter().for_each(|field| self.set(field, count));
        }
        Ok(())
    }

    /// `sliding_window`, null where there is none.
    fn window(&mut self) -> Result<()> {
        let window = self.count("attention.sliding_window")?.filter(|window| *window > 0);
        self.set("sliding_window", window);
        Ok(())
    }

    fn needed_window(&mut self) -> Result<()> {
        self.needed("attention.sliding_window")?;
        self.window()
    }

    /// Which layers have the window, where the file says so: a flag a layer, or a number n, of which n-th see all.
    fn pattern(&mut self, sees_all: SeesAll) -> Result<()> {
        let key = self.key("attention.sliding_window_pattern");
        if !self.metadata().has(&key) {
            return Ok(());
        }
        let layers = self.needed("block_count")? as usize;
        if layers > MAX_LAYERS {
            return Err(self.metadata().expected(&self.key("block_count"), &format!("at most {MAX_LAYERS}")));
        }
        let slides = if self.metadata().is_list(&key) {
            self.metadata().bools(&key)?.unwrap_or_default()
        } else {
            let n = self.metadata().u32(&key)?.unwrap_or_default() as usize;
            let at = if sees_all == SeesAll::First { 0 } else { n.saturating_sub(1) };
            (0..layers).map(|i| n == 0 || i % n != at).collect()
        };
        if slides.len() != layers {
            return Err(self.metadata().expected(&key, &format!("a flag for each of {layers} layers")));
        }
        if slides.contains(&true) && self.count("attention.sliding_window")?.is_none_or(|window| window == 0) {
            let expected = "a number above 0, for there are layers with a window";
            return Err(self.metadata().expected(&self.key("attention.sliding_window"), expected));
        }
        let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
        self.set("layer_types", slides.iter().map(kind).collect::<Vec<_>>());
        Ok(())
    }
}

/// The layer that sees all, of the n layers of a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SeesAll {
    First,
    Last,
}

const TOKENS: &str = "tokenizer.ggml.tokens";

pub fn usual(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()
}

pub fn partly_rotated(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.partial_rotary_factor()
}

/// What a file says of its MLP and of its heads of keys is not what it holds: as if it were four times the width, and all heads.
pub fn phi2(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.partial_rotary_factor()?;
    let width = fields.columns("blk.0.ffn_down.weight");
    if width > 0 {
        fields.set("intermediate_size", width);
    }
    let (rows, dim) = (fields.rows("blk.0.attn_k.weight"), fields.head_dim()?);
    let (fused, heads) = (fields.rows("blk.0.attn_qkv.weight"), fields.needed("attention.head_count")? as usize);
    if rows > 0 && dim >= 1.0 {
        fields.set("num_key_value_heads", rows / dim as usize);
    } else if fused > 0 && dim >= 1.0 {
        fields.set("num_key_value_heads", (fused / dim as usize).saturating_sub(heads) / 2);
    }
    Ok(())
}

/// The width of the MLP is what it has become. Layers without heads of keys are convolutions.
pub fn lfm2(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    fields.set("block_auto_adjust_ff_dim", false);
    let taps = fields.needed("shortconv.l_cache")?;
    fields.set("conv_L_cache", taps);
    let key = fields.key("attention.head_count_kv");
    if fields.metadata().is_list(&key) {
        let (heads, layers) = (fields.metadata().ints(&key)?.unwrap_or_default(), fields.needed("block_count")?);
        if heads.len() != layers as usize {
            return Err(fields.metadata().expected(&key, &format!("a number for each of {layers} layers")));
        }
        let kind = |heads: &i64| if *heads == 0 { "conv" } else { "full_attention" };
        fields.set("layer_types", heads.iter().map(kind).collect::<Vec<_>>());
    }
    Ok(())
}

/// Mamba 2: heads, and how wide they are, go by a rank's name and a width of all.
fn mamba2(fields: &mut ConfigFields<'_>, keys: [&str; 4]) -> Result<()> {
    let (heads, inner) = (fields.needed("ssm.time_step_rank")?, fields.needed("ssm.inner_size")?);
    if !inner.is_multiple_of(heads) {
        let expected = format!("a multiple of {}, {heads}", fields.key("ssm.time_step_rank"));
        return Err(fields.metadata().expected(&fields.key("ssm.inner_size"), &expected));
    }
    fields.set("mamba_d_head", inner / heads);
    fields.set("mamba_head_dim", inner / heads);
    fields.set("mamba_d_ssm", inner);
    let names = ["ssm.time_step_rank", "ssm.group_count", "ssm.state_size", "ssm.conv_kernel"];
    for (field, name) in keys.into_iter().zip(names) {
        let value = fields.needed(name)?;
        fields.set(field, value);
    }
    Ok(())
}

const MAMBA2_KEYS: [&str; 4] = ["mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"];

/// Multipliers are a part of the weights, but those of scores, which are a part of the keys'.
pub fn falcon_h1(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    mamba2(fields, MAMBA2_KEYS)?;
    let has_norm = fields.has("blk.0.ssm_norm.weight");
    fields.set("mamba_rms_norm", has_norm);
    let has_bias = fields.has("blk.0.ssm_conv1d.bias");
    fields.set("mamba_conv_bias", has_bias);
    // llama.cpp's way.
    fields.set("mamba_norm_before_gate", false);
    fields.set(MULTIPLIED, true);
    Ok(())
}

/// Layers without heads of keys are Mamba 2; of those with experts an MLP for every token stands beside them.
pub fn granitehybrid(fields: &mut ConfigFields<'_>) -> Result<()> {
    granite(fields)?;
    mamba2(fields, MAMBA2_KEYS)?;
    let (hidden, inner) = (fields.needed("embedding_length")?, fields.needed("ssm.inner_size")?);
    if !inner.is_multiple_of(hidden) {
        let expected = format!("a multiple of {}, {hidden}", fields.key("embedding_length"));
        return Err(fields.metadata().expected(&fields.key("ssm.inner_size"), &expected));
    }
    fields.set("mamba_expand", inner / hidden);
    let key = "attention.head_count_kv";
    let heads = fields.counts(key)?.ok_or_else(|| fields.metadata().expected(&fields.key(key), "a number for each layer"))?;
    if let Some(first) = heads.iter().position(|heads| *heads == 0) {
        let has_bias = fields.has(&format!("blk.{first}.ssm_conv1d.bias"));
        fields.set("mamba_conv_bias", has_bias);
    }
    let kind = |heads: &u32| if *heads == 0 { "mamba" } else { "attention" };
    fields.set("layer_types", heads.iter().map(kind).collect::<Vec<_>>());
    let is_rotated = fields.flag("rope.scaling.finetuned")?.unwrap_or(true);
    fields.set("position_embedding_type", if is_rotated { "rope" } else { "nope" });
    if fields.has_experts()? {
        fields.experts()?;
        let shared = fields.count("expert_shared_feed_forward_length")?.unwrap_or(0);
        fields.set("shared_intermediate_size", shared);
    } else {
        // Without experts nothing depends on them; a number they are all the same.
        for name in ["expert_used_count", "expert_feed_forward_length", "expert_shared_feed_forward_length"] {
            fields.count(name)?;
        }
        fields.set("num_local_experts", 0);
        let width = fields.rows("blk.0.ffn_up.weight");
        fields.set("shared_intermediate_size", width);
    }
    Ok(())
}

/// What a layer is is seen by its tensors.
pub fn nemotron_h(fields: &mut ConfigFields<'_>) -> Result<()> {
    mamba2(fields, ["mamba_num_heads", "n_groups", "ssm_state_size", "conv_kernel"])?;
    let layers = (fields.needed("block_count")? as usize).min(MAX_LAYERS);
    let kind = |layer: usize| {
        let has = |stored: &str| fields.has(&format!("blk.{layer}.{stored}.weight"));
        [("ssm_in", "linear_attention"), ("attn_q", "full_attention"), ("attn_qkv", "full_attention"), ("ffn_gate_inp", "moe")]
            .into_iter()
            .find(|(stored, _)| has(stored))
            .map_or("mlp", |(_, kind)| kind)
    };
    let kinds: Vec<&str> = (0..layers).map(kind).collect();
    let first = |wanted: &str| kinds.iter().position(|kind| *kind == wanted).unwrap_or(0);
    let (mamba, mlp) = (first("linear_attention"), first("mlp"));
    let biases = [
        ("use_bias", format!("blk.{mamba}.ssm_in.bias")),
        ("use_conv_bias", format!("blk.{mamba}.ssm_conv1d.bias")),
        ("mlp_bias", format!("blk.{mlp}.ffn_up.bias")),
    ]
    .map(|(field, stored)| (field, fields.has(&stored)));
    biases.into_iter().for_each(|(field, has)| fields.set(field, has));
    let width = fields.rows(&format!("blk.{mlp}.ffn_up.weight"));
    if width > 0 {
        fields.set("intermediate_size", width);
    }
    let eps = fields.all["norm_eps"].clone();
    fields.set("layer_norm_epsilon", eps);
    let has_experts = kinds.contains(&"moe");
    fields.set("layers_block_type", kinds);
    // Nothing is rotated, the width of shared experts is that of all of them, and without experts nothing depends on what is said of
    // them; numbers they are all the same.
    for name in [
        "rope.dimension_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "expert_shared_count",
        "expert_group_count",
        "expert_group_used_count",
    ] {
        fields.count(name)?;
    }
    let normalised = fields.flag("expert_weights_norm")?.unwrap_or(true);
    fields.number("expert_weights_scale")?;
    if !has_experts {
        return Ok(());
    }
    for (field, name) in [
        ("n_routed_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
        ("moe_shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ] {
        let value = fields.needed(name)?;
        fields.set(field, value);
    }
    for (field, name) in [("n_group", "expert_group_count"), ("topk_group", "expert_group_used_count")] {
        let value = fields.count(name)?.unwrap_or(1);
        fields.set(field, value);
    }
    // A width of none is null for transformers.
    let latent = fields.count("moe_latent_size")?.filter(|width| *width > 0);
    fields.set("moe_latent_size", latent);
    fields.set("norm_topk_prob", normalised);
    fields.copy("routed_scaling_factor", "expert_weights_scale")
}

/// Sections of positions are those of pictures.
pub fn qwen35(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.partial_rotary_factor()?;
    let heads = fields.needed("ssm.time_step_rank")?;
    let inner = fields.needed("ssm.inner_size")?;
    if !inner.is_multiple_of(heads) {
        let expected = format!("a multiple of {}, {heads}", fields.key("ssm.time_step_rank"));
        return Err(fields.metadata().expected(&fields.key("ssm.inner_size"), &expected));
    }
    fields.set("linear_num_value_heads", heads);
    fields.set("linear_value_head_dim", inner / heads);
    for (field, name) in [
        ("linear_num_key_heads", "ssm.group_count"),
        ("linear_key_head_dim", "ssm.state_size"),
        ("linear_conv_kernel_dim", "ssm.conv_kernel"),
    ] {
        let value = fields.needed(name)?;
        fields.set(field, value);
    }
    if let Some(every) = fields.count("full_attention_interval")? {
        fields.set("full_attention_interval", every);
    }
    let key = fields.key("attention.recurrent_layers");
    if let Some(recurrent) = fields.metadata().bools(&key)? {
        let layers = fields.all["num_hidden_layers"].as_u64().unwrap_or_default() as usize;
        if recurrent.len() < layers {
            return Err(fields.metadata().expected(&key, &format!("a flag for each of {layers} layers")));
        }
        let kind = |linear: &bool| if *linear { "linear_attention" } else { "full_attention" };
        fields.set("layer_types", recurrent[..layers].iter().map(kind).collect::<Vec<_>>());
    }
    Ok(())
}

pub fn windows(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    fields.window()?;
    fields.pattern(SeesAll::Last)
}

pub fn exaone4(fields: &mut ConfigFields<'_>) -> Result<()> {
    windows(fields)?;
    if fields.all["sliding_window"].is_null() {
        // Else transformers counts layers by a pattern of none.
        let layers = fields.needed("block_count")? as usize;
        fields.set("layer_types", vec!["full_attention"; layers.min(MAX_LAYERS)]);
    }
    Ok(())
}

/// Mixtral goes by the same name.
pub fn llama(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    if fields.has_experts()? {
        fields.set("model_type", "mixtral");
        fields.experts()?;
        return fields.window();
    }
    if fields.count("attention.sliding_window")?.is_some_and(|window| window > 0) {
        fields.window()?;
        fields.set("model_type", "mistral");
    }
    Ok(())
}

/// Ministral 3, or the language models of Mistral Small 3.1 and its successors, which are Mistrals whose every layer sees all.
pub fn mistral3(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    match fields.number_or_0("attention.temperature_scale")? {
        Some(beta) => fields.all["rope_scaling"]["llama_4_scaling_beta"] = beta.into(),
        None if fields.all["rope_scaling"].is_null() => {
            fields.set("model_type", "mistral");
            // Where nothing is said, transformers has one.
            fields.set("sliding_window", Value::Null);
        }
        None => {}
    }
    Ok(())
}

pub fn command_r(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    let scale = fields.number_or_0("logit_scale")?;
    fields.set("logit_scale", scale.unwrap_or(1.0));
    let has_norm = fields.has("blk.0.attn_q_norm.weight");
    fields.set("use_qk_norm", has_norm);
    Ok(())
}

pub fn cohere2(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.needed_number("logit_scale")?;
    command_r(fields)?;
    fields.needed_window()?;
    fields.pattern(SeesAll::Last)
}

pub fn granite(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    fields.needed_number("logit_scale")?;
    // llama.cpp's, where nothing is said.
    let usual = 1.0 / fields.head_dim()?.sqrt();
    fields.set("attention_multiplier", usual);
    for (field, name) in [
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ] {
        fields.copy(field, name)?;
    }
    Ok(())
}

/// Every second layer has the window, from the first on.
pub fn gpt_oss(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    fields.needed_window()?;
    fields.experts()?;
    let width = fields.needed("expert_feed_forward_length")?;
    fields.set("intermediate_size", width);
    match fields.all.get_mut("rope_scaling").filter(|scaling| scaling.is_object()) {
        Some(scaling) => scaling["truncate"] = false.into(),
        // Where nothing is said, transformers has one.
        None => fields.set("rope_parameters", json!({ "rope_type": "default" })),
    }
    Ok(())
}

/// An MLP for every token may stand beside the experts.
pub fn granitemoe(fields: &mut ConfigFields<'_>) -> Result<()> {
    granite(fields)?;
    fields.experts()?;
    if let Some(width) = fields.count("expert_shared_feed_forward_length")?.filter(|width| *width > 0) {
        fields.set("model_type", "granitemoeshared");
        fields.set("shared_intermediate_size", width);
    }
    Ok(())
}

pub fn lfm2moe(fields: &mut ConfigFields<'_>) -> Result<()> {
    lfm2(fields)?;
    fields.experts()?;
    for (field, name) in
        [("moe_intermediate_size", "expert_feed_forward_length"), ("num_dense_layers", "leading_dense_block_count")]
    {
        let value = fields.count(name)?.unwrap_or(0);
        fields.set(field, value);
    }
    // Sigmoids.
    if fields.count("expert_gating_func")?.is_some_and(|kind| kind != 2) {
        return Err(fields.metadata().unsupported(&fields.key("expert_gating_func"), "2"));
    }
    let normalised = fields.flag("expert_weights_norm")?.unwrap_or(true);
    fields.set("norm_topk_prob", normalised);
    fields.copy("routed_scaling_factor", "expert_weights_scale")?;
    let layer = fields.all["num_dense_layers"].as_u64().unwrap_or_default();
    let has_bias = fields.has(&format!("blk.{layer}.exp_probs_b.bias"));
    fields.set("use_expert_bias", has_bias);
    Ok(())
}

pub fn qwen35moe(fields: &mut ConfigFields<'_>) -> Result<()> {
    qwen35(fields)?;
    fields.experts()?;
    for (field, name) in [
        ("moe_intermediate_size", "expert_feed_forward_length"),
        ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ] {
        let value = fields.needed(name)?;
        fields.set(field, value);
    }
    Ok(())
}

/// What rope a layer has is in the file only as far as it has one.
pub fn granite_swa(fields: &mut ConfigFields<'_>) -> Result<()> {
    if fields.has_experts()? {
        granitemoe(fields)?;
        fields.set("model_type", "granitemoe_swa");
    } else {
        granite(fields)?;
    }
    fields.needed_window()?;
    fields.pattern(SeesAll::First)?;
    let key = fields.key("attention.rope_pattern");
    if let Some(rotated) = fields.metadata().bools(&key)? {
        let theta = fields.all["rope_theta"].clone();
        let of = |rotated: &bool| if *rotated { theta.clone() } else { 0.into() };
        fields.set("layer_rope_theta", rotated.iter().map(of).collect::<Vec<Value>>());
    }
    Ok(())
}

pub fn olmoe(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    fields.experts()?;
    fields.set("norm_topk_prob", false);
    fields.copy("clip_qkv", "attention.clamp_kqv")
}

pub fn qwen3moe(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    fields.experts()?;
    fields.set("norm_topk_prob", true);
    let width = fields.needed("expert_feed_forward_length")?;
    fields.set("moe_intermediate_size", width);
    Ok(())
}

pub fn ernie(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    let bias = fields.has_query_bias()?;
    fields.set("use_bias", bias);
    Ok(())
}

pub fn starcoder2(fields: &mut ConfigFields<'_>) -> Result<()> {
    ernie(fields)?;
    fields.window()
}

pub fn seed_oss(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    let bias = fields.has("blk.0.attn_output.bias");
    fields.set("attention_out_bias", bias);
    Ok(())
}

pub fn stablelm(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.partial_rotary_factor()?;
    let parallel = fields.flag("use_parallel_residual")?.unwrap_or(false);
    fields.set("use_parallel_residual", parallel);
    let (bias, norm) = (fields.has_query_bias()?, fields.has("blk.0.attn_q_norm.weight"));
    fields.set("use_qkv_bias", bias);
    fields.set("qk_layernorm", norm);
    Ok(())
}

pub fn olmo(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    fields.copy("clip_qkv", "attention.clamp_kqv")
}

/// OLMo 3 goes by the same name, and has windows.
pub fn olmo2(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    if fields.count("attention.sliding_window")?.is_none() {
        return Ok(());
    }
    fields.set("model_type", "olmo3");
    fields.window()?;
    fields.pattern(SeesAll::Last)?;
    let theta = fields.all["rope_theta"].clone();
    let sliding = fields.number("rope.freq_base_swa")?.map_or_else(|| theta.clone(), Value::from);
    let mut full = match fields.scaling()? {
        Value::Null => json!({ "rope_type": "default" }),
        scaling => scaling,
    };
    full["rope_theta"] = theta;
    fields.all.remove("rope_scaling");
    fields.set(
        "rope_parameters",
        json!({ "full_attention": full, "sliding_attention": { "rope_type": "default", "rope_theta": sliding } }),
    );
    Ok(())
}

pub fn phi3(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.partial_rotary_factor()?;
    let original = fields.count("rope.scaling.original_context_length")?;
    if let Some(original) = original {
        fields.set("original_max_position_embeddings", original);
    }
    fields.window()
}

pub fn gemma2(fields: &mut ConfigFields<'_>) -> Result<()> {
    windows(fields)?;
    if fields.all["sliding_window"].is_null() {
        fields.set("sliding_window", 4096);
    }
    // The first files have none, and every model has these.
    for (name, usual) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
        let cap = fields.number(name)?.unwrap_or(usual);
        fields.set(name, cap);
    }
    query_scale(fields, 46)
}

pub fn gemma3(fields: &mut ConfigFields<'_>) -> Result<()> {
    windows(fields)?;
    if fields.all["sliding_window"].is_null() {
        fields.set("sliding_window_pattern", 1);
    }
    let theta = fields.number("rope.freq_base_swa")?;
    fields.set("rope_local_base_freq", theta.unwrap_or(10_000.0));
    fields.copy("final_logit_softcapping", "final_logit_softcapping")?;
    query_scale(fields, 62)
}

/// Sizes are those of the layers that see all, and others of those that slide; some are a list of one for each layer.
pub fn gemma4(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.needed_window()?;
    let pattern = fields.key("attention.sliding_window_pattern");
    if !fields.metadata().is_list(&pattern) {
        return Err(fields.metadata().expected(&pattern, "a flag for each layer"));
    }
    fields.pattern(SeesAll::Last)?;
    let slides = fields.metadata().bools(&pattern)?.unwrap_or_default();
    let (full, sliding) = (fields.head_dim()?, fields.needed("attention.key_length_swa")?);
    for (name, expected) in [
        ("attention.value_length_swa", f64::from(sliding)),
        ("rope.dimension_count_swa", f64::from(sliding)),
        ("rope.dimension_count", full),
    ] {
        if fields.count(name)?.is_some_and(|found| f64::from(found) != expected) {
            return Err(fields.metadata().unsupported(&fields.key(name), &format!("{expected}, the width of a head")));
        }
    }
    fields.set("head_dim", sliding);
    fields.set("global_head_dim", full as u64);
    gemma4_keys(fields, &slides)?;
    gemma4_ropes(fields, full)?;
    if fields.has_experts()? {
        fields.experts()?;
        let (top_k, width) = (fields.needed("expert_used_count")?, fields.needed("expert_feed_forward_length")?);
        fields.set("enable_moe_block", true);
        fields.set("top_k_experts", top_k);
        fields.set("moe_intermediate_size", width);
    }
    let dim = fields.count("embedding_length_per_layer_input")?.unwrap_or(0);
    fields.set("hidden_size_per_layer_input", dim);
    // The converter cuts off of both what the tokenizer does not know.
    let rows = fields.vocab_size()?;
    fields.set("vocab_size_per_layer_input", rows);
    fields.copy("final_logit_softcapping", "final_logit_softcapping")
}

/// Heads of keys, layers that have none of their own, and the MLPs of these, which may be wider.
fn gemma4_keys(fields: &mut ConfigFields<'_>, slides: &[bool]) -> Result<()> {
    let layers = slides.len();
    let shared = fields.count("attention.shared_kv_layers")?.unwrap_or(0);
    fields.set("num_kv_shared_layers", shared);
    let first = layers.saturating_sub(shared as usize);
    let widths = fields.counts("feed_forward_length")?.unwrap_or_default();
    let is_wide = |wide: u32| widths.iter().enumerate().all(|(i, width)| *width == if i < first { widths[0] } else { wide });
    let is_double = shared > 0 && widths[0].checked_mul(2).is_some_and(&is_wide);
    if !is_double && !is_wide(widths[0]) {
        let expected = format!("one number of all layers, or twice that from layer {first} on");
        return Err(fields.metadata().unsupported(&fields.key("feed_forward_length"), &expected));
    }
    fields.set("use_double_wide_mlp", is_double);
    let heads_of = |wanted: bool, heads: &[u32]| {
        let mut heads = slides.iter().zip(heads).filter(|(slides, _)| **slides == wanted).map(|(_, heads)| *heads);
        let first = heads.next();
        heads.all(|other| Some(other) == first).then_some(first)
    };
    let heads = fields.counts("attention.head_count_kv")?.unwrap_or_default();
    let (Some(sliding), Some(full)) = (heads_of(true, &heads), heads_of(false, &heads)) else {
        return Err(fields.metadata().unsupported(&fields.key("attention.head_count_kv"), "one number for each kind of layer"));
    };
    let full_layer = slides.iter().take(first).position(|slides| !slides);
    let has_values = |layer| ["attn_v", "attn_qkv"].iter().any(|stored| fields.has(&format!("blk.{layer}.{stored}.weight")));
    let are_values = full_layer.is_some_and(|layer| !has_values(layer));
    fields.set("attention_k_eq_v", are_values);
    if let Some(heads) = sliding.or(full) {
        fields.set("num_key_value_heads", heads);
    }
    match full {
        Some(full) if sliding.is_some_and(|sliding| sliding != full) => {
            if !are_values {
                let expected = "one number of all layers where values are not the keys";
                return Err(fields.metadata().unsupported(&fields.key("attention.head_count_kv"), expected));
            }
            fields.set("num_global_key_value_heads", full);
        }
        _ => fields.set("num_global_key_value_heads", Value::Null),
    }
    Ok(())
}

/// Of layers that see all the first pairs of a head turn: the divisors of the other frequencies are as good as infinite.
fn gemma4_ropes(fields: &mut ConfigFields<'_>, head_dim: f64) -> Result<()> {
    const NAME: &str = "rope_freqs.weight";
    let theta = fields.all["rope_theta"].clone();
    let sliding = fields.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let Some([divisors, _]) = &fields.factors else {
        return Err(fields.metadata().invalid(NAME, "expected the divisors of frequencies, found no such tensor"));
    };
    let turned = divisors.iter().take_while(|divisor| **divisor == 1.0).count();
    if divisors.len() as f64 != head_dim / 2.0 || turned == 0 || divisors[turned..].iter().any(|divisor| *divisor < 1e20) {
        let expected = format!("expected {} divisors, ones and then numbers above 1e20, found others", head_dim / 2.0);
        return Err(fields.metadata().invalid(NAME, &expected));
    }
    let part = 2.0 * turned as f64 / head_dim;
    // Times the width it is cut to a whole number of pairs.
    let part = if (part * head_dim / 2.0) < turned as f64 { part.next_up() } else { part };
    fields.all.remove("rope_scaling");
    fields.all.remove("rope_theta");
    fields.set(
        "rope_parameters",
        json!({
            "full_attention": { "rope_type": "proportional", "partial_rotary_factor": part, "rope_theta": theta },
            "sliding_attention": { "rope_type": "default", "rope_theta": sliding },
        }),
    );
    Ok(())
}

pub fn gemma_embedding(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.needed_window()?;
    gemma3(fields)?;
    fields.set("use_bidirectional_attention", true);
    fields.all.remove("is_causal");
    Ok(())
}

/// `query_pre_attn_scalar` is not in the file: it is the width of a head, but for the model with this many layers.
fn query_scale(fields: &mut ConfigFields<'_>, layers: u32) -> Result<()> {
    let scalar = if fields.needed("block_count")? == layers {
        f64::from(fields.needed("embedding_length")?) / f64::from(fields.needed("attention.head_count")?)
    } else {
        fields.head_dim()?
    };
    if scalar.fract() == 0.0 {
        // As transformers wants it.
        fields.set("query_pre_attn_scalar", scalar as u64);
    } else {
        fields.set("query_pre_attn_scalar", scalar);
    }
    Ok(())
}

/// RoBERTa, XLM-R, CamemBERT and DistilBERT go by the same name. Rows of positions that a padding's id would move them by are cut
/// off, so that all are BERT's.
pub fn bert(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.set("attention_bias", true);
    token_types(fields)
}

fn token_types(fields: &mut ConfigFields<'_>) -> Result<()> {
    let types = fields.rows("token_types.weight");
    let key = "tokenizer.ggml.token_type_count";
    // A model without types is said to have one.
    if fields.metadata().u32(key)?.is_some_and(|count| count as usize != types.max(1)) {
        return Err(fields.metadata().expected(key, &format!("{types}, as many as token_types.weight has rows")));
    }
    fields.set("type_vocab_size", types);
    Ok(())
}

pub fn modern_bert(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    let window = fields.needed("attention.sliding_window")?;
    fields.set("local_attention", window);
    fields.pattern(SeesAll::First)?;
    let theta = fields.all["rope_theta"].clone();
    let local = fields.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    fields.set("global_rope_theta", theta);
    fields.set("local_rope_theta", local);
    // Another one for each kind of layer.
    fields.all.remove("rope_theta");
    let norm_bias = fields.has("output_norm.bias");
    fields.set("norm_bias", norm_bias);
    let activation = fields.metadata().text(&fields.key("hidden_activation"))?.unwrap_or("gelu").to_string();
    fields.set("hidden_activation", activation);
    Ok(())
}

pub fn nomic_bert(fields: &mut ConfigFields<'_>) -> Result<()> {
    fields.whole_heads()?;
    token_types(fields)
}
