use std::collections::HashMap;

use super::*;
use crate::load::Json;
use crate::nn::{
    Adapters, Batch, Entry, LayerState, Mix, OperationConfig, Pass, RowAdapters, SNAPSHOTS, TensorSource, TrainedModule,
    TrainedValues, Tying,
};
use crate::ops::{Backend, Dropout, KvFormat, ParameterValues, StepLogits, StepOutput};

/// The network of a directory, on the CPU, by our kernels or by the tensor operations of GPUs.
fn network(directory: &Path, kernels: bool) -> Transformer {
    network_of(directory, kernels, Format::F32)
}

fn network_of(directory: &Path, kernels: bool, stored: Format) -> Transformer {
    network_with(directory, kernels, |weights| weights, stored)
}

/// By our kernels, with quantised matrices.
fn quantised(directory: &Path, mix: &str) -> Transformer {
    let mix = Mix::named(mix);
    assert!(mix.is_some());
    network_with(directory, true, |weights| weights.quantized(mix), Format::F32)
}

fn network_with(directory: &Path, kernels: bool, set: impl FnOnce(Weights<'_>) -> Weights<'_>, stored: Format) -> Transformer {
    network_as(directory, kernels, set, Some(stored))
}

/// By whatever the file holds, where nothing else is `stored`.
fn network_as(
    directory: &Path,
    kernels: bool,
    set: impl FnOnce(Weights<'_>) -> Weights<'_>,
    stored: Option<Format>,
) -> Transformer {
    let mut files = Files::open(directory, &LoadOptions::default()).unwrap();
    if files.config.positions.is_none() {
        files.config.context_length = 512; // a dynamic rope goes as far as its caller says
    }
    let mut on_bytes = |_, _| Ok(());
    let mut checkpoint = files.tensors(&mut on_bytes).unwrap();
    let (cpu, new) = (candle_core::Device::Cpu, if kernels { Backend::new } else { Backend::by_tensors });
    let backend = new(&cpu);
    Transformer::load(files.config.clone(), &mut set(Weights::new(&mut *checkpoint, &backend, stored))).unwrap()
}

/// The logits after every token, evaluated in chunks.
fn logits(network: &Transformer, ids: &[u32], chunk: usize, adapters: Option<&Adapters>) -> Vec<f32> {
    let mut states = network.new_states();
    let mut all = Vec::new();
    for part in ids.chunks(chunk) {
        let step = Step { ids: part, states: &mut states, length: ids.len(), adapters };
        let hidden = network.forward(&mut [step]).unwrap();
        let mut out = Vec::new();
        let rows: Vec<usize> = (0..part.len()).collect();
        network.logits(&hidden, &rows, &RowAdapters::all(adapters), &mut out).unwrap();
        all.extend(out);
    }
    all
}

#[test]
fn the_scores_of_a_prompt_are_those_of_the_layer_that_sees_most() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoders");
    // Four heads, windows of 16; one of the two has a layer without.
    for (name, want) in [("mistral_window", 4 * 8 * 23), ("gemma3_text", 4 * 8 * 100)] {
        let network = network(&root.join(name), true);
        assert_eq!(network.config().score_values(8, 100), want, "{name}");
        assert_eq!(network.config().score_values(8, 9), 4 * 8 * 9, "{name}");
    }
}

#[test]
fn the_path_of_gpus_equals_the_path_of_the_cpu() {
    paths_are_equal(usize::MAX, &[usize::MAX, 7, 1]);
}

#[test]
fn a_gpus_kernels_in_its_path_change_nothing() {
    crate::kernels::gpu::with_executor(|| paths_are_equal(12, &[usize::MAX, 5]));
}

/// Of the first so many tokens of a prompt.
fn paths_are_equal(tokens: usize, chunks: &[usize]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    for folder in ["decoders", "families"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let directory = entry.unwrap().path();
            let notes = Json::read(&directory.join("golden.json")).unwrap();
            let prompt = &notes.value()["prompts"][3]["ids"];
            let ids: Vec<u32> = prompt.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let ids = &ids[..ids.len().min(tokens)];
            let want = logits(&network(&directory, true), ids, ids.len(), None);
            let tensors = network(&directory, false);
            for chunk in chunks.iter().map(|chunk| ids.len().min(*chunk)) {
                let got = logits(&tensors, ids, chunk, None);
                let error = want.iter().zip(&got).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                // Both are within 5e-4 of the reference; this is what the order of sums alone changes.
                assert!(error < 2e-4, "{} in chunks of {chunk}: {error}", directory.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 70);
}

/// The logits after every token behind the first `prompt`, each evaluated by the step of the kernels.
fn stepped(network: &Transformer, ids: &[u32], prompt: usize, adapters: Option<&Adapters>) -> Vec<f32> {
    let mut states = network.new_states();
    if prompt > 0 {
        let step = Step { ids: &ids[..prompt], states: &mut states, length: ids.len(), adapters };
        network.forward(&mut [step]).unwrap();
    }
    let mut all = Vec::new();
    for at in prompt..ids.len() {
        let mut out = Vec::new();
        let step = Step { ids: &ids[at..=at], states: &mut states, length: ids.len(), adapters };
        assert!(network.decode(&mut [step], &mut [StepLogits { row: 0, out: StepOutput::All(&mut out) }]).unwrap());
        assert_eq!(states.len(), at + 1);
        all.extend(out);
    }
    all
}

/// The decoders among the references whose tokens the step does not evaluate, each with what it lacks.
const WITHOUT_STEP: [(&str, &str); 22] = [
    ("decoders/falcon_h1", "factors of a branch"),
    ("decoders/falcon_h1_norm", "factors of a branch"),
    ("decoders/gemma4_moe", "experts"),
    ("decoders/gpt_oss", "experts"),
    ("decoders/gpt_oss_mxfp4_old", "experts"),
    ("decoders/granitemoe_swa", "experts"),
    ("decoders/granitemoehybrid_dense", "state-space layers"),
    ("decoders/granitemoehybrid_old", "state-space layers"),
    ("decoders/lfm2_moe", "experts"),
    ("decoders/lfm2_old", "a stream of 40 values, no multiple of 32"),
    ("decoders/mixtral", "experts"),
    ("decoders/nemotron_h", "state-space layers"),
    ("decoders/nemotron_h_old", "state-space layers"),
    ("decoders/olmoe", "a bound of queries, keys and values"),
    ("decoders/qwen3_5_moe_nested", "experts"),
    ("decoders/qwen3_5_moe_text", "experts"),
    ("decoders/qwen3_moe", "experts"),
    ("families/granitemoe", "experts"),
    ("families/granitemoeshared", "experts"),
    ("families/olmo_clip", "a bound of queries, keys and values"),
    ("families/qwen3_moe_sparse", "experts"),
    ("families/stablelm_qk", "norms of queries and keys of this kind"),
];

/// Launches of a layer and a token, as docs/devices.md has them.
const LAUNCHES: [(&str, usize); 40] = [
    ("decoders/gemma2", 7),
    ("decoders/gemma3_text", 7),
    ("decoders/gemma4_nested", 10),
    ("decoders/gemma4_text", 10),
    ("decoders/gemma4_unified", 7),
    ("decoders/gemma_old", 5),
    ("decoders/granite", 5),
    ("decoders/lfm2", 5),
    ("decoders/lfm3", 7),
    ("decoders/llama_plain", 5),
    ("decoders/ministral3", 5),
    ("decoders/mistral_window", 5),
    ("decoders/olmo2", 9),
    ("decoders/phi3", 5),
    ("decoders/qwen2_tied", 5),
    ("decoders/qwen3_5_text", 5),
    ("decoders/qwen3_sharded", 5),
    ("decoders/smollm3", 5),
    ("families/arcee", 5),
    ("families/cohere", 6),
    ("families/cohere2", 6),
    ("families/ernie4_5", 5),
    ("families/exaone4", 7),
    ("families/exaone4_full", 7),
    ("families/glm", 5),
    ("families/glm4", 7),
    ("families/helium", 5),
    ("families/hunyuan_v1_dense", 5),
    ("families/llama_yarn", 5),
    ("families/nemotron", 7),
    ("families/olmo", 7),
    ("families/olmo3", 9),
    ("families/phi", 6),
    ("families/phi3_partial", 5),
    ("families/seed_oss", 5),
    ("families/seed_oss_nobias", 5),
    ("families/stablelm", 7),
    ("families/stablelm_parallel", 6),
    ("families/starcoder2", 7),
    ("families/vaultgemma", 5),
];

/// The decoders among the references.
fn decoders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = |folder: &str| std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = entries("decoders").chain(entries("families")).collect();
    all.sort();
    all
}

/// `decoders/qwen2_tied`
fn name_of(directory: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    directory.strip_prefix(root).unwrap().to_str().unwrap().to_string()
}

/// A reference's directory, or one of the same network with widths that the kernels take, where its own are none of them.
enum OfStep {
    Own(PathBuf),
    Widened(tempfile::TempDir),
}

impl OfStep {
    /// `Err` with what the step lacks.
    fn of(directory: &Path) -> std::result::Result<Self, String> {
        let lacks = |directory: &Path| network(directory, false).with_decode_step().unwrap().lacks().map(|lacks| lacks.0.clone());
        match lacks(directory) {
            None => Ok(Self::Own(directory.to_path_buf())),
            Some(what) if what.contains(" values") => match widened(directory) {
                Some(widened) => lacks(widened.path()).map_or(Ok(Self::Widened(widened)), Err),
                None => Err(what),
            },
            Some(what) => Err(what),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Widened(directory) => directory.path(),
        }
    }
}

/// The network of a reference with widths that are multiples of 32, and heads of multiples of 8. The path of the CPU, which the reference
/// proves, is what its results are compared with. `None` where the config does not say its widths as all others do.
fn widened(directory: &Path) -> Option<tempfile::TempDir> {
    let mut config = Json::read(&directory.join("config.json")).unwrap().value().clone();
    let own = if config.get("text_config").is_some() { &mut config["text_config"] } else { &mut config };
    let size = |own: &serde_json::Value, key: &str| own[key].as_u64().map(|size| size as usize);
    let (hidden, heads) = (size(own, "hidden_size").unwrap(), size(own, "num_attention_heads").unwrap());
    let (inner, kv_heads) = (size(own, "intermediate_size")?, size(own, "num_key_value_heads").unwrap_or(heads));
    let head_dim = size(own, "head_dim");
    let wide = [hidden, inner].map(|width| width.next_multiple_of(32));
    own["hidden_size"] = wide[0].into();
    own["intermediate_size"] = wide[1].into();
    let wide_head = head_dim.map_or(wide[0] / heads, |dim| dim.next_multiple_of(8));
    if head_dim.is_some() {
        own["head_dim"] = wide_head.into();
    }
    let head_dim = head_dim.unwrap_or(hidden / heads);
    // What widths become, of MLPs and of all else: gates and values, or queries, keys and values, may lie together.
    let of_stream = (hidden, wide[0]);
    let of_mlps = [of_stream, (inner, wide[1]), (2 * inner, 2 * wide[1])];
    let of_heads = [heads, kv_heads, heads + 2 * kv_heads, 1].map(|count| (count * head_dim, count * wide_head));
    let mut others = [&[of_stream, (3 * hidden, 3 * wide[0])], &of_heads[..]].concat();
    if let (Some(values), Some(heads)) = (size(own, "linear_value_head_dim"), size(own, "linear_num_value_heads")) {
        let keys = size(own, "linear_key_head_dim").unwrap() * size(own, "linear_num_key_heads").unwrap();
        let wide = values.next_multiple_of(8);
        own["linear_value_head_dim"] = wide.into();
        let channels = |values: usize| 2 * keys + heads * values;
        others.extend([(channels(values), channels(wide)), (heads * values, heads * wide), (values, wide)]);
    }
    let (layers, of_layer) = (size(own, "num_hidden_layers").unwrap(), size(own, "hidden_size_per_layer_input").unwrap_or(0));
    let wide_layer = of_layer.next_multiple_of(32);
    if of_layer > 0 {
        own["hidden_size_per_layer_input"] = wide_layer.into();
    }
    let of_layers = [of_stream, (of_layer, wide_layer)];

    let mut on_bytes = |_, _| Ok(());
    let mut source = Files::open(directory, &LoadOptions::default()).unwrap().tensors(&mut on_bytes).unwrap();
    let names: Vec<String> = source.names().into_iter().map(str::to_owned).collect();
    let mut tensors = Vec::new();
    for name in names {
        let entry = source.entry(&name).unwrap().clone();
        let Ok(stored) = entry.stored else { continue };
        if entry.shape.contains(&0) {
            continue;
        }
        let mut bytes = vec![0; entry.shape.iter().product::<usize>() / stored.block() * stored.block_bytes()];
        source.read(&name, 0, &mut bytes).unwrap();
        let values = stored.widen(&bytes);
        let in_mlp = name.contains("mlp") || name.contains("feed_forward");
        let of_each = name.contains("per_layer_model_projection") || name.contains("embed_tokens_per_layer");
        let widths = if in_mlp {
            &of_mlps[..]
        } else if name.contains("per_layer") {
            &of_layers[..]
        } else {
            &others[..]
        };
        let is_table = (name.contains("embed") || name.contains("lm_head")) && !name.contains("norm");
        let wider = |(i, &size): (usize, &usize)| {
            // Rows of a projection, or columns of a table: as many for each layer.
            if of_each && size == layers * of_layer && (i == 0 || is_table) {
                return layers * wide_layer;
            }
            let found = widths.iter().find(|(from, _)| *from == size && !(is_table && i == 0));
            found.map_or(size, |(_, to)| *to)
        };
        let shape: Vec<usize> = entry.shape.iter().enumerate().map(wider).collect();
        let (cols, wide_cols) = (entry.shape.last().copied().unwrap_or(1), shape.last().copied().unwrap_or(1));
        let (rows, wide_rows) = (values.len() / cols, shape.iter().product::<usize>() / wide_cols);
        let mut seed = 1u32;
        let mut value = |i: usize| {
            let (row, col) = (i / wide_cols, i % wide_cols);
            let known = values[row % rows * cols + col % cols];
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Unlike the row or column that it is made of, and about as large.
            if row < rows && col < cols { known } else { known * (0.4 + (seed >> 8) as f32 / (1 << 24) as f32) }
        };
        let bytes: Vec<u8> = (0..wide_rows * wide_cols).flat_map(|i| value(i).to_le_bytes()).collect();
        tensors.push((name, shape, bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Some(folder)
}

#[test]
fn the_step_of_a_gpu_equals_the_path_of_the_cpu() {
    crate::kernels::gpu::with_executor(|| {
        let (mut seen, mut missing) = (0, Vec::new());
        for directory in decoders() {
            let notes = Json::read(&directory.join("golden.json")).unwrap();
            let prompt = &notes.value()["prompts"][3]["ids"];
            let ids: Vec<u32> = prompt.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let name = name_of(&directory);
            let directory = match OfStep::of(&directory) {
                Ok(directory) => directory,
                Err(lacks) => {
                    missing.push((name, lacks));
                    continue;
                }
            };
            let directory = directory.path();
            // States of fixed size change behind sixteen tokens, and a ring comes round behind 32.
            let has_fixed = network(directory, false).new_states().of_snapshot().next().is_some();
            let ids: Vec<u32> = ids.iter().copied().cycle().take(if has_fixed { 37 } else { ids.len().min(14) }).collect();
            let ids = &ids[..];
            // In F16 both compute in F32 with rounded weights, and the cache is rounded alike.
            for (stored, kept, limit) in [(Format::F32, KvFormat::F32, 2e-4), (Format::F16, KvFormat::F16, 4e-3)] {
                // Rounding is the same for all: a few show it.
                if stored == Format::F16 && seen % 5 > 0 {
                    continue;
                }
                let tensors = network_of(directory, false, stored).with_kv_format(kept);
                let step = tensors.with_decode_step().unwrap();
                // What of the prompt is evaluated by tensors is rounded to F16 between operations.
                let prompt = if stored == Format::F32 { 5 } else { 0 };
                let cpu = network_of(directory, true, stored).with_kv_format(kept);
                let want = logits(&cpu, ids, ids.len(), None).split_off(prompt * cpu.config().vocab_size);
                let got = stepped(&step, ids, prompt, None);
                let error = want.iter().zip(&got).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                let largest = want.iter().fold(1f32, |largest, x| largest.max(x.abs()));
                assert!(got.len() == want.len() && error < limit * largest, "{name} {stored:?}: {error}");
                // But for the embedding, the last norm and the output.
                let of_layer = (crate::kernels::gpu::last_recorded() - 2) / step.config().layers.len();
                if let Some((_, launches)) = LAUNCHES.iter().find(|(known, _)| *known == name) {
                    assert_eq!(of_layer, *launches, "{name}");
                }
                assert!((5..=10).contains(&of_layer), "{name}: {of_layer}");
                seen += 1;
            }
        }
        // From the second token on a step is what was recorded.
        let (recorded, replayed) = crate::kernels::gpu::recorded_and_replayed();
        assert!(recorded >= seen && replayed >= 4 * recorded, "{recorded} steps were recorded, and replayed {replayed} times");
        let known: Vec<_> = missing.iter().map(|(name, lacks)| (name.as_str(), lacks.as_str())).collect();
        assert_eq!(known, WITHOUT_STEP);
    });
}

#[test]
fn several_rows_of_several_sequences_are_one_step() {
    crate::kernels::gpu::with_executor(|| {
        let mut seen = 0;
        for reference in decoders() {
            let Ok(directory) = OfStep::of(&reference) else { continue };
            let (name, directory) = (name_of(&reference), directory.path());
            let network = network(directory, false).with_decode_step().unwrap();
            let cpu = network_of(directory, true, Format::F32);
            let vocab_size = cpu.config().vocab_size;
            // Each sequence has a prompt of its own, and then some rows of a step: of the last one two chunks of a scan.
            let lengths = [(2, 3), (5, 1), (1, 2), (15, 2)];
            let ids = |i: usize| (0..17).map(|t| (3 + (t + 5 * i) as u32 * 67 % 80) % vocab_size as u32).collect::<Vec<u32>>();
            let all: Vec<Vec<u32>> = (0..lengths.len()).map(|i| ids(i)[..lengths[i].0 + lengths[i].1].to_vec()).collect();
            let mut states: Vec<States> = all.iter().map(|_| network.new_states()).collect();
            for (i, states) in states.iter_mut().enumerate() {
                let step = Step { ids: &all[i][..lengths[i].0], states, length: all[i].len(), adapters: None };
                network.forward(&mut [step]).unwrap();
            }
            let mut steps: Vec<_> = states
                .iter_mut()
                .enumerate()
                .map(|(i, states)| Step { ids: &all[i][lengths[i].0..], states, length: all[i].len(), adapters: None })
                .collect();
            let mut outs = vec![Vec::new(); 8];
            let mut wanted: Vec<_> =
                outs.iter_mut().enumerate().map(|(row, out)| StepLogits { row, out: StepOutput::All(out) }).collect();
            assert!(network.decode(&mut steps, &mut wanted).unwrap());
            assert!(states.iter().zip(&all).all(|(states, ids)| states.len() == ids.len()));
            let want: Vec<f32> = (0..lengths.len())
                .flat_map(|i| logits(&cpu, &all[i], all[i].len(), None).split_off(lengths[i].0 * vocab_size))
                .collect();
            let largest = want.iter().fold(1f32, |largest, x| largest.max(x.abs()));
            let error = want.iter().zip(outs.iter().flatten()).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(outs.concat().len() == want.len() && error < 2e-4 * largest, "{name}: {error}");
            // The most probable token of some rows, beside all logits of the others.
            for (i, states) in states.iter_mut().enumerate() {
                // What a scan has taken up of a chunk cannot be taken back behind its end.
                let kept = states.truncate(lengths[i].0);
                if kept < lengths[i].0 {
                    let step = Step { ids: &all[i][kept..lengths[i].0], states, length: all[i].len(), adapters: None };
                    network.forward(&mut [step]).unwrap();
                }
            }
            let mut steps: Vec<_> = states
                .iter_mut()
                .enumerate()
                .map(|(i, states)| Step { ids: &all[i][lengths[i].0..], states, length: all[i].len(), adapters: None })
                .collect();
            let (mut best, mut others) = ([None; 8], vec![Vec::new(); 8]);
            let mut wanted: Vec<_> = best
                .iter_mut()
                .zip(&mut others)
                .enumerate()
                .map(|(row, (best, all))| StepLogits {
                    row,
                    out: if row % 3 == 0 { StepOutput::All(all) } else { StepOutput::Best(best) },
                })
                .collect();
            assert!(network.decode(&mut steps, &mut wanted).unwrap());
            for (row, (best, logits)) in best.iter().zip(&outs).enumerate() {
                if row % 3 == 0 {
                    assert!(best.is_none() && others[row] == *logits, "{name}: row {row}");
                    continue;
                }
                let best = best.unwrap();
                let highest = logits.iter().fold(f32::MIN, |highest, x| highest.max(*x));
                let sum: f64 = logits.iter().map(|x| f64::from(x - highest).exp()).sum();
                let at = logits.iter().position(|x| *x == highest).unwrap();
                let error = (f64::from(best.logprob) + sum.ln()).abs();
                // A softcap of the device may round two logits to one that the host tells apart.
                let is_same = best.id as usize == at || highest - logits[best.id as usize] < 1e-5;
                assert!(is_same && error < 1e-5, "{name}: row {row}: {best:?}, not {at}: {error}");
            }
            // Nine rows of one sequence are no step; of nine sequences they are two.
            let mut states = network.new_states();
            let step = Step { ids: &ids(0)[..9], states: &mut states, length: 9, adapters: None };
            assert!(!network.decode(&mut [step], &mut []).unwrap());
            if seen == 0 {
                let begun = |i: usize| {
                    let mut states = network.new_states();
                    network.forward(&mut [Step { ids: &ids(i)[..2], states: &mut states, length: 3, adapters: None }]).unwrap();
                    states
                };
                let all: Vec<Vec<u32>> = (0..9).map(ids).collect();
                let mut together: Vec<States> = (0..9).map(begun).collect();
                let steps = together.iter_mut().zip(&all);
                let mut steps: Vec<_> =
                    steps.map(|(states, ids)| Step { ids: &ids[2..3], states, length: 3, adapters: None }).collect();
                let mut outs = vec![Vec::new(); 9];
                let mut wanted: Vec<_> =
                    outs.iter_mut().enumerate().map(|(row, out)| StepLogits { row, out: StepOutput::All(out) }).collect();
                assert!(network.decode(&mut steps, &mut wanted).unwrap());
                for (i, out) in outs.iter().enumerate() {
                    let (mut states, mut alone) = (begun(i), Vec::new());
                    let step = Step { ids: &all[i][2..3], states: &mut states, length: 3, adapters: None };
                    assert!(network.decode(&mut [step], &mut [StepLogits { row: 0, out: StepOutput::All(&mut alone) }]).unwrap());
                    let error = out.iter().zip(&alone).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                    assert!(out.len() == vocab_size && error < 2e-4 * largest, "{name}: row {i}: {error}");
                    assert_eq!(together[i].len(), 3);
                }
            }
            seen += 1;
        }
        assert_eq!(seen, decoders().len() - WITHOUT_STEP.len());
    });
}

#[test]
fn a_step_that_fails_leaves_no_state_that_it_may_have_changed() {
    crate::kernels::gpu::with_executor(|| {
        for name in ["lfm2", "qwen3_5_text"] {
            let directory = OfStep::of(&Path::new("tests/golden/decoders").join(name)).unwrap();
            let network = network(directory.path(), false).with_decode_step().unwrap();
            let ids: Vec<u32> = (0..18).map(|i| (3 + i * 67) % 80).collect();
            let mut states = network.new_states();
            let mut step = |ids: &[u32], row| {
                let mut out = Vec::new();
                let step = Step { ids, states: &mut states, length: 18, adapters: None };
                let result = network.decode(&mut [step], &mut [StepLogits { row, out: StepOutput::All(&mut out) }]);
                (result.map(|_| out), states.len())
            };
            let all: Vec<_> = ids.iter().map(|id| step(&[*id], 0)).collect();
            let (failed, held) = step(&[7], 1);
            assert!(failed.is_err() && held == 0, "{name}: {held} tokens held");
            assert_eq!(states.truncate(0), 0);
            let mut again = Vec::new();
            for (at, id) in ids.iter().enumerate() {
                let step = Step { ids: &[*id], states: &mut states, length: 18, adapters: None };
                assert!(network.decode(&mut [step], &mut [StepLogits { row: 0, out: StepOutput::All(&mut again) }]).unwrap());
                let (known, held) = &all[at];
                assert!(*held == at + 1 && *known.as_ref().unwrap() == again, "{name}: token {at}");
            }
        }
    });
}

#[test]
fn adapters_are_in_the_step_of_a_gpu() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    // `None` for what the library refuses.
    let attached = |network: &Transformer, adapter: &Path| {
        let adapter = crate::load::Peft::read(adapter, network, &[]).ok()?.adapter;
        let scaled = adapter.scaled(network, 0.7).unwrap();
        Some(Adapters::new(network, [(&adapter, &scaled)]).unwrap())
    };
    crate::kernels::gpu::with_executor(|| {
        let (mut seen, mut others) = (0, 0);
        for folder in ["lora", "adapters"] {
            let mut entries: Vec<_> = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            for adapter in entries.into_iter().filter(|adapter| adapter.join("adapter_config.json").exists()) {
                let notes = Json::read(&adapter.join("golden.json")).unwrap();
                let directory = root.join(notes.text("base").unwrap().unwrap());
                let tensors = network(&directory, false).with_decode_step().unwrap();
                if !tensors.decodes_by_kernels() {
                    continue;
                }
                let Some(adapters) = attached(&tensors, &adapter) else { continue };
                let vocab_size = tensors.config().vocab_size;
                let ids: Vec<u32> = (0..9).map(|i| (3 + i * 67 % 200) % vocab_size as u32).collect();
                // What has gains, or replaces a matrix, is evaluated by tensor operations.
                let mut states = tensors.new_states();
                let step = Step { ids: &ids[..1], states: &mut states, length: 1, adapters: Some(&adapters) };
                let mut out = Vec::new();
                if !tensors.decode(&mut [step], &mut [StepLogits { row: 0, out: StepOutput::All(&mut out) }]).unwrap() {
                    assert_eq!(states.len(), 0);
                    others += 1;
                    continue;
                }
                let kernels = network(&directory, true);
                let on_cpu = attached(&kernels, &adapter).unwrap();
                let want = logits(&kernels, &ids, ids.len(), Some(&on_cpu)).split_off(3 * vocab_size);
                let got = stepped(&tensors, &ids, 3, Some(&adapters));
                let largest = want.iter().fold(1f32, |largest, x| largest.max(x.abs()));
                let error = want.iter().zip(&got).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(got.len() == want.len() && error < 2e-4 * largest, "{}: {error}", adapter.display());
                // Two sequences with it and without.
                let mut all = [tensors.new_states(), tensors.new_states()];
                let [first, second] = &mut all;
                let mut steps = [
                    Step { ids: &ids[..1], states: first, length: 1, adapters: Some(&adapters) },
                    Step { ids: &ids[..1], states: second, length: 1, adapters: None },
                ];
                let mut outs = [Vec::new(), Vec::new()];
                let [a, b] = &mut outs;
                let mut wanted = [StepLogits { row: 1, out: StepOutput::All(b) }, StepLogits { row: 0, out: StepOutput::All(a) }];
                assert!(tensors.decode(&mut steps, &mut wanted).unwrap());
                let plain = logits(&kernels, &ids[..1], 1, None);
                let error = plain.iter().zip(&outs[1]).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(outs[0] == out && outs[0] != outs[1] && error < 2e-4 * largest, "{}: {error}", adapter.display());
                seen += 1;
            }
        }
        assert!(seen >= 8 && others >= 1, "{seen}, {others} by tensors");
    });
}

#[test]
fn where_kernels_do_not_compile_numbers_are_left_to_tensor_operations() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    crate::kernels::gpu::with_executor(|| {
        let mut entries: Vec<_> = std::fs::read_dir(root.join("decoders")).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        let ids = [3, 5, 7, 11];
        let is_known = |directory: &PathBuf| network(directory, false).with_decode_step().unwrap().decodes_by_kernels();
        let directory = entries.into_iter().find(is_known).unwrap();
        let cannot = || network(&directory, false).with_decode_step().unwrap();
        let without = crate::kernels::gpu::without_compiler(cannot);
        assert!(without.lacks().is_some_and(|Unsupported(what)| what.contains("line 7: no such type")));
        assert!(!without.decodes_by_kernels());
        assert_eq!(logits(&without, &ids, 4, None), logits(&network(&directory, false), &ids, 4, None));
        // That a device has no room for the threads of one shows before the first token, too.
        let narrow = crate::kernels::gpu::with_most_threads(100, cannot);
        assert!(
            narrow.lacks().is_some_and(|Unsupported(what)| what.contains("expected at most 100 threads of a threadgroup, found"))
        );
        // Quantised weights have nothing else that reads them.
        let file = root.join("gguf/qwen2-Q8_0.gguf");
        let mut files = Files::open(&file, &LoadOptions::default()).unwrap();
        files.config.context_length = 64;
        let mut on_bytes = |_, _| Ok(());
        let mut checkpoint = files.tensors(&mut on_bytes).unwrap();
        let backend = Backend::by_tensors(&candle_core::Device::Cpu);
        let mut weights = Weights::new(&mut *checkpoint, &backend, Some(Format::F32)).keeping_quantised(true);
        let load = || Transformer::load(files.config.clone(), &mut weights).err().map(|error| error.to_string());
        let error = crate::kernels::gpu::without_compiler(load).unwrap();
        assert!(error.contains("quantised weights need kernels") && error.contains("line 7: no such type"), "{error}");
    });
}

/// The largest error of a network's logits by tensor operations in several chunks, and by the step where it has one, as a share of the
/// largest of the others, `want`; and the rows whose best token is another, by more than a thousandth. A reason stands for the step where there is none.
fn errors_on_a_gpu(network: Transformer, ids: &[u32], want: &[f32]) -> (f32, usize, Option<String>) {
    let vocab_size = network.config().vocab_size;
    let largest = want.iter().fold(1f32, |largest, x| largest.max(x.abs()));
    let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a)));
    let (mut error, mut others) = (0f32, 0);
    let mut compare = |want: &[f32], got: &[f32]| {
        assert_eq!(want.len(), got.len());
        error = want.iter().zip(got).map(|(x, y)| (x - y).abs() / largest).fold(error, f32::max);
        let rows = want.chunks_exact(vocab_size).zip(got.chunks_exact(vocab_size));
        let is_other = |(want, got): &(&[f32], &[f32])| {
            let (a, b) = (best(want).unwrap(), best(got).unwrap());
            want[a] - want[b] > 1e-3 * largest
        };
        others += rows.filter(is_other).count();
    };
    for chunk in [ids.len(), 5] {
        compare(want, &logits(&network, ids, chunk, None));
    }
    let step = network.with_decode_step().unwrap();
    if step.lacks().is_none() {
        compare(&want[3 * vocab_size..], &stepped(&step, ids, 3, None));
    }
    (error, others, step.lacks().map(|lacks| lacks.0.clone()))
}

#[test]
fn quantised_files_compute_on_a_gpu_what_they_compute_on_the_cpu() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = |folder: &str| std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let is_model =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gguf") || path.join("config.json").exists();
    let mut paths: Vec<PathBuf> = entries("gguf").chain(entries("quantized")).filter(is_model).collect();
    paths.sort();
    crate::kernels::gpu::with_executor(|| {
        let (mut seen, mut stepped, mut failed) = (0, 0, Vec::new());
        for path in &paths {
            let cpu = network_as(path, true, |weights| weights, None);
            let gpu = network_as(path, false, |weights| weights.keeping_quantised(true), Some(Format::F32));
            if !cpu.generates() {
                continue;
            }
            let ids: Vec<u32> = (0..13).map(|i| (3 + i * 67 % 80) % cpu.config().vocab_size as u32).collect();
            let want = logits(&cpu, &ids, ids.len(), None);
            let (error, others, unsupported) = errors_on_a_gpu(gpu, &ids, &want);
            seen += 1;
            stepped += usize::from(unsupported.is_none());
            // Scales and mins of two levels are rounded to F16, by 2⁻¹¹ of themselves at most; values are what mins leave of products, and
            // so are off by a few times that of their size.
            let limit = if path.to_str().unwrap().contains("_K") { 8e-3 } else { 2e-3 };
            if error > limit || others > 0 {
                failed.push((path.clone(), error, others));
            }
        }
        assert!(failed.is_empty() && seen >= 29 && stepped >= 29, "{seen}, {stepped} by the step, {failed:?}");
    });
}

#[test]
fn networks_quantised_for_a_gpu_are_those_of_the_cpu() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let ids: Vec<u32> = (0..11).map(|i| 3 + i * 67 % 80).collect();
    crate::kernels::gpu::with_executor(|| {
        let (mut seen, mut stepped) = (0, 0);
        for folder in ["decoders", "families"] {
            let mut entries: Vec<_> = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            for (i, directory) in entries.into_iter().enumerate() {
                let mix = ["q8_0", "q4_0", "q4_k_m"][i % 3];
                let cpu = quantised(&directory, mix);
                // Of others a part is quantised, or rounded, on the CPU alone.
                let is_whole = cpu.modules().iter().all(|module| module.inputs.is_multiple_of(32));
                if !is_whole || cpu.weights_by_format().contains_key("F16") {
                    continue;
                }
                let gpu = network_with(&directory, false, |weights| weights.quantized(Mix::named(mix)), Format::F32);
                let want = logits(&cpu, &ids, ids.len(), None);
                let (error, others, unsupported) = errors_on_a_gpu(gpu, &ids, &want);
                // Of a code the power it is put below takes eight bits of F32's 24: 4e-5 of a product at most.
                assert!(error < 1e-3 && others == 0, "{} {mix}: {error}, {others}", directory.display());
                seen += 1;
                stepped += usize::from(unsupported.is_none());
            }
        }
        assert!(seen >= 20 && stepped >= 18, "{seen}, {stepped} by the step");
    });
}

#[test]
fn adapters_train_and_change_quantised_weights_of_a_gpu_as_those_of_the_cpu() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let ids: Vec<u32> = (0..35).map(|i| 3 + i * 67 % 80).collect();
    let targets = targets(&ids);
    let batch = Batch { ids: &ids, lengths: &LENGTHS, targets: &targets };
    crate::kernels::gpu::with_executor(|| {
        for (name, mix) in [
            ("decoders/qwen2_tied", "q8_0"),
            ("decoders/gemma3_text", "q8_0"),
            ("decoders/qwen2_tied", "q4_k_m"),
            ("decoders/gemma3_text", "mlx4"),
        ] {
            let directory = root.join(name);
            let gpu = network_with(&directory, false, |weights| weights.quantized(Mix::named(mix)), Format::F32);
            let networks = [quantised(&directory, mix), gpu];
            let trained = InTraining::of(&networks[0]);
            let [want, found] = networks.each_ref().map(|network| trained.gradients(network, batch, pass(true, None)));
            let largest = want.1.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!((want.0 - found.0).abs() < 1e-4 * want.0, "{name} {mix}: {} {}", want.0, found.0);
            for (one, other) in want.1.iter().zip(&found.1) {
                assert!((one - other).abs() / largest < 5e-5, "{name} {mix}: {one} {other}");
            }
            let adapted = |network: &Transformer| {
                let adapters = trained.with(network, |trained| Adapters::in_training(network, trained, None)).unwrap();
                let merged = network.merged(&adapters).unwrap();
                [logits(network, &ids, 7, Some(&adapters)), logits(&merged, &ids, 7, None)]
            };
            let [want, found] = networks.each_ref().map(adapted);
            for (want, found) in want.iter().zip(&found) {
                let error = want.iter().zip(found).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                let largest = want.iter().fold(1f32, |largest, x| largest.max(x.abs()));
                // Of codes of four and five bits the power that they are put below takes more: 4e-5 of a product.
                let limit = if mix == "q8_0" { 1e-3 } else { 2e-4 * largest };
                assert!(error < limit, "{name} {mix}: {error} of {largest}");
            }
        }
    });
}

/// The logits of one session in several of its lives.
#[cfg(feature = "selftest")]
fn lives(model: &Model) -> Vec<Vec<f32>> {
    use crate::engine::{GenerateOptions, Session};

    let mut session = Session::new(model, 0).unwrap();
    let mut all = Vec::new();
    let mut evaluate = |session: &mut Session, tokens: &[u32]| {
        session.append_tokens(tokens, None).unwrap();
        all.push(session.logits().unwrap().to_vec());
    };
    evaluate(&mut session, &[3, 9, 1, 4, 11, 7, 2]);
    for token in [5, 8, 6] {
        evaluate(&mut session, &[token]);
    }
    let mut fork = session.fork().unwrap();
    evaluate(&mut fork, &[10]);
    session.truncate(6).unwrap();
    evaluate(&mut session, &[]);
    evaluate(&mut session, &[12]);
    let file = tempfile::NamedTempFile::new().unwrap();
    session.save(file.path()).unwrap();
    let mut loaded = Session::load(model, file.path()).unwrap();
    evaluate(&mut loaded, &[13]);
    evaluate(&mut session, &[13]);
    // The fork goes on behind what it was made of.
    evaluate(&mut fork, &[14]);
    let [.., of_loaded, of_session, _] = &all[..] else { unreachable!() };
    assert_eq!(of_loaded, of_session);
    // Several sessions in one pass, and one alone again.
    let options = GenerateOptions { max_tokens: 3, ignore_eos: true, ..GenerateOptions::default() };
    session.begin(&options).unwrap();
    fork.begin(&options).unwrap();
    for _ in 0..2 {
        let events = Session::next_of(&mut [&mut session, &mut fork]).unwrap();
        assert!(events.into_iter().all(|event| event.unwrap().is_some()));
    }
    fork.end().unwrap();
    assert!(session.next().unwrap().is_some());
    session.end().unwrap();
    all.push(session.logits().unwrap().to_vec());
    all
}

/// Tokens and their log-probabilities of answers in one session, some of which need all logits; and those that were asked for between.
#[cfg(feature = "selftest")]
fn answers(model: &Model) -> (Vec<u32>, Vec<f32>) {
    use crate::engine::{GenerateOptions, Session};

    let mut session = Session::new(model, 0).unwrap();
    session.append_tokens(&[3, 9, 1, 4, 11, 7, 2], None).unwrap();
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    let greedy = GenerateOptions { max_tokens: 6, ignore_eos: true, ..GenerateOptions::default() };
    let biased = GenerateOptions { max_tokens: 2, ..greedy.clone() }.logit_bias([(7, 4.0)]);
    for options in [&greedy, &biased, &greedy] {
        session.begin(options).unwrap();
        while let Some(event) = session.next().unwrap() {
            tokens.push(event.token);
            logprobs.push(event.logprob);
            if event.index == 3 {
                // The answer goes on with what this makes known.
                let (token, logprob) = session.top_logprobs(1).unwrap()[0];
                tokens.push(token);
                logprobs.push(logprob);
            }
        }
        session.end().unwrap();
        logprobs.extend(session.logits().unwrap());
    }
    (tokens, logprobs)
}

#[cfg(feature = "selftest")]
#[test]
fn what_a_gpu_does_not_compile_is_told_of_prompts_and_of_tokens() {
    let of_model = || {
        let options = LoadOptions { device: Some(Device::cpu_by_tensors()), dtype: Some(Dtype::F32), ..LoadOptions::default() };
        let model = Model::load("tests/golden/decoders/qwen2_tied", &options, None).unwrap();
        Json::parse("backend", &model.backend_json()).unwrap().value().clone()
    };
    crate::kernels::gpu::with_executor(|| {
        let json = of_model();
        assert!(json["prompts"] == "tensors" && json["single_tokens"] == "kernels", "{json}");
        assert!(json.get("prompts_lack").is_none() && json.get("lacks").is_none(), "{json}");
    });
    crate::kernels::gpu::with_executor(|| {
        let json = crate::kernels::gpu::without_compiler(of_model);
        assert!(json["prompts"] == "tensors" && json["single_tokens"] == "tensors", "{json}");
        // A processor lacks nothing of theirs.
        let experts = Model::load("tests/golden/decoders/mixtral", &LoadOptions::default(), None).unwrap().backend_json();
        assert!(experts.contains("kernels") && !experts.contains("lacks"), "{experts}");
        for key in ["prompts_lack", "lacks"] {
            assert!(json[key].as_str().is_some_and(|what| what.contains("line 7: no such type")), "{key}: {json}");
        }
    });
}

#[cfg(feature = "selftest")]
#[test]
fn answers_are_chosen_by_the_step_of_a_gpu() {
    use crate::engine::evaluated::{Evaluated, Needs};
    use crate::engine::lora::Attached;

    crate::kernels::gpu::with_executor(|| {
        for name in ["qwen2_tied", "gemma2", "gemma3_text", "gemma4_text", "lfm3", "qwen3_5_text"] {
            let directory = OfStep::of(&Path::new("tests/golden/decoders").join(name)).unwrap();
            let open = |device| {
                let options = LoadOptions { device: Some(device), dtype: Some(Dtype::F32), ..LoadOptions::default() };
                Model::load(directory.path(), &options, None).unwrap()
            };
            let [cpu, gpu] = [Device::new(DeviceKind::Cpu, 0).unwrap(), Device::cpu_by_tensors()].map(open);
            let [(want_tokens, want), (tokens, found)] = [&cpu, &gpu].map(answers);
            assert_eq!(tokens, want_tokens, "{name}");
            let error = want.iter().zip(&found).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(want.len() == found.len() && error < 2e-4, "{name}: {error}");
            // All logits are read where they are needed, and then no less is known.
            let mut evaluated = Evaluated::new(&gpu);
            evaluated.push(&[3, 9, 1]);
            let mut known = |needs| {
                evaluated.evaluate(&Attached::default(), needs, 512, &mut |_, _| Ok(())).unwrap();
                (evaluated.best().map(|best| best.id), evaluated.logits().map(|logits| logits.to_vec()))
            };
            let (best, none) = known(Needs::Best);
            assert!(best.is_some() && none.is_none(), "{name}");
            assert_eq!(known(Needs::Best), (best, none));
            let (none, logits) = known(Needs::Logits);
            assert!(none.is_none() && logits.is_some());
            assert_eq!(known(Needs::Best), (none, logits));
        }
    });
}

#[cfg(feature = "selftest")]
#[test]
fn sessions_go_on_by_the_step_of_a_gpu() {
    crate::kernels::gpu::with_executor(|| {
        for name in ["qwen2_tied", "mistral_window", "gemma3_text", "gemma4_text", "lfm3", "qwen3_5_text"] {
            let directory = OfStep::of(&Path::new("tests/golden/decoders").join(name)).unwrap();
            let open = |device| {
                let options = LoadOptions { device: Some(device), dtype: Some(Dtype::F32), ..LoadOptions::default() };
                Model::load(directory.path(), &options, None).unwrap()
            };
            let (cpu, gpu) = (open(Device::new(DeviceKind::Cpu, 0).unwrap()), open(Device::cpu_by_tensors()));
            assert!(gpu.transformer().decodes_by_kernels() && !cpu.transformer().decodes_by_kernels());
            for (i, (want, got)) in lives(&cpu).iter().zip(lives(&gpu)).enumerate() {
                let error = want.iter().zip(&got).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(want.len() == got.len() && error < 2e-4, "{name} {i}: {error}");
            }
        }
    });
}

/// A checkpoint in F32 whose matrices for products went to Q8_0 and back.
struct Rounded(HashMap<String, (Entry, Vec<u8>)>);

impl Rounded {
    fn of(directory: &Path, config: &Config) -> Self {
        let mut on_bytes = |_, _| Ok(());
        let mut checkpoint = Files::open(directory, &LoadOptions::default()).unwrap().tensors(&mut on_bytes).unwrap();
        let names: Vec<String> = checkpoint.names().into_iter().map(str::to_owned).collect();
        // Tables that are looked up, and what chooses experts.
        let table = config.per_layer.and_then(|per_layer| per_layer.table).map(|(name, _)| name.to_string());
        let choosing = |operation: &OperationConfig| match operation {
            OperationConfig::Experts(experts) => {
                let gate = experts.shared.as_ref().and_then(|shared| shared.gate.as_ref());
                gate.into_iter().chain([&experts.router]).map(|slot| slot.name.clone()).collect()
            }
            _ => Vec::new(),
        };
        let kept: Vec<String> = config.operations().flat_map(choosing).chain(table).collect();
        let rounded = |name: String| {
            let entry = checkpoint.entry(&name)?.clone();
            let stored = entry.stored.clone().ok()?;
            let (cols, above) = entry.shape.split_last()?;
            let mut bytes = vec![0; above.iter().product::<usize>() * stored.row_bytes(*cols).unwrap()];
            checkpoint.read(&name, 0, &mut bytes).unwrap();
            let mut values = stored.widen(&bytes);
            let is_named = |of: &str| name.ends_with(&format!("{of}.weight"));
            let is_kept = config.tying == Tying::Separate && is_named(config.names.embed) || kept.iter().any(|of| is_named(of));
            // A stack of matrices has three dimensions, and so has a convolution of each channel.
            let cols = match entry.shape[..] {
                [_, cols] => Some(cols),
                [_, above, cols] if above > 1 => Some(cols),
                _ => None,
            };
            if let (Some(cols @ 1..), false) = (cols, is_kept) {
                for block in values.chunks_mut(cols).flat_map(|row| row.chunks_mut(32)) {
                    let scale = block.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
                    let kept = half::f16::from_f32(scale).to_f32();
                    block.iter_mut().for_each(|x| *x = if scale == 0.0 { 0.0 } else { (*x * (1.0 / scale)).round() * kept });
                }
            }
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            Some((name, (Entry { stored: Ok(Format::F32), ..entry }, bytes)))
        };
        Self(names.into_iter().filter_map(rounded).collect())
    }
}

impl TensorSource for Rounded {
    fn entry(&self, name: &str) -> Option<&Entry> {
        self.0.get(name).map(|(entry, _)| entry)
    }
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.0[name].1[offset as usize..][..into.len()]);
        Ok(())
    }
}

#[test]
fn a_quantised_network_is_the_dense_one_of_its_rounded_weights() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let ids: Vec<u32> = (0..30).map(|i| 3 + i * 67 % 80).collect();
    let mut seen = 0;
    for folder in ["decoders", "families"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let directory = entry.unwrap().path();
            let quantised = quantised(&directory, "q8_0");
            let mut source = Rounded::of(&directory, quantised.config());
            let mut weights = Weights::new(&mut source, quantised.backend(), Some(Format::F32));
            let dense = Transformer::load(quantised.config().clone(), &mut weights).unwrap();
            let got = logits(&quantised, &ids, 7, None);
            assert!(got.iter().all(|x| x.is_finite()));
            assert_eq!(got, logits(&dense, &ids, 7, None), "{}", directory.display());
            assert_ne!(got, logits(&network(&directory, true), &ids, 7, None), "{}", directory.display());
            seen += 1;
        }
    }
    assert!(seen >= 70);
}

#[test]
fn the_path_of_gpus_adapts_as_the_path_of_the_cpu() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let attached = |network: &Transformer, adapter: &Path| {
        let adapter = crate::load::Peft::read(adapter, network, &[]).unwrap().adapter;
        let scaled = adapter.scaled(network, 0.7).unwrap();
        Adapters::new(network, [(&adapter, &scaled)]).unwrap()
    };
    let max = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    let mut seen = 0;
    for folder in ["lora", "adapters"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let adapter = entry.unwrap().path();
            if !adapter.join("adapter_config.json").exists() {
                continue;
            }
            let notes = Json::read(&adapter.join("golden.json")).unwrap();
            let directory = root.join(notes.text("base").unwrap().unwrap());
            let kernels = network(&directory, true);
            if !kernels.generates() {
                continue;
            }
            let vocab_size = kernels.config().vocab_size as u32;
            let ids: Vec<u32> = (0..30).map(|i| (3 + i * 67 % 200) % vocab_size).collect();
            let want = logits(&kernels, &ids, ids.len(), Some(&attached(&kernels, &adapter)));
            let tensors = network(&directory, false);
            let adapters = attached(&tensors, &adapter);
            for chunk in [ids.len(), 7, 1] {
                let error = max(&want, &logits(&tensors, &ids, chunk, Some(&adapters)));
                assert!(error < 2e-4, "{} in chunks of {chunk}: {error}", adapter.display());
            }
            let error = max(&want, &logits(&tensors.merged(&adapters).unwrap(), &ids, ids.len(), None));
            assert!(error < 5e-4, "{} merged: {error}", adapter.display());
            // With 16 bits the types of all parts must still meet; the scores are about 20. Where tokens may go to other experts, the
            // median tells.
            let has_experts = kernels.config().operations().any(|operation| matches!(operation, OperationConfig::Experts(_)));
            let median = |a: &[f32], b: &[f32]| {
                let mut errors: Vec<f32> = a.iter().zip(b).map(|(x, y)| (x - y).abs()).collect();
                errors.sort_by(f32::total_cmp);
                errors[errors.len() / 2]
            };
            let half = network_of(&directory, false, Format::F16);
            let adapters = attached(&half, &adapter);
            for found in [logits(&half, &ids, 7, Some(&adapters)), logits(&half.merged(&adapters).unwrap(), &ids, 7, None)] {
                let error = if has_experts { median(&want, &found) } else { max(&want, &found) };
                assert!(error < 1.0, "{} in F16: {error}", adapter.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 28);
}

/// Changes in training, with their values.
#[derive(Clone)]
struct InTraining {
    modules: Vec<TrainedModule>,
    values: Vec<f32>,
}

impl InTraining {
    /// A change of every matrix but the embedding and the output, of rank 3.
    fn of(network: &Transformer) -> Self {
        let (mut modules, mut start) = (Vec::new(), 0);
        for module in network.modules().iter().filter(|module| module.role.is_inner()) {
            let trained = TrainedModule { module: module.clone(), rank: 3, scaling: 1.5, start };
            start = trained.b().end;
            modules.push(trained);
        }
        let mut seed = 1u32;
        let next = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 24) as f32 * 0.2 - 0.1
        };
        Self { modules, values: (0..start).map(next).collect() }
    }

    /// Lends them to a network of their modules.
    fn with<R>(&self, network: &Transformer, work: impl FnOnce(TrainedValues<'_>) -> R) -> R {
        let values = ParameterValues::new(self.values.clone(), network.backend()).unwrap();
        work(TrainedValues { modules: &self.modules, values: &values })
    }

    /// The loss, and the gradient of each value.
    fn gradients(&self, network: &Transformer, batch: Batch<'_>, pass: Pass<'_>) -> (f64, Vec<f32>) {
        let (loss, gradients) = self.with(network, |trained| network.gradients(batch, trained, pass)).unwrap().unwrap();
        (loss, gradients.values().unwrap().into_owned())
    }
}

const LENGTHS: [usize; 3] = [11, 1, 23];

fn targets(ids: &[u32]) -> Vec<bool> {
    (0..ids.len()).map(|t| ![0, 11, 12].contains(&t) && t % 5 != 3).collect()
}

fn pass(checkpointing: bool, dropout: Option<Dropout>) -> Pass<'static> {
    Pass { checkpointing, dropout, stop: &|| false }
}

#[test]
fn every_family_trains_alike_by_kernels_and_by_tensor_operations_with_and_without_checkpoints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let ids: Vec<u32> = (0..35).map(|i| 3 + i * 67 % 80).collect();
    let targets = targets(&ids);
    let batch = Batch { ids: &ids, lengths: &LENGTHS, targets: &targets };
    let mut seen = 0;
    for folder in ["decoders", "families"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let directory = entry.unwrap().path();
            let network_by = network(&directory, true);
            let trained = InTraining::of(&network_by);
            let (loss, gradients) = trained.gradients(&network_by, batch, pass(false, None));

            // The loss is that of the scores which inference gives, merged or not.
            let adapter = trained.with(&network_by, |trained| Adapters::in_training(&network_by, trained, None)).unwrap();
            let mut want = 0.0;
            for (i, len) in LENGTHS.into_iter().enumerate() {
                let start: usize = LENGTHS[..i].iter().sum();
                let scores = logits(&network_by, &ids[start..start + len], len, Some(&adapter));
                for (t, row) in scores.chunks_exact(scores.len() / len).take(len - 1).enumerate() {
                    if targets[start + t + 1] {
                        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                        want += sum.ln() - f64::from(row[ids[start + t + 1] as usize]);
                    }
                }
            }
            assert!((loss - want).abs() < 1e-4 * want, "{}: {loss} {want}", directory.display());

            let (again, recomputed) = trained.gradients(&network_by, batch, pass(true, None));
            let found = trained.gradients(&network(&directory, false), batch, pass(false, None));
            assert_eq!(loss, again);
            assert!((loss - found.0).abs() < 1e-4 * loss, "{}: {loss} {}", directory.display(), found.0);
            assert!(gradients == recomputed, "{}", directory.display());
            let largest = gradients.iter().fold(0f32, |m, x| m.max(x.abs()));
            for change in &trained.modules {
                let name = format!("{} {}", directory.display(), change.module.name);
                for range in [change.a(), change.b()] {
                    let (own, found) = (&gradients[range.clone()], &found.1[range]);
                    for (one, other) in own.iter().zip(found) {
                        assert!((one - other).abs() / largest < 5e-5, "{name}: {one} {other}");
                    }
                    // No token may have gone to an expert.
                    assert!(change.module.of_experts || own.iter().any(|x| x.abs() > 1e-6 * largest), "{name}");
                }
            }
            seen += 1;
        }
    }
    assert!(seen >= 70);
}

#[test]
fn layers_below_the_first_in_training_change_no_gradient() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoders/qwen3_sharded");
    let ids: Vec<u32> = (0..35).map(|i| 3 + i * 67 % 80).collect();
    let targets = targets(&ids);
    let batch = Batch { ids: &ids, lengths: &LENGTHS, targets: &targets };
    let network = network(&directory, true);
    let mut all = InTraining::of(&network);
    // The lower ones change nothing, so that leaving them out changes nothing either.
    let layers = network.config().layers.len();
    let upper = |change: &TrainedModule| change.module.name == format!("layers.{}.mlp.down_proj", layers - 1);
    let lower = all.modules.iter().filter(|change| !upper(change));
    lower.for_each(|change| all.values[change.b()].fill(0.0));
    let own = all.modules.iter().find(|change| upper(change)).unwrap().clone();
    let (whole, own) = (own.start..own.b().end, TrainedModule { start: 0, ..own });
    let alone = InTraining { modules: vec![own], values: all.values[whole.clone()].to_vec() };
    assert!(layers > 1);
    for checkpointing in [true, false] {
        let (loss, gradients) = all.gradients(&network, batch, pass(checkpointing, None));
        let (same, found) = alone.gradients(&network, batch, pass(checkpointing, None));
        assert!(loss == same && found == gradients[whole.clone()]);
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let ids: Vec<u32> = (0..35).map(|i| 3 + i * 67 % 80).collect();
    let targets = targets(&ids);
    let batch = Batch { ids: &ids, lengths: &LENGTHS, targets: &targets };
    let stored = [Format::F32, Format::F16, Format::BF16];
    let all_types = ["decoders/qwen2_untied_old", "decoders/gemma2", "decoders/phi3"].map(|name| (name, true));
    let others = ["gemma4_text", "gemma4_unified", "lfm2", "lfm3", "falcon_h1", "falcon_h1_norm", "granite_swa"];
    let others = others.map(|name| (format!("decoders/{name}"), false));
    for (directory, all_types) in all_types.map(|(name, all)| (name.to_string(), all)).into_iter().chain(others) {
        let directory = root.join(directory);
        let mut bases = vec![(network(&directory, true), None)];
        if all_types {
            bases.extend(stored[1..].iter().map(|stored| (network_of(&directory, true, *stored), None)));
            bases.push((quantised(&directory, "q8_0"), None));
            bases.push((network(&directory, true), Some(Dropout { share: 0.2, seed: 7 })));
        }
        for (network, dropout) in bases {
            let trained = InTraining::of(&network);
            let (_, gradients) = trained.gradients(&network, batch, pass(true, dropout));
            let largest = gradients.iter().fold(0f32, |m, x| m.max(x.abs()));
            for change in &trained.modules {
                for range in [change.a(), change.b()] {
                    // Along the gradient itself, where the slope is largest.
                    let gradient = &gradients[range.clone()];
                    let length = gradient.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                    let loss = |step: f64| {
                        let mut moved = trained.clone();
                        let values = moved.values[range.clone()].iter_mut();
                        values.zip(gradient).for_each(|(x, g)| *x += (f64::from(*g) / length * step) as f32);
                        moved.gradients(&network, batch, pass(true, dropout)).0
                    };
                    let h = 0.005;
                    let slope = (8.0 * (loss(h) - loss(-h)) - (loss(2.0 * h) - loss(-2.0 * h))) / (12.0 * h);
                    let name = &change.module.name;
                    assert!((slope - length).abs() < 1e-3 * length + 1e-4 * f64::from(largest), "{name}: {slope} {length}");
                }
            }
        }
    }
}

#[test]
fn the_path_of_gpus_encodes_as_the_path_of_the_cpu() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders");
    let mut seen = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let directory = entry.unwrap().path();
        let notes = Json::read(&directory.join("golden.json")).unwrap();
        let texts = notes.value()["token_ids"]["none"].as_array().unwrap().iter();
        let texts: Vec<Vec<u32>> =
            texts.map(|ids| ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()).collect();
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let encode =
            |kernels| crate::ops::to_f32(&network(&directory, kernels).encode(&texts.concat(), &lengths, None).unwrap()).unwrap();
        let error = encode(true).iter().zip(encode(false)).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(error < 2e-4, "{}: {error}", directory.display());
        seen += 1;
    }
    assert!(seen >= 15);
}

#[test]
fn states_take_the_bytes_that_they_are_counted_as() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoders");
    let (mut fixed_seen, mut seen) = (0, 0);
    for entry in std::fs::read_dir(root).unwrap() {
        let directory = entry.unwrap().path();
        // Keys take whole pages of so many tokens.
        let network = network(&directory, true);
        let (config, backend) = (network.config(), network.backend());
        let ids: Vec<u32> = (0..256).map(|i| i * 7 % config.vocab_size.min(80) as u32).collect();
        let mut states = network.new_states();
        network.forward(&mut [Step { ids: &ids, states: &mut states, length: 256, adapters: None }]).unwrap();
        let (mut keys, mut fixed) = (0, 0);
        for state in states.iter() {
            let bytes = state.to_bytes().unwrap().len() as u64;
            match state {
                LayerState::Kv(_) => keys += bytes,
                // The position stands in front.
                LayerState::Conv(_) | LayerState::Scan(..) => fixed += bytes - 8,
            }
        }
        let counted = |tokens| States::bytes(config, tokens, KvFormat::F32, Format::F32, backend);
        // What is kept of a convolution is written as far as it is looked back at.
        let of_fixed = counted(0);
        assert!((of_fixed == 0) == (fixed == 0), "{}", directory.display());
        let held = (1 + SNAPSHOTS as u64) * fixed;
        assert!(of_fixed >= held && of_fixed <= 2 * held, "{}: {held} held, {of_fixed} counted", directory.display());
        // Of a window as many are held as it sees, in whole pages.
        let of_keys = counted(256) - of_fixed;
        assert!(of_keys >= keys && of_keys <= 2 * keys, "{}: {keys} held, {of_keys} counted", directory.display());
        fixed_seen += usize::from(fixed > 0);
        seen += 1;
    }
    assert!(seen >= 49 && fixed_seen >= 14, "{seen} {fixed_seen}");
}
