//! Answers that have to call a tool, or must not: whatever the sampling, a required call is one in the format's own words, whose
//! arguments conform to the tool's schema.

mod common;

use std::ops::ControlFlow;

use common::{json, load, shipped};
use metal_candle::{
    AnswerFormat, AnswerPart, Chat, ErrorKind, FinishReason, GenerateOptions, Generation, Model, Session, TokenEvent, ToolChoice,
};
use serde_json::{Value as Json, json};

/// A model that has the marks of all formats as special tokens, in the place of its last ones.
fn with_special_marks() -> (tempfile::TempDir, Model) {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(shipped("tiny-coder")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = directory.path().join("tokenizer.json");
    let mut tokenizer = json(&path);
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    let mut freed = Vec::new();
    for _ in MARKS {
        freed.push(match merges.pop().unwrap() {
            Json::Array(pair) => pair.iter().map(|part| part.as_str().unwrap()).collect::<String>(),
            pair => pair.as_str().unwrap().replace(' ', ""),
        });
    }
    for (mark, word) in MARKS.iter().zip(freed) {
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let id = vocabulary.remove(&word).unwrap();
        vocabulary.insert((*mark).to_string(), id.clone());
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
        }));
    }
    std::fs::write(path, tokenizer.to_string()).unwrap();
    let model = load(directory.path());
    (directory, model)
}

const MARKS: &[&str] = &[
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
    "<|call|>",
    "<|start|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|\"|>",
    "<start_function_call>",
    "<end_function_call>",
    "<escape>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "<|tool_call_start|>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "</function>",
];

/// Numbers as of a linear congruential generator.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }
}

/// A schema of one value.
fn schema(numbers: &mut Numbers, depth: usize) -> Json {
    match numbers.below(if depth == 0 { 11 } else { 8 }) {
        0 => json!({"type": "string", "maxLength": 6, "description": "short"}),
        1 => json!({"type": "string", "minLength": 2, "maxLength": 5}),
        2 => json!({"type": "string", "enum": ["celsius", "fahrenheit", "5", "a \"b\"", "x\ny"]}),
        3 => json!({"type": "string", "pattern": "^[a-c]{2,4}/[0-9]$"}),
        4 => json!({"type": "integer", "minimum": -20, "maximum": 1000}),
        5 => json!({"type": "number", "minimum": 0, "exclusiveMaximum": 2}),
        6 => json!({"type": "boolean"}),
        7 => json!({"enum": [1, 2.5, true, "one"]}),
        8 => {
            let items = schema(numbers, 1);
            json!({"type": "array", "items": items, "minItems": numbers.below(2), "maxItems": 2 + numbers.below(2)})
        }
        9 => json!({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]}),
        _ => object(numbers, 1),
    }
}

fn object(numbers: &mut Numbers, depth: usize) -> Json {
    let (mut properties, mut required) = (serde_json::Map::new(), Vec::new());
    for key in ["city", "unit_2", "n", "flag"].iter().take(1 + numbers.below(4)) {
        properties.insert((*key).to_string(), schema(numbers, depth));
        if numbers.below(2) == 0 {
            required.push(*key);
        }
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// Whether a value conforms to a schema that is made above.
fn conforms(value: &Json, schema: &Json) -> bool {
    let letters = |text: &str| text.chars().count() as u64;
    let of_type = match schema["type"].as_str() {
        None => true,
        Some("string") => value.as_str().is_some_and(|text| {
            schema["minLength"].as_u64().is_none_or(|least| letters(text) >= least)
                && schema["maxLength"].as_u64().is_none_or(|most| letters(text) <= most)
                && schema.get("pattern").is_none_or(|_| {
                    text.split_once('/').is_some_and(|(word, digit)| {
                        (2..=4).contains(&word.len())
                            && word.chars().all(|letter| ('a'..='c').contains(&letter))
                            && digit.len() == 1
                            && digit.as_bytes()[0].is_ascii_digit()
                    })
                })
        }),
        Some("integer" | "number") => value.as_f64().is_some_and(|number| {
            (schema["type"] == "number" || number.fract() == 0.0)
                && schema["minimum"].as_f64().is_none_or(|least| number >= least)
                && schema["maximum"].as_f64().is_none_or(|most| number <= most)
                && schema["exclusiveMaximum"].as_f64().is_none_or(|most| number < most)
        }),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("array") => value.as_array().is_some_and(|items| {
            items.iter().all(|item| conforms(item, &schema["items"]))
                && items.len() as u64 >= schema["minItems"].as_u64().unwrap()
                && items.len() as u64 <= schema["maxItems"].as_u64().unwrap()
        }),
        Some("object") => value.as_object().is_some_and(|fields| {
            fields.iter().all(|(key, value)| schema["properties"].get(key).is_some_and(|schema| conforms(value, schema)))
                && schema["required"].as_array().unwrap().iter().all(|key| fields.contains_key(key.as_str().unwrap()))
        }),
        Some(other) => panic!("{other}"),
    };
    let is_member = |values: &Json| values.as_array().unwrap().iter().any(|member| member == value);
    let is_case = |cases: &Json| cases.as_array().unwrap().iter().any(|case| conforms(value, case));
    of_type && schema.get("enum").is_none_or(is_member) && schema.get("anyOf").is_none_or(is_case)
}

fn tools(numbers: &mut Numbers) -> Json {
    let parameters = [object(numbers, 0), object(numbers, 0)];
    json!([
        {"type": "function", "function": {"name": "get_weather", "parameters": parameters[0]}},
        {"type": "function", "function": {"name": "f2", "parameters": parameters[1]}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn answer(model: &Model, format: &str, tools: &Json, choice: ToolChoice, seed: u64) -> Generation {
    let options = GenerateOptions::default()
        .max_tokens(160)
        .temperature(2.0)
        .seed(seed)
        .answer_format(AnswerFormat::named(format).unwrap().with_tools_json(&tools.to_string()).unwrap())
        .tool_choice(choice);
    model
        .generate("fn main() {", &options, None, &mut |_| ControlFlow::Continue(()))
        .unwrap_or_else(|e| panic!("{format}: {}", e.details()))
}

#[test]
fn required_calls_conform_at_temperature_two_in_every_format() {
    let (_directory, special) = with_special_marks();
    let plain = load(shipped("tiny-coder"));
    for format in AnswerFormat::names() {
        for model in [&plain, &special] {
            let (mut finished, mut numbers) = (0, Numbers(5));
            for seed in 0..6 {
                let tools = tools(&mut numbers);
                let choice = match seed % 3 {
                    0 => ToolChoice::Function("f2".to_string()),
                    _ => ToolChoice::Required,
                };
                let answer = answer(model, format, &tools, choice.clone(), seed);
                let shown = format!("{format}, {tools}: {:?} is {:?} {:?}", answer.text, answer.content, answer.tool_calls);
                // Cut off, it is the beginning of calls.
                if answer.finish_reason != FinishReason::Eos {
                    continue;
                }
                assert_eq!(answer.content.trim(), "", "{shown}");
                finished += 1;
                assert!(!answer.tool_calls.is_empty(), "{shown}");
                assert!(choice == ToolChoice::Required || answer.tool_calls.len() == 1, "{shown}");
                for call in &answer.tool_calls {
                    assert!(call.is_complete, "{shown}");
                    let arguments: Json = serde_json::from_str(&call.arguments).unwrap();
                    let mut definitions = tools.as_array().unwrap().iter().map(|tool| &tool["function"]);
                    let tool = definitions.find(|tool| tool["name"] == call.name.as_str()).expect(&shown);
                    assert!(choice == ToolChoice::Required || call.name == "f2", "{shown}");
                    match tool.get("parameters") {
                        None => assert_eq!(arguments, json!({}), "{shown}"),
                        Some(parameters) => assert!(conforms(&arguments, parameters), "{shown}"),
                    }
                }
            }
            assert!(finished >= 2, "{format}: answers that end by themselves");
        }
    }
}

#[test]
fn greedy_answers_call_too_and_stream_their_calls() {
    let model = load(shipped("tiny-coder"));
    let mut session = Session::new(&model, 0).unwrap();
    let mut chat = Chat::new();
    chat.add("user", "What is the weather?");
    session.set_chat(&chat, None).unwrap();
    let format = AnswerFormat::named("hermes").unwrap().with_tools_json(&tools(&mut Numbers(1)).to_string()).unwrap();
    let options =
        GenerateOptions::default().max_tokens(100).answer_format(format).tool_choice(ToolChoice::Function("now".to_string()));
    let mut told = Vec::new();
    let answer = session.generate(&options, None, &mut |event: &TokenEvent| {
        told.extend(event.parts.clone());
        ControlFlow::Continue(())
    });
    let answer = answer.unwrap();
    assert_eq!(told[0], AnswerPart::ToolCall { index: 0, name: "now".to_string() });
    assert_eq!(answer.text, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>");
    assert_eq!((answer.finish_reason, answer.tool_calls.len()), (FinishReason::Eos, 1));
}

#[test]
fn a_thought_that_the_prompt_has_opened_comes_first() {
    let model = load(shipped("tiny-coder"));
    let tools = tools(&mut Numbers(2)).to_string();
    for (format, open) in [("hermes", "<think>\n"), ("harmony", "<|start|>assistant<|channel|>analysis<|message|>")] {
        let options = GenerateOptions::default()
            .max_tokens(120)
            .answer_format(AnswerFormat::named(format).unwrap().with_tools_json(&tools).unwrap())
            .tool_choice(ToolChoice::Function("now".to_string()))
            .reasoning_budget(5);
        let answer = model.generate(&format!("fn main() {{{open}"), &options, None, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(!answer.reasoning.is_empty() && answer.content.is_empty(), "{format}: {answer:?}");
        assert_eq!(
            (answer.finish_reason, answer.tool_calls[0].name.as_str()),
            (FinishReason::Eos, "now"),
            "{format}: {answer:?}"
        );
    }
}

#[test]
fn with_none_no_call_is_opened() {
    let (_directory, model) = with_special_marks();
    let mark = model.tokenizer().unwrap().token_id("<tool_call>").unwrap();
    let format = AnswerFormat::named("hermes").unwrap().with_tools_json("[]").unwrap();
    // What a model would open a call with, were it free to.
    let options = |tool_choice| {
        GenerateOptions::default()
            .max_tokens(4)
            .logit_bias([(mark, 1000.0)])
            .answer_format(format.clone())
            .tool_choice(tool_choice)
    };
    let free = model.generate("fn main() {", &options(ToolChoice::Auto), None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(free.tokens[0], mark);
    let none = model.generate("fn main() {", &options(ToolChoice::None), None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(!none.tokens.contains(&mark) && none.tool_calls.is_empty());
}

#[test]
fn what_cannot_be_required_is_refused_by_name() {
    let model = load(shipped("tiny-coder"));
    let refused = |format: Option<&str>, tools: Json, choice: ToolChoice, json_schema: Option<&str>| {
        let answer_format = format.map(|name| AnswerFormat::named(name).unwrap().with_tools_json(&tools.to_string()).unwrap());
        let json_schema = json_schema.map(str::to_string);
        let mut options = GenerateOptions::default().max_tokens(1).tool_choice(choice);
        (options.answer_format, options.json_schema) = (answer_format, json_schema);
        model.generate("fn", &options, None, &mut |_| ControlFlow::Continue(())).unwrap_err()
    };
    let tool = |property: Json| json!([{"name": "f", "parameters": {"type": "object", "properties": {"a": property}}}]);
    let required = || ToolChoice::Required;
    let text = || json!({"type": "string"});
    for (error, kind, names) in [
        (refused(None, json!([]), required(), None), ErrorKind::Unsupported, "answer_format"),
        (refused(Some("hermes"), json!([]), required(), None), ErrorKind::InvalidArgument, "expected tools"),
        (refused(Some("hermes"), tool(text()), ToolChoice::Function("g".into()), None), ErrorKind::InvalidArgument, "\"g\""),
        (refused(Some("hermes"), tool(text()), required(), Some("{}")), ErrorKind::InvalidArgument, "json_schema"),
        (refused(Some("hermes"), tool(json!({"not": {}})), required(), None), ErrorKind::InvalidArgument, "tool_choice: "),
        (
            refused(Some("hermes"), tool(json!({"oneOf": [{"type": "string"}, {"minLength": 1}]})), required(), None),
            ErrorKind::InvalidArgument,
            "tool_choice: oneOf: expected cases",
        ),
        (
            refused(Some("glm4"), tool(json!({"type": "string", "format": "date"})), required(), None),
            ErrorKind::Unsupported,
            "a: format",
        ),
        (
            refused(Some("qwen3-xml"), tool(json!({"type": "string", "pattern": "^a|b"})), required(), None),
            ErrorKind::Unsupported,
            "pattern",
        ),
        (
            refused(Some("gemma4"), tool(json!({"type": "object", "minProperties": 1})), required(), None),
            ErrorKind::Unsupported,
            "minProperties",
        ),
        (
            refused(Some("lfm2"), json!([{"name": "f", "parameters": {"allOf": []}}]), required(), None),
            ErrorKind::Unsupported,
            "allOf",
        ),
        (refused(Some("lfm2"), json!([{"name": "a b", "parameters": {}}]), required(), None), ErrorKind::Unsupported, "\"a b\""),
        (refused(Some("hermes"), json!([{"name": ""}]), required(), None), ErrorKind::InvalidArgument, "expected a name"),
        (
            refused(Some("hermes"), json!([{"name": ""}]), ToolChoice::Function(String::new()), None),
            ErrorKind::InvalidArgument,
            "expected a name",
        ),
        (
            refused(Some("hermes"), tool(json!({"enum": ["x".repeat(70_000)]})), required(), None),
            ErrorKind::InvalidArgument,
            "at most 65536 bytes in a schema",
        ),
    ] {
        assert!(error.kind() == kind && error.message().contains(names), "{names}: {error:?}");
    }
    assert_eq!(ToolChoice::named("required"), ToolChoice::Required);
    assert_eq!(ToolChoice::named("f"), ToolChoice::Function("f".to_string()));
}

/// The arguments of the one call of a whole answer; `None` if it was cut off.
fn required(model: &Model, format: &str, tools: &Json, seed: u64) -> Option<(String, Json)> {
    let name = tools[0]["name"].as_str().unwrap().to_string();
    let answer = answer(model, format, tools, ToolChoice::Function(name), seed);
    if answer.finish_reason != FinishReason::Eos {
        return None;
    }
    let shown = format!("{format}: {:?} is {:?} {:?}", answer.text, answer.content, answer.tool_calls);
    assert!(answer.content.trim().is_empty() && answer.tool_calls.len() == 1 && answer.tool_calls[0].is_complete, "{shown}");
    let arguments = serde_json::from_str(&answer.tool_calls[0].arguments).expect(&shown);
    Some((answer.tool_calls[0].name.clone(), arguments))
}

#[test]
fn texts_within_values_neither_end_them_nor_change() {
    let (_directory, special) = with_special_marks();
    let plain = load(shipped("tiny-coder"));
    let texts =
        json!(["x</arg_value>y", "x</parameter>\n</function>y", "a/b \\/", "😀\u{7f}\u{1}", "\"]})'", "```\n</tool_call>"]);
    let parameters = json!({
        "type": "object",
        "properties": {
            "list": {"type": "array", "items": {"type": "string", "enum": texts}, "minItems": 1, "maxItems": 3},
            "object": {
                "type": "object", "properties": {"free": {"type": "string", "maxLength": 8}}, "required": ["free"],
                "additionalProperties": false
            },
        },
        "required": ["list", "object"],
        "additionalProperties": false
    });
    let tools = json!([{"name": "f", "parameters": parameters}]);
    for format in AnswerFormat::names() {
        for model in [&plain, &special] {
            let finished = (0..20).filter_map(|seed| required(model, format, &tools, seed)).take(2);
            let conforming = finished.map(|(_, arguments)| assert!(conforms(&arguments, &parameters), "{format}: {arguments}"));
            assert_eq!(conforming.count(), 2, "{format}: answers that end by themselves");
        }
    }
}

#[test]
fn a_name_with_quotes_stays_whole() {
    let model = load(shipped("tiny-coder"));
    let tools = json!([{"name": "\"say \\ \"hi\"\"", "parameters": {}}]);
    let (name, arguments) = required(&model, "hermes", &tools, 0).unwrap();
    assert_eq!((json!(name), arguments), (tools[0]["name"].clone(), json!({})));
}

#[test]
fn without_properties_no_argument_is_invented() {
    let model = load(shipped("tiny-coder"));
    for parameters in [
        json!({"type": "object", "properties": {}}),
        json!({"type": ["object", "null"], "properties": {}, "required": [], "description": "none"}),
        json!({"properties": {}, "additionalProperties": false}),
    ] {
        let tools = json!([{"name": "f", "parameters": parameters}]);
        for format in AnswerFormat::names() {
            let (_, arguments) = required(&model, format, &tools, 3).unwrap();
            assert_eq!(arguments, json!({}), "{format}: {parameters}");
        }
    }
    // Where others are asked for, they may come.
    let open = json!({"type": "object", "properties": {}, "additionalProperties": {"type": "boolean"}, "minProperties": 1});
    let (_, arguments) =
        (0..9).find_map(|seed| required(&model, "hermes", &json!([{"name": "f", "parameters": open}]), seed)).unwrap();
    assert!(!arguments.as_object().unwrap().is_empty());
}

#[test]
fn a_hundred_ordinary_tools_can_be_required() {
    let model = load(shipped("tiny-coder"));
    let tool = |n: usize| {
        let property = |key: &str, mut schema: Json| {
            schema["description"] = json!(format!("What the {key} of the request number {n} is, {}", "in many words ".repeat(4)));
            (format!("{key}_{n}"), schema)
        };
        let properties: serde_json::Map<String, Json> = [
            property("query", json!({"type": "string"})),
            property("limit", json!({"type": "integer", "minimum": 1, "maximum": 100 + n, "default": 10})),
            property("kind", json!({"type": "string", "enum": ["new", "old", format!("kind {n}")]})),
            property("exact", json!({"type": "boolean", "examples": [true]})),
            property("tags", json!({"type": "array", "items": {"type": "string"}, "maxItems": 3})),
            property("page", json!({"anyOf": [{"type": "integer"}, {"type": "null"}]})),
        ]
        .into_iter()
        .collect();
        json!({"name": format!("tool_{n}"), "parameters": {"type": "object", "properties": properties, "required": []}})
    };
    let tools = Json::Array((0..100).map(tool).collect());
    assert!(tools[0]["parameters"].to_string().len() > 900 && tools.to_string().len() > 90_000);
    for format in ["hermes", "lfm2", "qwen3-xml"] {
        let answer = answer(&model, format, &tools, ToolChoice::Required, 1);
        assert!(answer.tool_calls[0].name.starts_with("tool_"), "{format}: {:?}", answer.text);
    }
}

#[test]
fn a_token_that_closes_a_thought_and_goes_on_is_not_chosen() {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(shipped("tiny-coder")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    // The mark is several tokens; two that are merged last are given up for its beginning and for one that goes on behind it.
    let path = directory.path().join("tokenizer.json");
    let mut tokenizer = json(&path);
    let mut ids = Vec::new();
    for word in ["</think", ">{"] {
        let freed = match tokenizer["model"]["merges"].as_array_mut().unwrap().pop().unwrap() {
            Json::Array(pair) => pair.iter().map(|part| part.as_str().unwrap()).collect::<String>(),
            pair => pair.as_str().unwrap().replace(' ', ""),
        };
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let id = vocabulary.remove(&freed).unwrap();
        vocabulary.insert(word.to_string(), id.clone());
        ids.push(id.as_u64().unwrap() as u32);
    }
    std::fs::write(path, tokenizer.to_string()).unwrap();
    let model = load(directory.path());
    let close = model.tokenizer().unwrap().token_id(">").unwrap();
    let options = GenerateOptions::default()
        .max_tokens(40)
        // Each once: the beginning of the mark, what goes on behind it, and its plain end.
        .logit_bias([(ids[0], 1200.0), (ids[1], 1100.0), (close, 1000.0)])
        .presence_penalty(500.0)
        .answer_format(AnswerFormat::named("hermes").unwrap())
        .json_schema(r#"{"type": "array", "items": {"type": "boolean"}, "maxItems": 2}"#);
    let answer = model.generate("fn main() {<think>\n", &options, None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(answer.tokens[..2], [ids[0], close], "{answer:?}");
    assert!(serde_json::from_str::<Json>(&answer.content).unwrap().is_array(), "{answer:?}");
}
