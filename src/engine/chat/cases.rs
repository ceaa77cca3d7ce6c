//! Upper, lower and title case of texts as Python has them.
//!
//! ```text
//! title("ǆ ßa ΟΔΟΣ")  →  "ǅ Ssa Οδος"
//! casefold("ßς")      →  "ssσ"
//! ```

/// `str.title`.
pub(super) fn title(text: &str) -> String {
    let mut lower = Lower::of(text);
    let mut after_cased = false;
    let mut result = String::with_capacity(text.len());
    for letter in text.chars() {
        let lower = lower.next(letter);
        if after_cased {
            result.push_str(lower)
        } else {
            result.extend(title_case(letter))
        }
        after_cased = is_cased(letter);
    }
    result
}

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut lower = Lower::of(text);
    let Some(first) = text.chars().next() else { return String::new() };
    lower.next(first);
    title_case(first).chain(lower.rest().chars()).collect()
}

/// `str.swapcase`.
pub(super) fn swap_case(text: &str) -> String {
    let mut lower = Lower::of(text);
    let mut result = String::with_capacity(text.len());
    for letter in text.chars() {
        let lower = lower.next(letter);
        if letter.is_uppercase() { result.push_str(lower) } else { result.extend(letter.to_uppercase()) }
    }
    result
}

/// `str.casefold`: what remains of a text when case makes no difference.
pub(super) fn casefold(text: &str) -> String {
    text.chars().flat_map(fold).collect()
}

/// Unicode's full case folding. It is the lower case of the upper case but for two scripts.
fn fold(letter: char) -> Vec<char> {
    match letter {
        'ı' => vec!['ı'],
        // Cherokee folds to its capitals, which are older.
        '\u{13a0}'..='\u{13f5}' => vec![letter],
        '\u{13f8}'..='\u{13fd}' | '\u{ab70}'..='\u{abbf}' => letter.to_uppercase().collect(),
        _ => letter.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect(),
    }
}

/// The lower case of a text, letter by letter: a sigma's depends on where it stands.
struct Lower {
    text: String,
    at: usize,
}

impl Lower {
    fn of(text: &str) -> Self {
        Self { text: text.to_lowercase(), at: 0 }
    }

    /// Of the next letter of the text.
    fn next(&mut self, letter: char) -> &str {
        let rest = &self.text[self.at..];
        let len = rest.chars().take(letter.to_lowercase().count()).map(char::len_utf8).sum::<usize>();
        self.at += len;
        &rest[..len]
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }
}

/// A `title` of one letter; `ß` becomes `Ss`.
fn title_case(letter: char) -> impl Iterator<Item = char> {
    let own = match letter {
        'Ǆ'..='ǆ' => Some('ǅ'),
        'Ǉ'..='ǉ' => Some('ǈ'),
        'Ǌ'..='ǌ' => Some('ǋ'),
        'Ǳ'..='ǳ' => Some('ǲ'),
        // Georgian has capitals for whole words alone.
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => Some(letter),
        // Greek with an iota below: the capitals have it beside them, and count as title case.
        '\u{1f80}'..='\u{1faf}' => char::from_u32(letter as u32 | 8),
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => char::from_u32(letter as u32 + 9),
        '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}' => Some(letter),
        _ => None,
    };
    let iota = matches!(
        letter,
        '\u{1fb2}' | '\u{1fb4}' | '\u{1fb7}' | '\u{1fc2}' | '\u{1fc4}' | '\u{1fc7}' | '\u{1ff2}' | '\u{1ff4}' | '\u{1ff7}'
    );
    let many = own.is_none().then(|| letter.to_uppercase()).into_iter().flatten();
    let many = many.enumerate().map(move |(at, upper)| match upper {
        'Ι' if at > 0 && iota => '\u{345}',
        // `ŉ` is an apostrophe and a letter.
        _ if at == 0 || letter == 'ŉ' => upper,
        _ => upper.to_lowercase().next().unwrap_or(upper),
    });
    own.into_iter().chain(many)
}

fn is_cased(letter: char) -> bool {
    letter.is_lowercase()
        || letter.is_uppercase()
        || matches!(letter, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_those_of_python() {
        for (text, titled, capital, swapped, folded) in [
            ("hello wORLD it's", "Hello World It'S", "Hello world it's", "HELLO World IT'S", "hello world it's"),
            ("ßa ǆb ŉ", "Ssa ǅb ʼN", "Ssa ǆb ŉ", "SSA ǄB ʼN", "ssa ǆb ʼn"),
            ("ΑΣ Σ ΑΣΑ", "Ας Σ Ασα", "Ας σ ασα", "ας σ ασα", "ασ σ ασα"),
            ("ᾳx ῲ ა ı İ", "ᾼx Ὼͅ ა I İ", "ᾼx ῲ ა ı i̇", "ΑΙX ῺΙ Ა I i̇", "αιx ὼι ა ı i̇"),
            ("ﬁx ﬃ", "Fix Ffi", "Fix ﬃ", "FIX FFI", "fix ffi"),
        ] {
            assert_eq!(
                (title(text).as_str(), capitalize(text).as_str(), swap_case(text).as_str(), casefold(text).as_str()),
                (titled, capital, swapped, folded)
            );
        }
    }
}
