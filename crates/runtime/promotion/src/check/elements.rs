//! Elements (JSX) among the tokens.

use alknet_runtime::Language;

use super::lexer::{Before, Kind, Lexer, Open};

impl Lexer<'_> {
    /// A `<` in a module that may have elements.
    pub(super) fn less(&mut self) -> Result<(), &'static str> {
        let next = self.peek(1);
        let named = next.is_some_and(|b| b.is_ascii_alphabetic() || matches!(b, b'_' | b'$' | b'>'));
        match self.before() {
            Before::Operator if named && !self.is_generic() => {
                self.begin();
                Ok(())
            }
            Before::Unclear if named => {
                Err("a '<' here can be read two ways; write parentheses or a semicolon")
            }
            _ => self.punctuation(b'<'),
        }
    }

    /// Whether the parameters of a generic function begin here: in a module with elements they have
    /// a comma or `extends`.
    fn is_generic(&self) -> bool {
        if self.language() != Language::Tsx {
            return false;
        }
        let rest = &self.rest()[1..];
        let name = rest.trim_start_matches(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$'));
        let rest = name.trim_start();
        rest.starts_with(',') || rest.starts_with("extends ")
    }

    fn begin(&mut self) {
        self.pass(1);
        self.open.push(Open::Tag(false));
        self.before = Before::Operator;
    }

    /// Within `<…>`.
    pub(super) fn tag(&mut self) -> Result<(), &'static str> {
        let closing = self.open.last() == Some(&Open::Tag(true));
        let (byte, next) = (self.bytes[self.at], self.peek(1));
        match (byte, next) {
            (b'/', Some(b'*')) => return self.skip_comment(),
            (b'/', _) if !closing && self.peek(1) == Some(b'>') => {
                self.pass(2);
                self.end();
            }
            (b'>', _) => {
                self.pass(1);
                self.open.pop();
                match closing {
                    true => self.end_children()?,
                    false => self.open.push(Open::Children),
                }
            }
            (b'"' | b'\'', _) => {
                let rest = &self.rest()[1..];
                let end = rest.find(char::from(byte));
                let end = end.ok_or("the value of an attribute does not end")?;
                self.pass(end + 2);
            }
            (b'{', _) => {
                self.pass(1);
                self.open.push(Open::Container);
                self.before = Before::Operator;
            }
            (b'<', _) => self.begin(),
            (b'.' | b'-' | b':' | b'=', _) => self.pass(1),
            _ if byte.is_ascii_whitespace() => self.pass(1),
            _ if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80 => {
                let start = self.at;
                let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'-');
                while self.peek(0).is_some_and(|b| word(b) || b >= 0x80) {
                    self.at += 1;
                }
                self.push(Kind::Word, start);
            }
            _ => return Err("a tag cannot be read"),
        }
        Ok(())
    }

    /// Between tags.
    pub(super) fn children(&mut self) -> Result<(), &'static str> {
        match (self.bytes[self.at], self.peek(1)) {
            (b'{', _) => {
                self.pass(1);
                self.open.push(Open::Container);
                self.before = Before::Operator;
            }
            (b'<', Some(b'/')) => {
                self.pass(2);
                self.open.push(Open::Tag(true));
            }
            (b'<', _) => self.begin(),
            (b'}' | b'>', _) => return Err("a '}' or '>' between tags is written {'}'} or {'>'}"),
            _ => {
                let rest = self.rest();
                let end = rest.find(['{', '<', '}', '>']).unwrap_or(rest.len());
                self.pass(end);
            }
        }
        Ok(())
    }

    /// Behind a closing tag.
    fn end_children(&mut self) -> Result<(), &'static str> {
        match self.open.pop() {
            Some(Open::Children) => {
                self.before = Before::Value;
                Ok(())
            }
            _ => Err("a tag closes nothing"),
        }
    }

    /// Behind `/>`.
    fn end(&mut self) {
        self.open.pop();
        self.before = Before::Value;
    }
}
