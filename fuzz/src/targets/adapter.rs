//! An adapter as PEFT writes it: adapter_config.json, a zero, and the weights as `safetensors` reads an input.

use crate::{decoder, put, safetensors, scratch, told};
use metal_candle::{GenerateOptions, Lora};

pub fn run(input: &[u8]) {
    let folder = scratch().join("adapter");
    std::fs::create_dir_all(&folder).expect("a folder for the adapter");
    let end = input.iter().position(|&byte| byte == 0).unwrap_or(input.len());
    put(&folder.join("adapter_config.json"), &input[..end]);
    put(&folder.join("adapter_model.safetensors"), &safetensors(input.get(end + 1..).unwrap_or(&[])));
    let Some(lora) = told(Lora::load(decoder(), &folder)) else { return };
    let options = GenerateOptions::default().max_tokens(2).adapters([(lora.clone(), 1.0)]);
    told(decoder().generate("hi", &options, None, &mut |_| std::ops::ControlFlow::Continue(())));
    told(decoder().merge(&lora, 0.5));
    let again = scratch().join("saved");
    lora.save(&again).expect("an adapter that was loaded is saved");
    Lora::load(decoder(), &again).expect("and loaded again");
}
