//! A node in this process that serves HTTP and the operations of these tests.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use alknet_call::{CallHandler, Dispatcher};
use alknet_core::config::NodeConfig;
use alknet_core::{AuthToken, HandlerRegistry, Identities, SystemClock};
use alknet_endpoint::{EndpointLimits, EndpointServer, ServerOptions};
use alknet_gateway::Gateway;
use alknet_http::{DescriptionSource, HealthSource, HttpHandler, HttpHandlerParts, HttpSettings};
use alknet_tls::NodeKey;
use bytes::Bytes;

use super::service::{SCOPE, operations};

/// The node. It ends on drop.
pub(crate) struct GatewayTestNode {
    server: EndpointServer,
    /// A token that may call the operations.
    pub(crate) token: String,
}

struct HealthyNode;

impl HealthSource for HealthyNode {
    fn degraded(&self) -> Option<String> {
        None
    }
}

struct EmptyPage;

impl DescriptionSource for EmptyPage {
    fn text(&self, _digest: &str) -> Bytes {
        Bytes::from_static(b"{}")
    }
}

impl GatewayTestNode {
    /// Starts it. Pages of these origins may call it.
    pub(crate) fn start(origins: &[String]) -> Self {
        let token = AuthToken::generate().expect("the system has entropy");
        let hash = token.hash().expect("a token").to_string();
        let (id, sha256) = hash.split_once(':').expect("two parts");
        let mut document = format!(
            "[[api_keys]]\nkey_id = \"{id}\"\nsha256 = \"{sha256}\"\nscopes = [\"{SCOPE}\"]\n"
        );
        writeln!(
            document,
            "[http]\nrequests_per_second = 10000\nrequests_burst = 10000\n\
             unknown_peer_requests_per_second = 10000\ncors = {{ origins = {origins:?} }}"
        )
        .expect("text grows");
        let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let identities = Arc::new(Identities::new(config.entries(), clock));
        let dispatcher =
            Dispatcher::new(operations()).with_identities(Arc::clone(&identities) as _);
        let dispatcher = Arc::new(dispatcher);
        let parts = HttpHandlerParts {
            dispatcher: Arc::clone(&dispatcher),
            gateway: Arc::new(Gateway::default()),
            settings: HttpSettings::new(&config),
            health: Arc::new(HealthyNode),
            document: Arc::new(EmptyPage),
            challenges: None,
            mcp: None,
            page: None,
            websocket: true,
            site: None,
            mounts: Vec::new(),
            routes: Vec::new(),
        };
        let http = HttpHandler::new(parts, true).expect("no two parts want one path");
        let mut handlers = HandlerRegistry::new();
        let call = Arc::new(CallHandler::new(dispatcher));
        handlers.register(call).expect("the first");
        handlers.register(Arc::new(http)).expect("another protocol");
        let key = NodeKey::generate().expect("a key");
        let options = ServerOptions {
            port: 0,
            limits: EndpointLimits::default(),
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, handlers, identities);
        Self {
            server: server.expect("a free port"),
            token: token.expose().to_owned(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.server.port()).into()
    }

    /// The URL for WebSockets.
    pub(crate) fn session_url(&self) -> String {
        format!("wss://{}/alknet/call", self.address())
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address())
    }
}
