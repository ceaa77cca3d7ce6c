//! Weights: `model.safetensors` of a decoder or an encoder, kept as they are or quantised.

use crate::{micro, model_folder, put, safetensors, told, use_model};
use metal_candle::{LoadOptions, Model, estimate_memory};

pub fn run(input: &[u8]) {
    let Some(&mode) = input.first() else { return };
    let folder = match mode & 4 {
        0 => model_folder("decoder", |folder| {
            if !folder.join("config.json").exists() {
                micro::decoder(folder)
            }
        }),
        _ => model_folder("encoder", |folder| {
            if !folder.join("config.json").exists() {
                micro::encoder(folder)
            }
        }),
    };
    put(&folder.join("model.safetensors"), &safetensors(input));
    let quantization = (mode & 8 != 0).then(|| ["q8_0", "q4_k_m", "q4_0", "iq4_nl"][usize::from(mode >> 4 & 3)].to_string());
    let mut options = LoadOptions::default();
    options.quantization = quantization;
    told(estimate_memory(&folder, &options));
    if let Some(model) = told(Model::load(&folder, &options, None)) {
        use_model(&model);
    }
}
