//! The tokens of a source. Knows no grammar beyond what it takes to tell a pattern from a division
//! and an element from a comparison; where that takes more, the source is refused.

use std::borrow::Cow;

use alknet_runtime::Language;

use crate::limits::SOURCE_NESTING_MAX;

/// Where a source cannot be read, and why.
pub(super) type Unreadable = (u32, &'static str);

/// One token, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    start: u32,
    end: u32,
    pub(super) line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Pattern,
    /// Its first byte; what is longer comes in parts, save `=>`, which is `>`.
    Punctuation(u8),
    /// A text in quotes, or a template without parts.
    Text,
    Template,
    Word,
}

impl Token {
    pub(super) fn is(&self, byte: u8) -> bool {
        self.kind == Kind::Punctuation(byte)
    }

    /// The name, with what it escapes written out.
    pub(super) fn word<'t>(&self, source: &'t str) -> Option<Cow<'t, str>> {
        (self.kind == Kind::Word).then(|| {
            let raw = self.raw(source);
            match raw.contains('\\') {
                true => Cow::Owned(unescaped(raw)),
                false => Cow::Borrowed(raw),
            }
        })
    }

    /// What a text in quotes stands for.
    pub(super) fn text(&self, source: &str) -> Option<String> {
        (self.kind == Kind::Text).then(|| {
            let raw = self.raw(source);
            unescaped(raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default())
        })
    }

    fn raw<'t>(&self, source: &'t str) -> &'t str {
        source
            .get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }
}

/// What stands before the next token, as far as it matters to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Something after which an expression begins.
    Operator,
    /// The end of an expression.
    Value,
    /// Either; telling would take a parser.
    Unclear,
}

/// What is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Open {
    /// `(`, and what stands behind its end.
    Round(Before),
    Square,
    /// `{`, and what stands behind its end.
    Curly(Before),
    /// `${` in a template.
    Part,
    /// `{` in an element.
    Container,
    /// The inside of `<…>`; whether it is the closing one.
    Tag(bool),
    /// Between the tags of an element.
    Children,
}

pub(super) struct Lexer<'s> {
    pub(super) bytes: &'s [u8],
    pub(super) source: &'s str,
    pub(super) at: usize,
    pub(super) line: u32,
    pub(super) open: Vec<Open>,
    pub(super) before: Before,
    /// The last token is `.`, so that what follows is a member whatever it is called.
    member: bool,
    /// The last token is a word before whose `(` a statement's head begins: `if`, `while`, …
    head: bool,
    /// A line ended since the last token.
    broken: bool,
    language: Language,
    tokens: Vec<Token>,
}

impl<'s> Lexer<'s> {
    /// Every token of a source.
    pub(super) fn read(source: &'s str, language: Language) -> Result<Vec<Token>, Unreadable> {
        let mut lexer = Self {
            bytes: source.as_bytes(),
            source,
            at: 0,
            line: 1,
            open: Vec::new(),
            before: Before::Operator,
            member: false,
            head: false,
            broken: true,
            language,
            tokens: Vec::new(),
        };
        if u32::try_from(source.len()).is_err() {
            return Err((1, "it is too long"));
        }
        if source.starts_with("#!") {
            lexer.skip_line();
        }
        while lexer.at < lexer.bytes.len() {
            lexer.step().map_err(|what| (lexer.line, what))?;
            if lexer.open.len() > SOURCE_NESTING_MAX {
                return Err((lexer.line, "it nests too deeply"));
            }
        }
        match lexer.open.last() {
            None => Ok(lexer.tokens),
            Some(_) => Err((lexer.line, "it ends before something that it opens does")),
        }
    }

    fn step(&mut self) -> Result<(), &'static str> {
        match self.open.last() {
            Some(Open::Tag(_)) => return self.tag(),
            Some(Open::Children) => return self.children(),
            _ => {}
        }
        let (byte, next) = (self.bytes[self.at], self.peek(1));
        match (byte, next) {
            (b'/', Some(b'/')) => self.skip_line(),
            (b'/', Some(b'*')) => self.skip_comment()?,
            (b'"' | b'\'', _) => self.quoted(byte)?,
            (b'`', _) => self.template(true)?,
            (b'0'..=b'9', _) | (b'.', Some(b'0'..=b'9')) => self.number()?,
            (b'/', _) => match self.before() {
                Before::Operator => self.pattern()?,
                // A pattern would end on this line.
                Before::Unclear if self.ends_here() => {
                    return Err("a '/' here can be read two ways; write parentheses or a semicolon");
                }
                _ => self.punctuation(byte)?,
            },
            (b'.', Some(b'.')) if self.peek(2) == Some(b'.') => {
                let start = self.at;
                self.pass(3);
                self.push(Kind::Punctuation(b','), start);
                self.before = Before::Operator;
            }
            (b'<', _) if matches!(self.language, Language::Jsx | Language::Tsx) => self.less()?,
            _ if is_word(byte) => self.word_or_space()?,
            _ if byte.is_ascii_whitespace() || matches!(byte, 0x0b | 0x0c) => self.pass(1),
            _ => self.punctuation(byte)?,
        }
        Ok(())
    }

    /// What stands before this place. Behind the end of a line a statement may have ended without a
    /// semicolon: `let x`, or what is only a type.
    pub(super) fn before(&self) -> Before {
        match self.before {
            Before::Value if self.broken => Before::Unclear,
            before => before,
        }
    }

    /// Whether a pattern that begins here could end.
    fn ends_here(&self) -> bool {
        let rest = self.rest().get(1..).unwrap_or_default();
        let line = rest.split(['\n', '\r', '\u{2028}', '\u{2029}']).next();
        line.is_some_and(|line| line.contains('/'))
    }

    pub(super) fn peek(&self, distance: usize) -> Option<u8> {
        self.bytes.get(self.at + distance).copied()
    }

    /// Goes on by one or more bytes, which may end lines.
    pub(super) fn pass(&mut self, length: usize) {
        let end = (self.at + length).min(self.bytes.len());
        let ended = self.bytes[self.at..end].iter().filter(|b| **b == b'\n');
        let lines = u32::try_from(ended.count()).unwrap_or(u32::MAX);
        self.line = self.line.saturating_add(lines);
        self.broken |= self.bytes[self.at..end].iter().any(|b| matches!(b, b'\n' | b'\r'));
        self.at = end;
    }

    /// Up to the end of the line, as the language has it: there are four.
    fn skip_line(&mut self) {
        let rest = &self.source[self.at..];
        let end = rest.find(['\n', '\r', '\u{2028}', '\u{2029}']);
        self.pass(end.unwrap_or(rest.len()));
    }

    pub(super) fn skip_comment(&mut self) -> Result<(), &'static str> {
        let rest = &self.source[self.at..];
        let end = rest.get(2..).and_then(|rest| rest.find("*/"));
        let end = end.ok_or("a comment does not end")?;
        self.broken |= rest[..end].contains(['\u{2028}', '\u{2029}']);
        self.pass(end + 4);
        Ok(())
    }

    pub(super) fn push(&mut self, kind: Kind, start: usize) {
        let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        self.tokens.push(Token {
            kind,
            start: place(start),
            end: place(self.at),
            line: self.line,
        });
        self.member = false;
        self.head = false;
        self.broken = false;
    }

    fn quoted(&mut self, quote: u8) -> Result<(), &'static str> {
        let start = self.at;
        self.pass(1);
        loop {
            match self.peek(0) {
                None | Some(b'\n' | b'\r') => return Err("a text does not end"),
                Some(b'\\') => {
                    let wide = self.peek(1) == Some(b'\r') && self.peek(2) == Some(b'\n');
                    self.pass(if wide { 3 } else { 2 });
                }
                Some(byte) => {
                    self.pass(1);
                    if byte == quote {
                        break;
                    }
                }
            }
        }
        self.push(Kind::Text, start);
        self.before = Before::Value;
        Ok(())
    }

    /// From its beginning, or from the end of a part, to its end or to the next part.
    fn template(&mut self, whole: bool) -> Result<(), &'static str> {
        let start = self.at;
        self.pass(1);
        loop {
            match self.peek(0) {
                None => return Err("a template does not end"),
                Some(b'\\') => self.pass(2),
                Some(b'`') => {
                    self.pass(1);
                    self.push(if whole { Kind::Text } else { Kind::Template }, start);
                    self.before = Before::Value;
                    return Ok(());
                }
                Some(b'$') if self.peek(1) == Some(b'{') => {
                    self.pass(2);
                    self.push(Kind::Template, start);
                    self.open.push(Open::Part);
                    self.before = Before::Operator;
                    return Ok(());
                }
                Some(_) => self.pass(1),
            }
        }
    }

    fn number(&mut self) -> Result<(), &'static str> {
        let start = self.at;
        let based = self.peek(0) == Some(b'0')
            && matches!(self.peek(1), Some(b'x' | b'X' | b'o' | b'O' | b'b' | b'B'));
        if based {
            self.pass(2);
            self.pass_while(|b| b.is_ascii_hexdigit() || b == b'_');
        } else {
            let digit = |b: u8| b.is_ascii_digit() || b == b'_';
            self.pass_while(digit);
            if self.peek(0) == Some(b'.') {
                self.pass(1);
                self.pass_while(digit);
            }
            let signed = matches!(self.peek(1), Some(b'+' | b'-'));
            let power = self.peek(if signed { 2 } else { 1 });
            if matches!(self.peek(0), Some(b'e' | b'E')) && power.is_some_and(|b| b.is_ascii_digit())
            {
                self.pass(2);
                self.pass_while(digit);
            }
        }
        if self.peek(0) == Some(b'n') {
            self.pass(1);
        }
        if self.peek(0).is_some_and(is_word) {
            return Err("a number runs into a word");
        }
        self.push(Kind::Number, start);
        self.before = Before::Value;
        Ok(())
    }

    fn pass_while(&mut self, keep: impl Fn(u8) -> bool) {
        while self.peek(0).is_some_and(&keep) {
            self.at += 1;
        }
    }

    fn pattern(&mut self) -> Result<(), &'static str> {
        let start = self.at;
        self.pass(1);
        let mut class = false;
        loop {
            let rest = &self.source[self.at..];
            match rest.chars().next() {
                None | Some('\n' | '\r' | '\u{2028}' | '\u{2029}') => {
                    return Err("a pattern does not end");
                }
                Some('\\') => {
                    self.pass(1);
                    let escaped = self.source[self.at..].chars().next();
                    match escaped {
                        None | Some('\n' | '\r' | '\u{2028}' | '\u{2029}') => {
                            return Err("a pattern does not end");
                        }
                        Some(escaped) => self.pass(escaped.len_utf8()),
                    }
                }
                Some('/') if !class => {
                    self.pass(1);
                    break;
                }
                Some(plain) => {
                    class = match plain {
                        '[' => true,
                        ']' => false,
                        _ => class,
                    };
                    self.pass(plain.len_utf8());
                }
            }
        }
        self.pass_while(|b| b.is_ascii_alphanumeric());
        self.push(Kind::Pattern, start);
        self.before = Before::Value;
        Ok(())
    }

    /// A word, or one of the blanks that are not ASCII.
    fn word_or_space(&mut self) -> Result<(), &'static str> {
        let first = self.source[self.at..].chars().next().unwrap_or(' ');
        if first.is_whitespace() || first == '\u{feff}' {
            self.broken |= matches!(first, '\u{2028}' | '\u{2029}');
            self.pass(first.len_utf8());
            return Ok(());
        }
        let start = self.at;
        while let Some(next) = self.source[self.at..].chars().next() {
            if next == '\\' {
                let rest = &self.source[self.at..];
                self.at += escape_length(rest).ok_or("an escape in a name cannot be read")?;
            } else if is_part(next) {
                self.at += next.len_utf8();
            } else {
                break;
            }
        }
        let (member, raw) = (self.member, &self.source[start..self.at]);
        let word = match raw.contains('\\') {
            true => Cow::Owned(unescaped(raw)),
            false => Cow::Borrowed(raw),
        };
        let awaited = word == "await" && self.head;
        self.push(Kind::Word, start);
        self.before = match member {
            true => Before::Value,
            false => follows(&word),
        };
        self.head = !member && (awaited || matches!(&*word, "if" | "while" | "for" | "with"));
        Ok(())
    }

    pub(super) fn punctuation(&mut self, byte: u8) -> Result<(), &'static str> {
        let (start, before, head, broken) = (self.at, self.before, self.head, self.broken);
        let twice = self.peek(1) == Some(byte);
        match byte {
            b'(' => self.open.push(Open::Round(match head {
                true => Before::Operator,
                false => Before::Value,
            })),
            b'[' => self.open.push(Open::Square),
            b'{' => self.open.push(Open::Curly(self.behind_curly())),
            _ => {}
        }
        let after = match byte {
            b')' => match self.open.pop() {
                Some(Open::Round(after)) => after,
                _ => return Err("a ')' closes nothing"),
            },
            b']' => match self.open.pop() {
                Some(Open::Square) => Before::Value,
                _ => return Err("a ']' closes nothing"),
            },
            b'}' => match self.open.pop() {
                Some(Open::Curly(after)) => after,
                Some(Open::Part) => return self.template(false),
                Some(Open::Container) => before,
                _ => return Err("a '}' closes nothing"),
            },
            b'+' | b'-' if twice => {
                self.pass(2);
                self.push(Kind::Punctuation(byte), start);
                // Behind what it counts up on the same line it belongs to it.
                self.before = match (before, broken) {
                    (Before::Unclear, _) => Before::Unclear,
                    (Before::Value, false) => Before::Value,
                    _ => Before::Operator,
                };
                return Ok(());
            }
            b'!' if before == Before::Value && !broken && self.peek(1) != Some(b'=') => before,
            b'=' if self.peek(1) == Some(b'>') => {
                self.pass(2);
                self.push(Kind::Punctuation(b'>'), start);
                self.before = Before::Operator;
                return Ok(());
            }
            _ => Before::Operator,
        };
        self.pass(1);
        self.push(Kind::Punctuation(byte), start);
        self.before = after;
        self.member = matches!(byte, b'.' | b'#');
        Ok(())
    }

    /// What stands behind the end of a `{` that begins here: an object is a value, behind a block
    /// anything may begin, and often only a parser can tell which it is.
    fn behind_curly(&self) -> Before {
        // Where there are types, it may be one, behind whose end a statement begins.
        if matches!(self.language, Language::TypeScript | Language::Tsx) {
            return Before::Unclear;
        }
        match self.tokens.last().map(|token| token.kind) {
            Some(Kind::Punctuation(
                b'(' | b'[' | b',' | b'=' | b'?' | b'&' | b'|' | b'+' | b'-' | b'*' | b'%' | b'<',
            )) => Before::Value,
            _ => Before::Unclear,
        }
    }

    pub(super) fn language(&self) -> Language {
        self.language
    }

    pub(super) fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }
}

/// What may stand behind a word.
fn follows(word: &str) -> Before {
    match word {
        "await" | "case" | "default" | "delete" | "do" | "else" | "extends" | "in" | "instanceof"
        | "new" | "return" | "throw" | "typeof" | "void" => Before::Operator,
        // Names in one place, words of the language in another.
        "of" | "yield" | "async" => Before::Unclear,
        _ => Before::Value,
    }
}

/// Begins a word, or some blank that is not ASCII.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'\\') || byte >= 0x80
}

fn is_part(c: char) -> bool {
    match c.is_ascii() {
        true => c.is_ascii_alphanumeric() || matches!(c, '_' | '$'),
        false => !c.is_whitespace() && c != '\u{feff}',
    }
}

/// Bytes of `\uXXXX` or `\u{…}` at the beginning.
fn escape_length(rest: &str) -> Option<usize> {
    let hex = rest.strip_prefix("\\u")?;
    match hex.strip_prefix('{') {
        Some(inner) => {
            let end = inner.find('}')?;
            let plain = inner[..end].bytes().all(|b| b.is_ascii_hexdigit());
            (plain && (1..=6).contains(&end)).then_some(end + 4)
        }
        None => {
            let digits = hex.get(..4)?;
            digits
                .bytes()
                .all(|b| b.is_ascii_hexdigit())
                .then_some(6)
        }
    }
}

/// The text with its escapes written out; one that stands for no character is left out.
fn unescaped(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let digits = |text: &str| {
            let code = u32::from_str_radix(text, 16).ok();
            code.and_then(char::from_u32)
        };
        if let Some(length) = escape_length(rest) {
            let hex = rest[2..length].trim_matches(['{', '}']);
            out.extend(digits(hex));
            rest = &rest[length..];
            continue;
        }
        let mut chars = rest[1..].chars();
        match chars.next() {
            Some('x') if rest.get(2..4).is_some_and(|hex| digits(hex).is_some()) => {
                out.extend(rest.get(2..4).and_then(digits));
                rest = &rest[4..];
                continue;
            }
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('v') => out.push('\u{b}'),
            // A line that goes on.
            Some('\n' | '\u{2028}' | '\u{2029}') | None => {}
            Some('\r') => {
                if chars.as_str().starts_with('\n') {
                    chars.next();
                }
            }
            Some(plain) => out.push(plain),
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    out
}
