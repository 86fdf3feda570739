//! A node in this process, whose state a test can read.

use std::sync::Arc;

use alknet_call::{CallHandler, Dispatcher, Registry};
use alknet_core::config::NodeConfig;
use alknet_core::{HandlerRegistry, Identities, SystemClock};
use alknet_endpoint::{EndpointLimits, EndpointServer, ServerOptions};
use alknet_tls::NodeKey;

/// A node that serves calls on a free port.
pub(crate) struct LocalNode {
    pub(crate) server: EndpointServer,
    pub(crate) key: NodeKey,
    pub(crate) identities: Arc<Identities>,
}

impl LocalNode {
    /// Serves these operations to the peers in this document.
    pub(crate) fn start(config: &NodeConfig, operations: Registry, limits: EndpointLimits) -> Self {
        let clock = Arc::new(SystemClock { built_s: 0 });
        let identities = Arc::new(Identities::new(config.entries(), clock));
        let dispatcher = Dispatcher::new(operations).with_identities(Arc::clone(&identities) as _);
        let mut handlers = HandlerRegistry::new();
        handlers
            .register(Arc::new(CallHandler::new(Arc::new(dispatcher))))
            .expect("the only one");
        let key = NodeKey::generate().expect("a key");
        let options = ServerOptions {
            port: 0,
            limits,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, handlers, Arc::clone(&identities) as _);
        Self {
            server: server.expect("a free port"),
            key,
            identities,
        }
    }
}
