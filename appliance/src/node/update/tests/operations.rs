//! The operations, by callers with scopes.

use std::collections::BTreeSet;

use alknet_call::{CallError, Dispatcher, LocalCaller, LocalRequest, Registry};
use alknet_core::{Identity, IdentityKind, memory_pair};
use data_encoding::BASE64;

use super::*;
use crate::node::update::act::StartOrder;
use crate::node::update::piece_pacing::PIECE_BYTES_MAX;

/// The operations, called as over a connection.
pub(super) struct UpdateCaller(LocalCaller);

impl UpdateCaller {
    pub(super) fn new(updates: &NodeUpdates) -> Self {
        let mut builder = Registry::builder();
        updates.register(&mut builder);
        let registry = builder.build().expect("every rule is kept");
        // Of a caller with the id of an entry the node knows the key.
        let identities = Arc::clone(&updates.0.identities);
        let dispatcher = Arc::new(Dispatcher::new(registry).with_identities(identities));
        let (_, accepted) = memory_pair(b"alknet/call");
        Self(LocalCaller::new(&dispatcher, &accepted, None))
    }

    /// A call by a peer with these scopes.
    pub(super) async fn call(
        &self,
        (who, scopes): (&str, &[&str]),
        operation: &str,
        input: Value,
    ) -> Result<Value, CallError> {
        let identity = Identity {
            id: who.parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: scopes.iter().collect(),
            resources: Default::default(),
            generation: 0,
        };
        let request = LocalRequest {
            input: Some(input.to_string().into()),
            identity: Some(Arc::new(identity)),
            ..LocalRequest::new("r1", operation)
        };
        let answer = self.0.call(request).await.map_err(|error| error.error)?;
        let mut text = Vec::new();
        answer.append_to(&mut text);
        Ok(serde_json::from_slice(&text).expect("JSON"))
    }
}

pub(super) const ADMIN: (&str, &[&str]) = ("admin", &["*"]);

/// An upload, the start of its version, and what the state says of it, by calls alone.
#[tokio::test]
async fn an_administrator_updates_a_machine_by_calls() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let begun = node
        .call(ADMIN, "update/stage", json!({ "bytes": 9 }))
        .await
        .expect("it begins");
    assert_eq!((&begun["bytes"], &begun["offset"]), (&json!(9), &json!(0)));
    let id = &begun["session"];
    let write = |offset: u64, data: &[u8]| json!({ "session": id, "offset": offset, "data": BASE64.encode(data) });
    let first = node
        .call(ADMIN, "update/write", write(0, b"a bun"))
        .await
        .expect("taken");
    let expected = json!({ "offset": 5, "piece_bytes": PIECE_BYTES_MAX, "plan": null });
    assert_eq!(first, expected);
    let status = node
        .call(ADMIN, "update/status", Value::Null)
        .await
        .expect("a status");
    assert_eq!(
        (&status["session"]["session"], &status["session"]["offset"]),
        (id, &json!(5))
    );
    let reader = ("eve", &[READ_SCOPE][..]);
    let seen = node
        .call(reader, "update/status", Value::Null)
        .await
        .expect("a status");
    assert!(
        seen["session"].get("session").is_none(),
        "only the owner sends pieces: {seen}"
    );
    let wrong = node
        .call(ADMIN, "update/write", write(4, b"n"))
        .await
        .expect_err("a wrong offset");
    assert_eq!(wrong.details.expect("details")["offset"], 5);
    let last = node
        .call(ADMIN, "update/write", write(5, b"dle!"))
        .await
        .expect("taken");
    assert_eq!(last["plan"]["to"], "1.1.0");
    bench.set(|facts| {
        facts.update.state = "staged".to_owned();
        facts.update.other_version = Some("1.1.0".to_owned());
    });
    let status = node
        .call(ADMIN, "update/status", Value::Null)
        .await
        .expect("a status");
    assert_eq!(
        (&status["plan"]["to"], &status["session"]),
        (&json!("1.1.0"), &Value::Null)
    );
    let restarts = node
        .call(ADMIN, "update/apply", Value::Null)
        .await
        .expect("done");
    assert_eq!(restarts, json!({ "restarts": true }));
    let confirmed = node
        .call(ADMIN, "update/confirm", Value::Null)
        .await
        .expect_err("no trial");
    assert_eq!(confirmed.code, ErrorCode::Conflict);
    assert_eq!(confirmed.details.expect("details")["code"], "no-trial");
    let log = node
        .call(ADMIN, "update/log", Value::Null)
        .await
        .expect("a log");
    assert_eq!(log["records"][0]["event"], "staged");
    let by: Vec<_> = bench.requests().into_iter().map(|(_, by)| by).collect();
    assert_eq!(by, ["admin"; 4]);
}

#[tokio::test]
async fn a_piece_is_base64_of_a_bounded_length() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let begun = node
        .call(ADMIN, "update/stage", json!({ "bytes": 1 << 20 }))
        .await
        .expect("it begins");
    let id = &begun["session"];
    let long = BASE64.encode(&vec![0; PIECE_BYTES_MAX + 1]);
    for data in [json!("no base64"), json!(""), json!(7), json!(long)] {
        let input = json!({ "session": id, "offset": 0, "data": data });
        let refused = node
            .call(ADMIN, "update/write", input)
            .await
            .expect_err("refused");
        assert_eq!(refused.code, ErrorCode::InvalidInput);
    }
    for input in [
        json!({ "session": id }),
        json!({ "session": id, "offset": 0, "data": "AA==", "abort": true }),
    ] {
        let refused = node
            .call(ADMIN, "update/write", input)
            .await
            .expect_err("refused");
        assert_eq!(refused.code, ErrorCode::InvalidInput);
    }
    let aborted = node
        .call(
            ADMIN,
            "update/write",
            json!({ "session": id, "abort": true }),
        )
        .await;
    assert_eq!(aborted, Ok(json!({ "aborted": true })));
    let both = json!({ "bytes": 1, "url": "https://a.example/" });
    let refused = node
        .call(ADMIN, "update/stage", both)
        .await
        .expect_err("one of both");
    assert_eq!(refused.code, ErrorCode::InvalidInput);
}

#[tokio::test]
async fn a_caller_without_the_scope_is_refused() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    for (operation, input) in [
        ("update/status", Value::Null),
        ("update/log", Value::Null),
        ("update/check", Value::Null),
        ("update/stage", json!({ "bytes": 1 })),
        ("update/write", json!({ "session": "s1", "abort": true })),
        ("update/offer", json!({ "version": "1.1.0", "bytes": 1 })),
        ("update/apply", Value::Null),
        ("update/cancel", Value::Null),
        ("update/confirm", Value::Null),
        ("update/rollback", Value::Null),
    ] {
        let eve = ("eve", &["node:read", "vault:read", "hub:admin"][..]);
        let refused = node.call(eve, operation, input).await.expect_err(operation);
        assert_eq!(refused.code, ErrorCode::Forbidden, "{operation}");
    }
    assert!(bench.requests().is_empty());
}

/// A hub with `[[join]] update = true` sends a bundle and starts it, and starts nothing that another caller has sent.
#[tokio::test]
async fn a_hub_starts_only_what_it_has_sent() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let hub = ("hub", &[OFFER_SCOPE, READ_SCOPE][..]);
    let id = bench.begin(1);
    bench.send(&id, 0, b"x").await.expect("taken");
    let offer = json!({ "version": "1.1.0", "bytes": 3 });
    let kept = node
        .call(hub, "update/offer", offer.clone())
        .await
        .expect("an answer");
    assert_eq!(kept["wanted"], false, "an administrator staged a version");
    let refused = node
        .call(hub, "update/apply", Value::Null)
        .await
        .expect_err("not its own");
    assert_eq!(refused.code, ErrorCode::Forbidden);
    let same = json!({ "version": "1.0.0", "bytes": 3 });
    let unwanted = node
        .call(hub, "update/offer", same)
        .await
        .expect("an answer");
    assert_eq!(unwanted["wanted"], false);
    node.call(ADMIN, "update/rollback", Value::Null)
        .await
        .expect("it is taken back");
    let session = node
        .call(hub, "update/offer", offer.clone())
        .await
        .expect("an answer");
    assert_eq!(session["wanted"], true);
    let input =
        json!({ "session": session["session"], "offset": 0, "data": BASE64.encode(b"abc") });
    let last = node.call(hub, "update/write", input).await.expect("taken");
    assert_eq!(last["plan"]["to"], "1.1.0");
    assert_eq!(
        node.call(hub, "update/apply", Value::Null).await,
        Ok(json!({ "restarts": true }))
    );
    let by_hub = UpdateRequest::Apply {
        sha256: Some("a1".to_owned()),
        agreed_floor: unchanged(),
        limited: true,
        unasked: true,
    };
    assert_eq!(bench.requests().pop().expect("a start").0, by_hub);
    assert_eq!(
        node.call(hub, "update/stage", Value::Null)
            .await
            .expect_err("not its scope")
            .code,
        ErrorCode::Forbidden
    );
    bench.set(|facts| facts.update.state = "trial".to_owned());
    let later = node
        .call(hub, "update/offer", offer.clone())
        .await
        .expect("an answer");
    assert_eq!(later["wanted"], false);
    bench.set(|facts| facts.update.state = "absent".to_owned());
    let never = node
        .call(hub, "update/offer", offer)
        .await
        .expect_err("no slots");
    assert_eq!(never.code, ErrorCode::Conflict);
}

#[tokio::test]
async fn a_start_waits_for_its_moment_and_needs_the_time() {
    let bench = NodeUpdateBench::new();
    let node = UpdateCaller::new(&bench.updates);
    let now = jiff::Timestamp::now();
    let after = |seconds: i64| json!({ "at": (now + jiff::SignedDuration::from_secs(seconds)).to_string() });
    let apply = async |input| node.call(ADMIN, "update/apply", input).await;
    let nothing = apply(after(60)).await.expect_err("nothing waits");
    assert_eq!(nothing.details.expect("details")["code"], "not-staged");
    bench.set(|facts| {
        facts.update.state = "staged".to_owned();
        facts.update.other_sha256 = Some("a1".to_owned());
    });
    for wrong in [-60, 31 * 86_400] {
        assert_eq!(
            apply(after(wrong)).await.expect_err("out of range").code,
            ErrorCode::InvalidInput
        );
    }
    let scheduled = apply(after(3600)).await.expect("it waits");
    let status = node
        .call(ADMIN, "update/status", Value::Null)
        .await
        .expect("a status");
    assert_eq!(status["scheduled"], scheduled["scheduled"]);
    assert!(bench.requests().is_empty(), "it does not start before");
    // A rollback takes the version back, and its moment with it.
    node.call(ADMIN, "update/rollback", Value::Null)
        .await
        .expect("done");
    let status = node
        .call(ADMIN, "update/status", Value::Null)
        .await
        .expect("a status");
    assert_eq!(status["scheduled"], Value::Null);
    for clock in ["unset", "build-time"] {
        bench.set(|facts| facts.clock = clock.to_owned());
        let blind = apply(after(3600)).await.expect_err("no clock");
        assert_eq!(blind.details.expect("details")["code"], "no-clock");
    }
}

#[tokio::test]
async fn a_machine_without_pid_1_says_what_to_do_instead() {
    let bench = NodeUpdateBench::new();
    let host = NodeUpdates::of_host_for_tests(&bench.identities, &bench.facts);
    let error = host.check_init().expect_err("there is no PID 1");
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("docs/update.md"), "{error}");
    let order = StartOrder {
        sha256: None,
        agreed_floor: None,
        limited: false,
        unasked: false,
    };
    assert!(
        host.checked("ada".to_owned(), "ada".to_owned())
            .await
            .is_err_and(|it| it == error)
    );
    assert!(host.start("ada", order).await.is_err_and(|it| it == error));
}

/// Every operation asks for one of its scopes, and none for the scope of another.
#[tokio::test]
async fn each_operation_names_its_scopes() {
    let bench = NodeUpdateBench::new();
    let mut builder = Registry::builder();
    bench.updates.register(&mut builder);
    let registry = builder.build().expect("every rule is kept");
    let scopes = |name: &str| -> BTreeSet<String> {
        let spec = registry.spec(name).expect(name);
        let any = spec.access_control.required_scopes_any.iter().flatten();
        any.cloned().collect()
    };
    for (name, own) in [
        ("update/status", &[READ_SCOPE][..]),
        ("update/log", &[READ_SCOPE]),
        ("update/check", &[READ_SCOPE, STAGE_SCOPE]),
        ("update/stage", &[STAGE_SCOPE]),
        ("update/write", &[STAGE_SCOPE, OFFER_SCOPE]),
        ("update/offer", &[OFFER_SCOPE]),
        ("update/apply", &[APPLY_SCOPE, OFFER_SCOPE]),
        ("update/cancel", &[APPLY_SCOPE]),
        ("update/confirm", &[APPLY_SCOPE]),
        ("update/rollback", &[APPLY_SCOPE]),
    ] {
        let expected = own.iter().chain(&[ADMIN_SCOPE]).map(|it| (*it).to_owned());
        assert_eq!(scopes(name), expected.collect(), "{name}");
    }
}
