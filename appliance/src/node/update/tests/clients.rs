//! What a client gains that may only stage, or that acts between an administrator's question and answer.

use data_encoding::BASE64;

use super::operations::{ADMIN, UpdateCaller};
use super::*;

const CLIENT: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, READ_SCOPE]);

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
    assert_eq!(status["plan"], Value::Null, "this node staged nothing");
    assert_eq!(status["other_sha256"], "a1");
    let start = json!({ "sha256": status["other_sha256"] });
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
