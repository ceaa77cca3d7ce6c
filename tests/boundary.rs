//! Each exported function survives what C programs get wrong: NULL, a handle of another type, memory that is no handle, and
//! (with the feature `fault-injection`) a panic inside the library. No handle is lost on the way.

mod handles;

use std::ffi::c_void;
use std::ptr::null_mut;

use handles::functions::*;
use handles::*;
use metal_candle::ffi::device::*;
use metal_candle::ffi::error::*;
use metal_candle::ffi::generate::*;
use metal_candle::ffi::library::*;
use metal_candle::ffi::model::*;
use metal_candle::ffi::train::*;

#[test]
fn table_has_each_exported_function() {
    let mut names: Vec<&str> = table().iter().map(|function| function.name).collect();
    names.sort_unstable();
    assert_eq!(names, include_str!("../abi/symbols.txt").lines().collect::<Vec<_>>());
}

#[test]
fn good_arguments_are_accepted() {
    for_each_function(|function| {
        let (returned, message) = Arguments::good(function).call(function, Failure::None);
        undo(function, Failure::None);
        if function.returns == Returns::Status && !REFUSED.contains(&function.name) {
            assert!(returned < 16, "{}: {message}", function.name);
        }
    });
}

#[test]
fn null_is_refused_or_means_nothing() {
    for_each_function(|function| {
        for (i, parameter) in function.parameters.iter().enumerate() {
            let failure = match parameter {
                Parameter::Handle(_)
                | Parameter::Text(_)
                | Parameter::ModelPath
                | Parameter::SessionPath
                | Parameter::AdapterPath
                | Parameter::ExamplesPath
                | Parameter::CheckpointPath
                | Parameter::NewPath
                | Parameter::FreshPath
                | Parameter::Sizes(_)
                | Parameter::MaybeHandles(_)
                | Parameter::Out(_)
                | Parameter::Number
                | Parameter::Floats
                | Parameter::Texts(_) => Failure::Argument,
                Parameter::Flag | Parameter::Word(_) | Parameter::Float(_) | Parameter::Double(_) => continue,
                _ => Failure::None,
            };
            let mut arguments = Arguments::good(function);
            arguments.words[i] = 0;
            if let [Parameter::MaybeText(_) | Parameter::MaybeTokens(_), Parameter::Word(_), ..] = function.parameters[i..] {
                arguments.words[i + 1] = 0;
            }
            arguments.call(function, failure);
            undo(function, failure);
        }
    });
}

#[test]
fn null_content_needs_length_zero() {
    for_each_function(|function| {
        for (i, pair) in function.parameters.windows(2).enumerate() {
            if let [Parameter::MaybeText(_) | Parameter::MaybeTokens(_), Parameter::Word(_)] = pair {
                let mut arguments = Arguments::good(function);
                arguments.words[i] = 0;
                arguments.call(function, Failure::Argument);
            }
        }
    });
}

#[test]
fn a_handle_of_another_type_is_refused() {
    for_each_function(|function| {
        for (i, parameter) in function.parameters.iter().enumerate() {
            let (Parameter::Handle(kind) | Parameter::Maybe(kind) | Parameter::Freed(kind)) = *parameter else { continue };
            for other in TYPES.into_iter().filter(|other| *other != kind) {
                let (mut arguments, handle) = (Arguments::good(function), make(other));
                if handle.is_null() {
                    arguments.call(function, Failure::None);
                    continue;
                }
                arguments.words[i] = handle as u64;
                // Setters tell the call that uses the options.
                arguments.call(function, Failure::Argument);
                release(other, handle);
            }
        }
    });
}

#[test]
fn memory_that_is_no_handle_is_refused() {
    for_each_function(|function| {
        for (i, parameter) in function.parameters.iter().enumerate() {
            if matches!(parameter, Parameter::Handle(_) | Parameter::Maybe(_) | Parameter::Freed(_)) {
                let zeros = [0u64; 8];
                for address in [zeros.as_ptr() as u64, zeros.as_ptr() as u64 + 1] {
                    let mut arguments = Arguments::good(function);
                    arguments.words[i] = address;
                    arguments.call(function, Failure::Argument);
                }
            }
        }
    });
}

#[test]
fn text_that_is_not_utf8_is_refused_with_its_offset() {
    for_each_function(|function| {
        for (i, parameter) in function.parameters.iter().enumerate() {
            let content = matches!(function.parameters.get(i + 1), Some(Parameter::Word(_)));
            if let Parameter::Text(_)
            | Parameter::MaybeText(_)
            | Parameter::ModelPath
            | Parameter::SessionPath
            | Parameter::AdapterPath
            | Parameter::ExamplesPath
            | Parameter::CheckpointPath
            | Parameter::NewPath
            | Parameter::FreshPath = parameter
            {
                let mut arguments = Arguments::good(function);
                arguments.words[i] = c"ab\xff".as_ptr() as u64;
                if content {
                    arguments.words[i + 1] = 3;
                }
                let (returned, message) = arguments.call(function, Failure::None);
                if function.returns == Returns::Status {
                    let ready = message.contains("expected UTF-8, found byte 0xff at offset 2") && returned == 17;
                    assert!(ready, "{}: {returned} {message}", function.name);
                }
            }
        }
    });
}

#[test]
fn enum_values_that_do_not_exist_are_refused() {
    let _alone = alone();
    let (mut err, mut device) = (null_mut(), null_mut::<mc_device>());
    for number in [4, 255, 0x7fff_ffff, 0xffff_ffff_u64] {
        // SAFETY: all arguments but the enum are valid.
        unsafe {
            let status = mc_device_new(argument(number), 0, nn(&raw mut device), &raw mut err);
            let message = expect(mc_status::MC_ERROR_INVALID_ARGUMENT, status, &mut err);
            assert_eq!(message, format!("kind: expected a value of mc_device_kind, found {}", number as i32));
            assert_eq!(mc_device_count(argument(number)), 0);
            assert_eq!(text(mc_status_name(argument(number))), "MC_STATUS_UNKNOWN");
            let model = model();
            assert!(!mc_model_supports(nn(model), argument(number | 8)));
            mc_model_free(model);
        }
    }
}

/// The call by which a handle of this type is in use: what is not immutable is changed by one call at a time, and to every other one it
/// is busy. Options are locked for a copy alone, and so wait.
#[cfg(feature = "fault-injection")]
fn changed_by(kind: Type) -> Option<&'static str> {
    match kind {
        Type::Session => Some("mc_session_truncate"),
        Type::LoraTrainer => Some("mc_lora_trainer_train_step"),
        Type::Chat => Some("mc_chat_remove_last"),
        Type::Dataset => Some("mc_dataset_add_text"),
        Type::TextStream => Some("mc_text_stream_finish"),
        Type::Error | Type::String | Type::Tokens | Type::Generation | Type::Lora | Type::Model | Type::Tokenizer => None,
        Type::Cancel | Type::Device => None,
        Type::ModelOptions | Type::GenerateOptions | Type::EmbedOptions | Type::RerankOptions => None,
        Type::LoraConfig | Type::TrainOptions => None,
    }
}

/// A handle that a call holds, and what was found when each function got it meanwhile.
struct InUse {
    kind: Type,
    address: u64,
    tried: usize,
    /// Of these, within a list.
    listed: usize,
    wrong: Vec<String>,
}

impl InUse {
    fn new(kind: Type, address: u64) -> Self {
        Self { kind, address, tried: 0, listed: 0, wrong: Vec::new() }
    }

    fn give_to_each_function(&mut self) {
        for function in table().iter().filter(|function| function.returns == Returns::Status) {
            for (i, parameter) in function.parameters.iter().enumerate() {
                let (is_list, kind) = match *parameter {
                    Parameter::Handle(kind) | Parameter::Maybe(kind) => (false, kind),
                    Parameter::MaybeHandles(kind) => (true, kind),
                    _ => continue,
                };
                if kind != self.kind {
                    continue;
                }
                let mut arguments = Arguments::good(function);
                if is_list {
                    arguments.set_place(i, self.address);
                } else {
                    arguments.words[i] = self.address;
                }
                let (returned, message) = arguments.call(function, Failure::None);
                self.tried += 1;
                self.listed += usize::from(is_list);
                if returned != mc_status::MC_ERROR_BUSY as u64 {
                    self.wrong.push(format!("{}: {returned} {message}", function.name));
                }
            }
        }
    }
}

#[cfg(feature = "fault-injection")]
#[test]
fn what_a_call_changes_is_busy_to_each_function_that_gives_a_status() {
    let _alone = alone();
    saved_session();
    saved_checkpoint();
    let kept = kept();
    for kind in TYPES {
        let Some(name) = changed_by(kind) else { continue };
        let function = table().into_iter().find(|function| function.name == name).unwrap();
        let arguments = Arguments::good(&function);
        let in_use = std::rc::Rc::new(std::cell::RefCell::new(InUse::new(kind, arguments.words[0])));
        let within = in_use.clone();
        metal_candle::ffi::boundary::inject_in_use(move || within.borrow_mut().give_to_each_function());
        let (returned, message) = arguments.call(&function, Failure::None);
        assert!(returned < 16, "{name}: {returned} {message}");
        let in_use = in_use.borrow();
        assert!(in_use.tried > 0, "{name} changes nothing");
        // One that is in a list of them, too.
        assert!(kind != Type::Session || in_use.listed > 0, "mc_sessions_next was not tried");
        assert!(in_use.wrong.is_empty(), "{name}: {:#?}", in_use.wrong);
        assert_eq!(mc_live_objects(), kept, "{name} lost a handle");
    }
}

unsafe extern "C" fn within_generation(in_use: *mut c_void, _: &mc_token_event) -> i32 {
    // SAFETY: the data of the callback, which nothing else looks at while the call goes on.
    unsafe { (*in_use.cast::<InUse>()).give_to_each_function() };
    MC_STOP
}

unsafe extern "C" fn within_training(in_use: *mut c_void, _: &mc_train_event) -> i32 {
    // SAFETY: as above.
    unsafe { (*in_use.cast::<InUse>()).give_to_each_function() };
    MC_STOP
}

#[test]
fn a_handle_in_use_is_busy_to_each_function_that_gives_a_status() {
    let _alone = alone();
    saved_session();
    saved_checkpoint();
    let kept = kept();
    for (name, kind, callback) in [
        ("mc_session_generate_stream", Type::Session, within_generation as *const () as u64),
        ("mc_lora_trainer_train", Type::LoraTrainer, within_training as *const () as u64),
    ] {
        let function = table().into_iter().find(|function| function.name == name).unwrap();
        let at = function.parameters.iter().position(|parameter| matches!(parameter, Parameter::Callback(_))).unwrap();
        let mut arguments = Arguments::good(&function);
        let mut in_use = InUse::new(kind, arguments.words[0]);
        arguments.words[at] = callback;
        arguments.words[at + 1] = (&raw mut in_use) as u64;
        let (returned, message) = arguments.call(&function, Failure::None);
        assert!(returned < 16, "{name}: {returned} {message}");
        assert!(in_use.tried >= 8, "{name}: {} functions", in_use.tried);
        assert!(in_use.wrong.is_empty(), "{name}: {:#?}", in_use.wrong);
        assert_eq!(mc_live_objects(), kept, "{name} lost a handle");
    }
}

#[cfg(feature = "fault-injection")]
#[test]
fn a_panic_becomes_a_status_or_a_default() {
    for_each_function(|function| {
        let arguments = Arguments::good(function);
        metal_candle::ffi::boundary::inject_panic();
        let (_, message) = arguments.call(function, Failure::Panic);
        if function.returns == Returns::Status {
            assert!(message.starts_with("a defect of metal-candle: injected panic (src/ffi/boundary.rs:"), "{message}");
        }
    });
}
