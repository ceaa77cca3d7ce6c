//! What transformers' tensors are made of in a file. Names in a GGUF go by their role, so that a family's own names say which is which.

use super::super::draft::{Draft, Mixer, Mlp, Source};
use super::Architecture;
use crate::error::Result;
use crate::load::{Gguf, Origin};
use crate::nn::{DeltaNetConfig, Name, NormParts, QkNorm, ShortConvConfig, Tying};
use crate::ops::DeltaShape;

/// The origin of each tensor of the network.
pub fn origins(gguf: &Gguf, draft: &Draft, architecture: &Architecture) -> Result<Vec<(String, Origin)>> {
    let mut all = Origins { gguf, draft, architecture, of: Vec::new(), stored: String::new(), place: String::new() };
    all.beside_layers();
    let names = &draft.names;
    let prefix = names.network.prefixes.first().map_or("", |prefix| prefix.network);
    for (i, pattern) in draft.layers.iter().enumerate() {
        all.stored = format!("blk.{i}.");
        all.place = format!("{prefix}{}.", names.network.layer(i));
        match (pattern.mixer, &draft.delta_net, &draft.short_conv) {
            (Mixer::DeltaNet, Some(net), _) => all.delta_net(net),
            (Mixer::ShortConv, _, Some(conv)) => all.short_conv(conv),
            _ => all.attention(),
        }
        all.mlp();
        // These have no norm behind attention, and their second one goes by that name.
        let mlp_in = if ["seed_oss", "qwen35"].contains(&architecture.name) { "post_attention_norm" } else { "ffn_norm" };
        for (name, stored) in [
            (names.attn_in.filter(|_| pattern.attn_in), "attn_norm"),
            (names.attn_out, "post_attention_norm"),
            (names.attn_sum, "attn_output_norm"),
            (names.mlp_in, mlp_in),
            (names.mlp_out, "post_ffw_norm"),
            (names.mlp_sum, "layer_output_norm"),
        ] {
            all.norm(name, stored);
        }
    }
    Ok(all.of)
}

struct Origins<'a> {
    gguf: &'a Gguf,
    draft: &'a Draft,
    architecture: &'a Architecture,
    of: Vec<(String, Origin)>,
    /// In front of the file's names.
    stored: String,
    /// In front of transformers' names.
    place: String,
}

impl Origins<'_> {
    fn add(&mut self, name: &str, origin: Origin) {
        self.of.push((format!("{}{name}", self.place), origin));
    }

    /// The full name in the file.
    fn name(&self, stored: &str) -> String {
        format!("{}{stored}", self.stored)
    }

    fn has(&self, stored: &str) -> bool {
        self.gguf.tensor(&self.name(stored)).is_some()
    }

    fn rows(&self, stored: &str) -> usize {
        self.gguf.tensor(&self.name(stored)).and_then(|tensor| tensor.entry().shape.first().copied()).unwrap_or(0)
    }

    fn whole(&self, stored: &str) -> Origin {
        Origin::whole(&self.name(stored))
    }

    fn beside_layers(&mut self) {
        let draft = self.draft;
        let names = &draft.names.network;
        let prefix = names.prefixes.first().copied();
        let (network, head) = prefix.map_or(("", ""), |prefix| (prefix.network, prefix.head));
        self.place = network.to_string();
        self.add(&format!("{}.weight", names.embed), Origin::whole("token_embd.weight"));
        if draft.positions.is_some() {
            self.add(&format!("{}.weight", names.positions), Origin::whole("position_embd.weight"));
        }
        if draft.token_types.is_some() {
            self.add(&format!("{}.weight", names.types), Origin::whole("token_types.weight"));
        }
        self.norm(names.embed_norm, "token_embd_norm");
        // LFM2's final norm goes by another's name.
        let is_lfm = self.architecture.name == "lfm2";
        self.norm(names.final_norm, if is_lfm { "token_embd_norm" } else { "output_norm" });
        self.place = head.to_string();
        if let Some(head) = names.head {
            if draft.tying == Tying::Separate {
                self.add(&format!("{head}.weight"), Origin::whole("output.weight"));
            }
            if draft.biases.head {
                self.add(&format!("{head}.bias"), Origin::whole("output.bias"));
            }
        }
    }

    /// A norm's weight without what the converter added to it, and its bias.
    fn norm(&mut self, name: Option<Name>, stored: &str) {
        let norm = self.draft.norm;
        let Some(name) = name.filter(|_| norm.parts != NormParts::Nothing) else { return };
        self.add(&format!("{name}.weight"), self.whole(&format!("{stored}.weight")).plus(-norm.offset));
        if norm.parts == NormParts::WeightAndBias {
            self.add(&format!("{name}.bias"), self.whole(&format!("{stored}.bias")));
        }
    }

    fn attention(&mut self) {
        let Draft { num_heads, num_kv_heads, head_dim, names, biases, qk_norm, norm, .. } = self.draft;
        let sizes = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim];
        let moved = self.architecture.moves_rows.then_some(*head_dim);
        let fields = |stored| if stored { &["weight", "bias"][..] } else { &["weight"] };
        self.projections(
            &[names.q, names.k, names.v],
            ["attn_q", "attn_k", "attn_v"],
            ("attn_qkv", &sizes),
            moved,
            fields(biases.qkv),
        );
        self.projections(&[names.o], ["attn_output"], ("", &[]), None, fields(biases.o));
        for (name, stored, heads) in [(names.q_norm, "attn_q_norm", *num_heads), (names.k_norm, "attn_k_norm", *num_kv_heads)] {
            let whole = self.whole(&format!("{stored}.weight")).plus(-norm.offset);
            match qk_norm {
                None => {}
                Some(QkNorm::EachHeadApart) => {
                    for head in 0..heads {
                        let rows = Origin::rows(&self.name(&format!("{stored}.weight")), head..head + 1);
                        self.add(&format!("{name}.norms.{head}.weight"), rows.plus(-norm.offset));
                    }
                }
                Some(_) => self.add(&format!("{name}.weight"), whole),
            }
        }
    }

    fn short_conv(&mut self, conv: &ShortConvConfig) {
        for (name, stored) in [
            (conv.inputs.name.as_str(), "shortconv.in_proj.weight"),
            (conv.conv, "shortconv.conv.weight"),
            (conv.o.name.as_str(), "shortconv.out_proj.weight"),
        ] {
            self.add(&format!("{name}.weight"), self.whole(stored));
        }
    }

    /// Where there are fewer heads of keys than of values, the converter puts those of values in another order.
    fn delta_net(&mut self, net: &DeltaNetConfig) {
        let DeltaShape { heads, groups, key_dim, value_dim } = net.shape;
        let is_moved = heads != groups;
        let moved = |origin: Origin, dim| if is_moved { origin.in_groups(groups, heads, dim) } else { origin };
        // Queries and keys, then values.
        let mixed = |stored: &str| {
            let (name, keys) = (self.name(stored), 2 * groups * key_dim);
            match is_moved {
                true => Origin::rows(&name, 0..keys).then(moved(Origin::rows(&name, keys..net.channels()), value_dim)),
                false => Origin::whole(&name),
            }
        };
        let whole = |stored: &str| self.whole(stored);
        let o = whole("ssm_out.weight");
        let all = [
            (format!("{}.weight", net.qkv.name), mixed("attn_qkv.weight")),
            (format!("{}.weight", net.gate.name), moved(whole("attn_gate.weight"), value_dim)),
            (format!("{}.weight", net.beta.name), moved(whole("ssm_beta.weight"), 1)),
            (format!("{}.weight", net.decay.name), moved(whole("ssm_alpha.weight"), 1)),
            (format!("{}.weight", net.conv), mixed("ssm_conv1d.weight")),
            (net.a_log.to_string(), moved(whole("ssm_a").log_of_negative(), 1)),
            (net.dt_bias.to_string(), moved(whole("ssm_dt.bias"), 1)),
            (format!("{}.weight", net.norm), whole("ssm_norm.weight")),
            (format!("{}.weight", net.o.name), if is_moved { o.columns_in_groups(groups, heads, value_dim) } else { o }),
        ];
        for (name, origin) in all {
            self.add(&name, origin);
        }
    }

    fn mlp(&mut self) {
        let Draft { intermediate_size, names, biases, mlp, .. } = self.draft;
        let fields = if biases.mlp { &["weight", "bias"][..] } else { &["weight"] };
        match mlp {
            Mlp::Gated => {
                let sizes = [*intermediate_size; 2];
                self.projections(&[names.gate, names.up], ["ffn_gate", "ffn_up"], ("ffn_up", &sizes), None, fields);
            }
            Mlp::Plain => self.projections(&[names.up], ["ffn_up"], ("", &[]), None, fields),
        }
        self.projections(&[names.down], ["ffn_down"], ("", &[]), None, fields);
    }

    /// Projections that a file holds as tensors of their own, or one after another in one, whatever the family's own checkpoint does.
    fn projections<const N: usize>(
        &mut self,
        sources: &[Source; N],
        own: [&str; N],
        (fused, sizes): (&str, &[usize]),
        moved: Option<usize>,
        fields: &[&str],
    ) {
        for field in fields {
            // Gate and up in one tensor go by the name of up alone.
            let only_up = || own.contains(&fused) && self.rows(&format!("{fused}.{field}")) <= sizes[N - 1];
            let is_fused =
                N > 1 && !self.has(&format!("{}.{field}", own[0])) && self.has(&format!("{fused}.{field}")) && !only_up();
            let part = |i: usize| {
                let origin = if is_fused {
                    let start = sizes[..i].iter().sum();
                    Origin::rows(&self.name(&format!("{fused}.{field}")), start..start + sizes[i])
                } else {
                    self.whole(&format!("{}.{field}", own[i]))
                };
                // Values are not rotated.
                match moved.filter(|_| i < 2) {
                    Some(head_dim) => origin.in_pairs(head_dim),
                    None => origin,
                }
            };
            let parts: Vec<Origin> = (0..N).map(part).collect();
            let mut joined: Option<(Name, Origin)> = None;
            for (source, origin) in sources.iter().zip(parts) {
                match *source {
                    Source::Own(name) => self.add(&format!("{name}.{field}"), origin),
                    // In the order of their parts.
                    Source::Part(name, _) => {
                        joined = Some(match joined {
                            Some((_, all)) => (name, all.then(origin)),
                            None => (name, origin),
                        });
                    }
                }
            }
            if let Some((name, origin)) = joined {
                self.add(&format!("{name}.{field}"), origin);
            }
        }
    }
}
