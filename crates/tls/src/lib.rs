//! TLS of a node: its key, what it presents to which client, and how each side checks the other.
//!
//! A peer is its key. The same Ed25519 key is served raw (RFC 7250) and wrapped in a self-signed
//! certificate, and proves the same identity in both forms. Nothing here accepts a server without
//! a pin or a certificate chain, and nothing accepts a client key without a signature by it.

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

/// The one crypto provider: aws-lc-rs, with X25519MLKEM768 preferred. Always passed explicitly.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    use std::sync::OnceLock;
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}
