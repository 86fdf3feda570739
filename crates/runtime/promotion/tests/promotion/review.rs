//! Who decides, about what, and from when on it holds.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{
    CallClient, CallConnection, CallError, CallOutput, CompositionAuthority, Ctx, Dispatcher,
    ErrorCode, HandlerKind, ImportOptions, OperationSpec, Registration, Registry, ScopedPeerEnv,
};
use alknet_promotion::{
    ActivationTime, BundleFindings, NewProposal, Promotion, PromotionBundle, PromotionConfig,
    PromotionError, PromotionParts, PromotionStore, PromotionStoreError, PromotionTerms,
    RECHECK_PERIOD, ReviewResult,
};
use serde_json::{Value, json};

use crate::killed::{act, found};
use crate::support::*;

async fn proposed(node: &PromotionNode, draft: &DraftBundle) -> Value {
    let bundle = draft.sign();
    let answer = node.propose(draft.author, &bundle).await;
    answer.expect("it is fine")["id"].clone()
}

#[tokio::test]
async fn no_author_reviews_its_own_proposal() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let id = proposed(&node, &says("a/b", &json!(1)).by("bob")).await;
    for accept in [true, false] {
        let input = json!({ "id": id, "accept": accept });
        let refused = node.code("bob", "ops/promote", &input).await;
        assert_eq!(refused, ErrorCode::Forbidden);
        assert_eq!(
            node.code("ada", "ops/promote", &input).await,
            ErrorCode::Forbidden
        );
    }
    let unknown = json!({ "id": "00".repeat(32), "accept": true });
    assert_eq!(
        node.code("eve", "ops/promote", &unknown).await,
        ErrorCode::NotFound
    );
    for bad in [
        json!({ "id": id }),
        json!({ "id": "x", "accept": true }),
        json!({ "id": id, "accept": true, "more": 1 }),
        json!({ "id": id, "accept": false, "path": "a/b" }),
        json!({ "id": id, "accept": true, "reason": "x".repeat(2_000) }),
        json!([id, true]),
    ] {
        let code = node.code("eve", "ops/promote", &bad).await;
        assert_eq!(code, ErrorCode::InvalidInput, "{bad}");
    }
}

#[tokio::test]
async fn as_many_as_are_asked_for_have_to_agree_to_the_same() {
    let folder = folder();
    let config = PromotionConfig {
        reviews: 2,
        ..live()
    };
    let node = PromotionNode::start(folder.path(), config).await;
    let id = proposed(&node, &says("a/b", &json!(1))).await;
    let yes = |external: bool| json!({ "id": id, "accept": true, "external": external });
    let waits = json!({ "id": id, "state": "proposed", "reviews": 1, "needed": 2 });
    assert_eq!(
        node.call("eve", "ops/promote", &yes(true)).await,
        Ok(waits.clone())
    );
    assert_eq!(
        node.call("eve", "ops/promote", &yes(true)).await,
        Ok(waits.clone()),
        "one is one"
    );
    assert_eq!(
        node.call("bob", "ops/promote", &yes(false)).await,
        Ok(waits),
        "to something else"
    );
    let one = node
        .call("bob", "ops/proposals", &json!({ "id": id }))
        .await
        .expect("known");
    assert_eq!(one["reviews"].as_array().map(Vec::len), Some(2));
    let done = node
        .call("bob", "ops/promote", &yes(true))
        .await
        .expect("agreed");
    assert_eq!(done["state"], "promoted");
}

/// Two have to agree. The first is put out, or may review no more, before the second decides.
#[tokio::test]
async fn the_vote_of_a_reviewer_who_may_review_no_more_does_not_count() {
    let folder = folder();
    let config = PromotionConfig {
        reviews: 2,
        ..live()
    };
    let node = PromotionNode::start(folder.path(), config).await;
    let id = proposed(&node, &says("a/b", &json!(1))).await;
    let yes = json!({ "id": id, "accept": true });
    let waits = Ok(json!({ "id": id, "state": "proposed", "reviews": 1, "needed": 2 }));
    assert_eq!(node.call("eve", "ops/promote", &yes).await, waits);
    node.identities.forget("eve");
    assert_eq!(node.call("bob", "ops/promote", &yes).await, waits);
    node.identities.set("eve", &["call:*"]);
    assert_eq!(node.call("bob", "ops/promote", &yes).await, waits);
    // Her vote counts again once she may review again, with the same key.
    node.identities.set("eve", &["ops:promote"]);
    let done = node.call("bob", "ops/promote", &yes).await;
    assert_eq!(done.expect("two agree")["state"], "promoted");
}

/// The first reviewer is put out, and another peer gets its name, as the next administrator gets the name of one that
/// is gone.
#[tokio::test]
async fn the_vote_of_a_reviewer_does_not_pass_to_another_peer_of_its_name() {
    let folder = folder();
    let config = PromotionConfig {
        reviews: 2,
        ..live()
    };
    let node = PromotionNode::start(folder.path(), config).await;
    let id = proposed(&node, &says("a/b", &json!(1))).await;
    let yes = json!({ "id": id, "accept": true });
    let waits = Ok(json!({ "id": id, "state": "proposed", "reviews": 1, "needed": 2 }));
    assert_eq!(node.call("eve", "ops/promote", &yes).await, waits);
    node.identities.forget("eve");
    node.identities
        .set_key("eve", key("mallory"), &["ops:promote"]);
    assert_eq!(node.call("bob", "ops/promote", &yes).await, waits);
    // The other one has a vote of its own, in the place of the first.
    let done = node.call("eve", "ops/promote", &yes).await;
    assert_eq!(done.expect("two agree")["state"], "promoted");
}

/// An operation of the program that calls `home/lights`, and one that imports what its caller serves.
fn lights() -> [Registration; 2] {
    let asks = HandlerKind::once(|_, ctx: Ctx| async move {
        let answer = ctx.env().invoke("home/lights", &Value::Null).await?;
        Ok::<CallOutput, CallError>(answer.into())
    });
    let asks = Registration::new(OperationSpec::query("door/asks", "Asks."), asks).composing(
        CompositionAuthority::new("door/asks", [""; 0]),
        ScopedPeerEnv::new(["home/*"]),
    );
    let reads = HandlerKind::once(|_, ctx: Ctx| async move {
        let imported = ctx.caller().import(&ImportOptions::default()).await;
        let imported = imported.map_err(|error| CallError::internal(error.to_string()))?;
        Ok::<Value, CallError>(json!(imported.operations))
    });
    let reads = Registration::new(OperationSpec::query("door/import", "Reads."), reads);
    [asks, reads]
}

/// A caller that serves `home/lights`.
async fn with_lights(node: &PromotionNode) -> CallConnection {
    let serves = HandlerKind::once(|_, _| async { Ok::<Value, CallError>(json!("of a peer")) });
    let spec = OperationSpec::query("home/lights", "Another node's.");
    let mut theirs = Registry::builder();
    theirs.add(Registration::new(spec, serves));
    let theirs = Dispatcher::new(theirs.build().expect("every rule is kept"));
    let client = node.client_of("cal", &CallClient::new(Arc::new(theirs)));
    let read = soon(client.call("door/import", &Value::Null)).await;
    assert_eq!(read.expect("it is imported").value(), &json!(1));
    client
}

/// Whether a call of `home/lights` that names no peer reaches the peer that serves it.
async fn reaches_peer(client: &CallConnection) -> bool {
    match soon(client.call("door/asks", &Value::Null)).await {
        Ok(answer) => {
            assert_eq!(answer.value(), &json!("of a peer"));
            true
        }
        Err(error) => {
            assert_eq!(error.code, ErrorCode::NotFound, "{error}");
            false
        }
    }
}

/// The node follows changes of its peers in a task of its own.
async fn until_reached(client: &CallConnection, expected: bool) {
    soon(async {
        while reaches_peer(client).await != expected {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A reviewer votes for a name that a peer serves, and no other reviewer agrees: the name would be the node's for ever.
#[tokio::test]
async fn a_vote_without_effect_keeps_no_name() {
    let folder = folder();
    let config = PromotionConfig {
        reviews: 2,
        ..live()
    };
    let identities = Arc::new(PromotionIdentities::default());
    identities.set("ada", &["ops:propose", "config:read"]);
    identities.set("cal", &["call:*"]);
    for name in ["bob", "dan", "eve"] {
        identities.set(name, &["ops:promote"]);
    }
    let program = program().into_iter().chain(lights()).collect();
    let node = PromotionNode::start_with(folder.path(), config, identities, program).await;
    let client = with_lights(&node).await;
    let id = proposed(&node, &says("x", &json!(1))).await;
    assert!(reaches_peer(&client).await);
    let vote = json!({ "id": id, "accept": true, "path": "home/lights" });
    let waits = Ok(json!({ "id": id, "state": "proposed", "reviews": 1, "needed": 2 }));
    assert_eq!(node.call("eve", "ops/promote", &vote).await, waits);
    assert!(!reaches_peer(&client).await, "the vote counts");
    node.identities.forget("eve");
    until_reached(&client, true).await;
    // It counts again once its reviewer is back.
    node.identities.set("eve", &["ops:promote"]);
    until_reached(&client, false).await;
    let yes = json!({ "id": id, "accept": true });
    assert_eq!(node.call("bob", "ops/promote", &yes).await, waits);
    assert!(!reaches_peer(&client).await, "the vote counts");
    let done = node.call("dan", "ops/promote", &yes).await;
    assert_eq!(done.expect("two agree")["path"], "js/x");
    assert!(reaches_peer(&client).await);
}

/// A reviewer votes for a name that a peer serves, and its entry ends by its date: no table of peers changes then.
#[tokio::test]
async fn the_vote_of_a_reviewer_whose_entry_ends_keeps_no_name() {
    let folder = folder();
    let config = PromotionConfig {
        reviews: 2,
        ..live()
    };
    let identities = Arc::new(PromotionIdentities::default());
    identities.set("ada", &["ops:propose", "config:read"]);
    identities.set("cal", &["call:*"]);
    identities.set("eve", &["ops:promote"]);
    let program = program().into_iter().chain(lights()).collect();
    let often = Duration::from_millis(20);
    let node =
        PromotionNode::start_checking(folder.path(), config, identities, program, often).await;
    let client = with_lights(&node).await;
    let id = proposed(&node, &says("x", &json!(1))).await;
    let vote = json!({ "id": id, "accept": true, "path": "home/lights" });
    node.call("eve", "ops/promote", &vote)
        .await
        .expect("a vote");
    assert!(!reaches_peer(&client).await, "the vote counts");
    node.identities.end("eve");
    until_reached(&client, true).await;
}

/// Versions of this program that did not store the key of a vote wrote the same row as a vote without a key has.
#[tokio::test]
async fn a_vote_that_was_stored_without_a_key_has_to_be_given_again() {
    let folder = folder();
    let config = PromotionConfig {
        reviews: 2,
        ..live()
    };
    let node = PromotionNode::start(folder.path(), config).await;
    let id = proposed(&node, &says("b", &json!(1))).await;
    let file = node.file.clone();
    node.stop().await;
    let store = PromotionStore::open(&file).expect("a file");
    let which = id.as_str().expect("an id").parse().expect("an id");
    let known = store.proposal(which).expect("it is read");
    let terms = PromotionTerms {
        path: "js/b".to_owned(),
        external: false,
        scopes: Vec::new(),
    };
    let judged = known.expect("it was proposed");
    let voted = store.accept(&judged, &terms, 2, |_| true, None, act("eve"));
    assert_eq!(voted, Ok(ReviewResult::Waiting(1)));
    drop(store);
    let node = PromotionNode::start(folder.path(), config).await;
    let yes = json!({ "id": id, "accept": true });
    let waits = Ok(json!({ "id": id, "state": "proposed", "reviews": 1, "needed": 2 }));
    assert_eq!(node.call("bob", "ops/promote", &yes).await, waits);
    let done = node.call("eve", "ops/promote", &yes).await;
    assert_eq!(done.expect("two agree")["state"], "promoted");
}

/// A reviewer reads a proposal. Then another one rejects it, and another author proposes the same code: the id is the
/// same, and the operation would act by the rights of the second author.
#[tokio::test]
async fn a_decision_is_about_the_document_that_was_read() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let draft = says("a/b", &json!(1));
    let read = node.propose("ada", &draft.sign()).await;
    let read = read.expect("it is fine");
    let no = json!({ "id": read["id"], "accept": false });
    node.call("bob", "ops/promote", &no)
        .await
        .expect("it waits");
    let other = draft.by("bob").sign();
    let other = node.propose("bob", &other).await.expect("it is fine");
    assert_eq!(other["id"], read["id"]);
    assert_ne!(other["digest"], read["digest"]);
    for accept in [true, false] {
        let decision = json!({ "id": read["id"], "digest": read["digest"], "accept": accept });
        let code = node.code("eve", "ops/promote", &decision).await;
        assert_eq!(code, ErrorCode::Conflict, "{accept}");
    }
    let which = json!({ "id": read["id"] });
    let one = node.call("eve", "ops/proposals", &which).await;
    let one = one.expect("it is there");
    assert_eq!(one["proposal"]["state"], "proposed", "{one}");
    let decision = json!({ "id": read["id"], "digest": other["digest"], "accept": true });
    let done = node.call("eve", "ops/promote", &decision).await;
    assert_eq!(done.expect("it was read")["state"], "promoted");
}

/// The tests of a proposal run for up to a minute. Meanwhile it is rejected, and the same code is proposed again: by
/// another author, or by the same one with more rights.
#[test]
fn what_was_replaced_while_it_was_judged_is_not_promoted() {
    let folder = folder();
    let store = PromotionStore::open(&folder.path().join("promotion.db")).expect("a file");
    let draft = says("a", &json!(1));
    let propose = |bundle: &PromotionBundle, found: &BundleFindings| {
        let who = bundle.content().author.as_str();
        let proposal = store.propose(NewProposal { bundle, found }, act(who));
        proposal.expect("room")
    };
    let (of_ada, mut found) = (draft.sign(), found());
    let judged = propose(&of_ada, &found);
    found.authority.scopes = vec!["fs:read".to_owned()];
    for again in [of_ada, draft.by("bob").sign()] {
        store.reject(judged.id, act("rev")).expect("it waits");
        let other = propose(&again, &found);
        assert_eq!(other.id, judged.id);
        let terms = PromotionTerms {
            path: "js/a".to_owned(),
            external: false,
            scopes: Vec::new(),
        };
        let refused = store.accept(&judged, &terms, 1, |_| true, None, act("eve"));
        let is_conflict = matches!(refused, Err(PromotionStoreError::Conflict(_)));
        assert!(is_conflict, "{}: {refused:?}", other.author);
    }
}

#[tokio::test]
async fn what_cannot_be_an_operation_is_refused_before_it_is_one() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let id = proposed(&node, &says("a/b", &json!(1))).await;
    let refused = async |more: Value| {
        let mut input = json!({ "id": id, "accept": true });
        for (name, value) in more.as_object().expect("members") {
            input[name] = value.clone();
        }
        node.code("eve", "ops/promote", &input).await
    };
    let input = ErrorCode::InvalidInput;
    assert_eq!(
        refused(json!({ "path": "config/tax" })).await,
        ErrorCode::Conflict
    );
    for reserved in [
        "config/mine",
        "ops/mine",
        "vault/open",
        "services/x",
        "node/info",
    ] {
        assert_eq!(
            refused(json!({ "path": reserved })).await,
            input,
            "{reserved}"
        );
    }
    for bad in ["", "a", "a b/c", "../a", "a/b/c/d/e"] {
        assert_eq!(refused(json!({ "path": bad })).await, input, "{bad}");
    }
    for bad in [
        json!(["A"]),
        json!([""]),
        json!(["*"]),
        json!(vec!["a"; 17]),
    ] {
        let more = json!({ "external": true, "scopes": bad });
        assert_eq!(refused(more).await, input, "{bad}");
    }
    assert_eq!(
        refused(json!({ "scopes": ["a"] })).await,
        input,
        "no reviewer to ask"
    );
    let mut broken = says("a/c", &json!(1));
    broken.content.spec.input = json!({ "type": "nonsense" });
    let broken = proposed(&node, &broken).await;
    let yes = json!({ "id": broken, "accept": true });
    assert_eq!(node.code("eve", "ops/promote", &yes).await, input);
    assert!(
        node.dispatcher
            .registry()
            .generation()
            .specs()
            .next()
            .is_none()
    );
}

#[tokio::test]
async fn the_reviewer_says_who_may_call() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    node.identities.set("dan", &["special"]);
    let accept = async |name: &str, more: Value| {
        let mut input = more;
        input["id"] = proposed(&node, &says(name, &json!(name))).await;
        input["accept"] = json!(true);
        node.call("eve", "ops/promote", &input)
            .await
            .expect("promoted")
    };
    let may = async |who: &str, path: &str| match node.call(who, path, &Value::Null).await {
        Ok(_) => "yes".to_owned(),
        Err(error) => error.code.name().to_owned(),
    };
    accept("inner", json!({})).await;
    assert_eq!(may("cal", "js/inner").await, "NOT_FOUND");
    accept("usual", json!({ "external": true })).await;
    assert_eq!(
        (may("cal", "js/usual").await, may("dan", "js/usual").await),
        ("yes".into(), "FORBIDDEN".into())
    );
    accept(
        "narrow",
        json!({ "external": true, "scopes": ["special"], "path": "app/narrow" }),
    )
    .await;
    assert_eq!(
        (
            may("cal", "app/narrow").await,
            may("dan", "app/narrow").await
        ),
        ("FORBIDDEN".into(), "yes".into())
    );
    accept("wide", json!({ "external": true, "scopes": [] })).await;
    assert_eq!(
        (may("ada", "js/wide").await, may("dan", "js/wide").await),
        ("yes".into(), "yes".into())
    );
}

/// A reviewer who forgot that peers are to call it accepts the proposal once more, and its author has nothing to do.
#[tokio::test]
async fn a_promoted_proposal_is_accepted_again_for_other_callers() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    let id = proposed(&node, &says("inner", &json!(1)).by("bob")).await;
    let yes = |external: bool| json!({ "id": id, "accept": true, "external": external });
    let may_call = async || node.call("cal", "js/inner", &Value::Null).await.is_ok();
    let first = node.call("eve", "ops/promote", &yes(false)).await;
    let first = first.expect("promoted");
    assert_eq!(
        (&first["version"], &first["external"], &first["scopes"]),
        (&json!(1), &json!(false), &json!([]))
    );
    assert!(!may_call().await);
    // The same once more changes nothing, and neither its author nor a no does.
    let elsewhere = json!({ "id": id, "accept": true, "path": "app/inner" });
    for (who, input, code) in [
        ("eve", &yes(false), ErrorCode::Conflict),
        ("eve", &elsewhere, ErrorCode::Conflict),
        (
            "eve",
            &json!({ "id": id, "accept": false }),
            ErrorCode::Conflict,
        ),
        ("bob", &yes(true), ErrorCode::Forbidden),
    ] {
        let refused = node.code(who, "ops/promote", input).await;
        assert_eq!(refused, code, "{who} {input}");
    }
    let second = node.call("eve", "ops/promote", &yes(true)).await;
    let second = second.expect("promoted");
    assert_eq!(
        (&second["version"], &second["external"], &second["scopes"]),
        (&json!(2), &json!(true), &json!(["call:js:inner"]))
    );
    assert!(may_call().await);
    let back = json!({ "path": "js/inner" });
    let back = node.call("eve", "ops/rollback", &back).await;
    assert_eq!(back.expect("version 1 is there")["external"], false);
    assert!(!may_call().await);
}

/// Who agreed to the one agreed to nothing else.
#[tokio::test]
async fn other_callers_need_as_many_reviewers_again() {
    let folder = folder();
    let config = PromotionConfig {
        reviews: 2,
        ..live()
    };
    let node = PromotionNode::start(folder.path(), config).await;
    let id = proposed(&node, &says("inner", &json!(1))).await;
    for (external, version) in [(false, 1), (true, 2)] {
        let yes = json!({ "id": id, "accept": true, "external": external });
        let one = node.call("eve", "ops/promote", &yes).await;
        let one = one.expect("she agrees");
        assert_eq!((&one["reviews"], &one["needed"]), (&json!(1), &json!(2)));
        let is_callable = node.call("cal", "js/inner", &Value::Null).await.is_ok();
        assert!(!is_callable, "{external}");
        let both = node.call("bob", "ops/promote", &yes).await;
        assert_eq!(both.expect("both agree")["version"], version);
    }
    let answer = node.call("cal", "js/inner", &Value::Null).await;
    assert_eq!(answer, Ok(json!(1)));
}

#[tokio::test]
async fn unless_it_is_live_nothing_changes_before_the_next_start() {
    let folder = folder();
    let boot = PromotionConfig::default();
    assert_eq!(boot.activate, ActivationTime::Boot);
    let node = PromotionNode::start(folder.path(), boot).await;
    let promoted = node.promote(&says("a", &json!(1))).await;
    assert_eq!(
        (&promoted["active"], &promoted["generation"]),
        (&json!(false), &json!(1))
    );
    assert_eq!(
        node.code("cal", "js/a", &json!({})).await,
        ErrorCode::NotFound
    );
    let versions = node
        .call("eve", "ops/proposals", &json!({ "path": "js/a" }))
        .await;
    let versions = versions.expect("known");
    assert_eq!(
        (&versions["current"], &versions["active"]),
        (&json!(1), &Value::Null)
    );
    node.stop().await;
    let node = PromotionNode::start(folder.path(), boot).await;
    assert_eq!(node.dispatcher.registry().generation().number(), 1);
    assert_eq!(node.call("cal", "js/a", &json!({})).await, Ok(json!(1)));
    let back = node
        .call("eve", "ops/rollback", &json!({ "path": "js/a" }))
        .await;
    assert_eq!(back.expect("taken away")["active"], false);
    assert_eq!(node.call("cal", "js/a", &json!({})).await, Ok(json!(1)));
    node.stop().await;
    let node = PromotionNode::start(folder.path(), boot).await;
    assert_eq!(
        node.code("cal", "js/a", &json!({})).await,
        ErrorCode::NotFound
    );
}

#[tokio::test]
async fn a_reviewer_sees_what_changes() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    node.promote(&says("a", &json!(1))).await;
    let id = proposed(
        &node,
        &says("a", &json!(2)).uses(&["files/*", "peers/only"]),
    )
    .await;
    let one = node
        .call("eve", "ops/proposals", &json!({ "id": id }))
        .await
        .expect("known");
    assert_eq!(
        one["against"],
        json!({ "path": "js/a", "version": 1, "author": "ada" })
    );
    let difference = one["difference"].as_str().expect("a text");
    for line in [
        "--- ./main.js",
        "-export const run = () => (1);",
        "+export const run = () => (2);",
        "+      \"files/*\",",
    ] {
        assert!(
            difference.lines().any(|it| it == line),
            "{line}\n{difference}"
        );
    }
    assert_eq!(one["grants"][0]["missing"], json!(["files:write"]));
    assert_eq!(
        one["grants"][1]["text"],
        "calls 'peers/only', which this node does not have; a peer may"
    );
}

#[tokio::test]
async fn a_configuration_needs_one_to_sixteen_reviews() {
    let folder = folder();
    let node = PromotionNode::start(folder.path(), live()).await;
    for reviews in [0, 17] {
        let parts = PromotionParts {
            store: PromotionStore::open(&folder.path().join("other.db")).expect("a file"),
            runner: node.isolates.clone(),
            invoker: node.isolates.clone(),
            identities: node.identities.clone(),
            capabilities: Default::default(),
            clock: Arc::new(NoonClock),
            config: PromotionConfig { reviews, ..live() },
            recheck: RECHECK_PERIOD,
        };
        let refused = Promotion::new(parts).expect_err("out of its range");
        assert!(matches!(refused, PromotionError::Input(_)));
    }
    let twice = node.promotion.attach(&node.dispatcher).await;
    assert!(matches!(twice, Err(PromotionError::Conflict(_))));
    let config: PromotionConfig =
        serde_json::from_value(json!({ "activate": "live" })).expect("a section");
    assert_eq!(config, live());
    assert!(serde_json::from_value::<PromotionConfig>(json!({ "active": "live" })).is_err());
}
