//! Directories as mlx-lm's converters write them, of the families that these call and lay out in another way: of the tensors of
//! transformers, what [`Rules`] says.
//!
//! Source: `sanitize` of the families of mlx-lm at commit d78bf58, <https://github.com/ml-explore/mlx-lm>.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Reference, golden, load, write_tensors};
use metal_candle::{ErrorKind, LoadOptions, Lora, LoraConfig, LoraTrainer, Model, Session, TrainOptions};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

type Tensor = (Dtype, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Tensor>;

const IDS: [u32; 9] = [5, 17, 3, 80, 41, 9, 66, 23, 12];

/// What the converter of a family does.
#[derive(Default, Clone, Copy)]
struct Rules {
    /// Stored experts, `{}` is the number of one, or a stack of gate and up and one of down; and the module of theirs.
    experts: Option<([&'static str; 3], &'static str)>,
    stacks: Option<(&'static str, &'static str, &'static str)>,
    /// What the three are called.
    projections: [&'static str; 3],
    /// Other names.
    renamed: &'static [(&'static str, &'static str)],
    /// A tensor of gate and up, and what becomes of it.
    halves: Option<(&'static str, [&'static str; 2])>,
    /// One is added to these.
    norms: &'static [&'static str],
    /// What is put in front of all names, and taken away before.
    prefix: (&'static str, &'static str),
    /// Tensors that are left out.
    dropped: &'static [&'static str],
    /// Of gpt-oss.
    alternates: bool,
}

const USUAL: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

const QWEN: Rules = Rules {
    experts: Some((["mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"], "mlp.switch_mlp")),
    stacks: Some(("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.switch_mlp")),
    projections: USUAL,
    renamed: &[],
    halves: None,
    norms: &[],
    prefix: ("", ""),
    dropped: &[],
    alternates: false,
};

const QWEN3_5: Rules = Rules {
    norms: &[
        ".input_layernorm.weight",
        ".post_attention_layernorm.weight",
        "model.norm.weight",
        "language_model.norm.weight",
        ".q_norm.weight",
        ".k_norm.weight",
    ],
    dropped: &["mtp.", "visual."],
    prefix: ("model.language_model.", "language_model.model."),
    ..QWEN
};

const FAMILIES: [(&str, Rules); 16] = [
    ("qwen3_moe", QWEN),
    ("olmoe", QWEN),
    ("qwen3_5_text", Rules { prefix: ("", "language_model."), ..QWEN3_5 }),
    ("qwen3_5_nested", QWEN3_5),
    ("qwen3_5_moe_text", Rules { prefix: ("", "language_model."), ..QWEN3_5 }),
    ("qwen3_5_moe_nested", QWEN3_5),
    ("lfm2", QWEN),
    (
        "lfm2_moe",
        Rules {
            experts: Some((
                ["feed_forward.experts.{}.w1", "feed_forward.experts.{}.w3", "feed_forward.experts.{}.w2"],
                "feed_forward.switch_mlp",
            )),
            renamed: &[
                ("feed_forward.w1.", "feed_forward.gate_proj."),
                ("feed_forward.w2.", "feed_forward.down_proj."),
                ("feed_forward.w3.", "feed_forward.up_proj."),
            ],
            ..QWEN
        },
    ),
    ("gemma4_text", Rules { prefix: ("", "language_model."), ..QWEN }),
    (
        "gemma4_nested",
        Rules {
            prefix: ("model.language_model.", "language_model.model."),
            dropped: &["vision_tower", "audio_tower", "embed_audio", "embed_vision"],
            ..QWEN
        },
    ),
    ("gemma4_moe", Rules { stacks: Some(("experts.gate_up_proj", "experts.down_proj", "experts.switch_glu")), ..QWEN }),
    (
        "mixtral",
        Rules {
            experts: Some((
                ["block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2"],
                "block_sparse_moe.switch_mlp",
            )),
            ..QWEN
        },
    ),
    (
        "granitemoehybrid_old",
        Rules {
            stacks: Some((
                "block_sparse_moe.input_linear.weight",
                "block_sparse_moe.output_linear.weight",
                "block_sparse_moe.switch_mlp",
            )),
            ..QWEN
        },
    ),
    (
        "granitemoehybrid_dense",
        Rules {
            halves: Some(("shared_mlp.input_linear", ["mlp.gate_proj", "mlp.up_proj"])),
            renamed: &[("shared_mlp.output_linear", "mlp.down_proj")],
            ..QWEN
        },
    ),
    (
        "nemotron_h",
        Rules {
            experts: Some((["", "mixer.experts.{}.up_proj", "mixer.experts.{}.down_proj"], "mixer.switch_mlp")),
            projections: ["", "fc1", "fc2"],
            ..QWEN
        },
    ),
    (
        "gpt_oss",
        Rules { stacks: Some(("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.experts")), alternates: true, ..QWEN },
    ),
];

fn floats((dtype, _, bytes): &Tensor) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
        other => panic!("{other:?}"),
    }
}

fn tensor(shape: Vec<usize>, values: &[f32]) -> Tensor {
    (Dtype::F32, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// The rows `from` of every so many, of each of the matrices.
fn rows(of: &Tensor, keep: impl Fn(usize, usize) -> bool) -> Tensor {
    let (values, shape) = (floats(of), &of.1);
    let (cols, height) = (shape[shape.len() - 1], shape[shape.len() - 2]);
    let kept = (0..height).filter(|row| keep(*row, height)).count();
    let all = values.chunks_exact(cols).enumerate().filter(|(row, _)| keep(row % height, height));
    let mut shape = shape.clone();
    let at = shape.len() - 2;
    shape[at] = kept;
    tensor(shape, &all.flat_map(|(_, row)| row.to_vec()).collect::<Vec<_>>())
}

/// Inputs and outputs of each matrix exchanged.
fn transposed(of: &Tensor) -> Tensor {
    let (values, &[count, first, second]) = (floats(of), &of.1[..]) else { panic!("{:?}", of.1) };
    let mut all = Vec::new();
    for matrix in values.chunks_exact(first * second) {
        (0..second).for_each(|col| all.extend(matrix.iter().skip(col).step_by(second)));
    }
    tensor(vec![count, second, first], &all)
}

/// What a converter makes of the tensors of a family.
fn converted(tensors: Tensors, rules: &Rules) -> Tensors {
    let mut all = Tensors::new();
    let mut experts: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
    'tensors: for (name, mut tensor) in tensors {
        if rules.dropped.iter().any(|dropped| name.contains(dropped)) {
            continue;
        }
        let mut name = match rules.prefix {
            (old, new) if !old.is_empty() && name.starts_with(old) => name.replacen(old, new, 1),
            (old, new) if !new.is_empty() => {
                let new = if old.is_empty() { new } else { "language_model." };
                format!("{new}{name}")
            }
            _ => name,
        };
        if rules.norms.iter().any(|norm| name.ends_with(norm) || name.ends_with("language_model.model.norm.weight"))
            && tensor.1.len() == 1
        {
            tensor = self::tensor(tensor.1.clone(), &floats(&tensor).iter().map(|x| x + 1.0).collect::<Vec<_>>());
        }
        // (channels, 1, taps) as (channels, taps, 1).
        if let [channels, 1, taps] = tensor.1[..]
            && name.contains("conv")
        {
            tensor.1 = vec![channels, taps, 1];
        }
        if let Some((stored, module)) = rules.experts {
            for (part, own) in stored.iter().zip(rules.projections).filter(|(part, _)| !part.is_empty()) {
                let (before, behind) = part.split_once("{}").unwrap();
                if let Some((place, rest)) = name.split_once(before)
                    && let Some(number) = rest.strip_suffix(".weight").and_then(|rest| rest.strip_suffix(behind))
                {
                    let key = format!("{place}{module}.{own}.weight");
                    experts.entry(key).or_default().insert(number.parse().unwrap(), tensor);
                    continue 'tensors;
                }
            }
        }
        if let Some((gate_up, down, module)) = rules.stacks {
            let [gate_name, up_name, down_name] = rules.projections;
            if let Some(place) = name.strip_suffix(gate_up) {
                let tensor = if rules.alternates { transposed(&tensor) } else { tensor };
                let is_gate = |row: usize, height: usize| if rules.alternates { row.is_multiple_of(2) } else { row < height / 2 };
                all.insert(format!("{place}{module}.{gate_name}.weight"), rows(&tensor, is_gate));
                all.insert(format!("{place}{module}.{up_name}.weight"), rows(&tensor, |row, height| !is_gate(row, height)));
                continue;
            }
            if let Some(place) = name.strip_suffix(down) {
                let tensor = if rules.alternates { transposed(&tensor) } else { tensor };
                all.insert(format!("{place}{module}.{down_name}.weight"), tensor);
                continue;
            }
            if let Some(place) = name.strip_suffix(&format!("{gate_up}_bias")) {
                let values = floats(&tensor);
                for (at, own) in [gate_name, up_name].into_iter().enumerate() {
                    let half: Vec<f32> = values.iter().skip(at).step_by(2).copied().collect();
                    let shape = vec![tensor.1[0], tensor.1[1] / 2];
                    all.insert(format!("{place}{module}.{own}.bias"), self::tensor(shape, &half));
                }
                continue;
            }
            if let Some(place) = name.strip_suffix(&format!("{down}_bias")) {
                all.insert(format!("{place}{module}.{down_name}.bias"), tensor);
                continue;
            }
        }
        if let Some((fused, parts)) = rules.halves
            && let Some(place) = name.strip_suffix(&format!("{fused}.weight"))
        {
            all.insert(format!("{place}{}.weight", parts[0]), rows(&tensor, |row, height| row < height / 2));
            all.insert(format!("{place}{}.weight", parts[1]), rows(&tensor, |row, height| row >= height / 2));
            continue;
        }
        for (old, new) in rules.renamed {
            name = name.replace(old, new);
        }
        all.insert(name, tensor);
    }
    for (name, each) in experts {
        let shape = [vec![each.len()], each[&0].1.clone()].concat();
        all.insert(name, tensor(shape, &each.values().flat_map(floats).collect::<Vec<_>>()));
    }
    all
}

/// What a saved model has of the tensors of a family: experts apart, where transformers reads them so too.
fn apart(tensors: Tensors, rules: &Rules) -> Tensors {
    let mut all = Tensors::new();
    for (name, tensor) in tensors.into_iter().filter(|(name, _)| !rules.dropped.iter().any(|dropped| name.contains(dropped))) {
        let Some(place) = name.strip_suffix("mlp.experts.gate_up_proj").or(name.strip_suffix("mlp.experts.down_proj")) else {
            all.insert(name, tensor);
            continue;
        };
        if rules.alternates {
            all.insert(name, tensor);
            continue;
        }
        let is_down = name.ends_with("down_proj");
        for expert in 0..tensor.1[0] {
            let mut add = |own: &str, of: &Tensor| {
                let (values, shape) = (floats(of), of.1[1..].to_vec());
                let len = values.len() / of.1[0];
                let name = format!("{place}mlp.experts.{expert}.{own}.weight");
                all.insert(name, self::tensor(shape, &values[expert * len..][..len]));
            };
            if is_down {
                add("down_proj", &tensor);
            } else {
                add("gate_proj", &rows(&tensor, |row, height| row < height / 2));
                add("up_proj", &rows(&tensor, |row, height| row >= height / 2));
            }
        }
    }
    all
}

fn written(tensors: Tensors, config: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_tensors(&folder.path().join("model.safetensors"), tensors);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn stored(base: &Path) -> (Tensors, Value) {
    (Reference::open(&base.join("model.safetensors")).tensors(), common::json(&base.join("config.json")))
}

/// Logits of a prompt at once and token by token.
fn results(model: &Model) -> Vec<f32> {
    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(&IDS, None).unwrap();
    let mut found = session.logits().unwrap().to_vec();
    let mut session = Session::new(model, 0).unwrap();
    for id in IDS {
        session.append_tokens(&[id], None).unwrap();
        found.extend_from_slice(session.logits().unwrap());
    }
    found
}

fn max_abs(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| if x.is_nan() { f32::INFINITY } else { (x - y).abs() }).fold(0.0, f32::max)
}

#[test]
fn every_converted_family_computes_what_it_did() {
    for (name, rules) in FAMILIES {
        let base = golden(&format!("decoders/{name}"));
        let (tensors, config) = stored(&base);
        let before: Vec<String> = tensors.keys().cloned().collect();
        let after = converted(tensors.clone(), &rules);
        let shapes = |path: &Path| Reference::open(&path.join("model.safetensors")).tensors();
        let folder = written(after, &config);
        let changed = shapes(folder.path());
        let is_other = changed.iter().any(|(name, _)| !before.contains(name)) || name == "lfm2";
        assert!(is_other, "{name}: nothing was converted");
        let original = load(&base);
        let model = Model::load(folder.path(), &LoadOptions::default(), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(model.parameter_count(), original.parameter_count(), "{name}");
        let (found, want) = (results(&model), results(&original));
        // A norm's weight is rounded where one is added to it.
        let tolerance = if rules.norms.is_empty() { 0.0 } else { 1e-3 };
        assert!(max_abs(&found, &want) <= tolerance, "{name}: {}", max_abs(&found, &want));
        // Saved, it is the same once more, and as transformers has it.
        let saved = folder.path().join("saved");
        model.save(&saved, None, None).unwrap();
        assert!(results(&load(&saved)) == found, "{name}: saved");
        let (saved, want) = (shapes(&saved), apart(tensors, &rules));
        assert!(saved.keys().eq(want.keys()), "{name}: {:#?}", saved.keys().filter(|name| !want.contains_key(*name)));
        for (tensor, want) in &want {
            let difference = max_abs(&floats(&saved[tensor]), &floats(want));
            assert!(saved[tensor].1 == want.1 && difference <= tolerance, "{name}: {tensor}: {difference}");
        }
    }
}

#[test]
fn what_is_merged_into_converted_weights_is_saved() {
    for (name, targets) in [
        ("granitemoehybrid_dense", &["all-linear"][..]),
        ("qwen3_5_moe_nested", &["all-linear", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
        ("gemma4_moe", &["all-linear", "experts.gate_up_proj"]),
        ("gpt_oss", &["all-linear", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    ] {
        let rules = FAMILIES.iter().find(|(family, _)| *family == name).unwrap().1;
        let (tensors, config) = stored(&golden(&format!("decoders/{name}")));
        let folder = written(converted(tensors, &rules), &config);
        let model = load(folder.path());
        let config = LoraConfig::default().rank(2).targets(targets.iter().copied());
        let mut trainer = LoraTrainer::new(&model, &config, &TrainOptions::default().learning_rate(0.1)).unwrap();
        trainer.train_step(&IDS, None, &[0, IDS.len()]).unwrap();
        let [adapter, saved] = ["adapter", "saved"].map(|name| folder.path().join(name));
        trainer.save(&adapter).unwrap();
        let merged = model.merge(&Lora::load(&model, &adapter).unwrap(), 1.0).unwrap();
        merged.save(&saved, None, None).unwrap();
        let want = results(&merged);
        assert!(results(&load(&saved)) == want && want != results(&model), "{name}");
    }
}

/// Codes of eight bits for groups of columns, and the numbers that they stand for.
fn affine(of: &Tensor, group: usize) -> ([Tensor; 3], Tensor) {
    let (values, shape) = (floats(of), &of.1);
    let cols = shape[shape.len() - 1];
    let (mut codes, mut scales, mut biases, mut numbers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for group in values.chunks_exact(group) {
        let (low, high) = group.iter().fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
        // Numbers of few bits, so that the products are exact.
        let short = |x: f32| f32::from_bits(x.to_bits() & 0xfff0_0000);
        let (scale, bias) = (short((high - low) / 255.0).max(2f32.powi(-12)), short(low));
        for x in group {
            let code = ((x - bias) / scale).round().clamp(0.0, 255.0);
            codes.push(code as u8);
            numbers.push(scale * code + bias);
        }
        scales.push(scale);
        biases.push(bias);
    }
    let with = |last: usize| [&shape[..shape.len() - 1], &[last]].concat();
    let groups = with(cols / group);
    let all = [(Dtype::U32, with(cols / 4), codes), tensor(groups.clone(), &scales), tensor(groups, &biases)];
    (all, tensor(shape.clone(), &numbers))
}

#[test]
fn quantised_experts_compute_the_bits_of_their_numbers() {
    let mut seen = 0;
    for (name, rules) in FAMILIES {
        let (tensors, config) = stored(&golden(&format!("decoders/{name}")));
        let (mut quantised, mut plain, mut count) = (Tensors::new(), Tensors::new(), 0);
        for (name, tensor) in converted(tensors, &rules) {
            let module = name.strip_suffix(".weight").unwrap_or(&name);
            let is_matrix = tensor.1.len() == 3 && !name.contains("conv") || name.contains("_proj") && tensor.1.len() == 2;
            // Groups of eight: the widths of small models are no multiples of what MLX has.
            if !is_matrix || !name.ends_with(".weight") || !tensor.1[tensor.1.len() - 1].is_multiple_of(8) {
                quantised.insert(name.clone(), tensor.clone());
                plain.insert(name, tensor);
                continue;
            }
            let (tensors, numbers) = affine(&tensor, 8);
            count += usize::from(tensor.1.len() == 3);
            for (field, tensor) in ["weight", "scales", "biases"].into_iter().zip(tensors) {
                quantised.insert(format!("{module}.{field}"), tensor);
            }
            plain.insert(name, numbers);
        }
        if count == 0 {
            continue;
        }
        let mut with_codes = config.clone();
        with_codes["quantization"] = json!({"group_size": 8, "bits": 8, "mode": "affine"});
        let (folder, numbers) = (written(quantised, &with_codes), written(plain, &config));
        let model = Model::load(folder.path(), &LoadOptions::default(), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let want = results(&load(numbers.path()));
        assert!(results(&model) == want, "{name}: {}", max_abs(&results(&model), &want));
        assert!(want != results(&load(golden(&format!("decoders/{name}")))), "{name}");
        seen += 1;
    }
    assert!(seen >= 8, "{seen}");
}

/// The converter of Falcon-H1 makes its multipliers a part of the weights, but those of the keys, and of the values' input.
fn multiplied(tensors: Tensors, config: &Value) -> Tensors {
    let factor = |key: &str| config[key].as_f64().unwrap() as f32;
    let list = |key: &str| config[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect::<Vec<_>>();
    let count = |key: &str| config[key].as_u64().unwrap() as usize;
    let [inner, groups, heads] = [count("mamba_d_ssm"), count("mamba_n_groups") * count("mamba_d_state"), count("mamba_n_heads")];
    let parts: Vec<f32> = [inner, inner, groups, groups, heads]
        .into_iter()
        .zip(list("ssm_multipliers"))
        .flat_map(|(rows, factor)| std::iter::repeat_n(factor, rows))
        .collect();
    let of = |name: &str| match name {
        name if name.ends_with("embed_tokens.weight") => factor("embedding_multiplier"),
        name if name.ends_with("lm_head.weight") => factor("lm_head_multiplier"),
        name if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") => factor("attention_in_multiplier"),
        name if name.ends_with("o_proj.weight") => factor("attention_out_multiplier"),
        name if name.ends_with("out_proj.weight") => factor("ssm_out_multiplier"),
        name if name.ends_with("gate_proj.weight") => list("mlp_multipliers")[0],
        name if name.ends_with("down_proj.weight") => list("mlp_multipliers")[1],
        name if name.ends_with("in_proj.weight") => factor("ssm_in_multiplier"),
        _ => 1.0,
    };
    let changed = |(name, of_model): (String, Tensor)| {
        let (values, cols) = (floats(&of_model), *of_model.1.last().unwrap());
        let is_mixed = name.ends_with("mamba.in_proj.weight");
        let row = |at: usize| of(&name) * if is_mixed { parts[at / cols] } else { 1.0 };
        let values: Vec<f32> = values.iter().enumerate().map(|(at, x)| x * row(at)).collect();
        (name, tensor(of_model.1, &values))
    };
    tensors.into_iter().map(changed).collect()
}

#[test]
fn multipliers_that_are_a_part_of_the_weights_are_not_applied_again() {
    for is_tied in [false, true] {
        let name = "falcon_h1";
        let (mut tensors, mut config) = stored(&golden(&format!("decoders/{name}")));
        if is_tied {
            tensors.remove("lm_head.weight");
            config["tie_word_embeddings"] = json!(true);
        }
        let original = written(tensors.clone(), &config);
        let folder = written(converted(multiplied(tensors, &config), &Rules::default()), &config);
        let model = Model::load(folder.path(), &LoadOptions::default(), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (found, want) = (results(&model), results(&load(original.path())));
        assert!(max_abs(&found, &want) <= 5e-4, "{name}, tied: {is_tied}: {}", max_abs(&found, &want));
        // Saved, the weights stay what they are.
        let saved = folder.path().join("saved");
        model.save(&saved, None, None).unwrap();
        assert!(results(&load(&saved)) == found, "{name}, tied: {is_tied}: saved");
        // An adapter of the original was trained beside the multipliers; one of these weights fits them.
        let error = Lora::load(&model, golden("adapters/falcon_h1")).map(drop).unwrap_err();
        assert!(error.message().contains("base_model_name_or_path: expected null"), "{error}");
        let of_saved = Lora::load(&load(&saved), golden("adapters/falcon_h1")).map(drop).unwrap_err();
        assert_eq!(of_saved.message(), error.message());
        let own = folder.path().join("adapter");
        LoraTrainer::new(&model, &LoraConfig::default().rank(2), &TrainOptions::default()).unwrap().save(&own).unwrap();
        Lora::load(&model, &own).unwrap();
        // Biases are not multiplied, and would have to be.
        config["attention_bias"] = json!(true);
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = Model::load(folder.path(), &LoadOptions::default(), None).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("config.json: attention_bias: expected false with weights of MLX"), "{error}");
    }
}
