//! HTTP on the one port: HTTP/1.1, HTTP/2 and HTTP/3 in front of one router.
//!
//! [`HttpHandler`] is the handler of the ALPNs `h2`, `http/1.1` and `h3`. A request takes the same steps in each
//! framing: it gets an id, its head is bounded, its host is checked, its token is authenticated, and the router finds
//! the part that responds: the gateway's own paths, mounted parts, routes of the application that embeds this crate,
//! a static site, or the decoy.
//!
//! `docs/http.md` documents the shapes of the gateway, and [`limits`] its limits.
//!
//! This example is a node without operations, and a client that asks for its health:
//!
//! ```
//! use std::sync::Arc;
//!
//! use alknet_call::{Dispatcher, Registry};
//! use alknet_core::config::NodeConfig;
//! use alknet_core::{AuthContext, ProtocolHandler, memory_pair};
//! use alknet_gateway::Gateway;
//! use alknet_http::{
//!     ALPN_HTTP1, DescriptionSource, HealthSource, HttpHandler, HttpHandlerParts, HttpSettings,
//! };
//! use bytes::Bytes;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! /// A node that is well and describes nothing.
//! struct Well;
//!
//! impl HealthSource for Well {
//!     fn degraded(&self) -> Option<String> {
//!         None
//!     }
//! }
//!
//! impl DescriptionSource for Well {
//!     fn text(&self, _digest: &str) -> Bytes {
//!         Bytes::from_static(b"{}")
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let operations = Registry::builder().build()?;
//!     let parts = HttpHandlerParts {
//!         dispatcher: Arc::new(Dispatcher::new(operations)),
//!         gateway: Arc::new(Gateway::default()),
//!         settings: HttpSettings::new(&NodeConfig::default()),
//!         health: Arc::new(Well),
//!         document: Arc::new(Well),
//!         challenges: None,
//!         mcp: None,
//!         page: None,
//!         websocket: false,
//!         site: None,
//!         mounts: Vec::new(),
//!         routes: Vec::new(),
//!     };
//!     let handler = Arc::new(HttpHandler::new(parts, true)?);
//!
//!     // Both ends in this process; a node's endpoint does this for each connection that it accepts.
//!     let (client, accepted) = memory_pair(ALPN_HTTP1);
//!     let auth = AuthContext {
//!         identity: None,
//!         key: None,
//!         alpn: ALPN_HTTP1.into(),
//!         sni: None,
//!         remote_addr: None,
//!         carriage: accepted.carriage(),
//!         early_data: false,
//!     };
//!     tokio::spawn(handler.handle(accepted, auth));
//!
//!     let (mut send, mut recv) = client.open_bi().await?;
//!     let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
//!     send.write_all(request.as_bytes()).await?;
//!     let mut response = String::new();
//!     recv.read_to_string(&mut response).await?;
//!     assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
//!     assert!(response.ends_with("\r\n\r\nok\n"), "{response}");
//!     Ok(())
//! }
//! ```

pub mod limits;
pub mod port80;

mod access;
mod alt_svc;
mod answer;
mod api;
mod authority;
mod connection;
mod cors;
mod framing;
mod hosts;
mod request_body;
mod router;
mod routes;
mod settings;
mod shared;
mod site;
mod ws;

use std::sync::Arc;

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, Carriage, Connection, HandlerError, ProtocolHandler,
};
use tokio::sync::watch;

use connection::HttpConnection;
use framing::TcpHttpVersion;

pub use access::UNKNOWN_ACCESS_TARGET;
pub use alt_svc::PublicReachability;
pub use routes::RouteError;
pub use settings::HttpSettings;
pub use shared::{
    AcmeChallenges, DescriptionSource, HealthSource, HttpHandlerParts, MountResponder,
};

use shared::HttpShared;

/// The ALPN of HTTP/1.1 (RFC 7301 section 6).
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
/// The ALPN of HTTP/2 (RFC 9113 section 3.1).
pub const ALPN_HTTP2: &[u8] = b"h2";
/// The ALPN of HTTP/3 (RFC 9114 section 3.1).
pub const ALPN_HTTP3: &[u8] = b"h3";

/// Serves HTTP.
#[derive(Debug)]
pub struct HttpHandler {
    shared: Arc<HttpShared>,
    alpns: Vec<AlpnSpec>,
    draining: watch::Sender<bool>,
}

impl HttpHandler {
    /// Makes a handler from its parts. `h3` says whether it also serves HTTP/3.
    ///
    /// # Errors
    /// Two parts use the same path.
    pub fn new(parts: HttpHandlerParts, h3: bool) -> Result<Self, RouteError> {
        let mut alpns = vec![
            spec(ALPN_HTTP2, Carriage::Tcp),
            spec(ALPN_HTTP1, Carriage::Tcp),
        ];
        if h3 {
            alpns.insert(0, spec(ALPN_HTTP3, Carriage::Quic));
        }
        Ok(Self {
            shared: HttpShared::new(parts, h3)?,
            alpns,
            draining: watch::Sender::new(false),
        })
    }

    /// Replaces the settings.
    pub fn set(&self, settings: HttpSettings) {
        self.shared.set(settings);
    }

    /// Sets how a probe reached the node from outside. Before the first call the node promises nothing to clients.
    pub fn set_reachability(&self, seen: PublicReachability) {
        self.shared.set_reachability(seen);
    }
}

fn spec(id: &'static [u8], carriage: Carriage) -> AlpnSpec {
    AlpnSpec {
        carriage,
        // A client may authenticate by a token in a request, after the connection has begun.
        auth: AuthNeed::Late,
        limits: limits::BUDGET,
        ..AlpnSpec::new(id)
    }
}

impl ProtocolHandler for HttpHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        let draining = self.draining.subscribe();
        let shared = &self.shared;
        match connection.alpn() {
            ALPN_HTTP3 => {
                let conn = Arc::new(HttpConnection::new(connection, &auth, "h3", shared));
                Box::pin(framing::serve_quic(conn, draining))
            }
            ALPN_HTTP2 => {
                let conn = Arc::new(HttpConnection::new(connection, &auth, "h2", shared));
                Box::pin(framing::serve_tcp(conn, TcpHttpVersion::Http2, draining))
            }
            _ => {
                let conn = Arc::new(HttpConnection::new(connection, &auth, "http/1.1", shared));
                Box::pin(framing::serve_tcp(conn, TcpHttpVersion::Http1, draining))
            }
        }
    }

    fn drain(&self) -> BoxFuture<'static, ()> {
        self.draining.send_replace(true);
        Box::pin(std::future::ready(()))
    }
}
