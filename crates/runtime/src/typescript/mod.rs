//! Converts TypeScript and JSX to JavaScript by erasing the types.
//!
//! The parser is `oxc`'s, and the erasure is the runtime's own and works on the text: types become blanks, elements
//! become calls of `h`, and each line keeps its number. Columns of code without elements stay too. So stacks name the
//! line that the author wrote, and no source map is needed.
//!
//! Features beyond types (`enum`, `namespace`, decorators, parameter properties, `import =`) end with
//! [`RuntimeCode::TsUnsupported`]. A name that is imported only for its type must be imported by `import type`, as
//! with TypeScript's own `verbatimModuleSyntax`: without the other module, the erasure cannot distinguish a type from
//! a value.

mod edits;
mod elements;
mod erase;
mod guard;
mod source_scan;

use oxc_allocator::Allocator;
use oxc_ast_visit::Visit;
use oxc_parser::{Parser, ParserReturn};
use oxc_span::SourceType;

use crate::error::{RuntimeCode, ScriptFailure};
use crate::modules::Language;

pub use source_scan::{EvalSite, Import, ImportForm, SourceScan, scan_source};

/// The JavaScript of a module.
///
/// # Errors
/// [`RuntimeCode::TsUnsupported`] for features beyond types, [`RuntimeCode::Limit`] for nesting that is too deep for
/// the parser, [`RuntimeCode::Exception`] for a syntax error; each with the module and the line.
pub(crate) fn strip(
    module: &str,
    source: &str,
    language: Language,
) -> Result<String, ScriptFailure> {
    let allocator = Allocator::default();
    let parsed = parse(&allocator, module, source, language)?;
    let mut eraser = erase::Eraser::new(source);
    eraser.visit_program(&parsed.program);
    match eraser.finish() {
        Ok(text) => Ok(text),
        Err((at, what)) => {
            let line = line_of(source, at);
            let text = format!("{module}:{line}: {what} is more than a type");
            Err(ScriptFailure::new(RuntimeCode::TsUnsupported, text).at(module, line))
        }
    }
}

/// The syntax tree of a source that the guard accepts.
fn parse<'a>(
    allocator: &'a Allocator,
    module: &str,
    source: &'a str,
    language: Language,
) -> Result<ParserReturn<'a>, ScriptFailure> {
    guard::check(source).map_err(|line| {
        ScriptFailure::new(
            RuntimeCode::Limit,
            format!("{module}:{line}: nested too deeply"),
        )
        .at(module, line)
    })?;
    let kind = match language {
        Language::JavaScript => SourceType::mjs(),
        Language::Jsx => SourceType::jsx(),
        Language::TypeScript => SourceType::ts(),
        Language::Tsx => SourceType::tsx(),
    };
    let parsed = Parser::new(allocator, source, kind.with_module(true)).parse();
    if let Some(error) = parsed.diagnostics.errors().next() {
        let at = error
            .labels
            .first()
            .map_or(0, |label| label.offset() as usize);
        let line = line_of(source, at);
        let mut failure = ScriptFailure::new(
            RuntimeCode::Exception,
            format!("{module}:{line}: {}", error.message),
        );
        failure.name = Some("SyntaxError".to_owned());
        return Err(failure.at(module, line));
    }
    Ok(parsed)
}

fn line_of(source: &str, at: usize) -> u32 {
    let before = source.as_bytes().iter().take(at);
    u32::try_from(before.filter(|byte| **byte == b'\n').count()).map_or(u32::MAX, |lines| lines + 1)
}

#[cfg(test)]
mod tests;
