//! The node as a peer of hubs: `[[join]]`. Each hub is dialled, enrolled with where it does not know
//! this node yet, and kept; it may call what this node serves, as this node's own document allows.
//!
//! `alknet_call::ReconnectingClient` keeps a peer, too, and gives up where this must not: a hub that does
//! not want this node today may want it tomorrow. It also knows one address, and no enrolment
//! between one connection and the next. So the loop is this module's own; when to come back is
//! decided in one place for both, `Backoff` and `CloseReason::pause`.

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

/// The problem of a node that a hub does not take, or put out. Nothing is wrong with the node.
pub(crate) const HUB_REFUSES: &str = "hub-refuses";
/// Longest first pause between attempts.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Between one end and the next dial.
const PAUSES: Backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
/// A connection that lasted this long was a good one.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long a hub that does not want this node is left alone.
const UNWANTED: Duration = Duration::from_secs(60);
/// Time for a hub to say whether it knows this node.
const WHOAMI: Duration = Duration::from_secs(15);

/// Puts the keys of hubs in, as far as their join strings say them: then the hubs are peers.
pub(crate) fn fill_in(config: &mut NodeConfig) {
    for join in &mut config.join {
        if let Some(Ok(code)) = join.code.as_ref().map(|code| code.parse::<JoinCode>()) {
            // With the key in the configuration the hub is a known peer, whose calls the node takes.
            join.key = Some(code.key().to_string());
        }
    }
}

/// What is wrong with the join strings of a document.
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

/// The hubs this node keeps.
pub(crate) struct HubMemberships {
    stop: watch::Sender<bool>,
    unwanted: HubRefusals,
}

/// What every one of them is kept with.
pub(crate) struct JoinContext {
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) dialer: Arc<dyn Dialer>,
    /// This node's own key: a node does not join itself.
    pub(crate) own: PeerKey,
    /// Where connections are noted while they are up.
    pub(crate) reached: HubConnections,
    /// Where hubs are noted that do not want this node.
    pub(crate) unwanted: HubRefusals,
}

/// Hubs that do not take this node, or no longer, with what each says. Clones share them.
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

    /// Forgets those that are not joined any more.
    fn keep(&self, wanted: &[HubAddress]) {
        self.lock()
            .retain(|hub, _| wanted.iter().any(|place| place.key == *hub));
    }

    fn problems(&self) -> Vec<MachineDiagnostic> {
        let all = self.lock();
        let problem = |why: &String| {
            MachineDiagnostic {
            code: HUB_REFUSES.to_owned(),
            text: why.clone(),
            hint: "ask an administrator of the hub for a new join string, or take the hub out of [[join]]"
                .to_owned(),
        }
        };
        all.values().map(problem).collect()
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

    /// Hubs that do not take this node.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        self.unwanted.problems()
    }

    /// Stops dialling hubs. Open connections stay until they end.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// One task for each hub, as the document in force has it.
async fn supervise(context: Arc<JoinContext>, mut stopped: watch::Receiver<bool>) {
    let mut changes = context.reloader.watch();
    let mut kept: HashMap<HubAddress, JoinHandle<()>> = HashMap::new();
    loop {
        let wanted = wanted(&context);
        context.unwanted.keep(&wanted);
        kept.retain(|hub, task| {
            let stays = wanted.contains(hub);
            if !stays {
                // The connection ends with the task, before a new entry for the same hub connects.
                task.abort();
            }
            stays
        });
        for hub in wanted {
            let (context, stopped) = (Arc::clone(&context), stopped.clone());
            kept.entry(hub.clone())
                .or_insert_with(|| tokio::spawn(keep(context, hub, PAUSES, stopped)));
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = stop_of(&mut stopped) => return,
        }
    }
}

/// Resolves once dialling was stopped.
async fn stop_of(stopped: &mut watch::Receiver<bool>) {
    // An error would mean that the node is gone, which is stopping too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn wanted(context: &JoinContext) -> Vec<HubAddress> {
    let current = context.reloader.current();
    for problem in problems(&current.config) {
        tracing::warn!("{}; {}", problem.text, problem.hint);
    }
    places(&current.config, &context.own)
}

/// The keys of the hubs that a node with the key `own` joins by this document.
pub(crate) fn hubs(config: &NodeConfig, own: &PeerKey) -> Vec<PeerKey> {
    places(config, own).iter().map(|hub| hub.key).collect()
}

fn places(config: &NodeConfig, own: &PeerKey) -> Vec<HubAddress> {
    let places = config.join.iter().filter_map(HubAddress::from_config);
    let mut wanted: Vec<HubAddress> = Vec::new();
    for hub in places.filter(|hub| hub.key != *own) {
        // Of two ways to one hub the first counts: two connections would take turns.
        if wanted.iter().all(|known| known.key != hub.key) {
            wanted.push(hub);
        }
    }
    wanted
}

/// A hub, and the way to it.
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

/// How it went with a hub, and so how long to leave it alone at least.
enum HubConnectionEnd {
    /// The connection ended, there was none, or the next one will be that of a peer.
    Lost(Duration),
    /// It does not want this node, or not yet.
    Unwanted(Duration),
}

async fn keep(
    context: Arc<JoinContext>,
    hub: HubAddress,
    mut pauses: Backoff,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let began = Instant::now();
        let ended = once(&context, &hub).await;
        if *stopped.borrow() {
            // A connection that the stop itself ended is no reason for another one.
            return;
        }
        // Only after a long one: a hub that lets the node in and drops it would else be asked without a pause.
        if began.elapsed() >= HEALTHY {
            pauses.reset();
        }
        let pause = match ended {
            HubConnectionEnd::Lost(at_least) => pauses.next(random()).max(at_least),
            // The random part comes on top, so that many nodes that were refused together do not return together.
            HubConnectionEnd::Unwanted(at_least) => at_least + pauses.next(random()),
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = stop_of(&mut stopped) => return,
        }
    }
}

/// From the dial to the end of the connection.
async fn once(context: &JoinContext, hub: &HubAddress) -> HubConnectionEnd {
    let connection = match connect(context, hub).await {
        Ok(connection) => connection,
        Err(ended) => return ended,
    };
    match knows_us(&connection).await {
        Ok(true) => context.unwanted.clear(&hub.key),
        Ok(false) => {
            connection.close(CloseCode::Normal, "");
            // The hub answers and does not know the key: the token of the join string is what makes it known.
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
                    // Such as another key at the address, which asking more often does not change.
                    at_least = UNWANTED;
                }
                tracing::warn!(%hub, at = target.address(), %error, "join.failed");
            }
        }
    }
    Err(HubConnectionEnd::Lost(at_least))
}

/// Whether the other side takes us for a peer. One that is no hub has its own way of knowing.
async fn knows_us(connection: &CallConnection) -> Result<bool, CallError> {
    let asked = timeout(WHOAMI, connection.call("hub/whoami", &Value::Null)).await;
    match asked.unwrap_or_else(|_| Err(CallError::unavailable("no answer in time"))) {
        Ok(answer) => Ok(!answer.value()["peer_id"].is_null()),
        // A program that has no such operation is no hub that enrols, and the connection is of use all the same.
        Err(error) if error.code == ErrorCode::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

async fn enrol_with(context: &JoinContext, hub: &HubAddress) -> HubConnectionEnd {
    let request = JoinRequest {
        token: hub.token(),
        name: context.reloader.current().config.node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
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
            let asked = refusal.retry_after_ms.map(Duration::from_millis);
            HubConnectionEnd::Unwanted(asked.unwrap_or(UNWANTED))
        }
        Err(error) => {
            tracing::warn!(%hub, %error, "join.failed");
            HubConnectionEnd::Lost(Duration::ZERO)
        }
    }
}

fn random() -> u32 {
    // Without randomness every pause is a long one, which is safe.
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

    /// Fails every dial, and counts them.
    #[derive(Debug, Default)]
    struct CountingTestDialer(AtomicUsize);

    impl Dialer for CountingTestDialer {
        fn connect(
            &self,
            _request: DialRequest,
        ) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Box::pin(async {
                // Yields as a real network would, so that a task that redials without a pause does not keep the thread.
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

    /// From a thousandth of the usual pause they double: half a second has about ten dials, and a moment that gets long
    /// on a busy machine a few more. Without that it has hundreds.
    #[tokio::test]
    async fn a_hub_that_is_not_there_is_dialled_with_pauses_that_double() {
        let joined = config(&format!("[[join]]\ncode = \"{}\"", code()));
        let place = HubAddress::from_config(&joined.join[0]).expect("a place");
        let dialer = Arc::new(CountingTestDialer::default());
        let context = Arc::new(context(Arc::clone(&dialer) as _));
        let (_stop, stopped) = watch::channel(false);
        let pauses = Backoff::new(PAUSE_FIRST / 1000, PAUSE_MAX);
        let kept = tokio::spawn(keep(context, place, pauses, stopped));
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
            let kept = tokio::spawn(async move { once(&context, &to).await });
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
