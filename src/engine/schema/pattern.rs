//! Patterns of ECMA-262, as JSON Schema has them, in the syntax of the crate `regex`.
//!
//! ```ignore
//! translate(r"^[[]\d\s.$") // ^[\[][0-9][\x09-\x0d…][^\n\r\u{2028}\u{2029}]$
//! ```
//!
//! # Source
//! ECMA-262, 22.2 with the flag `u`, and where that forbids what everyone writes (`\-`, a lone brace), annex B.

/// The pattern that matches the same texts.
///
/// # Errors
/// What ECMA-262 does not know.
pub(super) fn translate(pattern: &str) -> Result<String, String> {
    let mut reader = Reader { rest: pattern, out: String::new() };
    let mut last = Last::Nothing;
    while let Some(letter) = reader.next() {
        last = match letter {
            '*' | '+' | '?' => {
                reader.out.push(letter);
                last.repeated(letter)?
            }
            '{' if reader.brace() => last.repeated(letter)?,
            '(' => {
                reader.group()?;
                Last::Nothing
            }
            '|' | '^' | '$' => {
                reader.out.push(letter);
                Last::Nothing
            }
            _ => {
                match letter {
                    '\\' => reader.escape(false)?,
                    '[' => reader.class()?,
                    '.' => reader.out.push_str(r"[^\n\r\x{2028}\x{2029}]"),
                    '{' | '}' | ']' => reader.literal(letter),
                    // No flag makes these a comment or a space that does not count.
                    _ => reader.out.push(letter),
                }
                Last::Atom
            }
        };
    }
    Ok(reader.out)
}

/// What stands before a quantifier.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    /// The beginning of a pattern, a group or a choice, or a place in the text.
    Nothing,
    Atom,
    Quantifier,
    /// One that is told to take as little as it can.
    Lazy,
}

impl Last {
    /// Behind a quantifier, which Rust lets stand behind another one.
    fn repeated(self, quantifier: char) -> Result<Self, String> {
        match (self, quantifier) {
            (Self::Atom, _) => Ok(Self::Quantifier),
            (Self::Quantifier, '?') => Ok(Self::Lazy),
            _ => Err(format!("{quantifier}: ECMA-262 has nothing to repeat here")),
        }
    }
}

struct Reader<'p> {
    rest: &'p str,
    out: String,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let letter = self.rest.chars().next()?;
        self.rest = &self.rest[letter.len_utf8()..];
        Some(letter)
    }

    fn literal(&mut self, letter: char) {
        if letter.is_ascii_punctuation() {
            self.out.push('\\');
        }
        self.out.push(letter);
    }

    fn code(&mut self, code: u32) {
        self.out.push_str(&format!("\\x{{{code:X}}}"));
    }

    /// Whether a `{` begins a quantifier, `{2,3}`, which is then read; else it is a brace.
    fn brace(&mut self) -> bool {
        let end = self.rest.find('}').filter(|end| {
            let (least, most) = self.rest[..*end].split_once(',').unwrap_or((&self.rest[..*end], ""));
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            !least.is_empty() && digits(least) && digits(most)
        });
        if let Some(end) = end {
            self.out.push('{');
            self.out.push_str(&self.rest[..=end]);
            self.rest = &self.rest[end + 1..];
        }
        end.is_some()
    }

    /// Behind `(`: flags are Rust's alone.
    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        if let Some(kind) = self.rest.strip_prefix('?') {
            let known = [":", "=", "!", "<=", "<!"].into_iter().find(|known| kind.starts_with(known)).map(str::len);
            let name = || kind.find('>').filter(|_| kind.starts_with('<')).map(|end| end + 1);
            if let Some(len) = known.or_else(name) {
                let (prefix, rest) = self.rest.split_at(1 + len);
                self.out.push_str(prefix);
                self.rest = rest;
                return Ok(());
            }
            return Err(format!("(?{}: ECMA-262 has no such group", kind.chars().take(1).collect::<String>()));
        }
        Ok(())
    }

    /// Behind a backslash.
    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let Some(letter) = self.next() else { return Err("a backslash at its end".to_owned()) };
        match letter {
            'd' | 'D' | 'w' | 'W' | 's' | 'S' => {
                let set = match letter.to_ascii_lowercase() {
                    'd' => "0-9",
                    'w' => "A-Za-z0-9_",
                    _ => SPACE,
                };
                let text = match (letter.is_ascii_uppercase(), in_class) {
                    (true, _) => format!("[^{set}]"),
                    (false, true) => set.to_owned(),
                    (false, false) => format!("[{set}]"),
                };
                self.out.push_str(&text);
            }
            't' => self.code(9),
            'n' => self.code(10),
            'v' => self.code(11),
            'f' => self.code(12),
            'r' => self.code(13),
            '0' if !self.rest.starts_with(|digit: char| digit.is_ascii_digit()) => self.code(0),
            'b' if in_class => self.code(8),
            'b' | 'B' => {
                self.out.push('\\');
                self.out.push(letter);
            }
            'c' => match self.next() {
                Some(control) if control.is_ascii_alphabetic() => self.code(u32::from(control) % 32),
                _ => return Err("\\c without a letter".to_owned()),
            },
            'x' => {
                let code = self.hex(2).ok_or("\\x without two digits")?;
                self.code(code);
            }
            'u' => {
                let code = self.unicode()?;
                self.code(code);
            }
            'p' | 'P' => {
                self.out.push('\\');
                self.out.push(letter);
                let end = self.rest.find('}').filter(|_| self.rest.starts_with('{')).ok_or("\\p without a property in braces")?;
                self.out.push_str(&self.rest[..=end]);
                self.rest = &self.rest[end + 1..];
            }
            _ if letter.is_ascii_alphanumeric() => return Err(format!("\\{letter}: ECMA-262 has no such escape")),
            _ => self.literal(letter),
        }
        Ok(())
    }

    fn hex(&mut self, digits: usize) -> Option<u32> {
        let text = self.rest.get(..digits).filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        self.rest = &self.rest[digits..];
        u32::from_str_radix(text, 16).ok()
    }

    /// `\u00e9`, `\ud83d\ude00` or `\u{1f600}`, behind the u.
    fn unicode(&mut self) -> Result<u32, String> {
        let wrong = || "\\u without a code point".to_owned();
        if let Some(rest) = self.rest.strip_prefix('{') {
            let end = rest.find('}').ok_or_else(wrong)?;
            let code = u32::from_str_radix(&rest[..end], 16).ok().filter(|code| char::from_u32(*code).is_some());
            self.rest = &rest[end + 1..];
            return code.ok_or_else(wrong);
        }
        let first = self.hex(4).ok_or_else(wrong)?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first).map(u32::from).ok_or_else(wrong);
        }
        self.rest = self.rest.strip_prefix("\\u").ok_or_else(wrong)?;
        let second = self.hex(4).filter(|second| (0xdc00..0xe000).contains(second)).ok_or_else(wrong)?;
        Ok(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00))
    }

    fn starts_set(&self) -> bool {
        self.rest.strip_prefix('\\').is_some_and(is_set)
    }

    /// Behind `[`: there are no classes in classes and no operations on them, and `[]` and `[^]` are nothing and everything.
    fn class(&mut self) -> Result<(), String> {
        let negated = self.rest.starts_with('^');
        if negated {
            self.next();
        }
        if self.rest.starts_with(']') {
            self.next();
            self.out.push_str(if negated { r"[\x{0}-\x{10FFFF}]" } else { r"[^\x{0}-\x{10FFFF}]" });
            return Ok(());
        }
        self.out.push_str(if negated { "[^" } else { "[" });
        // Whether a range may begin with what stands before.
        let mut is_letter = false;
        loop {
            match self.next() {
                None => return Err("a class without its end".to_owned()),
                Some(']') => break,
                // A range, unless it stands at an end or beside a set.
                Some('-') if is_letter && !self.starts_set() && !self.rest.starts_with(']') => {
                    self.out.push('-');
                    match self.next() {
                        Some('\\') => self.escape(true)?,
                        Some(letter) => self.literal(letter),
                        None => {}
                    }
                    is_letter = false;
                    continue;
                }
                Some('\\') => {
                    is_letter = !is_set(self.rest);
                    self.escape(true)?;
                    continue;
                }
                Some(letter) => self.literal(letter),
            }
            is_letter = true;
        }
        self.out.push(']');
        Ok(())
    }
}

/// Whether an escape that begins so, behind its backslash, stands for several letters.
fn is_set(escape: &str) -> bool {
    escape.starts_with(['d', 'D', 'w', 'W', 's', 'S', 'p', 'P'])
}

/// `WhiteSpace` and `LineTerminator` of ECMA-262.
const SPACE: &str = r"\x{9}-\x{D} \x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}";

#[cfg(test)]
mod tests {
    use super::translate;

    #[test]
    fn patterns_mean_what_they_mean_in_ecma_262() {
        for (pattern, matching, others) in [
            (r"^\d+$", &["12"][..], &["١٢", "a"][..]),
            (r"^\w$", &["a", "_"], &["é"]),
            (r"^\W$", &["é", "-"], &["a"]),
            (r"^\s$", &[" ", "\u{feff}", "\u{2003}", "\u{b}"], &["\u{85}", "a"]),
            (r"^\S$", &["a", "\u{85}"], &["\u{feff}"]),
            (r"^.$", &["a", "\u{85}"], &["\n", "\r", "\u{2028}"]),
            (r"^[[]$", &["["], &["a"]),
            (r"^[a&&b]+$", &["a&b"], &["c"]),
            (r"^[+--]$", &["+", ",", "-"], &["a"]),
            (r"^[\w-~]$", &["a", "-", "~"], &["!"]),
            (r"^[%-\d]$", &["%", "-", "1"], &["&"]),
            (r"^[a-c]$", &["b"], &["-"]),
            (r"^[\w-]+$", &["a-b"], &["é"]),
            (r"^[^\d\s]$", &["a"], &["1", " "]),
            (r"^[\D]$", &["a"], &["1"]),
            (r"^[^]$", &["\n", "a"], &[""]),
            (r"^a{,2}$", &["a{,2}"], &["aa"]),
            (r"^{a}$", &["{a}"], &["a"]),
            (r"^a{2}$", &["aa"], &["a"]),
            (r"^\/\-\.$", &["/-."], &["/-a"]),
            (r"^\x41\u0042\u{43}\ud83d\ude00$", &["ABC😀"], &["ABC"]),
            (r"^\cJ\0\v$", &["\n\0\u{b}"], &["J"]),
            (r"^[\b]$", &["\u{8}"], &["b"]),
            (r"^\p{L}$", &["é"], &["1"]),
            ("^ #a$", &[" #a"], &["a"]),
        ] {
            let rust = regex_of(pattern);
            for text in matching {
                assert!(rust.is_match(text).unwrap(), "{pattern} {text:?}");
            }
            for text in others {
                assert!(!rust.is_match(text).unwrap(), "{pattern} {text:?}");
            }
        }
        for pattern in [r"\Z", r"\A", r"\a", r"\h", "(?i)a", "(?P<n>a)", "[a", "\\", r"\u12", r"\ud83d", r"\c1"] {
            assert!(translate(pattern).is_err(), "{pattern}");
        }
        // A quantifier is repeated by none.
        for pattern in
            ["a++", "a**", "a{2}{3}", "a{1,}+", "a+{2}", "a???", "a{2}??", "*", "(?:+a)", "a|?", "^*", "{2}", "(?<n>{2})"]
        {
            assert!(translate(pattern).is_err(), "{pattern}");
        }
        for pattern in ["a+?", "a{2,3}?", "(?<n>a)+", "(?:a|b)??", r"\d*?", "[a]{2}", "{a}+", "a{,2}*", "(?=a)b", r"\++"] {
            assert_eq!(translate(pattern).map(|_| ()), Ok(()), "{pattern}");
        }
    }

    fn regex_of(pattern: &str) -> fancy_regex::Regex {
        let rust = translate(pattern).unwrap();
        fancy_regex::Regex::new(&rust).unwrap_or_else(|error| panic!("{pattern}: {rust}: {error}"))
    }
}
