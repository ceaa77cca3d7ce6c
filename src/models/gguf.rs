//! GGUF files as the directories of transformers that they were made from: config.json from their metadata, and transformers' names
//! and rows for their tensors. Everything above then knows one kind of model: adapters, sessions, training, embeddings.
//!
//! What the names of metadata mean is llama.cpp's, <https://github.com/ggml-org/llama.cpp>; what its converter changes is undone. Where
//! llama.cpp computes otherwise than transformers, transformers is followed.

mod config;
mod origins;

use std::ops::Range;

use origins::StoredShapes;

use super::{Family, draft, is_multiplied};
use crate::error::{Error, ErrorKind, Result};
use crate::load::{Gguf, GgufAdapter, Json, Origin};
use crate::nn::Config;
use crate::ops::Pooling;

/// What a file holds, as transformers would have it.
pub struct GgufModel {
    pub family: &'static Family,
    pub config: Config,
    /// config.json
    pub json: Json,
    /// What the tensors of transformers are made of.
    pub origins: Vec<(String, Origin)>,
    /// How texts become vectors, if it says so.
    pub pooling: Option<Pooling>,
    /// What follows the pooling, in front of a normalisation.
    pub projections: Vec<GgufProjection>,
    /// Layers of the file behind those of the network, which predict further tokens.
    pub unused_layers: Range<usize>,
}

/// A matrix that the vector of a text goes through.
pub struct GgufProjection {
    pub tensor: &'static str,
    pub inputs: usize,
    pub outputs: usize,
}

/// An architecture of llama.cpp.
struct Architecture {
    /// `general.architecture`
    name: &'static str,
    /// transformers' name for it.
    model_type: &'static str,
    /// Whether the converter moved the rows of q and k, so that the halves of a rotated pair are neighbours.
    moves_rows: bool,
    /// What its configuration has beside the usual keys.
    keys: fn(&mut config::ConfigFields<'_>) -> Result<()>,
}

impl Architecture {
    /// Whether the values of their biases were moved along. Of OLMo they were not.
    fn moves_biases(&self) -> bool {
        self.moves_rows && self.name != "olmo"
    }
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "arcee", model_type: "arcee", moves_rows: true, keys: config::usual },
    Architecture { name: "bert", model_type: "bert", moves_rows: false, keys: config::bert },
    Architecture { name: "chatglm", model_type: "glm", moves_rows: false, keys: config::partly_rotated },
    Architecture { name: "cohere2", model_type: "cohere2", moves_rows: false, keys: config::cohere2 },
    Architecture { name: "command-r", model_type: "cohere", moves_rows: false, keys: config::command_r },
    Architecture { name: "ernie4_5", model_type: "ernie4_5", moves_rows: false, keys: config::ernie },
    Architecture { name: "eurobert", model_type: "eurobert", moves_rows: false, keys: config::usual },
    Architecture { name: "exaone4", model_type: "exaone4", moves_rows: false, keys: config::exaone4 },
    Architecture { name: "falcon-h1", model_type: "falcon_h1", moves_rows: false, keys: config::falcon_h1 },
    Architecture { name: "gemma", model_type: "gemma", moves_rows: false, keys: config::usual },
    Architecture { name: "gemma-embedding", model_type: "gemma3_text", moves_rows: false, keys: config::gemma_embedding },
    Architecture { name: "gemma2", model_type: "gemma2", moves_rows: false, keys: config::gemma2 },
    Architecture { name: "gemma3", model_type: "gemma3_text", moves_rows: false, keys: config::gemma3 },
    Architecture { name: "gemma4", model_type: "gemma4_text", moves_rows: false, keys: config::gemma4 },
    Architecture { name: "glm4", model_type: "glm4", moves_rows: false, keys: config::partly_rotated },
    Architecture { name: "gpt-oss", model_type: "gpt_oss", moves_rows: false, keys: config::gpt_oss },
    Architecture { name: "granite", model_type: "granite", moves_rows: true, keys: config::granite },
    Architecture { name: "granite_swa", model_type: "granite_swa", moves_rows: true, keys: config::granite_swa },
    Architecture { name: "granitehybrid", model_type: "granitemoehybrid", moves_rows: true, keys: config::granitehybrid },
    Architecture { name: "granitemoe", model_type: "granitemoe", moves_rows: true, keys: config::granitemoe },
    Architecture { name: "hunyuan-dense", model_type: "hunyuan_v1_dense", moves_rows: false, keys: config::usual },
    Architecture { name: "lfm2", model_type: "lfm2", moves_rows: false, keys: config::lfm2 },
    Architecture { name: "lfm2moe", model_type: "lfm2_moe", moves_rows: false, keys: config::lfm2moe },
    Architecture { name: "llama", model_type: "llama", moves_rows: true, keys: config::llama },
    Architecture { name: "mistral3", model_type: "ministral3", moves_rows: true, keys: config::mistral3 },
    Architecture { name: "modern-bert", model_type: "modernbert", moves_rows: false, keys: config::modern_bert },
    Architecture { name: "nemotron", model_type: "nemotron", moves_rows: false, keys: config::partly_rotated },
    Architecture { name: "nemotron_h", model_type: "nemotron_h", moves_rows: true, keys: config::nemotron_h },
    Architecture { name: "nemotron_h_moe", model_type: "nemotron_h", moves_rows: true, keys: config::nemotron_h },
    Architecture { name: "nomic-bert", model_type: "nomic_bert", moves_rows: false, keys: config::nomic_bert },
    Architecture { name: "olmo", model_type: "olmo", moves_rows: true, keys: config::olmo },
    Architecture { name: "olmo2", model_type: "olmo2", moves_rows: false, keys: config::olmo2 },
    Architecture { name: "olmoe", model_type: "olmoe", moves_rows: false, keys: config::olmoe },
    Architecture { name: "phi2", model_type: "phi", moves_rows: false, keys: config::phi2 },
    Architecture { name: "phi3", model_type: "phi3", moves_rows: false, keys: config::phi3 },
    Architecture { name: "qwen2", model_type: "qwen2", moves_rows: false, keys: config::usual },
    Architecture { name: "qwen3", model_type: "qwen3", moves_rows: false, keys: config::usual },
    Architecture { name: "qwen35", model_type: "qwen3_5_text", moves_rows: false, keys: config::qwen35 },
    Architecture { name: "qwen35moe", model_type: "qwen3_5_moe_text", moves_rows: false, keys: config::qwen35moe },
    Architecture { name: "qwen3moe", model_type: "qwen3_moe", moves_rows: false, keys: config::qwen3moe },
    Architecture { name: "seed_oss", model_type: "seed_oss", moves_rows: false, keys: config::seed_oss },
    Architecture { name: "smollm3", model_type: "smollm3", moves_rows: true, keys: config::usual },
    Architecture { name: "stablelm", model_type: "stablelm", moves_rows: false, keys: config::stablelm },
    Architecture { name: "starcoder2", model_type: "starcoder2", moves_rows: false, keys: config::starcoder2 },
];

/// Where a file says its architecture.
const ARCHITECTURE: &str = "general.architecture";

/// Families whose models the converter writes as those of another one of the table.
const WRITTEN_AS: [(&str, &str); 13] = [
    ("camembert", "bert"),
    ("distilbert", "bert"),
    ("gemma4_unified", "gemma4"),
    ("gemma4_unified_text", "gemma4"),
    ("granitemoe_swa", "granite_swa"),
    // Of those without a layer of Mamba 2.
    ("granitemoehybrid", "granite"),
    ("granitemoehybrid", "granitemoe"),
    ("granitemoeshared", "granitemoe"),
    ("mistral", "llama"),
    ("mixtral", "llama"),
    ("olmo3", "olmo2"),
    ("roberta", "bert"),
    ("xlm-roberta", "bert"),
];

/// How the names of tensors begin that have no part in a network of ours: what a configuration says already, heads for other tasks,
/// layers that predict further tokens.
const UNUSED: [&str; 6] = ["rope_freqs.", "rope_factors_", "cls.", "cls_", "nextn.", "attn_rot_embd"];

/// What follows the pooling, by the names of its keys and of its tensors.
const PROJECTIONS: [(&str, &str); 2] = [("dense_2", "dense_2.weight"), ("dense_3", "dense_3.weight")];

/// Families of which llama.cpp knows the embedding alone as output matrix: a file that holds another one is not loaded.
const WITHOUT_OUTPUT: [&str; 4] = ["cohere", "cohere2", "gemma", "gemma2"];

/// Whether files of a family may have an output matrix beside the embedding.
pub fn may_have_output(family: &Family) -> bool {
    !WITHOUT_OUTPUT.contains(&family.model_type)
}

/// Whether a tensor of a file has no part in the network, of whose layers these are unused.
pub fn is_unused(name: &str, layers: &Range<usize>) -> bool {
    let in_layer = name.strip_prefix("blk.").and_then(|name| name.split_once('.'));
    let below_layer = in_layer.map_or(name, |(_, name)| name);
    if in_layer.is_some_and(|(layer, _)| layer.parse().is_ok_and(|layer| layers.contains(&layer))) {
        return true;
    }
    UNUSED.iter().any(|unused| below_layer.starts_with(unused)) || PROJECTIONS.iter().any(|(_, tensor)| *tensor == name)
}

/// What a file holds, as transformers would have it.
///
/// # Errors
/// `ErrorKind::Unsupported` for an architecture that is not known, naming those that are, and for metadata that changes the result
/// and is not implemented; `ErrorKind::Format` for what contradicts itself; each names the key.
pub fn parse_gguf(gguf: &mut Gguf) -> Result<GgufModel> {
    let metadata = gguf.metadata();
    let name = metadata.text(ARCHITECTURE)?.unwrap_or_default();
    let Some(architecture) = find(name) else {
        let known = ARCHITECTURES.iter().map(|architecture| architecture.name).collect::<Vec<_>>().join(", ");
        return Err(metadata.unsupported(ARCHITECTURE, &format!("one of {known}")));
    };
    if gguf.tensors().len() == 0 {
        return Err(Error::format(format!("{}: expected tensors, found a vocabulary alone", metadata.name())));
    }
    let json = config::json(gguf, architecture)?;
    let (family, draft) = draft(&json)?;
    let origins = origins::origins(StoredShapes::Model(gguf), &draft, architecture)?;
    let pooling = config::pooling(gguf, architecture)?;
    let projections = projections(gguf, architecture, pooling)?;
    let config = draft.build();
    let stored = gguf.metadata().u32(&format!("{}.block_count", architecture.name))?.unwrap_or_default() as usize;
    let unused_layers = config.layers.len()..stored;
    Ok(GgufModel { family, config, json, origins, pooling, projections, unused_layers })
}

fn find(name: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.name == name)
}

/// Whether the converter writes models of a family as those of an architecture.
fn is_written_as(model_type: &str, architecture: &Architecture) -> bool {
    // A language model alone, and one within another.
    let plain = |name: &'static str| name.strip_suffix("_text").unwrap_or(name);
    plain(architecture.model_type) == model_type.strip_suffix("_text").unwrap_or(model_type)
        || WRITTEN_AS.contains(&(model_type, architecture.name))
}

/// What the matrices that an adapter changes are made of, by transformers' names: of the model of this config.json.
///
/// # Errors
/// `ErrorKind::Mismatch` for an adapter of another architecture, naming those that would do.
pub fn adapter_origins(adapter: &GgufAdapter, config: &Json) -> Result<Vec<(String, Origin)>> {
    let metadata = adapter.metadata();
    let name = metadata.text(ARCHITECTURE)?.unwrap_or_default();
    let (family, draft) = draft(config)?;
    let of_family = |architecture: &&Architecture| is_written_as(family.model_type, architecture);
    let Some(architecture) = find(name).filter(of_family) else {
        let known: Vec<String> = ARCHITECTURES.iter().filter(of_family).map(|known| format!("{:?}", known.name)).collect();
        let expected = match known.as_slice() {
            [] => format!("an adapter of PEFT: llama.cpp has none for models of {}", family.model_type),
            known => format!("{}, as of a model of {}", known.join(" or "), family.model_type),
        };
        return Err(Error::new(ErrorKind::Mismatch, metadata.expected(ARCHITECTURE, &expected).message()));
    };
    // The converter multiplies changes as it does the weights.
    if architecture.name == "falcon-h1" && !is_multiplied(config)? {
        let expected = "another one: adapters of Falcon-H1 in GGUF files are multiplied, as the weights of a GGUF file are, and do not fit \
                        the original model; load the model from a GGUF file, or the adapter of PEFT";
        return Err(metadata.unsupported(ARCHITECTURE, expected));
    }
    let origins = origins::origins(StoredShapes::Adapter(adapter), &draft, architecture)?;
    Ok(origins.into_iter().filter(|(_, origin)| origin.tensors().any(|tensor| adapter.shape(tensor).is_some())).collect())
}

/// The Dense modules of EmbeddingGemma, which the converter takes along where it is asked to: `(outputs, inputs)`, nothing else.
fn projections(gguf: &Gguf, architecture: &Architecture, pooling: Option<Pooling>) -> Result<Vec<GgufProjection>> {
    let (metadata, mut found) = (gguf.metadata(), Vec::new());
    for (name, tensor) in PROJECTIONS {
        let Some(entry) = gguf.tensor(tensor).map(|tensor| tensor.entry()) else { continue };
        if architecture.name != "gemma-embedding" || pooling.is_none() {
            let message = "expected none: a projection of vectors is supported behind the pooling of gemma-embedding alone";
            return Err(Error::unsupported(format!("{}: {tensor}: {message}", metadata.name())));
        }
        let [outputs, inputs] = entry.shape[..] else {
            return Err(metadata.invalid(tensor, &format!("expected two dimensions, found {:?}", entry.shape)));
        };
        for (end, size) in [("in", inputs), ("out", outputs)] {
            let key = format!("{}.{name}_feat_{end}", architecture.name);
            if metadata.u32(&key)?.is_some_and(|found| found as usize != size) {
                return Err(metadata.expected(&key, &format!("{size}, as {tensor} has")));
            }
        }
        found.push(GgufProjection { tensor, inputs, outputs });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::load::GgufBuild as Build;
    use crate::models::FAMILIES;

    #[test]
    fn the_table_is_sorted_and_of_known_families() {
        assert!(ARCHITECTURES.windows(2).all(|pair| pair[0].name < pair[1].name));
        let known: HashSet<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
        assert!(ARCHITECTURES.iter().all(|architecture| known.contains(architecture.model_type)));
    }

    #[test]
    fn the_converter_has_written_a_file_of_every_architecture() {
        if !cfg!(reference_data) {
            return;
        }
        let files = std::fs::read_dir("tests/golden/gguf/families").unwrap().map(|entry| entry.unwrap().path());
        let of = |path: std::path::PathBuf| {
            Gguf::open(&path).unwrap().metadata().text("general.architecture").unwrap().unwrap_or_default().to_string()
        };
        let found: HashSet<String> = files.map(of).collect();
        let missing = ARCHITECTURES.iter().map(|architecture| architecture.name).filter(|name| !found.contains(*name));
        assert_eq!(missing.collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn documentation_names_every_architecture() {
        for text in [include_str!("../../README.md"), include_str!("../../include/metal_candle.h")] {
            let words: HashSet<&str> = text.split(|c: char| c.is_whitespace() || ",.()*".contains(c)).collect();
            assert!(ARCHITECTURES.iter().all(|architecture| words.contains(architecture.name)));
        }
        assert!(include_str!("../../README.md").contains(&format!("for {} architectures", ARCHITECTURES.len())));
    }

    #[test]
    fn heads_that_a_file_does_not_hold_have_no_origin_each() {
        let sizes =
            [("block_count", 64), ("embedding_length", 1 << 20), ("attention.head_count", 1 << 19), ("attention.key_length", 2)];
        let keys = sizes.into_iter().chain([
            ("attention.value_length", 2),
            ("feed_forward_length", 8),
            ("context_length", 8),
            ("vocab_size", 8),
            ("rope.dimension_count", 2),
        ]);
        let file = Build::new().text("general.architecture", "stablelm").f32("stablelm.attention.layer_norm_epsilon", 1e-5);
        let file = keys.fold(file, |file, (key, value)| file.u32(&format!("stablelm.{key}"), value));
        let file = file.tensor("blk.0.attn_q_norm.weight", &[1, 2], 0, &[0; 8]).tensor("token_embd.weight", &[8, 1], 0, &[0; 32]);
        assert!(file.bytes().len() < 1024);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        let origins = parse_gguf(&mut Gguf::open(&path).unwrap()).unwrap().origins;
        // One of each norm, which the file then lacks.
        assert_eq!(origins.iter().filter(|(name, _)| name.contains(".norms.")).count(), 2 * 64);
    }

    /// The parsed file of these numbers and tensors of a row each, which are a placeholder of their data.
    fn parsed(architecture: &str, numbers: &[(&str, u32)], tensors: &[(&str, [u64; 2])]) -> GgufModel {
        parsed_with(architecture, &[], numbers, tensors)
    }

    /// The same of a file with heads of keys for each layer.
    fn parsed_with(architecture: &str, kv_heads: &[i32], numbers: &[(&str, u32)], tensors: &[(&str, [u64; 2])]) -> GgufModel {
        let key = |name: &str| format!("{architecture}.{name}");
        let file = Build::new().text("general.architecture", architecture).f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
        let usual = [("block_count", 2), ("embedding_length", 16), ("attention.head_count", 2), ("attention.key_length", 8)];
        let usual = usual.into_iter().chain([("attention.value_length", 8), ("context_length", 64), ("vocab_size", 4)]);
        let mut file = usual.chain(numbers.iter().copied()).fold(file, |file, (name, value)| file.u32(&key(name), value));
        if architecture == "granitehybrid" {
            file = file.f32(&key("logit_scale"), 1.0);
        }
        if !kv_heads.is_empty() {
            file = file.ints(&key("attention.head_count_kv"), kv_heads);
        }
        let tensors = tensors.iter().chain(&[("token_embd.weight", [4, 16])]);
        let file = tensors
            .fold(file, |file, (name, shape)| file.tensor(name, shape, 0, &vec![0; 4 * shape.iter().product::<u64>() as usize]));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        parse_gguf(&mut Gguf::open(&path).unwrap()).unwrap()
    }

    #[test]
    fn the_width_of_mlps_is_not_needed_where_all_are_experts() {
        let numbers = [
            ("ssm.time_step_rank", 2),
            ("ssm.inner_size", 8),
            ("ssm.group_count", 1),
            ("ssm.state_size", 4),
            ("ssm.conv_kernel", 2),
            ("expert_shared_feed_forward_length", 8),
            ("expert_count", 2),
            ("expert_used_count", 1),
            ("expert_feed_forward_length", 8),
            ("attention.head_count_kv", 1),
        ];
        parsed("qwen35moe", &numbers, &[]);
        parsed("qwen3moe", &numbers[6..], &[]);
    }

    #[test]
    fn queries_with_gates_are_a_part_of_one_tensor_as_wide_as_both() {
        let numbers = [
            ("feed_forward_length", 8),
            ("attention.head_count_kv", 1),
            ("full_attention_interval", 1),
            ("ssm.time_step_rank", 2),
            ("ssm.inner_size", 8),
            ("ssm.group_count", 1),
            ("ssm.state_size", 4),
            ("ssm.conv_kernel", 2),
        ];
        let tensor = [("blk.0.attn_qkv.weight", [32 + 8 + 8, 16]), ("blk.1.attn_qkv.weight", [32 + 8 + 8, 16])];
        let origins = parsed("qwen35", &numbers, &tensor).origins;
        let of = |name: &str| &origins.iter().find(|(own, _)| own.ends_with(name)).unwrap().1;
        assert_eq!(*of("layers.0.self_attn.q_proj.weight"), Origin::rows("blk.0.attn_qkv.weight", 0..32));
        assert_eq!(*of("layers.0.self_attn.v_proj.weight"), Origin::rows("blk.0.attn_qkv.weight", 40..48));
    }

    #[test]
    fn biases_of_a_hybrid_are_those_of_its_own_layers() {
        let numbers = [
            ("feed_forward_length", 8),
            ("ssm.time_step_rank", 2),
            ("ssm.inner_size", 16),
            ("ssm.group_count", 1),
            ("ssm.state_size", 4),
            ("ssm.conv_kernel", 2),
        ];
        for (tensor, [conv, attention]) in
            [("blk.0.ssm_conv1d.bias", [true, false]), ("blk.1.attn_q.bias", [false, true]), ("blk.1.x", [false, false])]
        {
            let tensors = [(tensor, [1, 16]), ("blk.0.ffn_up.weight", [8, 16])];
            let parsed = parsed_with("granitehybrid", &[0, 2], &numbers, &tensors);
            assert_eq!(parsed.json.value()["mamba_conv_bias"], conv, "{tensor}");
            assert_eq!(parsed.json.value()["attention_bias"], attention, "{tensor}");
        }
    }

    #[test]
    fn layers_of_a_hybrid_may_all_be_without_attention_or_all_with_it() {
        let mamba = [("time_step_rank", 2), ("inner_size", 16), ("group_count", 1), ("state_size", 4), ("conv_kernel", 2)];
        let mamba = mamba.map(|(name, value)| (format!("ssm.{name}"), value));
        let numbers: Vec<(&str, u32)> = mamba.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let numbers = [&[("feed_forward_length", 8), ("shortconv.l_cache", 3)], numbers.as_slice()].concat();
        for (architecture, with, without) in [("lfm2", "full_attention", "conv"), ("granitehybrid", "attention", "mamba")] {
            for (heads, kind, kv_heads) in [([0, 0], without, 2), ([1, 1], with, 1)] {
                let numbers = if architecture == "lfm2" { &numbers[..2] } else { &numbers };
                let parsed = parsed_with(architecture, &heads, numbers, &[("blk.0.ffn_up.weight", [8, 16])]);
                assert_eq!(parsed.json.value()["layer_types"], serde_json::json!([kind, kind]), "{architecture}");
                assert_eq!(parsed.json.value()["num_key_value_heads"], kv_heads, "{architecture}");
            }
        }
    }

    #[test]
    fn what_has_no_part_in_the_network_is_known_by_its_name() {
        for name in
            ["rope_freqs.weight", "rope_factors_long.weight", "blk.7.attn_rot_embd", "blk.40.nextn.eh_proj.weight", "cls.bias"]
        {
            assert!(is_unused(name, &(4..4)), "{name}");
        }
        for layers in [4..4, 4..5] {
            assert!(!is_unused("blk.0.attn_q.weight", &layers) && !is_unused("token_embd.weight", &layers));
            assert_eq!(is_unused("blk.4.attn_q.weight", &layers), layers.len() == 1);
        }
    }
}
