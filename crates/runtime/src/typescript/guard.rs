//! Keeps sources away from the parser that would exhaust the thread's stack.
//!
//! The parser calls itself once for each level of nesting and has no limit of its own. This looks at
//! the text only, so it counts somewhat more than there is: brackets, and within each pair of them
//! whatever can nest without one (`a ? b : a ? b : …`, `a => a => …`, `if … else if …`). The sum over
//! the open pairs is what is limited.

/// Most levels. Each costs the parser a few KiB of the thread's stack.
const LEVELS: usize = 1_000;

/// The line at which `source` becomes too deep.
pub(super) fn check(source: &str) -> Result<(), u32> {
    let mut scan = Scan::default();
    let bytes = source.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at).copied() {
        let next = bytes.get(at + 1).copied();
        at += match (byte, next) {
            (b'/', Some(b'/')) => comment(&bytes[at..], b"\n"),
            (b'/', Some(b'*')) => scan.lines(&bytes[at..], comment(&bytes[at..], b"*/")),
            (b'"' | b'\'', _) => scan.text(&bytes[at..], byte),
            _ if is_word(byte) => scan.word(&bytes[at..]),
            _ => scan.punctuation(byte),
        };
        if scan.levels() > LEVELS {
            return Err(scan.line + 1);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Scan {
    line: u32,
    /// What may nest within each open bracket so far.
    open: Vec<usize>,
    /// The sum of `open`.
    below: usize,
    /// The same outside of the innermost.
    chain: usize,
    /// Chained statements: they go on over line ends.
    statements: usize,
    /// The last character that was neither blank nor comment.
    last: u8,
    /// Whether a line ended since.
    broken: bool,
}

impl Scan {
    fn levels(&self) -> usize {
        self.open.len() + self.below + self.chain + self.statements
    }

    fn punctuation(&mut self, byte: u8) -> usize {
        match byte {
            b'\n' => {
                self.line += 1;
                self.broken = true;
                return 1;
            }
            b' ' | b'\t' | b'\r' => return 1,
            b'(' | b'[' | b'{' | b'<' | b'`' => {
                if byte == b'{' {
                    self.statements = 0;
                }
                // A template's end is counted as another beginning; both are few.
                let closes = byte == b'`' && self.open.last().is_some_and(|_| self.last == b'`');
                if !closes && byte != b'<' && byte != b'`' {
                    self.open.push(self.chain);
                    self.below += self.chain;
                    self.chain = 0;
                } else {
                    self.chain += 1;
                }
            }
            b')' | b']' | b'}' => {
                self.chain = self.open.pop().unwrap_or(0);
                self.below -= self.chain;
                if byte == b'}' {
                    self.chain = 0;
                }
            }
            b';' => {
                self.chain = 0;
                self.statements = 0;
            }
            b',' => self.chain = 0,
            b'.' | b'#' | b'@' => {}
            _ => self.chain += 1,
        }
        self.last = byte;
        self.broken = false;
        1
    }

    fn word(&mut self, rest: &[u8]) -> usize {
        let length = rest.iter().take_while(|byte| is_word(**byte)).count();
        match &rest[..length] {
            b"if" | b"else" | b"for" | b"while" | b"do" | b"with" => self.statements += 1,
            b"new" | b"typeof" | b"void" | b"delete" | b"await" | b"yield" | b"keyof" | b"infer"
            | b"unique" | b"readonly" | b"extends" | b"function" | b"class" | b"async" => self.chain += 1,
            // A word on a line of its own after the end of an expression begins a statement.
            _ if self.broken && ends_expression(self.last) => self.chain = 0,
            _ => {}
        }
        if self.last == b'}' && &rest[..length] != b"else" {
            self.statements = 0;
        }
        self.last = b'a';
        self.broken = false;
        length
    }

    fn text(&mut self, rest: &[u8], quote: u8) -> usize {
        let mut at = 1;
        while let Some(byte) = rest.get(at) {
            at += match byte {
                b'\\' => 2,
                b'\n' => break,
                byte if *byte == quote => {
                    at += 1;
                    break;
                }
                _ => 1,
            };
        }
        self.last = quote;
        self.broken = false;
        at
    }

    fn lines(&mut self, rest: &[u8], length: usize) -> usize {
        let lines = rest[..length].iter().filter(|byte| **byte == b'\n').count();
        self.line += u32::try_from(lines).unwrap_or(u32::MAX);
        length
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

fn ends_expression(byte: u8) -> bool {
    is_word(byte) || matches!(byte, b')' | b']' | b'}' | b'"' | b'\'' | b'`')
}

/// Length up to and with `end`, or of all that is left.
fn comment(rest: &[u8], end: &[u8]) -> usize {
    let found = rest[2..].windows(end.len()).position(|window| window == end);
    match (found, end) {
        // The line's end is left to be counted.
        (Some(at), b"\n") => at + 2,
        (Some(at), _) => at + 2 + end.len(),
        (None, _) => rest.len(),
    }
}
