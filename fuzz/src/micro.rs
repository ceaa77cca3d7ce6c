//! Models of one layer, seeded. They are written as transformers writes models.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::put;

/// Multiples of 32, so that every quantised format holds them.
const HIDDEN: usize = 32;
const WIDE: usize = 64;
const HEADS: usize = 2;
const POSITIONS: usize = 64;

/// Some bytes that stand for themselves in a tokenizer of bytes, pairs of them, and special tokens. Capitals and most bytes above ASCII are
/// missing: reading a vocabulary takes longer than a step of the model.
fn tokenizer() -> (Value, usize) {
    let mut vocabulary = serde_json::Map::new();
    let letters = ('!'..='~').filter(|letter| !letter.is_ascii_uppercase()).chain("ÃâĠĊ©Ģģĩ".chars());
    for letter in letters {
        vocabulary.insert(letter.to_string(), vocabulary.len().into());
    }
    let merges = ["t h", "h i", "th e", "Ġ the", "i n", "e r"];
    for merge in merges {
        vocabulary.insert(merge.replace(' ', ""), vocabulary.len().into());
    }
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"];
    let added: Vec<_> = special
        .iter()
        .zip(vocabulary.len()..)
        .map(|(content, id)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                   "special": id < vocabulary.len() + 4})
        })
        .collect();
    let count = vocabulary.len() + special.len();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": bytes, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": merges},
    });
    (json, count)
}

/// Small numbers that repeat from run to run.
struct Tensors(u64, BTreeMap<String, (Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn add(&mut self, name: impl Into<String>, shape: &[usize], around: f32) {
        let values = (0..shape.iter().product()).flat_map(|_| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (around + (self.0 >> 40) as f32 / (1 << 25) as f32 - 0.25).to_le_bytes()
        });
        let values = values.collect();
        self.1.insert(name.into(), (shape.to_vec(), values));
    }

    fn file(&self) -> Vec<u8> {
        let views = self.1.iter().map(|(name, (shape, bytes))| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the shape of its values"))
        });
        safetensors::serialize(views, Some([("format".to_string(), "pt".to_string())].into())).expect("tensors in memory")
    }
}

fn put_json(path: &Path, json: &Value) {
    put(path, json.to_string().as_bytes());
}

/// A Qwen2 of one layer, with an adapter in `adapter/`.
pub fn decoder(folder: &Path) {
    let (tokenizer, vocabulary) = tokenizer();
    let mut tensors = Tensors(1, BTreeMap::new());
    tensors.add("model.embed_tokens.weight", &[vocabulary, HIDDEN], 0.0);
    tensors.add("model.norm.weight", &[HIDDEN], 1.0);
    let layer = "model.layers.0.";
    for (name, rows) in [("q", HIDDEN), ("k", HIDDEN / HEADS), ("v", HIDDEN / HEADS)] {
        tensors.add(format!("{layer}self_attn.{name}_proj.weight"), &[rows, HIDDEN], 0.0);
        tensors.add(format!("{layer}self_attn.{name}_proj.bias"), &[rows], 0.0);
    }
    tensors.add(format!("{layer}self_attn.o_proj.weight"), &[HIDDEN, HIDDEN], 0.0);
    for (name, shape) in [("gate", [WIDE, HIDDEN]), ("up", [WIDE, HIDDEN]), ("down", [HIDDEN, WIDE])] {
        tensors.add(format!("{layer}mlp.{name}_proj.weight"), &shape, 0.0);
    }
    for name in ["input_layernorm", "post_attention_layernorm"] {
        tensors.add(format!("{layer}{name}.weight"), &[HIDDEN], 1.0);
    }
    put(&folder.join("model.safetensors"), &tensors.file());
    put_json(&folder.join("tokenizer.json"), &tokenizer);
    put_json(
        &folder.join("config.json"),
        &json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": WIDE,
                "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": 1, "vocab_size": vocabulary,
                "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
                "tie_word_embeddings": true, "eos_token_id": vocabulary - 7}),
    );
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    put_json(&folder.join("tokenizer_config.json"), &json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}));

    let adapter = folder.join("adapter");
    std::fs::create_dir_all(&adapter).expect("a folder for the adapter");
    let mut tensors = Tensors(2, BTreeMap::new());
    for (name, rows) in [("q", HIDDEN), ("v", HIDDEN / HEADS)] {
        let module = format!("base_model.model.{layer}self_attn.{name}_proj");
        tensors.add(format!("{module}.lora_A.weight"), &[2, HIDDEN], 0.0);
        tensors.add(format!("{module}.lora_B.weight"), &[rows, 2], 0.0);
    }
    put(&adapter.join("adapter_model.safetensors"), &tensors.file());
    put_json(
        &adapter.join("adapter_config.json"),
        &json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0,
                "bias": "none", "task_type": "CAUSAL_LM"}),
    );
}

/// A BERT of one layer with the files of sentence-transformers.
pub fn encoder(folder: &Path) {
    let (tokenizer, vocabulary) = tokenizer();
    let mut tensors = Tensors(3, BTreeMap::new());
    for (name, rows) in [("word", vocabulary), ("position", POSITIONS), ("token_type", 2)] {
        tensors.add(format!("embeddings.{name}_embeddings.weight"), &[rows, HIDDEN], 0.0);
    }
    let layer = "encoder.layer.0.";
    for (name, shape) in [
        ("attention.self.query", [HIDDEN, HIDDEN]),
        ("attention.self.key", [HIDDEN, HIDDEN]),
        ("attention.self.value", [HIDDEN, HIDDEN]),
        ("attention.output.dense", [HIDDEN, HIDDEN]),
        ("intermediate.dense", [WIDE, HIDDEN]),
        ("output.dense", [HIDDEN, WIDE]),
    ] {
        tensors.add(format!("{layer}{name}.weight"), &shape, 0.0);
        tensors.add(format!("{layer}{name}.bias"), &shape[..1], 0.0);
    }
    for name in ["embeddings.", "encoder.layer.0.attention.output.", "encoder.layer.0.output."] {
        tensors.add(format!("{name}LayerNorm.weight"), &[HIDDEN], 1.0);
        tensors.add(format!("{name}LayerNorm.bias"), &[HIDDEN], 0.0);
    }
    put(&folder.join("model.safetensors"), &tensors.file());
    put_json(&folder.join("tokenizer.json"), &tokenizer);
    put_json(
        &folder.join("config.json"),
        &json!({"architectures": ["BertModel"], "model_type": "bert", "hidden_size": HIDDEN, "intermediate_size": WIDE,
                "num_hidden_layers": 1, "num_attention_heads": HEADS, "vocab_size": vocabulary, "type_vocab_size": 2,
                "max_position_embeddings": POSITIONS, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}),
    );
    let pooling = folder.join("1_Pooling");
    std::fs::create_dir_all(&pooling).expect("a folder for the pooling");
    for (name, json) in SENTENCE {
        put(&folder.join(name), json.as_bytes());
    }
}

/// The settings of sentence-transformers, in the order of an input's parts.
pub const SENTENCE: [(&str, &str); 5] = [
    (
        "modules.json",
        r#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},{"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"},{"idx":2,"name":"2","path":"2_Normalize","type":"sentence_transformers.models.Normalize"}]"#,
    ),
    ("sentence_bert_config.json", r#"{"max_seq_length":32,"do_lower_case":false}"#),
    (
        "config_sentence_transformers.json",
        r#"{"prompts":{"query":"q: "},"default_prompt_name":null,"similarity_fn_name":"cosine"}"#,
    ),
    ("1_Pooling/config.json", r#"{"word_embedding_dimension":32,"pooling_mode_mean_tokens":true}"#),
    ("tokenizer_config.json", r#"{"do_lower_case":true,"model_max_length":16}"#),
];

/// A few tokens in each of the files that stand in for tokenizer.json: a name, the tokenizer_config.json that names the class, the files as
/// the target `vocabulary` wants them.
pub fn vocabularies() -> [(&'static str, String, Vec<u8>); 3] {
    let words = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##a\n##b\nab\nhi\nthe\n";
    let bytes = json!({"<|endoftext|>": 0, "a": 1, "b": 2, "Ġ": 3, "ab": 4, "Ã": 5, "©": 6, "Ġa": 7, "Ã©": 8});
    let bytes = format!("{bytes}\0#version: 0.2\na b\nĠ a\nÃ ©\n");
    let mut pieces = Vec::new();
    // A message in a field: its number, its length, both below 128.
    let mut add = |text: &str, score: f32, kind: u8| {
        let piece = [&[0x0a, text.len() as u8], text.as_bytes(), &[0x15], &score.to_le_bytes(), &[0x18, kind]].concat();
        pieces.extend([&[0x0a, piece.len() as u8], &piece[..]].concat());
    };
    [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<x>", 4)].into_iter().for_each(|(text, kind)| add(text, 0.0, kind));
    (0..=255u8).step_by(16).for_each(|byte| add(&format!("<0x{byte:02X}>"), 0.0, 6));
    ["▁a", "ab", "▁", "a", "b"].into_iter().zip(0u8..).for_each(|(text, at)| add(text, -f32::from(at), 1));
    // Byte pairs, with bytes for what has no piece; nothing is trimmed.
    pieces.extend([0x12, 5, 0x18, 2, 0x98, 0x02, 1, 0x1a, 2, 0x20, 0]);
    let class = |name: &str| json!({"tokenizer_class": name, "add_bos_token": true}).to_string();
    [
        ("words", class("BertTokenizer"), words.as_bytes().to_vec()),
        ("bytes", class("GPT2Tokenizer"), bytes.into_bytes()),
        ("pieces", class("LlamaTokenizer"), pieces),
    ]
}

/// GGUF files of the decoder, with its matrices in one type each: the name of the type and the file.
pub fn ggufs() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    // Name, number, values of a block, its bytes; the kind of tokenizer.
    const TYPES: [(&str, u32, usize, usize, &str); 7] = [
        ("f32", 0, 1, 4, "gpt2"),
        ("f16", 1, 1, 2, "llama"),
        ("q4_0", 2, 32, 18, "gemma4"),
        ("q4_1", 3, 32, 20, "bert"),
        ("q5_0", 6, 32, 22, "t5"),
        ("q8_0", 8, 32, 34, "llama"),
        ("mxfp4", 39, 32, 17, "no_vocab"),
    ];
    TYPES.into_iter().map(|(name, number, block, bytes, tokenizer)| (name, gguf(number, block, bytes, tokenizer)))
}

fn gguf(number: u32, block: usize, block_bytes: usize, kind: &str) -> Vec<u8> {
    let (tokenizer, vocabulary) = tokenizer();
    let mut tokens: Vec<String> = tokenizer["model"]["vocab"].as_object().expect("a vocabulary").keys().cloned().collect();
    let added = tokenizer["added_tokens"].as_array().expect("a list");
    tokens.extend(added.iter().filter_map(|token| token["content"].as_str()).map(str::to_string));
    let mut merges: Vec<&str> =
        tokenizer["model"]["merges"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let mut types: Vec<u32> = (0..vocabulary).map(|id| if id < vocabulary - added.len() { 1 } else { 3 }).collect();
    // Spaces are other letters there, and one token stands for what has none.
    if kind != "gpt2" {
        tokens.iter_mut().for_each(|token| *token = token.replace('Ġ', "▁"));
        merges.retain(|merge| !merge.contains('Ġ'));
        (tokens[0], types[0]) = (if kind == "bert" { "[UNK]" } else { "<unk>" }.to_string(), 2);
    }
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();

    let mut fields = Fields::default();
    fields.text("general.architecture", "qwen2");
    for (key, value) in [
        ("context_length", POSITIONS),
        ("embedding_length", HIDDEN),
        ("block_count", 1),
        ("feed_forward_length", WIDE),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", 1),
    ] {
        fields.number(&format!("qwen2.{key}"), 4, value as u32);
    }
    fields.number("qwen2.attention.layer_norm_rms_epsilon", 6, 1e-6f32.to_bits());
    fields.number("qwen2.rope.freq_base", 6, 10_000f32.to_bits());
    fields.text("tokenizer.ggml.model", kind);
    // The pattern of this one is compiled once for the process.
    fields.text("tokenizer.ggml.pre", "gpt-2");
    fields.texts("tokenizer.ggml.tokens", &tokens);
    if matches!(kind, "gpt2" | "gemma4") {
        fields.texts("tokenizer.ggml.merges", &merges);
    }
    if matches!(kind, "llama" | "t5") {
        fields.key("tokenizer.ggml.scores", 9);
        fields.bytes.extend([6u32.to_le_bytes().as_slice(), &(tokens.len() as u64).to_le_bytes()].concat());
        fields.bytes.extend((0..tokens.len()).flat_map(|id| (-(id as f32)).to_le_bytes()));
    }
    fields.key("tokenizer.ggml.token_type", 9);
    fields.bytes.extend([5u32.to_le_bytes().as_slice(), &(types.len() as u64).to_le_bytes()].concat());
    fields.bytes.extend(types.iter().flat_map(|kind| kind.to_le_bytes()));
    fields.number("tokenizer.ggml.eos_token_id", 4, (vocabulary - 7) as u32);
    fields.text("tokenizer.chat_template", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}");

    let narrow = HIDDEN / HEADS;
    let matrices = [
        ("token_embd", vocabulary, HIDDEN),
        ("blk.0.attn_q", HIDDEN, HIDDEN),
        ("blk.0.attn_k", narrow, HIDDEN),
        ("blk.0.attn_v", narrow, HIDDEN),
        ("blk.0.attn_output", HIDDEN, HIDDEN),
        ("blk.0.ffn_gate", WIDE, HIDDEN),
        ("blk.0.ffn_up", WIDE, HIDDEN),
        ("blk.0.ffn_down", HIDDEN, WIDE),
    ];
    let vectors = [
        ("output_norm.weight", HIDDEN),
        ("blk.0.attn_norm.weight", HIDDEN),
        ("blk.0.ffn_norm.weight", HIDDEN),
        ("blk.0.attn_q.bias", HIDDEN),
        ("blk.0.attn_k.bias", narrow),
        ("blk.0.attn_v.bias", narrow),
    ];
    let mut data = Vec::new();
    let mut infos = Vec::new();
    let mut info = |name: &str, dims: &[usize], kind: u32, bytes: Vec<u8>| {
        infos.extend((name.len() as u64).to_le_bytes());
        infos.extend(name.as_bytes());
        infos.extend((dims.len() as u32).to_le_bytes());
        infos.extend(dims.iter().rev().flat_map(|&dim| (dim as u64).to_le_bytes()));
        infos.extend(kind.to_le_bytes());
        data.resize(data.len().next_multiple_of(32), 0);
        infos.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
    };
    for (name, rows, cols) in matrices {
        // Bytes that are small numbers in F16 wherever a scale may stand.
        let bytes = (0..rows * cols / block * block_bytes).map(|i| (i % 37) as u8).collect();
        info(&format!("{name}.weight"), &[rows, cols], number, bytes);
    }
    for (name, len) in vectors {
        info(name, &[len], 0, 1f32.to_le_bytes().repeat(len));
    }
    let counts = [(matrices.len() + vectors.len()) as u64, fields.count].map(u64::to_le_bytes).concat();
    let mut file = [b"GGUF".as_slice(), &3u32.to_le_bytes(), &counts, &fields.bytes, &infos].concat();
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}

#[derive(Default)]
struct Fields {
    count: u64,
    bytes: Vec<u8>,
}

impl Fields {
    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        self.string(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    /// Four bytes of this kind.
    fn number(&mut self, key: &str, kind: u32, value: u32) {
        self.key(key, kind);
        self.bytes.extend(value.to_le_bytes());
    }

    fn text(&mut self, key: &str, text: &str) {
        self.key(key, 8);
        self.string(text);
    }

    fn texts(&mut self, key: &str, texts: &[&str]) {
        self.key(key, 9);
        self.bytes.extend(8u32.to_le_bytes());
        self.bytes.extend((texts.len() as u64).to_le_bytes());
        texts.iter().for_each(|text| self.string(text));
    }
}
