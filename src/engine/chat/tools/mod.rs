//! How models write calls of tools: a row for each format, a file for each way to write one.
//!
//! A way to write is a function of what follows its first mark, as much as there is of it, to the calls in that: what it finds in a
//! beginning of a text, it finds in the whole text too, so calls can be shown while they come.
//!
//! ```text
//! hermes:  <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>
//! lfm2:    <|tool_call_start|>[f(a=1)]<|tool_call_end|>
//! ```

mod json;
mod named;
mod xml;
mod python;
mod gemma;
mod harmony;
mod spelling;

use serde_json::{Map, Value as Json};

pub(in crate::engine::chat) use spelling::Spelling;
use spelling::Written;
pub(in crate::engine) use spelling::{Bare, Piece};

/// A format: the models that write so, by what their chat templates or special tokens have.
pub(super) struct ToolFormat {
    pub name: &'static str,
    /// Sets of texts; the format is a model's if all of one set are in its template or among its special tokens.
    found_by: &'static [&'static [&'static str]],
    /// Texts behind which calls stand.
    pub opens: &'static [&'static str],
    /// Whether an answer may begin with a call of these tools, without a mark.
    pub begins: fn(&str, &Tools) -> Begin,
    /// Whether the first mark is part of what `parse` reads.
    pub keeps_mark: bool,
    pub parse: fn(&str, &Tools) -> Found,
    /// Further marks that are no text: those around answers, and within calls.
    pub skipped: &'static [&'static str],
    /// What stands within calls and may be a special token.
    pub inner: &'static [&'static str],
    /// How a call is written that has to be made; the last one where none is known to be the model's.
    spellings: &'static [Spelling],
}

/// Whether an answer begins with a call.
pub(super) enum Begin {
    Yes,
    No,
    /// It depends on what follows.
    Open,
}

/// What stands in a text behind a mark.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub calls: Vec<FoundCall>,
    pub state: State,
    /// Bytes up to behind the last call that is complete.
    pub good: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// More text may belong to it.
    #[default]
    Open,
    /// Ends before this byte.
    Closed(usize),
    /// No call, or none behind the good ones.
    Invalid,
    /// The text from this byte on is a thought, up to one of these marks.
    Thought(usize, &'static [&'static str]),
    /// The text from this byte on is an answer.
    Answer(usize),
}

#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct FoundCall {
    pub name: Option<String>,
    pub id: Option<String>,
    /// Its arguments as JSON, or their beginning.
    pub arguments: String,
    pub is_complete: bool,
}

impl Found {
    fn invalid(mut self) -> Self {
        self.state = State::Invalid;
        self
    }

    /// The text ends within what may become the name of one more call.
    fn begun(mut self, name: &str) -> Self {
        if !name.trim().is_empty() {
            self.calls.push(FoundCall::default());
        }
        self
    }

    /// Whether the last call is known to be one: its name is.
    fn push(&mut self, call: FoundCall, end: usize) {
        if call.is_complete {
            self.good = end;
        }
        self.calls.push(call);
    }
}

/// The tools of a conversation: their parameters say what a value that is written as text is.
#[derive(Debug, Clone, Default)]
pub(super) struct Tools(Vec<Tool>);

#[derive(Debug, Clone)]
struct Tool {
    name: String,
    properties: Map<String, Json>,
    /// A JSON Schema.
    parameters: Json,
}

impl Tools {
    /// Definitions as chat APIs have them, with or without `{"type": "function", "function": …}` around each.
    pub fn of(json: Option<&Json>) -> Self {
        let definitions = json.and_then(Json::as_array).into_iter().flatten();
        let tool = |definition: &Json| {
            let function = definition.get("function").unwrap_or(definition);
            let parameters = function.get("parameters").or_else(|| function.get("input_schema"));
            let properties = parameters.and_then(|schema| schema.get("properties")).and_then(Json::as_object);
            let parameters = parameters.cloned().unwrap_or_else(|| Json::Object(Map::new()));
            Some(Tool {
                name: function.get("name")?.as_str()?.to_owned(),
                properties: properties.cloned().unwrap_or_default(),
                parameters,
            })
        };
        Self(definitions.filter_map(tool).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A value that the model wrote as bare text: of the parameter's type, as `_coerce` of transformers 5.24 has it; without a type
    /// what it is as JSON, or else text.
    fn value(&self, tool: &str, parameter: &str, text: &str) -> Json {
        let mut types = Vec::new();
        self.schema(tool, parameter).into_iter().for_each(|schema| add_types(schema, &mut types));
        let as_json = || serde_json::from_str::<Json>(text.trim()).ok();
        let of_type = |name: &str| match name {
            "string" => Some(Json::String(text.to_owned())),
            "integer" => as_json().filter(|value| value.as_f64().is_some_and(|number| number.fract() == 0.0)).map(|value| {
                // 3.0 is an integer to JSON Schema; what no integer holds stays as it is.
                let whole = value.as_f64().filter(|number| value.is_f64() && number.abs() < i64::MAX as f64);
                whole.map_or(value, |number| Json::from(number as i64))
            }),
            "number" => as_json().filter(Json::is_number),
            "boolean" => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" => Some(Json::Bool(true)),
                "false" | "0" => Some(Json::Bool(false)),
                _ => None,
            },
            "null" => ["null", "none"].contains(&text.trim().to_ascii_lowercase().as_str()).then_some(Json::Null),
            "array" => as_json().filter(Json::is_array),
            "object" => as_json().filter(Json::is_object),
            _ => None,
        };
        // Text is what everything could be: it comes last.
        types.sort_by_key(|name| *name == "string");
        let typed = types.iter().find_map(|name| of_type(name));
        typed.or_else(|| if types.is_empty() { as_json() } else { None }).unwrap_or_else(|| Json::String(text.to_owned()))
    }

    /// Whether a parameter is of types without texts, or of none that is named: then its value is written as JSON.
    fn is_json(&self, tool: &str, parameter: &str) -> bool {
        let mut types = Vec::new();
        self.schema(tool, parameter).into_iter().for_each(|schema| add_types(schema, &mut types));
        !types.contains(&"string")
    }

    fn schema(&self, tool: &str, parameter: &str) -> Option<&Json> {
        self.0.iter().find(|known| known.name == tool)?.properties.get(parameter)
    }

    pub fn has(&self, tool: &str) -> bool {
        self.0.iter().any(|known| known.name == tool)
    }

    /// The parameters of a tool, in their order.
    fn parameters(&self, tool: &str) -> Vec<&str> {
        let tool = self.0.iter().find(|known| known.name == tool);
        tool.into_iter().flat_map(|known| known.properties.keys().map(String::as_str)).collect()
    }
}

fn add_types<'s>(schema: &'s Json, types: &mut Vec<&'s str>) {
    match schema.get("type") {
        Some(Json::String(name)) => types.push(name),
        Some(Json::Array(names)) => types.extend(names.iter().filter_map(Json::as_str)),
        _ => {}
    }
    for union in ["anyOf", "oneOf"] {
        schema.get(union).and_then(Json::as_array).into_iter().flatten().for_each(|choice| add_types(choice, types));
    }
}

/// The format that a template and special tokens tell of; `None` if none is known.
pub(super) fn detect(contains: impl Fn(&str) -> bool) -> Option<&'static ToolFormat> {
    let is_found = |format: &&ToolFormat| format.found_by.iter().any(|set| set.iter().all(|text| contains(text)));
    TOOL_FORMATS.iter().find(is_found)
}

pub(super) fn named(name: &str) -> Option<&'static ToolFormat> {
    TOOL_FORMATS.iter().find(|format| format.name == name)
}

fn never(_: &str, _: &Tools) -> Begin {
    Begin::No
}

/// What follows spaces at `at`: how `text` goes on there.
fn skip_spaces(text: &str, at: usize) -> usize {
    text.len() - text[at..].trim_start().len()
}

/// Whether `text` has `mark` at `at`: `None` if it ends within it.
fn mark_at(text: &str, at: usize, mark: &str) -> Option<bool> {
    let rest = &text[at..];
    if rest.starts_with(mark) {
        Some(true)
    } else if mark.starts_with(rest) {
        None
    } else {
        Some(false)
    }
}

/// Behind spaces and one of `closes` at `at`, where a call has ended; without one there, the call ends at `at`.
fn close(text: &str, at: usize, closes: &[&str]) -> State {
    let end = skip_spaces(text, at);
    let found: Vec<Option<bool>> = closes.iter().map(|close| mark_at(text, end, close)).collect();
    match found.iter().position(|found| *found == Some(true)) {
        Some(which) => State::Closed(end + closes[which].len()),
        None if found.contains(&None) => State::Open,
        None => State::Closed(at),
    }
}

const JSON_CLOSES: &[&str] = &["</tool_call>"];

/// One call after another, whose arguments are JSON.
const SPELLING: Spelling = Spelling { needs: "", open: "", call: "", between: Some(""), close: "", arguments: Written::Json };
const HERMES: Spelling = Spelling {
    call: "<tool_call>\n{\"name\": \"$name\", \"arguments\": $arguments}\n</tool_call>",
    between: Some("\n"),
    ..SPELLING
};

/// The first that is found counts: a row stands before those that its models would be taken for.
pub(super) const TOOL_FORMATS: &[ToolFormat] = &[
    ToolFormat {
        // gpt-oss. <https://cookbook.openai.com/articles/openai-harmony>
        name: "harmony",
        found_by: &[&["<|channel|>", "<|message|>"]],
        opens: &["<|start|>", "<|channel|>"],
        // The prompt ends within a header.
        begins: harmony::begins,
        keeps_mark: true,
        parse: harmony::parse,
        skipped: &["<|end|>", "<|return|>", "<|call|>"],
        inner: &["<|message|>", "<|constrain|>"],
        spellings: &[Spelling {
            call: "<|channel|>commentary to=functions.$name <|constrain|>json<|message|>$arguments<|call|>",
            between: None,
            ..SPELLING
        }],
    },
    ToolFormat {
        name: "gemma4",
        found_by: &[&["<|tool_call>"]],
        opens: &["<|tool_call>"],
        begins: never,
        keeps_mark: false,
        parse: |text, _| gemma::parse(text, "<|\"|>", "<tool_call|>"),
        skipped: &["<|tool_response>"],
        inner: &["<|\"|>", "<tool_call|>"],
        spellings: &[Spelling {
            call: "<|tool_call>call:$name$arguments<tool_call|>",
            arguments: Written::Gemma("<|\"|>"),
            ..SPELLING
        }],
    },
    ToolFormat {
        name: "functiongemma",
        found_by: &[&["<start_function_call>"]],
        opens: &["<start_function_call>"],
        begins: never,
        keeps_mark: false,
        parse: |text, _| gemma::parse(text, "<escape>", "<end_function_call>"),
        skipped: &["<start_function_response>"],
        inner: &["<escape>", "<end_function_call>"],
        spellings: &[Spelling {
            call: "<start_function_call>call:$name$arguments<end_function_call>",
            arguments: Written::Gemma("<escape>"),
            ..SPELLING
        }],
    },
    ToolFormat {
        name: "deepseek",
        found_by: &[&["<｜tool▁call▁begin｜>"]],
        opens: &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"],
        begins: never,
        keeps_mark: true,
        parse: named::deepseek,
        skipped: &[],
        inner: &["<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
        spellings: &[
            Spelling {
                needs: "```json",
                open: "<｜tool▁calls▁begin｜>",
                call: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>$name\n```json\n$arguments\n```<｜tool▁call▁end｜>",
                between: Some("\n"),
                close: "<｜tool▁calls▁end｜>",
                ..SPELLING
            },
            Spelling {
                open: "<｜tool▁calls▁begin｜>",
                call: "<｜tool▁call▁begin｜>$name<｜tool▁sep｜>$arguments<｜tool▁call▁end｜>",
                close: "<｜tool▁calls▁end｜>",
                ..SPELLING
            },
        ],
    },
    ToolFormat {
        name: "kimi",
        found_by: &[&["<|tool_call_begin|>"]],
        opens: &["<|tool_calls_section_begin|>", "<|tool_call_begin|>"],
        begins: never,
        keeps_mark: true,
        parse: named::kimi,
        skipped: &[],
        inner: &["<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"],
        spellings: &[Spelling {
            open: "<|tool_calls_section_begin|>",
            call: "<|tool_call_begin|>functions.$name:0<|tool_call_argument_begin|>$arguments<|tool_call_end|>",
            between: None,
            close: "<|tool_calls_section_end|>",
            ..SPELLING
        }],
    },
    ToolFormat {
        name: "mistral",
        found_by: &[&["[TOOL_CALLS]"]],
        opens: &["[TOOL_CALLS]"],
        begins: never,
        keeps_mark: false,
        parse: named::mistral,
        skipped: &[],
        inner: &["[ARGS]", "[CALL_ID]"],
        spellings: &[
            Spelling { needs: "[ARGS]", call: "[TOOL_CALLS]$name[ARGS]$arguments", ..SPELLING },
            Spelling {
                open: "[TOOL_CALLS][",
                call: "{\"name\": \"$name\", \"arguments\": $arguments}",
                between: Some(", "),
                close: "]",
                ..SPELLING
            },
        ],
    },
    ToolFormat {
        name: "command-r",
        found_by: &[&["<|START_ACTION|>"], &["Action:", "```json", "<|CHATBOT_TOKEN|>"]],
        opens: &["<|START_ACTION|>", "Action:"],
        begins: never,
        keeps_mark: false,
        parse: |text, _| json::parse(text, &json::Style { fence: "```json", closes: &["<|END_ACTION|>", "```"], ..json::STYLE }),
        skipped: &["<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"],
        inner: &["<|END_ACTION|>"],
        spellings: &[
            Spelling {
                needs: "<|START_ACTION|>",
                open: "<|START_ACTION|>[\n",
                call: "    {\"tool_call_id\": \"0\", \"tool_name\": \"$name\", \"parameters\": $arguments}",
                between: None,
                close: "\n]<|END_ACTION|>",
                ..SPELLING
            },
            Spelling {
                open: "Action: ```json\n[\n",
                call: "    {\n        \"tool_name\": \"$name\",\n        \"parameters\": $arguments\n    }",
                between: Some(",\n"),
                close: "\n]```",
                ..SPELLING
            },
        ],
    },
    ToolFormat {
        name: "minicpm",
        found_by: &[&["<|tool_call_start|>", "```python"]],
        opens: &["<|tool_call_start|>"],
        begins: never,
        keeps_mark: false,
        parse: |text, tools| {
            python::parse(text, tools, "```python", &["```\n<|tool_call_end|>", "```<|tool_call_end|>", "<|tool_call_end|>"])
        },
        skipped: &[],
        inner: &["<|tool_call_end|>"],
        spellings: &[Spelling {
            open: "<|tool_call_start|>\n```python\n",
            call: "$name($arguments)",
            between: Some("\n"),
            close: "\n```\n<|tool_call_end|>",
            arguments: Written::Keywords,
            ..SPELLING
        }],
    },
    ToolFormat {
        name: "lfm2",
        found_by: &[&["<|tool_call_start|>"], &["<|tool_list_start|>"]],
        opens: &["<|tool_call_start|>"],
        begins: never,
        keeps_mark: false,
        parse: |text, tools| {
            const CLOSES: &[&str] = &["<|tool_call_end|>"];
            // Some answers hold JSON there.
            let calls = text.trim_start();
            match calls.strip_prefix('[').map_or(calls, str::trim_start).starts_with('{') {
                true => json::parse(text, &json::Style { closes: CLOSES, ..json::STYLE }),
                false => python::parse(text, tools, "", CLOSES),
            }
        },
        skipped: &[],
        inner: &["<|tool_call_end|>"],
        spellings: &[Spelling {
            open: "<|tool_call_start|>[",
            call: "$name($arguments)",
            between: Some(", "),
            close: "]<|tool_call_end|>",
            arguments: Written::Keywords,
            ..SPELLING
        }],
    },
    ToolFormat {
        name: "phi4-mini",
        found_by: &[&["<|tool_call|>", "<|/tool_call|>"]],
        // Its model writes the second one too.
        opens: &["<|tool_call|>", "functools"],
        begins: never,
        keeps_mark: false,
        parse: |text, _| json::parse(text, &json::Style { closes: &["<|/tool_call|>"], ..json::STYLE }),
        skipped: &[],
        inner: &["<|/tool_call|>"],
        spellings: &[Spelling {
            open: "<|tool_call|>[",
            call: "{\"name\": \"$name\", \"arguments\": $arguments}",
            between: Some(", "),
            close: "]<|/tool_call|>",
            ..SPELLING
        }],
    },
    ToolFormat {
        name: "granite",
        found_by: &[&["<|tool_call|>"], &["Granite", "<tool_call>"]],
        opens: &["<|tool_call|>", "<tool_call>"],
        begins: never,
        keeps_mark: false,
        parse: |text, _| json::parse(text, &json::Style { closes: &["</tool_call>"], ..json::STYLE }),
        skipped: &[],
        inner: &["</tool_call>"],
        spellings: &[
            Spelling {
                needs: "<|tool_call|>",
                open: "<|tool_call|>[",
                call: "{\"name\": \"$name\", \"arguments\": $arguments}",
                between: Some(", "),
                close: "]",
                ..SPELLING
            },
            HERMES,
        ],
    },
    ToolFormat {
        // Qwen3-Coder, Qwen3.5.
        name: "qwen3-xml",
        found_by: &[&["<tool_call>", "<function="]],
        opens: &["<tool_call>", "<function="],
        begins: never,
        keeps_mark: true,
        parse: xml::qwen,
        skipped: &[],
        inner: &["</function>", "</tool_call>"],
        spellings: &[Spelling {
            call: "<tool_call>\n<function=$name>\n$arguments</function>\n</tool_call>",
            between: Some("\n"),
            arguments: Written::QwenTags,
            ..SPELLING
        }],
    },
    ToolFormat {
        // Seed-OSS.
        name: "seed",
        found_by: &[&["<seed:tool_call>"]],
        opens: &["<seed:tool_call>", "<function="],
        begins: never,
        keeps_mark: true,
        parse: xml::seed,
        skipped: &[],
        inner: &["</function>", "</seed:tool_call>"],
        spellings: &[Spelling {
            call: "<seed:tool_call>\n<function=$name>\n$arguments</function>\n</seed:tool_call>",
            between: Some("\n"),
            arguments: Written::QwenTags,
            ..SPELLING
        }],
    },
    ToolFormat {
        // Nemotron Nano 2.
        name: "nemotron",
        found_by: &[&["<TOOLCALL>"]],
        opens: &["<TOOLCALL>"],
        begins: never,
        keeps_mark: false,
        parse: |text, _| json::parse(text, &json::Style { closes: &["</TOOLCALL>"], ..json::STYLE }),
        skipped: &[],
        inner: &["</TOOLCALL>"],
        spellings: &[Spelling {
            open: "<TOOLCALL>[",
            call: "{\"name\": \"$name\", \"arguments\": $arguments}",
            between: Some(", "),
            close: "]</TOOLCALL>",
            ..SPELLING
        }],
    },
    ToolFormat {
        // GLM-4.5 to 4.7.
        name: "glm4",
        found_by: &[&["<tool_call>", "<arg_key>"]],
        opens: &["<tool_call>"],
        begins: never,
        keeps_mark: false,
        parse: xml::glm,
        skipped: &[],
        inner: &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"],
        spellings: &[Spelling {
            call: "<tool_call>$name\n$arguments</tool_call>",
            between: Some("\n"),
            arguments: Written::GlmTags,
            ..SPELLING
        }],
    },
    ToolFormat {
        // Hermes, Qwen2.5, Qwen3, Granite 4, SmolLM3.
        name: "hermes",
        found_by: &[&["<tool_call>"]],
        opens: &["<tool_call>"],
        begins: never,
        keeps_mark: false,
        parse: |text, _| json::parse(text, &json::Style { closes: JSON_CLOSES, ..json::STYLE }),
        skipped: &[],
        inner: &["</tool_call>"],
        spellings: &[HERMES],
    },
    ToolFormat {
        // Functionary 3.2.
        name: "functionary",
        found_by: &[&[">>>all"], &[">>>", "<|start_header_id|>"]],
        opens: &[">>>"],
        begins: |text, _| if text.is_empty() { Begin::Open } else { Begin::Yes },
        keeps_mark: false,
        parse: named::functionary,
        skipped: &[],
        inner: &[],
        spellings: &[Spelling { call: "$name\n$arguments", between: Some(">>>"), ..SPELLING }],
    },
    ToolFormat {
        // Functionary 3.1, and custom functions of Llama 3.1.
        name: "function-tag",
        found_by: &[&["<function="]],
        opens: &["<function="],
        begins: never,
        keeps_mark: false,
        parse: named::function_tag,
        skipped: &[],
        inner: &["</function>"],
        spellings: &[Spelling { call: "<function=$name>$arguments</function>", ..SPELLING }],
    },
    ToolFormat {
        name: "llama3",
        found_by: &[&["<|python_tag|>"], &["<|start_header_id|>", "\"parameters\""]],
        opens: &["<|python_tag|>"],
        begins: json::begins,
        keeps_mark: false,
        parse: |text, tools| {
            if text.trim_start().starts_with(['{', '[']) || text.trim().is_empty() {
                json::parse(text, &json::Style { separator: ";", ..json::STYLE })
            } else {
                python::built_in(text, tools)
            }
        },
        skipped: &[],
        inner: &[],
        spellings: &[Spelling { call: "{\"name\": \"$name\", \"parameters\": $arguments}", between: None, ..SPELLING }],
    },
    ToolFormat {
        name: "gemma3",
        found_by: &[&["```tool_code"], &["<start_of_turn>"]],
        opens: &["```tool_code"],
        begins: never,
        keeps_mark: false,
        parse: |text, tools| python::parse(text, tools, "", &["```"]),
        skipped: &[],
        inner: &[],
        spellings: &[Spelling {
            open: "```tool_code\n",
            call: "$name($arguments)",
            between: Some("\n"),
            close: "\n```",
            arguments: Written::Keywords,
            ..SPELLING
        }],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_to_their_rows() {
        for (at, format) in TOOL_FORMATS.iter().enumerate() {
            let first = TOOL_FORMATS.iter().position(|other| other.name == format.name);
            assert_eq!((first, named(format.name).map(|found| found.name)), (Some(at), Some(format.name)));
        }
    }

    #[test]
    fn values_that_are_written_as_text_have_their_parameters_type() {
        let tools = serde_json::json!([{"type": "function", "function": {"name": "f", "parameters": {"properties": {
            "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": ["number", "null"]}, "b": {"type": "boolean"},
            "a": {"type": "array"}, "u": {"anyOf": [{"type": "string"}, {"type": "object"}]}}}}}]);
        let tools = Tools::of(Some(&tools));
        for (parameter, text, value) in [
            ("s", "12", "\"12\""),
            ("s", "true", "\"true\""),
            ("i", " 12\n", "12"),
            ("i", "3.0", "3"),
            ("i", "x", "\"x\""),
            ("i", "-9223372036854775808", "-9223372036854775808"),
            ("i", "1e30", "1e+30"),
            ("b", "0", "false"),
            ("n", "1.5", "1.5"),
            ("n", "None", "null"),
            ("b", "True", "true"),
            ("a", "[1, {\"x\": []}]", "[1,{\"x\":[]}]"),
            ("u", "{\"x\": 1}", "{\"x\":1}"),
            ("u", "plain", "\"plain\""),
            ("unknown", "12", "12"),
            ("unknown", "a b", "\"a b\""),
        ] {
            assert_eq!(tools.value("f", parameter, text).to_string(), value, "{parameter} {text}");
        }
    }
}
