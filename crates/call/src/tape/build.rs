//! Builds a table from a text. The text is JSON: a parser that knows the whole grammar has read it before.

use smallvec::SmallVec;

use super::same::name_hash;
use super::{CONTAINER, HEAD_WORDS, NESTING_MAX, SEARCH_WORDS, SEARCHED_MEMBERS, TapeSize};
use crate::error::CallError;
use crate::json::string_end;

/// Digits of the longest number that cannot be beyond `f64`, without an exponent.
const SAFE_DIGITS: usize = 300;

/// Characters of the longest number: those of any `f64` written out. The validator reads a number again for each
/// value that it compares it with.
const NUMBER_BYTES_MAX: usize = 1_100;

/// A token of the text.
enum JsonToken {
    Open {
        object: bool,
    },
    Close,
    /// A string, a number, or one of three words.
    Scalar,
}

/// Calls `each` with every token and its offset, until `each` fails.
fn tokens<E>(
    text: &[u8],
    mut each: impl FnMut(JsonToken, usize, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let end = match byte {
            b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' => {
                at += 1;
                continue;
            }
            b'{' | b'[' => {
                let object = byte == b'{';
                each(JsonToken::Open { object }, at, &text[at..=at])?;
                at + 1
            }
            b'}' | b']' => {
                each(JsonToken::Close, at, &text[at..=at])?;
                at + 1
            }
            b'"' => {
                let end = string_end(text, at);
                each(JsonToken::Scalar, at, &text[at..end])?;
                end
            }
            _ => {
                let rest = &text[at + 1..];
                let len = rest.iter().position(|byte| {
                    matches!(
                        byte,
                        b',' | b']' | b'}' | b':' | b' ' | b'\t' | b'\n' | b'\r'
                    )
                });
                let end = at + 1 + len.unwrap_or(rest.len());
                each(JsonToken::Scalar, at, &text[at..end])?;
                end
            }
        };
        at = end;
    }
    Ok(())
}

/// An array or object that is open.
struct OpenContainer {
    object: bool,
    /// Strings and values in it so far; a member is two of them.
    items: u32,
    /// The first of its words.
    at: u32,
}

impl OpenContainer {
    /// Members of an object, values of an array.
    fn len(&self) -> u32 {
        if self.object {
            self.items / 2
        } else {
            self.items
        }
    }

    fn search_words(&self) -> u32 {
        match self.object && self.len() >= SEARCHED_MEMBERS {
            true => self.len() * SEARCH_WORDS,
            false => 0,
        }
    }
}

type Stack = SmallVec<[OpenContainer; 16]>;

fn one_more(open: &mut Stack) {
    if let Some(within) = open.last_mut() {
        within.items += 1;
    }
}

pub(super) fn count(text: &[u8]) -> Result<TapeSize, CallError> {
    // Offsets have 31 bits; the highest bit marks arrays and objects.
    if text.len() >= CONTAINER as usize {
        return Err(CallError::invalid_input("the text is too long"));
    }
    let mut size = TapeSize::default();
    let mut open = Stack::new();
    tokens(text, |token, _, part| {
        match token {
            JsonToken::Open { object } => {
                // A tree of the text, if an operation asks for one, is parsed by recursion.
                if open.len() == NESTING_MAX {
                    let message = format!("nested deeper than {NESTING_MAX}");
                    return Err(CallError::invalid_input(message));
                }
                one_more(&mut open);
                size.values += 1;
                size.words += HEAD_WORDS as usize;
                open.push(OpenContainer {
                    object,
                    items: 0,
                    at: 0,
                });
            }
            JsonToken::Close => {
                if let Some(closed) = open.pop() {
                    size.words += closed.search_words() as usize;
                }
            }
            JsonToken::Scalar => {
                one_more(&mut open);
                size.values += 1;
                size.words += 1;
                if is_number(part) && part.len() > NUMBER_BYTES_MAX {
                    return Err(CallError::invalid_input("a number has too many digits"));
                }
                if is_beyond(part) {
                    return Err(CallError::invalid_input("number out of range"));
                }
            }
        }
        Ok(())
    })?;
    Ok(size)
}

fn is_number(part: &[u8]) -> bool {
    matches!(part.first(), Some(b'-' | b'0'..=b'9'))
}

/// Whether it is a number that `f64` cannot hold.
fn is_beyond(part: &[u8]) -> bool {
    let large = is_number(part)
        && (part.len() > SAFE_DIGITS || part.contains(&b'e') || part.contains(&b'E'));
    large
        && std::str::from_utf8(part)
            .ok()
            .and_then(|text| text.parse::<f64>().ok())
            .is_none_or(|value| !value.is_finite())
}

/// The table, which has `len` words.
pub(super) fn words(text: &str, len: usize) -> Vec<u32> {
    let mut words: Vec<u32> = Vec::with_capacity(len);
    let mut open = Stack::new();
    let walked = tokens(text.as_bytes(), |token, at, _| {
        // The text is shorter than 2^31: `count` checked that.
        let at = at as u32;
        match token {
            JsonToken::Open { object } => {
                one_more(&mut open);
                open.push(OpenContainer {
                    object,
                    items: 0,
                    at: words.len() as u32,
                });
                words.extend([at | CONTAINER, 0, 0]);
            }
            JsonToken::Close => {
                if let Some(closed) = open.pop() {
                    close(text, &mut words, &closed);
                }
            }
            JsonToken::Scalar => {
                one_more(&mut open);
                words.push(at);
            }
        }
        Ok::<_, std::convert::Infallible>(())
    });
    let Ok(()) = walked;
    words
}

fn close(text: &str, words: &mut Vec<u32>, closed: &OpenContainer) {
    if closed.search_words() > 0 {
        let first = words.len();
        let mut name = closed.at + HEAD_WORDS;
        for _ in 0..closed.len() {
            let hash = name_hash(text, words[name as usize]);
            words.extend([hash, name]);
            name = behind(words, name + 1);
        }
        let (pairs, _) = words[first..].as_chunks_mut::<2>();
        // A lookup finds its name by binary search over the hashes.
        pairs.sort_unstable();
    }
    let end = words.len() as u32;
    let head = closed.at as usize;
    words[head + 1] = end;
    words[head + 2] = closed.len();
}

/// The index of the word after the value that begins at `at`.
pub(super) fn behind(words: &[u32], at: u32) -> u32 {
    let at = at as usize;
    match words.get(at) {
        Some(word) if word & CONTAINER != 0 => words.get(at + 1).copied().unwrap_or_default(),
        _ => at as u32 + 1,
    }
}
