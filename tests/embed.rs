//! Every encoder and every way of pooling against sentence-transformers, and the equalities that need no reference: batch =
//! single, in any order, whatever the options that change no vector.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{Reference, cosine, golden, load, max_abs, q8_0, shipped, write_tensors};
use metal_candle::{
    Cancel, Capability, EmbedOptions, ErrorKind, LoadOptions, Model, Pooling, Prompt, Session, Similarity, Stage,
    similarity_top_k,
};
use serde_json::{Value, json};

/// Tolerances of the reference results; each is above their own noise and below the smallest mistake seen.
const NORMALISED: f32 = 2e-5;
const PLAIN: f32 = 2e-4;
const SHIPPED: f32 = 5e-6;
const DECODERS: f32 = 5e-4;

/// Every directory of the reference results.
fn models() -> Vec<PathBuf> {
    let folders = ["encoders", "embedders"].map(|folder| std::fs::read_dir(golden(folder)).unwrap());
    let mut found: Vec<PathBuf> = folders.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert!(found.len() >= 30, "the reference results are there");
    found
}

fn texts(notes: &Value) -> Vec<&str> {
    notes["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// A call with the model's prompt of this name; "none" is with its default switched off.
fn with_prompt(name: &str) -> EmbedOptions {
    let prompt = if name == "none" { Prompt::Text(String::new()) } else { Prompt::Name(name.to_string()) };
    EmbedOptions::default().prompt(prompt)
}

fn embed(model: &Model, texts: &[&str], options: &EmbedOptions) -> Vec<f32> {
    model.embed(texts, options, None).unwrap_or_else(|e| panic!("{}", e.details()))
}

#[test]
fn every_model_prompt_and_text_equals_the_reference() {
    for path in models() {
        let (model, notes) = (load(&path), common::json(&path.join("golden.json")));
        let reference = Reference::open(&path.join("golden.safetensors"));
        let texts = texts(&notes);
        let tolerance = if notes["normalize"].as_bool().unwrap() { NORMALISED } else { PLAIN };
        for prompt in notes["embeddings"].as_array().unwrap() {
            let prompt = prompt.as_str().unwrap();
            let want = reference.floats(&format!("embeddings.{prompt}"));
            let got = embed(&model, &texts, &with_prompt(prompt));
            let dim = got.len() / texts.len();
            for ((text, got), want) in texts.iter().zip(got.chunks(dim)).zip(want.chunks(dim)) {
                let (error, cosine) = (max_abs(got, want), cosine(got, want));
                let name = path.file_name().unwrap().to_string_lossy();
                assert!(error <= tolerance && cosine >= 0.99999, "{name}, prompt {prompt}, {text:?}: {error}, cosine {cosine}");
            }
        }
    }
}

/// A tokenizer of words that are the numbers of their ids.
fn numbers_as_words(ids: usize) -> Value {
    let vocab: serde_json::Map<String, Value> = (0..ids).map(|id| (id.to_string(), json!(id))).collect();
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "0"},
    })
}

#[test]
fn every_decoder_pools_the_last_hidden_states_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(golden("decoders")).unwrap() {
        let path = entry.unwrap().path();
        let config = common::json(&path.join("config.json"));
        let size = config.get("text_config").unwrap_or(&config)["vocab_size"].as_u64().unwrap();
        let tokenizer = folder.path().join("tokenizer.json");
        std::fs::write(&tokenizer, numbers_as_words(size as usize).to_string()).unwrap();
        let model = Model::load(&path, &LoadOptions::default().tokenizer_path(&tokenizer), None).unwrap();
        let reference = Reference::open(&path.join("golden.safetensors"));
        let ids = reference.ids("prompt1.ids");
        let text = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let rows = reference.floats("prompt1.hidden.norm");
        let dim = rows.len() / ids.len();
        let mean: Vec<f32> = (0..dim).map(|i| rows.iter().skip(i).step_by(dim).sum::<f32>() / ids.len() as f32).collect();
        for (pooling, want) in [(Pooling::Mean, &mean[..]), (Pooling::Last, &rows[rows.len() - dim..])] {
            let options = EmbedOptions::default().pooling(pooling);
            // With company, whose states are its own.
            let found = embed(&model, &["5", &text, "7 2 9"], &options);
            let error = max_abs(&found[dim..2 * dim], want);
            assert!(error <= DECODERS, "{}, {pooling:?}: {error}", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 49, "{seen}");
}

#[test]
fn the_shipped_model_equals_the_reference_and_answers_its_questions() {
    let (model, notes) = (load(shipped("tiny-embed")), common::json(&golden("tiny_embed.json")));
    let rows = |value: &Value| -> Vec<f32> {
        value.as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let same = |texts: &[&str], want: &Value| {
        let got = embed(&model, texts, &EmbedOptions::default());
        let error = max_abs(&got, &rows(want));
        assert!(error <= SHIPPED, "{error}");
        got
    };
    same(&texts(&notes), &notes["embeddings"]);
    let search = &notes["search"];
    let list = |key: &str, field: &str| -> Vec<&str> {
        search[key].as_array().unwrap().iter().map(|entry| entry[field].as_str().unwrap()).collect()
    };
    let documents = same(&list("docs", "text"), &search["doc_embeddings"]);
    let queries = same(&list("queries", "query"), &search["query_embeddings"]);
    let (found, scores) = similarity_top_k(model.similarity(), &queries, &documents, 192, 3).unwrap();
    for (i, query) in search["queries"].as_array().unwrap().iter().enumerate() {
        assert_eq!(serde_json::json!(found[3 * i..3 * i + 3]), query["top3"]);
        for (score, want) in scores[3 * i..].iter().zip(query["scores"].as_array().unwrap()) {
            assert!((f64::from(*score) - want.as_f64().unwrap()).abs() < 5e-6);
        }
    }
    assert_eq!(model.similarity(), Similarity::Cosine);
}

#[test]
fn a_text_has_the_same_bits_alone_and_in_any_batch() {
    for path in models() {
        let (model, notes) = (load(&path), common::json(&path.join("golden.json")));
        let texts = texts(&notes);
        let batch = embed(&model, &texts, &EmbedOptions::default());
        let dim = model.embedding_dim(&EmbedOptions::default()).unwrap();
        for (text, row) in texts.iter().zip(batch.chunks(dim)) {
            assert_eq!(embed(&model, &[text], &EmbedOptions::default()), row, "{}: {text:?}", path.display());
        }
        let backwards: Vec<&str> = texts.iter().rev().chain(&texts).copied().collect();
        let rows = embed(&model, &backwards, &EmbedOptions::default().batch_size(3));
        assert_eq!(rows[texts.len() * dim..], batch);
        assert_eq!(&rows[..dim], &batch[(texts.len() - 1) * dim..]);
    }
}

#[test]
fn prompts_by_name_and_by_text_are_the_same_and_a_default_is_used() {
    let model = load(golden("encoders/xlmr_prompt_excluded"));
    let texts = ["hello", "Die Brücke über den Fluss"];
    let text = |prompt: &str| EmbedOptions::default().prompt(Prompt::Text(prompt.into()));
    let query = embed(&model, &texts, &with_prompt("query"));
    assert_eq!(embed(&model, &texts, &EmbedOptions::default()), query);
    assert_eq!(embed(&model, &texts, &text("query: ")), query);
    assert_ne!(embed(&model, &texts, &with_prompt("passage")), query);
    assert_ne!(embed(&model, &texts, &text("")), query);
    // The reference knows these names even where the model says nothing.
    let plain = load(golden("encoders/bert_mean_norm"));
    assert_eq!(embed(&plain, &texts, &with_prompt("document")), embed(&plain, &texts, &EmbedOptions::default()));
    let error = plain.embed(&texts, &with_prompt("passage"), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(error.message(), "prompt_name: expected one of the model's (query, document), found \"passage\"");
}

#[test]
fn vectors_are_cut_before_they_are_normalised() {
    let texts = ["hello", "The cat sleeps in the warm sun."];
    for (name, own) in [("bert_mean_norm", true), ("bert_cls", false)] {
        let model = load(golden("encoders").join(name));
        let plain = embed(&model, &texts, &EmbedOptions::default().normalize(false));
        for (normalize, dimensions) in [(None, 24), (Some(true), 24), (Some(false), 24), (Some(true), 64)] {
            let mut options = EmbedOptions::default().dimensions(dimensions);
            options.normalize = normalize;
            assert_eq!(model.embedding_dim(&options).unwrap(), dimensions);
            let rows = embed(&model, &texts, &options);
            for (row, whole) in rows.chunks(dimensions).zip(plain.chunks(64)) {
                let part = &whole[..dimensions];
                let length = part.iter().map(|x| x * x).sum::<f32>().sqrt();
                let divisor = if normalize.unwrap_or(own) { length } else { 1.0 };
                let want: Vec<f32> = part.iter().map(|x| x / divisor).collect();
                assert!(max_abs(row, &want) < 1e-6, "{name} {normalize:?} {dimensions}");
            }
        }
    }
}

#[test]
fn another_pooling_takes_the_place_of_the_models_own() {
    let model = load(golden("encoders/bert_max_meansqrt"));
    let texts = ["hello", "", "How do I sort a list of numbers?"];
    let all = embed(&model, &texts, &EmbedOptions::default());
    for (i, pooling) in [Pooling::Cls, Pooling::Max, Pooling::MeanSqrtLen, Pooling::WeightedMean].into_iter().enumerate() {
        let options = EmbedOptions::default().pooling(pooling);
        let rows = embed(&model, &texts, &options);
        for (row, all) in rows.chunks(64).zip(all.chunks(4 * 64)) {
            assert_eq!(row, &all[i * 64..][..64], "{pooling:?}");
        }
    }
    // What follows the pooling still fits one way, not four.
    let dense = load(golden("encoders/bert_dense_new"));
    let options = EmbedOptions::default().pooling(Pooling::Mean);
    assert_eq!(dense.embedding_dim(&options).unwrap(), 40);
}

#[test]
fn a_long_text_is_cut_and_nothing_is_too_long() {
    let model = load(shipped("tiny-embed"));
    let long = "append an element to the vector ".repeat(1700); // 10,200 words
    let limit = |tokens| EmbedOptions::default().max_length(tokens);
    let whole = embed(&model, &[&long], &EmbedOptions::default());
    assert_eq!(whole, embed(&model, &[&long], &limit(256)));
    assert_ne!(whole, embed(&model, &[&long], &limit(255)));
    // Two tokens around the text and three of it.
    let tokens = model.tokenizer().unwrap().encode("append an element", false).unwrap();
    assert_eq!(
        embed(&model, &["append an element to it"], &limit(tokens.len() + 2)),
        embed(&model, &["append an element"], &limit(256))
    );
    for text in ["", " ", "\n\t ", "\u{200d}", "日本語", "🦀"] {
        let row = embed(&model, &[text], &EmbedOptions::default());
        assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5, "{text:?}");
    }
    assert_eq!(embed(&model, &[], &EmbedOptions::default()), [0f32; 0]);
}

#[test]
fn options_out_of_their_range_are_refused_by_name() {
    let model = load(shipped("tiny-embed"));
    for (options, message) in [
        (EmbedOptions::default().dimensions(0), "dimensions: expected 1 to 192, found 0"),
        (EmbedOptions::default().dimensions(193), "dimensions: expected 1 to 192, found 193"),
        (EmbedOptions::default().max_length(2), "max_length: expected 3 to 256 tokens, found 2"),
        (EmbedOptions::default().max_length(257), "max_length: expected 3 to 256 tokens, found 257"),
        (EmbedOptions::default().batch_size(0), "batch_size: expected at least 1, found 0"),
    ] {
        let error = model.embed(&["text"], &options, None).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, message));
        assert!(model.embedding_dim(&options).is_err());
    }
}

#[test]
fn progress_counts_texts_and_cancel_stops_on_the_way() {
    let model = load(shipped("tiny-embed"));
    // Several rounds of work on any machine: the more threads, the more texts a round has.
    let count = 64 * std::thread::available_parallelism().unwrap().get() as u64;
    let texts: Vec<String> = (0..count).map(|i| format!("text {i}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let cancel = Cancel::new();
    let options = EmbedOptions::default().batch_size(1).cancel(cancel.clone());
    // What a call gives, and the texts done at each report.
    let run = |report: &dyn Fn() -> ControlFlow<()>| {
        let mut seen = Vec::new();
        let result = model.embed(
            &texts,
            &options,
            Some(&mut |event| {
                assert_eq!((event.stage, event.total), (Stage::Embed, count));
                seen.push(event.done);
                report()
            }),
        );
        (result.map_err(|error| error.kind()), seen)
    };
    let (want, seen) = run(&|| ControlFlow::Continue(()));
    assert!(seen.len() > 2 && seen.windows(2).all(|pair| pair[0] < pair[1]) && seen.last() == Some(&count), "{seen:?}");
    assert_eq!(run(&|| ControlFlow::Break(())), (Err(ErrorKind::Cancelled), seen[..1].to_vec()));
    let cancelled = run(&|| {
        cancel.trigger();
        ControlFlow::Continue(())
    });
    assert_eq!(cancelled, (Err(ErrorKind::Cancelled), seen[..1].to_vec()));
    cancel.reset();
    assert_eq!(Ok(embed(&model, &texts, &options)), want);
}

#[test]
fn what_tokenizer_config_says_of_a_class_counts() {
    let set = |name: &str, key: &'static str, value: Value| {
        let copy = changed(name, |path| {
            let mut config = common::json(&path.join("tokenizer_config.json"));
            config[key] = value;
            std::fs::write(path.join("tokenizer_config.json"), config.to_string()).unwrap();
        });
        let model = load(copy.path());
        move |text: &str| model.tokenizer().unwrap().encode(text, false).unwrap()
    };
    // transformers 5.23: BertTokenizer and MPNetTokenizer build their own normaliser from these keys.
    let upper = "Hello Größe ÉCOLE";
    for name in ["bert_cls", "bert_mean_norm", "mpnet_mean_norm", "distilbert_mean"] {
        let (lower, cased) = (set(name, "do_lower_case", true.into()), set(name, "do_lower_case", false.into()));
        assert_eq!(lower(upper), lower(&upper.to_lowercase()), "{name}");
        assert_ne!(cased(upper), cased(&upper.to_lowercase()), "{name}");
        assert_eq!(set(name, "do_lower_case", Value::Null)(upper), lower(upper), "{name}: true where it is absent");
    }
    let (kept, stripped) = (set("bert_cls", "strip_accents", false.into()), set("bert_cls", "strip_accents", true.into()));
    assert_eq!(stripped("école"), kept("ecole"));
    assert_ne!(kept("école"), kept("ecole"));
    let (apart, together) =
        (set("bert_cls", "tokenize_chinese_chars", true.into()), set("bert_cls", "tokenize_chinese_chars", false.into()));
    assert_ne!(apart("今天天气"), together("今天天气"));
    // Other classes are what tokenizer.json says.
    let copy = set("bert_cls", "tokenizer_class", "PreTrainedTokenizerFast".into());
    assert_ne!(copy(upper), copy(&upper.to_lowercase()));
}

#[test]
fn a_text_is_cut_where_the_files_say() {
    let text = ["the quick ".repeat(20), "brown fox ".repeat(20)].concat();
    let cut = EmbedOptions::default().max_length(12);
    let vectors = [(None, "Right"), (None, "Left"), (Some("right"), "Left"), (Some("left"), "Right")].map(|(side, direction)| {
        let copy = changed("bert_cls", |path| {
            let change = |name: &str, key: &str, value: Value| {
                let mut file = common::json(&path.join(name));
                file[key] = value;
                std::fs::write(path.join(name), file.to_string()).unwrap();
            };
            let truncation =
                serde_json::json!({"direction": direction, "max_length": 64, "strategy": "LongestFirst", "stride": 0});
            change("tokenizer.json", "truncation", truncation);
            if let Some(side) = side {
                change("tokenizer_config.json", "truncation_side", side.into());
            }
        });
        embed(&load(copy.path()), &[&text], &cut)
    });
    let [right, left, said_right, said_left] = vectors;
    assert_ne!(right, left);
    assert_eq!((said_right, said_left), (right, left));
}

#[test]
fn a_limit_of_the_caller_counts_and_a_table_of_positions_ends() {
    let table = LoadOptions::default().max_context(97);
    let error = Model::load(golden("encoders/bert_cls"), &table, None).err().unwrap();
    assert_eq!(error.message(), "max_context: expected at most the model's 96 positions, found 97");
    let long = "the quick brown fox ".repeat(40);
    let options = LoadOptions::default().max_context(20);
    for name in ["encoders/bert_cls", "encoders/qwen3_last_left", "embedders/eurobert_mean"] {
        let model = Model::load(golden(name), &options, None).unwrap();
        let cut = EmbedOptions::default().max_length(20);
        assert_eq!(embed(&model, &[&long], &EmbedOptions::default()), embed(&load(golden(name)), &[&long], &cut), "{name}");
        assert!(model.embed(&["text"], &cut.max_length(21), None).is_err());
    }
    // A directory's own limit below what the tokenizer adds leaves just that.
    let tiny =
        changed("bert_cls", |path| std::fs::write(path.join("sentence_bert_config.json"), r#"{"max_seq_length": 1}"#).unwrap());
    let model = load(tiny.path());
    assert_eq!(embed(&model, &["some text"], &EmbedOptions::default()), embed(&model, &[""], &EmbedOptions::default()));
}

#[test]
fn threads_share_one_model() {
    let model = load(shipped("tiny-embed"));
    let texts = ["Removes the last element.", "", "Opens a file in read-only mode and returns it."];
    let want = embed(&model, &texts, &EmbedOptions::default());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10).for_each(|_| assert_eq!(embed(&model, &texts, &EmbedOptions::default()), want)));
        }
    });
}

#[test]
fn an_encoder_embeds_and_does_not_generate() {
    let model = load(shipped("tiny-embed"));
    assert!(model.supports(Capability::Embed) && !model.supports(Capability::Generate));
    let error = Session::new(&model, 0).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.message(), "session: expected a model that generates text, found one of bert that only embeds");
    // Without an output matrix a decoder only embeds; with its embedding tied to one it does both.
    assert!(!load(golden("encoders/qwen2_last_right")).supports(Capability::Generate));
    let both = load(golden("encoders/qwen3_last_left"));
    assert!(both.supports(Capability::Generate) && both.supports(Capability::Embed));
    // Phi's has a bias, which a model of embeddings is saved without.
    let folder = common::edited(&golden("families/phi_tied"), &[]);
    let path = folder.path().join("model.safetensors");
    let mut tensors = Reference::open(&path).tensors();
    tensors.remove("lm_head.bias").unwrap();
    let bare = tensors.into_iter().map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_string(), tensor));
    write_tensors(&path, bare.collect());
    assert!(!load(folder.path()).supports(Capability::Generate));
}

/// A copy of a reference directory, changed.
fn changed(name: &str, change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_all(&golden("encoders").join(name), copy.path());
    change(copy.path());
    copy
}

fn copy_all(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_all(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_plain_directory_pools_the_mean() {
    let plain = changed("bert_mean_norm", |path| std::fs::remove_file(path.join("modules.json")).unwrap());
    let texts = ["hello", "The cat sleeps in the warm sun."];
    let not_normalised = EmbedOptions::default().normalize(false);
    let want = embed(&load(golden("encoders/bert_mean_norm")), &texts, &not_normalised);
    assert_eq!(embed(&load(plain.path()), &texts, &EmbedOptions::default()), want);
}

#[test]
fn what_modernbert_says_of_positions_changes_nothing() {
    // As mmBERT and Ettin have it: the reference does not look at it.
    let said = changed("modernbert_mean_new", |path| {
        let mut config = common::json(&path.join("config.json"));
        config["position_embedding_type"] = "sans_pos".into();
        std::fs::write(path.join("config.json"), config.to_string()).unwrap();
    });
    let (texts, default) = (["hello", "The cat sleeps in the warm sun."], EmbedOptions::default());
    assert_eq!(
        embed(&load(said.path()), &texts, &default),
        embed(&load(golden("encoders/modernbert_mean_new")), &texts, &default)
    );
}

#[test]
fn behind_a_padding_of_0_positions_count_from_1() {
    // Behind the id 1 a text has the positions 2 and up. Its first token is the id 0, so 0 and up remain, two rows further down.
    let of_0 = changed("xlmr_mean_e5", |path| {
        let config = std::fs::read_to_string(path.join("config.json")).unwrap();
        let config = config.replace("\"pad_token_id\": 1", "\"pad_token_id\": 0");
        let config = config.replace("\"max_position_embeddings\": 96", "\"max_position_embeddings\": 94");
        std::fs::write(path.join("config.json"), config).unwrap();
        let weights = path.join("model.safetensors");
        let mut tensors = Reference::open(&weights).tensors();
        let (_, (_, shape, bytes)) = tensors.iter_mut().find(|(name, _)| name.contains("position_embeddings.")).unwrap();
        bytes.drain(..bytes.len() / shape[0] * 2);
        shape[0] -= 2;
        write_tensors(&weights, tensors);
    });
    let texts = ["hello", "The cat sleeps in the warm sun."];
    let (model, want) = (load(of_0.path()), load(golden("encoders/xlmr_mean_e5")));
    assert_eq!((model.context_length(), want.context_length()), (93, 94));
    assert_eq!(embed(&model, &texts, &EmbedOptions::default()), embed(&want, &texts, &EmbedOptions::default()));
    let null = changed("xlmr_mean_e5", |path| {
        let config = std::fs::read_to_string(path.join("config.json")).unwrap();
        std::fs::write(path.join("config.json"), config.replace("\"pad_token_id\": 1", "\"pad_token_id\": null")).unwrap();
    });
    let error = Model::load(null.path(), &LoadOptions::default(), None).err().unwrap();
    assert_eq!(error.message(), "config.json: pad_token_id: expected a whole number, found null");
}

#[test]
fn shards_may_have_the_names_of_early_checkpoints() {
    let path = golden("embedders/bert_old_folder");
    let copy = tempfile::tempdir().unwrap();
    copy_all(&path, copy.path());
    let folder = copy.path().join("0_Transformer");
    let (single, shard) = (folder.join("model.safetensors"), folder.join("model-00001-of-00001.safetensors"));
    let bytes = std::fs::read(&single).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let map: serde_json::Map<String, Value> =
        tensors.names().into_iter().map(|name| (name.to_string(), "model-00001-of-00001.safetensors".into())).collect();
    assert!(map.keys().any(|name| name.ends_with("LayerNorm.gamma")), "old names");
    std::fs::write(folder.join("model.safetensors.index.json"), serde_json::json!({"weight_map": map}).to_string()).unwrap();
    std::fs::rename(&single, shard).unwrap();
    let texts = ["hello", "The cat sleeps in the warm sun."];
    let default = EmbedOptions::default();
    assert_eq!(embed(&load(copy.path()), &texts, &default), embed(&load(path), &texts, &default));
}

#[test]
fn a_directory_that_contradicts_itself_is_refused_by_name() {
    let write = |path: &Path, file: &str, text: &str| std::fs::write(path.join(file), text).unwrap();
    let refused = |name: &str, kind: ErrorKind, names: &[&str], change: &dyn Fn(&Path)| {
        let copy = changed(name, change);
        let error = Model::load(copy.path(), &LoadOptions::default(), None).err().unwrap();
        assert!(error.kind() == kind && names.iter().all(|name| error.message().contains(name)), "{names:?}: {error:?}");
    };
    let dense = |text: &'static str| move |path: &Path| write(path, "2_Dense/config.json", text);
    refused("bert_dense_new", ErrorKind::Format, &["reads 63 values"], &dense(r#"{"in_features": 63, "out_features": 40}"#));
    refused(
        "bert_dense_new",
        ErrorKind::Format,
        &["2_Dense", "linear.weight", "[41, 64]"],
        &dense(r#"{"in_features": 64, "out_features": 41}"#),
    );
    let no_bias = dense(r#"{"in_features": 64, "out_features": 40, "bias": false}"#);
    refused("bert_dense_new", ErrorKind::Format, &["2_Dense", "linear.bias"], &no_bias);
    refused("bert_dense_new", ErrorKind::NotFound, &["2_Dense", "model.safetensors"], &|path| {
        std::fs::remove_file(path.join("2_Dense/model.safetensors")).unwrap();
    });
    refused("bert_dense_new", ErrorKind::NotFound, &["2_Dense", "pytorch_model.bin", "save the model as safetensors"], &|path| {
        std::fs::rename(path.join("2_Dense/model.safetensors"), path.join("2_Dense/pytorch_model.bin")).unwrap();
    });
    refused("bert_mean_norm", ErrorKind::Format, &["pooling", "64", "65"], &|path| {
        write(path, "1_Pooling/config.json", r#"{"word_embedding_dimension": 65, "pooling_mode_mean_tokens": true}"#);
    });
    refused("mpnet_mean_norm", ErrorKind::Format, &["relative_attention_num_buckets", "31"], &|path| {
        let config = std::fs::read_to_string(path.join("config.json")).unwrap();
        let fewer = config.replace("\"relative_attention_num_buckets\": 32", "\"relative_attention_num_buckets\": 31");
        write(path, "config.json", &fewer);
    });
    refused("xlmr_mean_e5", ErrorKind::Format, &["max_position_embeddings"], &|path| {
        let config = std::fs::read_to_string(path.join("config.json")).unwrap();
        write(path, "config.json", &config.replace("\"max_position_embeddings\": 96", "\"max_position_embeddings\": 2"));
    });
    let without_tokenizer = changed("bert_mean_norm", |path| std::fs::remove_file(path.join("tokenizer.json")).unwrap());
    let model = load(without_tokenizer.path());
    assert!(!model.supports(Capability::Embed));
    assert_eq!(model.embed(&["text"], &EmbedOptions::default(), None).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_dense_module_ends_with_any_function_of_torch() {
    let vector = |activation: &str| {
        let copy = changed("bert_dense_new", |path| {
            let config = format!(
                r#"{{"in_features": 64, "out_features": 40, "activation_function": "torch.nn.modules.activation.{activation}"}}"#
            );
            std::fs::write(path.join("2_Dense/config.json"), config).unwrap();
        });
        embed(&load(copy.path()), &["The cat sleeps in the warm sun."], &EmbedOptions::default().normalize(false))
    };
    let plain = vector("Identity");
    assert!(plain.iter().any(|x| *x < 0.0) && plain.iter().any(|x| *x > 0.0));
    let leaky: Vec<f32> = plain.iter().map(|x| if *x > 0.0 { *x } else { (0.01 * f64::from(*x)) as f32 }).collect();
    assert_eq!(vector("LeakyReLU"), leaky);
}

#[test]
fn quantised_weights_give_nearly_the_same_vectors() {
    for path in models() {
        let (dense, notes) = (load(&path), common::json(&path.join("golden.json")));
        let quantised = Model::load(&path, &q8_0(), None).unwrap();
        let vectors = |model: &Model| embed(model, &texts(&notes), &EmbedOptions::default());
        let (want, got) = (vectors(&dense), vectors(&quantised));
        let near = cosine(&want, &got);
        assert!(near > 0.99 && got != want, "{}: {near}", path.display());
    }
}
