//! `include/metal_candle.h` is what cbindgen makes of `src/ffi/`, and a C compiler accepts it without a warning.
//!
//! `UPDATE_HEADER=1 cargo test --test header` writes the header and `abi/symbols.txt` again.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use cbindgen::{Builder, Config, Language, Style};

const HEADER: &str = "include/metal_candle.h";
const SYMBOLS: &str = "abi/symbols.txt";

#[test]
fn header_is_what_the_sources_say() {
    let expected = header();
    if env::var_os("UPDATE_HEADER").is_some() {
        fs::write(root().join(HEADER), &expected).unwrap();
        fs::write(root().join(SYMBOLS), functions(&expected).join("\n") + "\n").unwrap();
    }
    let found = fs::read_to_string(root().join(HEADER)).unwrap_or_default();
    let line = expected.lines().zip(found.lines()).position(|(expected, found)| expected != found);
    let line = line.unwrap_or(expected.lines().count().min(found.lines().count())) + 1;
    assert!(expected == found, "{HEADER}, line {line}, differs from src/ffi: run UPDATE_HEADER=1 cargo test --test header");
}

#[test]
fn symbol_list_is_the_functions_of_the_header() {
    let listed = fs::read_to_string(root().join(SYMBOLS)).unwrap_or_default();
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        functions(&header()),
        "{SYMBOLS}: run UPDATE_HEADER=1 cargo test --test header"
    );
}

#[test]
fn the_header_names_every_option_of_json() {
    use metal_candle::{EmbedOptions, GenerateOptions, LoadOptions, LoraConfig, RerankOptions, TrainOptions};
    let header = header();
    let unknown = r#"{"no option": 1}"#;
    for (name, result) in [
        ("mc_generate_options", GenerateOptions::default().set_json(unknown)),
        ("mc_model_options", LoadOptions::default().set_json(unknown)),
        ("mc_train_options", TrainOptions::default().set_json(unknown)),
        ("mc_lora_config", LoraConfig::default().set_json(unknown)),
        ("mc_embed_options", EmbedOptions::default().set_json(unknown)),
        ("mc_rerank_options", RerankOptions::default().set_json(unknown)),
    ] {
        let error = result.unwrap_err();
        let names = error.message().split_once(" (").unwrap().1.trim_end_matches(')').split(", ").collect::<Vec<_>>();
        let declaration = header.find(&format!("{name}_set_json(")).unwrap();
        let document = &header[header[..declaration].rfind("/**").unwrap()..declaration];
        let missing: Vec<_> = names.iter().filter(|field| !document.contains(&format!("`{field}`"))).collect();
        assert!(names.len() > 4 && missing.is_empty(), "{name}_set_json: {missing:?} are not documented");
    }
}

/// Words of C in a document, such as `mc_model_load` and `MC_OK`.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("mc_") || word.starts_with("MC_"))
}

/// README.md and the guides.
fn documents() -> impl Iterator<Item = PathBuf> {
    let guides = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    guides.chain([root().join("README.md")])
}

#[test]
fn documents_name_what_there_is_and_explain_every_status() {
    let header = header();
    let known: HashSet<&str> = names(&header).collect();
    for path in documents().chain([root().join("benches/README.md")]) {
        let text = fs::read_to_string(&path).unwrap();
        let unknown: Vec<&str> = names(&text).filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "{}: the header has no {unknown:?}", path.display());
    }
    let errors = fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let statuses = &header[header.find("MC_OK = 0").unwrap()..header.find("MC_STATUS_FORCE32").unwrap()];
    for status in names(statuses).filter(|name| statuses.contains(&format!("{name} = "))) {
        let row = errors.lines().find(|line| line.starts_with(&format!("| `{status}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/errors.md explains no {status}"));
        let empty = row.split('|').filter(|cell| cell.trim().is_empty()).count();
        assert!(!status.starts_with("MC_ERROR_") || empty == 2, "docs/errors.md: causes and cures of {status}");
    }
}

/// Swift, C++, Go, Zig and Python stand in README.md alone: tests/swift, tests/cpp, tests/go.sh, tests/zig.sh and python/tests make programs
/// of them. Rust is compiled as documentation of src/lib.rs.
#[test]
fn what_documents_show_is_compiled() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("metal_candle.h"), header()).unwrap();
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut compiled = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().display();
        for block in text.split("\n```").skip(1).step_by(2) {
            let (language, code) = block.split_once('\n').unwrap();
            match language {
                "c" => {
                    let source = directory.path().join("snippet.c");
                    fs::write(&source, program(code)).unwrap();
                    let mut command = Command::new("cc");
                    command.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-fsyntax-only", "-I"]);
                    let output = command.arg(directory.path()).arg(&source).output().unwrap();
                    assert!(output.status.success(), "{name}:\n{code}\n{}", String::from_utf8_lossy(&output.stderr));
                    compiled += 1;
                }
                "rust" | "rust,no_run" => {
                    assert!(library.contains(&format!("include_str!(\"../{name}\")")), "src/lib.rs: no {name}")
                }
                "swift" | "cpp" | "go" | "zig" | "python" => {
                    assert!(path.ends_with("README.md"), "{name}: nothing compiles its {language}")
                }
                "json" => {
                    let examples = directory.path().join("examples.jsonl");
                    fs::write(&examples, code).unwrap();
                    assert!(metal_candle::Dataset::load_jsonl(&examples).unwrap().len() > 1, "{name}:\n{code}");
                }
                "toml" | "text" => {}
                other => panic!("{name}: nothing compiles {other:?}"),
            }
        }
    }
    assert!(compiled > 10);
}

/// A snippet as a file of C: functions as they are, statements as the body of one that has what they take for granted.
fn program(snippet: &str) -> String {
    let functions = snippet.lines().any(|line| !line.starts_with([' ', '}']) && line.contains(") {") && !line.starts_with("if"));
    let context = "void check(mc_status status);\nint32_t print_piece(void *user_data, const mc_token_event *event);\nextern mc_error *error;";
    let body = match functions {
        true => snippet.to_owned(),
        false => format!("{context}\nvoid snippet(int argc, char **argv, mc_model_options *options) {{ {{\n{snippet}}} }}"),
    };
    format!("#include <metal_candle.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n{body}")
}

#[test]
fn each_function_has_its_parameters_and_threads_documented() {
    let header = header();
    for name in functions(&header) {
        let declaration = header.find(&format!("{name}(")).unwrap();
        // `mc_x_free()` is also mentioned in comments: the declaration is the mention outside of one.
        let declaration = header
            .match_indices(&format!("{name}("))
            .map(|(at, _)| at)
            .find(|&at| header[..at].rfind("*/") > header[..at].rfind("/**"))
            .unwrap_or(declaration);
        let document = &header[header[..declaration].rfind("/**").unwrap()..declaration];
        let arguments = &header[declaration..declaration + header[declaration..].find(");").unwrap()];
        assert!(document.contains("Threads: "), "{name}: no line on threads");
        for argument in arguments[name.len() + 1..].split(',').filter(|argument| argument.trim() != "void") {
            let argument = argument.rsplit([' ', '*']).next().unwrap();
            assert!(document.contains(&format!("@param {argument} ")), "{name}: {argument} is not documented");
        }
        let status = header[..declaration].ends_with("mc_status ");
        let documented = document.contains("@return MC_OK") || document.contains("@return as ");
        assert!(!status || arguments.starts_with("mc_error_code") || documented, "{name}: its statuses are not documented");
        assert!(
            !status
                || name == "mc_error_code"
                || header[..declaration].trim_end().ends_with("MC_NODISCARD mc_status")
                || header[..declaration].trim_end().ends_with("MC_NODISCARD\nmc_status"),
            "{name}: the status can be ignored"
        );
    }
}

#[test]
fn pointers_say_whether_they_may_be_null() {
    let header = header();
    let code = header.lines().filter(|line| !line.trim_start().starts_with(['*', '/', '#'])).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices('*') {
        let rest = code[at + 1..].trim_start().trim_start_matches("const ");
        assert!(rest.starts_with("MC_NONNULL") || rest.starts_with("MC_NULLABLE"), "{}", &code[at.saturating_sub(60)..at + 40]);
    }
}

#[test]
fn versions_are_those_of_the_package() {
    let header = header();
    for (name, value) in [
        ("MC_VERSION_MAJOR", env!("CARGO_PKG_VERSION_MAJOR").to_owned()),
        ("MC_VERSION_MINOR", env!("CARGO_PKG_VERSION_MINOR").to_owned()),
        ("MC_VERSION_PATCH", env!("CARGO_PKG_VERSION_PATCH").to_owned()),
        ("MC_VERSION_STRING", format!("\"{}\"", env!("CARGO_PKG_VERSION"))),
        ("MC_VERSION_NUMBER", metal_candle::ffi::library::mc_version_number().to_string()),
        ("MC_ABI_VERSION", metal_candle::ffi::library::mc_abi_version().to_string()),
    ] {
        assert!(header.contains(&format!("#define {name} {value}\n")), "{name}");
    }
}

/// Each compiler that is installed, each language version, the header included twice, an unused macro each.
#[test]
fn header_compiles_without_warnings_as_c_and_cpp() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("metal_candle.h"), header()).unwrap();
    let program =
        "#include <metal_candle.h>\n#include <metal_candle.h>\nint main(void) { return MC_ABI_VERSION == 2 ? 0 : 1; }\n";
    let mut compiled = 0;
    for (compiler, extension, standards) in [
        ("gcc", "c", ["c99", "c11", "c17"].as_slice()),
        ("clang", "c", &["c99", "c11", "c17"]),
        ("g++", "cpp", &["c++11", "c++17", "c++20"]),
        ("clang++", "cpp", &["c++11", "c++17", "c++20"]),
    ] {
        let source = directory.path().join(format!("header.{extension}"));
        fs::write(&source, program).unwrap();
        for standard in standards {
            let mut command = Command::new(compiler);
            command.args([&format!("-std={standard}"), "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]);
            if compiler.starts_with("clang") {
                command.args(["-Wdocumentation", "-Wnullability-completeness"]);
            }
            let Ok(output) = command.arg("-I").arg(directory.path()).arg(&source).output() else { continue };
            assert!(output.status.success(), "{compiler} {standard}\n{}", String::from_utf8_lossy(&output.stderr));
            compiled += 1;
        }
    }
    assert!(compiled > 0, "no C compiler found");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The functions that a header declares, sorted.
fn functions(header: &str) -> Vec<String> {
    let code = header.lines().filter(|line| !line.trim_start().starts_with(['*', '/', '#'])).collect::<Vec<_>>().join("\n");
    let mut names: Vec<String> = code
        .match_indices('(')
        .filter_map(|(at, _)| {
            let name = code[..at].rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?;
            name.starts_with("mc_").then(|| name.to_owned())
        })
        .collect();
    names.sort();
    names
}

fn header() -> String {
    let mut header = String::new();
    header.push_str("/* Generated by cbindgen from src/ffi: run UPDATE_HEADER=1 cargo test --test header. Do not edit. */\n");
    write!(header, "{}", comment("@file metal_candle.h\n", &module_doc("mod"))).unwrap();
    header.push_str(TOP);
    for (name, value, brief) in [
        ("MC_VERSION_MAJOR", env!("CARGO_PKG_VERSION_MAJOR").to_owned(), "Changes with what programs must be adapted to."),
        ("MC_VERSION_MINOR", env!("CARGO_PKG_VERSION_MINOR").to_owned(), "Changes with what is new."),
        ("MC_VERSION_PATCH", env!("CARGO_PKG_VERSION_PATCH").to_owned(), "Changes with what is repaired."),
        ("MC_VERSION_NUMBER", number().to_string(), "The version as one number: major * 1000000 + minor * 1000 + patch."),
        ("MC_VERSION_STRING", format!("\"{}\"", env!("CARGO_PKG_VERSION")), "The version as text."),
    ] {
        writeln!(header, "\n/** {brief} */\n#define {name} {value}").unwrap();
    }
    header.push_str("\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n");
    for section in sections() {
        let document = module_doc(&section);
        let (title, rest) = document.split_once('\n').unwrap_or((&document, ""));
        let title = title.trim_end_matches('.');
        write!(header, "\n\n{}\n", comment(&format!("@defgroup mc_{section} {title}\n@{{\n"), rest)).unwrap();
        header.push_str(generate(&section).trim());
        header.push_str("\n\n/** @} */\n");
    }
    header.push_str(BOTTOM);
    header
}

fn number() -> u32 {
    [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")]
        .iter()
        .fold(0, |number, part| number * 1000 + part.parse::<u32>().unwrap())
}

/// The public modules of `src/ffi/mod.rs` in reading order, `boundary` apart: it exports nothing to C.
fn sections() -> Vec<String> {
    let source = fs::read_to_string(source("mod")).unwrap();
    let modules = source.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.filter(|module| *module != "boundary").map(str::to_owned).collect()
}

fn source(section: &str) -> PathBuf {
    root().join("src/ffi").join(section).with_extension("rs")
}

/// The `//!` lines at the top of a file.
fn module_doc(section: &str) -> String {
    let source = fs::read_to_string(source(section)).unwrap();
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

fn comment(first: &str, text: &str) -> String {
    let lines = first.lines().chain(text.lines()).map(|line| format!(" * {line}").trim_end().to_owned() + "\n");
    format!("/**\n{} */\n", lines.collect::<String>())
}

/// One run for a section, so that its types and functions stay together.
fn generate(section: &str) -> String {
    let mut config = Config { language: Language::C, style: Style::Type, no_includes: true, ..Config::default() };
    config.usize_is_size_t = true;
    config.line_length = 120;
    config.tab_width = 2;
    config.pointer.non_null_attribute = Some("MC_NONNULL".into());
    config.pointer.nullable_attribute = Some("MC_NULLABLE".into());
    config.function.must_use = Some("MC_NODISCARD".into());
    let bindings = Builder::new().with_config(config).with_src(source(section)).generate().unwrap();
    let mut text = Vec::new();
    bindings.write(&mut text);
    one_line_comments(&String::from_utf8(text).unwrap())
}

/// A comment of one line takes one line.
fn one_line_comments(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (mut short, mut i) = (String::new(), 0);
    while i < lines.len() {
        let comment = lines.get(i..i + 3).filter(|three| three[0].trim() == "/**" && three[2].trim() == "*/");
        match comment.and_then(|three| three[1].trim().strip_prefix('*')) {
            Some(line) if lines[i].len() + line.len() + 3 <= 125 => {
                writeln!(short, "{}{line} */", lines[i]).unwrap();
                i += 3;
            }
            _ => {
                writeln!(short, "{}", lines[i]).unwrap();
                i += 1;
            }
        }
    }
    short
}

const TOP: &str = r#"#ifndef METAL_CANDLE_H
#define METAL_CANDLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wnullability-extension"
#pragma clang attribute push(__attribute__((enum_extensibility(open))), apply_to = enum)
/** In front of a pointer that may be NULL. */
#define MC_NULLABLE _Nullable
/** In front of a pointer that must not be NULL; what happens if it is stands above. */
#define MC_NONNULL _Nonnull
#else
#define MC_NULLABLE
#define MC_NONNULL
#endif

#if defined(__GNUC__) || defined(__clang__)
/** In front of a function whose result must be looked at. */
#define MC_NODISCARD __attribute__((warn_unused_result))
#elif defined(_MSC_VER)
#define MC_NODISCARD _Check_return_
#else
#define MC_NODISCARD
#endif
"#;

const BOTTOM: &str = r"
#ifdef __cplusplus
}
#endif

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang diagnostic pop
#endif

#endif /* METAL_CANDLE_H */
";
