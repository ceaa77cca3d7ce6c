//! Lists that know what they hold, and that grow at their end without being copied.
//!
//! A template that collects messages by `ns.x = ns.x + [m]` would copy all of them each time. A [`List`] that is added to shares its
//! items with the list it came from: the longer of both sees more of them. Only a second list that grows from the same beginning is
//! a copy. The lists of a conversation and of its tools are `List`s as well, so that what they hold is counted once.
//!
//! ```text
//! a = []; b = a + [1]; c = b + [2]   one buffer [1, 2], of which b sees one item and c two
//! d = b + [3]                        a copy
//! ```

use std::sync::{Arc, RwLock};

use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, State, Value};

use super::MAX_BYTES;
use super::meter::{BYTES_PER_ITEM, UNITS_PER_ITEM, UNITS_PER_VALUE, charge, hold_buffer, hold_bytes};
use super::python::{invalid, is_namespace};
use crate::error::OutOfMemory;
use crate::kernels::check_room;

/// A list; see the module.
#[derive(Debug)]
pub(super) struct List {
    items: Items,
    size: Size,
}

#[derive(Debug)]
enum Items {
    /// What the host gave.
    Given(Vec<Value>),
    /// The first `len` of the buffer.
    Growing { buffer: Arc<RwLock<Vec<Value>>>, len: usize },
}

/// What a value holds, itself included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub values: usize,
    pub bytes: usize,
    /// Those of the values and bytes that the template made.
    made_values: usize,
    made_bytes: usize,
    /// 0 for what holds nothing.
    depth: usize,
    /// Whether a list in it can grow: added to its own buffer, it would keep itself alive for ever.
    grows: bool,
    has_namespace: bool,
}

impl List {
    /// A list that the host gave; `Err` if it is nested too deep.
    pub fn given(items: Vec<Value>, size: Size) -> Value {
        Value::from_object(Self { items: Items::Given(items), size: Size { made_values: 1, made_bytes: 0, ..size } })
    }

    pub fn len(&self) -> usize {
        match &self.items {
            Items::Given(items) => items.len(),
            Items::Growing { len, .. } => *len,
        }
    }

    pub fn get(&self, at: usize) -> Option<Value> {
        match &self.items {
            Items::Given(items) => items.get(at).cloned(),
            Items::Growing { buffer, len } => (at < *len).then(|| buffer.read().ok()?.get(at).cloned())?,
        }
    }

    /// The same buffer with more items at its end, if this list sees the end and the items cannot hold it.
    fn grown(&self, more: &[Value], more_size: Size) -> Result<Option<Self>, Error> {
        let Items::Growing { buffer, len } = &self.items else {
            return Ok(None);
        };
        let Ok(mut items) = buffer.write() else {
            return Ok(None);
        };
        if items.len() != *len || more_size.grows {
            return Ok(None);
        }
        check_memory(0)?;
        items.try_reserve(more.len()).map_err(|_| no_memory(size_of_val(more)))?;
        items.extend_from_slice(more);
        let items = Items::Growing { buffer: Arc::clone(buffer), len: items.len() };
        Ok(Some(Self { items, size: self.size.beside(more_size) }))
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = key.as_i64()?;
        let at = if at < 0 { at.checked_add(i64::try_from(self.len()).ok()?)? } else { at };
        self.get(usize::try_from(at).ok()?)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.len())
    }
}

impl Size {
    /// A value that holds no others.
    pub fn of_text(bytes: usize) -> Self {
        Self { values: 1, bytes, made_values: 1, made_bytes: bytes, ..Self::default() }
    }

    /// Both side by side.
    pub fn beside(self, other: Self) -> Self {
        Self {
            values: self.values.saturating_add(other.values),
            bytes: self.bytes.saturating_add(other.bytes),
            made_values: self.made_values.saturating_add(other.made_values),
            made_bytes: self.made_bytes.saturating_add(other.made_bytes),
            depth: self.depth.max(other.depth),
            grows: self.grows || other.grows,
            has_namespace: self.has_namespace || other.has_namespace,
        }
    }

    /// Of a list or a dict with these items.
    pub fn around(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }

    /// # Errors
    /// That the value is too large or too deep to be stored.
    pub fn check(&self) -> Result<(), Error> {
        if self.depth > MAX_DEPTH {
            return Err(too_deep());
        }
        if self.made_values > MAX_VALUES || self.made_bytes > MAX_BYTES {
            return Err(too_large());
        }
        Ok(())
    }

    /// # Errors
    /// As [`check`](Self::check), and for a namespace in it: the attribute of a namespace could hold itself.
    pub fn check_attribute(&self) -> Result<(), Error> {
        if self.has_namespace { Err(invalid("a namespace in a namespace is not supported")) } else { self.check() }
    }
}

pub(super) fn list_of(value: &Value) -> Option<&List> {
    value.downcast_object_ref::<List>()
}

/// What a value holds. Each value that is looked at is counted; a [`List`] knows it.
///
/// # Errors
/// That it is more than a value may hold, or a run may look at.
pub(super) fn measure(state: &mut State, value: &Value) -> Result<Size, Error> {
    let size = measure_at(state, value, 0)?;
    size.check()?;
    Ok(size)
}

fn measure_at(state: &mut State, value: &Value, level: usize) -> Result<Size, Error> {
    if level > MAX_DEPTH {
        return Err(too_deep());
    }
    if let Some(list) = list_of(value) {
        let grows = list.size.grows || matches!(list.items, Items::Growing { .. });
        return Ok(Size { grows, ..list.size });
    }
    charge(state, UNITS_PER_VALUE)?;
    let mut size = Size::of_text(value.as_str().map_or(0, str::len));
    size.has_namespace = is_namespace(value);
    // An iterable of unknown length may be one that can be read only once.
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) || value.len().is_none() {
        return Ok(size);
    }
    size.depth = 1;
    for item in value.try_iter()? {
        if value.kind() == ValueKind::Map {
            size = size.beside(measure_at(state, &value.get_item(&item)?, level + 1)?.around());
        }
        size = size.beside(measure_at(state, &item, level + 1)?.around());
        if size.made_values > MAX_VALUES || size.made_bytes > MAX_BYTES {
            return Err(too_large());
        }
    }
    Ok(size)
}

/// `left + right` of two lists.
pub(super) fn concat(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    let size = measure(state, left)?;
    let more_size = measure(state, right)?;
    size.beside(more_size).check()?;
    let more = items(state, right)?;
    check_memory(2 * size_of_val(&more[..]))?;
    if let Some(grown) = list_of(left).map(|list| list.grown(&more, more_size)).transpose()?.flatten() {
        // What is new in the buffer, and the dicts and lists that were written there.
        hold_bytes(state, more_size.made_values.saturating_mul(BYTES_PER_ITEM))?;
        return Ok(Value::from_object(grown));
    }
    check_memory(3 * size_of::<Value>() * (left.len().unwrap_or(0) + more.len()))?;
    let mut all = items(state, left)?;
    all.extend(more);
    let len = all.len();
    let buffer = Arc::new(RwLock::new(all));
    hold_buffer(state, &buffer, len)?;
    let items = Items::Growing { buffer, len };
    Ok(Value::from_object(List { items, size: size.beside(more_size) }))
}

/// The items of a list, copied and counted.
pub(super) fn items(state: &mut State, value: &Value) -> Result<Vec<Value>, Error> {
    charge(state, value.len().unwrap_or(0).saturating_mul(UNITS_PER_ITEM))?;
    Ok(value.try_iter()?.collect())
}

/// Whether there is room for so many bytes that minijinja is about to ask for.
///
/// # Errors
/// One that its source tells to be of memory.
pub(super) fn check_memory(bytes: usize) -> Result<(), Error> {
    check_room("chat template", bytes).map_err(|_| no_memory(bytes))
}

/// Room for one more item of a list whose length a template says.
pub(super) fn make_room<T>(items: &mut Vec<T>) -> Result<(), Error> {
    items.try_reserve(1).map_err(|_| no_memory(size_of_val(items.as_slice())))
}

fn no_memory(bytes: usize) -> Error {
    let what = format!("{bytes} bytes of a value");
    invalid(format!("{what} do not fit the memory")).with_source(OutOfMemory { what })
}

pub(super) fn too_deep() -> Error {
    invalid(format!("a value nested more than {MAX_DEPTH} deep is not supported"))
}

pub(super) fn too_large() -> Error {
    invalid(format!("a value of more than {MAX_VALUES} items or {MAX_BYTES} bytes is not supported"))
}

/// serde_json reads up to 128 levels; a template may nest further. What compares, prints and drops a value recurses as deep.
pub(super) const MAX_DEPTH: usize = 256;
/// What a value may hold in all.
pub(super) const MAX_VALUES: usize = 1_000_000;
