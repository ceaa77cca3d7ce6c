//! Every format on answers as its models write them, whole and in pieces.

use rayon::prelude::*;

use super::*;
use crate::engine::random::Random;

/// What is compared: adjacent pieces are one, and those of calls stand together.
fn merged(parts: Vec<AnswerPart>) -> Vec<AnswerPart> {
    let mut merged: Vec<AnswerPart> = Vec::new();
    for part in parts {
        match (merged.last_mut(), part) {
            (Some(AnswerPart::Text(last)), AnswerPart::Text(more))
            | (Some(AnswerPart::Reasoning(last)), AnswerPart::Reasoning(more)) => {
                last.push_str(&more);
            }
            (Some(AnswerPart::Arguments { index, json }), AnswerPart::Arguments { index: same, json: more })
                if *index == same =>
            {
                json.push_str(&more);
            }
            (_, part) => merged.push(part),
        }
    }
    merged
}

fn whole(format: &AnswerFormat, text: &str) -> Vec<AnswerPart> {
    let mut stream = PartStream::new(format);
    let mut parts = stream.push(text);
    parts.extend(stream.finish());
    assert_eq!(stream.seen, text, "{format:?}: no byte is lost");
    merged(parts)
}

fn split(format: &AnswerFormat, text: &str, random: &mut Random, most: usize) -> Vec<AnswerPart> {
    let mut stream = PartStream::new(format);
    let (mut parts, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let len = boundary(rest, 1 + below(random, most.min(rest.len())));
        parts.extend(stream.push(&rest[..len]));
        rest = &rest[len..];
    }
    parts.extend(stream.finish());
    assert_eq!(stream.seen, text, "{format:?}: no byte is lost");
    merged(parts)
}

/// The first byte from `at` on at which a character begins, or the text ends.
fn boundary(text: &str, at: usize) -> usize {
    (at..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

fn below(random: &mut Random, bound: usize) -> usize {
    random.below(bound)
}

/// What an answer is, on a line: `T(text)`, `R(thought)`, `C(name {arguments})`, with the id in front and `…` behind what is cut off.
fn shown(parts: &[AnswerPart]) -> String {
    let (mut shown, mut pieces) = (String::new(), std::collections::HashMap::<u32, (String, String)>::new());
    for part in parts {
        match part {
            AnswerPart::Text(text) => shown.push_str(&format!("T({text})")),
            AnswerPart::Reasoning(text) => shown.push_str(&format!("R({text})")),
            AnswerPart::ToolCall { index, name } => {
                assert!(pieces.insert(*index, (name.clone(), String::new())).is_none());
            }
            AnswerPart::Arguments { index, json } => pieces.get_mut(index).unwrap().1.push_str(json),
            AnswerPart::ToolCallEnd(call) => {
                assert_eq!(pieces[&call.index], (call.name.clone(), call.arguments.clone()), "the pieces are the call");
                if call.is_complete {
                    assert!(serde_json::from_str::<Json>(&call.arguments).unwrap().is_object(), "{}", call.arguments);
                }
                let id = call.id.as_ref().map(|id| format!("{id}:")).unwrap_or_default();
                let end = if call.is_complete { "" } else { "…" };
                shown.push_str(&format!("C({id}{} {}{end})", call.name, call.arguments));
            }
            AnswerPart::RejectedToolCall { index } => shown.push_str(&format!("X({})", pieces[index].0)),
        }
    }
    shown
}

const TOOLS: &str = r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
    "a": {"type": "integer"}, "s": {"type": "string"}, "o": {"type": "object"}}}}}]"#;

fn of(name: &str) -> AnswerFormat {
    AnswerFormat::named(name).unwrap().with_tools_json(TOOLS).unwrap()
}

/// Format, answer, and its parts.
#[rustfmt::skip]
const ANSWERS: &[(&str, &str, &str)] = &[
    ("hermes", "Hello!  ", "T(Hello!  )"),
    ("hermes", " a <b> </b> < tool", "T( a <b> </b> < tool)"),
    ("hermes", "<think>\nSo.\n</think>\n\nYes.\n", "R(So.)T(Yes.\n)"),
    ("hermes", "<think>\n\n</think>\n\nYes.", "T(Yes.)"),
    ("hermes", "<think>cut off </thi", "R(cut off </thi)"),
    ("hermes", "Write <think> and </think>.", "T(Write <think> and </think>.)"),
    ("hermes", " \n<think>So.</think>\n<think>Or so.</think>Yes: <think>.", "R(So.Or so.)T(Yes: <think>.)"),
    ("hermes", "Ok.<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<think>Hm.</think>Yes.", "T(Ok.)C(f {})R(Hm.)T(Yes.)"),
    ("mistral", "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"na", "C(ZlazJIUex:f {\"a\": 1})T(, {\"na)"),
    ("mistral", "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]fu", "C(PtxkW1nIG:f {})T([TOOL_CALLS]fu)"),
    ("lfm2", "<|tool_call_start|>[f(a=1), fu", "C(f {\"a\": 1})T(, fu)"),
    ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_call_begin|>functions.fu", "C(functions.f:0:f {})T(<|tool_call_begin|>functions.fu)"),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁call▁begin｜>fu", "C(f {})T(<｜tool▁call▁begin｜>fu)"),
    ("qwen3-xml", "<tool_call><function=f></function><function=fu", "C(f {})T(<function=fu)"),
    ("phi4-mini", "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}, {\"type\": \"function\"", "C(f {})T(, {\"type\": \"function\")"),
    ("hermes", "Wait.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", "T(Wait.)C(f {\"a\": 1})"),
    ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>{\"arguments\": {\"s\": \"x\"}, \"name\": \"g\", \"id\": \"7\"}</tool_call> Done.",
        "C(f {})C(7:g {\"s\": \"x\"})T(Done.)"),
    ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"</tool_call> \\\" \\n {}\", \"o\": {\"x\": [1, {\"y\": null}]}}}</tool_call>",
        "C(f {\"s\": \"</tool_call> \\\" \\n {}\", \"o\": {\"x\": [1, {\"y\": null}]}})"),
    ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1", "C(f {\"a\": 1…)"),
    ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}", "C(f {\"a\": 1})"),
    ("hermes", "<tool_call>{\"name\": \"f", "T(<tool_call>{\"name\": \"f)"),
    ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": oh}}</tool_call>!",
        "X(f)T(<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": oh}}</tool_call>!)"),
    ("hermes", "<tool_call> is a tag, <tool_call>{\"x\": 1}</tool_call> too", "T(<tool_call> is a tag, <tool_call>{\"x\": 1}</tool_call> too)"),
    ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>", "C(f {\"a\": 1})"),
    ("hermes", "<tool_call>{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"a\": 2}}}</tool_call>", "C(f {\"a\": 2})"),
    ("qwen3-xml", "Now.\n<tool_call>\n<function=f>\n<parameter=a>\n12\n</parameter>\n<parameter=s>\n12\nx </parameter> y\n</parameter>\n</function>\n</tool_call>",
        "T(Now.)C(f {\"a\": 12, \"s\": \"12\\nx </parameter> y\"})"),
    ("qwen3-xml", "<tool_call>\n<function=g>\n</function>\n</tool_call><tool_call>\n<function=f>\n<parameter=o>\n{\"k\": [1]}\n</parameter>\n</function>\n</tool_call>",
        "C(g {})C(f {\"o\": {\"k\":[1]}})"),
    ("qwen3-xml", "<tool_call>\n<function=f>\n<parameter=a>\n12\n</parameter>\n<parameter=s>\n1", "C(f {\"a\": 12…)"),
    ("qwen3-xml", "<tool_call> {}", "T(<tool_call> {})"),
    ("qwen3-xml", "<tool_call>\n<function=f>\n<parameter=o>\n{\"k\": [\"x</parameter></function>y\"]}\n</parameter>\n</function>\n</tool_call>!",
        "C(f {\"o\": {\"k\":[\"x</parameter></function>y\"]}})T(!)"),
    ("qwen3-xml", "<function=f>\n<parameter=o>\n{\"k\n</parameter>\n</function>\n</tool_call>", "C(f {\"o\": \"{\\\"k\"})"),
    ("seed", "<seed:think>Hm.</seed:think>\nNow.\n\n<seed:tool_call>\n<function=f>\n<parameter=a>12</parameter>\n<parameter=s>12\nx </parameter> y</parameter>\n</function>\n</seed:tool_call>",
        "R(Hm.)T(Now.)C(f {\"a\": 12, \"s\": \"12\\nx </parameter> y\"})"),
    ("seed", "<seed:tool_call><function=g></function></seed:tool_call>\n<seed:tool_call>\n<function=f>\n<parameter=o>{\"k\": [1]}</parameter>\n</function>\n</seed:tool_call>!",
        "C(g {})C(f {\"o\": {\"k\":[1]}})T(!)"),
    ("seed", "<seed:tool_call> {}", "T(<seed:tool_call> {})"),
    ("nemotron", "Hm.\n<TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]</TOOLCALL>",
        "T(Hm.)C(f {\"a\": 1})C(g {})"),
    ("nemotron", "<TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"a\": 1", "C(f {\"a\": 1…)"),
    ("glm4", "<think>Hm.</think>\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>5</arg_value>\n<arg_key>a</arg_key>\n<arg_value>5</arg_value>\n</tool_call>",
        "R(Hm.)C(f {\"s\": \"5\", \"a\": 5})"),
    ("glm4", "<tool_call>g</tool_call>", "C(g {})"),
    ("glm4", "<tool_call>f\n<arg_key>o</arg_key>\n<arg_value>{\"k\": \"</arg_value>\"}</arg_value>\n<arg_key>s</arg_key>\n<arg_value>\"x</arg_value>\n</tool_call>",
        "C(f {\"o\": {\"k\":\"</arg_value>\"}, \"s\": \"\\\"x\"})"),
    ("glm4", "<tool_call>f\n<arg_key>o</arg_key>\n<arg_value>{\"k\": \"</arg_value>\n</tool_call>", "C(f {\"o\": \"{\\\"k\\\": \\\"\"})"),
    ("llama3", "{\"name\": \"f\", \"parameters\": {\"a\": 1}}; {\"name\": \"g\", \"parameters\": {}}", "C(f {\"a\": 1})C(g {})"),
    ("llama3", "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "C(f {\"a\": 1})"),
    ("llama3", "<|python_tag|>brave_search.call(query=\"a (b)\", n=2)", "C(brave_search {\"query\": \"a (b)\", \"n\": 2})"),
    ("llama3", "<|python_tag|>brave_search.call(query=\"a", "C(brave_search {…)"),
    ("llama3", "<|python_tag|>print(1)", "T(<|python_tag|>print(1))"),
    ("llama3", " {\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"a\": 1}}", "C(f {\"a\": 1})"),
    ("llama3", "{\"name\": \"Alice\", \"age\": 30}", "T({\"name\": \"Alice\", \"age\": 30})"),
    ("llama3", "{\"function\": \"\"}", "T({\"function\": \"\"})"),
    ("llama3", "{\"age\": 30, \"name\": \"f\"}", "T({\"age\": 30, \"name\": \"f\"})"),
    ("llama3", "{\"x\": 1} is JSON", "T({\"x\": 1} is JSON)"),
    ("llama3", "It is {\"name\": \"f\", \"parameters\": {}}", "T(It is {\"name\": \"f\", \"parameters\": {}})"),
    ("mistral", "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"id\": \"abc\"}, {\"name\": \"g\", \"arguments\": {}}]", "C(abc:f {\"a\": 1})C(HR1JSrsHM:g {})"),
    ("mistral", "[THINK]Hm.[/THINK]Ok.[TOOL_CALLS]f[ARGS]{\"s\": \"[ARGS]\"}[TOOL_CALLS]g[CALL_ID]9[ARGS]{}", "R(Hm.)T(Ok.)C(frWjzr4ZI:f {\"s\": \"[ARGS]\"})C(9:g {})"),
    ("mistral", "[TOOL_CALLS]f{\"a\": 1}", "C(ZlazJIUex:f {\"a\": 1})"),
    ("mistral", "[TOOL_CALLS]f[ARGS]{\"a\":", "C(f {\"a\":…)"),
    ("gemma4", "<|channel>thought\nHm.\n<channel|><|tool_call>call:f{a:1,s:<|\"|>x, }\"y<|\"|>,o:{k:[true,<|\"|>z<|\"|>]}}<tool_call|>",
        "R(Hm.)C(f {\"a\": 1, \"s\": \"x, }\\\"y\", \"o\": {\"k\":[true,\"z\"]}})"),
    ("functiongemma", "<start_function_call>call:f{s:<escape>Zürich<escape>}<end_function_call><start_function_call>call:g{}<end_function_call>",
        "C(f {\"s\": \"Zürich\"})C(g {})"),
    ("functiongemma", "<start_function_call>call:f{a:1,s:<escape>Z", "C(f {\"a\": 1…)"),
    ("gemma3", "I call it.\n```tool_code\nf(a=1, s='it\\'s')\n```", "T(I call it.)C(f {\"a\": 1, \"s\": \"it's\"})"),
    ("lfm2", "<|tool_call_start|>[f(a=1, s=\"x) ]\", o={'k': [None, True, 1.5]}), g()]<|tool_call_end|>Done.",
        "C(f {\"a\": 1, \"s\": \"x) ]\", \"o\": {\"k\":[null,true,1.5]}})C(g {})T(Done.)"),
    ("gemma3", "```tool_code\nprint(f(a=1))\n```", "C(f {\"a\": 1})"),
    ("gemma3", "```tool_code\nprint( f(a=(1, 2)) )\ng()\n```Done.", "C(f {\"a\": [1,2]})C(g {})T(Done.)"),
    ("gemma3", "```tool_code\nprint(x)\n```", "T(```tool_code\nprint(x)\n```)"),
    ("lfm2", "<|tool_call_start|>[f(7, s=\"\"\"a\n\"b\"\"\"\")]<|tool_call_end|>", "X(f)T(<|tool_call_start|>[f(7, s=\"\"\"a\n\"b\"\"\"\")]<|tool_call_end|>)"),
    ("lfm2", "<|tool_call_start|>[f(7, s=\"\"\"a\n\"b\"\"\")]<|tool_call_end|>", "C(f {\"a\": 7, \"s\": \"a\\n\\\"b\"})"),
    ("lfm2", "<|tool_call_start|>[f(a=1, s=\"x", "C(f {\"a\": 1…)"),
    ("lfm2", "<|tool_call_start|>[f(s=\"\\ud83d\\ude00 \\/\\u00e9\")]<|tool_call_end|>", "C(f {\"s\": \"😀 \\\\/é\"})"),
    ("lfm2", "<|tool_call_start|>[f(s=\"\\ud83d\")]<|tool_call_end|>", "X(f)T(<|tool_call_start|>[f(s=\"\\ud83d\")]<|tool_call_end|>)"),
    ("lfm2", "<|tool_call_start|>[ {\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\"}]<|tool_call_end|>Done.", "C(f {\"a\": 1})C(g {})T(Done.)"),
    ("minicpm", "<|thought_start|>\nHm.\n<|thought_end|>\n<|tool_call_start|>\n```python\nf(a=1)\ng()\n```\n<|tool_call_end|>", "R(Hm.)C(f {\"a\": 1})C(g {})"),
    ("phi4-mini", "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]<|/tool_call|>", "C(f {\"a\": 1})"),
    ("phi4-mini", "functools[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]", "C(f {\"a\": 1})"),
    ("phi4-mini", "import functools\nfunctools.cache(f)", "T(import functools\nfunctools.cache(f))"),
    ("granite", "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]", "C(f {\"a\": 1})C(g {})"),
    ("granite", "Here is my thought process:\n\nHm.\n\nHere is my response:\n\nYes.", "R(Hm.)T(Yes.)"),
    ("command-r", "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"f\", \"parameters\": {\"a\": 1}}\n]<|END_ACTION|>",
        "R(Hm.)C(0:f {\"a\": 1})"),
    ("command-r", "<|START_RESPONSE|>Yes.<|END_RESPONSE|>", "T(Yes.)"),
    ("command-r", "Action: ```json\n[\n    {\n        \"tool_name\": \"f\",\n        \"parameters\": {}\n    }\n]```", "C(f {})"),
    ("deepseek", "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "T(Ok.)C(f {\"a\": 1})C(g {})"),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"s\": \"```\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "C(f {\"s\": \"```\"})"),
    ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|><|tool_calls_section_end|>",
        "C(functions.f:0:f {\"a\": 1})"),
    ("functionary", "all\nHello.>>>f\n{\"a\": 1}", "T(Hello.)C(f {\"a\": 1})"),
    ("functionary", ">>> f\n{\"a\": 1}", "C(f {\"a\": 1})"),
    ("functionary", "all\nHello. >>> f\n{\"a\": 1}", "T(Hello.)C(f {\"a\": 1})"),
    ("function-tag", "<function=f>{\"a\": 1}</function><function=g>{}</function>", "C(f {\"a\": 1})C(g {})"),
    ("harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "R(Hm.)T(Yes.)"),
    ("harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>",
        "R(Hm.)C(f {\"a\": 1})"),
    ("harmony", "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{\"a\":", "C(f {\"a\":…)"),
    ("harmony", " to=functions.f<|channel|>commentary json<|message|>{\"a\": 1}<|call|>", "C(f {\"a\": 1})"),
    ("harmony", " to be", "T( to be)"),
    ("harmony", "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.g<|message|>{}<|call|>", "T(I look.)C(g {})"),
];

#[test]
fn answers_of_each_format_fall_into_their_parts() {
    for (name, text, expected) in ANSWERS {
        assert_eq!(shown(&whole(&of(name), text)), *expected, "{name}: {text}");
    }
    for name in AnswerFormat::names() {
        assert!(ANSWERS.iter().any(|(other, ..)| *other == name), "{name} has an answer");
    }
}

#[test]
fn without_calls_they_stay_text_and_thoughts_are_told_apart() {
    for (name, text, expected) in ANSWERS {
        let shown = shown(&whole(&of(name).without_calls(), text));
        assert!(!shown.contains("C(") && !shown.contains("X("), "{name}: {shown}");
        // A channel of gpt-oss is none without the format's own reading.
        assert!(!expected.starts_with("R(Hm.)") || shown.starts_with("R(Hm.)"), "{name}: {shown}");
    }
}

#[test]
fn any_split_gives_the_same_parts() {
    ANSWERS.par_iter().enumerate().for_each(|(i, (name, text, _))| {
        let (mut random, format) = (Random::stream(7, i as u64), of(name));
        let expected = whole(&format, text);
        for round in 0..10_000 {
            let found = split(&format, text, &mut random, [2, 5, 20, 100][round % 4]);
            assert_eq!(found, expected, "{name}: {text}");
        }
    });
}

#[test]
fn no_text_loses_a_byte_and_every_split_of_it_is_the_same() {
    let mut random = Random::new(Some(11));
    let names: Vec<&str> = AnswerFormat::names().collect();
    for round in 0..3000 {
        let name = names[round % names.len()];
        let format = of(name);
        // Pieces of real answers of this format and another one, in disorder.
        let mut text = String::new();
        for _ in 0..1 + below(&mut random, 6) {
            let own: Vec<&str> = ANSWERS.iter().filter(|(other, ..)| *other == name).map(|(_, text, _)| *text).collect();
            let source = if below(&mut random, 4) == 0 {
                ANSWERS[below(&mut random, ANSWERS.len())].1
            } else {
                own[below(&mut random, own.len())]
            };
            let from = boundary(source, below(&mut random, source.len()));
            let to = boundary(source, from + below(&mut random, source.len() - from + 1));
            text.push_str(&source[from..to]);
        }
        let expected = whole(&format, &text);
        for most in [1, 4, 30] {
            assert_eq!(split(&format, &text, &mut random, most), expected, "{name}: {text}");
        }
    }
}

/// Letter by letter these took a minute each, when every letter was a reason to read all again.
#[test]
fn long_answers_come_in_any_pieces_as_well() {
    let string = "x y \\n".repeat(2000);
    let list = |item: &str| vec![item; 2000].join(",");
    let spaces = " \n".repeat(10_000);
    for (name, text, calls) in [
        ("hermes", format!("<tool_call>{{\"name\": \"f\", \"arguments\": {{\"s\": \"{string}\"}}}}</tool_call>Done."), 1),
        ("hermes", format!("<tool_call>{{\"name\": \"f\", \"arguments\": {{\"o\": [{}]}}}}</tool_call>", list("{\"k\": 1}")), 1),
        ("gemma4", format!("<|tool_call>call:f{{o:[{}]}}<tool_call|>", list("1")), 1),
        ("lfm2", format!("<|tool_call_start|>[f(s=\"{string}\"), g()]<|tool_call_end|>"), 2),
        ("qwen3-xml", format!("<tool_call>\n<function=f>\n<parameter=s>\n{string}\n</parameter>\n</function>\n</tool_call>"), 1),
        ("hermes", format!("a{spaces}b"), 0),
        ("hermes", format!("<think>a{spaces}b</think>{spaces}c"), 0),
        ("llama3", format!("{spaces}c"), 0),
    ] {
        let (format, mut random) = (of(name), Random::new(Some(3)));
        let expected = whole(&format, &text);
        let ends = expected.iter().filter(|part| matches!(part, AnswerPart::ToolCallEnd(call) if call.is_complete)).count();
        assert_eq!(ends, calls, "{name}");
        for most in [1, 300] {
            assert!(split(&format, &text, &mut random, most) == expected, "{name}: {}", &text[..40]);
        }
    }
}

#[test]
fn an_object_is_a_call_if_its_name_is_a_tools_and_arguments_follow() {
    let none = AnswerFormat::named("llama3").unwrap();
    for (text, without_tools, with_tools) in [
        ("{\"name\": \"f\", \"parameters\": {}}", "C(f {})", "C(f {})"),
        ("{\"name\": \"g\", \"parameters\": {}}", "C(g {})", "T({\"name\": \"g\", \"parameters\": {}})"),
        ("{\"name\": \"f\"}", "T({\"name\": \"f\"})", "C(f {})"),
        ("{\"name\": \"f\", \"age\": 3}", "T({\"name\": \"f\", \"age\": 3})", "T({\"name\": \"f\", \"age\": 3})"),
    ] {
        assert_eq!(shown(&whole(&none, text)), without_tools);
        assert_eq!(shown(&whole(&of("llama3"), text)), with_tools);
    }
}

#[test]
fn a_message_that_is_gone_on_with_may_be_within_a_thought() {
    for (message, text, expected) in [
        ("assistant\n<think>\nSo I", " see.\n</think>\n\nYes.", "R(see.)T(Yes.)"),
        ("assistant\n<think>\nSo.\n</think>\n\nY", "es.", "T(es.)"),
        ("assistant\nY", "es.", "T(es.)"),
    ] {
        assert_eq!(shown(&whole(&of("hermes").continuing(message), text)), expected, "{message}");
    }
}

#[test]
fn a_thought_that_the_prompt_has_opened_is_one() {
    for (name, prompt, text, expected) in [
        ("hermes", "<|im_start|>assistant\n<think>\n", "So.\n</think>\n\nYes.", "R(So.)T(Yes.)"),
        ("hermes", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "Yes.", "T(Yes.)"),
        ("mistral", "[/INST][THINK]", "So.[/THINK]Yes.", "R(So.)T(Yes.)"),
        ("gemma4", "<|turn>model\n<|channel>thought\n", "So.\n<channel|>Yes.", "R(So.)T(Yes.)"),
        (
            "harmony",
            "<|start|>assistant<|channel|>analysis<|message|>",
            "So.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            "R(So.)T(Yes.)",
        ),
    ] {
        assert_eq!(shown(&whole(&of(name).behind(prompt), text)), expected, "{name}");
    }
}

#[test]
fn the_format_is_that_of_the_template() {
    for (template, tools, thoughts) in [
        ("{{ '<tool_call>' }}{{ '</think>' }}", Some("hermes"), 1),
        ("<tool_call>\n<function=example_function_name>", Some("qwen3-xml"), 0),
        ("<seed:think><seed:tool_call>\n<function=example_function_name>", Some("seed"), 1),
        ("{{ '<TOOLCALL>[' }}{{ '</think>' }}", Some("nemotron"), 1),
        ("{{ '<tool_call>' ~ tc.name }}<arg_key>", Some("glm4"), 0),
        ("[TOOL_CALLS] [THINK]", Some("mistral"), 1),
        ("<|tool_call_start|>", Some("lfm2"), 0),
        ("<|tool_call_start|>```python", Some("minicpm"), 0),
        ("<|start_header_id|> respond in the format {\"name\": …, \"parameters\": …}", Some("llama3"), 0),
        ("<|channel|>analysis<|message|>", Some("harmony"), 0),
        ("<start_of_turn>model", Some("gemma3"), 0),
        ("<|im_start|>", None, 0),
    ] {
        let format = AnswerFormat::detect(template, None);
        assert_eq!((format.tools.map(|format| format.name), format.thoughts.len()), (tools, thoughts), "{template}");
    }
    assert!(AnswerFormat::detect("<|im_start|>", None).is_plain());
    let error = AnswerFormat::named("nobody").unwrap_err();
    assert!(error.message().contains("hermes, ") || error.message().contains(", hermes"), "{error}");
}

#[test]
fn calls_are_told_while_they_come() {
    let mut stream = PartStream::new(&of("hermes"));
    assert_eq!(stream.push("<tool_call>{\"name\": \"f\","), [AnswerPart::ToolCall { index: 0, name: "f".into() }]);
    assert_eq!(stream.push(" \"arguments\": {\"s\": \"lo"), [AnswerPart::Arguments { index: 0, json: "{\"s\": \"lo".into() }]);
    assert_eq!(stream.push("ng"), [AnswerPart::Arguments { index: 0, json: "ng".into() }]);
    let call = ToolCall { index: 0, id: None, name: "f".into(), arguments: "{\"s\": \"long\"}".into(), is_complete: true };
    let json = call.to_json().to_string();
    assert_eq!(json, r#"{"id":"call_0","type":"function","function":{"name":"f","arguments":"{\"s\": \"long\"}"}}"#);
    assert_eq!(stream.push("\"}}"), [AnswerPart::Arguments { index: 0, json: "\"}".into() }, AnswerPart::ToolCallEnd(call)]);
    assert_eq!(stream.push("</tool_call>"), []);
}

/// What a template writes of an assistant's message, and the prompt before it.
fn written(template: &ChatTemplate, messages: &Json, tools: &Json) -> Result<(String, String)> {
    let render = |messages: &[Json], generates| {
        let chat = Chat::from_json(&serde_json::json!({"messages": messages, "tools": tools}).to_string()).unwrap();
        chat.render(Some(template), generates)
    };
    let messages = messages.as_array().unwrap();
    let (prompt, all) = (render(&messages[..messages.len() - 1], true)?, render(messages, false)?);
    // Some prompts open or close a thought, which earlier messages do not have.
    let same = prompt.bytes().zip(all.bytes()).take_while(|(a, b)| a == b).count();
    let same = (0..=same).rev().find(|at| all.is_char_boundary(*at)).unwrap_or(0);
    Ok((all[..same].to_owned(), all[same..].to_owned()))
}

#[test]
#[ignore = "needs METAL_CANDLE_CHAT_GOLDENS: a directory with cases.json and templates/"]
fn calls_that_real_templates_write_are_read_as_they_were() {
    let folder = std::env::var_os("METAL_CANDLE_CHAT_GOLDENS").expect("METAL_CANDLE_CHAT_GOLDENS names a directory");
    let folder = std::path::Path::new(&folder);
    let golden: Json = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let properties = serde_json::json!({"s": {"type": "string", "description": "s"}, "n": {"type": "integer", "description": "n"},
        "o": {"type": "object", "description": "o"}});
    let tools = serde_json::json!([{"type": "function", "function": {"name": "look_up", "description": "Looks up.",
        "parameters": {"type": "object", "properties": properties, "required": ["s"]}}}]);
    let arguments = serde_json::json!({"s": "a \"b\" 'c' {} [1], d) Zürich", "n": 3, "o": {"k": [1, true, "z", {}]}});
    let (mut read, mut unread, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for (name, variables) in golden["templates"].as_object().unwrap() {
        let mut variables = variables.as_object().unwrap().clone();
        let file = variables.remove("file").unwrap();
        let source = std::fs::read_to_string(folder.join(file.as_str().unwrap())).unwrap();
        let format = AnswerFormat::detect(&source, None).with_tools_json(&tools.to_string()).unwrap();
        let template = ChatTemplate::new(&source, variables).unwrap();
        // Arguments are text to some.
        let answers = [arguments.clone(), Json::from(arguments.to_string())].map(|arguments| {
            let call = serde_json::json!({"id": "abcdefghi", "type": "function", "function": {"name": "look_up", "arguments": arguments}});
            let messages = serde_json::json!([{"role": "user", "content": "Where?"},
                {"role": "assistant", "content": "", "tool_calls": [call]}]);
            written(&template, &messages, &tools)
        });
        // A template that writes no calls leaves no trace of one.
        let Some((prompt, answer)) = answers.iter().flatten().find(|(_, answer)| answer.contains("look_up")) else {
            unread.push(format!("{name}: writes no calls"));
            continue;
        };
        if format.tools.is_none() {
            unread.push(format!("{name}: no format is known by it: {answer}"));
            continue;
        }
        let calls: Vec<ToolCall> = whole(&format.behind(prompt), answer)
            .into_iter()
            .filter_map(|part| match part {
                AnswerPart::ToolCallEnd(call) => Some(call),
                _ => None,
            })
            .collect();
        let is_same =
            |call: &ToolCall| call.name == "look_up" && serde_json::from_str::<Json>(&call.arguments).unwrap() == arguments;
        if matches!(&calls[..], [call] if is_same(call)) {
            read.push(name);
        } else {
            wrong.push(format!("{name}: {answer}\n  {calls:?}"));
        }
    }
    println!("read: {read:?}\nnot read:\n{}", unread.join("\n"));
    assert!(wrong.is_empty() && !read.is_empty(), "{}", wrong.join("\n"));
}
