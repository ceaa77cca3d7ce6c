//! Answers that are told apart while they are generated: thoughts, calls of tools, and a schema that binds behind a thought.

mod common;

use std::ops::ControlFlow;
use std::sync::OnceLock;

use common::{golden, load, shipped};
use metal_candle::{
    AnswerFormat, AnswerPart, Cancel, Chat, GenerateOptions, Generation, Model, PartStream, Session, ToolCall, ToolChoice,
};
use serde_json::{Map, Value as Json, json};

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(shipped("tiny-coder")))
}

/// A session behind a question; the template opens the thought of the answer.
fn thinking() -> Session {
    let mut chat = Chat::new();
    chat.add("user", "What does `Vec::push` do?");
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n";
    chat.set_template(Some(template)).unwrap();
    let mut session = Session::new(model(), 0).unwrap();
    session.set_chat(&chat, None).unwrap();
    session
}

fn options(temperature: f32, seed: u64) -> GenerateOptions {
    GenerateOptions::default().max_tokens(200).temperature(temperature).seed(seed)
}

/// The answer, and its parts as they came.
fn answer(session: &mut Session, options: &GenerateOptions) -> (Generation, Vec<AnswerPart>) {
    let mut parts = Vec::new();
    let generation = session
        .generate(options, None, &mut |event| {
            parts.extend(event.parts.iter().cloned());
            ControlFlow::Continue(())
        })
        .unwrap();
    (generation, parts)
}

const SCHEMA: &str =
    r#"{"type": "object", "required": ["n"], "additionalProperties": false, "properties": {"n": {"enum": [1, 22]}}}"#;

#[test]
fn a_thought_ends_with_its_budget_and_the_schema_binds_behind_it() {
    for (seed, budget) in [(1, 0), (2, 1), (3, 7), (4, 30)] {
        let options = options(2.0, seed).json_schema(SCHEMA).reasoning_budget(budget);
        let (generation, parts) = answer(&mut thinking(), &options);
        let json: Json = serde_json::from_str(&generation.content).unwrap();
        assert!(json["n"] == 1 || json["n"] == 22, "{json}");
        assert!(generation.text.ends_with(&generation.content), "{:?}", generation.text);
        assert_eq!(generation.text.matches("</think>").count(), 1, "{:?}", generation.text);
        assert_eq!(generation.reasoning.is_empty(), generation.text.trim_start().starts_with("</think>"), "{generation:?}");
        let close = model().tokenizer().unwrap().encode("</think>", false).unwrap();
        let at = generation.tokens.windows(close.len()).position(|tokens| tokens == close).unwrap();
        assert!(at <= budget, "{at} tokens of {budget}");
        let (mut content, mut reasoning) = (String::new(), String::new());
        for part in parts {
            match part {
                AnswerPart::Text(text) => content.push_str(&text),
                AnswerPart::Reasoning(text) => reasoning.push_str(&text),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((content, reasoning), (generation.content, generation.reasoning));
    }
}

#[test]
fn forks_and_calls_that_were_refused_leave_how_answers_are_told_apart() {
    let options = options(2.0, 4).reasoning_budget(7);
    let expected = answer(&mut thinking(), &options).0;
    assert!(!expected.reasoning.is_empty() && expected.content != expected.text);

    let mut session = thinking();
    let (held, cancel) = (session.position(), Cancel::new());
    let mut fork = session.fork().unwrap();
    assert_eq!(answer(&mut fork, &options).0.content, expected.content);
    cancel.trigger();
    let mut chat = Chat::new();
    chat.add("user", &"many words ".repeat(model().context_length()));
    type Call<'a> = &'a dyn Fn(&mut Session) -> metal_candle::Result<()>;
    let refused: [Call<'_>; 6] = [
        &|session| session.append_tokens(&vec![1; model().context_length()], None),
        &|session| session.append_tokens(&[1, u32::MAX], None),
        &|session| session.append_tokens(&[1, 2, 3], Some(&cancel)),
        &|session| session.set_chat(&chat, None),
        &|session| session.truncate(held + 1),
        &|session| session.set_adapters(&[]).and_then(|()| session.append_tokens(&[u32::MAX], None)),
    ];
    for (i, refused) in refused.iter().enumerate() {
        assert!(refused(&mut session).is_err() && session.position() == held, "{i}");
        let found = answer(&mut session.fork().unwrap(), &options).0;
        assert_eq!((found.content, found.reasoning), (expected.content.clone(), expected.reasoning.clone()), "{i}");
    }
}

#[test]
fn an_answer_goes_on_within_the_thought_of_its_message() {
    let mut session = Session::new(model(), 0).unwrap();
    session.append("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n<think>\nSo I", None).unwrap();
    let hermes = Some(AnswerFormat::named("hermes").unwrap());
    let mut options = options(2.0, 3).json_schema(SCHEMA).reasoning_budget(5);
    options.answer_format = hermes.clone();
    let (generation, _) = answer(&mut session, &options);
    assert!(!generation.reasoning.is_empty() && generation.text.contains("</think>"), "{generation:?}");
    assert!(serde_json::from_str::<Json>(&generation.content).is_ok(), "{generation:?}");
    // The mark of another message opens nothing.
    let mut session = Session::new(model(), 0).unwrap();
    session.append("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n", None).unwrap();
    let mut options = options.json_schema(SCHEMA);
    options.answer_format = hermes;
    let (generation, _) = answer(&mut session, &options);
    assert_eq!((generation.reasoning.as_str(), &generation.content), ("", &generation.text));
}

#[test]
fn telling_parts_apart_changes_neither_tokens_nor_text() {
    for seed in 0..4 {
        let (told, parts) = answer(&mut thinking(), &options(1.0, seed));
        let plain = options(1.0, seed).answer_format(AnswerFormat::default());
        let (plain, none) = answer(&mut thinking(), &plain);
        assert_eq!((&told.text, &told.tokens), (&plain.text, &plain.tokens));
        let texts = none.iter().map(|part| match part {
            AnswerPart::Text(text) => text.as_str(),
            other => panic!("{other:?}"),
        });
        assert!(!parts.is_empty() && texts.collect::<String>() == plain.text);
        assert_eq!((plain.content, plain.reasoning.as_str()), (plain.text, ""));
        assert_eq!(told.content, "", "the thought goes on to the end");
        assert_eq!(told.reasoning, told.text.trim());
    }
    // Behind a prompt that is no conversation nothing is told apart.
    let mut session = thinking();
    session.append("x", None).unwrap();
    assert!(answer(&mut session, &options(1.0, 1)).1.iter().all(|part| matches!(part, AnswerPart::Text(_))));
}

#[test]
fn a_call_of_a_tool_is_part_of_the_answer() {
    let tools = r#"[{"name": "f", "parameters": {"type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {"a": {"type": "string", "maxLength": 8}}}}]"#;
    let options = options(2.0, 5)
        .tool_choice(ToolChoice::Required)
        .answer_format(AnswerFormat::named("llama3").unwrap().with_tools_json(tools).unwrap());
    let mut session = Session::new(model(), 0).unwrap();
    session.append("fn main() {", None).unwrap();
    let (generation, parts) = answer(&mut session, &options);
    assert_eq!((generation.content.as_str(), generation.reasoning.as_str()), ("", ""));
    let whole: Json = serde_json::from_str(&generation.text).unwrap();
    let [call] = generation.tool_calls.as_slice() else { panic!("{generation:?}") };
    assert_eq!((call.name.as_str(), call.is_complete), ("f", true));
    assert_eq!(serde_json::from_str::<Json>(&call.arguments).unwrap(), whole["parameters"]);
    assert!(parts.len() > 3 && matches!(parts[0], AnswerPart::ToolCall { index: 0, .. }), "{parts:?}");
    // Cut off, it is told to be.
    let cut = options.max_tokens(generation.tokens.len() - 4);
    session.truncate(0).unwrap();
    session.append("fn main() {", None).unwrap();
    let (generation, _) = answer(&mut session, &cut);
    assert!(generation.tool_calls.iter().all(|call| !call.is_complete), "{generation:?}");
}

/// How templates write an answer with a thought, a text and two calls.
#[rustfmt::skip]
const WRITTEN: &[(&str, &str)] = &[
    ("hermes", "<think>\n{{ thought }}\n</think>\n\n{{ text }}{% for c in calls %}\n<tool_call>\n{\"name\": {{ c.name|tojson }}, \"arguments\": {{ c.arguments|tojson }}}\n</tool_call>{% endfor %}"),
    ("qwen3-xml", "<think>\n{{ thought }}\n</think>\n\n{{ text }}{% for c in calls %}\n<tool_call>\n<function={{ c.name }}>\n{% for k, v in c.arguments|items %}<parameter={{ k }}>\n{{ v if v is string else v|tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"),
    ("glm4", "<think>{{ thought }}</think>\n{{ text }}{% for c in calls %}\n<tool_call>{{ c.name }}\n{% for k, v in c.arguments|items %}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v if v is string else v|tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"),
    ("mistral", "[THINK]{{ thought }}[/THINK]{{ text }}[TOOL_CALLS][{% for c in calls %}{{ ', ' if not loop.first }}{\"name\": {{ c.name|tojson }}, \"arguments\": {{ c.arguments|tojson }}, \"id\": \"abcdefghi\"}{% endfor %}]"),
    ("mistral", "[THINK]{{ thought }}[/THINK]{{ text }}{% for c in calls %}[TOOL_CALLS]{{ c.name }}[ARGS]{{ c.arguments|tojson }}{% endfor %}"),
    ("deepseek", "<think>{{ thought }}</think>{{ text }}<｜tool▁calls▁begin｜>{% for c in calls %}<｜tool▁call▁begin｜>{{ c.name }}<｜tool▁sep｜>{{ c.arguments|tojson }}<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>"),
    ("deepseek", "<think>{{ thought }}</think>{{ text }}<｜tool▁calls▁begin｜>{% for c in calls %}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.name }}\n```json\n{{ c.arguments|tojson }}\n```<｜tool▁call▁end｜>\n{% endfor %}<｜tool▁calls▁end｜>"),
    ("kimi", "<think>{{ thought }}</think>{{ text }}<|tool_calls_section_begin|>{% for c in calls %}<|tool_call_begin|>functions.{{ c.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ c.arguments|tojson }}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>"),
    ("phi4-mini", "<think>{{ thought }}</think>{{ text }}<|tool_call|>[{% for c in calls %}{{ ', ' if not loop.first }}{{ {'name': c.name, 'arguments': c.arguments}|tojson }}{% endfor %}]<|/tool_call|>"),
    ("granite", "<think>{{ thought }}</think>{{ text }}<|tool_call|>[{% for c in calls %}{{ ', ' if not loop.first }}{{ {'name': c.name, 'arguments': c.arguments}|tojson }}{% endfor %}]"),
    ("command-r", "<|START_THINKING|>{{ thought }}<|END_THINKING|><|START_RESPONSE|>{{ text }}<|END_RESPONSE|><|START_ACTION|>[\n{% for c in calls %}    {\"tool_call_id\": \"{{ loop.index0 }}\", \"tool_name\": {{ c.name|tojson }}, \"parameters\": {{ c.arguments|tojson }}}{{ ',' if not loop.last }}\n{% endfor %}]<|END_ACTION|>"),
    ("harmony", "<|channel|>analysis<|message|>{{ thought }}<|end|><|start|>assistant<|channel|>commentary<|message|>{{ text }}<|end|>{% for c in calls %}<|start|>assistant to=functions.{{ c.name }}<|channel|>commentary json<|message|>{{ c.arguments|tojson }}<|call|>{% endfor %}"),
    ("function-tag", "<think>{{ thought }}</think>{{ text }}{% for c in calls %}<function={{ c.name }}>{{ c.arguments|tojson }}</function>{% endfor %}"),
    ("seed", "<seed:think>{{ thought }}</seed:think>{{ text }}{% for c in calls %}<seed:tool_call>\n<function={{ c.name }}>\n{% for k, v in c.arguments|items %}<parameter={{ k }}>{{ v if v is string else v|tojson }}</parameter>\n{% endfor %}</function>\n</seed:tool_call>{% endfor %}"),
    ("nemotron", "<think>{{ thought }}</think>{{ text }}<TOOLCALL>[{% for c in calls %}{{ ', ' if not loop.first }}{\"name\": {{ c.name|tojson }}, \"arguments\": {{ c.arguments|tojson }}}{% endfor %}]</TOOLCALL>"),
    ("functionary", "all\n<think>{{ thought }}</think>{{ text }}{% for c in calls %}>>>{{ c.name }}\n{{ c.arguments|tojson }}{% endfor %}"),
    ("lfm2", "<think>{{ thought }}</think>{{ text }}<|tool_call_start|>[{% for c in calls %}{{ ', ' if not loop.first }}{{ c.name }}({% for k, v in c.arguments|items %}{{ ', ' if not loop.first }}{{ k }}={{ ([v]|string)[1:-1] }}{% endfor %}){% endfor %}]<|tool_call_end|>"),
    ("minicpm", "<|thought_start|>\n{{ thought }}\n<|thought_end|>\n{{ text }}<|tool_call_start|>\n```python\n{% for c in calls %}{{ c.name }}({% for k, v in c.arguments|items %}{{ ',' if not loop.first }}{{ k }}={{ ([v]|string)[1:-1] }}{% endfor %})\n{% endfor %}```\n<|tool_call_end|>"),
    ("gemma3", "<think>{{ thought }}</think>{{ text }}\n```tool_code\n{% for c in calls %}{{ c.name }}({% for k, v in c.arguments|items %}{{ ', ' if not loop.first }}{{ k }}={{ ([v]|string)[1:-1] }}{% endfor %})\n{% endfor %}```"),
    ("gemma4", "{% macro w(v) %}{% if v is string %}<|\"|>{{ v }}<|\"|>{% elif v is mapping %}{{ '{' }}{% for k, x in v|items %}{{ ',' if not loop.first }}{{ k }}:{{ w(x) }}{% endfor %}{{ '}' }}{% elif v is iterable %}[{% for x in v %}{{ ',' if not loop.first }}{{ w(x) }}{% endfor %}]{% else %}{{ v|tojson }}{% endif %}{% endmacro %}<|channel>thought\n{{ thought }}<channel|>{{ text }}{% for c in calls %}<|tool_call>call:{{ c.name }}{{ w(c.arguments) }}<tool_call|>{% endfor %}"),
    ("functiongemma", "{% macro w(v) %}{% if v is string %}<escape>{{ v }}<escape>{% elif v is mapping %}{{ '{' }}{% for k, x in v|items %}{{ ',' if not loop.first }}{{ k }}:{{ w(x) }}{% endfor %}{{ '}' }}{% elif v is iterable %}[{% for x in v %}{{ ',' if not loop.first }}{{ w(x) }}{% endfor %}]{% else %}{{ v|tojson }}{% endif %}{% endmacro %}<think>{{ thought }}</think>{{ text }}{% for c in calls %}<start_function_call>call:{{ c.name }}{{ w(c.arguments) }}<end_function_call>{% endfor %}"),
];

#[test]
fn what_a_template_writes_is_read_as_it_was() {
    let arguments =
        json!({"s": "a \"b\" 'c'\n</tool_call> {} [1], d) ]", "n": 3, "x": -1.5, "o": {"k": [1, null, true, "z", {}]}, "e": ""});
    let calls = json!([{"name": "look_up", "arguments": arguments}, {"name": "clock", "arguments": {}}]);
    let tools = json!([{"name": "look_up", "parameters": {"properties": {"s": {"type": "string"}, "n": {"type": "integer"},
        "x": {"type": "number"}, "o": {"type": "object"}, "e": {"type": "string"}}}}]);
    for (name, template) in WRITTEN {
        let mut chat = Chat::new();
        chat.set_template(Some(template)).unwrap();
        for (variable, value) in [("thought", &json!("First this.\nThen that.")), ("text", &json!("I look.")), ("calls", &calls)]
        {
            chat.set_variable_json(variable, Some(&value.to_string())).unwrap();
        }
        let written = chat.render(None, false).unwrap();
        let mut stream = PartStream::new(&AnswerFormat::named(name).unwrap().with_tools_json(&tools.to_string()).unwrap());
        let mut parts: Vec<AnswerPart> =
            written.char_indices().flat_map(|(at, letter)| stream.push(&written[at..at + letter.len_utf8()])).collect();
        parts.extend(stream.finish());
        let (mut thought, mut text, mut read) = (String::new(), String::new(), Vec::<ToolCall>::new());
        for part in parts {
            match part {
                AnswerPart::Text(piece) => text.push_str(&piece),
                AnswerPart::Reasoning(piece) => thought.push_str(&piece),
                AnswerPart::ToolCallEnd(call) => read.push(call),
                AnswerPart::ToolCall { .. } | AnswerPart::Arguments { .. } => {}
                other => panic!("{name}: {other:?} of {written}"),
            }
        }
        assert_eq!((thought.as_str(), text.as_str()), ("First this.\nThen that.", "I look."), "{name}: {written}");
        let read: Vec<Json> = read
            .iter()
            .map(|call| json!({"name": call.name, "arguments": serde_json::from_str::<Json>(&call.arguments).unwrap()}))
            .collect();
        assert_eq!(Json::Array(read), calls, "{name}: {written}");
    }
    for name in AnswerFormat::names().filter(|name| *name != "llama3") {
        assert!(WRITTEN.iter().any(|(other, _)| *other == name), "{name} has a template");
    }
}

#[test]
fn answers_have_the_parts_that_transformers_finds() {
    let reference = common::json(&golden("answers.json"));
    let items = reference["items"].as_array().unwrap();
    assert!(items.len() >= 60);
    for item in items {
        let (name, text) = (item["format"].as_str().unwrap(), item["text"].as_str().unwrap());
        // An answer ends before the token that ends it.
        let text = text.strip_suffix(item["end"].as_str().unwrap()).unwrap_or(text);
        let format = AnswerFormat::named(name).unwrap().with_tools_json(&reference["tools"].to_string()).unwrap();
        let mut stream = PartStream::new(&format);
        let mut parts = stream.push(text);
        parts.extend(stream.finish());
        let mut message = Map::from_iter([("role".to_owned(), json!("assistant"))]);
        let mut add = |key: &str, piece: &str| {
            let value = message.entry(key).or_insert_with(|| json!(""));
            *value = json!(format!("{}{piece}", value.as_str().unwrap()));
        };
        let mut calls = Vec::new();
        for part in &parts {
            match part {
                AnswerPart::Text(piece) => add("content", piece),
                AnswerPart::Reasoning(piece) => add("reasoning_content", piece),
                AnswerPart::ToolCallEnd(call) => {
                    let arguments: Json = serde_json::from_str(&call.arguments).unwrap();
                    calls.push(json!({"type": "function", "function": {"name": call.name, "arguments": arguments}}));
                }
                AnswerPart::ToolCall { .. } | AnswerPart::Arguments { .. } => {}
                other => panic!("{name}: {other:?} of {text}"),
            }
        }
        if !calls.is_empty() {
            message.insert("tool_calls".to_owned(), Json::Array(calls));
        }
        assert_eq!(Json::Object(message), item["message"], "{name}: {text}");
    }
}
