//! Headers that are right, and every way in which one may be wrong.

use std::collections::BTreeSet;
use std::fs;

use sha2::{Digest, Sha256};

use super::build::{Build, text};
use super::*;
use crate::error::ErrorKind;
use crate::nn::{Slot, TensorSource, Weights};
use crate::ops::{Backend, Format};

/// A file with one of each.
fn small() -> Build {
    Build::new()
        .text("general.architecture", "llama")
        .text("general.type", "model")
        .u32("llama.block_count", 1)
        .strings("tokenizer.ggml.tokens", &["a", "bc", ""])
        .ints("tokenizer.ggml.token_type", &[1, 3, 6])
        .tensor("a.weight", &[2, 3], 0, &[1; 24])
        .tensor("b.weight", &[3, 32], 8, &[2; 3 * 34])
        .tensor("c", &[5], 26, &[3; 20])
}

fn read(bytes: &[u8]) -> Result<Header> {
    Header::read(Path::new("folder/model.gguf"), &mut &*bytes, bytes.len() as u64, FileKind::Model)
}

#[test]
fn a_header_is_read() {
    for version in [2, 3] {
        let mut build = small();
        build.version = version;
        let bytes = build.bytes();
        let header = read(&bytes).unwrap();
        assert_eq!(header.metadata.text("general.architecture").unwrap(), Some("llama"));
        let tensors: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.entry.clone(), t.start, t.len)).collect();
        let entry = |shape: &[usize], stored| Entry { shape: shape.to_vec(), stored };
        let end = bytes.len() as u64;
        let want = [
            ("a.weight", entry(&[2, 3], Ok(Format::F32)), end - 20 - 128 - 32, 24),
            ("b.weight", entry(&[3, 32], Ok(Format::Q8_0)), end - 20 - 128, 102),
            ("c", entry(&[5], Err("i32".to_string())), end - 20, 20),
        ];
        assert_eq!(tensors, want);
        // With the padding of the last, as most files have it.
        assert_eq!(read(&[bytes.as_slice(), &[0; 12]].concat()).unwrap().tensors.len(), 3);
    }
    let vocabulary = Build::new().strings("tokenizer.ggml.tokens", &["a"]).bytes();
    assert!(read(&vocabulary).unwrap().tensors.is_empty());
    assert!(read(&Build::new().bytes()).unwrap().metadata.keys().next().is_none());
}

#[test]
fn tensors_are_aligned_as_the_file_says() {
    for alignment in [1, 8, 64, 4096] {
        let mut build = Build::new().u32("general.alignment", alignment);
        build.alignment = alignment as usize;
        let bytes = build.tensor("a", &[3], 0, &[1; 12]).tensor("b", &[3], 0, &[2; 12]).bytes();
        let header = read(&bytes).unwrap();
        for (tensor, value) in header.tensors.iter().zip(1..) {
            assert_eq!(tensor.start % u64::from(alignment), 0);
            assert_eq!(bytes[tensor.start as usize..][..12], [value; 12]);
        }
    }
}

/// The file with other bytes at the first place of some.
fn with(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    [&bytes[..at], new, &bytes[at + old.len()..]].concat()
}

#[test]
fn what_contradicts_the_format_is_named() {
    let good = small().bytes();
    let huge = u64::MAX.to_le_bytes();
    let at = |at: usize, new: &[u8]| [&good[..at], new, &good[at + new.len()..]].concat();
    // A tensor of this shape and type, without data.
    let tensor = |shape: &[u64], kind| Build::new().tensor("t", shape, kind, &[]).bytes();
    let key = |kind: u32, value: &[u8]| Build::new().key("k", kind, value).bytes();
    let format = ErrorKind::Format;
    let cases: Vec<(Vec<u8>, ErrorKind, &str)> = vec![
        (at(0, b"GGML"), format, "magic number: expected \"GGUF\", found \"GGML\""),
        (at(4, &[1]), ErrorKind::Unsupported, "version: 1 is not supported (2, 3); convert the model again"),
        (at(4, &[0, 0, 0, 3]), ErrorKind::Unsupported, "version: the file is big endian, which is not supported"),
        (at(4, &[9]), ErrorKind::Unsupported, "version: 9 is not supported (2, 3)"),
        (at(4, &[0]), ErrorKind::Unsupported, "version: 0 is not supported (2, 3)"),
        (at(8, &huge), format, "tensor count: expected at most 17 in the rest of the file, found 18446744073709551615"),
        (at(16, &huge), format, "key count: expected at most 40 in the rest of the file, found 18446744073709551615"),
        (at(24, &huge), format, "key 0: length: expected at most 564, found 18446744073709551615"),
        (at(24, &[0; 8]), format, "key 0: name: expected at least one byte, found none"),
        (at(32, &[0xff]), format, "key 0: name: expected UTF-8"),
        (at(32, b"\n"), format, "key 0: name: expected no control characters, found \"\\neneral.architecture\""),
        (key(13, &[0]), format, "k: type: expected 0 to 12, found 13"),
        (key(9, &9u32.to_le_bytes()), ErrorKind::Unsupported, "k: a list of lists is not supported"),
        (key(9, &99u32.to_le_bytes()), format, "k: type: expected 0 to 12, found 99"),
        (key(4, &[0; 3]), format, "k: expected 4 bytes, found 3 to the end of the file"),
        (key(8, &huge), format, "k: length: expected at most 0, found 18446744073709551615"),
        (
            key(9, &[5, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9]),
            format,
            "k: expected at most 1 in the rest of the file, found 2",
        ),
        (
            Build::new().list("k", 5, u64::MAX, &[]).bytes(),
            format,
            "k: expected at most 0 in the rest of the file, found 18446744073709551615",
        ),
        (Build::new().list("k", 8, 2, &[0; 15]).bytes(), format, "k: expected at most 1 in the rest of the file, found 2"),
        (Build::new().list("k", 8, 2, &[9; 16]).bytes(), format, "k: length: expected at most 8, found 651061555542690057"),
        (Build::new().u32("k", 1).f32("k", 1.0).bytes(), format, "k: a second value of this key"),
        (Build::new().u32("general.alignment", 24).bytes(), format, "general.alignment: expected a power of two, found u32 24"),
        (Build::new().u32("general.alignment", 0).bytes(), format, "general.alignment: expected a power of two, found u32 0"),
        (
            Build::new().text("general.alignment", "32").bytes(),
            format,
            "general.alignment: expected a whole number from 0 to 4294967295, found the text \"32\"",
        ),
        (
            Build::new().text("general.type", "adapter").bytes(),
            ErrorKind::Unsupported,
            "general.type: expected \"model\" (an adapter is loaded for a model that is loaded already), found the text \"adapter\"",
        ),
        (Build::new().u32("general.type", 1).bytes(), format, "general.type: expected a text in UTF-8, found u32 1"),
        (
            with(&good, &[&text(b"b.weight"), [2].as_slice()].concat(), &[&text(b"a.weight"), [2].as_slice()].concat()),
            format,
            "a.weight: a second tensor of this name",
        ),
        (
            Build::new().tensor(&"t".repeat(64), &[1], 0, &[0; 4]).bytes(),
            format,
            "tensor 0: length: expected at most 63, found 64",
        ),
        (Build::new().tensor("", &[1], 0, &[0; 4]).bytes(), format, "tensor 0: name: expected at least one byte, found none"),
        (tensor(&[1; 5], 0), format, "t: dimensions: expected 1 to 4, found 5"),
        (Build::new().tensor("t", &[], 0, &[0; 4]).bytes(), format, "t: dimensions: expected 1 to 4, found 0"),
        (tensor(&[2, 0], 0), format, "t: dimension: expected 1 or more that fit the memory"),
        (tensor(&[u64::MAX, 2], 0), format, "t: no memory has the bytes of shape [18446744073709551615, 2]"),
        (tensor(&[1 << 62], 0), format, "t: no memory has the bytes of shape [4611686018427387904]"),
        (tensor(&[1 << 61, 1], 28), format, "t: no memory has the bytes of shape [2305843009213693952, 1]"),
        (tensor(&[2, 33], 8), format, "t: row: expected whole blocks of 32 values, found 33 values"),
        (tensor(&[4, 1], 4), ErrorKind::Unsupported, "t: type: 4 (q4_2) was removed from GGUF; convert the model again"),
        (tensor(&[4, 1], 38), ErrorKind::Unsupported, "t: type: 38 (iq4_nl_8_8) was removed from GGUF; convert the model again"),
        (tensor(&[4, 1], 4242), ErrorKind::Unsupported, "t: type: 4242 is not known"),
        (tensor(&[4, 1], 0), format, "t: expected 16 bytes, found 0 to the end of the file"),
        (Build::new().tensor("t", &[4], 0, &[0; 15]).bytes(), format, "t: expected 16 bytes, found 15 to the end of the file"),
        (
            Build::new().tensor("t", &[4], 0, &[0; 16]).tensor_at("u", &[4], 0, 0, &[0; 16]).bytes(),
            format,
            "u: offset: expected 32, found 0",
        ),
        (
            Build::new().tensor("t", &[4], 0, &[0; 16]).tensor_at("u", &[4], 0, 16, &[0; 16]).bytes(),
            format,
            "u: offset: expected 32, found 16",
        ),
        (
            Build::new().tensor_at("t", &[4], 0, u64::MAX - 31, &[0; 16]).bytes(),
            format,
            "t: offset: expected 0, found 18446744073709551584",
        ),
    ];
    for (bytes, kind, message) in cases {
        let error = read(&bytes).map(|_| message).expect_err(message);
        assert_eq!((error.kind(), error.message()), (kind, format!("model.gguf: {message}").as_str()));
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_wherever_it_ends() {
    let bytes = small().bytes();
    for len in 0..bytes.len() {
        let error = read(&bytes[..len]).map(|_| len).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "{len}: {error}");
        // The same if the file was longer when its size was asked for.
        let error = Header::read(Path::new("x"), &mut &bytes[..len], 1 << 40, FileKind::Model).map(|_| len);
        assert!(error.is_ok() || matches!(error.unwrap_err().kind(), ErrorKind::Io | ErrorKind::Format), "{len}");
    }
    assert!(read(&bytes).is_ok());
}

#[test]
fn no_byte_brings_the_reader_down() {
    let good = small().bytes();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=next(3) {
            let at = next(bytes.len());
            // Bits, the ends of the range, and any byte.
            bytes[at] = match next(4) {
                0 => bytes[at] ^ (1 << next(8)),
                1 => 0,
                2 => 255,
                _ => next(256) as u8,
            };
        }
        match read(&bytes) {
            Err(_) => refused += 1,
            Ok(header) => {
                for tensor in &header.tensors {
                    assert!(tensor.start + tensor.len <= bytes.len() as u64);
                }
                for key in header.metadata.keys() {
                    let metadata = &header.metadata;
                    let _ = (metadata.text(key), metadata.u32(key), metadata.f32(key), metadata.bool(key));
                    let _ = (metadata.strings(key), metadata.floats(key), metadata.ints(key), metadata.bools(key));
                }
            }
        }
    }
    assert!((5_000..20_000).contains(&refused), "{refused}");
}

/// A model in three files of two tensors, one and none.
fn splits() -> Vec<Build> {
    let split = |build: Build, no: u16| {
        let build = build.key("split.no", 2, &no.to_le_bytes()).key("split.count", 2, &3u16.to_le_bytes());
        build.key("split.tensors.count", 5, &3i32.to_le_bytes())
    };
    let first = split(Build::new().text("general.architecture", "llama").bool("b", true), 0);
    vec![
        first.tensor("a", &[4], 0, &[1; 16]).tensor("b", &[4], 0, &[2; 16]),
        split(Build::new(), 1).tensor("c", &[4], 0, &[3; 16]),
        split(Build::new(), 2),
    ]
}

fn open_splits(splits: &[Build]) -> Result<Gguf> {
    let folder = tempfile::tempdir().unwrap();
    let path = |i: usize| folder.path().join(format!("tiny-{:05}-of-00003.gguf", i + 1));
    for (i, split) in splits.iter().enumerate() {
        fs::write(path(i), split.bytes()).unwrap();
    }
    Gguf::open(&path(0))
}

#[test]
fn a_model_in_several_files_is_opened_by_the_first() {
    let gguf = open_splits(&splits()).unwrap();
    let tensors: Vec<_> = gguf.tensors().map(|tensor| (tensor.name(), tensor.file)).collect();
    assert_eq!(tensors, [("a", 0), ("b", 0), ("c", 1)]);
    assert_eq!(gguf.tensor("c").unwrap().entry().shape, [4]);
    assert!(gguf.tensor("d").is_none());
    assert_eq!(gguf.metadata().bool("b").unwrap(), Some(true));
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let check = |splits: &[Build], kind: ErrorKind, parts: &[&str]| {
        let error = open_splits(splits).map(|_| parts).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(parts.iter().all(|part| error.message().contains(part)), "{error}");
    };
    let good = splits();
    check(&good[..2], ErrorKind::NotFound, &["tiny-00003-of-00003.gguf"]);
    let [first, second, third] = [&good[0], &good[1], &good[2]].map(Build::clone);
    let order = [first.clone(), third.clone(), second.clone()];
    check(&order, ErrorKind::Format, &["tiny-00002-of-00003.gguf: split.no: expected 1, found u16 2"]);
    check(&[second.clone(), first.clone(), third.clone()], ErrorKind::Format, &["tiny-00001", "split.no: expected 0", "u16 1"]);
    let twice = [first.clone(), second.clone(), third.clone().tensor("a", &[1], 0, &[0; 4])];
    check(&twice, ErrorKind::Format, &["tiny-00003", "a: a second tensor of this name"]);
    let more = [first.clone(), second.clone(), third.clone().tensor("d", &[1], 0, &[0; 4])];
    check(&more, ErrorKind::Format, &["tiny-00001", "split.tensors.count: expected 4", "found i32 3"]);
    let other = [first.clone(), second.clone().text("general.architecture", "gemma"), third.clone()];
    check(&other, ErrorKind::Format, &["tiny-00002", "general.architecture: the first file"]);
    // What all files say alike changes nothing.
    let same = [first.clone(), second.text("general.architecture", "llama"), third];
    assert!(open_splits(&same).is_ok());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    fs::write(&path, first.bytes()).unwrap();
    let error = Gguf::open(&path).unwrap_err();
    assert!(error.message().contains("-00001-of-00003.gguf"), "{error}");
    assert_eq!(Gguf::open(&folder.path().join("absent.gguf")).unwrap_err().kind(), ErrorKind::NotFound);
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf")
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn tensors_of_llama_cpp_have_the_values_that_it_reads_in_them() {
    let golden: serde_json::Value = serde_json::from_str(&fs::read_to_string(goldens().join("golden.json")).unwrap()).unwrap();
    let mut formats = BTreeSet::new();
    for (name, golden) in golden["files"].as_object().unwrap() {
        let gguf = Gguf::open(&goldens().join(golden["file"].as_str().unwrap())).unwrap();
        let mut on_bytes = |_, _| Ok(());
        let mut source = GgufSource::new(gguf, [], |_| false, &mut on_bytes).unwrap();
        let tensors = golden["tensors"].as_object().unwrap();
        for (tensor, golden) in tensors {
            let entry = source.entry(tensor).unwrap().clone();
            let format = entry.stored.unwrap();
            assert_eq!(format.name().to_lowercase(), golden["type"].as_str().unwrap().to_lowercase(), "{name} {tensor}");
            assert_eq!(serde_json::json!(entry.shape), golden["shape"], "{name} {tensor}");
            let mut bytes = vec![0; entry.shape[0] * format.row_bytes(entry.shape[1]).unwrap()];
            source.read(tensor, 0, &mut bytes).unwrap();
            let values: Vec<u8> = format.widen(&bytes).iter().flat_map(|x| x.to_le_bytes()).collect();
            let sha256: String = Sha256::digest(&values).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(sha256, golden["sha256"], "{name} {tensor}");
            formats.insert(format.name());
        }
        // All others are norms, biases and factors.
        for other in source.names().into_iter().filter(|name| !tensors.contains_key(*name)) {
            let entry = source.entry(other).unwrap();
            assert!(entry.shape.len() == 1 && entry.stored == Ok(Format::F32), "{name} {other}");
        }
    }
    assert_eq!(formats.len(), 15);
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn a_matrix_of_every_format_is_loaded() {
    let cpu = Backend::new(&candle_core::Device::Cpu);
    for file in ["qwen2-F16", "qwen2-Q8_0", "qwen2-Q4_0", "qwen2_k-Q4_K", "qwen2_k-IQ4_XS"] {
        let gguf = Gguf::open(&goldens().join(format!("{file}.gguf"))).unwrap();
        let mut on_bytes = |_, _| Ok(());
        let mut source = GgufSource::new(gguf, [], |_| false, &mut on_bytes).unwrap();
        let entry = source.entry("blk.0.ffn_up.weight").unwrap().clone();
        let ([rows, cols], format) = (<[usize; 2]>::try_from(entry.shape).unwrap(), entry.stored.unwrap());
        let mut bytes = vec![0; rows * format.row_bytes(cols).unwrap()];
        source.read("blk.0.ffn_up.weight", 0, &mut bytes).unwrap();
        for kept in [None, Some(Format::F32)] {
            let mut weights = Weights::new(&mut source, &cpu, kept);
            let matrix = weights.matrix(&[Slot::whole("blk.0.ffn_up", rows)], cols).unwrap();
            assert_eq!(matrix.rows(0..rows).unwrap(), format.widen(&bytes), "{file}");
        }
    }
}

#[test]
#[cfg_attr(not(reference_data), ignore = "needs the repository's references")]
fn metadata_of_llama_cpp_is_read() {
    let gguf = Gguf::open(&goldens().join("tiny-coder-Q4_K_S.gguf")).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.text("general.architecture").unwrap(), Some("qwen2"));
    assert!(metadata.f32("qwen2.attention.layer_norm_rms_epsilon").unwrap().is_some());
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let kinds = metadata.ints("tokenizer.ggml.token_type").unwrap().unwrap();
    assert!(tokens.len() == kinds.len() && !metadata.strings("tokenizer.ggml.merges").unwrap().unwrap().is_empty());
    assert_eq!(gguf.tensor("token_embd.weight").unwrap().entry().shape[0], tokens.len());
}
