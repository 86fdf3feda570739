//! Fixtures made of real calls.

use std::sync::Arc;

use alknet_promotion::{REDACTED, Recorder};
use alknet_runtime::{
    BoxFuture, CallOptions, Host, Isolate, Items, Kind, Level, ModuleSet, OpError, Operation,
    Recorded, Registration, Replay, Reply, Spec, Work,
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
            "image/get" => Ok(Reply::Mixed(
                json!({ "key": { "$bin": [0, 2] }, "pixels": { "$bin": [2, 3] } }),
                Bytes::from_static(&[9, 9, 1, 2, 3]),
            )),
            "image/damaged" => Ok(Reply::Mixed(
                json!({ "$bin": [1, 3] }),
                Bytes::from_static(&[1, 2, 3]),
            )),
            _ => Err(OpError::new("NOT_FOUND", "no such operation")),
        };
        Box::pin(std::future::ready(answer))
    }

    fn subscribe(&self, _: &str, _: Value, _: CallOptions) -> Items {
        Box::pin(stream::iter((0..5).map(|n| Ok(Reply::Json(json!(n))))))
    }

    fn list(&self, prefix: &str) -> Vec<Operation> {
        let secret = json!({ "x-secret": true });
        let one = |path: &str, input, output| Operation {
            path: path.to_owned(),
            kind: Kind::Query,
            input,
            output,
            description: String::new(),
        };
        let all = [
            one(
                "door/open",
                json!({ "properties": { "pin": secret } }),
                json!({ "properties": { "token": secret } }),
            ),
            one(
                "image/get",
                json!(true),
                json!({ "properties": { "key": secret } }),
            ),
        ];
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

async fn ask(recorder: &Recorder, path: &str) -> Reply {
    let answer = recorder.call(path, json!({}), CallOptions::default());
    answer.await.expect("an answer")
}

#[tokio::test]
async fn bytes_are_recorded_and_replayed_but_no_secret_ones() {
    let recorder = Recorder::new(Arc::new(Real));
    for path in ["bytes", "image/get", "image/damaged"] {
        ask(&recorder, path).await;
    }
    let calls = recorder.calls();
    assert_eq!((calls.len(), recorder.left_out()), (2, 1));
    let said = serde_json::to_value(&calls).expect("JSON");
    assert_eq!(
        said,
        json!([
            { "path": "bytes", "input": {}, "output": { "$bin": [0, 2] }, "bytes": "AQI=" },
            { "path": "image/get", "input": {}, "bytes": "AQID",
              "output": { "key": REDACTED, "pixels": { "$bin": [0, 3] } } },
        ])
    );

    let read: Vec<Recorded> = serde_json::from_value(said).expect("a record");
    let replay = Replay::new(&read, Arc::new(Real));
    let again = replay.call("bytes", json!({}), CallOptions::default());
    let expected = Reply::Mixed(json!({ "$bin": [0, 2] }), Bytes::from_static(&[1, 2]));
    assert_eq!(again.await.expect("an answer"), expected);

    let damaged = json!({ "path": "bytes", "output": { "$bin": [0, 2] }, "bytes": "AQ!" });
    serde_json::from_value::<Recorded>(damaged).expect_err("no base64");
}

#[tokio::test]
async fn a_record_is_bounded() {
    let recorder = Recorder::new(Arc::new(Real));
    let most = alknet_promotion::limits::RECORDED_MAX;
    for _ in 0..most + 2 {
        ask(&recorder, "door/open").await;
    }
    assert_eq!((recorder.calls().len(), recorder.left_out()), (most, 2));
}
