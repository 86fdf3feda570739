//! The node as a peer of hubs: `[[join]]`. The node dials each hub, enrols if the hub does not know
//! it yet, and keeps the connection. The hub may call the operations that this node's own
//! configuration allows it to.
//!
//! `alknet_call::ReconnectingClient` keeps a connection, too, and gives up where this module must
//! not: a hub that refuses this node today may accept it tomorrow. It also has one address, and
//! cannot enrol between two connections. So this module has its own loop. `Backoff` and
//! `CloseReason::pause` decide for both when to dial again.

mod connections;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_call::{CallClient, CallConnection, CallError, DialCredentials, Dispatcher, ErrorCode};
use alknet_core::config::{JoinConfig, NodeConfig};
use alknet_core::{Backoff, Carriage, CloseCode, CloseReason, Dialer, PeerAddr, PeerKey};
use alknet_hub::{EnrolClientError, JoinCode, JoinRequest, enrol};
use alknet_init::control::MachineDiagnostic;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::reload::Reloader;

pub(crate) use connections::HubConnections;

/// Code of the problem that a hub refuses this node or has removed it. The node itself has no
/// fault.
pub(crate) const HUB_REFUSES: &str = "hub-refuses";
/// Maximum of the first pause between attempts.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Maximum pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Pauses between the end of a connection and the next dial.
const PAUSES: Backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
/// A connection that lasted this long resets the pauses.
const HEALTHY: Duration = Duration::from_secs(60);
/// Minimum pause after a hub refused this node.
const UNWANTED: Duration = Duration::from_secs(60);
/// Time for a hub to say whether it knows this node.
const WHOAMI: Duration = Duration::from_secs(15);

/// Fills in the keys of hubs from their join strings. The hubs are then peers of the node.
pub(crate) fn fill_in(config: &mut NodeConfig) {
    for join in &mut config.join {
        if let Some(Ok(code)) = join.code.as_ref().map(|code| code.parse::<JoinCode>()) {
            // With its key in the configuration, the hub is a known peer whose calls the node
            // accepts.
            join.key = Some(code.key().to_string());
        }
    }
}

/// The problems of a document's join strings.
pub(crate) fn problems(config: &NodeConfig) -> Vec<MachineDiagnostic> {
    let wrong = |(n, join): (usize, &JoinConfig)| {
        let error = join.code.as_ref()?.parse::<JoinCode>().err()?;
        Some(MachineDiagnostic {
            code: "join-refused".to_owned(),
            text: format!("join[{n}].code: {error}"),
            hint: "ask an administrator of the hub for another join string".to_owned(),
        })
    };
    config.join.iter().enumerate().filter_map(wrong).collect()
}

/// The hubs that this node joins.
pub(crate) struct HubMemberships {
    stop: watch::Sender<bool>,
    unwanted: HubRefusals,
}

/// What the task of each hub needs.
pub(crate) struct JoinContext {
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) dialer: Arc<dyn Dialer>,
    /// This node's own key: a node does not join itself.
    pub(crate) own: PeerKey,
    /// The open connections to hubs.
    pub(crate) reached: HubConnections,
    /// The refusals of hubs.
    pub(crate) unwanted: HubRefusals,
}

/// Hubs that refuse this node, with the reason that each gave. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct HubRefusals(Arc<Mutex<BTreeMap<PeerKey, String>>>);

impl HubRefusals {
    /// Notes that a hub does not take this node, for the reason that it gave.
    fn set(&self, hub: &HubAddress, why: &str) {
        let at = hub.targets.first().map(PeerAddr::address);
        let at = at.unwrap_or_default();
        let text = format!("the hub {hub} at {at} does not take this node: {why}");
        self.lock().insert(hub.key, text);
    }

    fn clear(&self, hub: &PeerKey) {
        self.lock().remove(hub);
    }

    /// Removes the refusals of hubs that the document no longer names.
    fn retain_joined(&self, hubs: &[HubAddress]) {
        self.lock()
            .retain(|hub, _| hubs.iter().any(|joined| joined.key == *hub));
    }

    fn problems(&self) -> Vec<MachineDiagnostic> {
        let refusals = self.lock();
        let problem = |why: &String| {
            MachineDiagnostic {
            code: HUB_REFUSES.to_owned(),
            text: why.clone(),
            hint: "ask an administrator of the hub for a new join string, or take the hub out of [[join]]"
                .to_owned(),
        }
        };
        refusals.values().map(problem).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerKey, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HubMemberships {
    /// Dials the hubs of the document in force, and of every later one.
    pub(crate) fn start(context: JoinContext) -> Self {
        let (stop, stopped) = watch::channel(false);
        let unwanted = context.unwanted.clone();
        tokio::spawn(supervise(Arc::new(context), stopped));
        Self { stop, unwanted }
    }

    /// The problems of hubs that refuse this node.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        self.unwanted.problems()
    }

    /// Stops dialling. Open connections stay until they end.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Runs one task for each hub of the document in force.
async fn supervise(context: Arc<JoinContext>, mut stopped: watch::Receiver<bool>) {
    let mut changes = context.reloader.watch();
    let mut tasks: HashMap<HubAddress, JoinHandle<()>> = HashMap::new();
    loop {
        let joined_hubs = joined_hubs(&context);
        context.unwanted.retain_joined(&joined_hubs);
        tasks.retain(|hub, task| {
            let stays = joined_hubs.contains(hub);
            if !stays {
                // The connection ends with the task, before a new entry for the same hub connects.
                task.abort();
            }
            stays
        });
        for hub in joined_hubs {
            let (context, stopped) = (Arc::clone(&context), stopped.clone());
            tasks
                .entry(hub.clone())
                .or_insert_with(|| tokio::spawn(keep_connected(context, hub, PAUSES, stopped)));
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = stop_of(&mut stopped) => return,
        }
    }
}

/// Resolves once dialling was stopped.
async fn stop_of(stopped: &mut watch::Receiver<bool>) {
    // The channel fails only if the node is gone, which means stop as well.
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn joined_hubs(context: &JoinContext) -> Vec<HubAddress> {
    let current = context.reloader.current();
    for problem in problems(&current.config) {
        tracing::warn!("{}; {}", problem.text, problem.hint);
    }
    hub_addresses(&current.config, &context.own)
}

/// The keys of the hubs that a node with the key `own` joins by this document.
pub(crate) fn hubs(config: &NodeConfig, own: &PeerKey) -> Vec<PeerKey> {
    hub_addresses(config, own)
        .iter()
        .map(|hub| hub.key)
        .collect()
}

fn hub_addresses(config: &NodeConfig, own: &PeerKey) -> Vec<HubAddress> {
    let hub_addresses = config.join.iter().filter_map(HubAddress::from_config);
    let mut joined_hubs: Vec<HubAddress> = Vec::new();
    for hub in hub_addresses.filter(|hub| hub.key != *own) {
        // Of two entries for one hub the first one counts: with two connections, each would replace
        // the other in turn.
        if joined_hubs.iter().all(|known| known.key != hub.key) {
            joined_hubs.push(hub);
        }
    }
    joined_hubs
}

/// A hub and its addresses.
#[derive(Clone, PartialEq, Eq, Hash)]
struct HubAddress {
    key: PeerKey,
    targets: Vec<PeerAddr>,
    code: Option<String>,
}

impl HubAddress {
    fn from_config(join: &JoinConfig) -> Option<Self> {
        if let Some(text) = &join.code {
            let code: JoinCode = text.parse().ok()?;
            return Some(Self {
                key: code.key(),
                targets: code.targets().collect(),
                code: Some(text.clone()),
            });
        }
        let key: PeerKey = join.key.as_ref()?.parse().ok()?;
        let target: PeerAddr = join.address.as_ref()?.parse().ok()?;
        Some(Self {
            key,
            targets: vec![target.with_pins([key])],
            code: None,
        })
    }

    fn token(&self) -> Option<String> {
        let code: JoinCode = self.code.as_ref()?.parse().ok()?;
        Some(code.token.expose().to_string())
    }
}

impl fmt::Display for HubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.short().fmt(f)
    }
}

/// How a connection to a hub ended, with the minimum pause.
enum HubConnectionEnd {
    /// The connection ended, the dial failed, or the node has just enrolled.
    Lost(Duration),
    /// The hub refuses this node, or has not approved it yet.
    Unwanted(Duration),
}

async fn keep_connected(
    context: Arc<JoinContext>,
    hub: HubAddress,
    mut pauses: Backoff,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let began = Instant::now();
        let ended = run_connection(&context, &hub).await;
        if *stopped.borrow() {
            // The stop itself ended the connection, so the node does not dial again.
            return;
        }
        // The pauses are reset after a long connection only: a hub that admits the node and drops
        // it would otherwise be dialled without a pause.
        if began.elapsed() >= HEALTHY {
            pauses.reset();
        }
        let pause = match ended {
            HubConnectionEnd::Lost(at_least) => pauses.next(random()).max(at_least),
            // The random pause is added, so that nodes which were refused together do not return
            // together.
            HubConnectionEnd::Unwanted(at_least) => at_least + pauses.next(random()),
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = stop_of(&mut stopped) => return,
        }
    }
}

/// Runs from the dial to the end of the connection.
async fn run_connection(context: &JoinContext, hub: &HubAddress) -> HubConnectionEnd {
    let connection = match connect(context, hub).await {
        Ok(connection) => connection,
        Err(ended) => return ended,
    };
    match is_known_to(&connection).await {
        Ok(true) => context.unwanted.clear(&hub.key),
        Ok(false) => {
            connection.close(CloseCode::Normal, "");
            // The hub answers and does not know the key: the token of the join string makes the key
            // known.
            return enrol_with(context, hub).await;
        }
        Err(error) => {
            tracing::debug!(%hub, %error, "the hub does not answer");
            connection.close(CloseCode::Normal, "");
            return HubConnectionEnd::Lost(Duration::ZERO);
        }
    }
    tracing::info!(%hub, "join.connected");
    let _noted = context.reached.note(hub.key, connection.clone());
    let reason = connection.closed().await;
    tracing::info!(%hub, %reason, "join.lost");
    if let Some(why) = put_out(&reason) {
        // Not first after the pause and another dial, which would say the same.
        context.unwanted.set(hub, &why);
    }
    HubConnectionEnd::Lost(reason.pause().unwrap_or(UNWANTED))
}

/// What a hub says that ends the connection because it takes this node no more. A connection over TCP carries no code:
/// there the next dial learns the same, a second later.
fn put_out(reason: &CloseReason) -> Option<String> {
    let CloseReason::Peer(Some(code), why) = reason else {
        return None;
    };
    let is_policy = CloseCode::from_code(*code) == Some(CloseCode::Policy);
    is_policy.then(|| format!("it ended the connection ({why})"))
}

async fn connect(
    context: &JoinContext,
    hub: &HubAddress,
) -> Result<CallConnection, HubConnectionEnd> {
    let client =
        CallClient::new(Arc::clone(&context.dispatcher)).with_dialer(Arc::clone(&context.dialer));
    let mut at_least = Duration::ZERO;
    for target in &hub.targets {
        match client.connect(target, &DialCredentials::default()).await {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                if error.is_permanent() {
                    // Another key at the address, for example, does not change by dialling more
                    // often.
                    at_least = UNWANTED;
                }
                tracing::warn!(%hub, at = target.address(), %error, "join.failed");
            }
        }
    }
    Err(HubConnectionEnd::Lost(at_least))
}

/// Whether the hub knows this node as a peer.
async fn is_known_to(connection: &CallConnection) -> Result<bool, CallError> {
    let response = timeout(WHOAMI, connection.call("hub/whoami", &Value::Null)).await;
    match response.unwrap_or_else(|_| Err(CallError::unavailable("no answer in time"))) {
        Ok(answer) => Ok(!answer.value()["peer_id"].is_null()),
        // A server without this operation does not enrol peers, and the connection is useful all
        // the same.
        Err(error) if error.code == ErrorCode::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

async fn enrol_with(context: &JoinContext, hub: &HubAddress) -> HubConnectionEnd {
    let request = JoinRequest {
        token: hub.token(),
        name: context.reloader.current().config.node.name.clone(),
        version: alknet_init::image_version().to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        ..JoinRequest::default()
    };
    let targets = hub.targets.iter().cloned();
    match enrol(&*context.dialer, targets, Carriage::Both, &request).await {
        Ok((enrolled, _)) => {
            tracing::info!(%hub, peer = %enrolled.peer_id, name = enrolled.name, "join.enrolled");
            context.unwanted.clear(&hub.key);
            HubConnectionEnd::Lost(Duration::ZERO)
        }
        Err(EnrolClientError::Refused(refusal)) => {
            tracing::warn!(%hub, code = %refusal.code, "join.refused: {}", refusal.message);
            context.unwanted.set(hub, &refusal.message);
            let retry_after = refusal.retry_after_ms.map(Duration::from_millis);
            HubConnectionEnd::Unwanted(retry_after.unwrap_or(UNWANTED))
        }
        Err(error) => {
            tracing::warn!(%hub, %error, "join.failed");
            HubConnectionEnd::Lost(Duration::ZERO)
        }
    }
}

fn random() -> u32 {
    // Without randomness every pause has its maximum, which is safe.
    getrandom::u32().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use alknet_call::{ALPN, CallHandler, Registry};
    use alknet_core::config::ReloadHandle;
    use alknet_core::{
        AuthContext, BoxFuture, Connection, DialError, DialErrorKind, DialRequest,
        DialedConnection, Identities, ProtocolHandler, SystemClock, memory_pair,
    };
    use alknet_hub::EnrolToken;
    use alknet_test_support::deadline;

    use super::*;
    use crate::node::ConfigStore;

    /// Fails every dial, and counts the dials.
    #[derive(Debug, Default)]
    struct CountingTestDialer(AtomicUsize);

    impl Dialer for CountingTestDialer {
        fn connect(
            &self,
            _request: DialRequest,
        ) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Box::pin(async {
                // The dialler yields as a real network would, so that a task that redials without a
                // pause does not block the thread.
                tokio::task::yield_now().await;
                Err(DialError::new(DialErrorKind::Unreachable, "no route"))
            })
        }
    }

    /// A hub in this process. It has the other end of the one connection that is dialled.
    #[derive(Debug, Default)]
    struct InProcessTestHub(Mutex<Option<Connection>>);

    impl Dialer for InProcessTestHub {
        fn connect(
            &self,
            _request: DialRequest,
        ) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
            let (connection, accepted) = memory_pair(ALPN);
            let auth = AuthContext {
                identity: None,
                key: None,
                alpn: ALPN.into(),
                sni: None,
                remote_addr: None,
                carriage: accepted.carriage(),
                early_data: false,
            };
            let handler = CallHandler::new(Arc::new(Dispatcher::new(Registry::empty())));
            *self.0.lock().expect("no test panicked") = Some(accepted.clone());
            tokio::spawn(Arc::new(handler).handle(accepted, auth));
            let keys = Vec::new();
            Box::pin(async { Ok(DialedConnection { connection, keys }) })
        }
    }

    fn context(dialer: Arc<dyn Dialer>) -> JoinContext {
        let document = NodeConfig::default();
        let clock = Arc::new(SystemClock { built_s: 0 });
        let identities = Arc::new(Identities::new(document.entries(), clock));
        let handle = ReloadHandle::new(document, identities);
        JoinContext {
            reloader: Arc::new(Reloader::new(handle, ConfigStore::nowhere(), Vec::new())),
            dispatcher: Arc::new(Dispatcher::new(Registry::empty())),
            dialer,
            own: PeerKey::Ed25519([1; 32]),
            reached: HubConnections::default(),
            unwanted: HubRefusals::default(),
        }
    }

    fn code() -> String {
        let code = JoinCode {
            addresses: vec!["hub:4433".parse().expect("an address")],
            hub: [7; 32],
            token: EnrolToken::generate().expect("randomness"),
            expires: 1,
            role: "worker".parse().expect("a role"),
        };
        code.encode().expect("short")
    }

    fn config(text: &str) -> NodeConfig {
        NodeConfig::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    #[test]
    fn a_hub_is_a_peer_as_soon_as_its_key_is_known() {
        let mut joined = config(&format!("[[join]]\ncode = \"{}\"", code()));
        assert!(joined.entries().peers.is_empty());
        fill_in(&mut joined);
        let hub = &joined.entries().peers[0];
        assert_eq!(hub.keys, [PeerKey::Ed25519([7; 32])]);
        let place = HubAddress::from_config(&joined.join[0]).expect("a place");
        assert_eq!(place.targets[0].address(), "hub:4433");
        assert!(place.token().is_some_and(|token| token.starts_with("ale_")));
        assert!(problems(&joined).is_empty());
    }

    #[test]
    fn a_damaged_join_string_is_a_problem_and_not_shown() {
        let text = code();
        let joined = config(&format!("[[join]]\ncode = \"{}\"", &text[..text.len() - 1]));
        let found = problems(&joined);
        assert_eq!(found.len(), 1);
        assert!(found[0].text.contains("join[0].code") && found[0].text.contains("damaged"));
        assert!(!found[0].text.contains(&text[20..40]));
        assert!(HubAddress::from_config(&joined.join[0]).is_none());
    }

    #[test]
    fn a_hub_by_address_is_pinned() {
        let key = PeerKey::Ed25519([9; 32]);
        let joined = config(&format!("[[join]]\naddress = \"hub\"\nkey = \"{key}\""));
        let place = HubAddress::from_config(&joined.join[0]).expect("a place");
        assert_eq!(place.targets[0].to_string(), format!("{key}@hub:443"));
        assert!(place.token().is_none());
    }

    /// The pauses double from a thousandth of the usual one: half a second has about ten dials, and
    /// a few more if a busy machine makes it longer. Without pauses it would have hundreds.
    #[tokio::test]
    async fn a_hub_that_is_not_there_is_dialled_with_pauses_that_double() {
        let joined = config(&format!("[[join]]\ncode = \"{}\"", code()));
        let place = HubAddress::from_config(&joined.join[0]).expect("a place");
        let dialer = Arc::new(CountingTestDialer::default());
        let context = Arc::new(context(Arc::clone(&dialer) as _));
        let (_stop, stopped) = watch::channel(false);
        let pauses = Backoff::new(PAUSE_FIRST / 1000, PAUSE_MAX);
        let kept = tokio::spawn(keep_connected(context, place, pauses, stopped));
        sleep(Duration::from_millis(500)).await;
        kept.abort();
        let dials = dialer.0.load(Ordering::SeqCst);
        assert!((1..30).contains(&dials), "{dials} dials");
    }

    /// The hub closes the connection as it does when an administrator removes the node, or as it does when it stops.
    #[tokio::test]
    async fn a_hub_that_put_the_node_out_is_a_problem_at_once() {
        let joined = config(&format!("[[join]]\ncode = \"{}\"", code()));
        let place = HubAddress::from_config(&joined.join[0]).expect("a place");
        for (code, refused) in [(CloseCode::Policy, 1), (CloseCode::Shutdown, 0)] {
            let hub = Arc::new(InProcessTestHub::default());
            let context = context(Arc::clone(&hub) as _);
            let (reached, unwanted) = (context.reached.clone(), context.unwanted.clone());
            let to = place.clone();
            let kept = tokio::spawn(async move { run_connection(&context, &to).await });
            let connected = async {
                while reached.get(&place.key).is_none() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(deadline(Duration::from_secs(60)), connected)
                .await
                .expect("it knows this node");
            let accepted = hub.0.lock().expect("no test panicked").take();
            let accepted = accepted.expect("it was dialled");
            accepted.close(code, "revoked");
            timeout(deadline(Duration::from_secs(60)), kept)
                .await
                .expect("the connection has ended")
                .expect("no panic");
            let problems = unwanted.problems();
            assert_eq!(problems.len(), refused, "{code}: {problems:?}");
            let says_why = problems.iter().all(|it| it.text.contains("(revoked)"));
            assert!(says_why, "{problems:?}");
        }
    }

    #[test]
    fn pauses_double_from_a_second_to_a_minute() {
        let mut pauses = PAUSES;
        let bounds: Vec<_> = (0..8).map(|_| pauses.next(u32::MAX).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
