//! Which files of a repository are the GGUF model that somebody wants.

use crate::error::{Error, ErrorKind, Result};

/// The quantisation that people mean who name none: llama.cpp takes it too.
const USUAL: &str = "q4_k_m";
/// As many files as an error lists.
const LISTED: usize = 20;

/// The files of a model among all of a repository: one, or all parts of one that was split, the first in front. `None` if nobody
/// named a file and the repository has none.
///
/// # Errors
/// `NotFound` if there is no file of that name, or a part is missing; `InvalidArgument` if there are several and none was named.
pub fn chosen(names: &[&str], wanted: Option<&str>) -> Result<Option<Vec<String>>> {
    let models: Vec<&str> = names.iter().copied().filter(|name| is_model(name)).collect();
    let named = match wanted {
        Some(wanted) => {
            let same = |name: &&&str| **name == wanted || file_name(name) == wanted;
            let found = names.iter().find(|name| **name == wanted).or_else(|| names.iter().find(same));
            Some(*found.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("{wanted}: the repository has no such file{}", listed(&models)))
            })?)
        }
        None => None,
    };
    let first = match (named, models.as_slice()) {
        (Some(name), _) => name,
        (None, []) => return Ok(None),
        (None, [one]) => one,
        (None, several) => {
            let mut usual = several.iter().filter(|name| name.to_ascii_lowercase().contains(USUAL));
            match (usual.next(), usual.next()) {
                (Some(one), None) => one,
                _ => {
                    let message = format!("file: expected the name of one, since the repository has several{}", listed(several));
                    return Err(Error::argument(message));
                }
            }
        }
    };
    let Some((stem, 1, count)) = split(first) else { return Ok(Some(vec![first.to_string()])) };
    let part = |number: u32| {
        let name = format!("{stem}-{number:05}-of-{count:05}.gguf");
        let found = names.iter().find(|found| found.eq_ignore_ascii_case(&name));
        found.map(|found| found.to_string()).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{name}: expected {count} parts of the model, found not this one"))
        })
    };
    (1..=count).map(part).collect::<Result<_>>().map(Some)
}

/// Whether a file is a model, or the first part of one: not a later part, a vision tower or an importance matrix.
fn is_model(name: &str) -> bool {
    let file = file_name(name).to_ascii_lowercase();
    let other = ["mmproj", "imatrix"].iter().any(|word| file.contains(word));
    file.ends_with(".gguf") && !other && split(name).is_none_or(|(_, number, _)| number == 1)
}

fn file_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// What stands in front, the number and the count of a part: `x-00002-of-00003.gguf`.
fn split(name: &str) -> Option<(&str, u32, u32)> {
    let stem = name.get(..name.len().checked_sub(".gguf".len())?)?;
    let (start, count) = stem.rsplit_once("-of-")?;
    let (start, number) = start.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse().ok()).flatten();
    Some((start, digits(number)?, digits(count)?))
}

fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        _ => {
            let more = if names.len() > LISTED { ", …" } else { "" };
            format!(" ({}{more})", names.iter().take(LISTED).copied().collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_model_is_found_among_all_files() {
        let found = |names: &[&str], wanted| chosen(names, wanted).unwrap().unwrap_or_default();
        assert!(found(&["config.json", "a.safetensors"], None).is_empty());
        assert_eq!(found(&["README.md", "a.gguf", "mmproj-a.gguf", "a.imatrix.gguf"], None), ["a.gguf"]);
        let many = ["a-Q8_0.gguf", "a-Q4_K_M.gguf", "a-BF16/a-BF16-00001-of-00002.gguf", "a-BF16/a-BF16-00002-of-00002.gguf"];
        assert_eq!(found(&many, None), ["a-Q4_K_M.gguf"]);
        assert_eq!(found(&many, Some("a-Q8_0.gguf")), ["a-Q8_0.gguf"]);
        for wanted in ["a-BF16/a-BF16-00001-of-00002.gguf", "a-BF16-00001-of-00002.gguf"] {
            assert_eq!(found(&many, Some(wanted)), many[2..]);
        }
        let two = [many[0], "a-Q6_K.gguf"];
        let error = chosen(&two, None).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidArgument && two.iter().all(|name| error.message().contains(name)), "{error}");
        let error = chosen(&two, Some("b.gguf")).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.message().contains("b.gguf"), "{error}");
        let error = chosen(&many[2..3], None).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.message().contains("00002-of-00002"), "{error}");
    }
}
