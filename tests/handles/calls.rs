//! Calls in any order with any arguments: what an input draws. Each parameter gets what a good call has, another handle of its type, one
//! of another type, NULL, an end of its range or what is no text; a handle is used as long as it is alive, whatever it was made from.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use metal_candle::ffi::error::mc_error;
use metal_candle::ffi::library::{mc_live_objects, mc_log_set};

use super::functions::*;
use super::*;

/// So many at most are alive.
const MOST_HANDLES: usize = 40;

/// Functions whose numbers stay small: with large ones they, or what uses the options, take as long as that.
const LASTING: [&str; 8] = [
    "mc_set_threads",
    "mc_device_suspend",
    "mc_generate_options_set_max_tokens",
    "mc_train_options_set_epochs",
    "mc_train_options_set_grad_accumulation",
    "mc_train_options_set_max_steps",
    "mc_train_options_set_patience",
    "mc_lora_config_set_rank",
];

/// Functions whose texts are places, which are written to or asked for over a network.
const PLACES: [&str; 4] =
    ["mc_model_load_hub", "mc_model_options_set_hub_cache_dir", "mc_train_options_set_checkpoint", "mc_model_options_set_file"];

const WORDS: [u64; 12] = [0, 1, 2, 3, 7, 64, 512, 1 << 20, u32::MAX as u64, i64::MAX as u64, 1 << 63, u64::MAX];
const NUMBERS: [f64; 9] = [0.0, -0.0, 1.0, 0.5, -1.0, 1e-45, 1e308, f64::INFINITY, f64::NAN];
const TEXTS: [&CStr; 8] = [
    c"",
    c"ab\xff",
    c"q8_0",
    c"{\"role\": 1}",
    c"[[[[[[[[[[",
    c"{% for i in range(9) %}{{ i }}{% endfor %}",
    c"<|im_start|>\xc3\xa9",
    c"null",
];

/// What the next choices are.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn is_over(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    fn below(&mut self, end: usize) -> usize {
        let mut byte = || usize::from(self.0.next().copied().unwrap_or(0));
        let number = if end > 256 { byte() << 8 | byte() } else { byte() };
        number % end.max(1)
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

/// What is alive.
#[derive(Default)]
struct Alive(Vec<(Type, *mut c_void)>);

impl Alive {
    fn add(&mut self, kind: Type, handle: *mut c_void) -> *mut c_void {
        if !handle.is_null() {
            self.0.push((kind, handle));
        }
        handle
    }

    /// The place of a handle that `fits`, if there is one.
    fn find(&self, choices: &mut Choices, fits: impl Fn(Type) -> bool) -> Option<usize> {
        let places: Vec<usize> = (0..self.0.len()).filter(|&at| fits(self.0[at].0)).collect();
        (!places.is_empty()).then(|| choices.of(&places))
    }

    /// A handle as an argument, mostly of the right type.
    fn argument(&mut self, choices: &mut Choices, kind: Type) -> *mut c_void {
        static NO_HANDLE: [u64; 8] = [0; 8];
        let found = match choices.below(16) {
            0 => return null_mut(),
            1 => return NO_HANDLE.as_ptr().cast_mut().cast(),
            2 => self.find(choices, |other| other != kind),
            3 => None,
            _ => self.find(choices, |other| other == kind),
        };
        match found {
            Some(at) => self.0[at].1,
            None => self.add(kind, make(kind)),
        }
    }

    /// The same for a call that frees it. What it does not free, because it is of another type, stays.
    fn freed(&mut self, choices: &mut Choices, kind: Type) -> *mut c_void {
        let handle = self.argument(choices, kind);
        if let Some(at) = self.0.iter().position(|&alive| alive == (kind, handle)) {
            self.0.swap_remove(at);
        }
        handle
    }
}

/// One call; whether it did what it is for.
fn call(function: &Function, choices: &mut Choices, alive: &mut Alive) -> bool {
    // Lengths are those of what is there, or shorter.
    let has_lengths = function.parameters.iter().any(|parameter| {
        use Parameter::*;
        matches!(parameter, Text(_) | MaybeText(_) | MaybeTokens(_) | Floats | Sizes(_) | Texts(_) | MaybeHandles(_))
    });
    let is_lasting = LASTING.contains(&function.name);
    // What it would make and free for itself is not needed: texts and places are.
    let mut arguments = Arguments::without_handles(function);
    for (i, parameter) in function.parameters.iter().enumerate() {
        let good = arguments.words[i];
        arguments.words[i] = match *parameter {
            Parameter::Handle(kind) | Parameter::Maybe(kind) => alive.argument(choices, kind) as u64,
            Parameter::Freed(kind) => alive.freed(choices, kind) as u64,
            Parameter::MaybeHandles(kind) => {
                arguments.set_place(i, alive.argument(choices, kind) as u64);
                if choices.below(16) == 0 { 0 } else { good }
            }
            Parameter::Text(_) | Parameter::MaybeText(_) if PLACES.contains(&function.name) => {
                if choices.below(2) == 0 {
                    0
                } else {
                    c"no such/place/\xff".as_ptr() as u64
                }
            }
            Parameter::Text(text) | Parameter::MaybeText(text) => match choices.below(8) {
                0 => 0,
                // The length that follows is at most that of the good text.
                1 | 2 if !matches!(function.parameters.get(i + 1), Some(Parameter::Word(_))) => {
                    choices.of(&TEXTS).as_ptr() as u64
                }
                1 | 2 => {
                    let other = choices.of(&TEXTS);
                    let is_enough = other.count_bytes() >= text.count_bytes();
                    if is_enough { other.as_ptr() as u64 } else { good }
                }
                _ => good,
            },
            Parameter::FreshPath => new_path().as_ptr() as u64,
            Parameter::Err | Parameter::Out(_) | Parameter::MaybeOut(_) | Parameter::Number if choices.below(16) == 0 => 0,
            Parameter::ModelPath
            | Parameter::SessionPath
            | Parameter::AdapterPath
            | Parameter::ExamplesPath
            | Parameter::CheckpointPath
            | Parameter::NewPath
            | Parameter::Floats
            | Parameter::Sizes(_)
            | Parameter::MaybeTokens(_)
            | Parameter::Texts(_)
                if choices.below(16) == 0 =>
            {
                0
            }
            Parameter::Flag => choices.below(2) as u64,
            Parameter::Word(word) if has_lengths => choices.below(word as usize + 1) as u64,
            Parameter::Word(_) if is_lasting => choices.below(4) as u64,
            Parameter::Word(word) => {
                if choices.below(4) == 0 {
                    word
                } else {
                    choices.of(&WORDS)
                }
            }
            Parameter::Float(_) => (choices.of(&NUMBERS) as f32).to_bits().into(),
            Parameter::Double(_) => choices.of(&NUMBERS).to_bits(),
            _ => good,
        };
    }
    let returned = (function.call)(&arguments.words);

    let mut error = None;
    for (i, parameter) in function.parameters.iter().enumerate() {
        let place = arguments.place(i);
        match *parameter {
            Parameter::Err if arguments.words[i] != 0 => error = Some(taken(&mut (place as *mut mc_error))),
            Parameter::Out(kind) | Parameter::MaybeOut(kind) if arguments.words[i] != 0 && place != UNTOUCHED => {
                alive.add(kind, place as *mut c_void);
            }
            _ => {}
        }
    }
    match function.returns {
        Returns::Status => {
            let message = error.as_ref().map_or("", |(_, message)| message);
            assert!([0, 1, 2].contains(&returned) || (16..31).contains(&returned), "{}: {returned} {message}", function.name);
            let code = if returned < 16 { 0 } else { returned };
            assert!(error.as_ref().is_none_or(|(found, _)| *found as u64 == code), "{}: {returned} {message}", function.name);
        }
        Returns::New(kind) => drop(alive.add(kind, returned as *mut c_void)),
        // SAFETY: what is called so returns text, and for a wrong handle the empty one.
        Returns::Empty => assert!(unsafe { CStr::from_ptr(returned as *const c_char) }.to_str().is_ok(), "{}", function.name),
        _ => {}
    }
    let retained = match function.name {
        "mc_model_retain" => Type::Model,
        "mc_lora_retain" => Type::Lora,
        _ => return function.returns == Returns::Status && returned == 0,
    };
    let handle = arguments.words[0] as *mut c_void;
    if alive.0.contains(&(retained, handle)) {
        alive.add(retained, handle);
    }
    false
}

/// Calls until the input is over; nothing is left then. How many gave `MC_OK`.
pub fn run(input: &[u8]) -> usize {
    let _alone = alone();
    saved_session();
    saved_checkpoint();
    let kept = kept();
    let functions = table();
    let (mut choices, mut alive, mut done) = (Choices(input.iter()), Alive::default(), 0);
    while !choices.is_over() {
        let function = &functions[choices.below(functions.len())];
        done += usize::from(call(function, &mut choices, &mut alive));
        while alive.0.len() > MOST_HANDLES {
            let (kind, handle) = alive.0.remove(0);
            release(kind, handle);
        }
    }
    for (kind, handle) in alive.0 {
        release(kind, handle);
    }
    // SAFETY: without a callback nothing else is used.
    let _ = unsafe { mc_log_set(None, null_mut(), None, argument(0), null_mut()) };
    assert_eq!(mc_live_objects(), kept, "handles are left, or freed twice");
    done
}
