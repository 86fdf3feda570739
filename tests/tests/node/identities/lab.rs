//! A node in this process with a configuration that can be replaced, and its peers.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alknet_call::{
    ALPN, CallBody, CallClient, CallConnection, CallError, HandlerKind, OperationSpec,
    Registration, Registry,
};
use alknet_core::config::{
    ConfigApplyResult, ConfigChange, ConfigSource, NodeConfig, ReloadHandle,
};
use alknet_core::{Carriage, CloseReason, Connection, Identities, PeerKey};
use alknet_endpoint::{EndpointDialError, EndpointDialer, EndpointLimits, EndpointServer, Target};
use alknet_test_support::deadline;
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::local_node::LocalNode;

/// How long anything may take before a test counts as hung.
pub(crate) fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

/// The operation that the tests call. It requires the scope `work`.
pub(crate) const WORK: &str = "demo/work";

/// The same, but it answers once there is a permit.
pub(crate) const WAIT: &str = "demo/wait";

/// The same as a subscription: one event at once, and no end.
pub(crate) const FOLLOW: &str = "demo/follow";

/// A peer with its key, and the rest of its entry in the configuration.
#[derive(Clone)]
pub(crate) struct TestIdentity {
    pub(crate) name: String,
    pub(crate) key: NodeKey,
    pub(crate) rest: String,
}

impl TestIdentity {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            key: NodeKey::generate().expect("a key"),
            rest: String::new(),
        }
    }

    pub(crate) fn with(mut self, rest: &str) -> Self {
        self.rest = rest.to_owned();
        self
    }
}

/// The document with these peers.
pub(crate) fn document(peers: &[TestIdentity]) -> String {
    let mut text = String::new();
    for peer in peers {
        let key = peer.key.public();
        entry(&mut text, &peer.name, &[key], &peer.rest);
    }
    text
}

pub(crate) fn entry(text: &mut String, name: &str, keys: &[PeerKey], rest: &str) {
    let keys: Vec<_> = keys.iter().map(|key| format!("\"{key}\"")).collect();
    let keys = keys.join(", ");
    writeln!(
        text,
        "[[peers]]\npeer_id = \"{name}\"\nkeys = [{keys}]\nscopes = [\"work\"]\n{rest}"
    )
    .expect("text grows");
}

pub(crate) struct IdentityLab {
    pub(crate) server: Arc<EndpointServer>,
    pub(crate) identities: Arc<Identities>,
    pub(crate) permits: Arc<Semaphore>,
    /// Calls of [`WAIT`] that began.
    pub(crate) waiting: watch::Sender<usize>,
    /// Calls of [`WORK`] that did their work.
    pub(crate) worked: Arc<AtomicU64>,
    key: NodeKey,
    reload: ReloadHandle,
}

impl IdentityLab {
    pub(crate) fn start(document: &str, limits: EndpointLimits) -> Self {
        let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
        let permits = Arc::new(Semaphore::new(0));
        let waiting = watch::Sender::new(0);
        let worked = Arc::default();
        let operations = operations(&permits, &waiting, &worked);
        let LocalNode {
            server,
            key,
            identities,
        } = LocalNode::start(&config, operations, limits);
        Self {
            server: Arc::new(server),
            reload: ReloadHandle::new(config, Arc::clone(&identities)),
            identities,
            permits,
            waiting,
            worked,
            key,
        }
    }

    /// Replaces the configuration as `config/apply` does.
    pub(crate) fn apply(&self, document: &str) -> ConfigApplyResult {
        let change = ConfigChange::of_owner(document.as_bytes(), ConfigSource::File);
        let applied = self.reload.apply(&change).expect("a correct document");
        self.server.sweep();
        applied
    }

    pub(crate) async fn connect(&self, who: &NodeKey, carriage: Carriage) -> LabClient {
        let connected = self.try_connect(who, carriage).await;
        connected.unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) async fn try_connect(
        &self,
        who: &NodeKey,
        carriage: Carriage,
    ) -> Result<LabClient, EndpointDialError> {
        let target = format!("{}:{}", Ipv4Addr::LOCALHOST, self.server.port());
        let target: Target = target.parse().expect("a target");
        let target = target.with_pins([self.key.public()]);
        let dialer = EndpointDialer::new(Some(who.clone()));
        let connection = dialer.dial_over(carriage, &target, ALPN).await?;
        let client = CallClient::without_operations().attach(connection.clone(), None);
        Ok(LabClient {
            client: Arc::new(client),
            connection,
            _dialer: dialer,
        })
    }
}

fn operations(
    permits: &Arc<Semaphore>,
    waiting: &watch::Sender<usize>,
    worked: &Arc<AtomicU64>,
) -> Registry {
    let worked = Arc::clone(worked);
    let work = HandlerKind::once(move |_: CallBody, ctx: alknet_call::Ctx| {
        let worked = Arc::clone(&worked);
        async move {
            // Long enough for the configuration to change in between.
            tokio::time::sleep(Duration::from_millis(2)).await;
            let who = ctx.identity().map(|who| who.id.to_string());
            worked.fetch_add(1, Ordering::SeqCst);
            Ok::<_, CallError>(json!(who))
        }
    });
    let (permits, waiting) = (Arc::clone(permits), waiting.clone());
    let wait = HandlerKind::once(move |_: CallBody, _| {
        waiting.send_modify(|began| *began += 1);
        let permits = Arc::clone(&permits);
        async move {
            let permit = permits.acquire().await;
            permit
                .map_err(|error| CallError::internal(error.to_string()))?
                .forget();
            Ok::<_, CallError>(json!("waited"))
        }
    });
    let follow = HandlerKind::stream(|_: CallBody, _| {
        let first = futures_util::stream::iter([Ok::<_, CallError>(json!("following"))]);
        futures_util::StreamExt::chain(first, futures_util::stream::pending())
    });
    let spec = |name| OperationSpec::query(name, "For tests.").with_scope("work");
    Registry::builder()
        .with(Registration::new(spec(WORK), work))
        .with(Registration::new(spec(WAIT), wait))
        .with(Registration::new(
            OperationSpec::subscription(FOLLOW, "For tests.").with_scope("work"),
            follow,
        ))
        .build()
        .expect("correct operations")
}

pub(crate) struct LabClient {
    pub(crate) client: Arc<CallConnection>,
    pub(crate) connection: Connection,
    _dialer: EndpointDialer,
}

impl LabClient {
    /// Calls [`WORK`].
    pub(crate) async fn work(&self) -> Result<CallBody, CallError> {
        let answer = self.client.call(WORK, &Value::Null);
        timeout(hung(), answer).await.expect("an answer in time")
    }

    /// The code with which the node ended the connection.
    pub(crate) async fn code(&self) -> Option<u64> {
        match timeout(hung(), self.connection.closed()).await {
            Ok(CloseReason::Peer(code, _)) => code,
            other => panic!("{other:?}"),
        }
    }
}
