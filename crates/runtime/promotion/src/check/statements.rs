//! What a module imports, from its tokens.

use super::lexer::Token;

/// One specifier that a module names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Import {
    pub(super) specifier: String,
    pub(super) line: u32,
}

/// Every `import` and `export … from`, and every `import('…')` of a fixed text. Imports of types
/// only are gone before the engine sees the module.
pub(super) fn imports(text: &str, tokens: &[Token]) -> Vec<Import> {
    let mut found = Vec::new();
    for (n, token) in tokens.iter().enumerate() {
        let member = n.checked_sub(1).is_some_and(|n| tokens[n].is(b'.'));
        let rest = &tokens[n + 1..];
        let named = match token.word(text).as_deref() {
            Some("import") if !member => of_import(text, rest),
            Some("export") if !member => of_export(text, rest),
            _ => None,
        };
        found.extend(named.map(|(specifier, line)| Import { specifier, line }));
    }
    found
}

fn of_import(text: &str, rest: &[Token]) -> Option<(String, u32)> {
    let first = rest.first()?;
    if let Some(specifier) = first.text(text) {
        return Some((specifier, first.line));
    }
    if first.is(b'(') {
        let named = rest.get(1)?;
        return Some((named.text(text)?, named.line));
    }
    if is_word(text, Some(first), "type") && begins_type(text, rest.get(1)?, rest.get(2)) {
        return None;
    }
    let begins = first.word(text).is_some() || first.is(b'{') || first.is(b'*');
    from(text, rest.get(..).filter(|_| begins)?)
}

/// Whether what follows `import type` shows that only types are imported: `type` may be a name.
fn begins_type(text: &str, next: &Token, after: Option<&Token>) -> bool {
    let plain = next.word(text).is_some_and(|word| word != "from");
    plain || next.is(b'{') || next.is(b'*') || is_word(text, after, "from")
}

fn of_export(text: &str, rest: &[Token]) -> Option<(String, u32)> {
    let first = rest.first()?;
    if first.is(b'*') || first.is(b'{') {
        return from(text, rest);
    }
    None
}

/// The text after the first `from` outside of the braces; nothing where the statement ends before.
fn from(text: &str, rest: &[Token]) -> Option<(String, u32)> {
    let mut open = 0_usize;
    for (n, token) in rest.iter().enumerate() {
        if token.is(b'{') {
            open += 1;
        } else if token.is(b'}') {
            open = open.checked_sub(1)?;
            let next = rest.get(n + 1);
            if open == 0 && !is_word(text, next, "from") {
                return None;
            }
        } else if open == 0 && is_word(text, Some(token), "from") {
            let named = rest.get(n + 1)?;
            if let Some(specifier) = named.text(text) {
                return Some((specifier, named.line));
            }
        } else if open == 0 && (token.is(b';') || token.is(b'(') || token.is(b'=')) {
            return None;
        }
    }
    None
}

fn is_word(text: &str, token: Option<&Token>, word: &str) -> bool {
    token.is_some_and(|token| token.word(text).is_some_and(|it| it == word))
}
