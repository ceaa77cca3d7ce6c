//! String literals of a template, as Python reads them.
//!
//! Jinja2 decodes a literal by Python's `unicode_escape`; minijinja knows some of its escapes and keeps the others as they are.
//!
//! ```text
//! 'a\U0001F600'  →  'a😀'
//! 'a\q'          →  'a\\q'      an escape that there is none of stays
//! ```

use super::SURROGATES;

/// What the literal between `quote` and `quote` means, written so that minijinja reads it.
///
/// # Errors
/// A sentence about an escape that Python refuses, or a character's name that is not known.
pub(super) fn rewrite(literal: &str) -> Result<String, String> {
    let text = decode(&literal[1..literal.len() - 1])?;
    let mut written = String::with_capacity(literal.len() + 2);
    // What stood on several lines still does: minijinja counts them.
    literal.matches('\n').for_each(|line_end| written.push_str(line_end));
    written.push('\'');
    for letter in text.chars() {
        match letter {
            '\\' | '\'' => written.extend(['\\', letter]),
            '\n' => written.push_str("\\n"),
            _ => written.push(letter),
        }
    }
    written.push('\'');
    Ok(written)
}

/// Whether a template has text that [`surrogates_joined`] must look at.
pub(super) fn may_have_surrogates(source: &str) -> bool {
    source.match_indices("\\u").any(|(at, _)| source[at + 2..].starts_with(['d', 'D'])) || source.contains("\\U0000")
}

/// Python's strings hold halves of UTF-16 pairs; here they are letters of their own until the text is complete.
///
/// # Errors
/// Half of a pair without the other one, which is no text.
pub(super) fn surrogates_joined(text: String) -> Result<String, String> {
    let half = |letter: char| (letter >= SURROGATES).then(|| (letter as u32 - SURROGATES as u32) as u16 + 0xd800);
    if !text.chars().any(|letter| half(letter).is_some()) {
        return Ok(text);
    }
    let mut units = Vec::with_capacity(text.len());
    for letter in text.chars() {
        match half(letter) {
            Some(unit) => units.push(unit),
            None => units.extend_from_slice(letter.encode_utf16(&mut [0; 2])),
        }
    }
    String::from_utf16(&units).map_err(|_| "the text has half of a surrogate pair".to_owned())
}

/// Python's `text.encode("ascii", "backslashreplace").decode("unicode_escape")`.
fn decode(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(letter) = rest.chars().next() else { break };
        rest = &rest[letter.len_utf8()..];
        match letter {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(letter),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|digit| matches!(digit, b'0'..=b'7')).count();
                let digits = format!("{letter}{}", &rest[..more]);
                rest = &rest[more..];
                out.push(u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32).unwrap_or_default());
            }
            'x' => out.push(code(&mut rest, 2)?),
            'u' => out.push(code(&mut rest, 4)?),
            'U' => out.push(code(&mut rest, 8)?),
            'N' => {
                let name = rest.strip_prefix('{').and_then(|name| name.split_once('}'));
                let (name, behind) = name.ok_or("malformed \\N character escape")?;
                rest = behind;
                out.push(named(name)?);
            }
            _ if letter.is_ascii() => out.extend(['\\', letter]),
            // The letter had become an escape itself, whose backslash is what the first one escapes.
            _ => match letter as u32 {
                code @ ..0x100 => out.push_str(&format!("\\x{code:02x}")),
                code @ ..0x10000 => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The letter of a number of hexadecimal digits.
fn code(rest: &mut &str, digits: usize) -> Result<char, String> {
    let found = rest.bytes().take(digits).take_while(u8::is_ascii_hexdigit).count();
    let value = u32::from_str_radix(&rest[..found], 16).ok().filter(|_| found == digits);
    let value = value.ok_or_else(|| format!("truncated escape: expected {digits} hexadecimal digits, found {found}"))?;
    *rest = &rest[found..];
    let value = if (0xd800..0xe000).contains(&value) { value - 0xd800 + SURROGATES as u32 } else { value };
    char::from_u32(value).ok_or_else(|| format!("illegal Unicode character {value:x}"))
}

fn named(name: &str) -> Result<char, String> {
    let upper = name.to_ascii_uppercase();
    let letters = [("LATIN CAPITAL LETTER ", 'A'), ("LATIN SMALL LETTER ", 'a')];
    for (prefix, first) in letters {
        if let Some([letter @ b'A'..=b'Z']) = upper.strip_prefix(prefix).map(str::as_bytes) {
            return Ok(char::from(first as u8 + letter - b'A'));
        }
    }
    let found = NAMES.iter().find(|(known, _)| *known == upper);
    found
        .map(|(_, letter)| *letter)
        .ok_or_else(|| format!("the character name {name:?} is not supported: write its number, \\uXXXX"))
}

/// Signs that are hard to tell apart or to type: whoever writes a name, writes one of these. The whole list of Unicode is a megabyte.
#[rustfmt::skip]
const NAMES: [(&str, char); 64] = [
    ("SPACE", ' '), ("NO-BREAK SPACE", '\u{a0}'), ("LINE FEED", '\n'), ("CARRIAGE RETURN", '\r'), ("CHARACTER TABULATION", '\t'),
    ("NULL", '\0'), ("EXCLAMATION MARK", '!'), ("QUOTATION MARK", '"'), ("NUMBER SIGN", '#'), ("DOLLAR SIGN", '$'),
    ("PERCENT SIGN", '%'), ("AMPERSAND", '&'), ("APOSTROPHE", '\''), ("LEFT PARENTHESIS", '('), ("RIGHT PARENTHESIS", ')'),
    ("ASTERISK", '*'), ("PLUS SIGN", '+'), ("COMMA", ','), ("HYPHEN-MINUS", '-'), ("FULL STOP", '.'), ("SOLIDUS", '/'),
    ("COLON", ':'), ("SEMICOLON", ';'), ("LESS-THAN SIGN", '<'), ("EQUALS SIGN", '='), ("GREATER-THAN SIGN", '>'),
    ("QUESTION MARK", '?'), ("COMMERCIAL AT", '@'), ("LEFT SQUARE BRACKET", '['), ("REVERSE SOLIDUS", '\\'),
    ("RIGHT SQUARE BRACKET", ']'), ("CIRCUMFLEX ACCENT", '^'), ("LOW LINE", '_'), ("GRAVE ACCENT", '`'),
    ("LEFT CURLY BRACKET", '{'), ("VERTICAL LINE", '|'), ("RIGHT CURLY BRACKET", '}'), ("TILDE", '~'),
    ("BULLET", '•'), ("MIDDLE DOT", '·'), ("EM DASH", '—'), ("EN DASH", '–'), ("HORIZONTAL ELLIPSIS", '…'), ("HYPHEN", '‐'),
    ("NON-BREAKING HYPHEN", '\u{2011}'), ("SOFT HYPHEN", '\u{ad}'), ("MINUS SIGN", '−'), ("MULTIPLICATION SIGN", '×'),
    ("LEFT SINGLE QUOTATION MARK", '‘'), ("RIGHT SINGLE QUOTATION MARK", '’'), ("LEFT DOUBLE QUOTATION MARK", '“'),
    ("RIGHT DOUBLE QUOTATION MARK", '”'), ("LEFTWARDS ARROW", '←'), ("RIGHTWARDS ARROW", '→'), ("DEGREE SIGN", '°'),
    ("EURO SIGN", '€'), ("CHECK MARK", '✓'), ("BALLOT X", '✗'), ("BLACK STAR", '★'), ("ZERO WIDTH SPACE", '\u{200b}'),
    ("ZERO WIDTH JOINER", '\u{200d}'), ("WORD JOINER", '\u{2060}'), ("LOWER ONE EIGHTH BLOCK", '▁'), ("REPLACEMENT CHARACTER", '\u{fffd}'),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_those_of_python() {
        for (literal, text) in [
            (r"\a\b\f\n\r\t\v\\\'\0", "\u{7}\u{8}\u{c}\n\r\t\u{b}\\'\0"),
            (r"\101\12x\777\8", "A\nxǿ\\8"),
            (r"\x41\xe9\u00e9\U0001F600", "Aéé😀"),
            (r"\N{bullet}\N{EM DASH}\N{LATIN SMALL LETTER Q}", "•—q"),
            (r"\q\/\{\é\日\😀", r"\q\/\{\xe9\u65e5\U0001f600"),
            ("a\\\nb\nc", "ab\nc"),
        ] {
            assert_eq!(decode(literal).unwrap(), text, "{literal}");
        }
        for literal in [r"\x4", r"\u12", r"\U123", r"\U00110000", r"\N{nobody}", r"\N{bullet", r"\Nbullet", r"\x4é"] {
            assert!(decode(literal).is_err(), "{literal}");
        }
        assert_eq!(rewrite("'a\\\nb\n'").unwrap(), "\n\n'ab\\n'");
        assert_eq!(rewrite(r#""it's \" ""#).unwrap(), r#"'it\'s " '"#);
    }

    #[test]
    fn halves_of_a_pair_are_letters_until_they_are_shown() {
        let text = decode(r"\ud83d\ude00").unwrap();
        assert_eq!((text.chars().count(), surrogates_joined(text).unwrap().as_str()), (2, "😀"));
        assert!(surrogates_joined(decode(r"\ude00\ud83d").unwrap()).is_err());
    }
}
