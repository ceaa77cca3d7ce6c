//! Each exported function: what its parameters are, a good call of it, and what a call that fails looks like.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use metal_candle::ffi::abi1::*;
use metal_candle::ffi::cancel::*;
use metal_candle::ffi::chat::*;
use metal_candle::ffi::dataset::*;
use metal_candle::ffi::device::*;
use metal_candle::ffi::embed::*;
use metal_candle::ffi::error::*;
use metal_candle::ffi::generate::*;
use metal_candle::ffi::library::*;
use metal_candle::ffi::lora::*;
use metal_candle::ffi::model::*;
use metal_candle::ffi::rerank::*;
use metal_candle::ffi::session::*;
use metal_candle::ffi::tokenizer::*;
use metal_candle::ffi::train::*;
use metal_candle::ffi::values::*;

use super::*;

/// A parameter, and what a good call puts there.
#[derive(Debug, Clone, Copy)]
pub enum Parameter {
    /// A handle that must not be NULL.
    Handle(Type),
    /// A handle that may be NULL.
    Maybe(Type),
    /// A handle that the call frees; may be NULL.
    Freed(Type),
    /// Text that must not be NULL.
    Text(&'static CStr),
    /// Text or an array that may be NULL (with length 0).
    MaybeText(&'static CStr),
    MaybeTokens(&'static [u32]),
    ModelPath,
    /// Of a session that was saved.
    SessionPath,
    /// Of an adapter.
    AdapterPath,
    /// Of a file of examples.
    ExamplesPath,
    /// Of a training.
    CheckpointPath,
    /// Where an adapter may be written.
    NewPath,
    /// Where nothing is yet.
    FreshPath,
    /// A place for a handle, NULL after a failure.
    Out(Type),
    MaybeOut(Type),
    /// A place for eight bytes, untouched after a failure.
    Number,
    /// As many floats as the vocabulary is large, read or written.
    Floats,
    /// Numbers that must be there.
    Sizes(&'static [usize]),
    /// An array of one text.
    Texts(&'static CStr),
    /// An array of one handle; may be NULL with length 0.
    MaybeHandles(Type),
    Err,
    /// A callback or its data; may be NULL.
    Callback(usize),
    /// True; another number than 0 and 1 is none.
    Flag,
    Word(u64),
    Float(f32),
    Double(f64),
}

/// What a function returns, and so what it returns when it cannot do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returns {
    Nothing,
    Status,
    /// 0, false or the enum's 0.
    Zero,
    /// "".
    Empty,
    /// A pointer to no values.
    Array,
    /// A handle; an inert one if it cannot be made.
    New(Type),
}

pub struct Function {
    pub name: &'static str,
    pub parameters: Vec<Parameter>,
    pub returns: Returns,
    pub call: fn(&[u64]) -> u64,
}

macro_rules! functions {
    ($($name:ident($($parameter:expr),*) $returns:expr;)*) => {
        vec![$(Function {
            name: stringify!($name),
            parameters: vec![$($parameter),*],
            returns: $returns,
            call: |words| {
                let mut words = words.iter().copied();
                #[allow(unused_unsafe)]
                // SAFETY: the words are those that a C program could pass; what it may not pass is what is tested.
                let returned = unsafe { $name($({ let _ = stringify!($parameter); argument(words.next().unwrap()) }),*) };
                assert!(words.next().is_none());
                result(returned)
            },
        }),*]
    };
}

#[rustfmt::skip]
pub fn table() -> Vec<Function> {
    use Parameter::*;
    use Returns::*;
    use Type::{Cancel, Chat, Dataset, Device, EmbedOptions, Error, GenerateOptions, Generation, Lora, LoraConfig, LoraTrainer, Model, ModelOptions, RerankOptions, Session, String, TextStream, Tokenizer, Tokens, TrainOptions};
    const TEN: Parameter = Word(10);
    const YES: Parameter = Word(1);
    /// Of the model's vectors.
    const WIDTH: u64 = 256;
    functions! {
        mc_status_name(Word(27)) Empty;
        mc_error_code(Handle(Error)) Zero;
        mc_error_message(Handle(Error)) Empty;
        mc_error_details(Handle(Error)) Empty;
        mc_error_free(Freed(Error)) Nothing;

        mc_version_number() Zero;
        mc_version_string() Empty;
        mc_abi_version() Zero;
        mc_has_feature(Text(c"hub")) Zero;
        mc_architectures_json(Out(String), Err) Status;
        mc_live_objects() Zero;
        mc_trim_memory(Word(0), Err) Status;
        mc_set_threads(Word(2), Err) Status;
        mc_threads() Zero;
        mc_log_set(Callback(ignore_message as *const () as usize), Callback(8), Callback(ignore_data as *const () as usize), Word(0), Err) Status;

        mc_string_data(Handle(String)) Empty;
        mc_string_len(Handle(String)) Zero;
        mc_string_free(Freed(String)) Nothing;
        mc_tokens_data(Handle(Tokens)) Array;
        mc_tokens_len(Handle(Tokens)) Zero;
        mc_tokens_free(Freed(Tokens)) Nothing;

        mc_cancel_new() New(Cancel);
        mc_cancel_trigger(Handle(Cancel)) Nothing;
        mc_cancel_reset(Handle(Cancel)) Nothing;
        mc_cancel_is_triggered(Handle(Cancel)) Zero;
        mc_cancel_free(Freed(Cancel)) Nothing;

        mc_device_count(YES) Zero;
        mc_device_new(YES, Word(0), Out(Device), Err) Status;
        mc_device_kind_of(Handle(Device)) Zero;
        mc_device_get_kind(Handle(Device)) Zero;
        mc_device_name(Handle(Device)) Empty;
        mc_device_memory(Handle(Device), Number, Number, Err) Status;
        mc_device_synchronize(Handle(Device), Err) Status;
        mc_device_suspend(Handle(Device), TEN, Err) Status;
        mc_device_resume(Handle(Device)) Nothing;
        mc_device_free(Freed(Device)) Nothing;

        mc_model_options_new() New(ModelOptions);
        mc_model_options_set_json(Handle(ModelOptions), MaybeText(c"{\"exact\": true}"), Word(15)) Nothing;
        mc_model_options_set_device(Handle(ModelOptions), Maybe(Device)) Nothing;
        mc_model_options_set_dtype(Handle(ModelOptions), YES) Nothing;
        mc_model_options_set_tokenizer_path(Handle(ModelOptions), MaybeText(c"tokenizer.json")) Nothing;
        mc_model_options_set_quantization(Handle(ModelOptions), MaybeText(c"q8_0")) Nothing;
        mc_model_options_set_exact(Handle(ModelOptions), Flag) Nothing;
        mc_model_options_set_kv_cache(Handle(ModelOptions), MaybeText(c"q8_0")) Nothing;
        mc_model_options_set_max_context(Handle(ModelOptions), TEN) Nothing;
        mc_model_options_set_file(Handle(ModelOptions), MaybeText(c"model.gguf")) Nothing;
        mc_model_options_set_hub_cache_dir(Handle(ModelOptions), MaybeText(c"cache")) Nothing;
        mc_model_options_set_hub_revision(Handle(ModelOptions), MaybeText(c"main")) Nothing;
        mc_model_options_set_hub_token(Handle(ModelOptions), MaybeText(c"token")) Nothing;
        mc_model_options_set_offline(Handle(ModelOptions), Flag) Nothing;
        mc_model_options_set_cancel(Handle(ModelOptions), Maybe(Cancel)) Nothing;
        mc_model_options_set_progress(Handle(ModelOptions), Callback(continue_progress as *const () as usize), Callback(8)) Nothing;
        mc_model_options_free(Freed(ModelOptions)) Nothing;
        mc_model_estimate_memory(ModelPath, Maybe(ModelOptions), Number, Err) Status;
        mc_model_load(ModelPath, Maybe(ModelOptions), Out(Model), Err) Status;
        // Not a repository's name, so that nothing asks the network.
        mc_model_load_hub(Text(c"no such/repository/\xc3\xa9"), Maybe(ModelOptions), Out(Model), Err) Status;
        mc_model_save(Handle(Model), FreshPath, MaybeText(c"bf16"), Callback(continue_progress as *const () as usize), Callback(8), Err) Status;
        mc_model_save_gguf(Handle(Model), FreshPath, MaybeText(c"bf16"), Callback(continue_progress as *const () as usize), Callback(8), Err) Status;
        mc_model_retain(Handle(Model)) Nothing;
        mc_model_free(Freed(Model)) Nothing;
        mc_model_architecture(Handle(Model)) Empty;
        mc_model_eos_tokens(Handle(Model), Out(Tokens), Err) Status;
        mc_model_context_length(Handle(Model)) Zero;
        mc_model_vocab_size(Handle(Model)) Zero;
        mc_model_hidden_size(Handle(Model)) Zero;
        mc_model_layer_count(Handle(Model)) Zero;
        mc_model_parameter_count(Handle(Model)) Zero;
        mc_model_dtype(Handle(Model)) Zero;
        mc_model_get_dtype(Handle(Model)) Zero;
        mc_model_supports(Handle(Model), YES) Zero;
        mc_model_config_json(Handle(Model), Out(String), Err) Status;
        mc_model_backend_json(Handle(Model), Out(String), Err) Status;

        mc_model_tokenizer(Handle(Model), Out(Tokenizer), Err) Status;
        mc_tokenizer_load(ModelPath, Out(Tokenizer), Err) Status;
        mc_tokenizer_encode(Handle(Tokenizer), MaybeText(c"fn main() {"), TEN, Flag, Out(Tokens), Err) Status;
        mc_tokenizer_decode(Handle(Tokenizer), MaybeTokens(&[1]), YES, Flag, Out(String), Err) Status;
        mc_tokenizer_token_id(Handle(Tokenizer), Text(c"<|im_end|>"), Number, Err) Status;
        mc_tokenizer_is_special(Handle(Tokenizer), Word(1)) Zero;
        mc_tokenizer_token_bytes(Handle(Tokenizer), TEN, Floats, Word(16), Number, Err) Status;
        mc_tokenizer_vocab_size(Handle(Tokenizer)) Zero;
        mc_tokenizer_free(Freed(Tokenizer)) Nothing;
        mc_text_stream_new(Handle(Tokenizer), Out(TextStream), Err) Status;
        mc_text_stream_push(Handle(TextStream), TEN, Out(String), Err) Status;
        mc_text_stream_finish(Handle(TextStream), Out(String), Err) Status;
        mc_text_stream_free(Freed(TextStream)) Nothing;

        mc_chat_new() New(Chat);
        mc_chat_from_json(Text(c"[]"), Word(2), Out(Chat), Err) Status;
        mc_chat_add(Handle(Chat), Text(c"user"), MaybeText(c"What is it?"), TEN, Err) Status;
        mc_chat_len(Handle(Chat)) Zero;
        mc_chat_json(Handle(Chat), Out(String), Err) Status;
        mc_chat_remove_last(Handle(Chat), Err) Status;
        mc_chat_set_tools_json(Handle(Chat), MaybeText(c"[]"), Word(2), Err) Status;
        mc_chat_set_template(Handle(Chat), MaybeText(c"a template"), TEN, Err) Status;
        mc_chat_set_variable_json(Handle(Chat), Text(c"bos_token"), MaybeText(c"\"<s>\""), Word(5), Err) Status;
        mc_chat_set_time(Handle(Chat), TEN) Nothing;
        mc_chat_set_continue_final_message(Handle(Chat), Flag) Nothing;
        mc_chat_set_control_tokens(Handle(Chat), Word(0), Err) Status;
        mc_model_render_chat(Handle(Model), Handle(Chat), Flag, Out(String), Err) Status;
        mc_chat_render(Handle(Model), Handle(Chat), Flag, Out(String), Err) Status;
        mc_model_encode_chat(Handle(Model), Handle(Chat), Flag, Out(Tokens), Err) Status;
        mc_chat_encode(Handle(Model), Handle(Chat), Flag, Out(Tokens), Err) Status;
        mc_chat_free(Freed(Chat)) Nothing;

        mc_lora_load(Handle(Model), AdapterPath, Out(Lora), Err) Status;
        mc_lora_save(Handle(Lora), NewPath, Err) Status;
        mc_lora_retain(Handle(Lora)) Nothing;
        mc_lora_free(Freed(Lora)) Nothing;
        mc_lora_rank(Handle(Lora)) Zero;
        mc_lora_alpha(Handle(Lora)) Zero;
        mc_lora_parameter_count(Handle(Lora)) Zero;
        mc_lora_config_json(Handle(Lora), Out(String), Err) Status;
        mc_model_merge(Handle(Model), Handle(Lora), Float(0.5), Out(Model), Err) Status;
        mc_lora_merge(Handle(Model), Handle(Lora), Float(0.5), Out(Model), Err) Status;

        mc_generate_options_new() New(GenerateOptions);
        mc_generate_options_set_json(Handle(GenerateOptions), MaybeText(c"{\"top_k\": 10}"), Word(13)) Nothing;
        mc_generate_options_set_max_tokens(Handle(GenerateOptions), TEN) Nothing;
        mc_generate_options_set_temperature(Handle(GenerateOptions), Double(0.5)) Nothing;
        mc_generate_options_set_top_k(Handle(GenerateOptions), TEN) Nothing;
        mc_generate_options_set_top_p(Handle(GenerateOptions), Double(0.5)) Nothing;
        mc_generate_options_set_min_p(Handle(GenerateOptions), Double(0.5)) Nothing;
        mc_generate_options_set_repetition_penalty(Handle(GenerateOptions), Double(1.5), TEN) Nothing;
        mc_generate_options_set_frequency_penalty(Handle(GenerateOptions), Double(0.5)) Nothing;
        mc_generate_options_set_presence_penalty(Handle(GenerateOptions), Double(0.5)) Nothing;
        mc_generate_options_add_logit_bias(Handle(GenerateOptions), TEN, Float(0.5)) Nothing;
        mc_generate_options_set_seed(Handle(GenerateOptions), TEN) Nothing;
        mc_generate_options_set_ignore_eos(Handle(GenerateOptions), Flag) Nothing;
        mc_generate_options_set_add_special(Handle(GenerateOptions), Flag) Nothing;
        mc_generate_options_set_prefill_chunk(Handle(GenerateOptions), TEN) Nothing;
        mc_generate_options_set_answer_format(Handle(GenerateOptions), MaybeText(c"hermes")) Nothing;
        mc_generate_options_set_tool_choice(Handle(GenerateOptions), MaybeText(c"auto")) Nothing;
        mc_generate_options_set_reasoning_budget(Handle(GenerateOptions), TEN) Nothing;
        mc_generate_options_set_cancel(Handle(GenerateOptions), Maybe(Cancel)) Nothing;
        mc_generate_options_set_lora(Handle(GenerateOptions), Maybe(Lora), Float(0.5)) Nothing;
        mc_generate_options_set_loras(Handle(GenerateOptions), MaybeHandles(Lora), Callback(0), YES) Nothing;
        mc_generate_options_set_prefill_progress(Handle(GenerateOptions), Callback(continue_progress as *const () as usize), Callback(8)) Nothing;
        mc_generate_options_add_stop(Handle(GenerateOptions), Text(c"stop"), Word(4)) Nothing;
        mc_generate_options_set_json_schema(Handle(GenerateOptions), MaybeText(c"true"), Word(4)) Nothing;
        mc_generate_options_free(Freed(GenerateOptions)) Nothing;
        mc_generate(Handle(Model), MaybeText(c"fn main() {"), TEN, Maybe(GenerateOptions), Out(Generation), Err) Status;
        mc_generate_stream(Handle(Model), MaybeText(c"fn main() {"), TEN, Maybe(GenerateOptions), Callback(stop_at_once as *const () as usize), Callback(8), MaybeOut(Generation), Err) Status;
        mc_generation_text(Handle(Generation)) Empty;
        mc_generation_text_len(Handle(Generation)) Zero;
        mc_generation_tokens(Handle(Generation)) Array;
        mc_generation_tokens_len(Handle(Generation)) Zero;
        mc_generation_prompt_tokens(Handle(Generation)) Zero;
        mc_generation_content(Handle(Generation)) Empty;
        mc_generation_content_len(Handle(Generation)) Zero;
        mc_generation_reasoning(Handle(Generation)) Empty;
        mc_generation_reasoning_len(Handle(Generation)) Zero;
        mc_generation_tool_calls_json(Handle(Generation)) Empty;
        mc_generation_tool_calls_json_len(Handle(Generation)) Zero;
        mc_generation_finish_reason(Handle(Generation)) Zero;
        mc_generation_prefill_seconds(Handle(Generation)) Zero;
        mc_generation_decode_seconds(Handle(Generation)) Zero;
        mc_generation_free(Freed(Generation)) Nothing;

        mc_session_new(Handle(Model), TEN, Out(Session), Err) Status;
        mc_session_fork(Handle(Session), Out(Session), Err) Status;
        mc_session_append(Handle(Session), MaybeText(c"fn main() {"), TEN, Maybe(Cancel), Err) Status;
        mc_session_append_tokens(Handle(Session), MaybeTokens(&[1]), YES, Maybe(Cancel), Err) Status;
        mc_session_set_prompt(Handle(Session), MaybeText(c"fn main() {"), TEN, Maybe(Cancel), Err) Status;
        mc_session_set_chat(Handle(Session), Handle(Chat), Maybe(Cancel), Err) Status;
        mc_session_generate_stream(Handle(Session), Maybe(GenerateOptions), Callback(stop_at_once as *const () as usize), Callback(8), MaybeOut(Generation), Err) Status;
        mc_session_begin(Handle(Session), Maybe(GenerateOptions), Err) Status;
        mc_session_next(Handle(Session), Number, Err) Status;
        mc_sessions_next(MaybeHandles(Session), YES, Number, Number, Err) Status;
        mc_session_score_tokens(Handle(Session), MaybeTokens(&[1]), YES, Floats, Maybe(Cancel), Err) Status;
        mc_session_end(Handle(Session), MaybeOut(Generation), Err) Status;
        mc_session_position(Handle(Session)) Zero;
        mc_session_save(Handle(Session), SessionPath, Err) Status;
        mc_session_load(Handle(Model), SessionPath, Out(Session), Err) Status;
        mc_session_logits(Handle(Session), Floats, Word(4096), Err) Status;
        mc_session_top_logprobs(Handle(Session), Word(3), Floats, Floats, Err) Status;
        mc_session_tokens(Handle(Session), Out(Tokens), Err) Status;
        mc_session_memory(Handle(Session), Number, Err) Status;
        mc_session_truncate(Handle(Session), YES, Err) Status;
        mc_session_set_lora(Handle(Session), Maybe(Lora), Float(0.5), Err) Status;
        mc_session_set_loras(Handle(Session), MaybeHandles(Lora), Callback(0), YES, Err) Status;
        mc_session_free(Freed(Session)) Nothing;

        mc_embed_options_new() New(EmbedOptions);
        mc_embed_options_set_json(Handle(EmbedOptions), MaybeText(c"{\"dimensions\": 8}"), Word(17)) Nothing;
        mc_embed_options_set_pooling(Handle(EmbedOptions), YES) Nothing;
        mc_embed_options_set_normalize(Handle(EmbedOptions), Flag) Nothing;
        mc_embed_options_set_dimensions(Handle(EmbedOptions), TEN) Nothing;
        mc_embed_options_set_max_length(Handle(EmbedOptions), TEN) Nothing;
        mc_embed_options_set_batch_size(Handle(EmbedOptions), TEN) Nothing;
        mc_embed_options_set_prompt_name(Handle(EmbedOptions), MaybeText(c"query")) Nothing;
        mc_embed_options_set_prefix(Handle(EmbedOptions), MaybeText(c"query: ")) Nothing;
        mc_embed_options_set_lora(Handle(EmbedOptions), Maybe(Lora), Float(0.5)) Nothing;
        mc_embed_options_set_loras(Handle(EmbedOptions), MaybeHandles(Lora), Callback(0), YES) Nothing;
        mc_embed_options_set_cancel(Handle(EmbedOptions), Maybe(Cancel)) Nothing;
        mc_embed_options_set_progress(Handle(EmbedOptions), Callback(continue_progress as *const () as usize), Callback(8)) Nothing;
        mc_embed_options_free(Freed(EmbedOptions)) Nothing;
        mc_model_embed_dim(Handle(Model), Maybe(EmbedOptions)) Zero;
        mc_embed_dim(Handle(Model), Maybe(EmbedOptions)) Zero;
        mc_model_similarity(Handle(Model)) Zero;
        mc_embed_similarity(Handle(Model)) Zero;
        mc_embed(Handle(Model), MaybeText(c"fn main() {"), TEN, Maybe(EmbedOptions), Floats, Word(WIDTH), Err) Status;
        mc_embed_batch(Handle(Model), Texts(c"fn main() {"), Callback(0), YES, Maybe(EmbedOptions), Floats, Word(WIDTH), Err) Status;

        mc_rerank_options_new() New(RerankOptions);
        mc_rerank_options_set_json(Handle(RerankOptions), MaybeText(c"{\"max_length\": 8}"), Word(17)) Nothing;
        mc_rerank_options_set_activation(Handle(RerankOptions), YES) Nothing;
        mc_rerank_options_set_max_length(Handle(RerankOptions), TEN) Nothing;
        mc_rerank_options_set_batch_size(Handle(RerankOptions), TEN) Nothing;
        mc_rerank_options_set_prompt_name(Handle(RerankOptions), MaybeText(c"query")) Nothing;
        mc_rerank_options_set_prompt(Handle(RerankOptions), MaybeText(c"query: ")) Nothing;
        mc_rerank_options_set_cancel(Handle(RerankOptions), Maybe(Cancel)) Nothing;
        mc_rerank_options_free(Freed(RerankOptions)) Nothing;
        mc_rerank(Handle(Model), MaybeText(c"fn main() {"), TEN, Texts(c"fn main() {"), Callback(0), YES, Maybe(RerankOptions), Floats, YES, Err) Status;
        mc_similarity_top_k(YES, Floats, YES, Floats, Word(2), TEN, YES, Number, Floats, Err) Status;

        mc_dataset_new() New(Dataset);
        mc_dataset_load_jsonl(ExamplesPath, Out(Dataset), Err) Status;
        mc_dataset_add_text(Handle(Dataset), MaybeText(c"fn main() {"), TEN, Err) Status;
        mc_dataset_add_completion(Handle(Dataset), MaybeText(c"fn main() {"), TEN, MaybeText(c"fn main() {"), TEN, Err) Status;
        mc_dataset_add_chat(Handle(Dataset), Handle(Chat), Err) Status;
        mc_dataset_len(Handle(Dataset)) Zero;
        mc_dataset_free(Freed(Dataset)) Nothing;

        mc_lora_config_new() New(LoraConfig);
        mc_lora_config_set_json(Handle(LoraConfig), MaybeText(c"{\"rank\": 4}"), Word(11)) Nothing;
        mc_lora_config_set_rank(Handle(LoraConfig), TEN) Nothing;
        mc_lora_config_set_alpha(Handle(LoraConfig), Double(0.5)) Nothing;
        mc_lora_config_set_dropout(Handle(LoraConfig), Double(0.5)) Nothing;
        mc_lora_config_set_initial(Handle(LoraConfig), Maybe(Lora)) Nothing;
        mc_lora_config_set_rslora(Handle(LoraConfig), Flag) Nothing;
        mc_lora_config_set_seed(Handle(LoraConfig), TEN) Nothing;
        mc_lora_config_add_target(Handle(LoraConfig), Text(c"q_proj")) Nothing;
        mc_lora_config_free(Freed(LoraConfig)) Nothing;
        mc_train_options_new() New(TrainOptions);
        mc_train_options_set_json(Handle(TrainOptions), MaybeText(c"{\"epochs\": 2}"), Word(13)) Nothing;
        mc_train_options_set_learning_rate(Handle(TrainOptions), Double(0.5)) Nothing;
        mc_train_options_set_weight_decay(Handle(TrainOptions), Double(0.5)) Nothing;
        mc_train_options_set_adam_betas(Handle(TrainOptions), Double(0.5), Double(0.5)) Nothing;
        mc_train_options_set_adam_epsilon(Handle(TrainOptions), Double(0.5)) Nothing;
        mc_train_options_set_checkpoint(Handle(TrainOptions), MaybeText(c"checkpoint"), TEN) Nothing;
        mc_train_options_set_eval_every(Handle(TrainOptions), TEN) Nothing;
        mc_train_options_set_patience(Handle(TrainOptions), TEN) Nothing;
        mc_train_options_set_gradient_checkpointing(Handle(TrainOptions), Flag) Nothing;
        mc_train_options_set_grad_clip(Handle(TrainOptions), Double(0.5)) Nothing;
        mc_train_options_set_grad_accumulation(Handle(TrainOptions), TEN) Nothing;
        mc_train_options_set_weighting(Handle(TrainOptions), YES) Nothing;
        mc_train_options_set_schedule(Handle(TrainOptions), YES, TEN, TEN) Nothing;
        mc_train_options_set_max_steps(Handle(TrainOptions), TEN) Nothing;
        mc_train_options_set_warmup_from_zero(Handle(TrainOptions), Flag) Nothing;
        mc_train_options_set_batch_size(Handle(TrainOptions), TEN) Nothing;
        mc_train_options_set_epochs(Handle(TrainOptions), TEN) Nothing;
        mc_train_options_set_max_length(Handle(TrainOptions), TEN) Nothing;
        mc_train_options_set_mask_prompt(Handle(TrainOptions), Flag) Nothing;
        mc_train_options_set_seed(Handle(TrainOptions), TEN) Nothing;
        mc_train_options_set_cancel(Handle(TrainOptions), Maybe(Cancel)) Nothing;
        mc_train_options_free(Freed(TrainOptions)) Nothing;
        mc_model_estimate_training_memory(Handle(Model), Maybe(LoraConfig), Maybe(TrainOptions), Number, Err) Status;
        mc_lora_estimate_memory(Handle(Model), Maybe(LoraConfig), Maybe(TrainOptions), Number, Err) Status;
        mc_lora_trainer_new(Handle(Model), Maybe(LoraConfig), Maybe(TrainOptions), Out(LoraTrainer), Err) Status;
        mc_lora_trainer_resume(Handle(Model), CheckpointPath, Maybe(TrainOptions), Out(LoraTrainer), Err) Status;
        mc_lora_trainer_train_step(Handle(LoraTrainer), Floats, Callback(0), Sizes(&[0, 3]), YES, Number, Err) Status;
        mc_lora_train_step(Handle(LoraTrainer), Floats, Callback(0), Sizes(&[0, 3]), YES, Number, Err) Status;
        mc_lora_trainer_eval_step(Handle(LoraTrainer), Floats, Callback(0), Sizes(&[0, 3]), YES, Number, Err) Status;
        mc_lora_eval_step(Handle(LoraTrainer), Floats, Callback(0), Sizes(&[0, 3]), YES, Number, Err) Status;
        mc_lora_trainer_train(Handle(LoraTrainer), Handle(Dataset), Maybe(Dataset), Callback(stop_training as *const () as usize), Callback(8), Err) Status;
        mc_lora_train(Handle(LoraTrainer), Handle(Dataset), Maybe(Dataset), Callback(stop_training as *const () as usize), Callback(8), Err) Status;
        mc_lora_trainer_step_count(Handle(LoraTrainer)) Zero;
        mc_lora_trainer_last_update(Handle(LoraTrainer), Number, Number, Number, Err) Status;
        mc_lora_trainer_adapter(Handle(LoraTrainer), Out(Lora), Err) Status;
        mc_lora_trainer_save(Handle(LoraTrainer), NewPath, Err) Status;
        mc_lora_trainer_free(Freed(LoraTrainer)) Nothing;
    }
}

/// Functions whose good call here is one that the library refuses.
pub const REFUSED: [&str; 6] =
    ["mc_model_load_hub", "mc_model_save_gguf", "mc_rerank", "mc_session_next", "mc_sessions_next", "mc_session_end"];

extern "C" fn ignore_message(_: *mut c_void, _: mc_log_level, _: *const c_char, _: *const c_char, _: usize) {}
extern "C" fn ignore_data(_: *mut c_void) {}
extern "C" fn continue_progress(_: *mut c_void, _: &mc_progress_event) -> i32 {
    MC_CONTINUE
}
extern "C" fn stop_at_once(_: *mut c_void, _: &mc_token_event) -> i32 {
    MC_STOP
}

extern "C" fn stop_training(_: *mut c_void, _: &mc_train_event) -> i32 {
    MC_STOP
}

pub const UNTOUCHED: u64 = 0x5555_5555_5555_5555;

/// Arguments of one call, and what must be freed after it.
pub struct Arguments {
    pub words: Vec<u64>,
    handles: Vec<(usize, Type, *mut c_void)>,
    /// One for each parameter, each in a box, so that no address moves.
    #[allow(clippy::vec_box)]
    places: Vec<Box<u64>>,
    _floats: Vec<Vec<f32>>,
    _paths: Vec<std::ffi::CString>,
}

impl Arguments {
    pub fn good(function: &Function) -> Self {
        Self::with(function, make)
    }

    /// NULL for each handle.
    pub fn without_handles(function: &Function) -> Self {
        Self::with(function, |_| null_mut())
    }

    /// What stands behind a pointer.
    pub fn place(&self, i: usize) -> u64 {
        *self.places[i]
    }

    pub fn set_place(&mut self, i: usize, word: u64) {
        *self.places[i] = word;
    }

    fn with(function: &Function, make: impl Fn(Type) -> *mut c_void) -> Self {
        let mut places: Vec<Box<u64>> = function.parameters.iter().map(|_| Box::new(UNTOUCHED)).collect();
        let mut floats: Vec<Vec<f32>> = Vec::new();
        let (mut words, mut handles, mut paths) = (Vec::new(), Vec::new(), Vec::new());
        for (i, parameter) in function.parameters.iter().enumerate() {
            words.push(match *parameter {
                Parameter::Handle(kind) | Parameter::Maybe(kind) | Parameter::Freed(kind) => {
                    let handle = make(kind);
                    handles.push((i, kind, handle));
                    handle as u64
                }
                Parameter::Text(text) | Parameter::MaybeText(text) => text.as_ptr() as u64,
                Parameter::MaybeTokens(tokens) => tokens.as_ptr() as u64,
                Parameter::ModelPath => {
                    static PATH: OnceLock<std::ffi::CString> = OnceLock::new();
                    PATH.get_or_init(model_path).as_ptr() as u64
                }
                Parameter::SessionPath => saved_session().as_ptr() as u64,
                Parameter::AdapterPath => adapter_path().as_ptr() as u64,
                Parameter::ExamplesPath => examples_path().as_ptr() as u64,
                Parameter::CheckpointPath => saved_checkpoint().as_ptr() as u64,
                Parameter::NewPath => new_path().as_ptr() as u64,
                Parameter::FreshPath => {
                    paths.push(fresh_path());
                    paths[paths.len() - 1].as_ptr() as u64
                }
                Parameter::Sizes(sizes) => sizes.as_ptr() as u64,
                Parameter::Out(_) | Parameter::MaybeOut(_) | Parameter::Number => (&raw mut *places[i]) as u64,
                Parameter::Err => {
                    *places[i] = 0;
                    (&raw mut *places[i]) as u64
                }
                Parameter::Floats => {
                    floats.push(vec![0f32; 4096]);
                    floats.last_mut().map_or(0, |values| values.as_mut_ptr() as u64)
                }
                Parameter::Texts(text) => {
                    *places[i] = text.as_ptr() as u64;
                    (&raw mut *places[i]) as u64
                }
                Parameter::MaybeHandles(kind) => {
                    let handle = make(kind);
                    handles.push((i, kind, handle));
                    *places[i] = handle as u64;
                    (&raw mut *places[i]) as u64
                }
                Parameter::Callback(address) => address as u64,
                Parameter::Flag => 1,
                Parameter::Word(word) => word,
                Parameter::Float(value) => value.to_bits().into(),
                Parameter::Double(value) => value.to_bits(),
            });
        }
        Self { words, handles, places, _floats: floats, _paths: paths }
    }

    /// Calls, checks what a failure must look like, frees everything; gives the status or value and the error's message.
    pub fn call(mut self, function: &Function, failure: Failure) -> (u64, String) {
        let returned = (function.call)(&self.words);
        let mut message = String::new();
        for (i, parameter) in function.parameters.iter().enumerate() {
            if self.words[i] == 0 {
                continue;
            }
            let place = *self.places[i];
            match *parameter {
                Parameter::Err => {
                    let mut err = place as *mut mc_error;
                    let code;
                    (code, message) = taken(&mut err);
                    let status = returned as i32;
                    assert_eq!(code as i32, if status >= 16 { status } else { 0 }, "{}: err and status differ", function.name);
                    assert_eq!(message.is_empty(), status < 16, "{}: {message}", function.name);
                }
                Parameter::Out(kind) | Parameter::MaybeOut(kind) if place != UNTOUCHED => {
                    assert!(failure != Failure::Argument || place == 0, "{}: out after a failure", function.name);
                    release(kind, place as *mut c_void);
                }
                // Outs are cleared behind the place where panics are injected, and behind the check of an earlier out.
                Parameter::Number if failure != Failure::None && !function.name.ends_with("_next") => {
                    assert_eq!(place, UNTOUCHED, "{}: a number after a failure", function.name);
                }
                _ => {}
            }
        }
        match (function.returns, failure) {
            (_, Failure::None) | (Returns::Nothing, _) => {}
            (Returns::Status, Failure::Argument) => assert_eq!(returned, 16, "{}: {message}", function.name),
            (Returns::Status, Failure::Panic) => assert_eq!(returned, 31, "{}: {message}", function.name),
            (Returns::Zero, _) => assert_eq!(returned, 0, "{}", function.name),
            // SAFETY: functions that return text return text.
            (Returns::Empty, _) => assert_eq!(unsafe { CStr::from_ptr(returned as *const c_char) }, c"", "{}", function.name),
            (Returns::Array, _) => assert_ne!(returned, 0, "{}", function.name),
            (Returns::New(_), _) => assert_ne!(returned, 0, "{}", function.name),
        }
        if let Returns::New(kind) = function.returns {
            release(kind, returned as *mut c_void);
        }
        for (i, kind, handle) in self.handles.drain(..) {
            let freed = matches!(function.parameters[i], Parameter::Freed(_)) && failure == Failure::None && self.words[i] != 0;
            if !freed {
                release(kind, handle);
            }
        }
        (returned, message)
    }
}

/// What stands in the way of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    None,
    Argument,
    Panic,
}

pub fn saved_session() -> &'static CStr {
    static FILE: OnceLock<(tempfile::TempDir, std::ffi::CString)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = std::ffi::CString::new(directory.path().join("session").to_str().unwrap()).unwrap();
        let session = make(Type::Session);
        // SAFETY: all arguments are valid.
        let _ = unsafe { mc_session_save(nn(session), nn(path.as_ptr()), null_mut()) };
        release(Type::Session, session);
        (directory, path)
    });
    path
}

pub fn saved_checkpoint() -> &'static CStr {
    static FILE: OnceLock<(tempfile::TempDir, std::ffi::CString)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = std::ffi::CString::new(directory.path().to_str().unwrap()).unwrap();
        let trainer = make(Type::LoraTrainer);
        // SAFETY: all arguments are valid.
        let _ = unsafe { mc_lora_trainer_save(nn(trainer), nn(path.as_ptr()), null_mut()) };
        release(Type::LoraTrainer, trainer);
        (directory, path)
    });
    path
}

pub fn new_path() -> &'static CStr {
    static PATH: OnceLock<(tempfile::TempDir, std::ffi::CString)> = OnceLock::new();
    let (_, path) = PATH.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = std::ffi::CString::new(directory.path().join("adapter").to_str().unwrap()).unwrap();
        (directory, path)
    });
    path
}

/// Another one each time.
fn fresh_path() -> std::ffi::CString {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let path = format!("{}-{}", new_path().to_str().unwrap(), COUNT.fetch_add(1, Ordering::Relaxed));
    std::ffi::CString::new(path).unwrap()
}

/// Undoes what a call left in the process: `mc_log_set`, a second reference from `mc_model_retain`.
pub fn undo(function: &Function, failure: Failure) {
    // SAFETY: all arguments are valid.
    unsafe {
        match function.name {
            "mc_log_set" => assert_eq!(mc_log_set(None, null_mut(), None, argument(0), null_mut()), mc_status::MC_OK),
            "mc_model_retain" if failure == Failure::None => release(Type::Model, without_reference(Type::Model)),
            "mc_lora_retain" if failure == Failure::None => release(Type::Lora, without_reference(Type::Lora)),
            _ => {}
        }
    }
}

/// A handle that the test program keeps anyway.
pub fn without_reference(kind: Type) -> *mut c_void {
    let handle = make(kind);
    release(kind, handle);
    handle
}

/// Runs `check` for each function, alone, and compares the count of live handles before and after each.
pub fn for_each_function(mut check: impl FnMut(&Function)) {
    let _alone = alone();
    saved_session();
    saved_checkpoint();
    let kept = kept();
    assert_eq!(mc_live_objects(), kept);
    for function in table() {
        check(&function);
        assert_eq!(mc_live_objects(), kept, "{} lost a handle", function.name);
    }
}
