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

/// The README, the guides, and what each language has beside its package.
fn documents() -> impl Iterator<Item = PathBuf> {
    let guides = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    guides.chain(
        ["README.md", "go/README.md", "zig/README.md", "python/README.md", "examples/c/README.md"].map(|name| root().join(name)),
    )
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

/// Swift and C++ stand in README.md alone, Go, Zig and Python also in that of their package: tests/swift, tests/cpp, tests/go.sh,
/// tests/hosts.sh and python/tests make programs of them. Rust is compiled as documentation of src/lib.rs.
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
                    let own = Path::new(language).join("README.md");
                    assert!(
                        path == root().join("README.md") || path == root().join(own),
                        "{name}: nothing compiles its {language}"
                    )
                }
                "json" => {
                    let examples = directory.path().join("examples.jsonl");
                    fs::write(&examples, code).unwrap();
                    assert!(metal_candle::Dataset::load_jsonl(&examples).unwrap().len() > 1, "{name}:\n{code}");
                }
                "toml" | "text" => {}
                // Lines of a shell, which tests/hosts.sh types, or tests/c/run.sh.
                "" => assert!(path.ends_with("README.md"), "{name}: what language?"),
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
fn each_section_says_what_it_is_for_with_an_example_its_neighbours_and_its_threads() {
    let header = header();
    for (name, section) in parts(&header) {
        let document = &section[..section.find(" */").unwrap()];
        let sentences = document.matches(['.', ':']).count();
        assert!(sentences > 2 && document.contains(" * @see @ref "), "{name}: what it is for, and its neighbours");
        assert!(document.contains(" * @code\n") || name == "abi1", "{name}: no example");
        for neighbour in document.split("@ref ").skip(1) {
            let neighbour = neighbour.split(|c: char| !c.is_alphanumeric()).next().unwrap();
            assert!(sections().iter().any(|section| section == neighbour), "{name}: there is no section {neighbour}");
        }
        assert_eq!(document.matches("Threads: ").count(), 1, "{name}: its rule for threads");
    }
}

/// A handle without `const` is a call's alone: a section whose functions take some says so, and so does none that has no such function.
#[test]
fn each_function_has_its_parameters_documented_and_its_threads_where_its_section_says_others() {
    let header = header();
    let mut exceptions = 0;
    for (section, text) in parts(&header) {
        let rule = text[text.find("Threads: ").unwrap()..].split(" */").next().unwrap();
        let mut alone = false;
        for name in functions(text) {
            // `mc_x_free()` is also mentioned in comments: the declaration is the mention outside of one.
            let call = format!("{name}(");
            let mut mentions = text.match_indices(&call).map(|(at, _)| at);
            let declaration = mentions.find(|&at| text[..at].rfind("*/") > text[..at].rfind("/**")).unwrap();
            let document = &text[text[..declaration].rfind("/**").unwrap()..declaration];
            let arguments = &text[declaration..declaration + text[declaration..].find(");").unwrap()];
            for argument in arguments[name.len() + 1..].split(',').filter(|argument| argument.trim() != "void") {
                alone |= argument.trim().starts_with("mc_") && argument.contains(" *MC_NONNULL") && !argument.ends_with(" out");
                let argument = argument.rsplit([' ', '*']).next().unwrap();
                assert!(document.contains(&format!("@param {argument} ")), "{name}: {argument} is not documented");
            }
            if let Some(threads) = document.split("Threads: ").nth(1) {
                let only = threads.split('*').next().unwrap().trim();
                assert!(!["any.", "any, exclusive."].contains(&only), "{name}: the section says that already");
                exceptions += 1;
            }
            let status = text[..declaration].ends_with("mc_status ");
            let documented = document.contains("@return MC_OK") || document.contains("@return as ");
            assert!(!status || name == "mc_error_code" || documented, "{name}: its statuses are not documented");
            let before = text[..declaration].trim_end();
            let checked = before.ends_with("MC_NODISCARD mc_status") || before.ends_with("MC_NODISCARD\nmc_status");
            assert!(!status || name == "mc_error_code" || checked, "{name}: the status can be ignored");
        }
        // The names of ABI 1 follow the rules of the functions that they are.
        assert!(section == "abi1" || alone == rule.contains("`const`"), "{section}: its rule for threads, {rule}");
    }
    assert!(exceptions > 5);
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
    // Zig's packages hold it themselves.
    for package in ["zig/build.zig.zon", "examples/zig/build.zig.zon"] {
        let text = fs::read_to_string(root().join(package)).unwrap();
        assert!(text.contains(&format!("    .version = \"{}\",\n", env!("CARGO_PKG_VERSION"))), "{package}");
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

/// The sections of a header by their names, each from its title on.
fn parts(header: &str) -> Vec<(&str, &str)> {
    header.split("@defgroup ").skip(1).map(|part| (part.split(' ').next().unwrap(), part)).collect()
}

fn header() -> String {
    let sections = sections();
    let generated: Vec<_> = sections.iter().map(|section| generate(section)).collect();
    let mut header = String::new();
    header.push_str("/* Generated by cbindgen from src/ffi: run UPDATE_HEADER=1 cargo test --test header. Do not edit. */\n");
    let contents = sections.iter().map(|section| {
        let (title, _) = titled(section);
        let (name, what) = title.split_once(": ").unwrap();
        format!("- @ref {section} \"{name}\": {what}.")
    });
    let introduction = document("mod").replace("@sections", &contents.collect::<Vec<_>>().join("\n"));
    write!(header, "{}", comment("@file metal_candle.h\n", &introduction)).unwrap();
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
    header.push_str(
        "\n/* How a call ended, and the handles that calls work on: each is explained in the section that it belongs to. */\n",
    );
    for (early, _) in &generated {
        early.iter().for_each(|item| write!(header, "\n{item}\n").unwrap());
    }
    for (section, (_, items)) in sections.iter().zip(&generated) {
        let (title, rest) = titled(section);
        write!(header, "\n\n{}\n", comment(&format!("@defgroup {section} {title}\n@{{\n"), &rest)).unwrap();
        header.push_str(&items.join("\n\n"));
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

/// The `//!` lines at the top of a file. A line `@snippet chat.c turn`, as Doxygen has it, becomes that region of the example.
fn document(section: &str) -> String {
    let source = fs::read_to_string(source(section)).unwrap();
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let lines = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).map(|line| match line.strip_prefix("@snippet ") {
        Some(region) => format!("@code\n{}\n@endcode", snippet(region)),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A section's title, which ends with a full stop in its file, and what follows it.
fn titled(section: &str) -> (String, String) {
    let document = document(section);
    let (title, rest) = document.split_once(".\n").unwrap_or_else(|| panic!("src/ffi/{section}.rs: no title"));
    (title.to_owned(), rest.to_owned())
}

/// What stands in a file of `examples/c/` between two lines that say `/* [name] */`, as it can stand in a comment.
fn snippet(region: &str) -> String {
    let (file, name) = region.split_once(' ').unwrap();
    let source = fs::read_to_string(root().join("examples/c").join(file)).unwrap();
    let parts: Vec<&str> = source.split(&format!("/* [{name}] */\n")).collect();
    let &[_, code, _] = parts.as_slice() else { panic!("{file}: expected one region {name}") };
    let code = code.trim_end_matches(' ');
    let indentation = code.len() - code.trim_start().len();
    let lines = code.lines().map(|line| line.get(indentation..).unwrap_or("").replace("/* ", "// ").replace(" */", ""));
    let code = lines.collect::<Vec<_>>().join("\n");
    assert!(!code.contains("/*") && !code.contains("*/"), "{file}: a comment of several lines in {name}");
    code
}

fn comment(first: &str, text: &str) -> String {
    let lines = first.lines().chain(text.lines()).map(|line| format!(" * {line}").trim_end().to_owned() + "\n");
    format!("/**\n{} */\n", lines.collect::<String>())
}

/// What a section declares: what others need before it, the status and handles, and the rest. One run of cbindgen for a section, so that
/// its types and functions stay together.
fn generate(section: &str) -> (Vec<String>, Vec<String>) {
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
    let text = String::from_utf8(text).unwrap();
    let items = text.trim().split("\n\n");
    let (early, rest): (Vec<&str>, Vec<&str>) = items.partition(|item| {
        let last = item.lines().last().unwrap();
        last == "} mc_status;" || last.starts_with("typedef struct mc_")
    });
    let early = early.into_iter().map(|item| item.replacen("\n */", &format!("\n * @ingroup {section}\n */"), 1));
    (early.map(|item| one_line_comments(&item)).collect(), rest.into_iter().map(one_line_comments).collect())
}

/// A comment of one line takes one line.
fn one_line_comments(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (mut short, mut i) = (Vec::new(), 0);
    while i < lines.len() {
        let comment = lines.get(i..i + 3).filter(|three| three[0].trim() == "/**" && three[2].trim() == "*/");
        match comment.and_then(|three| three[1].trim().strip_prefix('*')) {
            Some(line) if lines[i].len() + line.len() + 3 <= 125 => {
                short.push(format!("{}{line} */", lines[i]));
                i += 3;
            }
            _ => {
                short.push(lines[i].to_owned());
                i += 1;
            }
        }
    }
    short.join("\n")
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
