//! Answers that keep to a JSON schema: each that ends by itself is a JSON text, and conforms, whatever the sampling.

mod common;

use std::ops::ControlFlow;
use std::sync::OnceLock;

use common::{load, shipped};
use metal_candle::{Chat, Error, ErrorKind, FinishReason, GenerateOptions, Generation, Model, SamplingOptions, Session};
use serde_json::Value as Json;

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(shipped("tiny-coder")))
}

fn session() -> Session {
    let mut chat = Chat::new();
    chat.add("user", "What does `Vec::push` do?");
    let mut session = Session::new(model(), 0).unwrap();
    session.set_chat(&chat, None).unwrap();
    session
}

fn options(schema: &str, temperature: f32, seed: u64) -> GenerateOptions {
    GenerateOptions::default().max_tokens(300).temperature(temperature).seed(seed).json_schema(schema)
}

fn answer(options: &GenerateOptions) -> Generation {
    session().generate(options, None, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn refused(schema: &str) -> Error {
    let error = session().generate(&options(schema, 0.0, 1), None, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.message().starts_with("json_schema: "), "{error}");
    assert!(error.message().len() < 400 && !error.message().contains('\n'), "{error}");
    error
}

fn is_integer(value: &Json, range: std::ops::RangeInclusive<i64>) -> bool {
    value.as_i64().is_some_and(|value| range.contains(&value))
}

fn keys(value: &Json) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

const PERSON: &str = r#"{"type": "object", "additionalProperties": false, "required": ["name", "kind", "age"], "properties": {
    "name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["function", "method", "type"]},
    "age": {"type": "integer", "minimum": 3, "maximum": 120}, "done": {"type": "boolean"}}}"#;

fn is_person(value: &Json) -> bool {
    let text = |key: &str| value[key].as_str().unwrap();
    let done = &keys(value)[3..];
    keys(value)[..3] == ["name", "kind", "age"]
        && (done.is_empty() || done == ["done"] && value["done"].is_boolean())
        && text("name").chars().count() <= 12
        && ["function", "method", "type"].contains(&text("kind"))
        && is_integer(&value["age"], 3..=120)
}

/// A schema, and whether a value conforms to it.
type Case = (&'static str, fn(&Json) -> bool);

const CASES: [Case; 9] = [
    (PERSON, is_person),
    (r#"{"type": "integer", "minimum": -7, "maximum": 7}"#, |value| is_integer(value, -7..=7)),
    (r#"{"type": "number", "exclusiveMinimum": 0, "maximum": 1.5, "multipleOf": 0.25}"#, |value| {
        let value = value.as_f64().unwrap();
        value > 0.0 && value <= 1.5 && value * 4.0 == (value * 4.0).round()
    }),
    (
        r#"{"type": "array", "minItems": 1, "maxItems": 3,
            "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer", "minimum": 0, "maximum": 9}}}"#,
        |value| {
            let rows = value.as_array().unwrap();
            let is_row =
                |row: &Json| row.as_array().unwrap().len() == 2 && row.as_array().unwrap().iter().all(|x| is_integer(x, 0..=9));
            (1..=3).contains(&rows.len()) && rows.iter().all(is_row)
        },
    ),
    (r#"{"type": "string", "pattern": "^[a-f]{2}-[0-9]{1,3}$"}"#, |value| {
        let (letters, digits) = value.as_str().unwrap().split_once('-').unwrap();
        letters.len() == 2
            && letters.chars().all(|c| ('a'..='f').contains(&c))
            && (1..=3).contains(&digits.len())
            && digits.chars().all(|c| c.is_ascii_digit())
    }),
    (r#"{"type": "string", "minLength": 1, "maxLength": 5}"#, |value| (1..=5).contains(&value.as_str().unwrap().chars().count())),
    (
        r##"{"anyOf": [{"$ref": "#/$defs/id"}, {"type": "null"}, {"type": "object", "required": ["id"],
            "properties": {"id": {"$ref": "#/$defs/id"}}, "additionalProperties": false}],
            "$defs": {"id": {"type": "integer", "minimum": 10, "maximum": 20}}}"##,
        |value| value.is_null() || is_integer(value, 10..=20) || keys(value) == ["id"] && is_integer(&value["id"], 10..=20),
    ),
    (r#"{"const": {"a": [1, null, "\"\\\né"], "b": true}}"#, |value| {
        *value == serde_json::json!({"a": [1, null, "\"\\\né"], "b": true})
    }),
    (
        r#"{"oneOf": [{"type": "object", "required": ["t", "n"], "additionalProperties": false,
                "properties": {"t": {"const": "a"}, "n": {"type": "null"}}},
            {"type": "object", "required": ["t"], "additionalProperties": false, "properties": {"t": {"const": "b"}}}]}"#,
        |value| {
            value["t"] == "a" && keys(value) == ["t", "n"] && value["n"].is_null() || value["t"] == "b" && keys(value) == ["t"]
        },
    ),
];

#[test]
fn a_finished_answer_conforms_at_any_temperature() {
    let mut free = options("", 0.0, 1);
    free.json_schema = None;
    let free = answer(&free);
    assert!(serde_json::from_str::<Json>(&free.text).is_err(), "without a schema this is no JSON: {}", free.text);
    for (schema, conforms) in CASES {
        let mut seen = Vec::new();
        for seed in 0..24 {
            let answer = answer(&options(schema, [0.0, 1.0, 1.5, 2.0][seed as usize % 4], seed));
            assert_eq!(answer.finish_reason, FinishReason::Eos, "{schema}: {}", answer.text);
            let value: Json = serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{e}: {}", answer.text));
            assert!(conforms(&value), "{schema}: {}", answer.text);
            seen.push(answer.text);
        }
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 1, "{schema}: sampling still chooses, if only the spaces: {seen:?}");
    }
}

#[test]
fn samplers_penalties_and_biases_do_not_break_it() {
    let eos = model().tokenizer().unwrap().token_id("<|im_end|>").unwrap();
    let settings = [
        SamplingOptions::default().top_k(1).temperature(2.0),
        SamplingOptions::default().top_p(0.01).min_p(0.9).temperature(2.0),
        SamplingOptions::default().repetition_penalty(9.0).frequency_penalty(3.0),
        // An early end, were it allowed.
        SamplingOptions::default().logit_bias([(eos, 1e6)]),
        SamplingOptions::default().logit_bias([(eos, 1e6)]).temperature(1.0).seed(3),
    ];
    for sampling in settings {
        let answer = answer(&options(PERSON, 0.0, 1).sampling(sampling));
        assert_eq!(answer.finish_reason, FinishReason::Eos);
        assert!(is_person(&serde_json::from_str(&answer.text).unwrap()), "{}", answer.text);
    }
    // All that could begin the text.
    let begin: Vec<(u32, f32)> =
        (0..model().vocab_size() as u32).map(|id| (id, f32::NEG_INFINITY)).filter(|&(id, _)| id != 32).collect();
    let options = options(PERSON, 0.0, 1).logit_bias(begin);
    let error = session().generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("json_schema"), "{error}");
}

#[test]
fn push_pull_stateless_and_session_calls_give_one_text() {
    for (temperature, seed) in [(0.0, 1), (1.5, 2)] {
        let options = options(PERSON, temperature, seed);
        let mut pieces = String::new();
        let mut held = session();
        let position = held.position();
        let pushed = held
            .generate(&options, None, &mut |event| {
                pieces.push_str(&event.text);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(pieces, pushed.text);
        let again = answer(&options);
        assert_eq!((&again.text, &again.tokens), (&pushed.text, &pushed.tokens), "a seed repeats its text");

        let mut pulled = session();
        pulled.begin(&options).unwrap();
        while pulled.next().unwrap().is_some() {}
        let end = pulled.end().unwrap();
        assert_eq!((&end.text, &end.tokens, end.finish_reason), (&pushed.text, &pushed.tokens, pushed.finish_reason));

        let prompt = model().tokenizer().unwrap().decode(&held.tokens()[..position], false).unwrap();
        let stateless = options.clone().add_special(false);
        let stateless = model().generate(&prompt, &stateless, None, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((&stateless.text, &stateless.tokens), (&pushed.text, &pushed.tokens));
    }
}

#[test]
fn without_a_schema_answers_and_log_probabilities_are_as_before() {
    let free = || {
        let mut options = options("", 0.0, 1).max_tokens(12);
        options.json_schema = None;
        let mut events = Vec::new();
        let on_token = &mut |event: &metal_candle::TokenEvent| {
            events.push(event.clone());
            ControlFlow::Continue(())
        };
        session().generate(&options, None, on_token).unwrap();
        events
    };
    let before = free();
    // The first token of a constrained answer, in place of a more probable one: its own probability, not 1.
    let mut first = None;
    let on_token = &mut |event: &metal_candle::TokenEvent| {
        first.get_or_insert(event.clone());
        ControlFlow::Continue(())
    };
    session().generate(&options(r#"{"const": [1]}"#, 0.0, 1), None, on_token).unwrap();
    let first = first.unwrap();
    assert!(first.logprob < before[0].logprob - 1.0, "{first:?} {:?}", before[0]);
    let mut session = session();
    let logits = session.logits().unwrap();
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let want = f64::from(logits[first.token as usize]) - total.ln();
    assert!((f64::from(first.logprob) - want).abs() < 1e-3, "{} {want}", first.logprob);
    assert_eq!(free(), before);
}

#[test]
fn two_sessions_with_two_schemas_do_not_meet() {
    let (one, other) = (options(CASES[3].0, 1.0, 4), options(CASES[4].0, 1.0, 5));
    let (mut a, mut b) = (session(), session());
    a.begin(&one).unwrap();
    b.begin(&other).unwrap();
    loop {
        if (a.next().unwrap(), b.next().unwrap()) == (None, None) {
            break;
        }
    }
    assert_eq!((a.end().unwrap().text, b.end().unwrap().text), (answer(&one).text, answer(&other).text));
    std::thread::scope(|scope| {
        for (schema, conforms) in CASES {
            scope.spawn(move || {
                let answer = answer(&options(schema, 1.0, 6));
                assert!(conforms(&serde_json::from_str(&answer.text).unwrap()), "{}", answer.text);
            });
        }
    });
}

#[test]
fn an_answer_ends_where_nothing_may_follow() {
    let null = options(r#"{"type": "null"}"#, 0.0, 1);
    for ignore_eos in [false, true] {
        let mut session = session();
        let position = session.position();
        let answer = session.generate(&null.clone().ignore_eos(ignore_eos), None, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((answer.text.as_str(), answer.finish_reason), ("null", FinishReason::Eos));
        // No end-of-sequence token was needed: all tokens are text, and held.
        assert_eq!(session.position(), position + answer.tokens.len());
        assert_eq!(model().tokenizer().unwrap().decode(&answer.tokens, false).unwrap(), "null");
        // And it goes on as any other.
        session.append("\nfn", None).unwrap();
        let mut free = null.clone().max_tokens(5);
        free.json_schema = None;
        assert!(!session.generate(&free, None, &mut |_| ControlFlow::Continue(())).unwrap().tokens.is_empty());
    }
    // A number may always go on, so here the model must say that it ends; ignored, it goes on as long as it may.
    let digits = r#"{"type": "integer", "minimum": 0, "maximum": 99999}"#;
    for seed in 0..8 {
        let answer = answer(&options(digits, 2.0, seed).ignore_eos(true));
        assert!(answer.text == "0" || answer.text.len() == 5, "{}", answer.text);
        assert_eq!(answer.finish_reason, FinishReason::Eos);
    }
}

#[test]
fn a_model_without_an_end_of_sequence_token_still_ends() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let text = std::fs::read(shipped("tiny-coder").join(file)).unwrap();
        let text = if file == "config.json" {
            let mut config: Json = serde_json::from_slice(&text).unwrap();
            config.as_object_mut().unwrap().remove("eos_token_id");
            config.to_string().into_bytes()
        } else {
            text
        };
        std::fs::write(directory.path().join(file), text).unwrap();
    }
    let model = load(directory.path());
    for (schema, conforms) in [CASES[0], CASES[3], CASES[4]] {
        for seed in 0..6 {
            let answer = model.generate("fn", &options(schema, 1.0, seed), None, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(answer.finish_reason, FinishReason::Eos, "{}", answer.text);
            assert!(conforms(&serde_json::from_str(&answer.text).unwrap()), "{}", answer.text);
        }
    }
    std::fs::remove_file(directory.path().join("tokenizer.json")).unwrap();
    let mut session = Session::new(&load(directory.path()), 0).unwrap();
    session.append_tokens(&[1, 2], None).unwrap();
    let error = session.generate(&options("true", 0.0, 1), None, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().starts_with("json_schema: tokenizer.json: "), "{error}");
}

#[test]
fn what_else_ends_an_answer_leaves_the_beginning_of_one() {
    let whole = answer(&options(PERSON, 0.0, 1));
    let cut = answer(&options(PERSON, 0.0, 1).max_tokens(4));
    assert_eq!((cut.finish_reason, cut.tokens.len()), (FinishReason::MaxTokens, 4));
    assert!(whole.text.starts_with(&cut.text) && cut.text.len() < whole.text.len());
    // The last token that fits is the last that is needed: complete.
    let exact = answer(&options(PERSON, 0.0, 1).max_tokens(whole.tokens.len()));
    assert_eq!((exact.finish_reason, &exact.text), (FinishReason::Eos, &whole.text));
    let stopped = answer(&options(PERSON, 0.0, 1).stop(["\"age\""]));
    assert_eq!(stopped.finish_reason, FinishReason::StopText);
    assert_eq!(stopped.text, whole.text.split("\"age\"").next().unwrap());
}

#[test]
fn what_is_no_schema_is_an_error_that_says_so() {
    let cases = [
        ("", "not JSON: EOF"),
        ("{\"type\": }", "not JSON: expected value at line 1 column 10"),
        ("3", "expected an object or a boolean, found a number"),
        ("[]", "expected an object or a boolean, found an array"),
        ("null", "expected an object or a boolean, found null"),
        ("false", "unsatisfiable schema: schema is false"),
        (r#"{"type": "text"}"#, "invalid type: text"),
        (r#"{"type": "integer", "minimum": 5, "maximum": 1}"#, "unsatisfiable schema: minimum (5) is greater than maximum (1)"),
        (r#"{"uniqueItems": true, "not": {}}"#, r#"unimplemented keys: ["not", "uniqueItems"]"#),
        (r#"{"properties": {"a": {"if": {}, "then": {"const": 1}}}}"#, r#"unimplemented keys: ["if", "then"]"#),
        (r#"{"type": "array", "items": {"const": 9007199254740993}}"#, "const: an integer beyond 2^53"),
        (r#"{"pattern": "\\Z"}"#, "pattern: \\Z: ECMA-262 has no such escape"),
        (r#"{"oneOf": [{"type": "string"}, {"maxLength": 3}]}"#, "oneOf: expected cases that exclude one another"),
        (r##"{"$ref": "#/nowhere"}"##, "reference segment 'nowhere' not found"),
        (r#"{"$ref": "file:///etc/passwd"}"#, "only absolute $ref's (#/...) are supported, found 'file:///etc/passwd'"),
        (r#"{"pattern": "(?=a)b"}"#, "regex parse error: look-around"),
        (r#"{"x-guidance": {"lenient": true}, "not": {}}"#, r#""x-guidance" is not a keyword of JSON Schema"#),
    ];
    for (schema, message) in cases {
        let error = refused(schema);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.message()["json_schema: ".len()..].starts_with(message), "{error}");
    }
    assert_eq!(refused(r##"{"$ref": "#"}"##).message(), "json_schema: no text conforms to it");
    // A word that is none of JSON Schema's is an annotation.
    assert_eq!(answer(&options(r#"{"colour": 1, "title": "x", "const": 5}"#, 0.0, 1)).text, "5");
}

#[test]
fn schemas_mean_what_json_schema_says() {
    let text = |schema: &str| {
        let options = options(schema, 0.0, 1).max_tokens(120);
        session()
            .generate(&options, None, &mut |_| ControlFlow::Continue(()))
            .map_or_else(|e| e.to_string(), |answer| answer.text)
    };
    let dated = |format: &str, value: &str| {
        text(&format!(r#"{{"allOf": [{{"type": "string", "format": "{format}"}}, {{"const": "{value}"}}]}}"#))
    };
    for (format, value) in [
        ("date", "2024-02-29"),
        ("date", "2000-02-29"),
        ("date-time", "1998-12-31T23:59:60Z"),
        ("time", "01:29:60+01:30"),
        ("time", "15:59:60.5-08:00"),
        ("time", "10:00:00.123+05:45"),
    ] {
        assert_eq!(dated(format, value), format!("{value:?}"), "{format}");
    }
    for (format, value) in [
        ("date", "2021-02-29"),
        ("date", "2100-02-29"),
        ("date", "2024-04-31"),
        ("date-time", "2021-02-29T10:00:00Z"),
        ("date-time", "1998-12-31T23:58:60Z"),
        ("time", "22:59:60Z"),
        ("time", "23:59:60+01:00"),
    ] {
        assert!(dated(format, value).starts_with("json_schema: "), "{format} {value}: {}", dated(format, value));
    }
    for (schema, expected) in [
        (r#"{"type": "string", "format": "binary", "enum": ["hit"]}"#, r#""hit""#),
        (r##"{"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": "hit"}}}"##, r#""hit""#),
        (r#"{"const": 12345678901234567890123}"#, "12345678901234567890123"),
        (r#"{"type": "integer", "enum": [-9223372036854775809]}"#, "-9223372036854775809"),
        (r#"{"type": "integer", "minimum": 9007199254740993, "maximum": 9007199254740993}"#, "9007199254740993"),
        (r#"{"const": 0.9215686321258545}"#, "0.9215686321258545"),
        (r#"{"allOf": [{"pattern": "^[[]\\d$"}, {"const": "[1"}]}"#, r#""[1""#),
    ] {
        assert_eq!(text(schema), expected, "{schema}");
    }
    for (schema, conforms) in [
        (r#"{"type": "number", "maximum": 1e19}"#, (|x| x <= 1e19) as fn(f64) -> bool),
        (r#"{"type": "number", "minimum": 1e20}"#, |x| x >= 1e20),
        (r#"{"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}"#, f64::is_finite),
        (r#"{"type": "number", "minimum": 5e-324, "maximum": 1}"#, |x| x > 0.0 && x <= 1.0),
        (r#"{"type": "integer", "multipleOf": 86400}"#, |_| false),
        (r#"{"type": "integer", "multipleOf": 25, "minimum": 100, "maximum": 999}"#, |x| x % 25.0 == 0.0),
    ] {
        let options = options(schema, 1.0, 3).max_tokens(400);
        match session().generate(&options, None, &mut |_| ControlFlow::Continue(())) {
            Ok(answer) if answer.finish_reason == FinishReason::Eos => {
                assert!(conforms(answer.text.parse().unwrap()), "{schema}: {}", answer.text);
            }
            Ok(_) => {}
            Err(error) => assert!(error.message().contains("multipleOf: expected factors"), "{schema}: {error}"),
        }
    }
}

#[test]
fn a_schema_can_be_cancelled_while_it_is_read() {
    let cancel = metal_candle::Cancel::new();
    cancel.trigger();
    let options = options(PERSON, 0.0, 1).cancel(cancel);
    let answer = session().generate(&options, None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((answer.finish_reason, answer.tokens.len()), (FinishReason::Cancelled, 0));
}

/// `n` definitions, each made of the next by `definition`.
fn chain(n: usize, definition: impl Fn(usize) -> String) -> String {
    let definitions: Vec<String> = (0..n).map(|i| format!(r#""a{i}": {}"#, definition(i + 1))).collect();
    format!(r##"{{"$ref": "#/$defs/a0", "$defs": {{{}, "a{n}": {{"type": "object"}}}}}}"##, definitions.join(", "))
}

#[test]
fn hostile_schemas_are_errors_and_end_nothing_but_their_call() {
    let nested = |open: &str, close: &str, n: usize| format!("{}{{}}{}", open.repeat(n), close.repeat(n));
    let reference = |i: usize| format!(r##"{{"type": "object", "$ref": "#/$defs/a{i}"}}"##);
    let schemas = [
        nested(r#"{"not":"#, "}", 100_000),
        nested(r#"{"not":"#, "}", 5_000),
        nested(r#"{"items":"#, "}", 5_000),
        nested("[", "]", 20_000),
        format!(r#"{{"const": {}}}"#, nested("[", "]", 20_000)),
        chain(2000, |i| format!(r##"{{"$ref": "#/$defs/a{i}"}}"##)),
        // 2ⁿ objects.
        chain(40, |i| format!(r#"{{"type": "object", "properties": {{"x": {r}, "y": {r}}}}}"#, r = reference(i))),
        format!(r#"{{"pattern": "{}a{}"}}"#, "(".repeat(10_000), ")".repeat(10_000)),
        format!(
            r#"{{"patternProperties": {{{}}}}}"#,
            (0..3000).map(|i| format!(r#""^w{i}$": {{}}"#)).collect::<Vec<_>>().join(", ")
        ),
        format!(r#"{{"anyOf": [{}]}}"#, (0..1500).map(|i| format!(r#"{{"required": ["a{i}"]}}"#)).collect::<Vec<_>>().join(", ")),
        r#"{"type": "number", "multipleOf": 1000000000}"#.to_owned(),
        r#"{"type": "string", "minLength": 18446744073709551615}"#.to_owned(),
        r#"{"type": "array", "minItems": 1e300}"#.to_owned(),
    ];
    // A stack as small as those of threads on iOS.
    let check = move || {
        for schema in schemas {
            let start: String = schema.chars().take(60).collect();
            let error = refused(&schema);
            let expected = [ErrorKind::InvalidArgument, ErrorKind::Unsupported];
            assert!(expected.contains(&error.kind()), "{start}: {error}");
        }
        // What is only large is not an error.
        let deep = format!(r#"{}{{"const": 1}}{}"#, r#"{"type": "array", "minItems": 1, "items": "#.repeat(100), "}".repeat(100));
        assert!(answer(&options(&deep, 0.0, 1)).text.starts_with('['));
        let long = chain(100, |i| format!(r##"{{"type": "object", "properties": {{"x": {{"$ref": "#/$defs/a{i}"}}}}}}"##));
        assert!(answer(&options(&long, 0.0, 1)).text.starts_with('{'));
        assert_eq!(answer(&options(&chain(1200, reference), 0.0, 1)).text, "{}");
        let rows = chain(400, |i| format!(r##"{{"items": {{"items": {{"$ref": "#/$defs/a{i}", "minItems": 0}}}}}}"##));
        assert!(serde_json::from_str::<Json>(&answer(&options(&rows, 0.0, 1)).text).is_ok());
        let huge = r#"{"type": "array", "maxItems": 18446744073709551615, "items": {"type": "string", "maxLength": 1000000000}}"#;
        assert!(answer(&options(huge, 0.0, 1)).text.starts_with('['));
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(check).unwrap().join().unwrap();
}
