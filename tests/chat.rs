//! Chat templates against Jinja2: our own goldens, and the real templates where a directory of them is given.

use std::path::Path;

use metal_candle::{Chat, ChatTemplate, ErrorKind};
use serde_json::{Map, Value as Json, json};

/// A chat from a golden conversation: messages, tools and further variables.
fn chat_of(conversation: &Json, unix_seconds: i64) -> Chat {
    let mut fields = conversation.as_object().unwrap().clone();
    let variables = fields.remove("kwargs").unwrap_or_else(|| json!({}));
    let mut chat = Chat::from_json(&Json::Object(fields).to_string()).unwrap();
    for (name, value) in variables.as_object().unwrap() {
        chat.set_variable_json(name, Some(&value.to_string())).unwrap();
    }
    chat.set_time(unix_seconds);
    chat
}

/// Checks every case below `dir`; returns how many of Python's own complaints we render and how many we refuse.
fn check_goldens(dir: &Path) -> (usize, usize) {
    let golden: Json = serde_json::from_str(&std::fs::read_to_string(dir.join("cases.json")).unwrap()).unwrap();
    assert_eq!(golden["now"], "2025-07-04T12:34:56");
    let (mut rendered, mut refused, mut failures) = (0, 0, Vec::new());
    for case in golden["cases"].as_array().unwrap() {
        let (name, conversation) = (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        let mut variables = golden["templates"][name].as_object().unwrap().clone();
        let file = variables.remove("file").unwrap();
        let source = std::fs::read_to_string(dir.join(file.as_str().unwrap())).unwrap();
        let template = ChatTemplate::new(&source, variables).unwrap();
        let chat = chat_of(&golden["conversations"][conversation], 1_751_632_496);
        let result = chat.render(Some(&template), case["add_generation_prompt"].as_bool().unwrap());
        let label = format!("{name} / {conversation} / {}", case["add_generation_prompt"]);
        match (&result, case["expected"].as_str(), case["error_kind"].as_str()) {
            (Ok(text), Some(expected), _) if text == expected => {}
            (Err(error), None, Some("raise_exception"))
                if error.kind() == ErrorKind::Template
                    && error.message().ends_with(&format!(": {}", case["error"].as_str().unwrap())) => {}
            (Err(error), None, Some("recursion")) if error.kind() == ErrorKind::Template => {}
            (Ok(_), None, Some("engine")) => rendered += 1,
            (Err(error), None, Some("engine")) if error.kind() == ErrorKind::Template => refused += 1,
            _ => failures.push(format!("{label}\n  expected {}{}\n  found    {result:?}", case["expected"], case["error"])),
        }
    }
    let total = golden["cases"].as_array().unwrap().len();
    assert!(failures.is_empty(), "{} of {total} cases differ:\n{}", failures.len(), failures[..failures.len().min(8)].join("\n"));
    (rendered, refused)
}

#[test]
#[ignore = "needs METAL_CANDLE_CHAT_GOLDENS: a directory with cases.json and templates/"]
fn real_templates_render_as_in_transformers() {
    let dir = std::env::var_os("METAL_CANDLE_CHAT_GOLDENS").expect("METAL_CANDLE_CHAT_GOLDENS names a directory");
    let (rendered, refused) = check_goldens(Path::new(&dir));
    println!("where Python complains itself: {rendered} rendered, {refused} refused");
}

#[allow(dead_code)]
fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Map::new()).unwrap()
}
