//! TLS of a node: its key, what it presents to which client, and how each side checks the other.
//!
//! A peer is its key. The same Ed25519 key is served raw (RFC 7250) and wrapped in a self-signed
//! certificate, and proves the same identity in both forms. Nothing here accepts a server without
//! a pin or a certificate chain, and nothing accepts a client key without a signature by it.

mod certs;
mod client;
mod error;
mod key;
mod pin;
mod proof;
mod secret_file;
mod server;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use client::{CheckError, ClientTls, Form, PinnedRemote, bundled_roots, is_dns_name};
pub use error::TlsError;
pub use key::NodeKey;
pub use pin::PinMismatch;
pub use proof::PeerProof;
pub use server::{ServerTls, Slot};

/// The one crypto provider: aws-lc-rs, with X25519MLKEM768 preferred. Always passed explicitly.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    use std::sync::OnceLock;
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}
