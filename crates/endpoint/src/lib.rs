//! The one port: QUIC on UDP and TLS on TCP of the same number, as server and as client.
//!
//! [`EndpointServer`] binds, admits, finishes handshakes and hands each connection to the handler that its ALPN
//! names. [`EndpointDialer`] reaches such a port, by pinned key or by public name. An iroh endpoint can stand beside
//! it. Handlers and callers see `alknet-core`'s `Connection` only.
//!
//! This server answers a client with the client's own key. The client dials it by the server's key:
//!
//! ```
//! use std::net::Ipv4Addr;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use alknet_core::{
//!     AlpnSpec, AuthContext, BoxFuture, CloseCode, Connection, HandlerError, HandlerRegistry,
//!     Identities, IdentityEntries, ProtocolHandler, SystemClock,
//! };
//! use alknet_endpoint::{EndpointDialer, EndpointServer, ServerOptions, Target};
//! use alknet_tls::NodeKey;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! const ALPN: &[u8] = b"example/whoami";
//!
//! /// Answers with the key that the client proved in the handshake.
//! struct WhoAmI([AlpnSpec; 1]);
//!
//! impl ProtocolHandler for WhoAmI {
//!     fn alpns(&self) -> &[AlpnSpec] {
//!         &self.0
//!     }
//!
//!     fn handle(
//!         self: Arc<Self>,
//!         connection: Connection,
//!         auth: AuthContext,
//!     ) -> BoxFuture<'static, Result<(), HandlerError>> {
//!         Box::pin(async move {
//!             let key = auth.key.map(|key| key.to_string()).unwrap_or_default();
//!             while let Ok((mut send, _)) = connection.accept_bi().await {
//!                 send.write_all(key.as_bytes()).await?;
//!                 send.shutdown().await?;
//!             }
//!             Ok(())
//!         })
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut handlers = HandlerRegistry::new();
//!     handlers.register(Arc::new(WhoAmI([AlpnSpec::new(ALPN)])))?;
//!     let clock = Arc::new(SystemClock { built_s: 0 });
//!     let known = Arc::new(Identities::new(IdentityEntries::default(), clock));
//!     let options = ServerOptions {
//!         addrs: vec![Ipv4Addr::LOCALHOST.into()],
//!         port: 0,
//!         ..ServerOptions::default()
//!     };
//!     let key = NodeKey::generate()?;
//!     let server = EndpointServer::bind(options, &key, handlers, known)?;
//!
//!     // The key in the address is the one that the server has to prove.
//!     let at = |key: &NodeKey| -> Result<Target, Box<dyn std::error::Error>> {
//!         Ok(format!("{}@127.0.0.1:{}", key.public(), server.port()).parse()?)
//!     };
//!     let own = NodeKey::generate()?;
//!     let dialer = EndpointDialer::new(Some(own.clone()));
//!     let connection = dialer.dial(&at(&key)?, ALPN).await?;
//!     let (mut send, mut recv) = connection.open_bi().await?;
//!     // The server sees a stream with its first byte.
//!     send.write_all(b"?").await?;
//!     let mut answer = String::new();
//!     recv.read_to_string(&mut answer).await?;
//!     assert_eq!(answer, own.public().to_string());
//!     connection.close(CloseCode::Normal, "");
//!
//!     assert!(dialer.dial(&at(&own)?, ALPN).await.is_err());
//!     server.drain(Duration::from_secs(5)).await;
//!     Ok(())
//! }
//! ```

mod accept;
mod admission;
mod closing;
mod connection_slots;
mod counters;
mod dial;
mod error;
mod eviction;
mod hello;
mod iroh;
mod limits;
mod live;
mod metrics;
mod nesting;
mod penalty;
mod plain;
mod quic;
mod self_dial;
mod serve;
mod server;
mod sockets;
mod tcp;
mod windows;

pub use alknet_core::{DialHost, PeerAddr as Target, PeerAddrError as TargetError};

pub use self::iroh::IrohOptions;
pub use counters::EndpointCounters;
pub use dial::{DIAL_TIMEOUT, EndpointDialer};
pub use error::{EndpointDialError, EndpointError};
pub use limits::EndpointLimits;
pub use live::{ConnectionSummary, ReliefScope};
pub use nesting::Nesting;
pub use plain::{PlainListener, plain_listeners};
pub use server::{DrainSummary, EndpointHealth, EndpointServer, ServerOptions};
