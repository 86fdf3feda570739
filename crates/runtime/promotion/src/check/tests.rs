use std::collections::BTreeSet;

use alknet_runtime::Language;
use proptest::prelude::*;

use super::lexer::{Kind, Lexer};
use super::*;

fn made(source: &str, language: Language) -> Result<Vec<u32>, u32> {
    let tokens = Lexer::read(source, language).map_err(|(line, _)| line)?;
    Ok(makers(source, &tokens).map(|(_, line)| line).collect())
}

#[track_caller]
fn finds(source: &str) {
    let found = made(source, Language::JavaScript).expect(source);
    assert!(!found.is_empty(), "{source}");
}

#[track_caller]
fn passes(source: &str, language: Language) {
    assert_eq!(made(source, language), Ok(Vec::new()), "{source}");
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
        "`${eval('1')}`",
        "`a ${ { a: `${eval(1)}` } } b`",
        "f(...eval('1'))",
        "a ? eval : b",
        "x = 4 / 2; eval('1')",
        "x = (1 + 2) / eval('1') / 2",
        "if (x) /a/.test(y), eval('1')",
        "x = /[/]/ ; eval(1)",
        "// a\u{2028}eval(1)",
        "/* a\n*/eval(1)",
        "x\n++/a/.lastIndex; eval(1)",
        "1..toString(); eval(2)",
        "for await (const x of y) eval(x)",
    ] {
        finds(source);
    }
}

#[test]
fn what_only_mentions_it_passes() {
    for source in [
        "const text = 'eval(1) Function(2)';",
        "// eval(1)\n/* new Function() */ 1",
        "const a = `eval(1)`;",
        r"const a = 'it\'s eval(1)';",
        "const evaluate = 1; evaluate(functional);",
        "const p = /eval(1)/; if (x) /Function/.test(y)",
        "a.eval(1); a?.Function",
        "const half = (a + b) / 2; // eval\n",
        "class A { #eval = 1; get() { return this.#eval } }",
        "const x = a / b / c; const y = a[1] / 2 / 3;",
        "const mean = total\n  / count;",
        "const r = x => x / 2; const o = { a: 1 } / 2 / 3",
        "#!/usr/bin/eval\n1",
    ] {
        passes(source, Language::JavaScript);
    }
}

#[test]
fn what_can_be_read_two_ways_is_refused() {
    // Each is a pattern to the engine, and a division to whoever reads tokens only.
    for source in [
        "let x\n/\"/.test(eval(\"1\"))//\"",
        "label: {}\n/'/.exec(eval('1'))//'",
        "function f() {} /`/.test(eval(`1`))//`",
        "import './a.js'\n/\"/.test(eval(\"1\"))//\"",
        "type /'/.test(eval('1')) //'",
        "'never ends",
        "`never ends ${1",
        "/* never ends",
        "x = /never ends",
        "(]",
        "}",
        "((",
        "1eval",
        r"\x65val",
    ] {
        let read = made(source, Language::JavaScript);
        let found = read.as_ref().is_ok_and(|found| !found.is_empty());
        assert!(read.is_err() || found, "{source}: {read:?}");
    }
    let types = "type A = { x: 1 }\n/\"/.test(eval(\"1\"))//\"";
    assert!(made(types, Language::TypeScript).is_err());
    let deep = "(".repeat(crate::limits::SOURCE_NESTING_MAX + 1);
    assert!(made(&deep, Language::JavaScript).is_err());
}

#[test]
fn elements_and_types_are_read() {
    for source in [
        "export default <p>don't {count} eval(1) / 2</p>;",
        "const a = (x) => <A b=\"it's\" {...c} d={<B/>}>text</A>; const q = 4 / 2;",
        "const a = <></>; const b = <a.b-c:d/>",
        "if (a < b) { f(<x y={a > b} />) }",
        "const a = cond && <b>{list.map((i) => <c>{`${i}`}</c>)}</b>",
    ] {
        passes(source, Language::Tsx);
        passes(source, Language::Jsx);
    }
    passes("const f = <T,>(x: T) => x; const g = <T extends A>(x: T) => x;", Language::Tsx);
    passes("const x: Array<string> = []; const y = a as B; let z = a!.b / 2;", Language::TypeScript);
    let hidden = "const a = <p>it's</p>; eval('1')";
    assert_eq!(made(hidden, Language::Jsx), Ok(vec![1]));
    assert_eq!(made("const a = <p>{eval(1)}</p>", Language::Jsx), Ok(vec![1]));
    assert!(made("const a = <p>", Language::Jsx).is_err());
}

fn imported(source: &str) -> Vec<String> {
    imports(Language::TypeScript, source)
}

#[test]
fn every_kind_of_import_is_found() {
    let source = "
        import './a.js';
        import b from './b.js';
        import c, { d as from, e } from \"./c.js\";
        import * as f from './f.js';
        import type { G } from './types.ts';
        import type H from './more-types.ts';
        import type, { i } from './i.js';
        export * from './j.js';
        export * as k from './k.js';
        export { l } from './l.js';
        export { m };
        export const n = 'from', o = from './not.js';
        export default await import('./p.js');
        const q = import(`./q.js`), r = import(name);
        obj.import('./no.js'); import.meta.x;
        // import './comment.js'
        const s = \"import './text.js'\";
    ";
    let expected = "./a.js ./b.js ./c.js ./f.js ./i.js ./j.js ./k.js ./l.js ./p.js ./q.js";
    assert_eq!(imported(source).join(" "), expected);
    assert_eq!(imported(r"import '\u002e/x.js'"), ["./x.js"]);
    let none: [&str; 0] = [];
    assert_eq!(imported("import"), none);
    assert_eq!(imported("import { a"), none);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(source in "\\PC{0,200}") {
        for language in [Language::JavaScript, Language::TypeScript, Language::Jsx, Language::Tsx] {
            if let Ok(tokens) = Lexer::read(&source, language) {
                for token in &tokens {
                    let _ = (token.word(&source), token.text(&source));
                }
                let _ = statements::imports(&source, &tokens);
            }
        }
    }

    #[test]
    fn code_like_text_is_read_or_refused(parts in proptest::collection::vec(
        prop::sample::select(vec![
            "/", "'", "\"", "`", "${", "}", "{", "(", ")", "<", ">", "</a>", "<a", "eval", "x",
            "\\", "\n", "//", "/*", "*/", "=", "+", "++", "import", "from", "'./a'", "é", "\u{2028}",
        ]), 0..60)) {
        let source = parts.concat();
        for language in [Language::JavaScript, Language::Tsx] {
            if let Ok(tokens) = Lexer::read(&source, language) {
                // Lines only go on.
                prop_assert!(tokens.is_sorted_by_key(|token| token.line));
                let _ = statements::imports(&source, &tokens);
            }
        }
    }

    /// What one reading calls code, no addition in front of it hides.
    #[test]
    fn plain_statements_before_it_hide_nothing(n in 0_usize..8) {
        let before = ["let a = 1;", "const s = 'x';", "f(/a/g);", "a = b / c;", "`t${1}`;", "({});",
            "if (a) { b() }", "for (const x of y) {}"];
        let source = format!("{}\neval('1')", before[n]);
        prop_assert_eq!(made(&source, Language::JavaScript).map(|it| it.len()), Ok(1));
    }
}

#[test]
fn kinds_are_what_they_look_like() {
    let source = "a = /b/g + 'c' - 1.5e3 * `d`";
    let tokens = Lexer::read(source, Language::JavaScript).expect("plain");
    let kinds: BTreeSet<_> = tokens.iter().map(|it| format!("{:?}", it.kind)).collect();
    assert!(tokens.iter().any(|it| it.kind == Kind::Pattern));
    assert!(kinds.contains("Number") && kinds.contains("Text") && kinds.contains("Word"));
}
