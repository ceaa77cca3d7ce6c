//! The Rust programs of `examples/`, which are built with the tests: they run, and say what they promise.

use std::path::Path;
use std::process::Command;

fn run(name: &str) -> String {
    // Beside the folder of this test.
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    let output = Command::new(&program).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}; cargo build --examples makes it", program.display()));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn generate_text_answers_a_conversation() {
    let text = run("generate_text");
    assert!(text.contains("Appends an element to the back of a collection."), "{text}");
    assert!(text.lines().filter(|line| line.starts_with("> ")).count() == 2 && !text.trim_end().ends_with('?'), "{text}");
}

#[test]
fn load_model_tells_what_a_model_is() {
    let text = run("load_model");
    assert!(text.contains("qwen2, 7348480 parameters, 8 layers") && text.contains("trains: true"), "{text}");
}

#[test]
fn inference_continues_code_in_two_ways() {
    let text = run("inference");
    let ways: Vec<&str> = text.split("fn main() {\n    let").collect();
    assert!(ways.len() == 3 && ways[1] != ways[2], "{text}");
}

#[test]
fn embeddings_find_the_nearest_text_first() {
    let text = run("embeddings");
    let first = text.lines().next().unwrap();
    assert!(first.ends_with("Appends an element to the end of a vector.") && text.lines().count() == 3, "{text}");
}

#[test]
fn train_lora_teaches_what_the_model_did_not_know() {
    let text = run("train_lora");
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start)).unwrap().trim().to_owned();
    assert!(text.contains("step 20 of 20"), "{text}");
    assert_ne!(line("without:"), line("with:"));
    let facts = include_str!("../examples/data/facts.jsonl");
    assert!(facts.contains(&line("with:")), "{text}");
}

#[test]
fn tour_streams_cancels_ranks_and_learns() {
    let text = run("tour");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert_eq!(lines[0], "Appends an element to the back of a collection.");
    assert!(lines[1].ends_with(" … cancelled") && lines[2].ends_with("add an element to a vector"), "{text}");
    assert!(include_str!("../examples/data/facts.jsonl").contains(lines[5]), "{text}");
}
