//! Registers the operations with which administrators read and change a running node, and has the handlers of `node/info`,
//! `node/log`, `node/poweroff` and `node/reboot`. Those of `config/*`, `node/metrics`, `node/rotate-key`, `peer/list`,
//! `peer/rotate-key`, `token/*` and `vault/*` are in modules of their own. Only a machine with PID 1 and a vault has
//! `vault/lock`, and only one for which the hypervisor switched fault injection on has `node/fault`. Other parts of the node
//! register further operations (`start.rs`).

use std::sync::Arc;

use alknet_call::{
    BoxStream, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration,
    RegistryBuilder, SubscriptionItem,
};
use alknet_core::BoxFuture;
use alknet_escrow::ShareRegistry;
use alknet_init::control::{InitMessage, LogRecord, PowerAction};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::capability_store::CapabilityStore;
use super::config_show;
use super::facts::{self, NodeDescription, SharedFacts};
use super::health::NodeDiagnosticSource;
use super::identity_services::{self, IdentityServices};
use super::log::{LogEntry, LogReader, NodeLogRing};
use super::metrics::{self, NodeMetrics};
use super::node_key_rotation::{self, NodeKeyRotation};
use super::peer_key_rotation;
use super::tokens;
use super::vault::{self, NodeVault};

/// Scope that suffices for every one of these operations.
const SCOPE: &str = "admin";
/// Scope that suffices to read the state of the node.
const READ_SCOPE: &str = "node:read";
/// Default number of past records that `node/log` sends.
const LOG_LAST: usize = 100;
/// Maximum number of past records that one call may ask for.
const LOG_LAST_MAX: usize = 100_000;

/// What these operations use.
#[derive(Clone)]
pub(crate) struct NodeContext {
    /// The facts that stay the same.
    pub(crate) description: Arc<NodeDescription>,
    /// PID 1's facts about the machine.
    pub(crate) facts: SharedFacts,
    /// The log.
    pub(crate) ring: NodeLogRing,
    /// The channel to PID 1. `None` on an ordinary host.
    pub(crate) to_init: Option<mpsc::Sender<InitMessage>>,
    /// Counters of the endpoint.
    pub(crate) counters: Arc<dyn Fn() -> Value + Send + Sync>,
    /// The identities that may connect, and the configuration that names them.
    pub(crate) identities: IdentityServices,
    /// The sources of the metrics.
    pub(crate) metrics: NodeMetrics,
    /// The problems that only the node knows.
    pub(crate) store_problems: NodeDiagnosticSource,
    /// The node's key, and its rotation.
    pub(crate) key_rotation: Arc<NodeKeyRotation>,
    /// `None` if the key is in a file.
    pub(crate) vault: Option<NodeVault>,
    /// What operations may do with the node's secrets.
    pub(crate) capabilities: CapabilityStore,
}

/// Adds the operations to a registry.
pub(crate) fn register(
    builder: &mut RegistryBuilder,
    node: &NodeContext,
    shares: &Arc<ShareRegistry>,
) {
    builder.add(identity_services::apply(node.identities.clone()));
    let facts = Arc::clone(&node.facts);
    builder.add(config_show::operation(node.identities.clone(), facts));
    builder.add(info(node.clone()));
    builder.add(log(node.ring.clone()));
    builder.add(metrics::operation(node.metrics.clone()));
    builder.add(power(node.clone(), PowerAction::Reboot));
    builder.add(power(node.clone(), PowerAction::Poweroff));
    builder.add(node_key_rotation::operation(Arc::clone(&node.key_rotation)));
    builder.add(identity_services::list(node.identities.clone()));
    builder.add(tokens::list(node.identities.clone()));
    builder.add(tokens::make(node.identities.clone()));
    builder.add(tokens::revoke(node.identities.clone()));
    let (vault, capabilities) = (node.vault.clone(), node.capabilities.clone());
    builder.add(vault::status(
        Arc::clone(&node.facts),
        vault,
        capabilities.clone(),
    ));
    // Only a machine with PID 1 has a console at which a person can open the vault again.
    if let (Some(vault), Some(to_init)) = (&node.vault, &node.to_init) {
        builder.add(vault::lock(vault.clone(), to_init.clone(), capabilities));
    }
    builder.add(peer_key_rotation::operation(
        node.identities.clone(),
        Arc::clone(&node.description),
        Arc::clone(shares),
    ));
    // Only a machine that was started for tests has this operation.
    if node.facts.load().fault_injection {
        builder.add(super::fault::operation(node.clone()));
    }
}

fn info(node: NodeContext) -> Registration {
    let mut spec = OperationSpec::query("node/info", "Returns the node's identity and problems.")
        .with_input(empty_input())
        .with_output(facts::info_schema());
    let either = [SCOPE, READ_SCOPE].map(str::to_owned);
    spec.access_control.required_scopes_any = Some(either.to_vec());
    let handler = HandlerKind::once(move |_input, _ctx| {
        let facts = node.facts.load_full();
        let own = node.store_problems.get();
        // Before the node has started, only the problems of the configuration and of the store are
        // known.
        let own = own.map_or_else(|| node.identities.problems(), |problems| problems());
        let answer = facts::info(
            &node.description,
            &facts,
            &node.identities,
            &own,
            (node.counters)(),
        );
        std::future::ready(Ok::<_, CallError>(answer))
    });
    Registration::new(spec, handler)
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LogInput {
    last: usize,
    follow: bool,
}

impl Default for LogInput {
    fn default() -> Self {
        Self {
            last: LOG_LAST,
            follow: false,
        }
    }
}

fn log(ring: NodeLogRing) -> Registration {
    let input = json!({
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": {
            "last": { "type": "integer", "minimum": 0, "maximum": LOG_LAST_MAX, "default": LOG_LAST,
                      "description": "How many records of the past to send first" },
            "follow": { "type": "boolean", "default": false,
                        "description": "Whether to send each new record, too" },
        }
    });
    let output = json!({
        "type": "object",
        "required": ["boot_ms", "level", "target", "message"],
        "properties": {
            "boot_ms": { "type": "integer" }, "time": { "type": "string" },
            "level": { "type": "string" }, "target": { "type": "string" },
            "message": { "type": "string" },
        }
    });
    let spec = OperationSpec::subscription("node/log", "Sends kept and new records of the log.")
        .with_input(input)
        .with_output(output)
        .with_scope(SCOPE);
    let handler = HandlerKind::stream(move |input: alknet_call::CallBody, ctx| {
        let events: BoxStream<Result<SubscriptionItem, CallError>> = match log_input(&input) {
            Ok(request) => log_events(&ring, &request, &ctx),
            Err(error) => Box::pin(stream::iter([Err(error)])),
        };
        events
    });
    Registration::new(spec, handler)
}

fn log_input(input: &alknet_call::CallBody) -> Result<LogInput, CallError> {
    if input.is_null() {
        Ok(LogInput::default())
    } else {
        input.parse()
    }
}

fn log_events(
    ring: &NodeLogRing,
    request: &LogInput,
    ctx: &Ctx,
) -> BoxStream<Result<SubscriptionItem, CallError>> {
    let events = LogEvents {
        reader: ring.read(request.last, request.follow),
        drain: match request.follow {
            true => Box::pin(ctx.draining()),
            // It ends by itself, after the records of the past.
            false => Box::pin(std::future::pending()),
        },
        end: None,
    };
    Box::pin(stream::unfold(Some(events), |events| async move {
        events?.next().await
    }))
}

/// The events of `node/log`.
struct LogEvents {
    reader: LogReader,
    /// Resolves with the error that ends a followed log once the node drains.
    drain: BoxFuture<'static, CallError>,
    /// That error, once the node drains.
    end: Option<CallError>,
}

impl LogEvents {
    async fn next(mut self) -> Option<(Result<SubscriptionItem, CallError>, Option<Self>)> {
        loop {
            tokio::select! {
                biased;
                // A followed log has no end of its own. Records from before the drain, such as the reason for it, are
                // still sent.
                error = &mut self.drain, if self.end.is_none() => {
                    self.end = Some(error);
                    self.reader.stop();
                }
                entry = self.reader.next() => {
                    return match entry {
                        Some(LogEntry::Lost(lost)) => Some((Ok(event(&missed(lost))), Some(self))),
                        Some(LogEntry::Record(record)) => Some((Ok(event(&record)), Some(self))),
                        None => Some((Err(self.end?), None)),
                    };
                }
            }
        }
    }
}

fn event(record: &LogRecord) -> SubscriptionItem {
    SubscriptionItem::from(json!(record))
}

/// A record that says that a slow reader missed some of the log.
fn missed(lost: u64) -> LogRecord {
    LogRecord {
        boot_ms: super::log::boot_ms(),
        time: super::log::now(),
        level: "warn".to_owned(),
        target: "log".to_owned(),
        message: format!("{lost} records were lost: this reader is slower than the log"),
    }
}

fn power(node: NodeContext, action: PowerAction) -> Registration {
    let (name, what) = match action {
        PowerAction::Poweroff => ("node/poweroff", "Switches the machine off, after a drain."),
        PowerAction::Reboot => ("node/reboot", "Restarts the machine, after a drain."),
    };
    let spec = OperationSpec::mutation(name, what)
        .with_input(empty_input())
        .with_output(json!({ "type": "object", "properties": { "accepted": { "const": true } } }))
        .with_scope(SCOPE);
    let handler = HandlerKind::once(move |_input, ctx: Ctx| {
        let to_init = node.to_init.clone();
        let by = caller(&ctx);
        async move {
            let message = InitMessage::Power { action, by };
            let sent = match &to_init {
                Some(to_init) => to_init.send(message).await.is_ok(),
                // On a host, the node may not switch the machine.
                None => false,
            };
            if sent {
                Ok(json!({ "accepted": true }))
            } else {
                Err(no_machine())
            }
        }
    });
    Registration::new(spec, handler)
}

/// The caller's name for the log.
pub(super) fn caller(ctx: &Ctx) -> String {
    let who = ctx.identity();
    who.map_or_else(|| "unknown peer".to_owned(), |who| who.id.to_string())
}

fn no_machine() -> CallError {
    CallError::new(
        ErrorCode::Unavailable,
        "this node runs on an ordinary host and does not switch it; stop 'alknet serve' instead",
    )
}

/// Schema of an absent input, or of an object without members.
pub(crate) fn empty_input() -> Value {
    json!({ "type": ["object", "null"], "additionalProperties": false })
}

#[cfg(test)]
mod tests {
    use alknet_call::Registry;
    use alknet_core::config::NodeConfig;
    use alknet_init::control::MachineFacts;
    use alknet_tls::NodeKey;
    use arc_swap::ArcSwap;

    use super::*;
    use crate::key::KeyFiles;
    use crate::node::join::HubConnections;
    use crate::node::{ConfigOverlay, ConfigStore};

    /// The running node compiles the schemas when they are first needed.
    #[test]
    fn every_schema_compiles() {
        let facts = MachineFacts {
            fault_injection: true,
            ..MachineFacts::default()
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let identity_services = crate::node::build_identity_services(
            &NodeConfig::default(),
            ConfigOverlay::default(),
            ConfigStore::nowhere(),
            Vec::new(),
            crate::node::store::open(dir.path()),
        );
        let key_rotation = NodeKeyRotation::new(
            Some(KeyFiles::at(dir.path().join("node.key"))),
            NodeKey::from_seed(&[1; 32]),
            identity_services.clone(),
            HubConnections::default(),
            Arc::default(),
        );
        let node = NodeContext {
            store_problems: Arc::default(),
            key_rotation: Arc::new(key_rotation),
            vault: None,
            capabilities: CapabilityStore::new(&NodeConfig::default(), Default::default(), None),
            description: Arc::new(NodeDescription::new(String::new(), "appliance")),
            facts: Arc::new(ArcSwap::from_pointee(facts)),
            ring: NodeLogRing::new(),
            to_init: None,
            counters: Arc::new(|| Value::Null),
            metrics: NodeMetrics::new(identity_services.clone()),
            identities: identity_services,
        };
        let mut builder = Registry::builder();
        let shares = crate::node::escrow::share_registry(dir.path(), None);
        register(&mut builder, &node, &shares);
        crate::node::peer_admin::register(&mut builder, &node.identities, None);
        let mut config = NodeConfig::default();
        config.hub.enabled = true;
        let key = alknet_core::PeerKey::Ed25519([1; 32]);
        let description = Arc::new(NodeDescription::new(key.to_string(), "host"));
        let clock = crate::node::clock();
        let (identity_services, facts) = (&node.identities, &node.facts);
        let hub = crate::node::HubContext::new(
            &config,
            identity_services,
            &description,
            facts,
            clock,
            dir.path(),
        );
        hub.expect("it is one").register(&mut builder);
        let updates =
            crate::node::update::NodeUpdates::of_host_for_tests(&node.identities, &node.facts);
        updates.register(&mut builder);
        let facts = Arc::clone(&node.facts);
        crate::node::storage::NodeStorage::new(None, facts, None).register(&mut builder);
        let registry = builder.build().expect("every schema is one");
        assert!(registry.spec("node/fault").is_some());
        scopes_are_as_users_read_them(&registry);
    }

    /// A hub's user reads which scope the hub lacks at a worker.
    fn scopes_are_as_users_read_them(registry: &Registry) {
        use crate::node::{ADMIN, has_operation, scope_of};
        for spec in registry.specs() {
            // Without its name 'config check' would refuse the operation as a tool.
            let is_known = has_operation(&spec.name) || spec.name == "node/fault";
            assert!(is_known, "{}: add it to known_names.rs", spec.name);
            let rule = &spec.access_control;
            let any: Vec<_> = rule.required_scopes_any.iter().flatten().collect();
            let needs_admin = rule.required_scopes == [ADMIN];
            match scope_of(&spec.name) {
                Some(ADMIN) => assert!(needs_admin && any.is_empty(), "{}", spec.name),
                Some(scope) => {
                    let is_asked = rule.required_scopes == [scope]
                        || any.iter().any(|it| it.as_str() == scope);
                    assert!(is_asked, "{}: {scope}, {rule:?}", spec.name);
                }
                // The harness alone calls it.
                None => assert!(!needs_admin || spec.name == "node/fault", "{}", spec.name),
            }
        }
    }
}
