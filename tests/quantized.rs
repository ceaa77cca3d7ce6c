//! Whole models whose matrices others have quantised: MLX, AWQ, GPTQ, compressed-tensors and FP8, each written here as its project writes
//! it, against the same numbers in F32. That a matrix of theirs is read right, `src/load/quantization/read.rs` tests against files that
//! the projects' own formulas made.

mod common;

use std::path::Path;

use common::{Reference, Tensors, golden, load, write_tensors};
use metal_candle::{ErrorKind, LoadOptions, LoraConfig, LoraTrainer, Model, Session, TrainOptions};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

const IDS: [u32; 11] = [110, 158, 47, 188, 30, 172, 9, 2, 131, 77, 5];

/// Numbers that a seed decides.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(n)) as u32
    }

    fn codes(&mut self, count: usize, bits: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(1 << bits)).collect()
    }

    /// From `2^-exponent` to twice that, in F16: its bytes, and what it is.
    fn f16(&mut self, exponent: u32) -> ([u8; 2], f32) {
        let fraction = self.below(1024);
        let bits = ((15 - exponent) << 10 | fraction) as u16;
        (bits.to_le_bytes(), (1.0 + fraction as f32 / 1024.0) * 0.5f32.powi(exponent as i32))
    }

    /// The same in BF16.
    fn bf16(&mut self, exponent: u32) -> ([u8; 2], f32) {
        let x = (1.0 + self.below(128) as f32 / 128.0) * 0.5f32.powi(exponent as i32);
        let bytes = x.to_le_bytes();
        ([bytes[2], bytes[3]], x)
    }
}

/// Codes one after another, each from the lowest bit that is free on: also what numbers of 32 bits hold, whose first code is in the lowest.
fn stream(codes: impl IntoIterator<Item = u32>, bits: usize) -> Vec<u8> {
    let (mut bytes, mut at) = (Vec::new(), 0);
    for code in codes {
        for bit in 0..bits {
            if at % 8 == 0 {
                bytes.push(0);
            }
            *bytes.last_mut().unwrap() |= ((code >> bit & 1) << (at % 8)) as u8;
            at += 1;
        }
    }
    bytes
}

/// A quantised matrix: its tensors by the last part of their names, and its numbers.
type Written = (Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>, Vec<f32>);

/// How a project writes matrices.
struct Layout {
    name: &'static str,
    /// What config.json says.
    config: fn() -> Value,
    /// A matrix of this module, of so many rows and columns; `None` for one that is left as it is.
    write: fn(&str, [usize; 2], &mut Random) -> Option<Written>,
}

/// Of the layers: the others quantise neither the embedding nor the output matrix.
fn is_projection(module: &str) -> bool {
    module.contains("_proj")
}

fn mlx(bits: usize, group: usize, [rows, cols]: [usize; 2], random: &mut Random) -> Written {
    let (codes, groups) = (random.codes(rows * cols, bits), cols / group);
    let (mut scales, mut biases, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for (i, codes) in codes.chunks(group).enumerate() {
        let ((scale_bytes, scale), (bias_bytes, bias)) = (random.bf16(bits as u32), random.bf16(1));
        // Scales of either sign.
        let sign = if i % 3 == 0 { -1.0 } else { 1.0 };
        scales.extend([scale_bytes[0], scale_bytes[1] | if sign < 0.0 { 0x80 } else { 0 }]);
        biases.extend([bias_bytes[0], bias_bytes[1] | if sign > 0.0 { 0x80 } else { 0 }]);
        numbers.extend(codes.iter().map(|code| sign * scale * *code as f32 - sign * bias));
    }
    let tensors = vec![
        ("weight", Dtype::U32, vec![rows, cols * bits / 32], stream(codes, bits)),
        ("scales", Dtype::BF16, vec![rows, groups], scales),
        ("biases", Dtype::BF16, vec![rows, groups], biases),
    ];
    (tensors, numbers)
}

/// Codes of `bits`, with down_proj in 8 and one matrix left out.
fn mlx_model(bits: usize, module: &str, shape: [usize; 2], random: &mut Random) -> Option<Written> {
    match module {
        _ if module.ends_with("layers.0.self_attn.o_proj") => None,
        _ if module.ends_with("down_proj") => Some(mlx(8, 64, shape, random)),
        _ => Some(mlx(bits, 32, shape, random)),
    }
}

fn mlx_config(bits: usize) -> Value {
    let mut own = json!({"group_size": 32, "bits": bits, "mode": "affine", "model.layers.0.self_attn.o_proj": false});
    for layer in 0..4 {
        own[format!("model.layers.{layer}.mlp.down_proj")] = json!({"group_size": 64, "bits": 8});
    }
    json!({"quantization": own, "quantization_config": own})
}

/// The group of AWQ and GPTQ here, where it is not all columns.
const GROUP: usize = 32;

fn awq([rows, cols]: [usize; 2], random: &mut Random) -> Written {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let (groups, mut scales, mut numbers) = (cols / GROUP, Vec::new(), vec![0.0; rows * cols]);
    // Both by columns.
    let (codes, zeros) = (random.codes(cols * rows, 4), random.codes(groups * rows, 4));
    for group in 0..groups {
        for row in 0..rows {
            let (bytes, scale) = random.f16(4);
            scales.extend(bytes);
            for col in group * GROUP..(group + 1) * GROUP {
                numbers[row * cols + col] = scale * (codes[col * rows + row] as f32 - zeros[group * rows + row] as f32);
            }
        }
    }
    let pack = |codes: &[u32]| stream(codes.chunks(8).flat_map(|eight| ORDER.map(|place| eight[place])), 4);
    let tensors = vec![
        ("qweight", Dtype::I32, vec![cols, rows / 8], pack(&codes)),
        ("qzeros", Dtype::I32, vec![groups, rows / 8], pack(&zeros)),
        ("scales", Dtype::F16, vec![groups, rows], scales),
    ];
    (tensors, numbers)
}

/// `less_one`: as the first version stores zeros.
fn gptq(bits: usize, group: Option<usize>, less_one: bool, [rows, cols]: [usize; 2], random: &mut Random) -> Written {
    let (group, each) = (group.unwrap_or(cols), 32 / bits);
    let (groups, mut scales, mut numbers) = (cols / group, Vec::new(), vec![0.0; rows * cols]);
    let (codes, zeros) = (random.codes(cols * rows, bits), random.codes(groups * rows, bits));
    for g in 0..groups {
        for row in 0..rows {
            let (bytes, scale) = random.f16(bits as u32);
            scales.extend(bytes);
            for col in g * group..(g + 1) * group {
                numbers[row * cols + col] = scale * (codes[col * rows + row] as f32 - zeros[g * rows + row] as f32);
            }
        }
    }
    // A number holds columns of one row, and numbers of neighbouring rows are neighbours.
    let words = (0..cols / each).flat_map(|word| (0..rows).map(move |row| (word, row)));
    let words = words.flat_map(|(word, row)| (0..each).map(move |i| (word * each + i) * rows + row));
    let stored = zeros.iter().map(|zero| zero.wrapping_sub(u32::from(less_one)) & ((1 << bits) - 1));
    let tensors = vec![
        ("qweight", Dtype::I32, vec![cols / each, rows], stream(words.map(|at| codes[at]), bits)),
        ("qzeros", Dtype::I32, vec![groups, rows / each], stream(stored, bits)),
        ("scales", Dtype::F16, vec![groups, rows], scales),
        ("g_idx", Dtype::I32, vec![cols], (0..cols).flat_map(|col| ((col / group) as i32).to_le_bytes()).collect()),
    ];
    (tensors, numbers)
}

/// `group`: columns of a scale; `None` = all.
fn packed(bits: usize, group: Option<usize>, [rows, cols]: [usize; 2], random: &mut Random) -> Written {
    let (codes, group) = (random.codes(rows * cols, bits), group.unwrap_or(cols));
    let (mut scales, mut numbers) = (Vec::new(), Vec::new());
    for codes in codes.chunks(group) {
        let (bytes, scale) = random.bf16(bits as u32);
        scales.extend(bytes);
        numbers.extend(codes.iter().map(|code| scale * (*code as f32 - (1 << (bits - 1)) as f32)));
    }
    let shape = [rows, cols].iter().flat_map(|n| (*n as i64).to_le_bytes()).collect();
    let tensors = vec![
        ("weight_packed", Dtype::I32, vec![rows, cols * bits / 32], stream(codes, bits)),
        ("weight_scale", Dtype::BF16, vec![rows, cols / group], scales),
        ("weight_shape", Dtype::I64, vec![2], shape),
    ];
    (tensors, numbers)
}

fn packed_config(bits: usize, group: Option<usize>) -> Value {
    let strategy = if group.is_some() { "group" } else { "channel" };
    let weights =
        json!({"num_bits": bits, "type": "int", "symmetric": true, "strategy": strategy, "group_size": group, "actorder": null});
    json!({"quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": null}}
    }})
}

/// `block`: rows and columns of a scale, each at most as many as there are.
fn fp8(field: &'static str, is_bf16: bool, block: [usize; 2], [rows, cols]: [usize; 2], random: &mut Random) -> Written {
    let [height, width] = [block[0].min(rows), block[1].min(cols)];
    let counts = [rows.div_ceil(height), cols.div_ceil(width)];
    // With a power of two as the only scale, weights have no more bits than BF16.
    let mut scale = || if counts == [1, 1] { ([0x80, 0x3b], 0.5f32.powi(8)) } else { random.bf16(8) };
    let scales: Vec<([u8; 2], f32)> = (0..counts[0] * counts[1]).map(|_| scale()).collect();
    // Neither of the two codes that are no numbers.
    let codes: Vec<u8> = (0..rows * cols).map(|_| (random.below(0x7f) | random.below(2) << 7) as u8).collect();
    let number = |code: u8| {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
        let magnitude = if exponent == 0 { fraction * 2f32.powi(-6) } else { (1.0 + fraction) * 2f32.powi(exponent - 7) };
        if code < 0x80 { magnitude } else { -magnitude }
    };
    let scale = |at: usize| scales[at / cols / height * counts[1] + at % cols / width].1;
    let numbers = codes.iter().enumerate().map(|(at, code)| number(*code) * scale(at)).collect();
    let (dtype, bytes) = if is_bf16 {
        (Dtype::BF16, scales.iter().flat_map(|(bytes, _)| *bytes).collect())
    } else {
        (Dtype::F32, scales.iter().flat_map(|(_, scale)| scale.to_le_bytes()).collect())
    };
    // One for all is a number without dimensions, or a list of one.
    let shape = if counts == [1, 1] { vec![1] } else { counts.to_vec() };
    (vec![("weight", Dtype::F8_E4M3, vec![rows, cols], codes), (field, dtype, shape, bytes)], numbers)
}

fn fp8_of_rows_config(strategy: &str) -> Value {
    let weights = json!({"num_bits": 8, "type": "float", "symmetric": true, "strategy": strategy});
    json!({"quantization_config": {
        "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": {"dynamic": true, "num_bits": 8}}}
    }})
}

fn gptq_config(bits: usize, group: i32, format: &str) -> Value {
    json!({"quantization_config": {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": false, "sym": false, "checkpoint_format": format
    }})
}

static LAYOUTS: [Layout; 18] = [
    Layout { name: "MLX 2", config: || mlx_config(2), write: |m, s, r| mlx_model(2, m, s, r) },
    Layout { name: "MLX 3", config: || mlx_config(3), write: |m, s, r| mlx_model(3, m, s, r) },
    Layout { name: "MLX 4", config: || mlx_config(4), write: |m, s, r| mlx_model(4, m, s, r) },
    Layout { name: "MLX 5", config: || mlx_config(5), write: |m, s, r| mlx_model(5, m, s, r) },
    Layout { name: "MLX 6", config: || mlx_config(6), write: |m, s, r| mlx_model(6, m, s, r) },
    Layout { name: "MLX 8", config: || mlx_config(8), write: |m, s, r| mlx_model(8, m, s, r) },
    Layout {
        name: "AWQ",
        config: || {
            json!({"quantization_config": {
                "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": true,
                "modules_to_not_convert": ["lm_head"]
            }})
        },
        write: |m, s, r| is_projection(m).then(|| awq(s, r)),
    },
    Layout {
        name: "GPTQ 4",
        config: || gptq_config(4, GROUP as i32, "gptq"),
        write: |m, s, r| is_projection(m).then(|| gptq(4, Some(GROUP), true, s, r)),
    },
    Layout {
        name: "GPTQ 4, version 2",
        config: || gptq_config(4, GROUP as i32, "gptq_v2"),
        write: |m, s, r| is_projection(m).then(|| gptq(4, Some(GROUP), false, s, r)),
    },
    Layout {
        name: "GPTQ 8, one group",
        config: || gptq_config(8, -1, "gptq"),
        write: |m, s, r| is_projection(m).then(|| gptq(8, None, true, s, r)),
    },
    Layout {
        name: "GPTQ 2",
        config: || gptq_config(2, GROUP as i32, "gptq"),
        write: |m, s, r| is_projection(m).then(|| gptq(2, Some(GROUP), true, s, r)),
    },
    Layout {
        name: "compressed-tensors 4",
        config: || packed_config(4, Some(32)),
        write: |m, s, r| is_projection(m).then(|| packed(4, Some(32), s, r)),
    },
    Layout {
        name: "compressed-tensors 8, of rows",
        config: || packed_config(8, None),
        write: |m, s, r| is_projection(m).then(|| packed(8, None, s, r)),
    },
    Layout {
        // Blocks that the last rows and columns do not fill.
        name: "FP8 of blocks",
        config: || json!({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [24, 40]}}),
        write: |m, s, r| is_projection(m).then(|| fp8("weight_scale_inv", false, [24, 40], s, r)),
    },
    Layout {
        name: "FP8 of blocks, as compressed-tensors",
        config: || {
            let mut config = fp8_of_rows_config("block");
            config["quantization_config"]["config_groups"]["group_0"]["weights"]["block_structure"] = json!([24, 40]);
            config
        },
        write: |m, s, r| is_projection(m).then(|| fp8("weight_scale", true, [24, 40], s, r)),
    },
    Layout {
        name: "FP8 of rows",
        config: || fp8_of_rows_config("channel"),
        write: |m, s, r| is_projection(m).then(|| fp8("weight_scale", true, [1, usize::MAX], s, r)),
    },
    Layout {
        name: "FP8, one scale in F32",
        config: || fp8_of_rows_config("tensor"),
        write: |m, s, r| is_projection(m).then(|| fp8("weight_scale", false, [usize::MAX; 2], s, r)),
    },
    Layout {
        name: "FP8, one scale in BF16",
        config: || fp8_of_rows_config("tensor"),
        write: |m, s, r| is_projection(m).then(|| fp8("weight_scale", true, [usize::MAX; 2], s, r)),
    },
];

/// A model of the shapes of `base` in a layout, and of the same numbers in F32.
fn pair(base: &Path, layout: &Layout) -> [TempDir; 2] {
    let config = common::json(&base.join("config.json"));
    let (mut quantised, mut plain, mut random) = (Tensors::new(), Tensors::new(), Random(7));
    for (name, tensor) in Reference::open(&base.join("model.safetensors")).tensors() {
        let module = name.trim_end_matches(".weight");
        let written = match tensor.1[..] {
            [rows, cols] => (layout.write)(module, [rows, cols], &mut random),
            _ => None,
        };
        let Some((tensors, numbers)) = written else {
            quantised.insert(name.clone(), tensor.clone());
            plain.insert(name, tensor);
            continue;
        };
        for (field, dtype, shape, bytes) in tensors {
            quantised.insert(format!("{module}.{field}"), (dtype, shape, bytes));
        }
        plain.insert(name, (Dtype::F32, tensor.1, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()));
    }
    let mut with_layout = config.clone();
    with_layout.as_object_mut().unwrap().extend((layout.config)().as_object().unwrap().clone());
    [(quantised, with_layout), (plain, config)].map(|(tensors, config)| {
        let folder = tempfile::tempdir().unwrap();
        write_tensors(&folder.path().join("model.safetensors"), tensors);
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        folder
    })
}

/// Logits of a prompt at once and token by token, and what training sees.
fn results(model: &Model) -> Vec<f32> {
    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(&IDS, None).unwrap();
    let mut found = session.logits().unwrap().to_vec();
    let mut session = Session::new(model, 0).unwrap();
    for id in IDS {
        session.append_tokens(&[id], None).unwrap();
        found.extend_from_slice(session.logits().unwrap());
    }
    let config = LoraConfig::default().rank(2).targets(["all-linear"]);
    let mut trainer = LoraTrainer::new(model, &config, &TrainOptions::default().learning_rate(0.01)).unwrap();
    for _ in 0..2 {
        let step = trainer.train_step(&IDS, None, &[0, 4, IDS.len()]).unwrap();
        found.extend([step.loss, step.update.unwrap().grad_norm]);
    }
    assert!(found.iter().all(|x| x.is_finite()));
    found
}

#[test]
fn a_model_of_each_layout_computes_the_bits_of_its_numbers() {
    // Tied and not, with biases, with matrices that are parts of one tensor.
    for base in ["decoders/qwen2_untied_old", "decoders/qwen2_tied", "decoders/phi3"] {
        let original = results(&load(golden(base)));
        for layout in &LAYOUTS {
            let what = format!("{base} as {}", layout.name);
            let [quantised, plain] = pair(&golden(base), layout);
            let (model, numbers) = (load(quantised.path()), load(plain.path()));
            assert_eq!(model.parameter_count(), numbers.parameter_count(), "{what}");
            let want = results(&numbers);
            assert!(results(&model) == want, "{what}");
            assert!(want != original, "{what}");
            // Saved, it is a model like any other.
            let folder = tempfile::tempdir().unwrap();
            let saved = folder.path().join("saved");
            model.save(&saved, None, None).unwrap();
            assert!(results(&load(&saved)) == want, "{what}: saved");
        }
    }
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let base = golden("decoders/qwen2_untied_old");
    let error = |folder: &TempDir| Model::load(folder.path(), &LoadOptions::default(), None).map(drop).unwrap_err();
    // Columns in the order of their importance.
    let gptq = LAYOUTS.iter().find(|layout| layout.name == "GPTQ 4").unwrap();
    let [folder, _] = pair(&base, gptq);
    let path = folder.path().join("model.safetensors");
    let mut tensors = Reference::open(&path).tensors();
    let (name, (_, _, order)) = tensors.iter_mut().find(|(name, _)| name.ends_with("down_proj.g_idx")).unwrap();
    let name = name.clone();
    order.as_chunks_mut::<4>().0.reverse();
    write_tensors(&path, tensors);
    let found = error(&folder);
    assert!(found.kind() == ErrorKind::Unsupported && found.message().contains(&name), "{found}");
    assert!(found.message().contains("act order"), "{found}");

    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(base.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let refused = |quantization: Value, parts: &[&str]| {
        let mut config = common::json(&base.join("config.json"));
        config.as_object_mut().unwrap().extend(quantization.as_object().unwrap().clone());
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let found = error(&folder);
        let says_all = parts.iter().all(|part| found.message().contains(part));
        assert!(found.kind() == ErrorKind::Unsupported && says_all, "{quantization}: {found}");
    };
    for method in [
        "bitsandbytes",
        "hqq",
        "quanto",
        "aqlm",
        "vptq",
        "eetq",
        "higgs",
        "spqr",
        "torchao",
        "bitnet",
        "fbgemm_fp8",
        "quark",
        "auto-round",
        "modelopt",
        "fp_quant",
    ] {
        refused(json!({"quantization_config": {"quant_method": method}}), &["quant_method", method]);
    }
    let compressed = |key: &str, value: Value| {
        let mut config = packed_config(4, Some(32));
        config["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value;
        config
    };
    let mut unpacked = compressed("symmetric", json!(false));
    unpacked["quantization_config"]["format"] = json!("int-quantized");
    refused(unpacked, &["symmetric"]);
    for order in [json!("group"), json!("Dynamic"), json!(true), json!(0)] {
        refused(compressed("actorder", order), &["actorder"]);
    }
    refused(compressed("num_bits", json!(3)), &["num_bits"]);
    let mut nvfp4 = packed_config(4, Some(32));
    nvfp4["quantization_config"]["format"] = json!("nvfp4-pack-quantized");
    refused(nvfp4, &["format", "nvfp4-pack-quantized"]);
    refused(json!({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp6"}}), &["mode", "mxfp6"]);
    refused(json!({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}), &["version", "gemv"]);
    refused(gptq_config(3, 32, "gptq"), &["bits"]);
}
