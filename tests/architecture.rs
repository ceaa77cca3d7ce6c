//! The shape of the crate, read from its sources: which way modules look, and what library code never does.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// A module may name those behind it, and `error`.
const LAYERS: [&str; 7] = ["ffi", "engine", "models", "load", "nn", "ops", "kernels"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// Each source file: its layer, its path, and its code without comments and tests.
fn code() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 60);
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let text = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap()
                .split("#[cfg(all(test, reference_data))]\nmod tests")
                .next()
                .unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
            let layer = path.strip_prefix(&root).unwrap().iter().next().unwrap().to_string_lossy().into_owned();
            (layer, path, code)
        })
        .collect()
}

#[test]
fn modules_look_one_way() {
    let rank = |layer: &str| LAYERS.iter().position(|&name| name == layer);
    for (layer, path, code) in code() {
        let Some(own) = rank(&layer) else { continue };
        for (at, _) in code.match_indices("crate::") {
            let name: String = code[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if let Some(other) = rank(&name) {
                assert!(other >= own, "{}: {layer} may not use {name}", path.display());
            }
        }
    }
}

#[test]
fn unsafe_code_stands_in_ffi_and_kernels_only_and_says_why() {
    for (layer, path, code) in code() {
        if !["ffi", "kernels"].contains(&layer.as_str()) {
            assert!(!code.contains("unsafe"), "{}", path.display());
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            if line.contains("unsafe {") && !line.trim_start().starts_with("//") {
                let near = lines[i.saturating_sub(8)..=i].join("\n");
                assert!(near.contains("SAFETY"), "{}:{}: no SAFETY line", path.display(), i + 1);
            }
        }
    }
}

#[test]
fn library_code_neither_prints_nor_exits_nor_reads_the_environment() {
    for (_, path, code) in code() {
        for word in [
            "println!",
            "eprintln!",
            "print!",
            "dbg!",
            "std::env",
            "env::var",
            "process::exit",
            "process::abort",
            "todo!",
            "unimplemented!",
            ".unwrap()",
        ] {
            assert!(!code.contains(word), "{}: {word}", path.display());
        }
    }
}

#[test]
fn fused_operations_of_candle_are_called_in_ops_only() {
    for (layer, path, code) in code() {
        assert!(layer == "ops" || !code.contains("candle_nn"), "{}", path.display());
    }
}

#[test]
fn tensors_are_handed_on_above_ops_and_not_looked_into() {
    let methods = [
        "narrow",
        "index_select",
        "dims",
        "dims2",
        "reshape",
        "to_dtype",
        "matmul",
        "force_contiguous",
        "contiguous",
        "unsqueeze",
        "to_vec1",
        "to_vec2",
        "flatten_all",
        "broadcast_add",
        "broadcast_mul",
        "zeros_like",
        "storage_and_layout",
        "elem_count",
    ];
    for (layer, path, code) in code() {
        // The self-test is no part of the library.
        if ["ops", "kernels", "selftest.rs"].contains(&layer.as_str()) {
            continue;
        }
        let code = code.replace("adapters.narrow(", "");
        for method in methods {
            assert!(!code.contains(&format!(".{method}(")), "{}: {method}", path.display());
        }
        assert!(!code.contains("Tensor::"), "{}: makes a tensor", path.display());
    }
}

#[test]
fn a_type_has_its_name_alone() {
    let mut known: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (_, path, code) in code() {
        // Bodies of an operation have the names of what they stand for.
        if path.parent().unwrap().ends_with("ops/cpu") || path.parent().unwrap().ends_with("ops/tensors") {
            continue;
        }
        for line in code.lines().filter(|line| line.starts_with("pub")) {
            let mut words = line.split(' ').skip_while(|word| word.starts_with("pub") || word.ends_with(')'));
            if !["struct", "enum", "trait", "type"].contains(&words.next().unwrap_or_default()) {
                continue;
            }
            let name: String =
                words.next().unwrap_or_default().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if let Some(other) = known.insert(name.clone(), path.clone()) {
                panic!("{name} stands in {} and in {}", other.display(), path.display());
            }
        }
    }
    assert!(known.len() > 150);
}

#[test]
fn backends_are_told_apart_in_ops_only() {
    for (_, path, code) in code().into_iter().filter(|(layer, ..)| layer != "ops") {
        for word in ["Backend::Cpu", "Backend::Tensors", ".is_cpu()", ".is_cuda()", ".is_metal()"] {
            assert!(!code.contains(word), "{}: {word}", path.display());
        }
    }
}

#[test]
fn gradients_are_not_those_of_candle() {
    for (_, path, code) in code() {
        let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        assert!(!words.any(|word| ["Var", "VarMap", "by_candle"].contains(&word)), "{}", path.display());
        assert!(!code.contains(".backward()"), "{}", path.display());
    }
}

#[test]
fn every_operation_has_a_body_for_each_backend() {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let files = |folder: &str| -> BTreeSet<_> {
        fs::read_dir(ops.join(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let (mut cpu, tensors) = (files("cpu"), files("tensors"));
    assert!(cpu.remove(OsStr::new("row_op.rs")), "how kernels reach the rows of a tensor");
    assert_eq!(cpu, tensors);
    assert!(tensors.is_subset(&files("")) && tensors.len() > 8);
}

#[test]
fn every_operation_is_in_the_self_test() {
    // What is no operation on activations.
    let others = ["fault.rs", "matrix.rs", "row_blocks.rs"];
    let checked = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/selftest.rs")).unwrap();
    let mut seen = 0;
    let stands_in_ops = |path: &Path| path.parent().unwrap().ends_with("src/ops");
    let files = code().into_iter().filter(|(_, path, _)| stands_in_ops(path) && !others.iter().any(|o| path.ends_with(o)));
    for (_, path, code) in files {
        for line in code.lines().filter_map(|line| line.strip_prefix("pub fn ")) {
            let name: String = line.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            // A size, for estimates.
            if name == "scored_at_once" {
                continue;
            }
            assert!(checked.contains(&format!("ops::{name}(")), "{}: {name} is not in src/selftest.rs", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 14);
}

#[test]
fn the_readme_shows_what_is_compiled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let examples = fs::read_dir(root.join("examples/c")).unwrap().map(|entry| entry.unwrap().path());
    let programs: Vec<String> = examples.map(|path| fs::read_to_string(path).unwrap()).collect();
    let snippets: Vec<&str> = readme.split("```c\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!snippets.is_empty());
    for snippet in snippets {
        assert!(programs.iter().any(|program| program.contains(snippet)), "not in examples/c:\n{snippet}");
    }
}
