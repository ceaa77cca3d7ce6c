//! What the targets share: models that take microseconds, a folder in memory to write inputs to, and how an input is cut into parts.

pub mod micro;
pub mod targets;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use metal_candle::{EmbedOptions, GenerateOptions, LoadOptions, Model};

/// The folder of this process: memory, where the system has such a place. `fuzz/run` removes it.
pub fn scratch() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("metal-candle-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for inputs");
        folder
    })
}

/// Called once. A panic that the library catches is an error as any other; libFuzzer's own hook would end the process at once.
pub fn start() {
    let _ = std::panic::take_hook();
}

/// Which errors there were: libFuzzer looks at these counters beside the code that ran, and `smoke` at them alone.
#[cfg_attr(target_os = "linux", unsafe(link_section = "__libfuzzer_extra_counters"))]
static ERRORS: [AtomicU8; 1 << 14] = [const { AtomicU8::new(0) }; 1 << 14];

/// What a call has given; its error counts as covered, whatever numbers and names it speaks of.
pub fn told<T>(result: metal_candle::Result<T>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error.to_string(),
    };
    let words = error.bytes().filter(|byte| byte.is_ascii_lowercase() || *byte == b' ').take(60);
    let hash = words.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    ERRORS[hash as usize % ERRORS.len()].fetch_add(1, Ordering::Relaxed);
    None
}

/// How many kinds of errors there have been since this was last asked, of those that `seen` does not hold yet.
pub fn new_errors(seen: &mut [bool]) -> usize {
    let counts = ERRORS.iter().zip(seen).filter(|(count, _)| count.load(Ordering::Relaxed) > 0).map(|(count, seen)| {
        count.store(0, Ordering::Relaxed);
        !std::mem::replace(seen, true)
    });
    counts.filter(|is_new| *is_new).count()
}

/// How many kinds of errors are told apart.
pub const ERROR_KINDS: usize = ERRORS.len();

/// A folder with a micro model in which a target replaces files.
pub fn model_folder(name: &str, write: impl FnOnce(&Path)) -> PathBuf {
    let folder = scratch().join(name);
    std::fs::create_dir_all(&folder).expect("a folder for a model");
    write(&folder);
    folder
}

/// The micro decoder, loaded.
pub fn decoder() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = model_folder("base", micro::decoder);
        Model::load(folder, &LoadOptions::default(), None).expect("the micro decoder")
    })
}

pub fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("an input is written");
}

/// Computes a little with a model that an input has become.
pub fn use_model(model: &Model) {
    let options = GenerateOptions::default().max_tokens(2);
    match model.tokenizer() {
        Ok(_) => drop(told(model.generate("hi the", &options, None, &mut |_| std::ops::ControlFlow::Continue(())))),
        Err(_) => {
            if let Some(mut session) = told(metal_candle::Session::new(model, 16)) {
                told(session.append_tokens(&[1, 2, 3], None));
                told(session.logits());
            }
        }
    }
    if model.embedding_dim(&EmbedOptions::default()).is_ok_and(|dim| dim < 100_000) {
        told(model.embed(&["hi the", ""], &EmbedOptions::default(), None));
    }
}

/// The parts of an input, which zeros separate.
pub fn parts(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    input.split(|&byte| byte == 0)
}

/// A safetensors file from an input, so that most of them get past the first check. The first byte chooses: the header is what stands
/// before a zero, of which the length is right, and the rest fills as many bytes as the header speaks of (0), or is all (1, 2); or the
/// input is the file as it is (3).
pub fn safetensors(input: &[u8]) -> Vec<u8> {
    let Some((&mode, rest)) = input.split_first() else { return Vec::new() };
    if mode & 3 == 3 {
        return rest.to_vec();
    }
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    let (header, body) = (&rest[..end], rest.get(end + 1..).unwrap_or(&[]));
    let mut file = [&(header.len() as u64).to_le_bytes(), header].concat();
    if mode & 3 == 0 {
        let json: serde_json::Value = serde_json::from_slice(header).unwrap_or_default();
        let ends = json.as_object().into_iter().flatten().filter_map(|(_, entry)| entry["data_offsets"][1].as_u64());
        let body = if body.is_empty() { &[0] } else { body };
        file.extend(body.iter().cycle().take(ends.max().unwrap_or(0).min(1 << 20) as usize));
    } else {
        file.extend_from_slice(body);
    }
    file
}

/// What [`safetensors`] makes this file of: its header, and the start of its body.
pub fn as_input(mode: u8, file: &[u8], body: usize) -> Vec<u8> {
    let end = 8 + u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    [&[mode], &file[8..end], &[0], &file[end..file.len().min(end + body)]].concat()
}
