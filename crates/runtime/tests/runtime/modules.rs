//! Module graphs, and TypeScript in them.

use alknet_runtime::{Isolate, IsolateSpec, IsolateWork, ModuleSet, RuntimeCode};
use serde_json::json;
use std::sync::Arc;

use crate::support::{RecordingHost, main, modules, outcome, wait};

#[test]
fn modules_import_each_other() {
    let spec = modules(&[
        (
            "./main.js",
            "import { b } from './lib/b.js'; import * as op from 'op:js/x@2'; import c from 'c'; export default [b, op.x, c, (await import('./late.js')).late];",
        ),
        (
            "./lib/b.js",
            "import { a } from '../a.js'; export const b = a + 1;",
        ),
        ("./a.js", "export const a = 1;"),
        ("op:js/x@2", "export const x = 'op';"),
        (
            "./late.js",
            "export const late = import.meta !== undefined;",
        ),
    ]);
    let mut set = (*spec.modules).clone();
    let hash = blake3(b"export default 'blob'");
    set.insert(&format!("blob:{hash}"), "export default 'blob'")
        .expect("its hash");
    set.map("c", format!("blob:{hash}"));
    let mut spec = spec;
    spec.modules = Arc::new(set);
    assert_eq!(outcome(spec).0.result, Ok(json!([2, "op", "blob", true])));
}

fn blake3(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[test]
fn cycles_and_circles_are_the_languages() {
    let spec = modules(&[
        (
            "./main.js",
            "import { f } from './b.js'; export const one = 1; export default f();",
        ),
        (
            "./b.js",
            "import { one } from './main.js'; export const f = () => one;",
        ),
    ]);
    // `one` is read while ./main.js is not evaluated yet only if f is called too early; it is not.
    assert_eq!(outcome(spec).0.result, Ok(json!(1)));
}

#[test]
fn what_is_not_in_the_set_is_not_found() {
    for source in [
        "import './none.js'",
        "import 'https://example.org/x.js'",
        "import 'fs'",
        "import '../x.js'",
        "await import('./none.js')",
        "import 'alknet:runtime/errors'",
    ] {
        let failure = outcome(modules(&[("./main.js", source)]))
            .0
            .result
            .expect_err(source);
        assert_eq!(failure.code, RuntimeCode::NotFound, "{source}: {failure:?}");
    }
    let failure = outcome(modules(&[
        ("./main.js", "import { b } from './a.js'"),
        ("./a.js", "export const a = 1"),
    ]));
    assert_eq!(
        failure.0.result.expect_err("no b").name.as_deref(),
        Some("SyntaxError")
    );
}

#[test]
fn exports_are_called_and_a_module_is_evaluated_once() {
    let spec = modules(&[(
        "./main.js",
        "let n = 0; n++; export const f = ({ add }) => (n += add); export const x = 1;",
    )]);
    let mut isolate = Isolate::open(spec, Arc::new(RecordingHost::default())).expect("an isolate");
    let mut call = |export: &str, add: i32| {
        let work = IsolateWork::Export {
            module: "./main.js".into(),
            export: export.into(),
            input: json!({ "add": add }),
        };
        wait(isolate.run(work))
            .result
            .map_err(|failure| failure.code)
    };
    assert_eq!(call("f", 10), Ok(json!(11)));
    assert_eq!(call("f", 10), Ok(json!(21)));
    assert_eq!(call("x", 1), Err(RuntimeCode::NotFound));
    assert_eq!(call("none", 1), Err(RuntimeCode::NotFound));
}

#[test]
fn typescript_runs_and_its_errors_name_its_lines() {
    let spec = modules(&[
        (
            "./main.js",
            "import { f, A } from './a.js'; export default [f(1), new A().b, await f(2 as any).x]"
                .replace(" as any", "")
                .as_str(),
        ),
        (
            "./a.ts",
            "import type { T } from './types';\ninterface X<T> { x: T }\nexport function f<T>(x: T): X<T> {\n  return { x } as X<T>;\n}\nexport abstract class B { protected readonly b: number = 2 }\nexport class A extends B implements X<1> { x!: 1 }\n",
        ),
    ]);
    assert_eq!(outcome(spec).0.result, Ok(json!([{ "x": 1 }, 2, 2])));
    let spec = modules(&[
        ("./main.js", "import './a.ts'"),
        (
            "./a.ts",
            "type A = {\n  a: 1;\n};\nfunction f(a: A): never {\n  throw new Error(`${a}` as string);\n}\nf({ a: 1 });\n",
        ),
    ]);
    let failure = outcome(spec).0.result.expect_err("it throws");
    let stack = failure.stack.expect("a stack");
    assert!(
        stack.contains("./a.ts:5") && stack.contains("./a.ts:7"),
        "{stack}"
    );
}

#[test]
fn refused_typescript_names_module_and_line() {
    let spec = modules(&[
        ("./main.js", "import './a.ts'"),
        ("./a.ts", "\n\nenum A { B }"),
    ]);
    let failure = outcome(spec).0.result.expect_err("an enum");
    assert_eq!(failure.code, RuntimeCode::TsUnsupported);
    let place = failure.place.expect("a place");
    assert_eq!((place.module.as_str(), place.line), ("./a.ts", 3));
    let spec = modules(&[
        ("./main.js", "import './a.ts'"),
        ("./a.ts", &"(".repeat(5000)),
    ]);
    assert_eq!(
        outcome(spec).0.result.expect_err("too deep").code,
        RuntimeCode::Limit
    );
}

#[test]
fn bytecode_is_only_another_text() {
    // The first bytes of the engine's own format are no program.
    let spec = modules(&[("./main.js", "\u{18}\u{1}\u{2}abc")]);
    assert_eq!(
        outcome(spec).0.result.expect_err("no text").code,
        RuntimeCode::Exception
    );
}

#[test]
fn a_reload_passes_state_by_json_only() {
    let open = |version: u32| {
        let source = format!(
            "let n = 0; export function init(prev) {{ n = prev?.n ?? 0; return {version} }} export const add = () => ++n; export const dispose = () => ({{ n }});"
        );
        let mut set = ModuleSet::new();
        set.insert("./main.js", source).expect("a module");
        Isolate::open(IsolateSpec::new(set), Arc::new(RecordingHost::default()))
            .expect("an isolate")
    };
    let call = |isolate: &mut Isolate, export: &str, input| {
        let work = IsolateWork::Export {
            module: "./main.js".into(),
            export: export.into(),
            input,
        };
        wait(isolate.run(work)).result.expect("an answer")
    };
    let mut old = open(1);
    call(&mut old, "init", json!(null));
    call(&mut old, "add", json!(null));
    let state = call(&mut old, "dispose", json!(null));
    let mut new = open(2);
    assert_eq!(call(&mut new, "init", state), json!(2));
    assert_eq!(call(&mut new, "add", json!(null)), json!(2));
    assert_eq!(wait(new.run(main())).result, Ok(json!(null)));
}

/// A look at the modules tells what each imports and where it makes code, and runs none of them.
#[test]
fn a_look_runs_nothing() {
    let spec = modules(&[
        ("./main.ts", "import './gone.js';\nlet a: Function = eval;"),
        ("./more.js", "throw ops.call('echo', 1)"),
        ("./none.js", "1;\nimport {"),
    ]);
    let host = Arc::new(RecordingHost::default());
    let mut isolate = Isolate::open(spec, Arc::clone(&host) as _).expect("an isolate");
    let seen = wait(isolate.run(IsolateWork::Look))
        .result
        .expect("an answer");
    assert_eq!(
        seen["./main.ts"]["found"],
        json!({
            "imports": [{ "specifier": "./gone.js", "via": "import", "line": 1 }],
            "makers": [{ "name": "eval", "line": 2 }],
            "cut": false,
        })
    );
    assert_eq!(seen["./more.js"]["found"]["makers"], json!([]));
    assert_eq!(seen["./none.js"]["failed"]["place"]["line"], 2);
    assert!(host.calls.lock().expect("no poison").is_empty());
    let text = serde_json::to_value(IsolateWork::Look).expect("JSON");
    assert_eq!(text, json!({ "do": "look" }));
}
