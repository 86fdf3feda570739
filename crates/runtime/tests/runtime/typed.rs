//! A project in TypeScript: the real compiler finds it right by our declarations, and the same files
//! run here as they are.
//!
//! The compiler (npm `typescript`) is fetched by `cargo xtask test`, which names its folder in
//! `ALKNET_TEST_TYPESCRIPT`; `crates/tasks/sources.toml` pins it. Node comes with the set-up.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use alknet_runtime::{
    ConsoleLevel, EnvOperation, HostFuture, Isolate, IsolateHost, IsolateSpec, IsolateWork, Items,
    ModuleSet, OpError, OpReply, ScriptCallOptions, ScriptOperationKind, ScriptRegistration,
    declarations,
};
use futures_util::stream;
use serde_json::{Value, json};

use crate::support::wait;

/// The project, as it lies in `data/project`.
const FILES: [(&str, &str); 5] = [
    // Run by `files.rs`.
    ("files.ts", include_str!("../data/project/files.ts")),
    ("invoice.ts", include_str!("../data/project/invoice.ts")),
    ("main.ts", include_str!("../data/project/main.ts")),
    // Run by `topics.rs`.
    ("orders.ts", include_str!("../data/project/orders.ts")),
    ("view.tsx", include_str!("../data/project/view.tsx")),
];
const SETTINGS: &str = include_str!("../data/project/tsconfig.json");

/// What the project is not allowed to do, each with the compiler's number for it.
const WRONG: [(&str, &str); 11] = [
    ("await ops.call('double', { a: 'one' });", "TS2769"),
    (
        "const text: string = await ops.call('double', { a: 1 });",
        "TS2322",
    ),
    ("const text: string[] = ops.list();", "TS2322"),
    ("fetch('https://example.org');", "TS2304"),
    ("new WebSocket('wss://example.org');", "TS2304"),
    ("ops.call('double', { a: 1 }, { timeout: 1 });", "TS2769"),
    ("import { nothing } from 'alknet:core/signals';", "TS2305"),
    ("const path: OperationPath = 'other';", "TS2322"),
    (
        "import { read } from 'alknet:core/fs'; await read('docs:/a', { lenght: 1 });",
        "TS2561",
    ),
    (
        "import { write } from 'alknet:core/fs'; await write('docs:/a', 7);",
        "TS2345",
    ),
    (
        "import { stat } from 'alknet:core/fs'; const size: number = (await stat('docs:/a')).size;",
        "TS2322",
    ),
];

/// Operations with types of their own.
struct TypedHost;

impl IsolateHost for TypedHost {
    fn call(
        &self,
        path: &str,
        input: Value,
        _: ScriptCallOptions,
    ) -> HostFuture<Result<OpReply, OpError>> {
        let answer = match (path, input["a"].as_f64()) {
            ("double", Some(a)) => Ok(OpReply::Json(json!(2.0 * a))),
            ("fail", _) => Err(OpError::new("CONFLICT", "another change was first")),
            _ => Err(OpError::new("NOT_FOUND", "no such operation")),
        };
        Box::pin(std::future::ready(answer))
    }

    fn subscribe(&self, _: &str, input: Value, _: ScriptCallOptions) -> Items {
        let most = input.as_u64().unwrap_or(0);
        Box::pin(stream::iter((0..most).map(|n| Ok(OpReply::Json(json!(n))))))
    }

    fn list(&self, prefix: &str) -> Vec<EnvOperation> {
        let mut all = operations();
        all.retain(|operation| operation.path.starts_with(prefix));
        all
    }

    fn register(&self, _: ScriptRegistration, _: [u8; 32]) -> HostFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn emit(&self, _: u64, _: Value) -> HostFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn log(&self, _: ConsoleLevel, _: &str) {}

    fn check(&self, _: &Value, _: &Value) -> Result<(), String> {
        Ok(())
    }
}

fn operations() -> Vec<EnvOperation> {
    let number = json!({ "type": "number" });
    let operation = |path: &str, kind, input: Value, output: Value| EnvOperation {
        path: path.to_owned(),
        kind,
        input,
        output,
        description: "For a test.".to_owned(),
    };
    let a = json!({ "type": "object", "properties": { "a": number }, "required": ["a"] });
    vec![
        operation(
            "double",
            ScriptOperationKind::Query,
            a.clone(),
            number.clone(),
        ),
        operation("fail", ScriptOperationKind::Mutation, a, json!(true)),
        operation(
            "count",
            ScriptOperationKind::Subscription,
            number.clone(),
            number,
        ),
    ]
}

/// What the compiler says of a folder: whether all is well, and its text.
fn tsc(folder: &Path) -> (bool, String) {
    let package = std::env::var_os("ALKNET_TEST_TYPESCRIPT")
        .expect("ALKNET_TEST_TYPESCRIPT names the package's folder; cargo xtask test sets it");
    let out = Command::new("node")
        .arg(Path::new(&package).join("lib/tsc.js"))
        .args(["--pretty", "false", "--project", "."])
        .current_dir(folder)
        .output()
        .expect("node runs; cargo xtask test installs it");
    let text = [out.stdout, out.stderr].concat();
    (
        out.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let declared = declarations(&operations());
    let more = [("tsconfig.json", SETTINGS), ("alknet.d.ts", &declared)];
    for (name, text) in FILES.into_iter().chain(more) {
        let written = std::fs::write(folder.path().join(name), text);
        written.expect("the folder is ours");
    }
    folder
}

#[test]
fn the_compiler_finds_a_project_right_and_it_runs_as_it_is() {
    let folder = project();
    let (good, said) = tsc(folder.path());
    assert!(good, "{said}");

    let mut modules = ModuleSet::new();
    for (name, text) in FILES {
        let inserted = modules.insert(&format!("./{name}"), text);
        inserted.expect("a module");
    }
    let spec = IsolateSpec::new(modules).deterministic([1; 32], 1_000);
    let mut isolate = Isolate::open(spec, Arc::new(TypedHost)).expect("an isolate");
    let main = "./main.ts".to_owned();
    let ran = wait(isolate.run(IsolateWork::Module {
        module: main.clone(),
    }));
    let row = |name: &str, price: u32| json!({ "type": "li", "props": { "title": name }, "children": [price] });
    let expected = json!({
        "total": { "net": 10, "gross": 15 }, "largest": "paper",
        "tree": { "type": "ul", "props": {}, "children": [row("ink", 3), row("paper", 4), 0] },
        "doubled": 42, "counted": [0, 1, 2], "code": "CONFLICT", "empty": true, "aborted": 2,
        "digest": 0xba, "search": "1", "flow": 2, "listed": ["subscription"],
    });
    assert_eq!(ran.result, Ok(expected));
    let greeted = wait(isolate.run(IsolateWork::Export {
        module: main,
        export: "greet".to_owned(),
        input: json!({ "name": "you" }),
    }));
    assert_eq!(greeted.result, Ok(json!("hello you")));
}

#[test]
fn the_compiler_finds_what_the_declarations_do_not_allow() {
    let folder = project();
    // Each line in a file of its own, so that one compiler judges all of them.
    for (at, (line, _)) in WRONG.iter().enumerate() {
        let text = format!("{line}\nexport {{}};\n");
        std::fs::write(folder.path().join(format!("wrong{at}.ts")), text).expect("written");
    }
    let (good, said) = tsc(folder.path());
    assert!(!good, "{said}");
    for (at, (line, number)) in WRONG.iter().enumerate() {
        let found = said
            .lines()
            .any(|told| told.starts_with(&format!("wrong{at}.ts(")) && told.contains(number));
        assert!(found, "{line}: no {number} in\n{said}");
    }
    assert!(
        FILES
            .iter()
            .all(|(name, _)| !said.contains(&format!("{name}("))),
        "{said}"
    );
}
