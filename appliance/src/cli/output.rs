//! Printing results and errors, for a person or for a program.
//!
//! Most of what is printed a node has said, and an attacker may run a node. No character of it reaches a terminal that
//! moves the cursor, changes colours, titles or keys, or turns the direction of writing: each is shown as an
//! escape. Where something is one line for its reader, a line break is one of them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::{CommandError, CommandExit};

/// Whether a character does something to a terminal, or to the text around it, instead of being shown: those of
/// category Cc, which are the ones of ASCII and `U+0080` to `U+009F`, line and paragraph separators, and what sets
/// directions (UAX #9).
fn is_control_or_bidi(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            // These turn the direction of the text or break the line, so that a name could show as another one.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// The text with `\u{…}` for each character that acts, but for those in `kept`.
fn escaped<'t>(text: &'t str, kept: &[char]) -> Cow<'t, str> {
    let acts = |c: char| is_control_or_bidi(c) && !kept.contains(&c);
    // Most text has none, and is shown without a copy.
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match acts(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// A part of a line, as it can be shown.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, &['\t'])
}

/// Text of several lines, as it can be shown.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, &['\t', '\n'])
}

/// JSON text that says the same, and in which nothing acts. Its own escapes leave out what is beyond ASCII.
fn safe_json(text: &str) -> Cow<'_, str> {
    let acts = |c: char| is_control_or_bidi(c) && !c.is_ascii_control() || c == '\u{7f}';
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) {
            // None is beyond the basic plane. Writing to a string does not fail.
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Prints the one error of a command on standard error.
pub(crate) fn failure(failure: &CommandError, json: bool) {
    failure_of(None, failure, json);
}

/// Prints an error on standard error, naming the node where there are several.
pub(crate) fn failure_of(target: Option<&str>, failure: &CommandError, json: bool) {
    if json {
        let mut message = failure.message.clone();
        for line in &failure.further {
            message.push('\n');
            message.push_str(line);
        }
        let mut error = json!({ "code": failure.code, "message": message });
        if let Some(details) = &failure.details {
            error["details"] = Value::clone(details);
        }
        let text = match target {
            Some(target) => json!({ "target": target, "error": error }).to_string(),
            None => json!({ "error": error }).to_string(),
        };
        return said(&safe_json(&text));
    }
    let first = match target {
        Some(target) => format!("alknet: {target}: {failure}"),
        None => format!("alknet: {failure}"),
    };
    // Code and message may be a node's: what it says in one line cannot look like two.
    let mut shown = one_line(&first).into_owned();
    for line in &failure.further {
        shown.push('\n');
        shown.push_str(&one_line(line));
    }
    said(&shown);
}

/// Prints text that is no result, of one line or several, on standard error.
pub(crate) fn note(text: &str) {
    said(&lines(text));
}

fn said(text: &str) {
    // The result is dropped: an error cannot be shown where standard error is gone.
    writeln!(io::stderr(), "{text}").ok();
}

/// Prints `value` as one line of JSON.
///
/// # Errors
/// Standard output is gone.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string(value).map_err(CommandError::local)?;
    written(&safe_json(&text))
}

/// Prints `value` as JSON for a person.
///
/// # Errors
/// The errors of [`json_line`].
pub(crate) fn json_pretty(value: &Value) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(CommandError::local)?;
    written(&safe_json(&text))
}

/// Prints one line.
///
/// # Errors
/// The errors of [`json_line`].
pub(crate) fn line(text: &str) -> Result<(), CommandError> {
    written(&one_line(text))
}

/// Prints text that may have several lines.
///
/// # Errors
/// The errors of [`json_line`].
pub(crate) fn text(text: &str) -> Result<(), CommandError> {
    written(&lines(text))
}

/// Characters up to which a column is as wide as its longest entry. A longer entry, which a node may have made, moves
/// the rest of its own row alone; and the formatting of the standard library panics at widths above 65,535.
const COLUMN_CHARS_MAX: usize = 64;

/// How wide a column with these entries is, in characters.
pub(crate) fn column<'t>(entries: impl Iterator<Item = &'t str>) -> usize {
    let lengths = entries.map(|entry| entry.chars().take(COLUMN_CHARS_MAX).count());
    lengths.max().unwrap_or_default()
}

/// Asks for input on standard output, on the line on which it is typed.
pub(crate) fn prompt(text: &str) {
    let mut out = io::stdout().lock();
    // Where standard output is gone the next line says so.
    let _ = out
        .write_all(one_line(text).as_bytes())
        .and_then(|()| out.flush());
}

/// Whether a person sees what is printed.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Standard output for verbs that print by themselves what others wrote, as text or as JSON.
pub(crate) fn shown(json: bool) -> EscapingWriter<StdoutLock<'static>> {
    EscapingWriter::new(io::stdout().lock(), json)
}

/// Standard output for bytes as they are: those of a file, a secret, or what the program itself says.
pub(crate) fn bytes() -> StdoutLock<'static> {
    io::stdout().lock()
}

/// The output stream of this process that has this name. It may be a regular file, which an open of the name would
/// write from the beginning, or a socket, which cannot be opened.
pub(crate) fn stream_of_name(path: &Path) -> Option<Box<dyn Write>> {
    match path.to_str()? {
        "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => Some(Box::new(io::stdout())),
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => Some(Box::new(io::stderr())),
        _ => None,
    }
}

/// Shows text of which nothing acts. What comes may break off within a character.
pub(crate) struct EscapingWriter<W> {
    out: W,
    json: bool,
    /// The bytes of a character that is not whole.
    begun: Vec<u8>,
}

impl<W: Write> EscapingWriter<W> {
    fn new(out: W, json: bool) -> Self {
        Self {
            out,
            json,
            begun: Vec::new(),
        }
    }

    fn safe<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.json {
            true => safe_json(text),
            false => lines(text),
        }
    }
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let mut rest = all.as_slice();
        let mut safe = String::with_capacity(rest.len());
        loop {
            let (valid, after) = match std::str::from_utf8(rest) {
                Ok(valid) => (valid, None),
                Err(error) => {
                    // A character may be cut where one write ends and the next begins.
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    let valid = std::str::from_utf8(valid).unwrap_or_default();
                    (valid, Some((after, error.error_len())))
                }
            };
            safe.push_str(&self.safe(valid));
            match after {
                None => break,
                Some((after, None)) => {
                    self.begun = after.to_vec();
                    break;
                }
                Some((after, Some(wrong))) => {
                    safe.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[wrong..];
                }
            }
        }
        self.out.write_all(safe.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Standard output being gone ends a stream the way `head` expects.
fn written(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            // Such as `head`, which has read enough.
            io::ErrorKind::BrokenPipe => {
                CommandError::new(CommandExit::Ok, "CLOSED", "the reader went away")
            }
            _ => CommandError::local(format!("cannot write to standard output: {error}")),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What acts, said once more: the list of what is shown agrees with itself whatever it has.
    fn does_something(c: char) -> bool {
        let separators = ['\u{2028}', '\u{2029}'];
        let marks = ['\u{61c}', '\u{200e}', '\u{200f}'];
        let directions = ('\u{202a}'..='\u{202e}').contains(&c);
        let isolates = ('\u{2066}'..='\u{2069}').contains(&c);
        let controls = c < ' ' || ('\u{7f}'..='\u{9f}').contains(&c);
        controls || separators.contains(&c) || marks.contains(&c) || directions || isolates
    }

    #[test]
    fn nothing_that_is_shown_acts() {
        let all: String = (0..=char::MAX as u32).filter_map(char::from_u32).collect();
        let one = one_line(&all);
        assert!(!one.contains(|c: char| does_something(c) && c != '\t'));
        let several = lines(&all);
        assert!(!several.contains(|c: char| does_something(c) && c != '\t' && c != '\n'));
        let text = serde_json::to_string(&all).expect("JSON");
        let json = safe_json(&text);
        assert!(!json.contains(does_something));
        assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), all);
    }

    #[test]
    fn nothing_acts_that_comes_in_pieces() {
        let text = "a\u{1b}[2J\u{9b}\u{202e}\u{7f}世\r\nb\tc\u{2028}";
        let json = serde_json::to_string(text).expect("JSON");
        for (text, json, shown) in [
            (text, false, lines(text)),
            (json.as_str(), true, safe_json(&json)),
        ] {
            for piece in 1..5 {
                let mut out = EscapingWriter::new(Vec::new(), json);
                for bytes in text.as_bytes().chunks(piece) {
                    out.write_all(bytes).expect("it grows");
                }
                assert_eq!(String::from_utf8(out.out).expect("text"), shown);
            }
        }
        let mut out = EscapingWriter::new(Vec::new(), false);
        out.write_all(b"a\xff\x9b2Jb\xe4").expect("it grows");
        assert_eq!(out.out, "a\u{fffd}\u{fffd}2Jb".as_bytes());
    }

    #[test]
    fn what_is_harmless_is_shown_as_it_is() {
        for text in ["", "a\tb", "héllo, 世界 🦀", "é"] {
            assert!(matches!(one_line(text), Cow::Borrowed(same) if same == text));
        }
        assert_eq!(one_line("a\nb\u{1b}[2J"), "a\\u{a}b\\u{1b}[2J");
        assert_eq!(lines("a\nb\u{9b}2J\r"), "a\nb\\u{9b}2J\\u{d}");
        assert_eq!(safe_json("\"\u{9b}\u{202e}\""), r#""\u009b\u202e""#);
    }
}
