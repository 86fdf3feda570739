//! `node/metrics`: the metrics of every part of the node, in the Prometheus text format.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use alknet_call::{CallError, Dispatcher, HandlerKind, OperationSpec, Registration};
use alknet_core::Metrics;
use alknet_core::metrics::CONTENT_TYPE;
use alknet_gateway::Gateway;
use alknet_tls::CertificateStore;
use serde_json::json;

use super::computing::NodeComputing;
use super::facts;
use super::file_store::NodeFileStore;
use super::identity_services::IdentityServices;
use super::ops::empty_input;
use super::storage::NodeStorage;
use super::update::NodeUpdates;

/// Scope of callers that may read the metrics.
const SCOPE: &str = "metrics:read";

/// The sources of the metrics. Clones share them. The HTTP route of metrics has one, too.
#[derive(Clone)]
pub(crate) struct NodeMetrics {
    identities: IdentityServices,
    parts: Arc<MetricsSources>,
}

/// The sources that exist only after the operations were made.
#[derive(Default)]
struct MetricsSources {
    dispatcher: OnceLock<Weak<Dispatcher>>,
    certificates: OnceLock<Arc<CertificateStore>>,
    computing: OnceLock<NodeComputing>,
    file_store: OnceLock<NodeFileStore>,
    gateway: OnceLock<Arc<Gateway>>,
    updates: OnceLock<NodeUpdates>,
    storage: OnceLock<NodeStorage>,
}

impl NodeMetrics {
    /// Metrics of a node whose server is, or will be, that of `identity_services`.
    pub(crate) fn new(identity_services: IdentityServices) -> Self {
        Self {
            identities: identity_services,
            parts: Arc::default(),
        }
    }

    // A strong reference would be a cycle: the dispatcher has the operation, and the operation has
    // this.
    pub(crate) fn set_dispatcher(&self, dispatcher: &Arc<Dispatcher>) {
        let weak = Arc::downgrade(dispatcher);
        self.parts.dispatcher.get_or_init(|| weak);
    }

    pub(crate) fn set_certificates(&self, store: Arc<CertificateStore>) {
        self.parts.certificates.get_or_init(|| store);
    }

    pub(crate) fn set_computing(&self, computing: &NodeComputing) {
        self.parts.computing.get_or_init(|| computing.clone());
    }

    pub(crate) fn set_file_store(&self, file_store: &NodeFileStore) {
        self.parts.file_store.get_or_init(|| file_store.clone());
    }

    pub(crate) fn set_gateway(&self, gateway: &Arc<Gateway>) {
        self.parts.gateway.get_or_init(|| Arc::clone(gateway));
    }

    pub(crate) fn set_updates(&self, updates: &NodeUpdates) {
        self.parts.updates.get_or_init(|| updates.clone());
    }

    pub(crate) fn set_storage(&self, storage: &NodeStorage) {
        self.parts.storage.get_or_init(|| storage.clone());
    }

    /// The number of calls and of requests over HTTP since the node started.
    pub(crate) fn requests(&self) -> u64 {
        let dispatcher = self.parts.dispatcher.get().and_then(Weak::upgrade);
        let calls = dispatcher.map_or(0, |dispatcher| dispatcher.stats().requests);
        let http = self.parts.gateway.get().map_or(0, |it| it.requests());
        calls.wrapping_add(http)
    }

    /// Reads every metric.
    pub(crate) fn collect(&self) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.gauge(
            "alknet_build_info",
            "Always 1; the label says what runs.",
            &[("version", alknet_init::image_version())],
            1.0,
        );
        metrics.gauge(
            "alknet_config_generation",
            "Number of the configuration in force.",
            &[],
            self.identities.reloader.current().generation as f64,
        );
        memory(&mut metrics);
        if let Some(server) = self.identities.server.get() {
            server.collect(&mut metrics);
        }
        if let Some(computing) = self.parts.computing.get() {
            computing.collect(&mut metrics);
        }
        if let Some(file_store) = self.parts.file_store.get() {
            file_store.collect(&mut metrics);
        }
        let dispatcher = self.parts.dispatcher.get().and_then(Weak::upgrade);
        if let Some(dispatcher) = dispatcher {
            dispatcher.collect(&mut metrics);
        }
        if let Some(gateway) = self.parts.gateway.get() {
            gateway.collect(&mut metrics);
        }
        if let Some(updates) = self.parts.updates.get() {
            updates.collect(&mut metrics);
        }
        if let Some(storage) = self.parts.storage.get() {
            storage.collect(&mut metrics);
        }
        if let Some(store) = self.parts.certificates.get() {
            certificates(store, &mut metrics);
        }
        metrics
    }
}

impl fmt::Debug for NodeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeMetrics")
    }
}

/// Adds the kernel's figures of the process's memory.
fn memory(into: &mut Metrics) {
    if let Some(bytes) = facts::resident_bytes() {
        into.gauge(
            "alknet_resident_bytes",
            "Memory of the node's process.",
            &[],
            bytes as f64,
        );
    }
    if let Some(bytes) = facts::resident_peak_bytes() {
        into.gauge(
            "alknet_resident_peak_bytes",
            "The most memory that the node's process has had since it started.",
            &[],
            bytes as f64,
        );
    }
}

/// Adds one series for each certificate, under the first of its names.
fn certificates(store: &CertificateStore, into: &mut Metrics) {
    let mut seen = Vec::new();
    for one in store.list() {
        // The node serves the first certificate of a name. Two series with the same label would not
        // be valid in the text format.
        let Some(name) = one.names.first().filter(|name| !seen.contains(*name)) else {
            continue;
        };
        into.gauge(
            "alknet_cert_expiry_seconds",
            "End of a certificate's validity, in seconds of Unix time.",
            &[("name", name)],
            one.not_after as f64,
        );
        seen.push(name.clone());
    }
}

/// `node/metrics`
pub(crate) fn operation(metrics: NodeMetrics) -> Registration {
    let spec = OperationSpec::query("node/metrics", "Returns the metrics of this node.")
        .with_input(empty_input())
        .with_output(json!({
            "type": "object",
            "required": ["content_type", "text", "values"],
            "properties": {
                "content_type": { "type": "string" },
                "text": { "type": "string", "description": "The Prometheus text format" },
                "values": { "type": "object", "additionalProperties": { "type": "number" },
                            "description": "The same numbers, each by its series" },
            }
        }))
        .with_scope(SCOPE);
    let handler = HandlerKind::once(move |_input, _ctx| {
        let metrics = metrics.collect();
        let answer = json!({
            "content_type": CONTENT_TYPE,
            "text": metrics.to_text(),
            "values": metrics.values(),
        });
        std::future::ready(Ok::<_, CallError>(answer))
    });
    Registration::new(spec, handler)
}
