//! The types that all parts of alknet share: connections and streams, protocol handlers and their registry,
//! identities and keys, close codes, limits and the node's configuration.
//!
//! Core knows no protocol and no transport. It names what a handler receives and what a carriage (QUIC, TLS over TCP,
//! an in-memory pair) has to provide.
//!
//! A protocol is an implementation of [`ProtocolHandler`]. This one sends back what a peer sends, and the client is
//! in the same process:
//!
//! ```
//! use std::sync::Arc;
//!
//! use alknet_core::{
//!     AlpnSpec, AuthContext, BoxFuture, CloseCode, Connection, HandlerError, HandlerRegistry,
//!     ProtocolHandler, memory_pair,
//! };
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! const ALPN: &[u8] = b"example/echo";
//!
//! struct Echo([AlpnSpec; 1]);
//!
//! impl ProtocolHandler for Echo {
//!     fn alpns(&self) -> &[AlpnSpec] {
//!         &self.0
//!     }
//!
//!     fn handle(
//!         self: Arc<Self>,
//!         connection: Connection,
//!         _auth: AuthContext,
//!     ) -> BoxFuture<'static, Result<(), HandlerError>> {
//!         Box::pin(async move {
//!             // One stream after the other, until the peer closes the connection.
//!             while let Ok((mut send, mut recv)) = connection.accept_bi().await {
//!                 tokio::io::copy(&mut recv, &mut send).await?;
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
//!     handlers.register(Arc::new(Echo([AlpnSpec::new(ALPN)])))?;
//!
//!     // The endpoint does this for each connection that it accepts.
//!     let (client, server) = memory_pair(ALPN);
//!     let found = handlers.get(server.alpn(), server.carriage());
//!     let (_, handler) = found.ok_or("no handler serves this protocol")?;
//!     let auth = AuthContext {
//!         identity: None,
//!         key: None,
//!         alpn: ALPN.into(),
//!         sni: None,
//!         remote_addr: None,
//!         carriage: server.carriage(),
//!         early_data: false,
//!     };
//!     let served = tokio::spawn(Arc::clone(handler).handle(server, auth));
//!
//!     let (mut send, mut recv) = client.open_bi().await?;
//!     send.write_all(b"hello").await?;
//!     send.shutdown().await?;
//!     let mut echoed = Vec::new();
//!     recv.read_to_end(&mut echoed).await?;
//!     assert_eq!(echoed, b"hello");
//!
//!     client.close(CloseCode::Normal, "");
//!     served.await??;
//!     Ok(())
//! }
//! ```

pub mod allow_list;
pub mod alpn;
pub mod backoff;
pub mod capabilities;
pub mod clock;
pub mod close;
pub mod config;
pub mod connection;
pub mod credentials;
pub mod dial;
pub mod entry;
pub mod handler;
pub mod identities;
pub mod identity;
pub mod limits;
pub mod metrics;
pub mod mount;
pub mod nesting;
pub mod network;
pub mod range;
pub mod rotation;
pub mod store_thread;
pub mod stream;
pub mod token;

mod memory;
mod poll_on_wake;

pub use allow_list::{DialAllowList, is_public};
pub use alpn::{AlpnSpec, AuthNeed, Carriage};
pub use backoff::Backoff;
pub use capabilities::{
    Aead, Capabilities, Capability, CapabilityBackend, CapabilityError, CapabilityFiller,
    CapabilityGate, CapabilityKind, CapabilitySigner, SecretLocation, capability,
};
pub use clock::{Clock, SystemClock};
pub use close::{CloseCode, CloseReason, StreamCode};
pub use connection::{ConnId, Connection, ConnectionInfo, StreamSource};
pub use credentials::{CredentialError, CredentialStore, EncryptedData, Secret};
pub use dial::{
    DialError, DialErrorKind, DialHost, DialRequest, DialedConnection, Dialer, PeerAddr,
    PeerAddrError, PeerVerification, UnknownPeer,
};
pub use entry::{ApiKey, PeerEntry, PeerPatch};
pub use handler::{
    BoxError, BoxFuture, HandlerError, HandlerRegistry, HandlerRegistryError, ProtocolHandler,
};
pub use identities::{
    Identities, IdentityEntries, IdentityPersistence, IdentityStore, IdentityStoreError,
    StoreChange, StoredIdentities,
};
pub use identity::{
    AuthContext, Identity, IdentityKind, IdentityProvider, KeyParseError, PeerId, PeerIdError,
    PeerKey, ScopeSet,
};
pub use limits::StreamBudget;
pub use memory::memory_pair;
pub use metrics::Metrics;
pub use mount::{CallerLookup, HttpMount, MountBody, MountCaller, MountRequestBudget};
pub use nesting::{DispatchError, NESTING_DEPTH_MAX, NestedDispatch};
pub use network::{NetworkPrefix, SitePrefix};
pub use poll_on_wake::PollOnWake;
pub use range::{AddressRange, RangeError};
pub use rotation::{KEY_TAKEN_S, KeySuccession, RotationError};
pub use store_thread::StoreThread;
pub use stream::{RecvHalf, RecvStream, SendHalf, SendStream, StreamError, Traffic};
pub use token::{AuthToken, KeyId, TokenError, TokenHash};
