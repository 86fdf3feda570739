//! Revoked rights: requests, answers and events from then on, before the task that watches a connection gets the
//! notice.

use std::sync::{Arc, Mutex};

use alknet_call::*;
use alknet_core::{
    AuthContext, AuthToken, Carriage, Connection, Identity, ProtocolHandler, memory_pair,
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::common::*;

/// The scopes of `user` when it has every right that the tests need, and when it has none.
const MAY: &[&str] = &["ask"];
const LESS: &[&str] = &["other"];

struct RightsTestNode {
    node: CallTestNode,
    identities: Arc<SilentIdentities>,
    /// Calls that began and wait.
    waiting: watch::Sender<usize>,
    /// Lets them end.
    permits: Arc<Semaphore>,
    /// Events of the subscription.
    feed: mpsc::UnboundedSender<Value>,
}

impl RightsTestNode {
    fn new() -> Self {
        let identities = SilentIdentities::new(MAY);
        let waiting = watch::Sender::new(0);
        let permits = Arc::new(Semaphore::new(0));
        let (feed, events) = mpsc::unbounded_channel();
        let ask = HandlerKind::once(|_, _| async { Ok(json!("told")) });
        let waits = || {
            let (waiting, permits) = (waiting.clone(), Arc::clone(&permits));
            HandlerKind::once(move |_, _| {
                waiting.send_modify(|began| *began += 1);
                let permits = Arc::clone(&permits);
                async move {
                    let permit = permits.acquire().await;
                    permit.expect("it is never closed").forget();
                    Ok(json!("told"))
                }
            })
        };
        let events = Arc::new(Mutex::new(Some(events)));
        let follow = HandlerKind::stream(move |_, _| {
            let events = events.lock().expect("no panics here").take();
            let events = events.expect("it is followed once");
            futures_util::stream::unfold(events, |mut events| async move {
                let event = events.recv().await?;
                Some((Ok(event), events))
            })
        });
        let query = |name| OperationSpec::query(name, "For tests.").with_scope("ask");
        let made = OperationSpec::mutation("test/made", "For tests.").with_scope("ask");
        let feeds = OperationSpec::subscription("test/feed", "For tests.").with_scope("ask");
        let registry = Registry::builder()
            .with(Registration::new(query("test/ask"), ask))
            .with(Registration::new(query("test/late"), waits()))
            .with(Registration::new(made, waits()))
            .with(Registration::new(feeds, follow));
        let dispatcher = Dispatcher::new(registry.build().expect("every rule is kept"));
        let dispatcher = dispatcher.with_identities(Arc::clone(&identities) as _);
        Self {
            node: CallTestNode::with_dispatcher(dispatcher, Arc::default()),
            identities,
            waiting,
            permits,
            feed,
        }
    }

    /// Waits until so many calls wait.
    async fn began(&self, calls: usize) {
        let mut waiting = self.waiting.subscribe();
        let all = soon(waiting.wait_for(|began| *began >= calls)).await;
        all.expect("the lab is there");
    }

    /// `user`, known by its key, and by any other proof.
    fn known(&self, carriage: Carriage, key: bool) -> CallConnection {
        let who = self.identities.who();
        if !key {
            return self.node.client(carriage, who);
        }
        let (dialled, accepted) = pair(carriage);
        let auth = AuthContext {
            identity: who,
            key: Some(SERVER_KEY),
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: accepted.carriage(),
            early_data: false,
        };
        let handler: Arc<dyn ProtocolHandler> = Arc::clone(&self.node.handler) as _;
        tokio::spawn(handler.handle(accepted, auth));
        CallClient::without_operations().attach(dialled, None)
    }

    async fn by_token(&self, carriage: Carriage) -> CallConnection {
        let client = self.node.client(carriage, None);
        let token = AuthToken::new("any".to_owned());
        soon(client.authenticate(&token)).await.expect("known");
        client
    }
}

fn pair(carriage: Carriage) -> (Connection, Connection) {
    match carriage {
        Carriage::Tcp => single_pair(),
        _ => memory_pair(ALPN),
    }
}

async fn code(client: &CallConnection) -> String {
    match soon(client.call("test/ask", &Value::Null)).await {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.code.name().to_owned(),
    }
}

#[tokio::test]
async fn a_call_is_let_in_by_the_rights_of_its_moment() {
    for carriage in CARRIAGES {
        let lab = RightsTestNode::new();
        let by_token = lab.by_token(carriage).await;
        let (by_key, otherwise) = (lab.known(carriage, true), lab.known(carriage, false));
        for (n, client) in [by_token, by_key, otherwise].iter().enumerate() {
            for (scopes, expected) in [
                (Some(MAY), "ok"),
                (Some(LESS), "FORBIDDEN"),
                (Some(MAY), "ok"),
                (None, "UNAUTHENTICATED"),
                (Some(MAY), "ok"),
            ] {
                lab.identities.set(scopes);
                assert_eq!(code(client).await, expected, "{n} {carriage:?} {scopes:?}");
            }
        }
    }
}

/// Starts one of the waiting operations.
fn start(
    client: &CallConnection,
    operation: &'static str,
) -> tokio::task::JoinHandle<Result<CallBody, CallError>> {
    let client = client.clone();
    tokio::spawn(async move { client.call(operation, &Value::Null).await })
}

#[tokio::test]
async fn a_query_is_answered_by_the_rights_of_then_and_a_mutation_as_it_ended() {
    for carriage in CARRIAGES {
        let lab = RightsTestNode::new();
        let client = lab.by_token(carriage).await;
        let (query, mutation) = (start(&client, "test/late"), start(&client, "test/made"));
        lab.began(2).await;
        lab.identities.set(Some(LESS));
        lab.permits.add_permits(2);
        let query = soon(query).await.expect("no panic");
        assert_eq!(query.expect_err("no more").code, ErrorCode::Forbidden);
        let mutation = soon(mutation).await.expect("no panic");
        assert_eq!(*mutation.expect("it was made").value(), json!("told"));
        // Another change, after which the user has its rights again.
        lab.identities.set(Some(MAY));
        let query = start(&client, "test/late");
        lab.began(3).await;
        lab.identities.set(Some(&["other", "ask"]));
        lab.permits.add_permits(1);
        soon(query).await.expect("no panic").expect("it may");
    }
}

#[tokio::test]
async fn no_event_is_sent_after_its_right_ended() {
    for carriage in CARRIAGES {
        let lab = RightsTestNode::new();
        let client = lab.by_token(carriage).await;
        let events = soon(client.subscribe("test/feed", &Value::Null)).await;
        let mut events = events.expect("started");
        for (n, scopes) in [MAY, &["other", "ask"]].into_iter().enumerate() {
            lab.identities.set(Some(scopes));
            lab.feed.send(json!(n)).expect("it is followed");
            let event = soon(events.next()).await.expect("an event");
            assert_eq!(*event.expect("it may").output.value(), json!(n));
        }
        lab.identities.set(Some(LESS));
        lab.feed.send(json!("secret")).expect("it is followed");
        let end = soon(events.next()).await.expect("its end");
        assert_eq!(end.expect_err("no more").code, ErrorCode::Forbidden);
        assert!(soon(events.next()).await.is_none());
    }
}

/// A request of another protocol names its requester before all of it has arrived.
#[tokio::test]
async fn what_was_proved_before_the_input_came_is_looked_up_again() {
    let lab = RightsTestNode::new();
    let (dialled, _accepted) = memory_pair(ALPN);
    let gate = LocalCaller::new(&lab.node.dispatcher, &dialled, None);
    let token = Arc::new(AuthToken::new("any".to_owned()));
    let asks = |operation: &'static str, identity: &Arc<Identity>| LocalRequest {
        identity: Some(Arc::clone(identity)),
        token: Some(&token),
        ..LocalRequest::new("1", operation)
    };
    let before = gate.by_token(&token).expect("known");
    let shown = || {
        let (shown, _) = gate.visible(Some(&before));
        let named = gate.spec(Some(&before), "test/ask");
        (
            shown.iter().any(|one| one.operation() == "test/ask"),
            named.is_some(),
        )
    };
    for (scopes, refused) in [
        (Some(MAY), None),
        (Some(LESS), Some(ErrorCode::Forbidden)),
        (None, Some(ErrorCode::Unauthenticated)),
    ] {
        lab.identities.set(scopes);
        let answer = soon(gate.call(asks("test/ask", &before))).await;
        let code = answer.err().map(|refused| refused.error.code);
        assert_eq!(
            shown(),
            (refused.is_none(), refused.is_none()),
            "{scopes:?}"
        );
        assert_eq!(code, refused, "{scopes:?}");
    }

    // The same while it runs.
    lab.identities.set(Some(MAY));
    let who = lab.identities.who().expect("known");
    let call = gate.call(asks("test/late", &who));
    let narrowed = async {
        lab.began(1).await;
        lab.identities.set(Some(LESS));
        lab.permits.add_permits(1);
    };
    let (answer, ()) = soon(async { tokio::join!(call, narrowed) }).await;
    let refused = answer.expect_err("no more").error;
    assert_eq!(refused.code, ErrorCode::Forbidden);

    lab.identities.set(Some(MAY));
    let who = lab.identities.who().expect("known");
    let mut events = gate.subscribe(asks("test/feed", &who)).expect("it begins");
    lab.feed.send(json!(1)).expect("it is followed");
    soon(events.next()).await.expect("one").expect("it may");
    lab.identities.set(Some(LESS));
    lab.feed.send(json!("secret")).expect("it is followed");
    let end = soon(events.next()).await.expect("its end");
    assert_eq!(end.expect_err("no more").error.code, ErrorCode::Forbidden);
}
