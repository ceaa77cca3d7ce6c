//! gpt-oss's experts, each under names of its own: a checkpoint holds those of a layer in one tensor for gate and up, whose outputs
//! alternate, and one for down. They are made when they are read, and nothing above knows how they were stored.
//!
//! | stored | shape |
//! | --- | --- |
//! | `gate_up_proj`, `down_proj` | `(experts, inputs, outputs)` |
//! | the same with `_blocks` and `_scales`, in MXFP4 | `(experts, outputs, inputs / 32, 16)`, `(experts, outputs, inputs / 32)` |
//! | the same with `_bias` | `(experts, outputs)` |
//!
//! Of a byte of blocks the low half is the first of two neighbours. Source: `GptOssExperts` and `convert_moe_packed_tensors` of
//! transformers 5.24.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::read_count::Reading;
use super::safetensors::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Entry, TensorSource};
use crate::ops::Format;

/// What says that a layer's experts are stored so.
const MARK: &str = "experts.gate_up_proj_bias";

/// A checkpoint whose stacks of experts are taken apart.
pub struct ApartExperts<'a> {
    checkpoint: Checkpoint<'a>,
    /// By the names that they are given.
    parts: HashMap<String, (Entry, Part)>,
    /// The stacks.
    hidden: HashSet<String>,
    /// The tensor that was made last, and its bytes.
    last: Option<(String, Vec<u8>)>,
}

/// A matrix of one expert, or a bias.
#[derive(Clone)]
struct Part {
    /// The stack's name, without what stands behind it for blocks, scales and biases.
    stack: String,
    kind: Kind,
    expert: usize,
    /// Of a stack whose outputs alternate: which, of how many.
    place: (usize, usize),
    outputs: usize,
    inputs: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Numbers of this type, by inputs.
    Plain(Format),
    Blocks,
    Bias(Format),
}

impl<'a> ApartExperts<'a> {
    /// Of so many experts in each layer that has some.
    ///
    /// # Errors
    /// `Format` for tensors that do not go together or are of another number of experts, naming them.
    pub fn new(checkpoint: Checkpoint<'a>, experts: usize) -> Result<Self> {
        let mut apart = Self { checkpoint, parts: HashMap::new(), hidden: HashSet::new(), last: None };
        let names: Vec<String> =
            apart.checkpoint.names().into_iter().filter(|name| name.ends_with(MARK)).map(str::to_string).collect();
        for name in names {
            let place = name.strip_suffix("gate_up_proj_bias").unwrap_or(&name);
            apart.add(place, "gate_up_proj", &["gate_proj", "up_proj"], experts)?;
            apart.add(place, "down_proj", &["down_proj"], experts)?;
        }
        Ok(apart)
    }

    /// Takes a stack apart, whose outputs are by turns those of `names`.
    fn add(&mut self, place: &str, stack: &str, names: &[&str], experts: usize) -> Result<()> {
        let stack = format!("{place}{stack}");
        let of = |field: &str| format!("{stack}{field}");
        let shape = |name: &str| self.checkpoint.entry(name).map(|entry| entry.shape.clone()).unwrap_or_default();
        let bad = |name: String, expected: &str, found: &[usize]| {
            Error::format(format!("{name}: expected {expected}, found {found:?}"))
        };
        let bias = shape(&of("_bias"));
        let [count, outputs] = bias[..] else { return Err(bad(of("_bias"), "a row for each expert", &bias)) };
        // Before there are names for each of them.
        if count != experts {
            return Err(bad(of("_bias"), &format!("a row for each of {experts} experts"), &bias));
        }
        if count == 0 || outputs == 0 || !outputs.is_multiple_of(names.len()) {
            return Err(bad(of("_bias"), "as many gates as values for each expert", &bias));
        }
        let number = |name: &str| match self.checkpoint.entry(name).map(|entry| entry.stored.clone()) {
            Some(Ok(format)) if !format.is_quantised() => Ok(format),
            _ => Err(Error::format(format!("{name}: expected F32, F16 or BF16"))),
        };
        let (blocks, scales, plain) = (shape(&of("_blocks")), shape(&of("_scales")), shape(&stack));
        let (kind, inputs) = match (&blocks[..], &plain[..]) {
            (&[n, rows, groups, 16], []) if n == count && rows == outputs && groups > 0 && scales == [n, rows, groups] => {
                (Kind::Blocks, groups.saturating_mul(BLOCK))
            }
            ([], &[n, inputs, rows]) if n == count && rows == outputs && inputs > 0 => (Kind::Plain(number(&stack)?), inputs),
            _ => {
                return Err(bad(
                    stack.clone(),
                    "a matrix for each expert, or blocks and scales",
                    if plain.is_empty() { &blocks } else { &plain },
                ));
            }
        };
        // Blocks and scales are bytes, which no weights are.
        for name in [of("_blocks"), of("_scales")].iter().filter(|name| self.checkpoint.entry(name).is_some()) {
            let bytes = shape(name).iter().try_fold(1u64, |n, dim| n.checked_mul(*dim as u64));
            if self.checkpoint.bytes(name) != bytes {
                return Err(Error::format(format!("{name}: expected a byte for each value")));
            }
        }
        let of_bias = Kind::Bias(number(&of("_bias"))?);
        let rows = outputs / names.len();
        let stored = if let Kind::Plain(format) = kind { format } else { Format::MXFP4 };
        for expert in 0..count {
            for (at, name) in names.iter().enumerate() {
                let part = Part { stack: stack.clone(), kind, expert, place: (at, names.len()), outputs: rows, inputs };
                let full = format!("{place}{expert}.{name}");
                let entry = Entry { shape: vec![rows, inputs], stored: Ok(stored) };
                self.parts.insert(format!("{full}.weight"), (entry, part.clone()));
                let entry = Entry { shape: vec![rows], stored: Ok(Format::F32) };
                self.parts.insert(format!("{full}.bias"), (entry, Part { kind: of_bias, ..part }));
            }
        }
        self.hidden.extend(["", "_bias", "_blocks", "_scales"].map(of));
        Ok(())
    }

    /// The bytes of a part.
    fn made(&mut self, part: &Part) -> Result<Vec<u8>> {
        let Part { stack, expert, place: (at, of), outputs, inputs, .. } = part;
        // Rows of the stack are by turns those of several.
        let stored = |row: usize| row * of + at;
        let all = outputs * of;
        let mut made = Vec::new();
        match part.kind {
            Kind::Bias(format) => {
                let size = format.block_bytes();
                let bytes = read(&mut self.checkpoint, &format!("{stack}_bias"), expert * all * size, all * size)?;
                let values = format.try_widen(&bytes)?;
                made.extend((0..*outputs).flat_map(|row| values[stored(row)].to_le_bytes()));
            }
            Kind::Plain(format) => {
                let size = format.block_bytes();
                let bytes = read(&mut self.checkpoint, stack, expert * inputs * all * size, inputs * all * size)?;
                reserve(&mut made, outputs * inputs * size)?;
                made.resize(outputs * inputs * size, 0);
                let copied = match size {
                    2 => by_outputs::<2>,
                    _ => by_outputs::<4>,
                };
                copied(&bytes, &mut made, (*outputs, *inputs), (*at, *of));
            }
            Kind::Blocks => {
                let groups = inputs / BLOCK;
                let blocks =
                    read(&mut self.checkpoint, &format!("{stack}_blocks"), expert * all * groups * 16, all * groups * 16)?;
                let scales = read(&mut self.checkpoint, &format!("{stack}_scales"), expert * all * groups, all * groups)?;
                reserve(&mut made, outputs * groups * 17)?;
                for block in (0..*outputs).flat_map(|row| stored(row) * groups..(stored(row) + 1) * groups) {
                    let (own, scale) = (&blocks[block * 16..][..16], scales[block]);
                    let value = |i: usize| own[i / 2] >> (4 * (i % 2)) & 15;
                    made.push(scale);
                    made.extend((0..16).map(|i| value(i) | value(i + 16) << 4));
                }
            }
        }
        Ok(made)
    }
}

/// Rows and columns of a matrix that are transposed together, so that both stay in the cache: one row after another reads the whole
/// matrix again and again.
const TILE: usize = 64;

fn tiles(rows: usize, columns: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let parts = |len: usize| (0..len).step_by(TILE).map(move |start| start..(start + TILE).min(len));
    parts(rows).flat_map(move |rows| parts(columns).map(move |columns| (rows.clone(), columns)))
}

/// Values of `N` bytes that lie by inputs, by outputs: of outputs that alternate between several those of one.
fn by_outputs<const N: usize>(bytes: &[u8], made: &mut [u8], (outputs, inputs): (usize, usize), (at, of): (usize, usize)) {
    for (rows, columns) in tiles(outputs, inputs) {
        for row in rows {
            for column in columns.clone() {
                let (from, to) = ((column * outputs + row) * of + at, row * inputs + column);
                made[to * N..(to + 1) * N].copy_from_slice(&bytes[from * N..(from + 1) * N]);
            }
        }
    }
}

/// Values of a block of MXFP4.
const BLOCK: usize = 32;

/// A tensor of all experts of a layer, as [`ApartExperts`] takes them apart, of what each of them has.
pub struct JoinedExperts {
    pub name: String,
    pub format: Format,
    pub shape: Vec<usize>,
    /// In front of an expert's number.
    place: String,
    /// Whose outputs alternate.
    parts: &'static [&'static str],
    is_bias: bool,
}

/// The values of the expert that was looked at last, as its tensor has them.
pub type LastExpert = Option<(usize, Vec<f32>)>;

impl JoinedExperts {
    /// Takes what single experts have out of a list of names, formats and shapes, which is then as the reference writes it.
    pub fn take(tensors: &mut Vec<(String, Format, Vec<usize>)>) -> Vec<Self> {
        const KINDS: [(&str, &[&str]); 2] = [("gate_up_proj", &["gate_proj", "up_proj"]), ("down_proj", &["down_proj"])];
        let mut all: BTreeMap<String, Self> = BTreeMap::new();
        tensors.retain(|(name, format, shape)| {
            let Some((place, number, part, is_bias)) = of_one(name) else { return true };
            let Some((stack, parts)) = KINDS.iter().find(|(_, parts)| parts.contains(&part)) else { return true };
            let joined = all.entry(format!("{place}{stack}{}", if is_bias { "_bias" } else { "" }));
            let joined = joined.or_insert_with_key(|name| {
                // A bias may be stored as a matrix of one row.
                let inputs = if is_bias { 1 } else { shape.last().copied().unwrap_or(1) };
                let outputs = shape.iter().product::<usize>() / inputs.max(1) * parts.len();
                let shape = if is_bias { vec![0, outputs] } else { vec![0, inputs, outputs] };
                Self { name: name.clone(), format: *format, shape, place: place.to_string(), parts, is_bias }
            });
            joined.shape[0] = joined.shape[0].max(number + 1);
            joined.format = Format::finest([joined.format, *format].into_iter()).unwrap_or(*format);
            false
        });
        all.into_values().collect()
    }

    /// Some rows, of the last dimension; `part` tells the values of what one expert has.
    ///
    /// # Errors
    /// Those of `part`; `OutOfMemory`.
    pub fn rows(&self, rows: Range<usize>, last: &mut LastExpert, part: impl Fn(&str) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
        let outputs = self.shape[self.shape.len() - 1];
        let inputs = if self.is_bias { 1 } else { self.shape[1] };
        let mut values = Vec::new();
        for row in rows {
            let (expert, input) = (row / inputs, row % inputs);
            if last.as_ref().is_none_or(|(last, _)| *last != expert) {
                // The memory of the one before is free by then.
                *last = None;
                *last = Some((expert, self.expert(expert, (inputs, outputs), &part)?));
            }
            values.extend(last.iter().flat_map(|(_, all)| &all[input * outputs..(input + 1) * outputs]));
        }
        Ok(values)
    }

    /// The values of one expert, by inputs.
    fn expert(
        &self,
        expert: usize,
        (inputs, outputs): (usize, usize),
        part: impl Fn(&str) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let (mut all, field) = (Vec::new(), if self.is_bias { "bias" } else { "weight" });
        reserve(&mut all, inputs * outputs)?;
        all.resize(inputs * outputs, 0.0);
        for (at, name) in self.parts.iter().enumerate() {
            let values = part(&format!("{}{expert}.{name}.{field}", self.place))?;
            for (rows, columns) in tiles(values.len() / inputs.max(1), inputs) {
                for row in rows {
                    let output = row * self.parts.len() + at;
                    columns.clone().for_each(|input| all[input * outputs + output] = values[row * inputs + input]);
                }
            }
        }
        Ok(all)
    }
}

/// What stands in front of an expert's number, this, which of its matrices it is, and whether it is its bias.
fn of_one(name: &str) -> Option<(&str, usize, &str, bool)> {
    let behind = name.find("experts.")? + "experts.".len();
    let (place, rest) = name.split_at(behind);
    let mut parts = rest.split('.');
    let (number, part, field) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let is_one = parts.next().is_none() && ["weight", "bias"].contains(&field);
    is_one.then_some((place, number, part, field == "bias"))
}

fn reserve<T>(buffer: &mut Vec<T>, len: usize) -> Result<()> {
    buffer.try_reserve_exact(len).map_err(|e| {
        Error::new(ErrorKind::OutOfMemory, format!("{len} values of an expert do not fit the memory")).with_source(e)
    })
}

fn read(checkpoint: &mut Checkpoint<'_>, name: &str, offset: usize, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reserve(&mut bytes, len)?;
    bytes.resize(len, 0);
    checkpoint.read(name, offset as u64, &mut bytes)?;
    Ok(bytes)
}

impl TensorSource for ApartExperts<'_> {
    fn entry(&self, name: &str) -> Option<&Entry> {
        match self.parts.get(name) {
            Some((entry, _)) => Some(entry),
            None if self.hidden.contains(name) => None,
            None => self.checkpoint.entry(name),
        }
    }

    fn names(&self) -> Vec<&str> {
        let plain = self.checkpoint.names().into_iter().filter(|name| !self.hidden.contains(*name));
        self.parts.keys().map(String::as_str).chain(plain).collect()
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        let Some((_, part)) = self.parts.get(name) else { return self.checkpoint.read(name, offset, into) };
        if self.last.as_ref().is_none_or(|(last, _)| last != name) {
            let part = part.clone();
            self.last = None;
            let made = self.made(&part)?;
            self.last = Some((name.to_string(), made));
        }
        let bytes = self.last.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match bytes.get(start..).and_then(|rest| rest.get(..into.len())) {
            Some(bytes) => into.copy_from_slice(bytes),
            None => return Err(Error::format(format!("{name}: byte {offset} and {} more pass its rows", into.len()))),
        }
        Ok(())
    }
}

impl<'a> Reading for ApartExperts<'a> {
    type Source = Checkpoint<'a>;

    fn source(&self) -> &Checkpoint<'a> {
        &self.checkpoint
    }

    fn source_mut(&mut self) -> &mut Checkpoint<'a> {
        &mut self.checkpoint
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype::F32;
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn values_by_outputs_are_those_by_inputs_in_another_order() {
        for (outputs, inputs, of) in [(1, 1, 1), (64, 64, 2), (65, 130, 1), (130, 65, 2), (3, 200, 2)] {
            let stored: Vec<u8> = (0..2 * outputs * inputs * of).map(|i| (i * 7 % 251) as u8).collect();
            for at in 0..of {
                let mut made = vec![0; 2 * outputs * inputs];
                by_outputs::<2>(&stored, &mut made, (outputs, inputs), (at, of));
                let value = |row: usize, column: usize| &stored[2 * ((column * outputs + row) * of + at)..][..2];
                let mut places = (0..outputs).flat_map(|row| (0..inputs).map(move |column| (row, column)));
                let mut found = made.chunks_exact(2);
                assert!(places.all(|(row, column)| found.next() == Some(value(row, column))), "{outputs} {inputs} {of}");
            }
        }
    }

    #[test]
    fn another_number_of_experts_is_refused_before_each_has_a_name() {
        let data = [0; 5 * 4 * 2 * 4];
        let tensor = |shape: &[usize]| {
            let bytes = shape.iter().product::<usize>() * 4;
            TensorView::new(F32, shape.to_vec(), &data[..bytes]).unwrap()
        };
        let tensors = [
            ("experts.gate_up_proj", tensor(&[5, 2, 4])),
            ("experts.gate_up_proj_bias", tensor(&[5, 4])),
            ("experts.down_proj", tensor(&[5, 2, 2])),
            ("experts.down_proj_bias", tensor(&[5, 2])),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        let open = |experts: usize| {
            let mut on_bytes = |_, _| Ok(());
            let checkpoint = Checkpoint::open_file(&path, &mut on_bytes).unwrap();
            ApartExperts::new(checkpoint, experts).map(|apart| apart.names().len())
        };
        assert_eq!(open(5).unwrap(), 5 * 3 * 2);
        let error = open(4).unwrap_err();
        assert_eq!(error.message(), "experts.gate_up_proj_bias: expected a row for each of 4 experts, found [5, 4]");
    }
}
