//! The identity of a connection, and the notices it gets about operations that it may call.

use std::sync::Arc;

use alknet_call::*;
use alknet_core::{
    AuthToken, Carriage, CloseReason, DialErrorKind, Identity, IdentityProvider, PeerKey,
    PeerVerification,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::common::*;

fn with_token(token: &str) -> CallOptions {
    CallOptions {
        auth_token: Some(token.to_owned()),
        ..CallOptions::default()
    }
}

async fn authenticate(client: &CallConnection, token: &str) -> Result<CallBody, CallError> {
    let input = json!({ "token": token });
    soon(client.call("session/authenticate", &input)).await
}

async fn code(client: &CallConnection, operation: &str, options: &CallOptions) -> String {
    let input = json!("x");
    match soon(client.call_with(operation, &input, options)).await {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.code.name().to_owned(),
    }
}

#[tokio::test]
async fn an_unknown_peer_authenticates_once() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, None);
        let own = CallOptions::default();
        assert_eq!(code(&client, "test/admin", &own).await, "UNAUTHENTICATED");
        let error = authenticate(&client, "bad").await.expect_err("unknown");
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        let limits = async || {
            let page = soon(client.call("services/list", &Value::Null)).await;
            let page: OperationListing = page.expect("a list").parse().expect("a listing");
            (page.protocol.max_inflight, page.protocol.max_frame)
        };
        assert_eq!(limits().await, (Some(8), Some(64 << 10)));
        let answer = authenticate(&client, "good").await.expect("known");
        let expected = json!({ "id": "token", "scopes": ["node:admin"] });
        assert_eq!(*answer.value(), expected);
        assert_eq!(limits().await, (Some(256), Some(1 << 20)));
        let who = soon(client.call("test/admin", &json!("x"))).await;
        assert_eq!(*who.expect("the token's identity").value(), json!("token"));
        for again in ["good", "guest", "bad"] {
            let error = authenticate(&client, again).await.expect_err("once");
            assert_eq!(error.code, ErrorCode::Conflict, "{again}");
        }
    }
}

/// Revokes a token just before the node begins to watch it.
#[derive(Default)]
struct RacingIdentities(TokenIdentities);

impl IdentityProvider for RacingIdentities {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        self.0.by_key(key)
    }

    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>> {
        self.0.by_token(token)
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.0.revoke("good");
        self.0.watch()
    }
}

#[tokio::test]
async fn a_token_that_is_revoked_while_it_is_shown_ends_the_connection() {
    for carriage in CARRIAGES {
        let dispatcher = Dispatcher::new(registry(&Arc::default()));
        let dispatcher = dispatcher.with_identities(Arc::new(RacingIdentities::default()));
        let node = CallTestNode::with_dispatcher(dispatcher, Arc::default());
        let (dialled, served) = node.serve(carriage, None);
        let client = CallClient::without_operations().attach(dialled, None);
        // The revocation comes before the watch begins, and so before the node looks up the token's end.
        let recheck = tokio::time::sleep(limits::SESSION_RECHECK);
        tokio::pin!(recheck);
        // The answer may be lost with the connection.
        let _ = authenticate(&client, "good").await;
        // The order of the two, and not how long they took: a slow machine delays both.
        let ended = tokio::select! {
            biased;
            ended = served => ended,
            () = recheck => panic!("it was not ended before the token is looked up again"),
        };
        ended.expect("no panic").expect("it ends in order");
    }
}

#[tokio::test]
async fn identities_replace_each_other_and_never_add_up() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let client = node.client(carriage, Some(identity("peer", &["other"])));
        let own = CallOptions::default();
        assert_eq!(code(&client, "test/other", &own).await, "ok");
        assert_eq!(code(&client, "test/admin", &own).await, "FORBIDDEN");
        // A token of one request: its scopes and no others, and no fall-back.
        for (token, other, admin) in [
            ("good", "FORBIDDEN", "ok"),
            ("guest", "FORBIDDEN", "FORBIDDEN"),
            ("bad", "UNAUTHENTICATED", "UNAUTHENTICATED"),
            ("", "UNAUTHENTICATED", "UNAUTHENTICATED"),
        ] {
            let options = with_token(token);
            assert_eq!(
                code(&client, "test/other", &options).await,
                other,
                "{token}"
            );
            assert_eq!(
                code(&client, "test/admin", &options).await,
                admin,
                "{token}"
            );
        }
        assert_eq!(code(&client, "test/other", &own).await, "ok");
        // A token of the connection: the same, from then on.
        authenticate(&client, "good").await.expect("known");
        assert_eq!(code(&client, "test/other", &own).await, "FORBIDDEN");
        assert_eq!(code(&client, "test/admin", &own).await, "ok");
        let guest = with_token("guest");
        assert_eq!(code(&client, "test/admin", &guest).await, "FORBIDDEN");
        let bad = with_token("bad");
        assert_eq!(code(&client, "test/admin", &bad).await, "UNAUTHENTICATED");
    }
}

#[tokio::test]
async fn a_revoked_token_ends_its_connection_and_no_other() {
    let node = CallTestNode::new();
    let (one, other) = (
        node.client(Carriage::Memory, None),
        node.client(Carriage::Memory, None),
    );
    authenticate(&one, "good").await.expect("known");
    authenticate(&other, "guest").await.expect("known");
    node.tokens.revoke("good");
    let reason = soon(one.closed()).await;
    assert!(matches!(reason, CloseReason::Peer(Some(1), _)), "{reason}");
    soon(other.call("test/echo", &json!(1)))
        .await
        .expect("served");
}

#[tokio::test]
async fn no_error_repeats_a_token() {
    let node = CallTestNode::new();
    let client = node.client(Carriage::Memory, None);
    for input in [
        json!("alk_secret"),
        json!(["alk_secret"]),
        json!({ "token": ["alk_secret"] }),
        json!({ "token": "alk_secret" }),
        json!({ "tokens": "alk_secret" }),
    ] {
        let error = soon(client.call("session/authenticate", &input)).await;
        let error = error.expect_err("no token");
        let text = serde_json::to_string(&error).expect("JSON");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn options_do_not_show_their_token() {
    let text = format!("{:?}", with_token("alk_secret"));
    assert!(
        text.contains("auth_token") && !text.contains("secret"),
        "{text}"
    );
}

#[tokio::test]
async fn the_dialled_peer_acts_with_the_identity_of_its_key() {
    for carriage in CARRIAGES {
        let dialer = TestDialer::new(carriage, None);
        let connect = async |identities: bool| {
            let mut dispatcher = Dispatcher::new(double());
            if identities {
                dispatcher = dispatcher.with_identities(Arc::new(TokenIdentities::default()));
            }
            let client = CallClient::new(Arc::new(dispatcher)).with_dialer(dialer.clone());
            let credentials = DialCredentials::default();
            client.connect(&TestDialer::addr(), &credentials).await
        };
        let known = connect(true).await.expect("connected");
        assert_eq!(
            known.peer().map(|p| p.id.to_string()),
            Some("server".to_owned())
        );
        let answer = soon(known.call("test/back", &json!(21))).await;
        assert_eq!(*answer.expect("allowed").value(), json!(42));
        let unknown = connect(false).await.expect("connected");
        assert!(unknown.peer().is_none());
        let error = soon(unknown.call("test/back", &json!(21))).await;
        assert_eq!(error.expect_err("nobody").code, ErrorCode::Unauthenticated);
    }
}

#[tokio::test]
async fn connecting_proves_both_sides() {
    let dialer = TestDialer::new(Carriage::Memory, None);
    let client = dialer.client();
    let connect = async |credentials: DialCredentials| {
        soon(client.connect(&TestDialer::addr(), &credentials)).await
    };
    let token = |text: &str| DialCredentials {
        auth_token: Some(AuthToken::new(text.to_owned())),
        ..DialCredentials::default()
    };
    let connection = connect(token("good")).await.expect("authenticated");
    soon(connection.call("test/admin", &json!("x")))
        .await
        .expect("as the token");
    let error = connect(token("bad")).await.expect_err("unknown");
    assert!(matches!(error, ConnectError::Authenticate(_)) && error.is_permanent());
    let impostor = DialCredentials {
        expect: Some(PeerVerification::WebPki),
        ..DialCredentials::default()
    };
    let error = connect(impostor).await.expect_err("another");
    let is_impostor = matches!(&error, ConnectError::Dial(e) if e.kind == DialErrorKind::Impostor);
    assert!(is_impostor && error.is_permanent());
    dialer.failing.store(1, std::sync::atomic::Ordering::SeqCst);
    let error = connect(DialCredentials::default())
        .await
        .expect_err("no route");
    assert!(!error.is_permanent());
    assert!(CallError::from(error).retryable);
    let undialled = "192.0.2.1:443".parse().expect("an address");
    let error = client
        .connect(&undialled, &DialCredentials::default())
        .await;
    let error = error.expect_err("an unknown peer");
    assert!(matches!(error, ConnectError::Dial(e) if e.kind == DialErrorKind::UnknownPeer));
}

#[tokio::test]
async fn watchers_hear_of_what_they_may_call() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let unknown_client = node.client(carriage, None);
        let admin = node.client(
            carriage,
            Some(identity("boss", &["node:admin", "peer:list"])),
        );
        let watch = async |client: &CallConnection| {
            soon(client.subscribe("services/watch", &json!({})))
                .await
                .expect("started")
        };
        let (mut unknown_peer, mut boss) = (watch(&unknown_client).await, watch(&admin).await);
        let next = async |events: &mut Subscription| -> RegistryChange {
            let event = soon(events.next()).await.expect("more").expect("an event");
            event.output.parse().expect("a change")
        };
        let digest = node.dispatcher.registry().digest();
        for events in [&mut unknown_peer, &mut boss] {
            let first = next(events).await;
            let hash = RegistryChange {
                registry: digest.to_owned(),
                ..RegistryChange::default()
            };
            assert_eq!(first, hash);
        }
        let announcer = node.dispatcher.announcer();
        let closed = OperationSpec::query("new/closed", "").with_scope("node:admin");
        let open = OperationSpec::query("new/open", "");
        let worker = "worker".parse().expect("a peer id");
        announcer.peer(&worker, "p1", [&open]);
        let change = next(&mut boss).await;
        assert_eq!(
            (change.peer, change.added),
            (Some(worker), vec!["new/open".to_owned()])
        );
        let specs: Vec<_> = node.dispatcher.registry().specs().cloned().collect();
        announcer.own("h2", specs.iter().chain([&closed, &open]));
        assert_eq!(next(&mut unknown_peer).await.added, ["new/open"]);
        assert_eq!(next(&mut boss).await.added, ["new/closed", "new/open"]);
        announcer.own("h3", &specs);
        let change = next(&mut unknown_peer).await;
        assert_eq!(
            (change.registry.as_str(), change.removed),
            ("h3", vec!["new/open".to_owned()])
        );
    }
}

/// The operations of the dialling side.
fn double() -> Registry {
    let spec = OperationSpec::query("client/double", "").with_scope("client:double");
    Registry::builder()
        .with(Registration::new(
            spec,
            HandlerKind::once(|input, _| async move { Ok(json!(input.parse::<i64>()? * 2)) }),
        ))
        .build()
        .expect("valid")
}
