//! A chat template, messages, tools and a variable, with a zero between; what is missing is what most chats have.

use crate::{parts, told};
use metal_candle::Chat;

const MESSAGES: &str = r#"[{"role":"system","content":"be brief"},{"role":"user","content":"hi"}]"#;

pub fn run(input: &[u8]) {
    let mut parts = parts(input).map(String::from_utf8_lossy);
    let template = parts.next().unwrap_or_default();
    let messages = parts.next().filter(|part| !part.is_empty());
    let Some(mut chat) = told(Chat::from_json(messages.as_deref().unwrap_or(MESSAGES))) else { return };
    if chat.set_template(Some(&template)).is_err() {
        return;
    }
    if let Some(tools) = parts.next() {
        told(chat.set_tools_json(Some(&tools)));
    }
    if let Some(value) = parts.next() {
        told(chat.set_variable_json("enable_thinking", Some(&value)));
    }
    chat.set_time(1_764_400_000);
    told(chat.render(None, true));
}
