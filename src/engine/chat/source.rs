//! A template's text, read as Jinja2 reads it and written anew for minijinja:
//!
//! - operators become filters of [`operators`](super::operators), and what a loop iterates, a subscript looks up and `{% set %}`
//!   stores passes a filter as well: the filters are where the run's limits are kept, which minijinja's own operations do not have;
//! - text between tags becomes a printed value, so that what a macro or a `{% set %}` block collects is bounded as well; white space
//!   is controlled here (`trim_blocks`, `lstrip_blocks`, `-` and `+`), as Jinja2's lexer does it;
//! - `{% generation %} … {% endgeneration %}` (transformers' own block) becomes `{% with %} … {% endwith %}`;
//! - `x[a:b:c]` becomes a call of Python's slicing: minijinja 3.0.5 panics on `''[::-1]` and keeps index 0 in `x[:0:-1]`;
//! - `x[y]` and `x.1` become calls as well, unless `y` is a text that stands there: a list has no place 1.0, and the place of a letter
//!   is counted from the start of its text;
//! - what repeats, a loop, a macro or a call block, begins by asking whether the run is to stop;
//! - text literals are written anew: see [`literal`];
//! - `{% macro m(a, b=a) %}` sets `b` within the macro, where `a` is known; `{% with a=1, b=a %}` sets both at once;
//! - `x.items` without a call is a dict's method in Python, even where the dict has a key `items`.
//!
//! Nothing moves to another line, so line numbers stay true. What would make minijinja recurse without a bound is refused here.
//!
//! ```text
//! {{ messages[1:] }}  →  {{ messages.__slice__(1,none,none) }}
//! {% set x = a + b %} →  {% set x =( a |__add__( b ))|__check__ %}
//! ```

use std::collections::HashSet;

use super::literal;
use super::operators::{ADD, COMPARE, CONCAT, DIVIDE, DIVIDE_FLOOR, MULTIPLY, POWER, REMAINDER, SUBTRACT};
use super::{ATTRIBUTE_METHOD, CHECK, CHECK_ATTRIBUTE, ITEM_METHOD, ITERATE, KEY, LOOK, MAX_ATTRIBUTES, SLICE_METHOD, TOUCH};

/// What is wrong with a template's text, and where.
#[derive(Debug)]
pub(super) struct SourceError {
    pub line: usize,
    pub message: String,
}

/// The text that minijinja compiles.
pub(super) fn rewrite(source: &str) -> Result<String, SourceError> {
    // Jinja2 reads every line end as `\n`, and drops the last one.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut rewriter = Rewriter {
        source,
        at: 0,
        out: String::with_capacity(2 * source.len() + 64),
        owed_lines: 0,
        starts_line: true,
        brackets: 0,
        nesting: 0,
        depth: 0,
        blocks: 0,
        branches: 0,
        defaults: Vec::new(),
        attributes: HashSet::new(),
    };
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
    /// Line ends that were read and are not yet in `out`: they go into the next tag.
    owed_lines: usize,
    /// Whether the text from here on starts a line, as Jinja2 sees it.
    starts_line: bool,
    /// How many brackets of the template are open.
    brackets: usize,
    /// The same and those that stand around operands in `out`.
    nesting: usize,
    /// How deep the tokens of an expression may nest one another up to here.
    depth: usize,
    /// How many blocks are open here.
    blocks: usize,
    /// How many `elif` there were.
    branches: usize,
    /// Parameters whose default value is given behind the tag, and it.
    defaults: Vec<(&'s str, String)>,
    /// The attributes that are assigned to.
    attributes: HashSet<&'s str>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Token<'s> {
    Name(&'s str),
    Number(&'s str),
    Text(&'s str),
    Sign(&'s str),
    /// The end of the tag, or of the template.
    End,
}

/// What stands around an expression's tag.
#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Block,
    Print,
}

impl<'s> Rewriter<'s> {
    fn run(&mut self) -> Result<(), String> {
        while let Some(found) = find_tag(self.rest()) {
            let text = &self.rest()[..found];
            let opening = &self.rest()[found..found + 2];
            let sign = self.rest()[found + 2..].chars().next();
            let kept = match sign {
                Some('-') => text.trim_end_matches(is_space),
                Some('+') => text,
                _ if opening == "{{" => text,
                _ => self.without_indentation(text),
            };
            self.text(kept, &text[kept.len()..]);
            self.at += found;
            match opening {
                "{#" => self.comment()?,
                "{{" => {
                    self.open_tag("{{");
                    self.expression()?;
                    self.end_tag(Tag::Print)?;
                }
                _ => self.block_tag()?,
            }
        }
        self.text(self.rest(), "");
        self.at = self.source.len();
        Ok(())
    }

    /// `lstrip_blocks`: without the white space between the start of the line and the tag.
    fn without_indentation<'t>(&self, text: &'t str) -> &'t str {
        let line = text.rfind('\n').map_or(0, |end| end + 1);
        let is_indentation = text[line..].chars().all(is_space);
        if (line > 0 || self.starts_line) && is_indentation { &text[..line] } else { text }
    }

    /// Text outside of tags, as a value that is printed; `dropped` stands behind it in the source.
    fn text(&mut self, text: &str, dropped: &str) {
        if !text.is_empty() {
            self.out.push_str("{{");
            self.pay_lines();
            self.out.push('\'');
            for letter in text.chars() {
                if matches!(letter, '\\' | '\'') {
                    self.out.push('\\');
                }
                self.out.push(letter);
            }
            self.out.push_str("'}}");
        }
        self.owed_lines += lines(dropped);
    }

    fn pay_lines(&mut self) {
        (0..std::mem::take(&mut self.owed_lines)).for_each(|_| self.out.push('\n'));
    }

    /// At `{{` or `{%`.
    fn open_tag(&mut self, opening: &str) {
        self.out.push_str(opening);
        self.at += 2;
        if self.rest().starts_with(['-', '+']) {
            self.at += 1;
        }
        self.pay_lines();
        (self.brackets, self.nesting, self.depth) = (0, 0, 0);
    }

    /// At the end of a tag: it, and what it strips of the text behind it.
    fn end_tag(&mut self, tag: Tag) -> Result<(), String> {
        self.skip_space();
        let (end, word) = if tag == Tag::Print { ("}}", "variable") } else { ("%}", "block") };
        let strips = self.rest().starts_with('-');
        let signed = self.rest().strip_prefix('-').or_else(|| {
            // Only the end of a block may keep the line end behind it.
            if tag == Tag::Block { self.rest().strip_prefix('+') } else { None }
        });
        let (len, keeps) = match signed {
            Some(rest) if rest.starts_with(end) => (3, !strips),
            _ if self.rest().starts_with(end) => (2, tag == Tag::Print),
            _ if self.rest().is_empty() => return Err(format!("syntax error: unexpected end of input, expected end of {word}")),
            _ => {
                let found = self.rest().chars().next().unwrap_or_default();
                return Err(format!("syntax error: unexpected `{found}`, expected end of {word}"));
            }
        };
        self.out.push_str(end);
        self.at += len;
        self.strip(len == 3 && strips, keeps);
        Ok(())
    }

    /// Behind a tag: drops white space, or one line end (`trim_blocks`), or nothing.
    fn strip(&mut self, all: bool, keep: bool) {
        let rest = self.rest();
        let len = match (all, keep) {
            (true, _) => rest.len() - rest.trim_start_matches(is_space).len(),
            (false, true) => 0,
            (false, false) => usize::from(rest.starts_with('\n')),
        };
        self.owed_lines += lines(&rest[..len]);
        self.at += len;
        self.starts_line = self.source[..self.at].ends_with('\n');
    }

    fn comment(&mut self) -> Result<(), String> {
        let Some(end) = self.rest()[2..].find("#}").map(|end| end + 2) else {
            return Err("syntax error: missing end of comment tag".to_owned());
        };
        let sign = self.rest()[2..end].chars().next_back();
        self.owed_lines += lines(&self.rest()[..end]);
        self.at += end + 2;
        self.strip(sign == Some('-'), sign == Some('+'));
        Ok(())
    }

    /// At `{%`: the whole tag, or the whole block of `raw`.
    fn block_tag(&mut self) -> Result<(), String> {
        let name_at = self.at + tag_name_offset(self.rest());
        let name = identifier(&self.source[name_at..]);
        if name == "raw" {
            return self.raw_block(name_at + name.len());
        }
        self.open_tag("{%");
        self.skip_space();
        self.at += name.len();
        match name {
            "block" | "extends" | "include" | "import" | "from" => return Err(format!("the tag {name:?} is not supported")),
            "generation" => self.out.push_str("with"),
            "endgeneration" => self.out.push_str("endwith"),
            _ => self.out.push_str(name),
        }
        // The parser nests an `elif` in the `else` of the one before it.
        self.branches += usize::from(name == "elif");
        if self.branches > MAX_BRANCHES {
            return Err(format!("more than {MAX_BRANCHES} elif in one template are not supported"));
        }
        if name.starts_with("end") {
            self.blocks = self.blocks.saturating_sub(1);
        } else if BLOCKS.contains(&name) {
            self.open_block()?;
        }
        match name {
            "for" => self.for_tag()?,
            "if" | "elif" | "autoescape" | "do" => self.expression()?,
            "set" => self.set_tag()?,
            "with" => self.assignments()?,
            "macro" => {
                self.name()?;
                self.parameters()?;
            }
            "call" => {
                if self.peek()? == Token::Sign("(") {
                    self.parameters()?;
                }
                self.expression()?;
            }
            "filter" => self.filter_chain()?,
            "else" | "break" | "continue" | "generation" => {}
            _ if name.starts_with("end") => {}
            _ => return Err(format!("syntax error: unknown statement {name}")),
        }
        self.end_tag(Tag::Block)?;
        if matches!(name, "for" | "macro" | "call") {
            self.out.push_str(&format!("{{%do {LOOK}()%}}"));
        }
        for (name, default) in std::mem::take(&mut self.defaults) {
            self.out.push_str(&format!("{{%if {name} is undefined%}}{{%set {name}=({default})|{CHECK}%}}{{%endif%}}"));
        }
        Ok(())
    }

    /// At the end of the name `raw`: up to and with the tag that ends the block.
    fn raw_block(&mut self, name_end: usize) -> Result<(), String> {
        self.owed_lines += lines(&self.source[self.at..name_end]);
        self.at = name_end;
        let space = self.rest().len() - self.rest().trim_start_matches(is_space).len();
        self.owed_lines += lines(&self.rest()[..space]);
        self.at += space;
        let strips = self.rest().starts_with("-%}");
        if !strips && !self.rest().starts_with("%}") {
            return Err("syntax error: expected end of block".to_owned());
        }
        self.at += if strips { 3 } else { 2 };
        // Other than behind other blocks, the line end stays.
        self.strip(strips, true);
        let mut end = 0;
        while let Some(found) = self.rest()[end..].find("{%") {
            end += found;
            let name = end + tag_name_offset(&self.rest()[end..]);
            if identifier(&self.rest()[name..]) == "endraw" {
                let text = &self.rest()[..end];
                let kept = match self.rest()[end + 2..].chars().next() {
                    Some('-') => text.trim_end_matches(is_space),
                    Some('+') => text,
                    _ => self.without_indentation(text),
                };
                self.text(kept, &text[kept.len()..]);
                self.owed_lines += lines(&self.rest()[end..name]);
                self.at += name + "endraw".len();
                let space = self.rest().len() - self.rest().trim_start_matches(is_space).len();
                self.owed_lines += lines(&self.rest()[..space]);
                self.at += space;
                let sign = self.rest().chars().next().filter(|sign| matches!(sign, '-' | '+'));
                self.at += usize::from(sign.is_some());
                if !self.rest().starts_with("%}") {
                    return Err("syntax error: expected end of block".to_owned());
                }
                self.at += 2;
                self.strip(sign == Some('-'), sign == Some('+'));
                return Ok(());
            }
            end += 2;
        }
        Err("syntax error: missing end of raw block".to_owned())
    }

    fn for_tag(&mut self) -> Result<(), String> {
        self.targets("in")?;
        self.keyword("in")?;
        let start = self.out.len();
        self.or_expression()?;
        self.tuple_rest(Self::or_expression)?;
        self.wrap(start, ITERATE);
        self.out.push(' ');
        if self.peek()? == Token::Name("if") {
            self.keyword("if")?;
            self.expression()?;
        }
        if self.peek()? == Token::Name("recursive") {
            self.keyword("recursive")?;
        }
        Ok(())
    }

    /// `set a = …`, `set ns.a = …`, `set a, b = …`, or a block: `set a`, `set a | filter`.
    fn set_tag(&mut self) -> Result<(), String> {
        let is_attribute = self.targets("")?;
        let check = if is_attribute { CHECK_ATTRIBUTE } else { CHECK };
        match self.peek()? {
            Token::Sign("=") => {
                self.sign("=")?;
                let start = self.out.len();
                self.expression()?;
                self.tuple_rest(Self::expression)?;
                self.wrap(start, check);
                Ok(())
            }
            Token::Sign("|") => {
                self.open_block()?;
                self.sign("|")?;
                self.filter_chain()?;
                self.out.push_str(&format!("|{check}"));
                Ok(())
            }
            _ => {
                self.open_block()?;
                self.out.push_str(&format!("|{check}"));
                Ok(())
            }
        }
    }

    /// Names that are assigned to, up to `end`, an equals sign, a pipe or the end; whether one is an attribute.
    fn targets(&mut self, end: &str) -> Result<bool, String> {
        let mut is_attribute = false;
        loop {
            match self.peek()? {
                Token::Name(name) if name == end => return Ok(is_attribute),
                Token::Name(_) | Token::Sign("," | "(" | ")") => {}
                Token::Sign(".") => {
                    is_attribute = true;
                    self.take()?;
                    if let Token::Name(name) = self.peek()? {
                        self.attributes.insert(name);
                        if self.attributes.len() > MAX_ATTRIBUTES {
                            return Err(format!("more than {MAX_ATTRIBUTES} attributes that are set are not supported"));
                        }
                    }
                    continue;
                }
                _ => return Ok(is_attribute),
            }
            self.take()?;
        }
    }

    /// `a = 1, b = 2` becomes `(a, b) = (1, 2)`: no value sees the others.
    fn assignments(&mut self) -> Result<(), String> {
        let (start, mut targets, mut values) = (self.out.len(), Vec::new(), Vec::new());
        while self.peek()? != Token::End {
            let at = self.out.len();
            self.targets("")?;
            if self.peek()? != Token::Sign("=") {
                return Err(self.unexpected("`=`"));
            }
            self.skip_token()?;
            let value_at = self.out.len();
            self.expression()?;
            values.push(self.out[value_at..].to_owned());
            targets.push(self.out[at..value_at].to_owned());
            self.depth = 0;
            if self.peek()? != Token::Sign(",") {
                break;
            }
            self.skip_token()?;
        }
        self.out.truncate(start);
        match (targets.as_slice(), values.as_slice()) {
            ([], _) => {}
            ([target], [value]) => self.out.push_str(&format!(" {target}={value}")),
            _ => self.out.push_str(&format!(" ({}) = ({})", targets.join(","), values.join(","))),
        }
        Ok(())
    }

    /// `(a, b=1)` of a macro. Where a default names a parameter, all of them are given behind the tag.
    fn parameters(&mut self) -> Result<(), String> {
        let depth = self.open("(")?;
        let (mut names, mut defaults, mut names_one) = (Vec::<&str>::new(), Vec::new(), false);
        while self.peek()? != Token::Sign(")") {
            self.depth = depth;
            let Token::Name(name) = self.peek()? else { return Err(self.unexpected("identifier")) };
            self.take()?;
            if self.peek()? == Token::Sign("=") {
                let start = self.out.len();
                self.sign("=")?;
                let (from, value_at) = (self.at, self.out.len());
                self.expression()?;
                let read = &self.source[from..self.at];
                names_one |= names.iter().any(|name| has_word(read, name));
                defaults.push((start..self.out.len(), name, self.out[value_at..].to_owned()));
            }
            names.push(name);
            if self.peek()? != Token::Sign(",") {
                break;
            }
            self.sign(",")?;
        }
        if names_one {
            for (place, name, default) in defaults.into_iter().rev() {
                self.out.replace_range(place, "");
                self.defaults.insert(0, (name, default));
            }
        }
        self.close(")", depth)
    }

    /// `upper|replace('a', 'b')`, as blocks have it.
    fn filter_chain(&mut self) -> Result<(), String> {
        loop {
            self.filter_name()?;
            if self.peek()? == Token::Sign("(") {
                self.arguments(None)?;
            }
            if self.peek()? != Token::Sign("|") {
                return Ok(());
            }
            self.sign("|")?;
        }
    }

    /// Behind the first item of what may be a tuple without parentheses: its other items, and the parentheses.
    fn tuple_rest(&mut self, item: fn(&mut Self) -> Result<(), String>) -> Result<(), String> {
        while self.peek()? == Token::Sign(",") {
            self.sign(",")?;
            if matches!(self.peek()?, Token::End | Token::Sign("=")) {
                break;
            }
            item(self)?;
        }
        Ok(())
    }

    /// `a if b else c`, or what is simpler.
    fn expression(&mut self) -> Result<(), String> {
        self.or_expression()?;
        while self.peek()? == Token::Name("if") {
            self.keyword("if")?;
            self.or_expression()?;
            if self.peek()? != Token::Name("else") {
                continue;
            }
            self.keyword("else")?;
            self.or_expression()?;
        }
        Ok(())
    }

    /// `not a == b and c or d`: what minijinja reads as Jinja2 does, and costs nothing.
    fn or_expression(&mut self) -> Result<(), String> {
        loop {
            while self.peek()? == Token::Name("not") {
                self.keyword("not")?;
            }
            self.comparison()?;
            match self.peek()? {
                Token::Name(name @ ("and" | "or")) => self.keyword(name)?,
                _ => return Ok(()),
            }
        }
    }

    fn comparison(&mut self) -> Result<(), String> {
        self.operation(0)?;
        let mut opened = None;
        loop {
            let operator = match self.peek()? {
                Token::Sign(sign @ ("==" | "!=" | "<" | "<=" | ">" | ">=")) => sign,
                Token::Name("in") => "in",
                Token::Name("not") => "not in",
                _ => break,
            };
            if opened.is_none() {
                self.out.push_str(&format!("|{COMPARE}('{operator}',"));
                opened = Some(self.nest()?);
            } else {
                self.out.push_str(&format!(",'{operator}',"));
            }
            self.skip_token()?;
            if operator == "not in" {
                if self.peek()? != Token::Name("in") {
                    return Err(self.unexpected("in"));
                }
                self.skip_token()?;
            }
            self.operation(0)?;
        }
        if opened.is_some() {
            self.out.push(')');
            self.nesting -= 1;
        }
        Ok(())
    }

    /// `a + b ~ c * d ** e`; `level`: which operators, the weakest first.
    fn operation(&mut self, level: usize) -> Result<(), String> {
        let Some(operators) = OPERATORS.get(level) else {
            return self.unary();
        };
        self.operation(level + 1)?;
        while let Token::Sign(sign) = self.peek()?
            && let Some((_, filter)) = operators.iter().find(|(operator, _)| *operator == sign)
        {
            self.out.push_str(&format!("|{filter}("));
            self.nest()?;
            self.skip_token()?;
            self.operation(level + 1)?;
            self.out.push(')');
            self.nesting -= 1;
        }
        Ok(())
    }

    /// `-a.b[c](d)|e is f`.
    fn unary(&mut self) -> Result<(), String> {
        loop {
            match self.peek()? {
                Token::Sign("-") => self.sign("-")?,
                // minijinja knows no such sign, and it does nothing.
                Token::Sign("+") => self.skip_token()?,
                _ => break,
            }
        }
        self.primary()?;
        self.postfix()?;
        loop {
            match self.peek()? {
                Token::Sign("|") => {
                    self.sign("|")?;
                    self.filter_name()?;
                    if self.peek()? == Token::Sign("(") {
                        self.arguments(None)?;
                    }
                }
                Token::Name("is") => self.test()?,
                _ => return Ok(()),
            }
        }
    }

    /// `is not divisibleby 3`.
    fn test(&mut self) -> Result<(), String> {
        self.keyword("is")?;
        if self.peek()? == Token::Name("not") {
            self.keyword("not")?;
        }
        self.filter_name()?;
        match self.peek()? {
            Token::Sign("(") => self.arguments(None),
            Token::Name("else" | "or" | "and" | "if" | "in" | "not" | "is" | "recursive") => Ok(()),
            Token::Name(_) | Token::Number(_) | Token::Text(_) | Token::Sign("[" | "{") => {
                self.out.push('(');
                self.nest()?;
                self.primary()?;
                self.postfix()?;
                self.out.push(')');
                self.nesting -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn filter_name(&mut self) -> Result<(), String> {
        self.name()?;
        while self.peek()? == Token::Sign(".") {
            self.sign(".")?;
            self.name()?;
        }
        Ok(())
    }

    fn primary(&mut self) -> Result<(), String> {
        match self.peek()? {
            Token::Name("in" | "is" | "if" | "else" | "and" | "or" | "not") => Err(self.unexpected("expression")),
            // The rest of a recursive loop iterates what it is given.
            Token::Name("loop") => {
                self.take()?;
                if self.peek()? == Token::Sign("(") { self.arguments(Some(ITERATE)) } else { Ok(()) }
            }
            Token::Name(_) | Token::Number(_) => self.take(),
            Token::Text(_) => {
                while matches!(self.peek()?, Token::Text(_)) {
                    self.take()?;
                }
                Ok(())
            }
            Token::Sign("(") => self.items("(", ")"),
            Token::Sign("[") => self.items("[", "]"),
            Token::Sign("{") => self.dict(),
            _ => Err(self.unexpected("expression")),
        }
    }

    /// `(a, b)` or `[a, b]`.
    fn items(&mut self, opening: &'static str, closing: &'static str) -> Result<(), String> {
        let depth = self.open(opening)?;
        let mut deepest = depth;
        while self.peek()? != Token::Sign(closing) {
            self.depth = depth;
            self.expression()?;
            deepest = deepest.max(self.depth);
            if self.peek()? != Token::Sign(",") {
                break;
            }
            self.sign(",")?;
        }
        self.close(closing, deepest)
    }

    fn dict(&mut self) -> Result<(), String> {
        let depth = self.open("{")?;
        let mut deepest = depth;
        while self.peek()? != Token::Sign("}") {
            self.depth = depth;
            self.dict_key()?;
            self.sign(":")?;
            self.expression()?;
            deepest = deepest.max(self.depth);
            if self.peek()? != Token::Sign(",") {
                break;
            }
            self.sign(",")?;
        }
        self.close("}", deepest)
    }

    /// A key of a dict or a subscript: what it costs to look it up depends on its length.
    fn dict_key(&mut self) -> Result<(), String> {
        let (start, is_literal) = (self.out.len(), self.key()?);
        if !is_literal {
            self.wrap(start, KEY);
        }
        Ok(())
    }

    /// An expression; `true` if it is a short text or an integer.
    fn key(&mut self) -> Result<bool, String> {
        self.skip_space();
        let start = self.at;
        let first = self.peek()?;
        let is_short = match first {
            Token::Number(_) | Token::Sign("-") => true,
            Token::Text(text) => text.len() <= MAX_NAME_BYTES,
            _ => false,
        };
        self.expression()?;
        let read = self.source[start..self.at].trim();
        let digits = read.strip_prefix('-').unwrap_or(read);
        let is_integer = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit() || digit == b'_');
        Ok(is_short && (is_integer || (read == token_text(first) && matches!(first, Token::Text(_)))))
    }

    fn postfix(&mut self) -> Result<(), String> {
        loop {
            match self.peek()? {
                Token::Sign(".") => self.attribute()?,
                Token::Sign("[") => self.subscript()?,
                Token::Sign("(") => self.arguments(None)?,
                _ => return Ok(()),
            }
        }
    }

    /// `.items` becomes `.__attribute__('items')`, `.items(` stays.
    fn attribute(&mut self) -> Result<(), String> {
        let before = self.out.len();
        self.sign(".")?;
        let name = match self.peek()? {
            Token::Name(name) | Token::Number(name) => name,
            _ => return Err(self.unexpected("identifier or integer")),
        };
        if matches!(self.peek()?, Token::Number(_)) {
            // `a.0.1` would end with a number of minijinja's.
            self.skip_token()?;
            let behind = lines(&self.out[before..]);
            self.out.truncate(before);
            (0..behind).for_each(|_| self.out.push('\n'));
            self.out.push_str(&format!(".{ITEM_METHOD}({name})"));
            return Ok(());
        }
        self.take()?;
        let is_call = self.peek()? == Token::Sign("(");
        if name == "cycle" && is_call && self.rest()[1..].trim_start_matches(is_space).starts_with([')', '*']) {
            // minijinja 3.0.5 divides by the number of arguments.
            return Err("cycle without arguments is not supported".to_owned());
        }
        if name == "changed" && is_call {
            // It compares with the arguments of the call before.
            return self.arguments(Some(TOUCH));
        }
        if !is_call && DICT_METHODS.contains(&name) {
            let behind = lines(&self.out[before..]);
            self.out.truncate(before);
            (0..behind).for_each(|_| self.out.push('\n'));
            self.out.push_str(&format!(".{ATTRIBUTE_METHOD}('{name}')"));
        }
        Ok(())
    }

    /// `[key]` becomes `.__item__(key)`, unless the key is a text that stands there; a slice, `[1:]`, becomes `.__slice__(1,none,none)`.
    fn subscript(&mut self) -> Result<(), String> {
        let start = self.out.len();
        let depth = self.open("[")?;
        let mut deepest = depth;
        let mut colons = 0;
        let mut has_bound = false;
        let mut is_literal = false;
        loop {
            match self.peek()? {
                Token::Sign(":") if colons < 2 => {
                    if !has_bound {
                        self.out.push_str("none");
                    }
                    self.skip_token()?;
                    self.out.push(',');
                    (colons, has_bound) = (colons + 1, false);
                }
                Token::Sign("]") => break,
                _ if has_bound => return Err(self.unexpected("`]`")),
                _ => {
                    self.depth = depth;
                    if colons == 0 {
                        let is_text = matches!(self.peek()?, Token::Text(_));
                        is_literal = self.key()? && is_text;
                    } else {
                        self.expression()?
                    }
                    deepest = deepest.max(self.depth);
                    has_bound = true;
                }
            }
        }
        if colons == 0 && !has_bound {
            return Err("syntax error: empty subscript".to_owned());
        }
        if colons == 0 && is_literal {
            return self.close("]", deepest);
        }
        if colons > 0 {
            self.out.push_str(if has_bound { "" } else { "none" });
            self.out.push_str(if colons == 1 { ",none" } else { "" });
        }
        let method = if colons == 0 { ITEM_METHOD } else { SLICE_METHOD };
        self.out.replace_range(start..start + 1 + self.out[start..].find('[').unwrap_or(0), &format!(".{method}("));
        self.skip_token()?;
        self.out.push(')');
        self.brackets -= 1;
        self.nesting -= 1;
        self.depth = self.depth.max(deepest);
        Ok(())
    }

    /// `(a, b=c, *d, **e)`; `filter`: what each passes, as the function looks at all of it.
    fn arguments(&mut self, filter: Option<&str>) -> Result<(), String> {
        let depth = self.open("(")?;
        let mut deepest = depth;
        while self.peek()? != Token::Sign(")") {
            self.depth = depth;
            let is_spread = matches!(self.peek()?, Token::Sign("*" | "**"));
            if is_spread {
                self.take()?;
            }
            let start = self.out.len();
            self.expression()?;
            if is_spread {
                self.wrap(start, TOUCH);
            } else if let Some(filter) = filter {
                self.wrap(start, filter);
            } else if self.peek()? == Token::Sign("=") {
                self.sign("=")?;
                self.expression()?;
            }
            deepest = deepest.max(self.depth);
            if self.peek()? != Token::Sign(",") {
                break;
            }
            self.sign(",")?;
        }
        self.close(")", deepest)
    }

    /// Puts what was written since `start` into parentheses and through a filter.
    fn wrap(&mut self, start: usize, filter: &str) {
        self.out.insert(start, '(');
        self.out.push_str(&format!(")|{filter}"));
    }

    /// Opens a bracket of the template; gives how deep its items are.
    fn open(&mut self, bracket: &'static str) -> Result<usize, String> {
        self.sign(bracket)?;
        self.brackets += 1;
        self.nest()?;
        Ok(self.depth)
    }

    /// `deepest`: how deep the items went.
    fn close(&mut self, bracket: &'static str, deepest: usize) -> Result<(), String> {
        self.sign(bracket)?;
        self.brackets -= 1;
        self.nesting -= 1;
        self.depth = self.depth.max(deepest);
        Ok(())
    }

    fn nest(&mut self) -> Result<(), String> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            Err(format!("more than {MAX_NESTING} nested brackets are not supported"))
        } else {
            Ok(())
        }
    }

    fn open_block(&mut self) -> Result<(), String> {
        self.blocks += 1;
        if self.blocks > MAX_NESTING { Err(format!("more than {MAX_NESTING} nested blocks are not supported")) } else { Ok(()) }
    }

    fn name(&mut self) -> Result<(), String> {
        if matches!(self.peek()?, Token::Name(_)) { self.take() } else { Err(self.unexpected("identifier")) }
    }

    fn keyword(&mut self, name: &str) -> Result<(), String> {
        if self.peek()? == Token::Name(name) { self.take() } else { Err(self.unexpected(name)) }
    }

    fn sign(&mut self, sign: &str) -> Result<(), String> {
        if self.peek()? == Token::Sign(sign) { self.take() } else { Err(self.unexpected(&format!("`{sign}`"))) }
    }

    fn unexpected(&mut self, expected: &str) -> String {
        match self.peek() {
            Ok(Token::End) if self.rest().is_empty() => format!("syntax error: unexpected end of input, expected {expected}"),
            Ok(Token::End) => format!("syntax error: unexpected end of tag, expected {expected}"),
            Ok(token) => {
                let shown: String = token_text(token).chars().take(40).collect();
                format!("syntax error: unexpected `{shown}`, expected {expected}")
            }
            Err(message) => message,
        }
    }

    /// Copies the next token.
    fn take(&mut self) -> Result<(), String> {
        match self.peek()? {
            Token::Text(text) if text.contains('\\') => self.out.push_str(&literal::rewrite(text)?),
            token => self.out.push_str(token_text(token)),
        }
        self.skip_token()
    }

    /// Leaves the next token out.
    fn skip_token(&mut self) -> Result<(), String> {
        self.at += token_text(self.peek()?).len();
        self.depth += 1;
        if self.depth > MAX_TOKENS {
            return Err(format!("an expression of more than {MAX_TOKENS} tokens is not supported"));
        }
        Ok(())
    }

    /// The next token; the space before it is copied.
    fn peek(&mut self) -> Result<Token<'s>, String> {
        self.skip_space();
        let rest = self.rest();
        let unsigned = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        if rest.is_empty() || (self.brackets == 0 && (unsigned.starts_with("%}") || unsigned.starts_with("}}"))) {
            return Ok(Token::End);
        }
        let first = rest.chars().next().unwrap_or_default();
        if matches!(first, '\'' | '"') {
            return match string_len(rest, first as u8) {
                Some(len) => Ok(Token::Text(&rest[..len])),
                None => Err("syntax error: unexpected end of string".to_owned()),
            };
        }
        if first.is_ascii_digit() {
            // `a.0.1` are two subscripts.
            let is_index = self.out.ends_with('.');
            return Ok(Token::Number(&rest[..number_len(rest, !is_index)]));
        }
        let word = word(rest);
        if !word.is_empty() {
            return if word.len() <= MAX_NAME_BYTES {
                Ok(Token::Name(word))
            } else {
                Err(format!("a name of more than {MAX_NAME_BYTES} bytes is not supported"))
            };
        }
        match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => Ok(Token::Sign(sign)),
            None => Err(format!("syntax error: unexpected `{first}`")),
        }
    }

    fn skip_space(&mut self) {
        let len = self.rest().len() - self.rest().trim_start_matches(is_space).len();
        // minijinja knows the ASCII ones only.
        self.out.extend(self.rest()[..len].chars().map(|space| if space == '\n' { '\n' } else { ' ' }));
        self.at += len;
    }

    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }
}

fn token_text(token: Token<'_>) -> &str {
    match token {
        Token::Name(text) | Token::Number(text) | Token::Text(text) | Token::Sign(text) => text,
        Token::End => "",
    }
}

fn find_tag(text: &str) -> Option<usize> {
    text.match_indices('{').map(|(at, _)| at).find(|at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

fn lines(text: &str) -> usize {
    text.matches('\n').count()
}

/// Python's `\s`.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// Where the name starts in `{%- name`.
fn tag_name_offset(tag: &str) -> usize {
    let inside = tag[2..].strip_prefix(['-', '+']).unwrap_or(&tag[2..]);
    tag.len() - inside.trim_start_matches(is_space).len()
}

/// The ASCII name or number at the start of `text`.
fn identifier(text: &str) -> &str {
    let end = text.bytes().position(|byte| !byte.is_ascii_alphanumeric() && byte != b'_');
    &text[..end.unwrap_or(text.len())]
}

/// The name at the start of `text`, in any script.
fn word(text: &str) -> &str {
    let end = text.char_indices().find(|(_, letter)| !letter.is_alphanumeric() && *letter != '_');
    &text[..end.map_or(text.len(), |(at, _)| at)]
}

/// Whether an expression has this word outside of its texts, or within one: what is found without need is moved without harm.
fn has_word(expression: &str, name: &str) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    expression
        .match_indices(name)
        .any(|(at, _)| !expression[..at].ends_with(is_part) && !expression[at + name.len()..].starts_with(is_part))
}

/// How many bytes the number at the start of `text` takes.
fn number_len(text: &str, may_be_float: bool) -> usize {
    let mut len = identifier(text).len();
    let is_float = may_be_float && !text.starts_with("0x") && !text.starts_with("0X");
    if is_float && text[len..].strip_prefix('.').is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit())) {
        len += 1 + identifier(&text[len + 1..]).len();
    }
    if is_float && text[..len].ends_with(['e', 'E']) && text[len..].starts_with(['-', '+']) {
        len += 1 + identifier(&text[len + 1..]).len();
    }
    len
}

/// How many bytes the string literal at the start of `text` takes, quotes included.
fn string_len(text: &str, quote: u8) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The binary operators by precedence, the weakest first.
const OPERATORS: [&[(&str, &str)]; 4] = [
    &[("+", ADD), ("-", SUBTRACT)],
    &[("~", CONCAT)],
    &[("*", MULTIPLY), ("/", DIVIDE), ("//", DIVIDE_FLOOR), ("%", REMAINDER)],
    &[("**", POWER)],
];
/// The longest first.
const SIGNS: [&str; 25] = [
    "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", "|", ".", ",", ":", "(", ")", "[", "]", "{",
    "}",
];
/// The methods of Python's dict.
pub(super) const DICT_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
/// The tags that have an end, but for `set`, which may have one.
const BLOCKS: [&str; 8] = ["if", "for", "macro", "call", "filter", "with", "generation", "autoescape"];
// minijinja's parser and code generator recurse along all four of these. Together the limits take less than 512 KiB of stack, which
// is what a thread of an app on Apple's systems has; real templates stay below 50 tokens, 20 elif and 15 blocks or brackets.
const MAX_TOKENS: usize = 250;
const MAX_BRANCHES: usize = 100;
const MAX_NESTING: usize = 50;
/// A name, and a literal that is looked up without being counted.
const MAX_NAME_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn only_what_differs_is_rewritten() {
        let mut wrong = Vec::new();
        for (source, expected) in [
            ("plain } text { %} {x", "{{'plain } text { %} {x'}}"),
            ("it's \\ a", "{{'it\\'s \\\\ a'}}"),
            ("{{ a[1:] }}", "{{ a.__slice__(1,none,none) }}"),
            ("{{ a[::-1][0] }}", "{{ a.__slice__(none,none,-1).__item__(0) }}"),
            ("{{ a[b[1:2][0]:c(x, y)] }}", "{{ a.__slice__(b.__slice__(1,2,none).__item__(0),c(x, y),none) }}"),
            ("{{ [{'a': 1}, {b: 2}] }}", "{{ [{'a': 1}, {(b)|__key__: 2}] }}"),
            ("{{ a['b'][c] }}", "{{ a['b'].__item__(c) }}"),
            ("{{ a[0][-1][1.0].0.1 }}", "{{ a.__item__(0).__item__(-1).__item__(1.0).__item__(0).__item__(1) }}"),
            ("{{ 'a\\\nb' }}", "{{ \n'ab' }}"),
            (
                "{% macro m(a, b=a, c=1) %}x{% endmacro %}",
                "{% macro m(a, b, c) %}{%do __look__()%}{%if b is undefined%}{%set b=(a)|__check__%}{%endif%}{%if c is undefined%}{%set c=(1)|__check__%}{%endif%}{{'x'}}{% endmacro %}",
            ),
            ("{% macro m(a, b='x') %}x{% endmacro %}", "{% macro m(a, b='x') %}{%do __look__()%}{{'x'}}{% endmacro %}"),
            ("{% with a = 1, b = a %}{% endwith %}", "{% with (a ,b ) = ( 1, a )%}{% endwith %}"),
            ("{{ '[1:]' ~ \"\\\"[1:]\" }}", "{{ '[1:]' |__concat__( '\"[1:]' )}}"),
            ("{# a[1:] #}{{ {'a': {'b': 1}} }}", "{{ {'a': {'b': 1}} }}"),
            ("{{ a + b * -c ** d|f(e - 1) }}", "{{ a |__add__( b |__multiply__( -c |__power__( d|f(e |__subtract__( 1)) )))}}"),
            ("{{ not a == b and c < d <= e }}", "{{ not a |__compare__('==', b )and c |__compare__('<', d ,'<=', e )}}"),
            (
                "{{ a not in b if c is in [d] else e is not none }}",
                "{{ a |__compare__('not in',  b )if c is in ([d] )else e is not none }}",
            ),
            (
                "{{ f(*a, **b) }}{{ loop.changed(a, b) }}",
                "{{ f(*(a)|__touch__, **(b)|__touch__) }}{{ loop.changed((a)|__touch__, (b)|__touch__) }}",
            ),
            ("{% for a, b in c, d if e recursive %}", "{% for a, b in( c, d )|__iterate__ if e recursive %}{%do __look__()%}"),
            ("{%- generation -%} x {%- endgeneration %}", "{% with %}{{'x'}}{% endwith %}"),
            ("{% raw %}{{ a[1:] }}\n {%- endraw -%} {{ a[:2] }}", "{{'{{ a[1:] }}'}}{{\n a.__slice__(none,2,none) }}"),
            ("{{ d.items() }}{{ d.items }}", "{{ d.items() }}{{ d.__attribute__('items')}}"),
            ("{% set ns.values = ns.values -%}", "{% set ns.values =( ns.__attribute__('values'))|__check_attribute__%}"),
            ("{% set a, b = 1, 2 %}", "{% set a, b =( 1, 2 )|__check__%}"),
            ("{%- set a | trim -%}x{% endset %}", "{% set a | trim |__check__%}{{'x'}}{% endset %}"),
            ("{{ é[1:] }}", "{{ é.__slice__(1,none,none) }}"),
            ("a\r\nb\rc\n", "{{'a\nb\nc'}}"),
            // White space as trim_blocks and lstrip_blocks have it.
            ("a\n  {% if b %}\n  c\n  {%+ endif +%}\n", "{{'a\n'}}{% if b %}{{\n'  c\n  '}}{% endif %}"),
            ("a  {% if b %} {{- c -}} \n {# d #}\n\n{% endif %}", "{{'a  '}}{% if b %}{{ c }}{{\n\n'\n'}}{% endif %}"),
            ("{% if b %}\n  {{ c }}\n{% endif %}", "{% if b %}{{\n'  '}}{{ c }}{{'\n'}}{% endif %}"),
        ] {
            let found = rewrite(source).unwrap();
            if found != expected {
                wrong.push((found, expected));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn tags_that_load_templates_are_refused() {
        assert_eq!(rewrite("\n{%- include 'x' %}").unwrap_err().message, "the tag \"include\" is not supported");
    }

    #[test]
    fn endless_expressions_are_refused_with_their_line() {
        let error = rewrite(&format!("\n\n{{{{ 1{} }}}}", "+1".repeat(100_000))).unwrap_err();
        assert_eq!(error.line, 3);
        for source in [
            "{{ a[1:",
            "{%",
            "{% raw",
            "{{ 'a",
            "{{ 'a\\",
            "{#",
            "{{ }}",
            "{{ a b }}",
            "{% if %}",
            "{{ a[] }}",
            "{% set = 1 %}x{{ 1 + }}",
        ] {
            assert!(rewrite(source).unwrap_err().message.starts_with("syntax error: "), "{source}");
        }
        let (chain, calls) = ("+1".repeat(150), "+f(a, b)".repeat(1000));
        for source in [format!("[1{chain}, 2]{chain}"), format!("[[1{chain}, 2], 3]{chain}"), format!("1{calls}")] {
            assert!(rewrite(&format!("{{{{ {source} }}}}")).is_err(), "{source}");
        }
        assert!(rewrite(&format!("{{% set names = {{ {} }} %}}", "'a': f('b', [c]),".repeat(1000))).is_ok());
        let error = rewrite(&format!("{{% if a %}}{}", "\n{% elif a %}".repeat(100_000))).unwrap_err();
        assert_eq!(error.line, 102);
    }
}
