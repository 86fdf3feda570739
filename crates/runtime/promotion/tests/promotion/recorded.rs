//! Fixtures made of real calls.

use std::sync::Arc;

use alknet_promotion::{REDACTED, Recorder};
use alknet_runtime::{
    BoxFuture, CallOptions, Host, Isolate, Items, Kind, Level, ModuleSet, OpError, Operation,
    Registration, Reply, Spec, Work,
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use crate::support::*;

/// A node as a session sees it.
struct Real;

impl Host for Real {
    fn call(&self, path: &str, input: Value, _: CallOptions) -> BoxFuture<Result<Reply, OpError>> {
        let answer = match path {
            "door/open" => Ok(Reply::Json(
                json!({ "token": "t-1", "door": input["pin"] == "1234" }),
            )),
            "bytes" => Ok(Reply::Bytes(Bytes::from_static(&[1, 2]))),
            _ => Err(OpError::new("NOT_FOUND", "no such operation")),
        };
        Box::pin(std::future::ready(answer))
    }

    fn subscribe(&self, _: &str, _: Value, _: CallOptions) -> Items {
        Box::pin(stream::iter((0..5).map(|n| Ok(Reply::Json(json!(n))))))
    }

    fn list(&self, prefix: &str) -> Vec<Operation> {
        let secret = json!({ "x-secret": true });
        let all = [Operation {
            path: "door/open".to_owned(),
            kind: Kind::Query,
            input: json!({ "properties": { "pin": secret } }),
            output: json!({ "properties": { "token": secret } }),
            description: String::new(),
        }];
        all.into_iter()
            .filter(|it| it.path.starts_with(prefix))
            .collect()
    }

    fn register(&self, _: Registration, _: [u8; 32]) -> BoxFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn emit(&self, _: u64, _: Value) -> BoxFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn log(&self, _: Level, _: &str) {}

    fn check(&self, _: &Value, _: &Value) -> Result<(), String> {
        Ok(())
    }
}

const SOURCE: &str = "export const run = async (pin) => {
    const { door } = await ops.call('door/open', { pin });
    try { await ops.call('none/such', 1) } catch {}
    const items = [];
    for await (const item of ops.subscribe('some/items', null)) {
        items.push(item);
        if (item === 2) break;
    }
    return { door, items };
};";

/// What a session recorded is what a proposal is tested with, and no secret is in it.
#[tokio::test]
async fn real_calls_become_fixtures_without_secrets() {
    let recorder = Arc::new(Recorder::new(Arc::new(Real)));
    let host = Arc::clone(&recorder) as Arc<dyn Host>;
    let answer = std::thread::spawn(move || {
        let mut set = ModuleSet::new();
        set.insert("./main.js", SOURCE).expect("a module");
        let mut isolate = Isolate::open(Spec::new(set), host).expect("an isolate");
        let work = Work::Export {
            module: "./main.js".to_owned(),
            export: "run".to_owned(),
            input: json!("1234"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime
            .expect("a runtime")
            .block_on(isolate.run(work))
            .result
    });
    let answer = answer.join().expect("no panic").expect("it answers");
    assert_eq!(answer, json!({ "door": true, "items": [0, 1, 2] }));
    let calls = recorder.calls();
    let text = serde_json::to_string(&calls).expect("JSON");
    assert!(!text.contains("1234") && !text.contains("t-1"), "{text}");
    assert_eq!(calls[0].input["pin"], REDACTED);
    assert_eq!(
        calls[0].output,
        Some(json!({ "token": REDACTED, "door": true }))
    );
    assert_eq!(
        calls[1].error.as_ref().map(|it| it.code.as_str()),
        Some("NOT_FOUND")
    );
    let folder = folder();
    let node = Node::start(folder.path(), live()).await;
    let draft = Draft::new("a", SOURCE)
        .uses(&["door/open", "none/such", "some/items"])
        .test(json!({ "input": REDACTED, "calls": calls, "expect": { "output": answer } }));
    let proposed = node
        .propose("ada", &draft.sign())
        .await
        .expect("it replays");
    assert_eq!(proposed["report"]["passed"], true);
}

#[tokio::test]
async fn a_record_is_bounded_and_has_no_bytes() {
    let recorder = Recorder::new(Arc::new(Real));
    for _ in 0..3 {
        recorder
            .call("bytes", json!(1), CallOptions::default())
            .await
            .expect("bytes");
    }
    assert_eq!((recorder.calls().len(), recorder.left_out()), (0, 3));
    let most = alknet_promotion::limits::RECORDED_MAX;
    for _ in 0..most + 2 {
        recorder
            .call("door/open", json!({}), CallOptions::default())
            .await
            .expect("an answer");
    }
    assert_eq!((recorder.calls().len(), recorder.left_out()), (most, 5));
}
