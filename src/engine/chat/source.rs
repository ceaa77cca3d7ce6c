//! A template's text, rewritten where minijinja reads it differently from Jinja2:
//!
//! - `{% generation %} … {% endgeneration %}` (transformers' own block) becomes `{% with %} … {% endwith %}`;
//! - `x[a:b:c]` becomes a call of Python's slicing: minijinja 3.0.5 panics on `''[::-1]` and keeps index 0 in `x[:0:-1]`;
//! - `x.items` without a call is a dict's method in Python, even where the dict has a key `items`;
//! - what `{% set %}` stores passes a check of its size: a loop around `{% set ns.x = [ns.x] %}` would nest until the stack overflows.
//!
//! Nothing moves to another line, so line numbers stay true. What would make minijinja recurse without a bound is refused here.
//!
//! ```text
//! {{ messages[1:] }}  →  {{ messages.__slice__(1,none,none) }}
//! {% set x = y %}     →  {% set x =__check__(( y )) %}
//! ```

use super::{ATTRIBUTE_METHOD, CHECK, CHECK_ATTRIBUTE, SLICE_METHOD};

/// What is wrong with a template's text, and where.
#[derive(Debug)]
pub(super) struct SourceError {
    pub line: usize,
    pub message: String,
}

/// The text that minijinja compiles.
pub(super) fn rewrite(source: &str) -> Result<String, SourceError> {
    // Jinja2 reads every line end as `\n`.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut rewriter = Rewriter { source: &source, at: 0, out: String::with_capacity(source.len() + 64), blocks: 0, branches: 0 };
    match rewriter.run() {
        Ok(()) => Ok(rewriter.out),
        Err(message) => Err(SourceError { line: 1 + source[..rewriter.at].matches('\n').count(), message }),
    }
}

struct Rewriter<'s> {
    source: &'s str,
    /// Everything before this byte is in `out`.
    at: usize,
    out: String,
    /// How many blocks are open here.
    blocks: usize,
    /// How many `elif` there were.
    branches: usize,
}

/// What an expression belongs to, as far as it was read.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Value,
    /// In a `set` before the equals sign; without one, the block after it is stored.
    Target,
    /// As `Target`, of the form `ns.name`.
    AttributeTarget,
}

/// A bracket that is still open.
struct Open {
    bracket: u8,
    /// Where its content starts in `out`.
    start: usize,
    /// Where the colons of a slice are in `out`.
    colons: Vec<usize>,
    has_comma: bool,
    /// How deep the expression may be at the bracket, and at its deepest item so far.
    depth: usize,
    deepest: usize,
}

impl<'s> Rewriter<'s> {
    fn run(&mut self) -> Result<(), String> {
        while let Some(found) = self.rest().find('{') {
            self.copy(found);
            match self.rest().as_bytes().get(1) {
                Some(b'#') => self.copy_past("#}"),
                Some(b'{') => {
                    self.copy(2);
                    self.expression("}}", Place::Value)?;
                }
                Some(b'%') => self.tag()?,
                _ => self.copy(1),
            }
        }
        self.copy(self.rest().len());
        Ok(())
    }

    /// At `{%`: the whole tag, or the whole block of `raw`.
    fn tag(&mut self) -> Result<(), String> {
        let skipped = tag_name_offset(self.rest());
        self.copy(skipped);
        let name = identifier(self.rest());
        match name {
            "raw" => {
                self.copy_raw_block();
                return Ok(());
            }
            "block" | "extends" | "include" | "import" | "from" => return Err(format!("the tag {name:?} is not supported")),
            "generation" => self.replace(name.len(), "with"),
            "endgeneration" => self.replace(name.len(), "endwith"),
            _ => self.copy(name.len()),
        }
        // The parser nests an `elif` in the `else` of the one before it.
        self.branches += usize::from(name == "elif");
        if self.branches > MAX_BRANCHES {
            return Err(format!("more than {MAX_BRANCHES} elif in one template are not supported"));
        }
        match name {
            _ if name.starts_with("end") => self.blocks = self.blocks.saturating_sub(1),
            _ if BLOCKS.contains(&name) => self.open_block()?,
            _ => {}
        }
        self.expression("%}", if name == "set" { Place::Target } else { Place::Value })
    }

    /// Up to and with `end`, which does not count inside strings and brackets.
    fn expression(&mut self, end: &str, mut place: Place) -> Result<(), String> {
        let mut open: Vec<Open> = Vec::new();
        let mut closing = String::new();
        // Each token may nest the ones before it; the items of a list lie side by side.
        let mut depth = 0;
        while let Some(&byte) = self.rest().as_bytes().first() {
            if open.is_empty() && self.rest().starts_with(end) {
                if place != Place::Value {
                    self.open_block()?;
                    closing = format!("|{CHECK}");
                }
                // The sign of whitespace control belongs to the end.
                let sign = if self.out.ends_with(['-', '+']) { self.out.pop() } else { None };
                self.out.push_str(&closing);
                self.out.extend(sign);
                self.copy(end.len());
                return Ok(());
            }
            if byte.is_ascii_whitespace() {
                self.copy(1);
                continue;
            }
            depth += 1;
            if depth > MAX_TOKENS {
                return Err(format!("an expression of more than {MAX_TOKENS} tokens is not supported"));
            }
            match byte {
                b'\'' | b'"' => self.copy(string_len(self.rest(), byte)),
                b'(' | b'[' | b'{' => {
                    self.copy(1);
                    if open.len() >= MAX_NESTING {
                        return Err(format!("more than {MAX_NESTING} nested brackets are not supported"));
                    }
                    open.push(Open { bracket: byte, start: self.out.len(), colons: Vec::new(), has_comma: false, depth, deepest: 0 });
                }
                b')' | b']' | b'}' => {
                    let closed = open.pop();
                    depth = depth.max(closed.as_ref().map_or(0, |closed| closed.deepest));
                    match closed {
                        Some(slice) if byte == b']' && slice.is_slice() => self.close_slice(&slice),
                        _ => self.copy(1),
                    }
                }
                b':' => {
                    if let Some(open) = open.last_mut() {
                        open.colons.push(self.out.len());
                    }
                    self.copy(1);
                }
                b',' => {
                    if let Some(open) = open.last_mut() {
                        open.has_comma = true;
                        open.deepest = open.deepest.max(depth);
                        depth = open.depth;
                    }
                    self.copy(1);
                }
                b'=' if place != Place::Value && open.is_empty() => {
                    let check = if place == Place::AttributeTarget { CHECK_ATTRIBUTE } else { CHECK };
                    self.replace(1, &format!("={check}(("));
                    "))".clone_into(&mut closing);
                    place = Place::Value;
                }
                b'.' if place != Place::Value && open.is_empty() => {
                    place = Place::AttributeTarget;
                    self.copy(1);
                }
                b'.' => self.attribute()?,
                _ => self.copy(identifier(self.rest()).len().max(char_len(self.rest()))),
            }
        }
        Ok(())
    }

    fn open_block(&mut self) -> Result<(), String> {
        self.blocks += 1;
        if self.blocks > MAX_NESTING { Err(format!("more than {MAX_NESTING} nested blocks are not supported")) } else { Ok(()) }
    }

    /// `out` ends with the content of a slice: `1:` becomes `.__slice__(1,none,none)`.
    fn close_slice(&mut self, slice: &Open) {
        let mut bounds = Vec::new();
        let mut start = slice.start;
        for end in slice.colons.iter().copied().chain([self.out.len()]) {
            bounds.push(self.out[start..end].to_owned());
            start = end + 1;
        }
        bounds.resize(3, String::new());
        self.out.truncate(slice.start - 1);
        let bounds: Vec<&str> = bounds.iter().map(|bound| if bound.trim().is_empty() { "none" } else { bound }).collect();
        self.out.push_str(&format!(".{SLICE_METHOD}({})", bounds.join(",")));
        self.at += 1;
    }

    /// At a dot: `.items` becomes `.__attribute__('items')`, `.items(` stays.
    fn attribute(&mut self) -> Result<(), String> {
        let after_dot = &self.rest()[1..];
        let spaces = after_dot.len() - after_dot.trim_start().len();
        let name = identifier(&after_dot[spaces..]);
        let call = after_dot[spaces + name.len()..].trim_start().strip_prefix('(').map(str::trim_start);
        if name == "cycle" && call.is_some_and(|args| args.starts_with([')', '*'])) {
            // minijinja 3.0.5 divides by the number of arguments.
            return Err("cycle without arguments is not supported".to_owned());
        }
        if call.is_none() && DICT_METHODS.contains(&name) {
            self.replace(1 + spaces + name.len(), &format!(".{ATTRIBUTE_METHOD}('{name}')"));
        } else {
            self.copy(1 + spaces + name.len());
        }
        Ok(())
    }

    /// At the name `raw`: up to the tag that ends it.
    fn copy_raw_block(&mut self) {
        let mut at = 0;
        while let Some(found) = self.rest()[at..].find("{%") {
            at += found;
            let name = at + tag_name_offset(&self.rest()[at..]);
            if identifier(&self.rest()[name..]) == "endraw" {
                self.copy(name);
                self.copy_past("%}");
                return;
            }
            at += 2;
        }
        self.copy(self.rest().len());
    }

    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn copy(&mut self, len: usize) {
        let end = self.at + len;
        self.out.push_str(&self.source[self.at..end]);
        self.at = end;
    }

    fn copy_past(&mut self, end: &str) {
        let len = self.rest().find(end).map_or(self.rest().len(), |found| found + end.len());
        self.copy(len);
    }

    fn replace(&mut self, len: usize, text: &str) {
        self.out.push_str(text);
        self.at += len;
    }
}

impl Open {
    fn is_slice(&self) -> bool {
        // Only a subscript holds a colon directly: a list's dicts have their own braces.
        self.bracket == b'[' && !self.has_comma && matches!(self.colons.len(), 1 | 2)
    }
}

/// Where the name starts in `{%- name`.
fn tag_name_offset(tag: &str) -> usize {
    let inside = tag[2..].strip_prefix(['-', '+']).unwrap_or(&tag[2..]);
    tag.len() - inside.trim_start().len()
}

/// The ASCII name or number at the start of `text`.
fn identifier(text: &str) -> &str {
    let end = text.bytes().position(|byte| !byte.is_ascii_alphanumeric() && byte != b'_');
    &text[..end.unwrap_or(text.len())]
}

/// How many bytes the string literal at the start of `text` takes, quotes included.
fn string_len(text: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn char_len(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

/// The methods of Python's dict.
const DICT_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
/// The tags that have an end, but for `set`, which may have one.
const BLOCKS: [&str; 8] = ["if", "for", "macro", "call", "filter", "with", "generation", "autoescape"];
// minijinja's parser and code generator recurse along all four of these. Together the limits take less than 512 KiB of stack, which
// is what a thread of an app on Apple's systems has; real templates stay below 50 tokens, 20 elif and 15 blocks or brackets.
const MAX_TOKENS: usize = 250;
const MAX_BRANCHES: usize = 100;
const MAX_NESTING: usize = 50;

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn only_what_differs_is_rewritten() {
        for (source, expected) in [
            ("plain } text { %} {x", "plain } text { %} {x"),
            ("{{ a[1:] }}", "{{ a.__slice__(1,none,none) }}"),
            ("{{ a[::-1][0] }}", "{{ a.__slice__(none,none,-1)[0] }}"),
            ("{{ a[b[1:2][0]:c(x, y)] }}", "{{ a.__slice__(b.__slice__(1,2,none)[0],c(x, y),none) }}"),
            ("{{ [{'a': 1}, {'b': 2}] }}", "{{ [{'a': 1}, {'b': 2}] }}"),
            ("{{ '[1:]' ~ \"\\\"[1:]\" }}", "{{ '[1:]' ~ \"\\\"[1:]\" }}"),
            ("{# a[1:] #}{{ {'a': {'b': 1}} }}", "{# a[1:] #}{{ {'a': {'b': 1}} }}"),
            ("{%- generation -%}x{%- endgeneration %}", "{%- with -%}x{%- endwith %}"),
            ("{% raw %}{{ a[1:] }}{%- endraw -%}{{ a[:2] }}", "{% raw %}{{ a[1:] }}{%- endraw -%}{{ a.__slice__(none,2,none) }}"),
            ("{{ d.items() }}{{ d.items }}", "{{ d.items() }}{{ d.__attribute__('items') }}"),
            ("{% set ns.values = ns.values -%}", "{% set ns.values =__check_attribute__(( ns.__attribute__('values') ))-%}"),
            ("{% set a, b = 1, 2 %}", "{% set a, b =__check__(( 1, 2 ))%}"),
            ("{%- set a | trim -%}x{% endset %}", "{%- set a | trim |__check__-%}x{% endset %}"),
            ("{{ é[1:] }}", "{{ é.__slice__(1,none,none) }}"),
            ("a\r\nb\rc", "a\nb\nc"),
            ("{{ a[1:", "{{ a[1:"),
            ("{%", "{%"),
            ("{% raw", "{% raw"),
            ("{{ 'a", "{{ 'a"),
            ("{{ 'a\\", "{{ 'a\\"),
            ("{#", "{#"),
        ] {
            assert_eq!(rewrite(source).unwrap(), expected);
        }
    }

    #[test]
    fn tags_that_load_templates_are_refused() {
        assert_eq!(rewrite("\n{%- include 'x' %}").unwrap_err().message, "the tag \"include\" is not supported");
    }

    #[test]
    fn endless_expressions_are_refused_with_their_line() {
        let error = rewrite(&format!("\n\n{{{{ 1{} }}}}", "+1".repeat(100_000))).unwrap_err();
        assert_eq!(error.line, 3);
        let (chain, calls) = ("+1".repeat(150), "+f(a, b)".repeat(1000));
        for source in [format!("[1{chain}, 2]{chain}"), format!("[[1{chain}, 2], 3]{chain}"), format!("1{calls}")] {
            assert!(rewrite(&format!("{{{{ {source} }}}}")).is_err(), "{source}");
        }
        assert!(rewrite(&format!("{{% set names = {{ {} }} %}}", "'a': f('b', [c]),".repeat(1000))).is_ok());
        let error = rewrite(&format!("{{% if a %}}{}", "\n{% elif a %}".repeat(100_000))).unwrap_err();
        assert_eq!(error.line, 102);
    }
}
