//! Adapters as llama.cpp keeps them, `convert_lora_to_gguf.py` writes them: a GGUF file of two tensors for each matrix that was trained,
//! named after it.
//!
//! | tensor | shape |
//! | --- | --- |
//! | `blk.0.attn_q.weight.lora_a` | `(R, inputs)`, of all experts `(experts, R, inputs)` |
//! | `blk.0.attn_q.weight.lora_b` | `(outputs, R)`, of all experts `(experts, outputs, R)` |
//! | `token_embd.weight.lora_a` | `(vocabulary, R)` |
//! | `token_embd.weight.lora_b` | `(width, R)` |
//!
//! Rows of B stand where the converter puts those of the matrix. [`GgufAdapter::into_source`] presents both as PEFT's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::super::peft::transposed;
use super::super::read_count::{OnBytes, Reading};
use super::header::FileKind;
use super::source::{GgufSource, Origin, OriginRows, RowOrder};
use super::{Gguf, Metadata};
use crate::error::{Error, Result};
use crate::nn::{Entry, TensorSource};
use crate::ops::Format;

const A: &str = ".lora_a";
const B: &str = ".lora_b";
/// How the names of tables end, of which A is transposed.
const TABLE: &str = "token_embd.weight";
/// Why a tensor has no place, by how its name ends.
const REFUSED: [(&str, &str); 3] = [
    ("_norm.weight", "a norm in an adapter is not supported: only changes of matrices are"),
    (
        "_exps.weight.lora_a",
        "the model keeps the matrices of all experts in one parameter, of which an adapter in a GGUF file is not supported",
    ),
    (
        "_exps.weight.lora_b",
        "the model keeps the matrices of all experts in one parameter, of which an adapter in a GGUF file is not supported",
    ),
];

/// An adapter of one file; of none of its tensors a value is read yet.
pub struct GgufAdapter {
    gguf: Gguf,
    alpha: Option<f32>,
    /// Of the matrices that it changes, by GGUF's own names.
    shapes: BTreeMap<String, Vec<usize>>,
}

/// A module of PEFT that an adapter changes.
pub struct AdaptedModule {
    /// Its name as PEFT writes it.
    pub name: String,
    /// What its matrix is made of.
    pub origin: Origin,
}

/// An adapter's tensors under the names that PEFT gives them.
pub struct AdapterSource<'a> {
    source: GgufSource<'a>,
    /// Those that are stored transposed.
    tables: HashMap<String, (Entry, Vec<f32>)>,
    /// Of each module.
    pub ranks: Vec<usize>,
}

impl GgufAdapter {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// As [`Gguf::open`]; `Unsupported` for what is no LoRA adapter, and for one that begins to count behind some tokens; `Format` for a
    /// tensor without the other one, and for shapes that do not go together.
    pub fn open(path: &Path) -> Result<Self> {
        const INVOCATION: &str = "adapter.alora.invocation_tokens";
        let gguf = Gguf::open_kind(path, FileKind::Adapter)?;
        let metadata = gguf.metadata();
        if metadata.text("adapter.type")? != Some("lora") {
            return Err(metadata.unsupported("adapter.type", "\"lora\""));
        }
        if metadata.list_len(INVOCATION).is_some_and(|len| len > 0) {
            return Err(metadata.unsupported(INVOCATION, "none: an adapter counts for every token"));
        }
        // llama.cpp takes a missing one as none.
        let alpha = metadata.f32("adapter.lora.alpha")?.filter(|alpha| *alpha != 0.0);
        let names = gguf.tensors().filter_map(|tensor| tensor.name().strip_suffix(A).or(tensor.name().strip_suffix(B)));
        let names: BTreeSet<String> = names.map(str::to_string).collect();
        let shapes = names.into_iter().map(|name| Ok((name.clone(), shape(&gguf, &name)?))).collect::<Result<_>>()?;
        Ok(Self { shapes, alpha, gguf })
    }

    pub fn metadata(&self) -> &Metadata {
        self.gguf.metadata()
    }

    /// The number that, by the rank, is the factor of each change; `None`: each counts once.
    pub fn alpha(&self) -> Option<f32> {
        self.alpha
    }

    /// The shape of a matrix that is changed, by GGUF's own name: `(outputs, inputs)`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    /// The tensors of these modules as PEFT has them.
    ///
    /// # Errors
    /// `Format` or `Unsupported` naming a tensor that is none of them; `OutOfMemory`.
    pub fn into_source<'a>(self, modules: &[AdaptedModule], on_bytes: &'a mut OnBytes<'a>) -> Result<AdapterSource<'a>> {
        let (mut origins, mut tables, mut ranks) = (Vec::new(), HashMap::new(), Vec::new());
        let mut used: BTreeSet<&str> = BTreeSet::new();
        for AdaptedModule { name, origin } in modules {
            used.extend(origin.parts.iter().map(|part| part.tensor.as_str()));
            let LowRankOrigin { a, b, rank } = LowRankOrigin::of(&self.gguf, origin).map_err(|e| e.within(name))?;
            if let [OriginRows { tensor, .. }] = origin.parts.as_slice()
                && tensor.ends_with(TABLE)
            {
                let table = format!("{tensor}{A}");
                let vocabulary = self.shape(tensor).and_then(|shape| shape.first().copied()).unwrap_or(0);
                let entry = Entry { shape: vec![rank, vocabulary], stored: Ok(Format::F32) };
                tables.insert(format!("{name}.lora_embedding_A"), (entry, transposed(&self.gguf.values(&table)?, rank)?));
                origins.push((format!("{name}.lora_embedding_B"), b));
            } else {
                origins.extend([(format!("{name}.lora_A.weight"), a), (format!("{name}.lora_B.weight"), b)]);
            }
            ranks.push(rank);
        }
        let is_used = |name: &str| name.strip_suffix(A).or(name.strip_suffix(B)).is_some_and(|matrix| used.contains(matrix));
        if let Some(other) = self.gguf.tensors().map(|tensor| tensor.name()).find(|name| !is_used(name)) {
            let why = REFUSED.iter().find(|(end, _)| other.ends_with(end));
            let refused = |(_, why): &(&str, &str)| Error::unsupported(self.metadata().invalid(other, why).message());
            return Err(why.map_or_else(|| self.metadata().invalid(other, "a tensor that the model has no place for"), refused));
        }
        let source = GgufSource::new(self.gguf, origins, |_| true, on_bytes)?;
        Ok(AdapterSource { source, tables, ranks })
    }
}

/// The shape of the matrix that two tensors change.
fn shape(gguf: &Gguf, name: &str) -> Result<Vec<usize>> {
    let find = |end: &str| {
        let name = format!("{name}{end}");
        let tensor = gguf
            .tensor(&name)
            .ok_or_else(|| gguf.metadata().invalid(&name, "expected this tensor, found the other of two alone"));
        tensor.map(|tensor| tensor.entry().shape.as_slice())
    };
    let (a, b) = (find(A)?, find(B)?);
    let shape = match (a, b) {
        ([vocabulary, rank], [width, of_b]) if rank == of_b && name.ends_with(TABLE) => vec![*vocabulary, *width],
        ([rank, inputs], [outputs, of_b]) if rank == of_b && !name.ends_with(TABLE) => vec![*outputs, *inputs],
        ([count, rank, inputs], [of_all, outputs, of_b]) if (count, rank) == (of_all, of_b) => vec![*count, *outputs, *inputs],
        _ => {
            let found = format!("expected the shapes of a low-rank change, found {a:?} and {b:?}");
            return Err(gguf.metadata().invalid(name, &found));
        }
    };
    match shape.contains(&0) {
        true => Err(gguf.metadata().invalid(name, &format!("expected no empty matrix, found {a:?} and {b:?}"))),
        false => Ok(shape),
    }
}

/// What the change of a matrix is made of.
struct LowRankOrigin {
    a: Origin,
    b: Origin,
    rank: usize,
}

impl LowRankOrigin {
    fn of(gguf: &Gguf, origin: &Origin) -> Result<Self> {
        let shape = |tensor: &str, end: &str| gguf.tensor(&format!("{tensor}{end}")).map(|found| found.entry().shape.clone());
        let (mut b, mut found): (Option<Origin>, Option<(OriginRows, usize)>) = (None, None);
        for OriginRows { tensor, rows, order, columns } in &origin.parts {
            let (Some(of_a), Some(of_b)) = (shape(tensor, A), shape(tensor, B)) else {
                return Err(Error::unsupported(format!(
                    "expected changes of all of its parts in the file, found none of {tensor:?}"
                )));
            };
            let rank = of_b.last().copied().unwrap_or(0);
            // Of all experts' matrices the rows of one.
            let of_expert = match (of_b.as_slice(), rows) {
                ([_, outputs, _], Some(rows)) if rows.start % outputs == 0 && rows.len() == *outputs => {
                    let expert = rows.start / outputs;
                    Some(expert * rank..(expert + 1) * rank)
                }
                ([_, _, _], _) => {
                    return Err(Error::unsupported(format!("{tensor}: expected the matrix of one expert, found more")));
                }
                _ => None,
            };
            let part = |end: &str, rows, order, columns| OriginRows { tensor: format!("{tensor}{end}"), rows, order, columns };
            let own = Origin::of_part(part(B, rows.clone(), *order, RowOrder::AsStored));
            b = Some(match b.take() {
                Some(all) => all.then(own),
                None => own,
            });
            let own = (part(A, of_expert, RowOrder::AsStored, *columns), rank);
            match &found {
                None => found = Some(own),
                Some(first) if *first == own => {}
                // Parts that are one matrix in transformers come of one A.
                Some((first, of_first)) => {
                    let same = *of_first == rank
                        && (&first.rows, first.columns) == (&own.0.rows, own.0.columns)
                        && of_a == gguf.tensor(&first.tensor).map(|found| found.entry().shape.clone()).unwrap_or_default()
                        && gguf.values(&first.tensor)? == gguf.values(&own.0.tensor)?;
                    if !same {
                        let (first, own) = (&first.tensor, &own.0.tensor);
                        return Err(Error::unsupported(format!(
                            "expected the same values in {first:?} and {own:?}: the matrices are one in the model"
                        )));
                    }
                }
            }
        }
        match (found, b) {
            (Some((a, rank)), Some(b)) => Ok(Self { a: Origin::of_part(a), b, rank }),
            _ => Err(Error::format("an origin without parts")),
        }
    }
}

impl<'a> Reading for AdapterSource<'a> {
    type Source = GgufSource<'a>;

    fn source(&self) -> &Self::Source {
        &self.source
    }

    fn source_mut(&mut self) -> &mut Self::Source {
        &mut self.source
    }
}

impl TensorSource for AdapterSource<'_> {
    fn entry(&self, name: &str) -> Option<&Entry> {
        self.tables.get(name).map(|(entry, _)| entry).or_else(|| self.source.entry(name))
    }

    fn names(&self) -> Vec<&str> {
        self.tables.keys().map(String::as_str).chain(self.source.names()).collect()
    }

    fn read(&mut self, name: &str, offset: u64, into: &mut [u8]) -> Result<()> {
        let Some((_, values)) = self.tables.get(name) else { return self.source.read(name, offset, into) };
        let (start, end) = (offset as usize, offset as usize + into.len());
        let outside =
            || Error::format(format!("{name}: byte {offset} and {} more pass its {} bytes", into.len(), 4 * values.len()));
        let (first, behind) = (start / 4, end.div_ceil(4));
        let values = values.get(first..behind).ok_or_else(outside)?;
        let mut bytes = values.iter().flat_map(|x| x.to_le_bytes()).skip(start - 4 * first);
        into.iter_mut().zip(&mut bytes).for_each(|(to, byte)| *to = byte);
        self.source.count.add(name, into)
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::Build;
    use super::*;
    use crate::error::ErrorKind;

    fn file() -> Build {
        Build::new().text("general.architecture", "llama").text("general.type", "adapter").text("adapter.type", "lora")
    }

    fn bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    }

    /// A change of two columns and of `rows` rows, of rank 1.
    fn pair(file: Build, name: &str, rows: u64) -> Build {
        let a = bytes([1.0, 2.0]);
        let b = bytes((0..rows).map(|row| row as f32));
        file.tensor(&format!("{name}{A}"), &[1, 2], 0, &a).tensor(&format!("{name}{B}"), &[rows, 1], 0, &b)
    }

    fn open(file: &Build) -> Result<GgufAdapter> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        GgufAdapter::open(&path)
    }

    fn read(file: &Build, modules: &[(&str, Origin)], names: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut on_bytes = |_, _| Ok(());
        let module = |(name, origin): &(&str, Origin)| AdaptedModule { name: name.to_string(), origin: origin.clone() };
        let modules: Vec<_> = modules.iter().map(module).collect();
        let mut source = open(file)?.into_source(&modules, &mut on_bytes)?;
        let values = |name: &&str| {
            let len = source.entry(name).unwrap().shape.iter().product::<usize>();
            let mut bytes = vec![0; 4 * len];
            source.read(name, 0, &mut bytes).unwrap();
            Format::F32.widen(&bytes)
        };
        Ok(names.iter().map(values).collect())
    }

    #[test]
    fn rows_of_b_are_those_of_the_matrix() {
        let file = pair(file(), "qkv.weight", 8);
        let q = Origin::rows("qkv.weight", 0..4).in_pairs(4);
        let v = Origin::rows("qkv.weight", 4..8);
        let names = ["q.lora_A.weight", "q.lora_B.weight", "v.lora_A.weight", "v.lora_B.weight"];
        let found = read(&file, &[("q", q), ("v", v)], &names).unwrap();
        assert_eq!(found, [vec![1.0, 2.0], vec![0.0, 2.0, 1.0, 3.0], vec![1.0, 2.0], vec![4.0, 5.0, 6.0, 7.0]]);
    }

    #[test]
    fn matrices_that_are_one_in_the_model_have_one_a() {
        let both = pair(pair(file(), "gate.weight", 2), "up.weight", 2);
        let joined = Origin::whole("gate.weight").then(Origin::whole("up.weight"));
        let names = ["m.lora_A.weight", "m.lora_B.weight"];
        let found = read(&both, &[("m", joined.clone())], &names).unwrap();
        assert_eq!(found, [vec![1.0, 2.0], vec![0.0, 1.0, 0.0, 1.0]]);
        let other = pair(file(), "gate.weight", 2);
        let other = other.tensor("up.weight.lora_a", &[1, 2], 0, &bytes([1.0, 3.0]));
        let other = other.tensor("up.weight.lora_b", &[2, 1], 0, &bytes([0.0, 1.0]));
        let alone = pair(file(), "gate.weight", 2);
        for (file, part) in [(&other, "same values"), (&alone, "up.weight")] {
            let error = read(file, &[("m", joined.clone())], &names).unwrap_err();
            assert!(error.kind() == ErrorKind::Unsupported && error.message().contains(part), "{error}");
        }
    }

    #[test]
    fn an_expert_has_its_part_of_both() {
        let stack = file().tensor("e_exps.weight.lora_a", &[2, 1, 2], 0, &bytes([1.0, 2.0, 3.0, 4.0]));
        let stack = stack.tensor("e_exps.weight.lora_b", &[2, 3, 1], 0, &bytes((0..6).map(|x| x as f32)));
        let one = |number: usize| Origin::rows("e_exps.weight", 3 * number..3 * (number + 1));
        let found = read(&stack, &[("0", one(0)), ("1", one(1))], &["1.lora_A.weight", "1.lora_B.weight"]).unwrap();
        assert_eq!(found, [vec![3.0, 4.0], vec![3.0, 4.0, 5.0]]);
        let error = read(&stack, &[("all", Origin::whole("e_exps.weight"))], &[]).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("one expert"), "{error}");
        let error = read(&stack, &[], &[]).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.message().contains("all experts in one parameter"), "{error}");
    }

    #[test]
    fn a_table_has_its_a_transposed() {
        let table = file().tensor("token_embd.weight.lora_a", &[3, 2], 0, &bytes([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let table = table.tensor("token_embd.weight.lora_b", &[1, 2], 0, &bytes([7.0, 8.0]));
        let names = ["e.lora_embedding_A", "e.lora_embedding_B"];
        let found = read(&table, &[("e", Origin::whole("token_embd.weight"))], &names).unwrap();
        assert_eq!(found, [vec![1.0, 3.0, 5.0, 2.0, 4.0, 6.0], vec![7.0, 8.0]]);
    }

    #[test]
    fn what_is_no_adapter_is_refused_by_name() {
        let a = |file: Build| file.tensor("q.weight.lora_a", &[1, 2], 0, &[0; 8]);
        let plain = || Build::new().text("general.type", "adapter");
        for (file, kind, parts) in [
            (Build::new(), ErrorKind::Unsupported, ["general.type", "\"adapter\""]),
            (plain(), ErrorKind::Unsupported, ["adapter.type", "\"lora\""]),
            (plain().text("adapter.type", "control_vector"), ErrorKind::Unsupported, ["adapter.type", "control_vector"]),
            (file().ints("adapter.alora.invocation_tokens", &[4]), ErrorKind::Unsupported, ["invocation_tokens", "every token"]),
            (a(file()), ErrorKind::Format, ["q.weight.lora_b", "the other of two"]),
            (a(file()).tensor("q.weight.lora_b", &[4, 2], 0, &[0; 32]), ErrorKind::Format, ["q.weight", "low-rank"]),
            (a(file()).tensor("q.weight.lora_b", &[1], 0, &[0; 4]), ErrorKind::Format, ["q.weight", "low-rank"]),
        ] {
            let error = open(&file).err().unwrap();
            assert!(error.kind() == kind && parts.iter().all(|part| error.message().contains(part)), "{error}");
        }
        for (name, kind, part) in [
            ("blk.0.attn_norm.weight", ErrorKind::Unsupported, "a norm in an adapter"),
            ("blk.0.other.weight", ErrorKind::Format, "no place for"),
        ] {
            let error = read(&file().tensor(name, &[2], 0, &[0; 8]), &[], &[]).unwrap_err();
            assert!(error.kind() == kind && error.message().contains(name) && error.message().contains(part), "{error}");
        }
    }
}
