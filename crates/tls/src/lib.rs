//! TLS of a node: its key, what it presents to which client, and how each side checks the other.
//!
//! A peer is its key. The same Ed25519 key is served raw (RFC 7250) and wrapped in a self-signed certificate, and
//! proves the same identity in both forms. No code here accepts a server without a pin or a certificate chain, or a
//! client's key without a signature by it.
//!
//! A handshake in memory, as the endpoint makes it over TCP and QUIC:
//!
//! ```
//! use std::net::Ipv4Addr;
//! use std::sync::Arc;
//!
//! use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost, ServerTls, ServerTlsOptions};
//! use rustls::server::Acceptor;
//! use rustls::{ClientConnection, Connection};
//!
//! const ALPN: &[u8] = b"example/echo";
//!
//! /// Carries what one side has written to the other side.
//! fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), Box<dyn std::error::Error>> {
//!     let mut wire = Vec::new();
//!     while from.wants_write() {
//!         from.write_tls(&mut wire)?;
//!     }
//!     let mut unread = wire.as_slice();
//!     while !unread.is_empty() {
//!         to.read_tls(&mut unread)?;
//!         to.process_new_packets()?;
//!     }
//!     Ok(())
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let key = NodeKey::generate()?;
//!     let served = ServerTls::new(&key, ServerTlsOptions::default(), &[ALPN], &[])?;
//!
//!     // A client knows a server at an address by its key, and by nothing else.
//!     let tls = ClientTls::new(ClientTlsOptions::default());
//!     let host = RemoteHost::Ip(Ipv4Addr::LOCALHOST.into());
//!     assert!(tls.remote(None, &[], host).is_err());
//!     let remote = tls.remote(None, &[key.public()], host)?;
//!     let configs = remote.attempts(host, ALPN);
//!     let config = configs.into_iter().next().ok_or("no form of the key")?;
//!     let client = ClientConnection::new(Arc::new(config), remote.server_name(host))?;
//!     let mut client = Connection::Client(client);
//!
//!     // The server chooses what it shows by the ClientHello.
//!     let (mut hello, mut acceptor) = (Vec::new(), Acceptor::default());
//!     client.write_tls(&mut hello)?;
//!     acceptor.read_tls(&mut hello.as_slice())?;
//!     let accepted = acceptor.accept().map_err(|(error, _)| error)?;
//!     let accepted = accepted.ok_or("the ClientHello is not whole")?;
//!     let config = served.tcp(&accepted.client_hello())?;
//!     let server = accepted.into_connection(config).map_err(|(error, _)| error)?;
//!     let mut server = Connection::Server(server);
//!
//!     while client.is_handshaking() || server.is_handshaking() {
//!         carry(&mut server, &mut client)?;
//!         carry(&mut client, &mut server)?;
//!     }
//!     remote.check(client.peer_certificates().unwrap_or_default())?;
//!     assert_eq!(server.alpn_protocol(), Some(ALPN));
//!     Ok(())
//! }
//! ```

pub mod acme;
mod alpn;
mod any_key;
mod authority;
mod certs;
mod client;
mod der;
mod diagnostics;
mod error;
mod files;
mod hello;
mod key;
mod own;
mod own_certificate;
mod pair;
mod pin;
mod proof;
mod remote;
mod secret_file;
mod server;
mod store;
mod tickets;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use rustls::RootCertStore;

pub use alpn::by_preference;
pub use authority::{AuthorityError, AuthoritySummary, authorities_from_pem};
pub use client::{ClientTls, ClientTlsOptions, bundled_roots, is_dns_name, roots_from_file};
pub use diagnostics::{
    ACME_FAILED, CERT_RELOAD_FAILED, CLOCK_INSANE, NodeDiagnostic, NodeDiagnostics,
};
pub use error::TlsError;
pub use files::{FILES_INTERVAL, FileWatcher};
pub use hello::{ALERT_UNRECOGNIZED_NAME, HELLO_BYTES_MAX, HelloError};
pub use key::{NodeKey, is_signed};
pub use own_certificate::own_certificate;
pub use pair::{CertificateFiles, CertificatePair, PairError};
pub use pin::PinMismatch;
pub use proof::PeerProof;
pub use remote::{
    CheckError, KeyCertificateType, KnownPeer, PinnedRemote, PublicRemote, RemoteHost, TlsRemote,
};
pub use server::{ALPN_ACME, ServerTls, ServerTlsOptions, TlsConfigSlot, UnknownName};
pub use store::{CertificateSource, CertificateStore, CertificateSummary};

/// The one crypto provider: aws-lc-rs, which prefers X25519MLKEM768. All code passes it explicitly.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    use std::sync::OnceLock;
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}
