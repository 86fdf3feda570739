//! What may be proposed, and what becomes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alknet_call::{ErrorCode, ValueSchema};
use alknet_promotion::limits::CALLS_AT_ONCE;
use alknet_promotion::{PromotionStore, ProposalState};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::*;

/// The whole way: a test that fails, the fix, the review by another peer, calls, a second version, and back.
#[tokio::test]
async fn from_a_draft_to_an_operation_and_back() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let source = "
        export async function run({ items }) {
            if (items.length === 0) throw new OpError('EMPTY', 'nothing to add up', { details: { at: 1 } });
            const { percent } = await ops.call('config/tax', {});
            return items.reduce((sum, item) => sum + item, 0) * (1 + percent / 100);
        }";
    let tax = json!([{ "path": "config/tax", "input": {}, "output": { "percent": 50 } }]);
    let draft = |expected: i64| {
        let mut draft = DraftBundle::new("invoice/total", source)
            .uses(&["config/tax"])
            .test(
                json!({ "name": "two", "input": { "items": [1, 3] }, "calls": tax,
                "expect": { "output": expected } }),
            )
            .test(json!({ "input": { "items": [] }, "expect": { "error": "EMPTY" } }))
            .test(json!({ "input": { "items": [2] }, "calls": tax,
                "expect": { "schema": { "type": "number" } } }));
        draft.content.spec.errors = [("EMPTY".to_owned(), json!({ "type": "object" }))]
            .into_iter()
            .collect();
        draft
    };
    let wrong = node.propose("ada", &draft(5).sign()).await;
    let wrong = wrong.expect_err("a test fails");
    assert_eq!(wrong.code.name(), "TESTS_FAILED");
    let report = &wrong.details.expect("a report")["report"];
    assert_eq!(report["cases"][0]["reason"], "expected 5, got 6");
    assert_eq!(report["cases"][1]["passed"], true);

    let proposed = node.propose("ada", &draft(6).sign()).await.expect("fixed");
    assert_eq!(proposed["state"], "proposed");
    assert_eq!(
        proposed["grants"][0]["text"],
        "calls 'config/tax' (changes nothing) by the scopes config:read of 'ada'"
    );
    let (id, input) = (&proposed["id"], json!({ "items": [1, 3] }));
    let path = "js/invoice/total";
    assert_eq!(node.code("cal", path, &input).await, ErrorCode::NotFound);
    let yes = json!({ "id": id, "accept": true, "external": true, "reason": "good" });
    let promoted = node
        .call("eve", "ops/promote", &yes)
        .await
        .expect("reviewed");
    assert_eq!(
        promoted,
        json!({ "id": id, "state": "promoted", "path": path, "version": 1, "generation": 1,
            "active": true, "external": true, "scopes": ["call:js:invoice:total"] })
    );
    assert_eq!(node.call("cal", path, &input).await, Ok(json!(6)));
    let empty = node.call("cal", path, &json!({ "items": [] })).await;
    let empty = empty.expect_err("declared");
    assert_eq!(
        (empty.code.name(), empty.details),
        ("EMPTY", Some(json!({ "at": 1 }).into()))
    );
    let spec = node.client("cal").schema(path).await.expect("a spec");
    assert_eq!(
        (spec.version.as_str(), spec.tags),
        ("1", vec!["promoted".to_owned()])
    );
    assert_eq!(spec.concurrency, Some(CALLS_AT_ONCE));
    assert!(
        spec.error_schemas
            .iter()
            .any(|it| it.code == "FUEL_EXHAUSTED")
    );

    let second = says("invoice/total", &json!("v2"));
    let promoted = node.promote(&second).await;
    assert_eq!(
        (&promoted["version"], &promoted["generation"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(node.call("cal", path, &input).await, Ok(json!("v2")));
    let one = node
        .call("eve", "ops/proposals", &json!({ "id": id }))
        .await;
    assert_eq!(one.expect("known")["proposal"]["state"], "retired");
    let back = node
        .call("eve", "ops/rollback", &json!({ "path": path }))
        .await;
    assert_eq!(
        back.expect("there was one before"),
        json!({ "path": path, "version": 1, "replaced": 2, "generation": 3, "active": true,
            "external": true, "scopes": ["call:js:invoice:total"] })
    );
    assert_eq!(node.call("cal", path, &input).await, Ok(json!(6)));
    let back = node
        .call("eve", "ops/rollback", &json!({ "path": path }))
        .await;
    assert_eq!(
        back.expect("it is taken away"),
        json!({ "path": path, "version": null, "replaced": 1, "generation": 4, "active": true,
            "external": null, "scopes": null })
    );
    assert_eq!(node.code("cal", path, &input).await, ErrorCode::NotFound);
    let again = json!({ "path": path, "version": 2 });
    node.call("eve", "ops/rollback", &again)
        .await
        .expect("put back");
    assert_eq!(node.call("cal", path, &input).await, Ok(json!("v2")));
    assert_eq!(
        node.code("eve", "ops/rollback", &again).await,
        ErrorCode::Conflict
    );
}

/// All operations of one author have the same bound together, and one caller has half of that: ten callers take all of
/// it. The operation's own bound is asked first, and its refusal says whose it is.
#[tokio::test]
async fn one_more_call_than_an_operation_may_have_is_refused() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    node.promote(&says("hang", &json!(1))).await;
    node.isolates.hang.store(true, Ordering::SeqCst);
    let mut hanging = node.isolates.hanging.subscribe();
    let mut calls = JoinSet::new();
    let mut begun = 0;
    let shares = [64, 32].into_iter().chain([4; 8]);
    for (n, share) in shares.enumerate() {
        let name = format!("caller-{n}");
        node.identities.set(&name, &["call:*"]);
        let client = node.client(&name);
        for _ in 0..share {
            let client = client.clone();
            calls.spawn(async move { client.call("js/hang", &json!({})).await });
        }
        begun += share;
        let all = soon(hanging.wait_for(|n| *n == begun)).await;
        all.expect("the node runs");
    }
    assert_eq!(begun, 128);
    let refused = node.call("cal", "js/hang", &json!({})).await;
    let refused = refused.expect_err("one more");
    assert_eq!(refused.code, ErrorCode::Overloaded);
    let whose = "calls of this operation at once";
    assert!(refused.message.contains(whose), "{refused}");
}

#[tokio::test]
async fn only_its_author_proposes_a_bundle_and_with_a_key_of_theirs() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let good = says("a/b", &json!(1));
    let input = |document: &str| json!({ "bundle": parsed(document) });
    let refused = node.propose("bob", &good.sign()).await.expect_err("ada's");
    assert_eq!(refused.code, ErrorCode::Forbidden);
    // Signed by a key that is not the author's on this node.
    let mut stolen = says("a/b", &json!(1)).by("bob");
    stolen.content.author = "ada".parse().expect("a name");
    let refused = node
        .propose("ada", &stolen.sign())
        .await
        .expect_err("bob's key");
    assert_eq!(refused.code, ErrorCode::Forbidden);
    // Changed after it was signed.
    for (from, to) in [("=> (1)", "=> (2)"), ("\"p99\":5000", "\"p99\":4999")] {
        let document = good.sign().document().replace(from, to);
        assert_ne!(document, good.sign().document(), "{from} is in it");
        let refused = node.code("ada", "ops/propose", &input(&document)).await;
        assert_eq!(refused, ErrorCode::InvalidInput, "{to}");
    }
    let mut unsigned = parsed(good.sign().document());
    unsigned["signature"] = json!("00".repeat(64));
    let unsigned = json!({ "bundle": unsigned });
    assert_eq!(
        node.code("ada", "ops/propose", &unsigned).await,
        ErrorCode::InvalidInput
    );
    // A caller without the scope may not propose.
    assert_eq!(
        node.code("cal", "ops/propose", &input(good.sign().document()))
            .await,
        ErrorCode::Forbidden
    );
    assert!(node.propose("ada", &good.sign()).await.is_ok());
}

#[tokio::test]
async fn a_scan_reports_each_finding_with_its_line() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let check = async |draft: DraftBundle| {
        let error = node.propose("ada", &draft.sign()).await.expect_err("found");
        assert_eq!(error.code.name(), "CHECK_FAILED");
        let found = error.details.expect("findings")["findings"][0].clone();
        (found["check"].clone(), found["line"].clone())
    };
    let source =
        |text: &str| DraftBundle::new("a/b", text).test(json!({ "expect": { "output": 1 } }));
    let run = "export const run = () => 1;";
    assert_eq!(
        check(source(&format!("{run}\nconst no = () => eval('1');"))).await,
        (json!("eval"), json!(2))
    );
    assert_eq!(
        check(source(&format!("import './more.js';\n{run}"))).await,
        (json!("graph"), json!(1))
    );
    assert_eq!(
        check(source(&format!("{run}\nconst f = (x) => import(x);"))).await,
        (json!("graph"), json!(2))
    );
    assert_eq!(
        check(source("export const run = () => {")).await.0,
        json!("source")
    );
    let deep = format!(
        "{run}\nconst x = {}1{};",
        "(".repeat(5_000),
        ")".repeat(5_000)
    );
    assert_eq!(check(source(&deep)).await, (json!("source"), json!(2)));
    let mut hungry = says("a/b", &json!(1));
    hungry.content.fuel = alknet_promotion::FuelPercentiles { p50: 0, p99: 0 };
    hungry.content.modules.insert(
        "./main.js".to_owned(),
        "export const run = () => { for (let n = 0; n < 1e6; n++); return 1 };".to_owned(),
    );
    assert_eq!(check(hungry).await.0, json!("fuel"));
    let secret = DraftBundle::new(
        "a/b",
        "export const run = async () => ops.call('door/open', { pin: '1' });",
    )
    .uses(&["door/open"])
    .test(json!({
        "calls": [{ "path": "door/open", "input": { "pin": "1" }, "output": "open" }],
        "expect": { "output": "open" },
    }));
    assert_eq!(check(secret).await.0, json!("secret"));
}

#[tokio::test]
async fn tests_have_to_pass_twice_the_same_with_what_is_recorded_only() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let failing = async |draft: DraftBundle| {
        let error = node
            .propose("ada", &draft.sign())
            .await
            .expect_err("it fails");
        assert_eq!(error.code.name(), "TESTS_FAILED");
        let report = error.details.expect("a report")["report"].clone();
        report["cases"][0]["reason"]
            .as_str()
            .expect("a reason")
            .to_owned()
    };
    // What is not recorded is not there, though the node has it.
    let calls = DraftBundle::new(
        "a/b",
        "export const run = async () => ops.call('config/tax', {});",
    )
    .uses(&["config/tax"])
    .test(json!({ "expect": { "output": { "percent": 50 } } }));
    let reason = failing(calls).await;
    assert!(
        reason.contains("no such call") && reason.ends_with(":1)"),
        "{reason}"
    );
    let endless = DraftBundle::new("a/b", "export const run = () => { for (;;); };")
        .test(json!({ "expect": { "output": 1 } }));
    assert!(failing(endless).await.contains("E_FUEL"));
    let missing = DraftBundle::new("a/b", "export const walk = () => 1;")
        .test(json!({ "expect": { "output": 1 } }));
    assert!(failing(missing).await.contains("E_NOTFOUND"));
    let other = says("a/b", &json!(1)).test(json!({ "expect": { "error": "E_FUEL" } }));
    let error = node
        .propose("ada", &other.sign())
        .await
        .expect_err("it fails");
    let report = error.details.expect("a report")["report"].clone();
    assert_eq!(report["cases"][1]["reason"], "it did not fail");
}

/// While the author has as many schemas compiled as may run and wait, nothing is known of a proposal: it is neither
/// refused nor accepted, and stays what it was.
#[test]
fn a_full_queue_of_checks_is_no_failed_test() {
    let name = "proposals::a_full_queue_of_checks_is_no_failed_test";
    // The queue is the process's: proposals of other tests would be refused for it.
    alknet_test_support::alone(name, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(full_queue_of_checks());
    });
}

async fn full_queue_of_checks() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let schema = json!({ "type": "object", "required": ["n"] });
    let draft = |name: &str| {
        DraftBundle::new(name, "export const run = () => ({ n: 1 });")
            .test(json!({ "expect": { "schema": schema } }))
            .sign()
    };
    let proposed = node.propose("ada", &draft("first")).await.expect("fine");
    let yes = json!({ "id": proposed["id"], "accept": true, "external": true });
    let full = Arc::new(AtomicBool::new(true));
    let large = json!({ "enum": (0..9_000).collect::<Vec<_>>() });
    let crowd: Vec<_> = (0..16)
        .map(|_| {
            let (full, large) = (Arc::clone(&full), large.clone());
            let ada = "ada".parse().expect("a peer id");
            std::thread::spawn(move || {
                while full.load(Ordering::Relaxed) {
                    let _ = ValueSchema::of_peer(&large, Some(&ada));
                }
            })
        })
        .collect();
    // Now and then a check finds its turn all the same.
    let mut refused = Vec::new();
    for n in 0.. {
        let again = draft(&format!("again{n}"));
        refused.extend(node.propose("ada", &again).await.err());
        if refused.len() == 3 {
            break;
        }
    }
    let promoted = node.call("eve", "ops/promote", &yes).await.err();
    full.store(false, Ordering::Relaxed);
    crowd
        .into_iter()
        .for_each(|one| one.join().expect("no panic"));
    let accepted = promoted.is_none();
    for error in refused.into_iter().chain(promoted) {
        assert_eq!(error.code, ErrorCode::Overloaded, "{error}");
        assert!(error.retryable && error.retry_after_ms.is_some());
    }
    if !accepted {
        let one = json!({ "id": proposed["id"] });
        let one = node
            .call("eve", "ops/proposals", &one)
            .await
            .expect("known");
        assert_eq!(one["proposal"]["state"], "proposed");
        assert_eq!(one["reviews"], json!([]));
        let promoted = node.call("eve", "ops/promote", &yes).await;
        promoted.expect("there is room");
    }
    assert_eq!(
        node.call("cal", "js/first", &json!({})).await,
        Ok(json!({ "n": 1 }))
    );
}

#[tokio::test]
async fn a_module_may_register_and_serve_a_subscription() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let source = "
        await ops.register({ name: 'count', kind: 'subscription' }, async function* (input) {
            for (let n = 0; n < input; n++) yield n;
            if (input > 2) throw new Error('too many');
        });";
    let mut draft = DraftBundle::new("count", source).test(json!({
        "input": 1, "expect": { "schema": true },
    }));
    draft.content.export = None;
    draft.content.spec.kind = alknet_runtime::ScriptOperationKind::Subscription;
    node.promote(&draft).await;
    let client = node.client("cal");
    let mut items = soon(client.subscribe("js/count", &json!(2)))
        .await
        .expect("started");
    let mut seen = Vec::new();
    while let Some(item) = soon(items.next()).await {
        seen.push(item.expect("an item").output.value().clone());
    }
    assert_eq!(seen, [json!(0), json!(1)]);
    let mut items = soon(client.subscribe("js/count", &json!(3)))
        .await
        .expect("started");
    let mut last = None;
    while let Some(item) = soon(items.next()).await {
        last = Some(item);
    }
    assert_eq!(
        last.expect("an end").expect_err("an error").code,
        ErrorCode::Internal
    );
}

#[tokio::test]
async fn code_of_a_promoted_operation_can_be_imported() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let source = "export const run = () => 1; export const double = (n) => 2 * n;";
    node.promote(&DraftBundle::new("lib", source).test(json!({ "expect": { "output": 1 } })))
        .await;
    let source = "import { double } from 'op:js/lib@1'; export const run = (n) => double(n);";
    let user = |text: &str| {
        DraftBundle::new("user", text).test(json!({ "input": 4, "expect": { "output": 8 } }))
    };
    node.promote(&user(source)).await;
    assert_eq!(node.call("cal", "js/user", &json!(5)).await, Ok(json!(10)));
    // A later version of the library changes nothing for who named this one.
    node.promote(&says("lib", &json!("other"))).await;
    assert_eq!(node.call("cal", "js/user", &json!(6)).await, Ok(json!(12)));
    let unknown = user(&source.replace("@1", "@9"));
    let refused = node
        .propose("ada", &unknown.sign())
        .await
        .expect_err("no such version");
    assert_eq!(refused.code, ErrorCode::InvalidInput);
    // And a start finds it again.
    let file = node.file.clone();
    node.stop().await;
    let node = PromotionNode::start(file.parent().expect("a folder"), live()).await;
    assert_eq!(node.promotion.left_out(), []);
    assert_eq!(node.call("cal", "js/user", &json!(7)).await, Ok(json!(14)));
}

#[tokio::test]
async fn the_same_again_is_the_same_and_other_authors_wait() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let bundle = says("a/b", &json!(1)).sign();
    let first = node.propose("ada", &bundle).await.expect("new");
    assert_eq!(node.propose("ada", &bundle).await, Ok(first.clone()));
    let mut other = says("a/b", &json!(1)).by("bob");
    other.content.fuel.p99 = 4_000;
    other.content.fuel.p50 = 4_000;
    let refused = node
        .propose("bob", &other.sign())
        .await
        .expect_err("ada's code");
    assert_eq!(refused.code, ErrorCode::Conflict);
    let no = json!({ "id": first["id"], "accept": false, "reason": "no" });
    assert_eq!(
        node.call("eve", "ops/promote", &no).await,
        Ok(json!({ "id": first["id"], "state": "rejected" }))
    );
    assert_eq!(
        node.code("eve", "ops/promote", &no).await,
        ErrorCode::Conflict
    );
    let again = node
        .propose("bob", &other.sign())
        .await
        .expect("after the no");
    assert_eq!(again["id"], first["id"]);
    let asked = json!({ "id": first["id"], "bundle": true });
    let one = node.call("eve", "ops/proposals", &asked).await;
    let one = one.expect("known");
    assert_eq!(one["proposal"]["author"], "bob");
    assert_eq!(one["bundle"], parsed(other.sign().document()));
    let did: Vec<_> = one["record"].as_array().expect("a record").iter().collect();
    let did: Vec<_> = did
        .iter()
        .map(|it| (it["who"].as_str(), it["did"].as_str()))
        .collect();
    assert_eq!(
        did,
        [
            (Some("ada"), Some("propose")),
            (Some("eve"), Some("reject")),
            (Some("bob"), Some("propose")),
        ]
    );
}

#[tokio::test]
async fn proposals_are_listed_by_page_and_state() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    for n in 0..5 {
        let bundle = says(&format!("a/n{n}"), &json!(n)).sign();
        node.propose("ada", &bundle).await.expect("kept");
    }
    let list = async |input: Value| {
        let page = node
            .call("eve", "ops/proposals", &input)
            .await
            .expect("a page");
        let names = page["proposals"].as_array().expect("a list").iter();
        let names: Vec<_> = names
            .map(|it| it["name"].as_str().expect("a name").to_owned())
            .collect();
        (names.join(" "), page["next"].clone())
    };
    let (names, next) = list(json!({ "limit": 2 })).await;
    assert_eq!(names, "a/n4 a/n3");
    let (names, next) = list(json!({ "limit": 2, "cursor": next })).await;
    assert_eq!(names, "a/n2 a/n1");
    let (names, next) = list(json!({ "limit": 2, "cursor": next })).await;
    assert_eq!((names.as_str(), next), ("a/n0", Value::Null));
    assert_eq!(list(json!({ "state": "promoted" })).await.0, "");
    assert_eq!(list(Value::Null).await.0.split(' ').count(), 5);
    for bad in [
        json!([]),
        json!({ "limit": 0 }),
        json!({ "limit": 101 }),
        json!({ "path": "a/b", "limit": 1 }),
        json!({ "bundle": true }),
        json!({ "id": "xyz" }),
        json!({ "more": 1 }),
    ] {
        let code = node.code("eve", "ops/proposals", &bad).await;
        assert_eq!(code, ErrorCode::InvalidInput, "{bad}");
    }
    let unknown = json!({ "id": "00".repeat(32) });
    assert_eq!(
        node.code("eve", "ops/proposals", &unknown).await,
        ErrorCode::NotFound
    );
    let unknown = json!({ "path": "js/none" });
    assert_eq!(
        node.code("eve", "ops/proposals", &unknown).await,
        ErrorCode::NotFound
    );
    assert_eq!(
        node.code("cal", "ops/proposals", &json!({})).await,
        ErrorCode::Forbidden
    );
}

#[tokio::test]
async fn an_author_has_so_many_that_wait_and_no_more() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let most = alknet_promotion::limits::WAITING_PER_AUTHOR_MAX;
    for n in 0..most {
        let bundle = says("a/b", &json!(n)).sign();
        node.propose("ada", &bundle).await.expect("room");
    }
    let more = says("a/b", &json!("more")).sign();
    let full = node.propose("ada", &more).await.expect_err("too many");
    assert_eq!(full.code.name(), "STORE_FULL");
    let bobs = says("a/b", &json!("bob")).by("bob").sign();
    assert!(node.propose("bob", &bobs).await.is_ok());
    let file = node.file.clone();
    node.stop().await;
    let store = PromotionStore::open(&file).expect("the file");
    let filter = alknet_promotion::ProposalFilter {
        state: Some(ProposalState::Proposed),
        before: None,
    };
    let kept = store.proposals(&filter, 1_000).expect("a list");
    assert_eq!(u64::try_from(kept.len()), Ok(most + 1));
}
