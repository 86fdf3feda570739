//! Keeps sources away from the parser that would exhaust the thread's stack.
//!
//! The parser calls itself once for each level of nesting and has no limit of its own. This scan reads only the text,
//! so it counts somewhat more levels than there are: brackets, and within each pair of them whatever can nest without
//! brackets (`a ? b : a ? b : …`, `a => a => …`, `if … else if …`). The sum over the open pairs is limited. Without
//! parsing, the scan cannot be certain where a `/` begins a pattern; a source that exploits this ends only its
//! worker.

/// The most levels. Each costs the parser a few KiB of the thread's stack.
const LEVELS: usize = 1_000;

/// Refuses a `source` that nests too deeply, with the line where it does.
pub(super) fn check(source: &str) -> Result<(), u32> {
    let mut scan = Scan {
        bytes: source.as_bytes(),
        // The scan begins as after a statement: a `/` at the beginning opens a pattern.
        last: b';',
        ..Scan::default()
    };
    while scan.at < scan.bytes.len() {
        scan.step();
        if scan.levels() > LEVELS {
            return Err(scan.line + 1);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Scan<'s> {
    bytes: &'s [u8],
    at: usize,
    line: u32,
    /// The open brackets (`$` for `${`), each with the counts of nesting expressions and statements around it.
    open: Vec<(u8, usize, usize)>,
    /// The sum over `open`.
    below: usize,
    /// The nesting expressions within the innermost bracket so far.
    chain: usize,
    /// The chained statements, which continue over line ends.
    statements: usize,
    /// The last character outside blanks and comments; `=` for a word before an expression.
    last: u8,
    /// Whether a line has ended since then.
    broken: bool,
}

impl Scan<'_> {
    fn levels(&self) -> usize {
        self.open.len() + self.below + self.chain + self.statements
    }

    fn step(&mut self) {
        let byte = self.bytes[self.at];
        let next = self.bytes.get(self.at + 1).copied();
        match (byte, next) {
            (b'\n', _) => {
                self.broken = true;
                self.pass(1);
            }
            (b' ' | b'\t' | b'\r', _) => self.pass(1),
            (b'/', Some(b'/')) => self.pass(self.until(2, |rest| rest.starts_with(b"\n"))),
            (b'/', Some(b'*')) => self.pass(self.until(2, |rest| rest.starts_with(b"*/")) + 2),
            (b'"' | b'\'', _) => self.quoted(byte),
            (b'`', _) => self.template(),
            (b'/', _) if !ends_expression(self.last) => self.pattern(),
            _ if is_word(byte) => self.word(),
            _ => self.punctuation(byte),
        }
    }

    /// Advances by `length` bytes, which may contain line ends.
    fn pass(&mut self, length: usize) {
        let end = (self.at + length).min(self.bytes.len());
        let lines = self.bytes[self.at..end]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        self.line += u32::try_from(lines).unwrap_or(u32::MAX);
        self.at = end;
    }

    fn end(&mut self, last: u8) {
        self.last = last;
        self.broken = false;
    }

    /// The distance to the first position from `from` where `found` holds, or to the end.
    fn until(&self, from: usize, found: impl Fn(&[u8]) -> bool) -> usize {
        let rest = &self.bytes[self.at..];
        (from.min(rest.len())..rest.len())
            .find(|at| found(&rest[*at..]))
            .unwrap_or(rest.len())
    }

    fn punctuation(&mut self, byte: u8) {
        match byte {
            b'(' | b'[' | b'{' => self.push(byte),
            b')' => self.pop(b"("),
            b']' => self.pop(b"["),
            b'}' => {
                let template = self
                    .open
                    .iter()
                    .rev()
                    .find(|(kind, ..)| matches!(kind, b'{' | b'$'));
                if template.is_some_and(|(kind, ..)| *kind == b'$') {
                    self.pop(b"$");
                    return self.template();
                }
                self.pop(b"{");
                self.chain = 0;
            }
            b';' => {
                self.chain = 0;
                self.statements = 0;
            }
            // Parts that commas separate do not nest.
            b',' => self.chain = 0,
            b'.' | b'#' | b'@' => {}
            _ => self.chain += 1,
        }
        self.end(byte);
        self.pass(1);
    }

    fn push(&mut self, kind: u8) {
        self.open.push((kind, self.chain, self.statements));
        self.below += self.chain + self.statements;
        self.chain = 0;
        self.statements = 0;
    }

    /// Closes the innermost bracket of `kind`, and the unclosed brackets within it.
    fn pop(&mut self, kind: &[u8]) {
        let found = self
            .open
            .iter()
            .rposition(|(known, ..)| kind.contains(known));
        let Some(at) = found else { return };
        for (_, chain, statements) in self.open.split_off(at).into_iter().rev() {
            self.below -= chain + statements;
            self.chain = chain;
            self.statements = statements;
        }
    }

    fn word(&mut self) {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take_while(|byte| is_word(**byte)).count();
        let word = &rest[..length];
        // A word on a new line after the end of an expression begins a statement.
        if self.broken && ends_expression(self.last) {
            self.chain = 0;
        }
        // Only `else` continues a statement after its block.
        if self.last == b'}' && word != b"else" {
            self.statements = 0;
        }
        let mut last = b'a';
        match word {
            b"if" | b"else" | b"for" | b"while" | b"do" | b"with" => {
                self.statements += 1;
                last = b'=';
            }
            b"new" | b"typeof" | b"void" | b"delete" | b"await" | b"yield" | b"keyof"
            | b"infer" | b"unique" | b"readonly" | b"extends" | b"function" | b"class"
            | b"async" | b"return" | b"in" | b"of" => {
                self.chain += 1;
                last = b'=';
            }
            _ => {}
        }
        self.end(last);
        self.pass(length);
    }

    fn quoted(&mut self, quote: u8) {
        let mut length = 1;
        loop {
            match self.bytes.get(self.at + length).copied() {
                // A text that does not end on its line is an error, which the parser reports.
                None | Some(b'\n') => break,
                Some(b'\\') => length += 2,
                Some(byte) => {
                    length += 1;
                    if byte == quote {
                        break;
                    }
                }
            }
        }
        self.end(quote);
        self.pass(length);
    }

    /// Scans a template from its beginning, or from the `}` of a value in it, to its end or the next `${`.
    fn template(&mut self) {
        let mut length = 1;
        loop {
            match self.bytes.get(self.at + length).copied() {
                None => break self.end(b'`'),
                Some(b'\\') => length += 2,
                Some(b'`') => {
                    length += 1;
                    break self.end(b'`');
                }
                Some(b'$') if self.bytes.get(self.at + length + 1) == Some(&b'{') => {
                    length += 2;
                    self.push(b'$');
                    break self.end(b'{');
                }
                Some(_) => length += 1,
            }
        }
        self.pass(length);
    }

    /// Scans a regular expression to its closing `/`. A `/` without one on the same line counts as an operator.
    fn pattern(&mut self) {
        let (mut length, mut class) = (1, false);
        loop {
            match self.bytes.get(self.at + length).copied() {
                // This is no pattern.
                None | Some(b'\n') => {
                    self.chain += 1;
                    self.end(b'/');
                    return self.pass(1);
                }
                Some(b'\\') => length += 1,
                Some(b'[') => class = true,
                Some(b']') => class = false,
                // A `/` in brackets does not end the pattern (ECMA-262, RegularExpressionClass).
                Some(b'/') if !class => break,
                Some(_) => {}
            }
            length += 1;
        }
        self.end(b'a');
        self.pass(length + 1);
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

fn ends_expression(byte: u8) -> bool {
    is_word(byte) || matches!(byte, b')' | b']' | b'}' | b'"' | b'\'' | b'`')
}
