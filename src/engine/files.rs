//! The small files of a model directory: what a model is, before its weights are read.

use std::path::{Path, PathBuf};

use super::sampling::Sampling;
use super::{Device, DeviceKind, LoadOptions, Tokenizer};
use crate::error::{Error, Result};
use crate::load::{Json, MAX_JSON, SentenceConfig, read_text};
use crate::models::{self, Family};
use crate::nn::Config;
use crate::ops::Format;

/// What they say, checked.
pub(super) struct Files {
    pub(super) directory: PathBuf,
    pub(super) family: &'static Family,
    pub(super) config: Config,
    pub(super) config_json: String,
    /// What matrices are quantised to.
    pub(super) quant: Option<Format>,
    raw: Json,
    generation: Option<Json>,
    pub(super) tokenizer_config: Option<Json>,
    pub(super) sentence: SentenceConfig,
}

impl Files {
    pub(super) fn open(path: &Path, options: &LoadOptions) -> Result<Self> {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Err(Error::unsupported(format!(
                "{}: GGUF files are not supported, expected a directory with safetensors",
                path.display()
            )));
        }
        let quant = quant(options)?;
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !metadata.is_dir() {
            return Err(Error::unsupported(format!("{}: expected a directory with config.json", path.display())));
        }
        let sentence = SentenceConfig::read(path)?;
        let path = sentence.network.clone();
        let config_json = read_text(&path.join("config.json"), MAX_JSON)?;
        let raw = Json::parse("config.json", &config_json)?;
        let (family, mut config) = models::parse(&raw)?;
        if let Some(tokens) = options.max_context {
            if !(1..=models::MAX_CONTEXT).contains(&tokens) {
                return Err(Error::argument(format!("max_context: expected 1 to {}, found {tokens}", models::MAX_CONTEXT)));
            }
            if config.positions.is_some() && tokens > config.context_length {
                let most = config.context_length;
                return Err(Error::argument(format!(
                    "max_context: expected at most the model's {most} positions, found {tokens}"
                )));
            }
            config.context_length = tokens;
        }
        Ok(Self {
            family,
            config,
            config_json,
            quant,
            generation: Json::read_optional(&path.join("generation_config.json"))?,
            tokenizer_config: Json::read_optional(&path.join("tokenizer_config.json"))?,
            directory: path,
            sentence,
            raw,
        })
    }

    pub(super) fn tokenizer(&self, options: &LoadOptions) -> Result<Option<Tokenizer>> {
        let path = options.tokenizer_path.clone().unwrap_or_else(|| self.directory.join("tokenizer.json"));
        if options.tokenizer_path.is_none() && !path.exists() {
            return Ok(None);
        }
        let tokenizer = Tokenizer::load(path)?;
        match &self.tokenizer_config {
            Some(config) if options.tokenizer_path.is_none() => tokenizer.configured(config, self.family.model_type).map(Some),
            _ => Ok(Some(tokenizer)),
        }
    }

    /// The tokens that end an answer: the tokenizer's own first, then those of generation_config.json, or else of config.json.
    pub(super) fn eos(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        let mut eos = match &self.generation {
            Some(generation) if generation.get("eos_token_id").is_some() => generation.ids("eos_token_id")?,
            _ => match self.raw.object("text_config")? {
                // Of a multimodal model: what the language model says, where the whole says nothing.
                Some(text) if !self.raw.has("eos_token_id") => text.ids("eos_token_id")?,
                _ => self.raw.ids("eos_token_id")?,
            },
        };
        if let (Some(tokenizer), Some(config)) = (tokenizer, &self.tokenizer_config) {
            let token = match config.get("eos_token") {
                Some(token) if token.value().is_object() => token.text("content")?,
                Some(_) => config.text("eos_token")?,
                None => None,
            };
            // A name that the vocabulary lacks can never be sampled.
            if let Some(own) = token.and_then(|token| tokenizer.token_id(&token).ok()) {
                eos.retain(|id| *id != own);
                eos.insert(0, own);
            }
        }
        Ok(eos)
    }

    /// What generation_config.json recommends: sampling where `do_sample` says so, else greedy.
    pub(super) fn sampling(&self) -> Result<Sampling> {
        let mut sampling = Sampling::default();
        let Some(json) = &self.generation else { return Ok(sampling) };
        sampling.repetition_penalty = json.positive("repetition_penalty", 1.0)? as f32;
        if json.flag("do_sample", false)? {
            let within = |key: &str, default: f64| -> Result<f32> {
                let value = json.number(key)?.unwrap_or(default);
                if (0.0..=1.0).contains(&value) {
                    Ok(value as f32)
                } else {
                    Err(json.invalid(key, &format!("expected 0 to 1, found {value}")))
                }
            };
            sampling.temperature = json.number("temperature")?.unwrap_or(1.0).max(0.0) as f32;
            sampling.top_k = json.count("top_k", usize::MAX >> 1)?.unwrap_or(0);
            sampling.top_p = within("top_p", 1.0)?;
            sampling.min_p = within("min_p", 0.0)?;
        }
        Ok(sampling)
    }
}

/// # Errors
/// `ErrorKind::Unsupported` for a kind that is not there, and for one on a GPU.
fn quant(options: &LoadOptions) -> Result<Option<Format>> {
    let Some(kind) = &options.quantization else { return Ok(None) };
    let device = match &options.device {
        Some(device) => device.kind(),
        None => Device::new(DeviceKind::Auto, 0)?.kind(),
    };
    quant_on(kind, device).map(Some)
}

fn quant_on(kind: &str, device: DeviceKind) -> Result<Format> {
    let Some(quant) = quants().find(|quant| quant.name() == kind) else {
        let names = quants().map(Format::name).collect::<Vec<_>>().join(", ");
        return Err(Error::unsupported(format!("quantization: {kind:?} is not supported ({names})")));
    };
    match device {
        DeviceKind::Cpu => Ok(quant),
        gpu => Err(Error::unsupported(format!("quantization: {kind:?} runs on the CPU alone, found the device {gpu:?}"))),
    }
}

/// The formats that [`LoadOptions::quantization`] knows.
fn quants() -> impl Iterator<Item = Format> {
    Format::quantised_to()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn quantised_weights_are_for_the_cpu() {
        for quant in quants() {
            let kind = quant.name();
            assert_eq!(quant_on(kind, DeviceKind::Cpu).unwrap(), quant);
            for (device, name) in [(DeviceKind::Metal, "Metal"), (DeviceKind::Cuda, "Cuda")] {
                let error = quant_on(kind, device).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!([kind, "CPU", name].iter().all(|word| error.message().contains(word)), "{error}");
            }
        }
    }
}
