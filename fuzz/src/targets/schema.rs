//! A JSON Schema that an answer has to conform to.

use std::ops::ControlFlow;

use crate::{decoder, told};
use metal_candle::{FinishReason, GenerateOptions};

pub fn run(input: &[u8]) {
    let Ok(schema) = std::str::from_utf8(input) else { return };
    let options = GenerateOptions::default().max_tokens(12).json_schema(schema);
    let Some(answer) = told(decoder().generate("hi", &options, None, &mut |_| ControlFlow::Continue(()))) else { return };
    if answer.finish_reason == FinishReason::Eos {
        serde_json::from_str::<serde_json::Value>(&answer.text).expect("an answer that has ended is JSON");
    }
}
