//! Values of Python that are neither lists nor dicts: what `keys()`, `values()`, `items()` and `range()` give.
//!
//! They print under their own names, and only a range has places to look up.
//!
//! ```text
//! {{ {'a': 1}.keys() }} {{ range(3)[1:] }}  →  dict_keys(['a']) range(1, 3)
//! ```

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr};
use minijinja::{Error, Value};

use super::python::invalid;

#[derive(Debug)]
pub(super) enum View {
    /// Of a dict: the name that it prints under, and what it shows.
    Dict {
        name: &'static str,
        items: Vec<Value>,
    },
    Range(Range),
}

/// Python's `range`: `len` numbers from `start`, each `step` further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub start: i64,
    pub stop: i64,
    pub step: i64,
}

impl View {
    pub fn of(value: &Value) -> Option<&Self> {
        value.downcast_object_ref::<Self>()
    }

    pub fn keys(dict: &Value) -> Result<Value, Error> {
        Ok(Value::from_object(Self::Dict { name: "dict_keys", items: dict.try_iter()?.collect() }))
    }

    pub fn values(dict: &Value) -> Result<Value, Error> {
        let items: Result<Vec<Value>, Error> = dict.try_iter()?.map(|key| dict.get_item(&key)).collect();
        Ok(Value::from_object(Self::Dict { name: "dict_values", items: items? }))
    }

    pub fn items(dict: &Value) -> Result<Value, Error> {
        let item = |key: Value| {
            let value = dict.get_item(&key)?;
            Ok(Value::from(minijinja::value::Tuple::from([key, value])))
        };
        let items: Result<Vec<Value>, Error> = dict.try_iter()?.map(item).collect();
        Ok(Value::from_object(Self::Dict { name: "dict_items", items: items? }))
    }

    fn item(&self, at: usize) -> Value {
        match self {
            Self::Dict { items, .. } => items.get(at).cloned().unwrap_or_default(),
            Self::Range(range) => range.get(at).map_or(Value::UNDEFINED, Value::from),
        }
    }

    pub fn range(range: Range) -> Value {
        Value::from_object(Self::Range(range))
    }
}

impl Range {
    pub fn len(&self) -> usize {
        let (distance, stride) = (i128::from(self.stop) - i128::from(self.start), i128::from(self.step));
        let len = if (distance < 0) == (stride < 0) { (distance.abs() + stride.abs() - 1) / stride.abs() } else { 0 };
        usize::try_from(len).unwrap_or(usize::MAX)
    }

    pub fn get(&self, at: usize) -> Option<i64> {
        let at = i64::try_from(at).ok()?;
        self.start.checked_add(at.checked_mul(self.step)?).filter(|_| (at as usize) < self.len())
    }

    /// `range[start:stop:step]`, the bounds as places of this one; -1 is before the first.
    pub fn sliced(&self, start: i64, stop: i64, step: i64) -> Result<Self, Error> {
        let at = |place: i64| place.checked_mul(self.step).and_then(|offset| self.start.checked_add(offset));
        match (at(start), at(stop), self.step.checked_mul(step)) {
            (Some(start), Some(stop), Some(step)) => Ok(Self { start, stop, step }),
            _ => Err(invalid("range: the numbers pass 64 bits")),
        }
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if matches!(**self, Self::Range(_)) { ObjectRepr::Seq } else { ObjectRepr::Iterable }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match &**self {
            // A dict shows its items in their order, but none of them has a place.
            Self::Dict { .. } => Some(Value::UNDEFINED),
            Self::Range(range) => range.get(key.as_usize()?).map(Value::from),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match &**self {
            // One by one: even to be counted, a view would copy all of them.
            Self::Dict { items, .. } => {
                let view = Arc::clone(self);
                Enumerator::Iter(Box::new((0..items.len()).map(move |at| view.item(at))))
            }
            Self::Range(range) => Enumerator::Seq(range.len()),
        }
    }
}
