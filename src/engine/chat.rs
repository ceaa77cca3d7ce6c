//! A conversation and the chat template that turns it into a prompt.

use crate::error::Result;

/// The template of a model and the variables its files give it (`bos_token`, `eos_token`, …).
#[derive(Debug, Clone, Default)]
pub struct ChatTemplate {}

#[derive(Debug, Clone, Default)]
pub struct Chat {}

impl Chat {
    pub fn new() -> Self {
        Self::default()
    }
    /// `json`: an array of messages, or an object with `messages` and optionally `tools`.
    pub fn from_json(json: &str) -> Result<Self> {
        todo!("{json}")
    }
    pub fn add(&mut self, role: &str, content: &str) {
        todo!("{role} {content}")
    }
    /// An array of tool definitions; `None` removes them.
    pub fn set_tools_json(&mut self, json: Option<&str>) -> Result<()> {
        todo!("{json:?}")
    }
    /// A Jinja template instead of the model's; `None` = the model's.
    pub fn set_template(&mut self, jinja: Option<&str>) -> Result<()> {
        todo!("{jinja:?}")
    }
    /// `None` removes the variable.
    pub fn set_variable_json(&mut self, name: &str, json: Option<&str>) -> Result<()> {
        todo!("{name} {json:?}")
    }
    pub fn set_time(&mut self, unix_seconds: i64) {
        todo!("{unix_seconds}")
    }
    /// `template`: the model's; `None` if it has none (then `set_template` must have been called).
    pub fn render(&self, template: Option<&ChatTemplate>, add_generation_prompt: bool) -> Result<String> {
        todo!("{template:?} {add_generation_prompt}")
    }
}
