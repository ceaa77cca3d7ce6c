//! Files of examples: every form that is read, and every line that is refused by its number. Which tokens are targets is checked
//! beside the code, in `src/engine/dataset/tests.rs`.

use std::io::Write;

use metal_candle::{Chat, Dataset, Error, ErrorKind};

fn load(bytes: &[u8]) -> Result<Dataset, Error> {
    let mut file = tempfile::NamedTempFile::with_suffix(".jsonl").unwrap();
    file.write_all(bytes).unwrap();
    Dataset::load_jsonl(file.path())
}

#[test]
fn every_form_is_read() {
    for (text, len) in [
        ("", 0),
        ("\n\r\n \t\n", 0),
        ("\u{feff}", 0),
        (r#"{"text": ""}"#, 1),
        (r#"{"text": "a"}"#, 1),
        ("\u{feff}{\"text\": \"a\"}\r\n{\"text\": \"\u{feff}\\n\"}\r\n", 2),
        (r#"{"prompt": "a", "completion": "b"}"#, 1),
        (r#"{"completion": "b", "text": null, "prompt": "a"}"#, 1),
        (r#"{"messages": [{"role": "user", "content": "a"}]}"#, 1),
        (r#"{"tools": [{"type": "function"}], "messages": [{"role": "assistant", "tool_calls": []}]}"#, 1),
        (
            r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}], "tools": []}"#,
            1,
        ),
    ] {
        assert_eq!(load(text.as_bytes()).unwrap().len(), len, "{text}");
    }
}

#[test]
fn the_example_has_thirty_facts() {
    let dataset = Dataset::load_jsonl("examples/data/facts.jsonl").unwrap();
    assert_eq!(dataset.len(), 30);
}

#[test]
fn a_line_that_is_no_example_is_refused_by_its_number() {
    let forms = "expected messages and perhaps tools, prompt and completion, or text, found";
    for (line, expected) in [
        ("{}", format!("{forms} nothing")),
        (r#"{"text": null}"#, format!("{forms} nothing")),
        (r#"{"texts": "a"}"#, format!("{forms} texts")),
        (r#"{"text": "a", "id": 1}"#, format!("{forms} id, text")),
        (r#"{"text": "a", "tools": []}"#, format!("{forms} text, tools")),
        (r#"{"prompt": "a"}"#, format!("{forms} prompt")),
        (r#"{"prompt": "a", "completion": null}"#, format!("{forms} prompt")),
        (r#"{"messages": [], "text": "a"}"#, format!("{forms} messages, text")),
        (r#"{"text": 1}"#, "text: expected a string, found a number".into()),
        (r#"{"prompt": {}, "completion": "b"}"#, "prompt: expected a string or an array of messages, found an object".into()),
        (r#"{"prompt": "a", "completion": ["b"]}"#, "completion: expected a string, as the prompt is, found an array".into()),
        (
            r#"{"prompt": [], "completion": "b"}"#,
            "completion: expected an array of messages, as the prompt is, found a string".into(),
        ),
        (r#"{"prompt": ["a"], "completion": []}"#, "prompt: messages[0]: expected an object, found a string".into()),
        (r#"{"prompt": [], "completion": [{}]}"#, "completion: messages[0].role: expected a string, found nothing".into()),
        (r#"{"prompt": [], "completion": [], "tools": {}}"#, "tools: expected an array, found an object".into()),
        (
            r#"{"prompt": "a", "completion": "b", "tools": []}"#,
            "tools: expected a prompt and a completion of messages, found strings".into(),
        ),
        (r#"{"messages": {}}"#, "messages: expected an array, found an object".into()),
        (r#"{"messages": [], "tools": "clock"}"#, "tools: expected an array, found a string".into()),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 1}]}"#,
            "messages[1].content: expected a string or an array of parts, found a number".into(),
        ),
        ("[]", "example: expected an object, found an array".into()),
        (r#"{"text": "a"} {"text": "b"}"#, "column 15: expected JSON: trailing characters".into()),
        (r#"{"text": "a"#, "column 11: expected JSON: EOF while parsing a string".into()),
        (r#"{"text": "\ud800"}"#, "column 17: expected JSON: unexpected end of hex escape".into()),
    ] {
        let file = format!("{{\"text\": \"a\"}}\n\n{line}\n{{\"text\": \"never read\"}}");
        let error = load(file.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "{line}");
        let (place, message) = error.message().split_once(": ").unwrap();
        assert!(place.ends_with(".jsonl, line 3"), "{error}");
        assert_eq!(message, expected, "{line}");
    }
    let error = load(&format!("{{\"text\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes()).unwrap_err();
    assert!(error.message().ends_with("expected JSON: recursion limit exceeded"), "{error}");
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_offset() {
    let error = load(b"{\"text\": \"a\"}\n{\"text\": \"\xe9\"}\n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUtf8);
    assert!(error.message().ends_with(".jsonl, line 2: expected UTF-8, found byte 0xe9 at offset 10"), "{error}");
}

#[test]
fn a_line_without_an_end_is_refused_before_it_fills_the_memory() {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(1 << 40).unwrap(); // a hole, not a terabyte
    let error = Dataset::load_jsonl(path.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    assert!(error.message().ends_with(", line 1: expected up to 8388608 bytes, found more"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Dataset::load_jsonl("no/such/file.jsonl").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().starts_with("no/such/file.jsonl: "), "{error}");
    assert_eq!(Dataset::load_jsonl("tests").unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn examples_of_all_kinds_are_counted() {
    let mut dataset = Dataset::new();
    assert!(dataset.is_empty());
    dataset.add_text("a");
    dataset.add_completion("a", "b");
    dataset.add_chat(&Chat::new());
    assert_eq!((dataset.len(), dataset.is_empty()), (3, false));
}
