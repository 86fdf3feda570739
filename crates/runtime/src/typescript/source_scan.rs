//! Scans a source for imports and uses of `eval` without running it.

use oxc_allocator::Allocator;
use oxc_ast::ast::*;
use oxc_ast_visit::{Visit, walk};
use oxc_span::Span;
use serde::{Deserialize, Serialize};

use super::{line_of, parse};
use crate::error::ScriptFailure;
use crate::limits::LOOKED;
use crate::modules::Language;

/// The imports of a source, and the places where it makes code of text.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct SourceScan {
    /// The imports in the order of the source. Imports of types are erased before the engine sees the source, and are
    /// not listed.
    pub imports: Vec<Import>,
    /// The places that make code of text, in the order of the source.
    pub makers: Vec<EvalSite>,
    /// Whether there were more than [`LOOKED`] of either.
    #[serde(default)]
    pub cut: bool,
}

/// A module that a source names.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Import {
    /// The specifier as it is written; `None` if the source computes it at run time.
    pub specifier: Option<String>,
    /// The form of the import.
    pub via: ImportForm,
    /// The line, from 1.
    pub line: u32,
}

/// How a source names a module.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImportForm {
    /// `import('./x.js')`.
    Dynamic,
    /// `export … from './x.js'`.
    Export,
    /// `import … from './x.js'`.
    Import,
}

/// A place that names a function which makes code of text.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct EvalSite {
    /// `eval`, `Function` or `constructor`.
    pub name: String,
    /// The line, from 1.
    pub line: u32,
}

/// Scans a source with the parser that also erases types. A caller must scan sources of unknown peers in a worker,
/// because a source that evades the guard against deep nesting ends the process.
///
/// A name counts wherever it is read, even if the source declares it itself.
///
/// # Errors
/// [`RuntimeCode::Limit`](crate::RuntimeCode::Limit) for nesting that is too deep for the parser,
/// [`RuntimeCode::Exception`](crate::RuntimeCode::Exception) for a syntax error; each with the module and the line.
pub fn scan_source(
    module: &str,
    source: &str,
    language: Language,
) -> Result<SourceScan, ScriptFailure> {
    let allocator = Allocator::default();
    let parsed = parse(&allocator, module, source, language)?;
    let mut scanner = SourceScanner {
        source,
        scan: SourceScan::default(),
    };
    scanner.visit_program(&parsed.program);
    Ok(scanner.scan)
}

/// The names of functions that make code of text.
const MAKERS: [&str; 2] = ["eval", "Function"];

struct SourceScanner<'s> {
    source: &'s str,
    scan: SourceScan,
}

impl SourceScanner<'_> {
    fn line(&self, span: Span) -> u32 {
        line_of(self.source, span.start as usize)
    }

    fn import(&mut self, specifier: Option<&str>, via: ImportForm, span: Span) {
        // A source may have any number of imports; `cut` marks the list as incomplete.
        if self.scan.imports.len() >= LOOKED {
            self.scan.cut = true;
            return;
        }
        let line = self.line(span);
        self.scan.imports.push(Import {
            specifier: specifier.map(str::to_owned),
            via,
            line,
        });
    }

    fn maker(&mut self, name: &str, span: Span) {
        if self.scan.makers.len() >= LOOKED {
            self.scan.cut = true;
            return;
        }
        let line = self.line(span);
        self.scan.makers.push(EvalSite {
            name: name.to_owned(),
            line,
        });
    }

    /// Records `globalThis.eval`, and members that lead from any function to `Function`.
    fn member(&mut self, object: &Expression<'_>, name: &str, span: Span) {
        // Parentheses and types around the object change nothing.
        let object = object.get_inner_expression();
        if MAKERS.contains(&name) && object.is_specific_id("globalThis") {
            self.maker(name, span);
        }
        if name == "constructor" && (is_function(object) || is_constructor(object)) {
            self.maker(name, span);
        }
    }
}

impl<'a> Visit<'a> for SourceScanner<'_> {
    fn visit_import_declaration(&mut self, it: &ImportDeclaration<'a>) {
        if it.import_kind == ImportOrExportKind::Value {
            self.import(Some(&it.source.value), ImportForm::Import, it.span);
        }
    }

    fn visit_export_from_declaration(&mut self, it: &ExportFromDeclaration<'a>) {
        if it.export_kind == ImportOrExportKind::Value {
            self.import(Some(&it.source.value), ImportForm::Export, it.span);
        }
    }

    fn visit_export_all_declaration(&mut self, it: &ExportAllDeclaration<'a>) {
        if it.export_kind == ImportOrExportKind::Value {
            self.import(Some(&it.source.value), ImportForm::Export, it.span);
        }
    }

    fn visit_import_expression(&mut self, it: &ImportExpression<'a>) {
        self.import(fixed(&it.source), ImportForm::Dynamic, it.span);
        // The specifier is an expression, which may itself import.
        walk::walk_import_expression(self, it);
    }

    fn visit_identifier_reference(&mut self, it: &IdentifierReference<'a>) {
        if MAKERS.contains(&it.name.as_str()) {
            self.maker(&it.name, it.span);
        }
    }

    fn visit_static_member_expression(&mut self, it: &StaticMemberExpression<'a>) {
        self.member(&it.object, &it.property.name, it.span);
        walk::walk_static_member_expression(self, it);
    }

    fn visit_computed_member_expression(&mut self, it: &ComputedMemberExpression<'a>) {
        if let Some(name) = fixed(&it.expression) {
            self.member(&it.object, name, it.span);
        }
        walk::walk_computed_member_expression(self, it);
    }

    /// Names in types do not run.
    fn visit_ts_type(&mut self, _: &TSType<'a>) {}
}

/// The text of an expression, if it is a constant.
fn fixed<'e>(expression: &'e Expression<'_>) -> Option<&'e str> {
    match expression.get_inner_expression() {
        Expression::StringLiteral(text) => Some(text.value.as_str()),
        Expression::TemplateLiteral(text) if text.is_no_substitution_template() => {
            let cooked = text.quasis.first()?.value.cooked.as_ref();
            cooked.map(|text| text.as_str())
        }
        _ => None,
    }
}

fn is_function(expression: &Expression<'_>) -> bool {
    matches!(
        expression,
        Expression::ArrowFunctionExpression(_)
            | Expression::ClassExpression(_)
            | Expression::FunctionExpression(_)
    )
}

fn is_constructor(expression: &Expression<'_>) -> bool {
    match expression {
        Expression::StaticMemberExpression(it) => it.property.name == "constructor",
        Expression::ComputedMemberExpression(it) => fixed(&it.expression) == Some("constructor"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::RuntimeCode;

    const LANGUAGES: [Language; 4] = [
        Language::JavaScript,
        Language::Jsx,
        Language::TypeScript,
        Language::Tsx,
    ];

    fn looked(source: &str, language: Language) -> SourceScan {
        scan_source("./m.js", source, language)
            .unwrap_or_else(|failure| panic!("{source}: {failure}"))
    }

    #[test]
    fn what_makes_code_is_found_wherever_it_is_code() {
        for source in [
            "eval('1')",
            "(0, eval)('1')",
            "const e = eval;",
            "new Function('return 1')",
            "Function`x`",
            r"\u0065val('1')",
            r"ev\u{61}l('1')",
            "globalThis.eval('1')",
            "globalThis['ev\\x61l']('1')",
            "globalThis[`Function`]('1')",
            "(() => {}).constructor('1')",
            "''.constructor.constructor('1')",
            "[]['constructor']['constructor']('1')",
            "`${eval('1')}`",
            "a ? eval : b",
            "x = 4 / 2; eval('1')",
            "x = (1 + 2) / eval('1') / 2",
            "if (x) /a/.test(y), eval('1')",
            "// a\u{2028}eval(1)",
            "let x\n/\"/.test(eval(\"1\"))//\"",
            "label: {}\n/'/.exec(eval('1'))//'",
            "const f = async () => { for await (const x of y) eval(x) }",
        ] {
            let found = looked(source, Language::JavaScript).makers;
            assert!(!found.is_empty(), "{source}");
        }
        let element = looked("const a = <p>it's</p>;\neval('1')", Language::Jsx);
        assert_eq!(
            element.makers.iter().map(|it| it.line).collect::<Vec<_>>(),
            [2]
        );
    }

    #[test]
    fn what_only_mentions_it_passes() {
        for source in [
            "const text = 'eval(1) Function(2)';",
            "// eval(1)\n/* new Function() */ 1",
            "const a = `eval(1)`;",
            "const evaluate = 1; evaluate(functional);",
            "const p = /eval(1)/; if (x) /Function/.test(y)",
            "a.eval(1); a?.Function; ({ eval: 1 })",
            "class A { #eval = 1; get() { return this.#eval } make() { return new this.constructor() } }",
            "#!/usr/bin/eval\n1",
        ] {
            assert_eq!(looked(source, Language::JavaScript).makers, [], "{source}");
        }
        let types = "let a: Function = b; type C = typeof eval; const d = e as Function;";
        assert_eq!(looked(types, Language::TypeScript).makers, []);
    }

    #[test]
    fn every_kind_of_import_is_found() {
        let source = "
            import './a.js';
            import c, { d as from, type T } from './c.js';
            import * as f from './f.js';
            import type { G } from './types.ts';
            import type, { i } from './i.js';
            export * from './j.js';
            export type * from './no.js';
            export { l } from './l.js';
            export { m };
            export default await import('./p.js');
            const q = import(`./q.js`), r = import(name), s = import('./a' + b);
            obj.import('./no.js'); import.meta.x;
            // import './comment.js'
        ";
        let found = looked(source, Language::TypeScript).imports;
        let told = found.iter().map(|it| {
            let name = it.specifier.as_deref().unwrap_or("?");
            format!("{name} {:?} {}", it.via, it.line)
        });
        let expected = [
            "./a.js Import 2",
            "./c.js Import 3",
            "./f.js Import 4",
            "./i.js Import 6",
            "./j.js Export 7",
            "./l.js Export 9",
            "./p.js Dynamic 11",
            "./q.js Dynamic 12",
            "? Dynamic 12",
            "? Dynamic 12",
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        let escaped = looked(r"import '\u002e/x.js'", Language::JavaScript).imports;
        assert_eq!(escaped[0].specifier.as_deref(), Some("./x.js"));
    }

    #[test]
    fn a_source_that_is_none_ends_with_its_line() {
        let refused = |source: &str| scan_source("./m.js", source, Language::JavaScript).err();
        let failure = refused("1;\nimport {").expect("no source");
        assert_eq!(failure.code, RuntimeCode::Exception);
        assert_eq!(failure.place.map(|place| place.line), Some(2));
        let deep = format!("x = {}1{}", "(".repeat(5_000), ")".repeat(5_000));
        assert_eq!(
            refused(&deep).map(|failure| failure.code),
            Some(RuntimeCode::Limit)
        );
    }

    #[test]
    fn diagnostics_are_bounded() {
        let many = looked(
            &"eval;import('a');".repeat(LOOKED + 1),
            Language::JavaScript,
        );
        assert_eq!((many.makers.len(), many.imports.len()), (LOOKED, LOOKED));
        assert!(many.cut && !looked("eval", Language::JavaScript).cut);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(source in "\\PC{0,200}") {
            for language in LANGUAGES {
                let _ = scan_source("./m.js", &source, language);
            }
        }

        #[test]
        fn code_like_text_is_read_or_refused(parts in proptest::collection::vec(
            prop::sample::select(vec![
                "/", "'", "\"", "`", "${", "}", "{", "(", ")", "<", ">", "</a>", "<a", "eval", "x",
                "\\", "\n", "//", "/*", "*/", "=", "+", "++", "import", "from", "'./a'", "é",
                "\u{2028}", "export", "*", ".constructor", "[", "]",
            ]), 0..60)) {
            let source = parts.concat();
            for language in LANGUAGES {
                if let Ok(looked) = scan_source("./m.js", &source, language) {
                    prop_assert!(looked.makers.iter().all(|it| it.line >= 1));
                }
            }
        }
    }
}
