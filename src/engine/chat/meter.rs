//! What a run of a template has taken so far, in units of about a nanosecond, and what it holds, in bytes; and the limits to both.
//!
//! minijinja counts its instructions, but one instruction may copy a list or search a text of any size. So whatever reads or makes
//! a text or a list says here how much it is about to touch; both counts together have one limit. What it made is counted until
//! it is gone.
//!
//! ```text
//! {% if needle in haystack %}  →  one instruction, and twice as many units as the haystack has bytes
//! ```

use std::sync::{Arc, RwLock, Weak};

use minijinja::value::{Object, ValueKind};
use minijinja::{Error, ErrorKind as JinjaError, State, Value};

use super::list::{MAX_VALUES, Size, list_of, make_room, measure, too_large};
use super::python::invalid;
use super::view::View;
use super::{MAX_BYTES, MAX_STEPS};
use crate::engine::cancel::Cancel;

/// The counts of a run; an extension of minijinja's state.
#[derive(Default)]
struct Meter {
    units: u64,
    /// When the flag is read next.
    next_look: u64,
    cancel: Option<Cancel>,
    held: Vec<(Held, usize)>,
    /// What all of them take, gone or not, and what nobody watches.
    held_bytes: usize,
    /// When it is looked which of them are gone.
    next_sweep: usize,
}

/// What a run made, for as long as it is there.
enum Held {
    Text(Weak<str>),
    List(Weak<Vec<Value>>),
    View(Weak<View>),
    Buffer(Weak<RwLock<Vec<Value>>>),
}

impl Held {
    fn is_gone(&self) -> bool {
        match self {
            Self::Text(text) => text.strong_count() == 0,
            Self::List(list) => list.strong_count() == 0,
            Self::View(view) => view.strong_count() == 0,
            Self::Buffer(buffer) => buffer.strong_count() == 0,
        }
    }
}

/// The flag of a run on its way through the variables.
#[derive(Debug)]
pub(super) struct CancelFlag(pub Cancel);

impl Object for CancelFlag {}

/// The function that a template begins with: the run gets its meter.
pub(super) fn start(state: &mut State) -> Result<Value, Error> {
    let flag = state.lookup(CANCEL).and_then(|value| value.downcast_object::<CancelFlag>());
    state.get_or_insert_extension(Meter::default()).cancel = flag.map(|flag: Arc<CancelFlag>| flag.0.clone());
    charge(state, 0)?;
    Ok(Value::from(""))
}

/// The function that whatever repeats begins with: between two of them there is no more than the template's text.
pub(super) fn look(state: &mut State) -> Result<Value, Error> {
    charge(state, UNITS_PER_PASS)?;
    Ok(Value::from(""))
}

/// Counts what is about to be done.
///
/// # Errors
/// minijinja's own for too many steps, or that the run was cancelled.
pub(super) fn charge(state: &mut State, units: usize) -> Result<(), Error> {
    let steps = state.fuel_levels().map_or(0, |(consumed, _)| consumed);
    let meter = state.get_or_insert_extension(Meter::default());
    meter.units = meter.units.saturating_add(units as u64);
    let all = meter.units.saturating_add(steps.saturating_mul(UNITS_PER_STEP));
    if all > MAX_STEPS * UNITS_PER_STEP {
        return Err(Error::from(JinjaError::OutOfFuel));
    }
    if all >= meter.next_look {
        meter.next_look = all + UNITS_PER_LOOK;
        if meter.cancel.as_ref().is_some_and(Cancel::is_triggered) {
            return Err(invalid("cancelled"));
        }
    }
    Ok(())
}

/// Counts what was made until it is gone. A text or a list within another one is counted by whoever makes it.
///
/// # Errors
/// That the run holds more than it may.
pub(super) fn hold(state: &mut State, value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        // Shorter ones lie in the value.
        if text.len() <= MAX_INLINE_BYTES {
            return Ok(());
        }
        if text.len() > MAX_BYTES {
            return Err(too_large());
        }
        return match value.to_str() {
            Some(text) => hold_one(state, Held::Text(Arc::downgrade(&text)), BYTES_PER_TEXT + text.len()),
            None => Ok(()),
        };
    }
    let bytes = value.len().unwrap_or(0).saturating_mul(BYTES_PER_ITEM);
    if let Some(list) = value.downcast_object::<Vec<Value>>() {
        return hold_one(state, Held::List(Arc::downgrade(&list)), bytes);
    }
    match value.downcast_object::<View>() {
        Some(view) if matches!(*view, View::Dict { .. }) => hold_one(state, Held::View(Arc::downgrade(&view)), bytes),
        Some(_) => Ok(()),
        None => hold_bytes(state, bytes),
    }
}

/// As [`hold`], of what a list that grows was made with.
pub(super) fn hold_buffer(state: &mut State, buffer: &Arc<RwLock<Vec<Value>>>, items: usize) -> Result<(), Error> {
    hold_one(state, Held::Buffer(Arc::downgrade(buffer)), items.saturating_mul(BYTES_PER_ITEM))
}

fn hold_one(state: &mut State, held: Held, bytes: usize) -> Result<(), Error> {
    let meter = state.get_or_insert_extension(Meter::default());
    make_room(&mut meter.held)?;
    meter.held.push((held, bytes));
    hold_bytes(state, bytes)
}

/// Counts what was made and is not watched: to the end of the run.
///
/// # Errors
/// As [`hold`].
pub(super) fn hold_bytes(state: &mut State, bytes: usize) -> Result<(), Error> {
    let meter = state.get_or_insert_extension(Meter::default());
    meter.held_bytes = meter.held_bytes.saturating_add(bytes);
    if meter.held_bytes <= meter.next_sweep {
        return Ok(());
    }
    let looked_at = meter.held.len();
    let mut gone = 0;
    meter.held.retain(|(held, bytes)| {
        gone += if held.is_gone() { *bytes } else { 0 };
        !held.is_gone()
    });
    meter.held_bytes -= gone;
    if meter.held_bytes > MAX_HELD_BYTES {
        return Err(invalid(format!("stopped at {MAX_HELD_BYTES} bytes of texts and lists that it made")));
    }
    // Each is looked at a few times, and what is gone takes no more than what is there.
    meter.next_sweep = (2 * meter.held_bytes).clamp(MIN_SWEEP_BYTES, MAX_HELD_BYTES);
    charge(state, looked_at.saturating_mul(UNITS_PER_HELD))
}

/// How much of its input an operation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// No more than one item.
    Constant,
    /// Text, by searching or copying.
    Search,
    /// Text, letter by letter; of another value what it prints.
    Letters,
    /// The items of a list, or the letters of a text as items.
    Items,
    /// Everything that a value holds.
    Deep,
    /// As `Deep`, and each item is compared with others.
    Sort,
}

/// Counts what an operation of this cost reads of a value.
pub(super) fn read(state: &mut State, cost: Cost, value: &Value) -> Result<(), Error> {
    let text = value.as_str().map(str::len);
    if matches!(cost, Cost::Items | Cost::Sort) && value.as_str().is_some_and(|text| text.len() > MAX_VALUES) {
        charge(state, text.unwrap_or(0))?;
        if value.len().is_some_and(|letters| letters > MAX_VALUES) {
            return Err(too_large());
        }
    }
    let units = match (cost, text) {
        (Cost::Constant, _) => 0,
        (Cost::Search | Cost::Deep, Some(len)) => len.saturating_mul(UNITS_PER_BYTE),
        (Cost::Letters, Some(len)) => len.saturating_mul(UNITS_PER_LETTER),
        (Cost::Items | Cost::Sort, Some(len)) => len.saturating_mul(UNITS_PER_ITEM),
        (Cost::Search, None) => 0,
        (Cost::Letters, None) => units_of(measure(state, value)?).saturating_mul(UNITS_PER_LETTER / UNITS_PER_BYTE),
        (Cost::Items, None) => value.len().unwrap_or(0).saturating_mul(UNITS_PER_ITEM),
        (Cost::Deep, None) => units_of(measure(state, value)?),
        (Cost::Sort, None) => {
            let rounds = 1 + value.len().unwrap_or(0).checked_ilog2().unwrap_or(0) as usize;
            let size = measure(state, value)?;
            // Texts are compared by their small letters, which are made for each comparison.
            let units =
                size.values.saturating_mul(UNITS_PER_ITEM).saturating_add(size.bytes.saturating_mul(2 * UNITS_PER_LETTER));
            units.saturating_mul(rounds)
        }
    };
    charge(state, UNITS_PER_CALL + units)
}

/// What was made: its size is counted, and what would be evaluated later becomes a list now.
///
/// minijinja joins and repeats lists by objects that remember their parts; a loop nests them until the stack overflows.
pub(super) fn made(state: &mut State, value: Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        charge(state, 2 * text.len())?;
        hold(state, &value)?;
        return Ok(value);
    }
    let is_list = match value.kind() {
        _ if View::of(&value).is_some() => true,
        ValueKind::Iterable => false,
        ValueKind::Seq => list_of(&value).is_some() || value.is_tuple() || value.downcast_object_ref::<Vec<Value>>().is_some(),
        _ => return Ok(value),
    };
    if is_list {
        charge(state, value.len().unwrap_or(0).saturating_mul(UNITS_PER_ITEM))?;
        hold_inner(state, &value)?;
        hold(state, &value)?;
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        charge(state, UNITS_PER_ITEM)?;
        if items.len() == MAX_VALUES {
            return Err(too_large());
        }
        items.push(item);
    }
    let value = Value::from(items);
    hold_inner(state, &value)?;
    hold(state, &value)?;
    Ok(value)
}

/// The lists within a list that was made together with them: pairs, groups, parts of another list.
fn hold_inner(state: &mut State, value: &Value) -> Result<(), Error> {
    let is_list = |item: &Value| item.kind() == ValueKind::Seq && list_of(item).is_none() && View::of(item).is_none();
    if list_of(value).is_some() || matches!(View::of(value), Some(View::Range(_))) {
        return Ok(());
    }
    if !value.try_iter()?.next().is_some_and(|first| is_list(&first)) {
        return Ok(());
    }
    let mut bytes = 0usize;
    for item in value.try_iter()?.filter(is_list) {
        charge(state, UNITS_PER_VALUE)?;
        bytes += BYTES_PER_LIST + item.len().unwrap_or(0).saturating_mul(BYTES_PER_ITEM);
    }
    hold_bytes(state, bytes)
}

/// The cost of looking at everything of this size.
pub(super) fn units_of(size: Size) -> usize {
    size.values.saturating_mul(UNITS_PER_VALUE).saturating_add(size.bytes.saturating_mul(UNITS_PER_BYTE))
}

/// The name of the run's [`CancelFlag`] among the variables; no template can write it.
pub(super) const CANCEL: &str = "cancel!";
/// An operation that is called, whatever it does.
const UNITS_PER_CALL: usize = 40;
/// A macro that is called, or a pass of a loop, beside its instructions.
const UNITS_PER_PASS: usize = 80;
/// A value that is looked at.
pub(super) const UNITS_PER_VALUE: usize = 30;
/// A value that is put into a list; 24 bytes.
pub(super) const UNITS_PER_ITEM: usize = 60;
/// Of a text that is searched or copied.
pub(super) const UNITS_PER_BYTE: usize = 2;
/// The same letter by letter.
pub(super) const UNITS_PER_LETTER: usize = 8;
const UNITS_PER_STEP: u64 = 20;
const UNITS_PER_HELD: usize = 5;
/// The cancel flag is read about a thousand times a second.
const UNITS_PER_LOOK: u64 = 1_000_000;
/// A place in a list, which may be twice as long as it needs to be.
pub(super) const BYTES_PER_ITEM: usize = 48;
const BYTES_PER_LIST: usize = 96;
const BYTES_PER_TEXT: usize = 64;
/// A text that is no allocation of its own.
const MAX_INLINE_BYTES: usize = 22;
/// What a run may hold of what it made.
const MAX_HELD_BYTES: usize = 2 * MAX_BYTES;
const MIN_SWEEP_BYTES: usize = 1 << 20;
