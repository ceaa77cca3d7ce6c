//! What a run of a template has taken so far, in units of about a nanosecond, and the limit to it.
//!
//! minijinja counts its instructions, but one instruction may copy a list or search a text of any size. So whatever reads or makes
//! a text or a list says here how much it is about to touch; both counts together have one limit.
//!
//! ```text
//! {% if needle in haystack %}  →  one instruction, and as many units as the haystack has bytes
//! ```

use std::sync::Arc;

use minijinja::value::{Object, ValueKind};
use minijinja::{Error, ErrorKind as JinjaError, State, Value};

use super::MAX_STEPS;
use super::list::{Size, list_of, measure};
use super::python::invalid;
use super::view::View;
use crate::engine::cancel::Cancel;

/// The count of a run; an extension of minijinja's state.
#[derive(Default)]
struct Meter {
    units: u64,
    /// When the flag is read next.
    next_look: u64,
    cancel: Option<Cancel>,
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

/// Counts what is about to be done.
///
/// # Errors
/// minijinja's own for too many steps, or that the run was cancelled.
pub(super) fn charge(state: &mut State, units: usize) -> Result<(), Error> {
    let steps = state.fuel_levels().map_or(0, |(consumed, _)| consumed);
    let meter = state.get_or_insert_extension(Meter::default());
    meter.units = meter.units.saturating_add(units as u64);
    if meter.units.saturating_add(steps.saturating_mul(UNITS_PER_STEP)) > MAX_STEPS * UNITS_PER_STEP {
        return Err(Error::from(JinjaError::OutOfFuel));
    }
    if meter.units >= meter.next_look {
        meter.next_look = meter.units + UNITS_PER_LOOK;
        if meter.cancel.as_ref().is_some_and(Cancel::is_triggered) {
            return Err(invalid("cancelled"));
        }
    }
    Ok(())
}

/// How much of its input an operation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    /// No more than one item.
    Constant,
    /// Text, by searching or copying.
    Search,
    /// Text, letter by letter.
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
    let units = match (cost, text) {
        (Cost::Constant, _) => 0,
        (Cost::Search | Cost::Deep, Some(len)) => len,
        (Cost::Letters, Some(len)) => len.saturating_mul(UNITS_PER_LETTER),
        (Cost::Items | Cost::Sort, Some(len)) => len.saturating_mul(UNITS_PER_ITEM),
        (Cost::Search | Cost::Letters, None) => 0,
        (Cost::Items, None) => value.len().unwrap_or(0).saturating_mul(UNITS_PER_ITEM),
        (Cost::Deep, None) => units_of(measure(state, value)?),
        (Cost::Sort, None) => {
            let rounds = 1 + value.len().unwrap_or(0).checked_ilog2().unwrap_or(0) as usize;
            units_of(measure(state, value)?).saturating_mul(rounds)
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
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        charge(state, UNITS_PER_ITEM)?;
        items.push(item);
    }
    Ok(Value::from(items))
}

/// The cost of looking at everything of this size.
pub(super) fn units_of(size: Size) -> usize {
    size.values.saturating_mul(UNITS_PER_VALUE).saturating_add(size.bytes)
}

/// The name of the run's [`CancelFlag`] among the variables; no template can write it.
pub(super) const CANCEL: &str = "cancel!";
/// An operation that is called, whatever it does.
const UNITS_PER_CALL: usize = 25;
/// A value that is looked at.
pub(super) const UNITS_PER_VALUE: usize = 20;
/// A value that is put into a list; 24 bytes.
pub(super) const UNITS_PER_ITEM: usize = 60;
const UNITS_PER_LETTER: usize = 8;
const UNITS_PER_STEP: u64 = 10;
/// The cancel flag is read about a thousand times a second.
const UNITS_PER_LOOK: u64 = 1_000_000;
