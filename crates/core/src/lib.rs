//! The types every part of alknet shares: connections and streams, protocol handlers and their
//! registry, identities and keys, close codes, limits and the node's configuration.
//!
//! Core knows no protocol and no transport: it names what a handler receives and what a carriage
//! (QUIC, TLS over TCP, an in-memory pair) has to provide, and nothing else.

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
pub mod reach;
pub mod rotation;
pub mod stream;
pub mod token;

/// Whether the tree runs as mutant `number`.
#[doc(hidden)]
#[must_use]
pub fn mutant_a(number: u32) -> bool {
    std::env::var("ALKNET_MUTANT").is_ok_and(|it| it == number.to_string())
}

mod drowsy;
mod memory;

pub use alpn::{AlpnSpec, AuthNeed, Carriage};
pub use backoff::Backoff;
pub use capabilities::{
    Aead, Capabilities, Capability, CapabilityError, CapabilityKind, Filler, Gate, KeyPlace, Power,
    Sign, capability,
};
pub use clock::{Clock, SystemClock};
pub use close::{CloseCode, CloseReason, StreamCode};
pub use connection::{ConnId, Connection, ConnectionInfo, StreamSource};
pub use credentials::{CredentialError, CredentialStore, EncryptedData, Secret};
pub use dial::{
    DialError, DialErrorKind, DialRequest, Dialer, Dialled, Expect, Host, PeerAddr, PeerAddrError,
    UnknownPeer,
};
pub use drowsy::Drowsy;
pub use entry::{ApiKey, PeerEntry, PeerPatch};
pub use handler::{
    BoxError, BoxFuture, HandlerError, HandlerRegistry, ProtocolHandler, RegistryError,
};
pub use identities::{
    Entries, Identities, IdentityStore, StoreChange, StoreError, StoreKeeper, Stored,
};
pub use identity::{
    AuthContext, Identity, IdentityKind, IdentityProvider, KeyParseError, PeerId, PeerIdError,
    PeerKey, ScopeSet,
};
pub use limits::StreamBudget;
pub use memory::memory_pair;
pub use metrics::Metrics;
pub use mount::{HttpMount, MountBody, MountCaller};
pub use nesting::{Dispatch, DispatchError, NESTING_DEPTH_MAX};
pub use network::{Network, Site};
pub use range::{AddressRange, RangeError};
pub use reach::{Reach, is_public};
pub use rotation::{RotationError, Succession};
pub use stream::{RecvHalf, RecvStream, SendHalf, SendStream, StreamError, Traffic};
pub use token::{AuthToken, KeyId, TokenError, TokenHash};
