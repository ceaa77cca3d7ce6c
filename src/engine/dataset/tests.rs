//! What of each kind of example is trained on, token by token.

use std::io::Write;

use super::*;
use crate::LoadOptions;

fn tiny_coder() -> Model {
    Model::load("models/tiny-coder", &LoadOptions::default(), None).unwrap()
}

fn tokenized(examples: &[Content], mask_prompt: bool) -> Tokenized {
    let examples = examples.iter().map(|content| Example { content: content.clone(), line: None }).collect();
    Dataset { examples, path: PathBuf::new() }.tokenized(&tiny_coder(), 1024, mask_prompt, None).unwrap()
}

/// A sample's text with its targets in brackets; joined, its tokens are exactly those of the whole text.
fn marked(sample: &Sample) -> String {
    let model = tiny_coder();
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(sample.ids.len(), sample.targets.len());
    assert!(!sample.targets[0]);
    let mut text = String::new();
    let mut tokens = sample.ids.iter().zip(&sample.targets).peekable();
    while let Some(is_target) = tokens.peek().map(|(_, is_target)| **is_target) {
        let run: Vec<u32> = std::iter::from_fn(|| tokens.next_if(|(_, other)| **other == is_target)).map(|(id, _)| *id).collect();
        let run = tokenizer.decode(&run, false).unwrap();
        text.push_str(&if is_target { format!("[{run}]") } else { run });
    }
    text
}

fn chat(json: &str) -> Chat {
    Chat::from_json(json).unwrap()
}

fn conversation(chat: Chat) -> Content {
    Content::chat(chat, 0)
}

const SYSTEM: &str = "<|im_start|>system\nYou answer questions about the Rust standard library.<|im_end|>\n";

#[test]
fn all_of_a_text_is_trained_on_and_its_end() {
    let texts = ["fn main", "fn main<|im_end|>"].map(|text| Content::Text(text.to_owned()));
    for sample in tokenized(&texts, true).examples {
        // The first token has nothing before it.
        assert_eq!(marked(&sample), "fn[ main<|im_end|>]");
    }
    let empty = tokenized(&[Content::Text(String::new())], true);
    assert_eq!((empty.examples.len(), empty.truncated, empty.skipped), (0, 0, 1));
}

#[test]
fn a_completion_is_trained_on_and_its_prompt_only_where_it_is_not_masked() {
    let completion =
        |prompt: &str, completion: &str| Content::Completion { prompt: prompt.into(), completion: completion.into() };
    for (example, masked, whole) in [
        (completion("let x =", " 1;"), "let x =[ 1;<|im_end|>]", "let[ x = 1;<|im_end|>]"),
        (completion("let x = 1;", ""), "let x = 1;[<|im_end|>]", "let[ x = 1;<|im_end|>]"),
        (completion("", "let x"), "let[ x<|im_end|>]", "let[ x<|im_end|>]"),
        // A token that begins in the prompt is the prompt's.
        (completion("let ", "vec"), "let vec[<|im_end|>]", "let[ vec<|im_end|>]"),
        (completion("let ve", "c"), "let vec[<|im_end|>]", "let[ vec<|im_end|>]"),
        (completion("日", "本語"), "日[本語<|im_end|>]", ""),
    ] {
        assert_eq!(marked(&tokenized(std::slice::from_ref(&example), true).examples[0]), masked);
        if !whole.is_empty() {
            assert_eq!(marked(&tokenized(&[example], false).examples[0]), whole);
        }
    }
}

#[test]
fn answers_are_trained_on_with_the_token_that_ends_them() {
    let single = chat(r#"[{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]"#);
    let several = chat(
        r#"[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."},
            {"role": "user", "content": "C?"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "D?"}]"#,
    );
    let found = tokenized(&[conversation(single.clone()), conversation(several)], true);
    assert_eq!((found.truncated, found.skipped), (0, 0));
    let marked: Vec<String> = found.examples.iter().map(marked).collect();
    assert_eq!(
        marked,
        [
            format!("{SYSTEM}<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n[B.<|im_end|>]\n"),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n[B.<|im_end|>]\n\
             <|im_start|>user\nC?<|im_end|>\n<|im_start|>assistant\n[<|im_end|>]\n"
                .to_owned(),
        ]
    );
    // What is trained on is what a session is given.
    let model = tiny_coder();
    let text = single.render(model.chat_template().ok(), false).unwrap();
    assert_eq!(found.examples[0].ids, model.tokenizer().unwrap().encode(&text, false).unwrap());
    let whole = &tokenized(&[conversation(single)], false).examples[0];
    assert!(whole.ids == found.examples[0].ids && whole.targets[1..].iter().all(|is_target| *is_target));
}

#[test]
fn tools_and_the_calls_of_them_are_where_the_template_puts_them() {
    let mut chat = chat(
        r#"{"messages": [{"role": "user", "content": "Time?"},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {}}}]},
            {"role": "tool", "content": "noon"}, {"role": "assistant", "content": "Noon."}],
            "tools": [{"type": "function", "function": {"name": "clock"}}]}"#,
    );
    let template = "{% for tool in tools %}{{ tool.function.name }};{% endfor %}\
        {% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}\
        {% for call in m.tool_calls %}call {{ call.function.name }}{% endfor %}<|im_end|>{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant:{% endif %}";
    chat.set_template(Some(template)).unwrap();
    assert_eq!(
        marked(&tokenized(&[conversation(chat)], true).examples[0]),
        "clock;<|im_start|>user:Time?<|im_end|><|im_start|>assistant:[call clock<|im_end|>]<|im_start|>tool:noon<|im_end|>\
         <|im_start|>assistant:[Noon.<|im_end|>]"
    );
}

/// Templates that differ in how they end and keep a turn.
#[test]
fn each_template_ends_answers_in_its_way() {
    let turns = r#"[{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"},
        {"role": "assistant", "content": "D"}]"#;
    for (template, expected) in [
        // With a token that generation does not stop at, and a line end.
        (
            "{% for m in messages %}{{ m.role }}:{{ m.content }}<|endoftext|>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
            vec!["user:A<|endoftext|>\nassistant:[B<|endoftext|>]\nuser:C<|endoftext|>\nassistant:[D<|endoftext|>]\n"],
        ),
        // With the token that the next turn begins with; the last answer gets the token that ends a text.
        (
            "{% for m in messages %}{{ '<|im_end|>' if m.role == 'user' else '>' }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
            vec!["<|im_end|>A>[B<|im_end|>]C>[D<|im_end|>]"],
        ),
        // With one more token at the end of the conversation: that end is not there when others follow.
        (
            "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}\
             {% if add_generation_prompt %}assistant:{% else %}<|endoftext|>{% endif %}",
            vec![
                "user:A<|im_end|>assistant:[B<|im_end|>]<|endoftext|>",
                "user:A<|im_end|>assistant:B<|im_end|>user:C<|im_end|>assistant:[D<|im_end|>]<|endoftext|>",
            ],
        ),
        // With thoughts in the last turn alone.
        (
            "{% for m in messages %}{{ m.role }}:{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}\
             {% if add_generation_prompt %}assistant:{% endif %}",
            vec![
                "user:A<|im_end|>assistant:[<think></think>B<|im_end|>]",
                "user:A<|im_end|>assistant:B<|im_end|>user:C<|im_end|>assistant:[<think></think>D<|im_end|>]",
            ],
        ),
    ] {
        let mut chat = chat(turns);
        chat.set_template(Some(template)).unwrap();
        let found = tokenized(&[conversation(chat)], true);
        assert_eq!(found.examples.iter().map(marked).collect::<Vec<_>>(), expected, "{template}");
    }
}

#[test]
fn an_answer_that_is_not_behind_its_generation_prompt_is_an_error() {
    let mut chat = chat(r#"[{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]"#);
    let template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}{% if add_generation_prompt %}assistant:<think>{% endif %}";
    chat.set_template(Some(template)).unwrap();
    let mut dataset = Dataset::new();
    dataset.add_text("fine");
    dataset.add_chat(&chat);
    let error = dataset.tokenized(&tiny_coder(), 1024, true, None).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Template);
    assert_eq!(
        error.message(),
        "examples[1]: messages[1]: chat template: expected a message that begins with the generation prompt: \
         after 16 bytes it goes on with \"<think>\", found \"B\""
    );
    // Not masked, there is nothing to tell apart.
    assert_eq!(dataset.tokenized(&tiny_coder(), 1024, false, None).unwrap().examples.len(), 2);
}

#[test]
fn a_greeting_is_learnt_behind_what_the_template_writes_before_it() {
    let model = tiny_coder();
    let messages =
        r#"[{"role": "assistant", "content": "b"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "c"}]"#;
    let adds_system = "{% for x in messages %}{% if loop.first and x.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}<|im_start|>{{ x.role }}\n{{ x.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    for template in [None, Some(adds_system)] {
        let mut chat = chat(messages);
        chat.set_template(template).unwrap();
        let mut dataset = Dataset::new();
        dataset.add_chat(&chat);
        let found = dataset.tokenized(&model, 1024, true, None).unwrap();
        let learnt: Vec<String> = found
            .examples
            .iter()
            .flat_map(|sample| sample.ids.iter().zip(&sample.targets).filter(|(_, target)| **target))
            .map(|(id, _)| model.tokenizer().unwrap().decode(&[*id], false).unwrap())
            .collect();
        assert_eq!(learnt, ["b", "<|im_end|>", "c", "<|im_end|>"], "{template:?}");
    }
}

#[test]
fn what_the_template_refuses_is_named() {
    let greeting = r#"[{"role": "assistant", "content": "Hello."}]"#;
    let (mut dataset, mut refused) = (Dataset::new(), chat(greeting));
    refused.set_template(Some("{{ raise_exception('No.') }}")).unwrap();
    dataset.add_chat(&refused);
    let error = dataset.tokenized(&tiny_coder(), 1024, true, None).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Template);
    assert_eq!(error.message(), "examples[0]: messages[0]: chat template, line 1: No.");
    let mut dataset = Dataset::new();
    dataset.add_chat(&chat(greeting));

    let model = Model::load("tests/golden/decoders/qwen2_tied", &LoadOptions::default(), None).unwrap();
    let error = dataset.tokenized(&model, 1024, true, None).map(|_| ()).unwrap_err();
    assert_eq!(error.message(), "examples[0]: messages[0]: chat template: the model has none, and none was set");
    let mut dataset = Dataset::new();
    dataset.add_text("abc");
    assert_eq!(dataset.tokenized(&model, 1024, true, None).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn long_examples_are_cut_and_those_without_anything_to_learn_left_out() {
    let mut dataset = Dataset::new();
    dataset.add_text("a b c d e f");
    dataset.add_completion("a b c d e f", " g");
    dataset.add_chat(&chat(r#"[{"role": "user", "content": "Nothing is answered."}]"#));
    for (max_length, examples, truncated, skipped) in [(100, 2, 0, 1), (7, 2, 1, 1), (6, 1, 2, 2), (2, 1, 2, 2), (1, 0, 2, 3)] {
        let found = dataset.tokenized(&tiny_coder(), max_length, true, None).unwrap();
        assert_eq!((found.examples.len(), found.truncated, found.skipped), (examples, truncated, skipped), "{max_length}");
        assert!(found.examples.iter().all(|sample| sample.ids.len() <= max_length && sample.targets.len() == sample.ids.len()));
    }
}

#[test]
fn a_file_gives_the_same_as_calls() {
    let lines = [
        r#"{"text": "fn main"}"#,
        r#"{"prompt": "let x =", "completion": " 1;"}"#,
        r#"{"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}], "tools": null}"#,
        r#"{"prompt": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}, {"role": "user", "content": "C?"}],
            "completion": [{"role": "assistant", "content": "D."}]}"#,
    ];
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "\u{feff}{}\r\n\n  \r\n{}",
        lines[0],
        lines[1..].iter().map(|line| line.replace('\n', "") + "\n").collect::<String>()
    )
    .unwrap();
    let dataset = Dataset::load_jsonl(file.path()).unwrap();
    assert_eq!(dataset.examples.iter().map(|example| example.line).collect::<Vec<_>>(), [Some(1), Some(4), Some(5), Some(6)]);
    let found = dataset.tokenized(&tiny_coder(), 1024, true, None).unwrap().examples.iter().map(marked).collect::<Vec<_>>();
    let question = format!("{SYSTEM}<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(
        found,
        [
            "fn[ main<|im_end|>]".to_owned(),
            "let x =[ 1;<|im_end|>]".to_owned(),
            format!("{question}[B.<|im_end|>]\n"),
            // Of a prompt of messages nothing is a target, its answers neither.
            format!("{question}B.<|im_end|>\n<|im_start|>user\nC?<|im_end|>\n<|im_start|>assistant\n[D.<|im_end|>]\n"),
        ]
    );
}

#[test]
fn a_template_tells_the_time_of_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), r#"{"messages": [{"role": "assistant", "content": "Noon."}]}"#).unwrap();
    file.as_file().set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(951_782_400)).unwrap();
    let mut dataset = Dataset::load_jsonl(file.path()).unwrap();
    let Content::Chat { chat, .. } = &mut dataset.examples[0].content else { panic!() };
    chat.set_template(Some("{{ strftime_now('%Y-%m-%d') }}:{% for m in messages %}{{ m.content }}{% endfor %}")).unwrap();
    assert_eq!(marked(&dataset.tokenized(&tiny_coder(), 1024, true, None).unwrap().examples[0]), "2000-02-29:[Noon.<|im_end|>]");
}
