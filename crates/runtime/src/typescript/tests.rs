use super::*;

fn ts(source: &str) -> String {
    strip("./m.ts", source, Language::TypeScript).expect("only types")
}

fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Erased and expected, blanks aside; line counts have to agree exactly.
#[track_caller]
fn becomes(source: &str, expected: &str) {
    let text = ts(source);
    assert_eq!(squeeze(&text), squeeze(expected), "of {source:?}: {text:?}");
    assert_eq!(
        text.matches('\n').count(),
        source.matches('\n').count(),
        "lines of {source:?}"
    );
}

#[test]
fn types_go_and_code_stays() {
    for (source, expected) in [
        ("let a: number = 1;", "let a = 1;"),
        ("let a!: string;", "let a ;"),
        (
            "function f<T>(this: X, a?: T, ...b: T[]): asserts a is T { return a! as any; }",
            "function f ( a , ...b ) { return a ; }",
        ),
        (
            "const f = (a: number): string => `${a as any}`;",
            "const f = (a ) => `${a }`;",
        ),
        (
            "const f = async <T,>(a: T) => a;",
            "const f = async (a ) => a;",
        ),
        (
            "g<number>(1); new Map<string, number>(); h<T>`x`;",
            "g (1); new Map (); h `x`;",
        ),
        ("const x = { a: 1 } satisfies Y;", "const x = { a: 1 } ;"),
        (
            "const x = <Y>{ a: 1 }; const f = () => <Y>{};",
            "const x = ({ a: 1 }); const f = () => ({});",
        ),
        ("try {} catch (e: unknown) {}", "try {} catch (e ) {}"),
        ("for (const a of b as any[]) {}", "for (const a of b ) {}"),
        ("const { a, b }: { a: 1; b: 2 } = c;", "const { a, b } = c;"),
        ("export const a: A = 1;", "export const a = 1;"),
        (
            "import { type A, b } from './x'; import c, { type D } from './y';",
            "import { b } from './x'; import c, { } from './y';",
        ),
    ] {
        becomes(source, expected);
    }
}

#[test]
fn statements_that_are_types_leave_a_semicolon() {
    for (source, expected) in [
        ("interface A { a: 1 }\nlet b;", "; let b;"),
        ("type A = 1; type B<T> = T;", "; ;"),
        (
            "import type { A } from './a'; export type { A }; export type * from './b';",
            "; ; ;",
        ),
        (
            "declare const a: 1; declare function f(): void; declare class C {} declare enum E {}",
            "; ; ; ;",
        ),
        (
            "declare module 'x' { export const a: 1 } declare global { var b: 1 } declare namespace N {}",
            "; ; ;",
        ),
        (
            "function f(a: 1): 1;\nfunction f(a: any) {}",
            "; function f(a ) {}",
        ),
        ("export interface A {} export default interface B {}", "; ;"),
        ("let x = 1\ninterface A {}\n(y)", "let x = 1 ; (y)"),
        ("const a = b as C\n(d)", "const a = b ; (d)"),
        ("const a = b as C\n+ d", "const a = b + d"),
    ] {
        becomes(source, expected);
    }
}

#[test]
fn classes_keep_what_runs() {
    for (source, expected) in [
        (
            "abstract class A<T> extends B<T> implements C, D<T> { abstract a(): void; b(): void {} }",
            "class A extends B { ; b() {} }",
        ),
        (
            "class A { private a: number = 1; static readonly b = 2; declare c: 1; d?: 1; e!: 2; [k: string]: 1 }",
            "class A { ; a = 1; static b = 2; ; d; ; e; ; ; }",
        ),
        (
            "class A { get: number\n f() {} }",
            "class A { get; f() {} }",
        ),
        (
            "class A { a = 1\n private ['b'] = 2 }",
            "class A { a = 1 ; ['b'] = 2 }",
        ),
        (
            "class A { constructor(a: 1); constructor(a: any) {} f?(): void {} }",
            "class A { ; constructor(a ) {} f () {} }",
        ),
        ("const A = class<T> implements B {};", "const A = class {};"),
    ] {
        becomes(source, expected);
    }
}

#[test]
fn line_ends_never_change_what_runs() {
    becomes(
        "const f = (a: 1): {\n  b: 2\n} => a;",
        "const f = (a ) => a;",
    );
    let text = ts("const f = () => { return <\nT\n>(a: T) => a };");
    assert!(text.contains("return ("), "{text:?}");
    let text = ts("const f = async <\nT\n>(a: T) => a;");
    assert!(text.contains("async ("), "{text:?}");
    let text = ts("function f() { return <\nT\n>x; }");
    assert!(text.contains("return ("), "{text:?}");
}

#[test]
fn what_is_more_than_types_is_refused_with_its_line() {
    for (source, what) in [
        ("\nenum A { B }", "an enum"),
        ("\nconst enum A { B }", "an enum"),
        ("\nnamespace A { export const b = 1 }", "a namespace"),
        ("\n@d class A {}", "a decorator"),
        ("\nclass A { @d a = 1 }", "a decorator"),
        ("\nclass A { constructor(private a: 1) {} }", "a parameter"),
        ("\nimport a = require('a');", "import ="),
        ("\nexport = 1;", "export ="),
        ("\nclass A { accessor a = 1 }", "an accessor"),
    ] {
        let failure = strip("./m.ts", source, Language::TypeScript).expect_err(source);
        assert_eq!(failure.code, RuntimeCode::TsUnsupported, "{source}");
        assert!(failure.message.contains(what), "{failure}");
        assert_eq!(
            failure.place.map(|place| (place.module, place.line)),
            Some(("./m.ts".to_owned(), 2))
        );
    }
}

#[test]
fn a_syntax_error_names_its_line() {
    let failure =
        strip("./m.ts", "let a;\nlet b: = 1;", Language::TypeScript).expect_err("no type");
    assert_eq!(failure.name.as_deref(), Some("SyntaxError"));
    assert_eq!(failure.place.map(|place| place.line), Some(2));
}

#[test]
fn elements_become_calls() {
    let tsx = |source: &str| {
        let text = strip("./m.tsx", source, Language::Tsx).expect("elements");
        assert_eq!(
            text.matches('\n').count(),
            source.matches('\n').count(),
            "lines of {source:?}"
        );
        squeeze(&text)
    };
    for (source, expected) in [
        ("<a/>;", "h(\"a\", null);"),
        (
            "<a b=\"1 &amp; 2\" c={d as any} e {...f}/>;",
            "h(\"a\", { \"b\": \"1 & 2\", \"c\": (d ), \"e\": true, ...(f), });",
        ),
        (
            "<A.B>x {y} <c/></A.B>;",
            "h(A.B, null, \"x \", (y), \" \", h(\"c\", null));",
        ),
        (
            "<><a/>{/* none */}</>;",
            "h(Fragment, null, h(\"a\", null) );",
        ),
        ("<a>\n  one\n  two\n</a>;", "h(\"a\", null, \"one two\" );"),
        (
            "<Map<T> over={x}>{(i: number) => <b key={i!}/>}</Map>;",
            "h(Map, { \"over\": (x), }, ((i ) => h(\"b\", { \"key\": (i ), })));",
        ),
    ] {
        assert_eq!(tsx(source), expected, "{source}");
    }
}

#[test]
fn nesting_is_refused_before_it_reaches_the_parser() {
    let deep = [
        "(".repeat(100_000),
        "[".repeat(100_000),
        "!".repeat(100_000),
        "a=>".repeat(100_000),
        "a?b:".repeat(100_000),
        "if(a)".repeat(100_000),
        "if(a){}else ".repeat(100_000),
        "a=\n".repeat(100_000),
        "a=(".repeat(100_000),
        "{".repeat(100_000),
        "`${".repeat(100_000),
        "new ".repeat(100_000),
        "a=a=a=a=(".repeat(1_000),
        "let a: ".to_owned() + &"keyof ".repeat(100_000),
        "let a: ".to_owned() + &"A<".repeat(100_000),
        "<a>".repeat(100_000),
    ];
    for source in deep {
        let failure = strip("./m.tsx", &source, Language::Tsx).expect_err("too deep");
        assert_eq!(failure.code, RuntimeCode::Limit, "{}", &source[..12]);
    }
}

#[test]
fn long_plain_code_is_not_deep() {
    let lines = [
        "const a = b + c * d\n",
        "const a = b + c;\n",
        "if (a) b()\n",
        "if (a) { b() } else { c() }\n",
        "  { name: 'x', value: [1, 2, 3], f: (a) => a },\n",
        "f(`text ${a} (`);\n",
        "x = /[(]/.test(y);\n",
    ];
    for line in lines {
        let source = match line.starts_with("  {") {
            true => format!("const a = [\n{}];", line.repeat(5_000)),
            false => format!("function f() {{}}\n{line}").repeat(2_000),
        };
        assert!(guard::check(&source).is_ok(), "{line}");
    }
}
