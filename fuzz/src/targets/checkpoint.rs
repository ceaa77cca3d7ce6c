//! The state of a training, as `safetensors` reads an input.

use crate::{decoder, put, safetensors, scratch, told};
use metal_candle::LoraTrainer;

pub fn run(input: &[u8]) {
    let folder = scratch().join("checkpoint");
    std::fs::create_dir_all(&folder).expect("a folder for the checkpoint");
    put(&folder.join("training_state.safetensors"), &safetensors(input));
    let Some(mut trainer) = told(LoraTrainer::resume(decoder(), &folder, None)) else { return };
    told(trainer.train_step(&[1, 2, 3, 4], None, &[0, 4]));
    told(trainer.adapter());
    // By numbers that are too large for a step's results it is refused.
    told(trainer.save(scratch().join("saved")));
}
