//! `runtime/*`, as callers from outside see them.

use alknet_call::{CallConnection, CallError};
use serde_json::{Value, json};

use crate::support::{SessionLab, identity, soon, until};

async fn call(client: &CallConnection, name: &str, input: Value) -> Result<Value, CallError> {
    let answer = soon(client.call(name, &input)).await;
    answer.map(|answer| answer.value().clone())
}

async fn eval(client: &CallConnection, input: Value) -> Result<Value, CallError> {
    call(client, "runtime/eval", input).await
}

async fn refused(client: &CallConnection, input: Value) -> (String, Value) {
    let error = eval(client, input).await.expect_err("an error");
    let details = error.details.map(|details| *details).unwrap_or_default();
    (error.code.name().to_owned(), details)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_is_run_for_its_caller() {
    let lab = SessionLab::new();
    let client = lab.client(&identity("dev", &["runtime:debug", "paper:*"]));
    let source = "const n: number = 6; console.log('on'); export default [n * 7,
        await ops.call('test/paper', {}), (await ops.call('test/who', {})).id]";
    let answer = eval(&client, json!({ "source": source }))
        .await
        .expect("an answer");
    assert_eq!(answer["value"], json!([42, "yes", "dev"]));
    assert_eq!(
        answer["console"],
        json!([{ "level": "info", "text": "on" }])
    );
    assert_eq!(answer["stats"]["calls"], json!(2));
    let modules = json!({ "modules": { "./a.js": "export default 1", "./b.js":
        "import a from './a.js'; export default a + 1" }, "main": "./b.js" });
    assert_eq!(
        eval(&client, modules).await.expect("an answer")["value"],
        json!(2)
    );
    let seeded = json!({ "source": "export default [Math.random(), Date.now()]",
        "seed": "07".repeat(32) });
    let (one, two) = (
        eval(&client, seeded.clone()).await,
        eval(&client, seeded).await,
    );
    assert_eq!(
        one.expect("an answer")["value"],
        two.expect("an answer")["value"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_script_has_its_code_on_the_wire() {
    let lab = SessionLab::new();
    let client = lab.client(&identity("dev", &["runtime:debug"]));
    let spin = json!({ "source": "for (;;);", "limits": { "fuel_ticks": 5 } });
    let memory = json!({ "source": "const a = []; for (;;) a.push(new Array(999).fill(0.5))",
        "limits": { "heap_bytes": 4_000_000 } });
    let slow = json!({ "source": "await new Promise((r) => setTimeout(r, 1e9))",
        "limits": { "wall_ms": 100 } });
    let calls = json!({ "source": "for (;;) await ops.call('test/echo', 1)",
        "limits": { "calls": 3 } });
    for (input, code, details) in [
        (spin, "FUEL_EXHAUSTED", "E_FUEL"),
        (memory, "MEMORY_LIMIT", "E_MEMORY"),
        (
            json!({ "source": "(function f() { f() })()" }),
            "STACK_LIMIT",
            "E_STACK",
        ),
        (slow, "TIMEOUT", "E_TIMEOUT"),
        (calls, "QUOTA_EXCEEDED", "E_QUOTA"),
        (
            json!({ "source": "export default 0n ** -1n" }),
            "SCRIPT_FAILED",
            "E_EXCEPTION",
        ),
        (
            json!({ "source": "throw new Error('no')" }),
            "SCRIPT_FAILED",
            "E_EXCEPTION",
        ),
        (
            json!({ "source": "export default Infinity" }),
            "INVALID_OUTPUT",
            "E_ENCODE",
        ),
        (
            json!({ "source": "enum A { B }" }),
            "INVALID_INPUT",
            "E_TS_UNSUPPORTED",
        ),
        (
            json!({ "source": "", "main": "nowhere" }),
            "INVALID_INPUT",
            "E_LIMIT",
        ),
        (json!({ "main": "./nowhere.js" }), "NOT_FOUND", "E_NOTFOUND"),
        (
            json!({ "source": "await ops.call('test/paper', {})" }),
            "SCRIPT_FAILED",
            "E_EXCEPTION",
        ),
    ] {
        let (seen, told) = refused(&client, input.clone()).await;
        assert_eq!(
            (seen.as_str(), &told["code"]),
            (code, &json!(details)),
            "{input}"
        );
    }
    // The answer came when no function of the script ran any more.
    let failing = json!({ "source": "\n\nawait ops.call('test/paper', {})" });
    let (_, told) = refused(&client, failing).await;
    let stack = told["stack"].as_str().unwrap_or_default();
    assert!(stack.contains(":3:"), "{told}");
    for input in [
        json!({ "source": 1 }),
        json!({ "nonsense": 1 }),
        json!({ "source": "1", "limits": { "wall_ms": 0 } }),
        json!({ "source": "1", "limits": { "heap_bytes": 1 } }),
        json!({ "source": "1", "seed": "short" }),
        json!({ "source": "1", "repl": "" }),
    ] {
        assert_eq!(
            refused(&client, input.clone()).await.0,
            "INVALID_INPUT",
            "{input}"
        );
    }
    let (_, told) = refused(&client, json!({ "source": "console.log('a'); throw 1" })).await;
    assert_eq!(told["console"][0]["text"], json!("a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_repl_go_to_the_same_session() {
    let lab = SessionLab::new();
    let dev = lab.client(&identity("dev", &["runtime:debug"]));
    let line = |repl: &str, source: &str| json!({ "repl": repl, "source": source });
    eval(&dev, line("a", "globalThis.x = 20"))
        .await
        .expect("a value");
    let answer = eval(&dev, line("a", "x + 22")).await.expect("a value");
    assert_eq!(
        (&answer["value"], &answer["shown"]),
        (&json!(42), &json!("42"))
    );
    // Another name, or another caller, is another session.
    let other = lab.client(&identity("other", &["runtime:debug"]));
    assert_eq!(refused(&dev, line("b", "x")).await.0, "SCRIPT_FAILED");
    assert_eq!(refused(&other, line("a", "x")).await.0, "SCRIPT_FAILED");
    // The session is the same after an exception, and a new one after a limit.
    assert_eq!(
        eval(&dev, line("a", "x")).await.expect("a value")["value"],
        json!(20)
    );
    assert_eq!(
        refused(&dev, line("a", "for (;;);")).await.0,
        "FUEL_EXHAUSTED"
    );
    assert_eq!(refused(&dev, line("a", "x")).await.0, "SCRIPT_FAILED");
    for name in ["c", "d", "e", "f", "g", "h"] {
        eval(&dev, line(name, "1")).await.expect("a value");
    }
    assert_eq!(refused(&dev, line("i", "1")).await.0, "OVERLOADED");
    eval(&other, line("i", "1")).await.expect("a value");
    // One that is ended makes room.
    eval(&dev, json!({ "repl": "c", "end": true }))
        .await
        .expect("ended");
    assert_eq!(
        refused(&dev, json!({ "repl": "c", "end": true })).await.0,
        "INVALID_INPUT"
    );
    eval(&dev, line("i", "1")).await.expect("a value");
}

/// What a session may is fixed when it is opened.
#[tokio::test(flavor = "multi_thread")]
async fn a_repl_ends_with_the_rights_that_it_was_opened_with() {
    let lab = SessionLab::new();
    let dev = |scopes: &[&str]| lab.client(&identity("dev", scopes));
    let (wide, narrow) = (&["runtime:debug", "paper:*"][..], &["runtime:debug"][..]);
    let paper = json!({ "repl": "a", "source": "await ops.call('test/paper', {})" });
    eval(&dev(wide), paper.clone()).await.expect("it may");
    assert_eq!(refused(&dev(narrow), paper.clone()).await.0, "FORBIDDEN");
    // The one that begins now has what its owner has, and goes on when that becomes more.
    for scopes in [narrow, wide] {
        let told = refused(&dev(scopes), paper.clone()).await;
        assert_eq!(told.0, "SCRIPT_FAILED", "{scopes:?} {}", told.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_counted_and_killed() {
    let lab = SessionLab::new();
    let admin = lab.client(&identity("root", &["*"]));
    let dev = lab.client(&identity("dev", &["runtime:debug"]));
    let hang = json!({ "source": "await ops.call('test/hang', {})" });
    let hangs = {
        let dev = dev.clone();
        tokio::spawn(async move { refused(&dev, hang).await })
    };
    let started = || lab.probe.started.load(std::sync::atomic::Ordering::SeqCst) == 1;
    until("it hangs", started).await;
    let listed = call(&admin, "runtime/sessions", json!({}))
        .await
        .expect("a list");
    let session = &listed["sessions"][0];
    assert_eq!(
        (&session["tenant"], &session["state"]),
        (&json!("dev"), &json!("running"))
    );
    assert_eq!(session["calls_out"], json!({ "test/hang": 1 }));
    let kill = json!({ "session": session["session"] });
    let killed = call(&admin, "runtime/kill", kill.clone())
        .await
        .expect("an answer");
    assert_eq!(killed, json!({ "killed": true }));
    assert_eq!(hangs.await.expect("no panic").0, "ABORTED");
    until("it is gone", || lab.sessions.list().is_empty()).await;
    let killed = call(&admin, "runtime/kill", kill.clone())
        .await
        .expect("an answer");
    assert_eq!(killed, json!({ "killed": false }));
    let stats = call(&admin, "runtime/stats", json!({}))
        .await
        .expect("numbers");
    assert_eq!(stats["sessions_ended"]["abort"], json!(1));
    assert_eq!(stats["sessions_opened"], json!(1));
    assert!(stats["workers"]["js"].as_u64() >= Some(1), "{stats}");
    assert!(stats["sandbox"]["js"]["level"].is_string(), "{stats}");
    // Not for every caller.
    for (name, input) in [
        ("runtime/sessions", json!({})),
        ("runtime/stats", json!({})),
        ("runtime/kill", kill),
    ] {
        let error = call(&dev, name, input).await.expect_err("a scope");
        assert_eq!(error.code.name(), "FORBIDDEN", "{name}");
    }
    let unknown_peer = lab.client(&identity("nobody", &["runtime:read"]));
    assert_eq!(
        refused(&unknown_peer, json!({ "source": "" })).await.0,
        "FORBIDDEN"
    );
}
