//! A generation takes the place of another while calls run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alknet_call::RegistryChange;
use alknet_test_support::deadline;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::support::*;

/// Calls in all at least, and so many at the same time.
const CALLS: usize = 400;
const AT_ONCE: usize = 40;

/// Longest wait for a call of the next generation.
const NEXT_WITHIN: Duration = Duration::from_secs(60);

/// Every call is of one generation from its beginning to its end, and while generations change no
/// call fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_sees_one_generation() {
    let folder = folder();
    let node = Arc::new(PromotionNode::start(folder.path(), live()).await);
    let source = "export const run = async () => {
        const seen = [];
        for (let n = 0; n < 5; n++) seen.push(await ops.call('js/part', {}));
        return seen;
    };";
    node.promote(&says("part", &json!(0))).await;
    let whole = DraftBundle::new("whole", source)
        .uses(&["js/part"])
        .test(json!({
            "calls": vec![json!({ "path": "js/part", "input": {}, "output": 1 }); 5],
            "expect": { "output": [1, 1, 1, 1, 1] },
        }));
    // Its author may call what a reviewer made external.
    node.identities.set("ada", &["ops:propose", "call:*"]);
    node.promote(&whole).await;
    let over = Arc::new(AtomicBool::new(false));
    let swaps = {
        let (node, over) = (Arc::clone(&node), Arc::clone(&over));
        tokio::spawn(async move {
            let mut swaps = 0;
            while !over.load(Ordering::SeqCst) {
                swaps += 1;
                node.promote(&says("part", &json!(swaps))).await;
                if swaps % 3 == 0 {
                    let back = json!({ "path": "js/part" });
                    node.call("eve", "ops/rollback", &back)
                        .await
                        .expect("one before");
                }
            }
            swaps
        })
    };
    let client = node.client("cal");
    let mut kinds = std::collections::BTreeSet::new();
    let mut asked = 0;
    // On a busy machine the calls may be done before the first generation has gone.
    let patience = Instant::now() + deadline(NEXT_WITHIN);
    while asked < CALLS || kinds.len() < 2 && Instant::now() < patience {
        let answers = stream::iter(0..AT_ONCE).map(|_| async {
            let answer = soon(client.call("js/whole", &json!({}))).await;
            answer.expect("an answer").value().clone()
        });
        let answers: Vec<Value> = answers.buffer_unordered(AT_ONCE).collect().await;
        for answer in &answers {
            let seen = answer.as_array().expect("a list");
            assert!(seen.iter().all(|it| *it == seen[0]), "{answer}");
            kinds.insert(seen[0].as_u64().expect("a number"));
        }
        asked += answers.len();
    }
    over.store(true, Ordering::SeqCst);
    let swaps = soon(swaps).await.expect("no panic");
    assert!(kinds.len() > 1, "{swaps} swaps, {kinds:?}");
}

#[tokio::test]
async fn watchers_get_each_change() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let client = node.client("eve");
    let everything = json!({});
    let events = client.subscribe("services/watch", &everything);
    let mut events = soon(events).await.expect("started");
    let mut next = async || -> RegistryChange {
        let event = soon(events.next()).await.expect("more").expect("an event");
        event.output.parse().expect("a change")
    };
    assert!(
        next()
            .await
            .added
            .iter()
            .all(|name| !name.starts_with("js/"))
    );
    node.promote(&says("a", &json!(1))).await;
    assert_eq!(next().await.added, ["js/a"]);
    node.call("eve", "ops/rollback", &json!({ "path": "js/a" }))
        .await
        .expect("taken away");
    assert_eq!(next().await.removed, ["js/a"]);
}
