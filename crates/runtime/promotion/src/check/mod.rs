//! A look at sources without running them: what they import, and whether they make code of text.
//!
//! The engine has neither `eval` nor `Function('…')` for such an operation and loads nothing that is
//! not in the bundle, so this protects nobody; it tells an author early and a reviewer plainly. It
//! reads tokens, not substrings: text, comments and patterns may name what they like. Where a source
//! can be read two ways it is refused, so that nothing hides behind a reading of ours.

mod elements;
mod lexer;
mod statements;

use alknet_runtime::{Language, ModuleSet};
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::limits::FINDINGS_MAX;
use lexer::{Lexer, Token};

/// Something that is wrong with a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `graph`, `eval` or `source`.
    pub check: String,
    /// The module.
    pub module: String,
    /// Its line, from 1.
    pub line: u32,
    /// For people.
    pub what: String,
}

/// Names by which code is made of text.
const MAKERS: [&str; 2] = ["eval", "Function"];

/// Everything that is wrong with the modules of a bundle; `modules` is what it will be run with.
#[must_use]
pub fn check(bundle: &Bundle, modules: &ModuleSet) -> Vec<Finding> {
    let mut found = Vec::new();
    for (module, text) in &bundle.content().modules {
        let finding = |check: &str, line, what: String| Finding {
            check: check.to_owned(),
            module: module.clone(),
            line,
            what,
        };
        let language = Language::of(module);
        let tokens = match Lexer::read(text, language) {
            Ok(tokens) => tokens,
            Err((line, what)) => {
                found.push(finding("source", line, what.to_owned()));
                continue;
            }
        };
        for (word, line) in makers(text, &tokens) {
            let what = format!("'{word}' makes code of text; a bundle's code is what was reviewed");
            found.push(finding("eval", line, what));
        }
        for import in statements::imports(text, &tokens) {
            if modules.resolve(module, &import.specifier).is_err() {
                let what = format!("'{}' is not in the bundle", import.specifier);
                found.push(finding("graph", import.line, what));
            }
        }
        if found.len() >= FINDINGS_MAX {
            found.truncate(FINDINGS_MAX);
            break;
        }
    }
    found
}

/// What a source imports, as far as it can be read.
pub(crate) fn imports(language: Language, text: &str) -> Vec<String> {
    let tokens = Lexer::read(text, language).unwrap_or_default();
    let imports = statements::imports(text, &tokens).into_iter();
    imports.map(|import| import.specifier).collect()
}

/// Every place that names one of [`MAKERS`] other than as a member of something.
fn makers<'t>(text: &'t str, tokens: &'t [Token]) -> impl Iterator<Item = (String, u32)> + 't {
    tokens.iter().enumerate().filter_map(move |(n, token)| {
        let word = token.word(text)?;
        let before = |back: usize| n.checked_sub(back).and_then(|n| tokens.get(n));
        let member = before(1).is_some_and(|it| it.is(b'.') || it.is(b'#'));
        let global = before(2).and_then(|it| it.word(text));
        let own = !member || global.is_some_and(|it| it == "globalThis");
        (own && MAKERS.contains(&word.as_ref())).then(|| (word.into_owned(), token.line))
    })
}

#[cfg(test)]
mod tests;
