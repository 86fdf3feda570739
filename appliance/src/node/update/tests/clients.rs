//! What a client gains that may only stage, or that acts between an administrator's question and answer.

use data_encoding::BASE64;

use super::operations::{ADMIN, UpdateCaller};
use super::*;

const CLIENT: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, READ_SCOPE]);
const HUB: (&str, &[&str]) = ("hub", &[OFFER_SCOPE, READ_SCOPE]);

/// The client names an older version with a known defect, and the next administrator starts what waits.
#[tokio::test]
async fn a_client_that_may_only_stage_permits_no_older_version() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    for more in [json!({}), json!({ "dry_run": true })] {
        let mut input = json!({ "bytes": 3, "downgrade": "0.9.0" });
        let fields = input.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        let refused = node.call(CLIENT, "update/stage", input.clone()).await;
        let refused = refused.expect_err("it needs an administrator");
        assert_eq!(refused.code, ErrorCode::Forbidden);
        assert!(refused.message.contains("downgrade"), "{refused}");
        assert!(bench.updates.0.sessions.current().is_none());
    }
    assert!(bench.requests().is_empty(), "PID 1 was asked");
    // The same words of a caller that may start versions are taken, and so is the client's bundle without them.
    let starter = ("ada", &[STAGE_SCOPE, APPLY_SCOPE][..]);
    for (who, input) in [
        (starter, json!({ "bytes": 3, "downgrade": "0.9.0" })),
        (CLIENT, json!({ "bytes": 3 })),
    ] {
        let begun = node.call(who, "update/stage", input).await;
        let session = begun.expect("it begins")["session"].clone();
        let abort = json!({ "session": session, "abort": true });
        node.call(who, "update/write", abort).await.expect("ended");
    }
}

/// The node restarted since the version was staged. The client stages another program between the question to the
/// administrator and the answer.
#[tokio::test]
async fn after_a_restart_of_the_node_the_status_names_the_program_that_waits() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let put = |sha256: &'static str| {
        bench.set(|facts| {
            facts.update.state = "staged".to_owned();
            facts.update.other_version = Some("1.1.0".to_owned());
            facts.update.other_sha256 = Some(sha256.to_owned());
        });
        bench.seen.lock().expect("no panic").waits = Some(sha256);
    };
    put("a1");
    let status = node.call(ADMIN, "update/status", Value::Null).await;
    let status = status.expect("a status");
    // This node staged nothing, so it knows no more of the version.
    let known = json!({
        "from": status["version"], "to": "1.1.0", "sha256": "a1", "floor": null, "agreed_floor": "unchanged",
    });
    assert_eq!(status["plan"], known);
    assert_eq!(status["other_sha256"], "a1");
    let start = json!({ "sha256": status["plan"]["sha256"] });
    put("b2");
    let refused = node.call(ADMIN, "update/apply", start.clone()).await;
    let refused = refused.expect_err("another program waits");
    assert_eq!(refused.details.expect("details")["code"], "other-staged");
    put("a1");
    let started = node.call(ADMIN, "update/apply", start).await;
    assert_eq!(started, Ok(json!({ "restarts": true })));
}

/// The client sends a bundle of the other channel itself, or has the node download it from an address of its own.
#[tokio::test]
async fn documents_that_a_client_brings_do_not_count_as_seen() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    for (who, expected) in [(CLIENT, true), (ADMIN, false)] {
        let input = json!({ "bytes": 3, "dry_run": true });
        let begun = node.call(who, "update/stage", input).await;
        let session = begun.expect("it begins")["session"].clone();
        let piece = json!({ "session": session, "offset": 0, "data": BASE64.encode(b"abc") });
        node.call(who, "update/write", piece).await.expect("taken");
        let (stage, _) = bench.requests().pop().expect("a request");
        let UpdateRequest::Stage { other_source, .. } = stage else {
            panic!("{stage:?}");
        };
        assert_eq!(other_source, expected);
    }
    for (limited, expected) in [(true, true), (false, false)] {
        let request = stage::DownloadRequest {
            owner: "eve".to_owned(),
            by: "eve".to_owned(),
            origin: stage::DownloadOrigin::Address("https://a.example/beta/bundle.tar".to_owned()),
            downgrade: None,
            dry_run: true,
            whole: false,
            anywhere: false,
            unasked: false,
            limited,
            take_over: false,
        };
        assert_eq!(bench.updates.is_other_source(&request), expected);
    }
}

/// A machine that follows a channel by itself, where this caller has staged version 1.1.0.
async fn followed_and_staged(server: &PeerAddr, who: (&str, &[&str])) -> NodeUpdateBench {
    let document =
        "[update]\nurl = \"https://updates.example.org\"\nauto = \"apply\"\njitter = \"0s\"\n";
    let bench = NodeUpdateBench::with(document, StagingPace::default(), Some(server.clone()));
    let downloader = &bench.updates.0.downloader;
    downloader.instead(format!("http://{server}/stable/bundle.tar"));
    let node = UpdateCaller::new(&bench.updates);
    let begun = node.call(who, "update/stage", json!({ "bytes": 3 })).await;
    let session = begun.expect("it begins")["session"].clone();
    let piece = json!({ "session": session, "offset": 0, "data": BASE64.encode(b"abc") });
    node.call(who, "update/write", piece).await.expect("staged");
    bench.set(|facts| {
        facts.update.state = "staged".to_owned();
        facts.update.other_version = Some("1.1.0".to_owned());
        facts.update.other_sha256 = Some("a1".to_owned());
    });
    bench
}

/// What the machine asked of PID 1 last.
fn last_request(bench: &NodeUpdateBench) -> (UpdateRequest, String) {
    bench.requests().pop().expect("a request")
}

/// The client stages a version once, and starts it never: neither the machine nor a hub waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_may_only_stage_ends_no_updates_of_the_machine_or_of_a_hub() {
    let server = downloads::breaking_server(downloads::FILE, 1000, true).await;
    let bench = followed_and_staged(&server, CLIENT).await;
    let node = UpdateCaller::new(&bench.updates);
    let offer = json!({ "version": "1.2.0", "bytes": 3 });
    // Also after a restart of the node, when only PID 1 knows who staged the version.
    for _ in 0..2 {
        let wanted = node.call(HUB, "update/offer", offer.clone()).await;
        assert_eq!(wanted.expect("an answer")["wanted"], true);
        let cancelled = node.call(ADMIN, "update/cancel", Value::Null).await;
        assert_eq!(cancelled, Ok(json!({ "cancelled": true })));
        bench.updates.0.sessions.forget_staged();
    }
    bench.updates.act().await;
    let (look, by) = last_request(&bench);
    let is_look = matches!(look, UpdateRequest::Stage { dry_run: true, .. });
    assert!(is_look && by == BY, "{look:?} by {by}");
    // Then the version is the machine's own, and it starts it in the same decision: the client must not come in between.
    bench.updates.act().await;
    let mut requests = bench.requests();
    let (start, by) = requests.pop().expect("a start");
    assert!(
        matches!(start, UpdateRequest::Apply { .. }) && by == BY,
        "{start:?} by {by}"
    );
    let (stage, by) = requests.pop().expect("a staging");
    let is_stage = matches!(stage, UpdateRequest::Stage { dry_run: false, .. });
    assert!(is_stage && by == BY, "{stage:?} by {by}");
}

/// A version of an administrator stays, also if a client sends the same program again. The machine goes on to look.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_the_program_of_an_administrator_makes_it_not_its_own() {
    let server = downloads::breaking_server(downloads::FILE, 1000, true).await;
    let bench = followed_and_staged(&server, ADMIN).await;
    let node = UpdateCaller::new(&bench.updates);
    let begun = node
        .call(CLIENT, "update/stage", json!({ "bytes": 3 }))
        .await;
    let session = begun.expect("it begins")["session"].clone();
    let piece = json!({ "session": session, "offset": 0, "data": BASE64.encode(b"abc") });
    node.call(CLIENT, "update/write", piece)
        .await
        .expect("staged");
    let offer = json!({ "version": "1.2.0", "bytes": 3 });
    let kept = node.call(HUB, "update/offer", offer).await;
    assert_eq!(kept.expect("an answer")["wanted"], false);
    bench.updates.act().await;
    let (look, by) = last_request(&bench);
    let is_look = matches!(look, UpdateRequest::Stage { dry_run: true, .. });
    assert!(is_look && by == BY, "{look:?} by {by}");
    bench.updates.act().await;
    assert_eq!(
        last_request(&bench),
        (look, by),
        "it neither stages nor starts"
    );
    assert_eq!(
        bench.updates.auto_shown()["next"],
        "waits-for-administrator"
    );
}
