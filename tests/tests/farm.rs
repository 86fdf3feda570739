//! A hub and its workers in one process, over real sockets on loopback: routing, loss, abort and
//! key rotation.

use std::collections::HashMap;
use std::future::pending;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallHandler, CompositionAuthority, Ctx,
    Dispatcher, HandlerKind, ImportOptions, InvokeOptions, OperationSpec, Output, PeerRef,
    Registration, Registry, ScopedPeerEnv,
};
use alknet_core::{
    AuthToken, Carriage, CloseCode, HandlerRegistry, Identity, IdentityKind, IdentityProvider,
    PeerId, PeerKey,
};
use alknet_endpoint::{Dialer, Server, ServerOptions, Target};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::sync::watch;

const CARRIAGES: [Carriage; 2] = [Carriage::Quic, Carriage::Tcp];
const WORKERS: [&str; 3] = ["w1", "w2", "w3"];

/// A test that hangs fails instead.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it happens")
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

#[derive(Default)]
struct Known {
    keys: Mutex<HashMap<PeerKey, Arc<Identity>>>,
    changed: watch::Sender<u64>,
}

impl Known {
    fn add(&self, key: PeerKey, who: Arc<Identity>) {
        self.keys.lock().expect("no panics").insert(key, who);
        self.changed.send_modify(|n| *n += 1);
    }
}

impl IdentityProvider for Known {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        self.keys.lock().expect("no panics").get(key).cloned()
    }

    fn by_token(&self, _: &AuthToken) -> Option<Arc<Identity>> {
        None
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// How many of a worker's handlers run.
type Running = watch::Sender<usize>;

struct Guard(Arc<Running>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

fn worker(id: &'static str, running: &Arc<Running>) -> Dispatcher {
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
                let guard = Guard(Arc::clone(&running));
                async move {
                    let _guard = guard;
                    pending::<Result<Value, CallError>>().await
                }
            }),
        ))
        .build();
    Dispatcher::new(registry.expect("every rule is kept"))
}

fn composes(name: &str, operation: &'static str) -> Registration {
    let run = move |input: alknet_call::Body, ctx: Ctx| async move {
        let options = InvokeOptions::on(match input.value()["to"].as_str() {
            Some(id) => PeerRef::Specific(id.parse().expect("a peer id")),
            None => PeerRef::Any,
        });
        let answer = ctx
            .env()
            .invoke_with(operation, &Value::Null, &options)
            .await?;
        Ok(Output::from(answer))
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

struct Hub {
    server: Server,
    dispatcher: Arc<Dispatcher>,
    key: NodeKey,
    known: Arc<Known>,
}

impl Hub {
    fn start() -> Self {
        let registry = Registry::builder()
            .with(composes("farm/exec", "container/exec"))
            .with(composes("farm/hang", "container/hang"))
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
        let known = Arc::new(Known::default());
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = Server::bind(options, &key, handlers, Arc::clone(&known) as _);
        Self {
            server: server.expect("a free port"),
            dispatcher,
            key,
            known,
        }
    }

    /// Dials with a key of its own, known as `who`.
    async fn join(
        &self,
        carriage: Carriage,
        who: Arc<Identity>,
        serves: CallClient,
    ) -> (Dialer, CallConnection) {
        let key = NodeKey::generate().expect("a key");
        self.known.add(key.public(), who);
        let dialer = Dialer::new(Some(key));
        let target: Target = format!("{}:{}", Ipv4Addr::LOCALHOST, self.server.port())
            .parse()
            .expect("a target");
        let target = target.with_pins([self.key.public()]);
        let connection = soon(dialer.dial_over(carriage, &target, ALPN)).await;
        let connection = connection.expect("the hub answers");
        // Whoever is pinned is known by the name it was pinned under.
        connection
            .set_identity(identity("hub", &["container:exec", "forward:identity"]))
            .expect("nobody was known before");
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

struct Worker {
    running: Arc<Running>,
    link: CallConnection,
    _dialer: Dialer,
}

async fn start_worker(hub: &Hub, carriage: Carriage, id: &'static str) -> Worker {
    let running = Arc::default();
    let serves = CallClient::new(Arc::new(worker(id, &running)));
    let (dialer, link) = hub.join(carriage, identity(id, &[]), serves).await;
    Worker {
        running,
        link,
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
        let hub = Hub::start();
        let mut workers = Vec::new();
        for (n, id) in WORKERS.into_iter().enumerate() {
            workers.push(start_worker(&hub, carriage, id).await);
            hub.attached(&WORKERS[..=n]).await;
        }
        let user = |scopes: &[&str]| {
            let who = identity("user", scopes);
            hub.join(carriage, who, CallClient::without_operations())
        };
        let (_dialer, client) = user(&["peer:list"]).await;
        for id in WORKERS {
            let answer = ask(&client, "farm/exec", json!({ "to": id })).await;
            assert_eq!(answer, json!({ "worker": id, "for": { "id": "user" } }));
        }
        let listed = ask(&client, "services/list-peers", Value::Null).await;
        let operations = &listed["peers"][0]["operations"];
        assert_eq!(operations.as_array().map(Vec::len), Some(1), "{listed}");
        let (_dialer, other) = user(&["peer:list", "container:exec"]).await;
        let listed = ask(&other, "services/list-peers", Value::Null).await;
        let operations = &listed["peers"][0]["operations"];
        assert_eq!(operations.as_array().map(Vec::len), Some(2), "{listed}");

        assert_eq!(ask(&client, "farm/exec", json!({})).await["worker"], "w1");
        workers[0].link.close(CloseCode::Normal, "");
        hub.attached(&["w2", "w3"]).await;
        assert_eq!(ask(&client, "farm/exec", json!({})).await["worker"], "w2");

        // Another key, the same name: everything goes on.
        workers[0] = start_worker(&hub, carriage, "w1").await;
        hub.attached(&["w2", "w3", "w1"]).await;
        let answer = ask(&client, "farm/exec", json!({ "to": "w1" })).await;
        assert_eq!(answer["worker"], "w1");

        let mut running = workers[2].running.subscribe();
        let caller = client.clone();
        let call =
            tokio::spawn(async move { caller.call("farm/hang", &json!({ "to": "w3" })).await });
        soon(running.wait_for(|n| *n == 1)).await.expect("it runs");
        call.abort();
        soon(running.wait_for(|n| *n == 0)).await.expect("it stops");
    }
}
