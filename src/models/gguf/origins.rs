//! What transformers' tensors are made of in a file. Names in a GGUF go by their role, so that a family's own names say which is which.

use super::super::draft::{Alone, Draft, KeySource, Mixer, Mlp, OutputGate, Pattern, Sizes, Source};
use super::Architecture;
use crate::error::Result;
use crate::load::{Gguf, GgufAdapter, Origin};
use crate::nn::{
    Bias, DeltaNetConfig, ExpertNames, ExpertsConfig, Mamba2Config, Name, NormParts, QkNorm, SharedExpertConfig, ShortConvConfig,
    Tying,
};
use crate::ops::ScanShape;

/// What origins are looked up in.
#[derive(Clone, Copy)]
pub enum StoredShapes<'a> {
    Model(&'a Gguf),
    /// It holds those that were trained.
    Adapter(&'a GgufAdapter),
}

impl<'a> StoredShapes<'a> {
    fn of(self, name: &str) -> Option<&'a [usize]> {
        match self {
            Self::Model(gguf) => gguf.tensor(name).map(|tensor| tensor.entry().shape.as_slice()),
            Self::Adapter(adapter) => adapter.shape(name),
        }
    }
}

/// The origin of each tensor of the network.
pub fn origins(shapes: StoredShapes<'_>, draft: &Draft, architecture: &Architecture) -> Result<Vec<(String, Origin)>> {
    let mut all = Origins { shapes, draft, architecture, of: Vec::new(), stored: String::new(), place: String::new() };
    all.beside_layers();
    let names = &draft.names;
    let prefix = names.network.prefixes.first().map_or("", |prefix| prefix.network);
    for (i, pattern) in draft.layers.iter().enumerate() {
        all.stored = format!("blk.{i}.");
        all.place = format!("{prefix}{}.", names.network.layer(i));
        match (pattern.mixer, &draft.delta_net, &draft.short_conv) {
            (Mixer::DeltaNet, Some(net), _) => all.delta_net(net),
            (Mixer::ShortConv, _, Some(conv)) => all.short_conv(conv),
            (Mixer::Mamba2 | Mixer::None, ..) => {}
            _ => all.attention(pattern),
        }
        if let (Mixer::Mamba2 | Mixer::Mamba2AndAttention, Some(mamba)) = (pattern.mixer, &draft.mamba2) {
            all.mamba2(mamba);
        }
        match &draft.experts {
            _ if pattern.alone == Alone::None => {}
            Some(experts) if pattern.alone == Alone::Experts => all.experts(experts),
            _ => all.mlp(draft.sizes(pattern).intermediate_size),
        }
        if let Some(branch) = &draft.expert_branch {
            all.experts(&branch.experts);
            for (name, stored) in
                [(branch.mlp_out, "post_ffw_norm_1"), (branch.norm_in, "pre_ffw_norm_2"), (branch.norm_out, "post_ffw_norm_2")]
            {
                all.norm(Some(name), stored);
            }
        }
        all.layer_input();
        // These have no norm behind attention, and their second one goes by that name; of a layer of one operation the only one goes by
        // the first's.
        let mlp_in = match architecture.name {
            "seed_oss" | "gpt-oss" | "qwen35" | "qwen35moe" => "post_attention_norm",
            _ if pattern.mixer == Mixer::None => "attn_norm",
            _ => "ffn_norm",
        };
        let (has_mixer, has_mlp) = (pattern.mixer != Mixer::None, pattern.alone != Alone::None);
        for (name, stored) in [
            (names.attn_in.filter(|_| pattern.attn_in && has_mixer), "attn_norm"),
            (names.attn_out.filter(|_| has_mixer), "post_attention_norm"),
            (names.attn_sum.filter(|_| has_mixer), "attn_output_norm"),
            (names.mlp_in.filter(|_| has_mlp), mlp_in),
            (names.mlp_out.filter(|_| has_mlp), "post_ffw_norm"),
            (names.mlp_sum.filter(|_| has_mlp), "layer_output_norm"),
        ] {
            all.norm(name, stored);
        }
    }
    Ok(all.of)
}

struct Origins<'a> {
    shapes: StoredShapes<'a>,
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
        self.shapes.of(&self.name(stored)).is_some()
    }

    /// Whether some of the network's matrices are there alone.
    fn is_adapter(&self) -> bool {
        matches!(self.shapes, StoredShapes::Adapter(_))
    }

    fn rows(&self, stored: &str) -> usize {
        self.shapes.of(&self.name(stored)).and_then(|shape| shape.first().copied()).unwrap_or(0)
    }

    /// Whether a tensor of matrices has so many rows in all.
    fn holds_rows(&self, stored: &str, rows: usize) -> bool {
        let shape = self.shapes.of(&self.name(stored));
        shape.is_some_and(|shape| matches!(*shape, [count, of_each, _] if count.checked_mul(of_each) == Some(rows)))
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
        let is_lfm = ["lfm2", "lfm2moe"].contains(&self.architecture.name);
        self.norm(names.final_norm, if is_lfm { "token_embd_norm" } else { "output_norm" });
        if let Some(inputs) = draft.layer_inputs {
            if let Some((table, _)) = inputs.embedding.table {
                self.add(&format!("{table}.weight"), Origin::whole("per_layer_token_embd.weight"));
            }
            self.add(&format!("{}.weight", inputs.embedding.projection), Origin::whole("per_layer_model_proj.weight"));
            self.norm(Some(inputs.embedding.norm), "per_layer_proj_norm");
        }
        self.place = head.to_string();
        if let Some(head) = names.head {
            // An adapter may change a matrix where it is the output's, and not where it is the embedding.
            if draft.tying == Tying::Separate || self.is_adapter() {
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
        // Falcon-H1's second norm has its name alone.
        let weight = Some(format!("{stored}.weight")).filter(|weight| self.has(weight) || !self.has(stored));
        self.add(&format!("{name}.weight"), self.whole(weight.as_deref().unwrap_or(stored)).plus(-norm.offset));
        if norm.parts == NormParts::WeightAndBias {
            self.add(&format!("{name}.bias"), self.whole(&format!("{stored}.bias")));
        }
    }

    fn attention(&mut self, pattern: &Pattern) {
        let Draft { num_heads, names, biases, qk_norm, norm, output_gate, .. } = self.draft;
        let Sizes { num_kv_heads, head_dim, .. } = self.draft.sizes(pattern);
        // Gates that stand beside the queries are stored with them.
        let of_queries = if *output_gate == Some(OutputGate::BesideQueries) { 2 } else { 1 };
        let sizes = [of_queries * num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim];
        let moved = self.architecture.moves_rows.then_some(head_dim);
        let fields = |stored| if stored { &["weight", "bias"][..] } else { &["weight"] };
        let (all, own, of_qkv) = ([names.q, names.k, names.v], ["attn_q", "attn_k", "attn_v"], fields(biases.qkv));
        match pattern.keys {
            KeySource::Own => self.projections(&all, own, ("attn_qkv", &sizes), moved, of_qkv),
            // One tensor of all three, whose keys and values nothing reads.
            KeySource::Of(_) if self.has("attn_qkv.weight") => self.projections(&all, own, ("attn_qkv", &sizes), moved, of_qkv),
            KeySource::AreValues => self.projections(&[names.q, names.k], ["attn_q", "attn_k"], ("", &[]), moved, of_qkv),
            KeySource::Of(_) => {
                self.projections(&[names.q], ["attn_q"], ("", &[]), moved, of_qkv);
                // What some files hold, and nothing reads.
                for (source, stored) in all.into_iter().zip(own).skip(1) {
                    if let (Source::Own(name), true) = (source, self.has(&format!("{stored}.weight"))) {
                        self.add(&format!("{name}.weight"), self.whole(&format!("{stored}.weight")));
                    }
                }
            }
        }
        self.projections(&[names.o], ["attn_output"], ("", &[]), None, fields(biases.o));
        if let Some(sinks) = self.draft.sinks {
            self.add(sinks, self.whole("attn_sinks.weight"));
        }
        for (name, stored, heads) in [(names.q_norm, "attn_q_norm", *num_heads), (names.k_norm, "attn_k_norm", num_kv_heads)] {
            if matches!(pattern.keys, KeySource::Of(_)) && stored == "attn_k_norm" && !self.has("attn_k_norm.weight") {
                continue;
            }
            let whole = self.whole(&format!("{stored}.weight")).plus(-norm.offset);
            match qk_norm {
                None => {}
                // No list of as many heads as a file asks for without holding them.
                Some(QkNorm::EachHeadApart) if self.rows(&format!("{stored}.weight")) != heads => {
                    let all = Origin::rows(&self.name(&format!("{stored}.weight")), 0..heads);
                    self.add(&format!("{name}.norms.0.weight"), all);
                }
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
        for (name, stored) in
            [(conv.inputs.name.as_str(), "shortconv.in_proj.weight"), (conv.o.name.as_str(), "shortconv.out_proj.weight")]
        {
            self.add(&format!("{name}.weight"), self.whole(stored));
        }
        self.add(&format!("{}.weight", conv.conv), self.whole("shortconv.conv.weight").into_convolution());
    }

    fn mamba2(&mut self, mamba: &Mamba2Config) {
        let weights = [
            (mamba.inputs.name.as_str(), "ssm_in", mamba.input_bias),
            (mamba.conv, "ssm_conv1d", mamba.conv_bias),
            (mamba.o.name.as_str(), "ssm_out", mamba.o_bias),
        ];
        for (name, stored, bias) in weights {
            let weight = self.whole(&format!("{stored}.weight"));
            self.add(&format!("{name}.weight"), if name == mamba.conv { weight.into_convolution() } else { weight });
            if bias == Bias::Stored {
                self.add(&format!("{name}.bias"), self.whole(&format!("{stored}.bias")));
            }
        }
        if let Some(norm) = mamba.norm {
            self.add(&format!("{}.weight", norm.name), self.whole("ssm_norm.weight").into_vector());
        }
        self.add(mamba.a_log, self.whole("ssm_a").log_of_negative().into_vector());
        self.add(mamba.dt_bias, self.whole("ssm_dt.bias").into_vector());
        self.add(mamba.d, self.whole("ssm_d").into_vector());
    }

    /// Where there are fewer heads of keys than of values, the converter puts those of values in another order.
    fn delta_net(&mut self, net: &DeltaNetConfig) {
        let ScanShape { heads, groups, key_dim, value_dim, .. } = net.shape;
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
            (format!("{}.weight", net.conv), mixed("ssm_conv1d.weight").into_convolution()),
            (net.a_log.to_string(), moved(whole("ssm_a").log_of_negative(), 1).into_vector()),
            (net.dt_bias.to_string(), moved(whole("ssm_dt.bias"), 1).into_vector()),
            (format!("{}.weight", net.norm), whole("ssm_norm.weight")),
            (format!("{}.weight", net.o.name), if is_moved { o.columns_in_groups(groups, heads, value_dim) } else { o }),
        ];
        for (name, origin) in all {
            self.add(&name, origin);
        }
    }

    /// Those of a layer are one tensor for each of their projections, or one for gate and up.
    fn experts(&mut self, experts: &ExpertsConfig) {
        self.add(&format!("{}.weight", experts.router.name), self.whole("ffn_gate_inp.weight"));
        if experts.biases == Bias::Stored {
            self.add(&format!("{}.bias", experts.router.name), self.whole("ffn_gate_inp.bias"));
        }
        for (name, stored) in [
            (experts.bias, "exp_probs_b.bias"),
            (experts.factors, "ffn_down_exps.scale"),
            (experts.router_norm, "ffn_gate_inp.scale"),
        ] {
            if let Some(name) = name {
                self.add(name, self.whole(stored));
            }
        }
        if let Some(latent) = &experts.latent {
            for (name, stored) in [(&latent.input.name, "ffn_latent_down.weight"), (&latent.output.name, "ffn_latent_up.weight")]
            {
                self.add(&format!("{name}.weight"), self.whole(stored));
            }
        }
        let (size, width, count) = (experts.intermediate_size, experts.width(), experts.count);
        // No list of as many names as a file asks for without holding them.
        if !self.is_adapter() && !self.holds_rows("ffn_down_exps.weight", count.saturating_mul(width)) {
            let missing = experts.apart.map(|names| ExpertNames::of(names.down, 0));
            let missing = missing.map(|name| format!("{name}.weight")).or(experts.stacks.map(|(_, down)| down.to_string()));
            let all = Origin::rows(&self.name("ffn_down_exps.weight"), 0..count.saturating_mul(width));
            return missing.into_iter().for_each(|name| self.add(&name, all.clone()));
        }
        let is_fused = self.has("ffn_gate_up_exps.weight");
        let rows = |stored: &str, number: usize, rows: usize| {
            Origin::rows(&self.name(&format!("{stored}.weight")), number * rows..(number + 1) * rows)
        };
        // Up alone where they have no gates.
        let gate_up = |number: usize| match is_fused {
            true => vec![rows("ffn_gate_up_exps", 2 * number, size), rows("ffn_gate_up_exps", 2 * number + 1, size)],
            false if experts.is_gated => vec![rows("ffn_gate_exps", number, size), rows("ffn_up_exps", number, size)],
            false => vec![rows("ffn_up_exps", number, size)],
        };
        let mut all = Vec::new();
        if let Some(ExpertNames { gate, up, down }) = experts.apart {
            let of_biases = [(gate, "ffn_gate_exps"), (up, "ffn_up_exps"), (down, "ffn_down_exps")];
            let of_biases = of_biases.into_iter().skip(usize::from(!experts.is_gated));
            for number in (0..count).filter(|_| experts.biases == Bias::Stored) {
                let row = |stored: &str| Origin::rows(&self.name(&format!("{stored}.bias")), number..number + 1);
                all.extend(
                    of_biases.clone().map(|(name, stored)| (format!("{}.bias", ExpertNames::of(name, number)), row(stored))),
                );
            }
            for number in 0..count {
                let of = |name| format!("{}.weight", ExpertNames::of(name, number));
                let names = [gate, up].into_iter().skip(usize::from(!experts.is_gated));
                all.extend(names.map(of).zip(gate_up(number)));
                all.push((of(down), rows("ffn_down_exps", number, width)));
            }
        } else if let Some((stack, down)) = experts.stacks {
            let joined = (0..count).flat_map(gate_up).reduce(Origin::then);
            all.extend(joined.map(|origin| (stack.to_string(), origin.in_matrices(count))));
            all.push((down.to_string(), self.whole("ffn_down_exps.weight")));
        }
        all.into_iter().for_each(|(name, origin)| self.add(&name, origin));
        if let Some(shared) = &experts.shared {
            self.shared_expert(shared);
        }
    }

    /// An MLP beside experts, whose gate and up are two tensors, or one that goes by the name of up.
    fn shared_expert(&mut self, SharedExpertConfig { dense, gate }: &SharedExpertConfig) {
        let is_fused = dense.gate.is_some()
            && !self.has("ffn_gate_shexp.weight")
            && self.rows("ffn_up_shexp.weight") != dense.intermediate_size;
        let half = |part: usize| {
            let (stored, size) = (self.name("ffn_up_shexp.weight"), dense.intermediate_size);
            if is_fused { Origin::rows(&stored, part * size..(part + 1) * size) } else { Origin::whole(&stored) }
        };
        let of_gate = if is_fused { half(0) } else { self.whole("ffn_gate_shexp.weight") };
        let (of_up, up) = (half(1), format!("{}.weight", dense.up.name));
        match &dense.gate {
            // One tensor in transformers.
            Some(gate) if gate.name == dense.up.name => self.add(&up, of_gate.then(of_up)),
            Some(gate) => {
                self.add(&format!("{}.weight", gate.name), of_gate);
                self.add(&up, of_up);
            }
            None => self.add(&up, of_up),
        }
        self.add(&format!("{}.weight", dense.down.name), self.whole("ffn_down_shexp.weight"));
        if let Some(gate) = gate {
            self.add(&format!("{}.weight", gate.name), self.whole("ffn_gate_inp_shexp.weight"));
        }
    }

    /// What takes in a layer's part of the per-layer embedding, and the factor of the layer's output.
    fn layer_input(&mut self) {
        if let Some(inputs) = self.draft.layer_inputs {
            self.add(&format!("{}.weight", inputs.gate), self.whole("inp_gate.weight"));
            self.add(&format!("{}.weight", inputs.down), self.whole("proj.weight"));
            self.norm(Some(inputs.norm_out), "post_norm");
        }
        if let Some(scalar) = self.draft.layer_scalar {
            self.add(scalar, self.whole("layer_output_scale.weight"));
        }
    }

    fn mlp(&mut self, intermediate_size: usize) {
        let Draft { names, biases, mlp, .. } = self.draft;
        let fields = if biases.mlp { &["weight", "bias"][..] } else { &["weight"] };
        match mlp {
            Mlp::Gated => {
                let sizes = [intermediate_size; 2];
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
                let is_moved = i < 2 && (*field == "weight" || self.architecture.moves_biases());
                match moved.filter(|_| is_moved) {
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
