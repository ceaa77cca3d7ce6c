//! Writes what fuzzing starts from: `seeds CORPUS`, a folder for each target. Inputs are the micro models' own files, what the library
//! writes of them, and the references of the tests.

use std::path::{Path, PathBuf};

use metal_candle::{LoraConfig, LoraTrainer, Session, TrainOptions};
use metal_candle_fuzz::targets::vocabulary::{SETTINGS, VOCABULARIES};
use metal_candle_fuzz::{as_input, decoder, micro, model_folder, scratch};

type Failed = Box<dyn std::error::Error>;

struct Corpus(PathBuf);

impl Corpus {
    fn put(&self, target: &str, name: &str, input: &[u8]) -> Result<(), Failed> {
        let folder = self.0.join(target);
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join(name.replace(['/', ' '], "-")), input)?)
    }
}

/// All files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), Failed> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

fn main() -> Result<(), Failed> {
    let corpus = Corpus(std::env::args().nth(1).ok_or("expected a folder to write to")?.into());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let mut references = Vec::new();
    files(&golden, &mut references)?;
    references.sort();

    let folders = [("decoder", model_folder("decoder", micro::decoder)), ("encoder", model_folder("encoder", micro::encoder))];
    for (i, (name, folder)) in folders.iter().enumerate() {
        let weights = std::fs::read(folder.join("model.safetensors"))?;
        let mode = 4 * i as u8;
        for how in [0, 8, 24, 40, 56] {
            corpus.put("safetensors", &format!("{name}-{how}"), &as_input(mode | how, &weights, 64))?;
        }
        corpus.put("safetensors", &format!("{name}-whole"), &[&[mode | 3], &weights[..]].concat())?;
        corpus.put("tokenizer", name, &std::fs::read(folder.join("tokenizer.json"))?)?;
        let config = std::fs::read(folder.join("config.json"))?;
        let settings = std::fs::read(folder.join("tokenizer_config.json"))?;
        let generation = br#"{"do_sample":true,"temperature":0.7,"top_k":20,"top_p":0.8,"eos_token_id":[80,81]}"#;
        corpus.put("config", name, &[&config[..], b"\0", generation, b"\0", &settings].concat())?;
        let index = br#"{"weight_map":{"model.norm.weight":"model.safetensors"}}"#;
        corpus.put("config", &format!("{name}-index"), &[&config[..], b"\0\0\0\0\0", index].concat())?;
        corpus.put("hub_cache", name, &[&b"o/n\x000123456789012345678901234567890123456789\x00"[..], &config].concat())?;
    }
    for (name, file) in micro::ggufs() {
        corpus.put("gguf", name, &file)?;
    }
    corpus.put("sentence", "micro", micro::SENTENCE.map(|(_, json)| json).join("\0").as_bytes())?;

    let adapter = model_folder("base", micro::decoder).join("adapter");
    let (config, weights) =
        (std::fs::read(adapter.join("adapter_config.json"))?, std::fs::read(adapter.join("adapter_model.safetensors"))?);
    corpus.put("adapter", "micro", &[&config[..], b"\0", &as_input(0, &weights, 32)].concat())?;
    corpus.put("adapter", "micro-whole", &[&config[..], b"\0\x03", &weights].concat())?;

    for tokens in [0, 1, 5, 40] {
        let mut session = Session::new(decoder(), 0)?;
        session.append_tokens(&vec![5; tokens], None)?;
        if tokens > 0 {
            session.logits()?;
        }
        let path = scratch().join("session");
        session.save(&path)?;
        let file = std::fs::read(&path)?;
        corpus.put("session", &format!("{tokens}"), &[b"\0", &file[..file.len() - 8]].concat())?;
        corpus.put("session", &format!("{tokens}-whole"), &[b"\x01", &file[..]].concat())?;
    }

    let mut trainer = LoraTrainer::new(decoder(), &LoraConfig::default().rank(2), &TrainOptions::default())?;
    trainer.train_step(&[1, 2, 3, 4], None, &[0, 4])?;
    let folder = scratch().join("checkpoint");
    trainer.save(&folder)?;
    let state = std::fs::read(folder.join("training_state.safetensors"))?;
    corpus.put("checkpoint", "micro", &as_input(0, &state, 32))?;
    corpus.put("checkpoint", "micro-whole", &[b"\x03", &state[..]].concat())?;

    corpus.put("jsonl", "text", b"{\"text\":\"hi\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}\n")?;
    corpus.put(
        "jsonl",
        "chat",
        b"\xef\xbb\xbf{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"}]},\
          {\"role\":\"assistant\",\"content\":\"y\"}],\"tools\":null}\r\n\n",
    )?;
    let schemas = [
        r#"{"type":"object","properties":{"a":{"type":"integer","minimum":0,"multipleOf":3}},"required":["a"]}"#,
        r##"{"$defs":{"n":{"anyOf":[{"type":"null"},{"$ref":"#/$defs/n"}]}},"$ref":"#/$defs/n"}"##,
        r#"{"enum":["a",1,null,true,[1],{"b":2}]}"#,
        r#"{"type":"string","pattern":"^[a-z]+(-[a-z]+)*$","minLength":2,"maxLength":9}"#,
        r#"{"type":"array","items":{"type":"number"},"prefixItems":[{"const":1}],"minItems":1,"maxItems":4}"#,
        r#"{"allOf":[{"type":"object"},{"required":["x"]}],"additionalProperties":false,"properties":{"x":{"format":"date"}}}"#,
    ];
    for (i, schema) in schemas.iter().enumerate() {
        corpus.put("schema", &format!("{i}"), schema.as_bytes())?;
    }
    let templates = [
        "{{ messages|tojson(indent=2) }}",
        "{% macro f(a, b=1) %}{{ a }}{% endmacro %}{{ f(1) }}",
        "{% set ns = namespace(x=0) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
        "{{ messages[0]['content'][1:-1:2].strip().split(' ', 1) }}{{ '%s %d'|format('a', 1) }}",
        "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(',') }}",
        "{{ strftime_now('%Y-%m-%d') }}{% filter upper %}x{% endfilter %}{% generation %}y{% endgeneration %}",
    ];
    for (i, template) in templates.iter().enumerate() {
        corpus.put("template", &format!("{i}"), template.as_bytes())?;
    }

    let mut state = 1u64;
    for (i, length) in [4, 20, 60, 100, 256, 256, 256, 256].into_iter().enumerate() {
        let bytes = (0..length).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        });
        corpus.put("calls", &format!("{i}"), &bytes.collect::<Vec<u8>>())?;
    }

    for (name, class, vocabulary) in micro::vocabularies() {
        let kind = [if name == "words" {
            0
        } else if name == "bytes" {
            1
        } else {
            2
        }];
        corpus.put("vocabulary", name, &[&kind[..], class.as_bytes(), b"\0\0\0", &vocabulary].concat())?;
    }
    // Directories whose vocabularies transformers has read.
    for folder in std::fs::read_dir(golden.join("vocabularies"))?.flatten().filter(|entry| entry.path().is_dir()) {
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap_or_default();
        let kind = VOCABULARIES.iter().position(|names| folder.path().join(names[0]).exists()).ok_or("a vocabulary")?;
        let parts: Vec<_> = SETTINGS.iter().chain(VOCABULARIES[kind]).map(|name| read(name)).collect();
        corpus.put("vocabulary", &folder.file_name().to_string_lossy(), &[&[kind as u8], &parts.join(&0)[..]].concat())?;
    }

    for path in references {
        let Some(name) = path.strip_prefix(&golden)?.to_str() else { continue };
        let bytes = std::fs::read(&path)?;
        let target = match path.file_name().and_then(|name| name.to_str()) {
            Some("config.json") => "config",
            Some("tokenizer.json") if bytes.len() < 12_000 => "tokenizer",
            Some("adapter_config.json") => "adapter",
            Some(name) if name.ends_with(".jinja") => "template",
            Some(name) if name.ends_with(".gguf") && bytes.len() < 20_000 => "gguf",
            _ => continue,
        };
        corpus.put(target, name, &bytes)?;
    }
    std::fs::remove_dir_all(scratch())?;
    Ok(())
}
