//! A hub and its workers in one process, over real sockets on loopback. The tests cover routing, the loss of a
//! worker, aborts and key rotation.

use std::future::pending;
use std::net::Ipv4Addr;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alknet_call::limits::CALL_TIMEOUT_DEFAULT;
use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallHandler, CallOutput, CompositionAuthority,
    Ctx, Dispatcher, ErrorCode, HandlerKind, ImportOptions, InvokeOptions, OnAbort, OperationSpec,
    PeerRef, Registration, Registry, ScopedPeerEnv,
};
use alknet_core::rotation::OVERLAP_S;
use alknet_core::{
    Carriage, Clock, CloseCode, HandlerRegistry, Identities, Identity, IdentityEntries,
    IdentityKind, IdentityStore, PeerEntry, PeerId,
};
use alknet_endpoint::{EndpointDialer, EndpointServer, ServerOptions, Target};
use alknet_test_support::{deadline, took};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

const CARRIAGES: [Carriage; 2] = [Carriage::Quic, Carriage::Tcp];
const WORKERS: [&str; 3] = ["w1", "w2", "w3"];

/// Longest wait for one step. It is shorter than a call's default deadline, because a call that reaches its deadline
/// looks like an abort.
const SOON: Duration = Duration::from_secs(20);
const SOON_MAX: Duration = Duration::from_secs(CALL_TIMEOUT_DEFAULT.as_secs() - 5);

/// Promised time from the end of a call at its caller to the end on a third node.
const REACHED_WITHIN: Duration = Duration::from_millis(100);

/// What ended at `since` has ended the call on the worker.
fn reached(since: Instant, what: &str, carriage: Carriage) {
    let what = format!("{what} reaches a third node over {carriage:?}");
    took(&what, REACHED_WITHIN, since.elapsed());
}

/// Pause between two queries of a state that sends no notification of its changes.
const POLL: Duration = Duration::from_millis(5);

/// Fails the test when the future takes longer than [`SOON`], and names the caller's line.
#[track_caller]
fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let at = Location::caller();
    async move {
        let done = tokio::time::timeout(deadline(SOON).min(SOON_MAX), future).await;
        done.unwrap_or_else(|_| panic!("nothing happened at {at}"))
    }
}

fn identity(id: &str, scopes: &[&str]) -> Arc<Identity> {
    Arc::new(Identity {
        id: id.parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: Default::default(),
        generation: 0,
    })
}

/// Unix time at which a hub starts, in seconds.
const START_S: u64 = 1_800_000_000;

/// A clock that shows the time that the test sets.
struct FixedTime(AtomicU64);

impl Clock for FixedTime {
    fn now_s(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed))
    }
}

/// Number of a worker's handlers that run.
type Running = watch::Sender<usize>;

/// Lets `container/finish` of a worker finish, and counts the calls that finished.
#[derive(Default)]
struct FinishGate {
    release: Notify,
    finished: watch::Sender<usize>,
}

struct RunningGuard(Arc<Running>);

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

fn worker(id: &'static str, running: &Arc<Running>, finish: &Arc<FinishGate>) -> Dispatcher {
    let (finish, both) = (Arc::clone(finish), Arc::clone(running));
    let running = Arc::clone(running);
    let exec = OperationSpec::query("container/exec", "Runs.").with_scope("container:exec");
    let registry = Registry::builder()
        .with(Registration::new(
            exec,
            HandlerKind::once(move |_, ctx: Ctx| async move {
                Ok(json!({ "worker": id, "for": ctx.forwarded_for() }))
            }),
        ))
        .with(Registration::new(
            OperationSpec::query("container/hang", "Runs for ever."),
            HandlerKind::once(move |_, _| {
                running.send_modify(|n| *n += 1);
                let guard = RunningGuard(Arc::clone(&running));
                async move {
                    let _guard = guard;
                    pending::<Result<Value, CallError>>().await
                }
            }),
        ))
        .with(Registration::new(
            OperationSpec::query("container/finish", "Runs until it is let go."),
            HandlerKind::once(move |_, _| {
                both.send_modify(|n| *n += 1);
                let (guard, finish) = (RunningGuard(Arc::clone(&both)), Arc::clone(&finish));
                async move {
                    let _guard = guard;
                    finish.release.notified().await;
                    finish.finished.send_modify(|n| *n += 1);
                    Ok::<Value, CallError>(Value::Null)
                }
            }),
        ))
        .build();
    Dispatcher::new(registry.expect("every rule is kept"))
}

fn composes(name: &str, operation: &'static str, on_abort: OnAbort) -> Registration {
    let run = move |input: alknet_call::CallBody, ctx: Ctx| async move {
        let options = InvokeOptions::on(match input.value()["to"].as_str() {
            Some(id) => PeerRef::Specific(id.parse().expect("a peer id")),
            None => PeerRef::Any,
        });
        let options = InvokeOptions {
            on_abort,
            ..options
        };
        let answer = ctx
            .env()
            .invoke_with(operation, &Value::Null, &options)
            .await?;
        Ok(CallOutput::from(answer))
    };
    Registration::new(
        OperationSpec::query(name, "Asks a worker."),
        HandlerKind::once(run),
    )
    .composing(
        CompositionAuthority::new("hub", ["container:exec"]),
        ScopedPeerEnv::new(["container/*"]),
    )
}

struct FarmHub {
    server: EndpointServer,
    dispatcher: Arc<Dispatcher>,
    key: NodeKey,
    known: Arc<Identities>,
    time: Arc<FixedTime>,
}

impl FarmHub {
    fn start() -> Self {
        let dependents = OnAbort::AbortDependents;
        let registry = Registry::builder()
            .with(composes("farm/exec", "container/exec", dependents))
            .with(composes("farm/hang", "container/hang", dependents))
            .with(composes(
                "farm/finish",
                "container/finish",
                OnAbort::ContinueRunning,
            ))
            .build();
        let dispatcher = Dispatcher::new(registry.expect("every rule is kept"))
            .with_imports(ImportOptions::default())
            .with_routing();
        let dispatcher = Arc::new(dispatcher);
        let mut handlers = HandlerRegistry::new();
        handlers
            .register(Arc::new(CallHandler::new(Arc::clone(&dispatcher))))
            .expect("the only one");
        let key = NodeKey::generate().expect("a key");
        let time = Arc::new(FixedTime(AtomicU64::new(START_S)));
        let known = Identities::new(IdentityEntries::default(), Arc::clone(&time) as _);
        let known = Arc::new(known);
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, handlers, Arc::clone(&known) as _);
        Self {
            server: server.expect("a free port"),
            dispatcher,
            key,
            known,
            time,
        }
    }

    /// Makes a key, registers it as the peer `id`, and dials the hub with it.
    async fn join(
        &self,
        carriage: Carriage,
        id: &str,
        scopes: &[&str],
        serves: CallClient,
    ) -> (EndpointDialer, CallConnection, NodeKey) {
        let key = NodeKey::generate().expect("a key");
        let entry = PeerEntry {
            keys: vec![key.public()],
            scopes: scopes.iter().collect(),
            ..PeerEntry::new(id.parse().expect("a peer id"))
        };
        self.known.put(entry).await.expect("a new key");
        let (dialer, connection) = self.dial(carriage, &key, serves).await;
        (dialer, connection, key)
    }

    async fn dial(
        &self,
        carriage: Carriage,
        key: &NodeKey,
        serves: CallClient,
    ) -> (EndpointDialer, CallConnection) {
        let dialer = EndpointDialer::new(Some(key.clone()));
        let target: Target = format!("{}:{}", Ipv4Addr::LOCALHOST, self.server.port())
            .parse()
            .expect("a target");
        let target = target.with_pins([self.key.public()]);
        let connection = soon(dialer.dial_over(carriage, &target, ALPN)).await;
        let connection = connection.expect("the hub answers");
        // A worker that has pinned the hub's key knows the hub by the name beside the pin.
        connection
            .set_identity(identity("hub", &["container:exec", "forward:identity"]))
            .expect("no key was known before");
        (dialer, serves.attach(connection, None))
    }

    async fn attached(&self, ids: &[&str]) {
        let mut changes = self.dispatcher.peers().changes();
        let wait = async {
            loop {
                changes.borrow_and_update();
                let now = self.dispatcher.peers().ids();
                if now.iter().map(PeerId::as_str).eq(ids.iter().copied()) {
                    return;
                }
                changes.changed().await.expect("the hub lives");
            }
        };
        soon(wait).await;
    }
}

struct FarmWorker {
    running: Arc<Running>,
    finish: Arc<FinishGate>,
    link: CallConnection,
    key: NodeKey,
    _dialer: EndpointDialer,
}

async fn start_worker(hub: &FarmHub, carriage: Carriage, id: &'static str) -> FarmWorker {
    let (running, finish) = (Arc::default(), Arc::default());
    let serves = CallClient::new(Arc::new(worker(id, &running, &finish)));
    let (dialer, link, key) = hub.join(carriage, id, &[], serves).await;
    FarmWorker {
        running,
        finish,
        link,
        key,
        _dialer: dialer,
    }
}

async fn ask(client: &CallConnection, operation: &str, input: Value) -> Value {
    let answer = soon(client.call(operation, &input)).await;
    answer.expect(operation).value().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_reaches_its_workers_over_both_carriages() {
    for carriage in CARRIAGES {
        let hub = FarmHub::start();
        let mut workers = Vec::new();
        for (n, id) in WORKERS.into_iter().enumerate() {
            workers.push(start_worker(&hub, carriage, id).await);
            hub.attached(&WORKERS[..=n]).await;
        }
        let hub = &hub;
        let user = |id: &'static str, scopes: &'static [&'static str]| {
            hub.join(carriage, id, scopes, CallClient::without_operations())
        };
        let (_dialer, client, _) = user("user", &["peer:list"]).await;
        for id in WORKERS {
            let answer = ask(&client, "farm/exec", json!({ "to": id })).await;
            assert_eq!(answer, json!({ "worker": id, "for": { "id": "user" } }));
        }
        let listed = ask(&client, "services/list-peers", Value::Null).await;
        let operations = &listed["peers"][0]["operations"];
        assert_eq!(operations.as_array().map(Vec::len), Some(2), "{listed}");
        let (_dialer, other, _) = user("other", &["peer:list", "container:exec"]).await;
        let listed = ask(&other, "services/list-peers", Value::Null).await;
        let operations = &listed["peers"][0]["operations"];
        assert_eq!(operations.as_array().map(Vec::len), Some(3), "{listed}");

        assert_eq!(ask(&client, "farm/exec", json!({})).await["worker"], "w1");
        workers[0].link.close(CloseCode::Normal, "");
        hub.attached(&["w2", "w3"]).await;
        assert_eq!(ask(&client, "farm/exec", json!({})).await["worker"], "w2");

        // A worker with a new key takes the name of the lost one, and the hub routes calls to it.
        workers[0] = start_worker(hub, carriage, "w1").await;
        hub.attached(&["w2", "w3", "w1"]).await;
        let answer = ask(&client, "farm/exec", json!({ "to": "w1" })).await;
        assert_eq!(answer["worker"], "w1");

        let mut running = workers[2].running.subscribe();
        let caller = client.clone();
        let call =
            tokio::spawn(async move { caller.call("farm/hang", &json!({ "to": "w3" })).await });
        soon(running.wait_for(|n| *n == 1)).await.expect("it runs");
        let aborted = Instant::now();
        call.abort();
        soon(running.wait_for(|n| *n == 0)).await.expect("it stops");
        reached(aborted, "an abort", carriage);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_changes_its_key_and_no_call_is_lost() {
    for carriage in CARRIAGES {
        let hub = FarmHub::start();
        let old = start_worker(&hub, carriage, "w1").await;
        hub.attached(&["w1"]).await;
        let user = CallClient::without_operations();
        let (_dialer, client, _) = hub.join(carriage, "user", &[], user).await;
        let calling = {
            let (client, stop) = (client.clone(), Arc::new(AtomicBool::new(false)));
            let stopped = Arc::clone(&stop);
            let task = tokio::spawn(async move {
                let mut answered = 0;
                while !stopped.load(Ordering::Relaxed) {
                    let answer = ask(&client, "farm/exec", json!({ "to": "w1" })).await;
                    assert_eq!(answer["worker"], "w1");
                    answered += 1;
                }
                answered
            });
            move || {
                stop.store(true, Ordering::Relaxed);
                task
            }
        };

        // One call is under way for as long as the worker has two connections.
        let mut running = old.running.subscribe();
        let caller = client.clone();
        let long =
            tokio::spawn(async move { caller.call("farm/finish", &json!({ "to": "w1" })).await });
        soon(running.wait_for(|n| *n == 1)).await.expect("it runs");

        let new = NodeKey::generate().expect("a key");
        let id: PeerId = "w1".parse().expect("a peer id");
        let rotate = hub.known.rotate(id.clone(), old.key.public(), new.public());
        let ends = rotate.await.expect("a rotation").expect("an end");
        assert_eq!(ends, START_S + OVERLAP_S);
        // The worker attaches with its new key while the hub still accepts the old one.
        let serves = CallClient::new(Arc::new(worker("w1", &old.running, &old.finish)));
        let (_dialer, link) = hub.dial(carriage, &new, serves).await;
        let superseded = async {
            while !old.link.is_draining() && !old.link.is_closed() {
                tokio::time::sleep(POLL).await;
            }
        };
        soon(superseded).await;
        old.finish.release.notify_one();
        soon(long).await.expect("no panic").expect("it is answered");
        soon(old.link.closed()).await;
        hub.attached(&["w1"]).await;
        let (_other, with_old) = hub
            .dial(carriage, &old.key, CallClient::without_operations())
            .await;
        ask(&with_old, "services/list", Value::Null).await;

        // The overlap of a day has ended. The hub treats the old key as the key of an unknown peer, and the new key
        // still works.
        hub.time.0.store(ends, Ordering::Relaxed);
        hub.server.sweep();
        soon(with_old.closed()).await;
        hub.attached(&["w1"]).await;
        ask(&client, "farm/exec", json!({ "to": "w1" })).await;
        let answered = soon(calling()).await.expect("every call was answered");
        assert!(answered > 0);
        let peers: Vec<_> = hub
            .server
            .connections()
            .into_iter()
            .map(|it| it.peer)
            .collect();
        assert!(peers.contains(&Some(id)), "{peers:?}");
        drop(link);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_continues_finishes_on_a_third_node_and_nothing_else_does() {
    for carriage in CARRIAGES {
        let hub = FarmHub::start();
        let worker = start_worker(&hub, carriage, "w1").await;
        hub.attached(&["w1"]).await;
        let nothing = CallClient::without_operations();
        let (_dialer, client, _) = hub.join(carriage, "user", &[], nothing).await;
        let call = |operation: &'static str| {
            let caller = client.clone();
            tokio::spawn(async move { caller.call(operation, &json!({ "to": "w1" })).await })
        };
        let mut running = worker.running.subscribe();
        let calls = [call("farm/finish"), call("farm/hang")];
        soon(running.wait_for(|n| *n == 2)).await.expect("they run");
        let closed = Instant::now();
        client.close(CloseCode::Normal, "");
        // One of the two calls ends with its caller.
        soon(running.wait_for(|n| *n == 1)).await.expect("one ends");
        reached(closed, "the end of a connection", carriage);
        for call in calls {
            let error = soon(call).await.expect("no panic").expect_err("closed");
            assert_eq!(error.code, ErrorCode::Unavailable);
        }
        let mut finished = worker.finish.finished.subscribe();
        worker.finish.release.notify_one();
        soon(finished.wait_for(|n| *n == 1))
            .await
            .expect("it ends well");
        soon(running.wait_for(|n| *n == 0))
            .await
            .expect("it is over");
    }
}
