//! The settings of sentence-transformers beside an encoder: the files of `micro::SENTENCE`, with a zero between.

use crate::{micro, model_folder, parts, put, told};
use metal_candle::{EmbedOptions, LoadOptions, Model, Prompt};

pub fn run(input: &[u8]) {
    let folder = model_folder("encoder", |folder| {
        if !folder.join("config.json").exists() {
            micro::encoder(folder)
        }
    });
    for ((name, _), part) in micro::SENTENCE.iter().zip(parts(input).chain(std::iter::repeat(&[][..]))) {
        match part {
            [] => drop(std::fs::remove_file(folder.join(name))),
            part => put(&folder.join(name), part),
        }
    }
    if let Some(model) = told(Model::load(&folder, &LoadOptions::default(), None)) {
        let prompts: Vec<_> = model.prompt_names().map(str::to_string).collect();
        for prompt in prompts.into_iter().take(2).map(Prompt::Name).chain([Prompt::Default]) {
            told(model.embed(&["hi the", ""], &EmbedOptions::default().prompt(prompt), None));
        }
    }
}
