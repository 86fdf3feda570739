//! The types every part of alknet shares: connections and streams, protocol handlers and their
//! registry, identities and keys, close codes, limits and the node's configuration.
//!
//! Core knows no protocol and no transport: it names what a handler receives and what a carriage
//! (QUIC, TLS over TCP, an in-memory pair) has to provide, and nothing else.

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
pub mod stream;
pub mod token;

mod memory;
mod poll_on_wake;

pub use allow_list::{DialAllowList, is_public};
pub use alpn::{AlpnSpec, AuthNeed, Carriage};
pub use backoff::Backoff;
pub use capabilities::{
    Aead, Capabilities, Capability, CapabilityBackend, CapabilityError, CapabilityFiller,
    CapabilityKind, CapabilitySigner, Gate, SecretLocation, capability,
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
pub use mount::{HttpMount, MountBody, MountCaller};
pub use nesting::{DispatchError, NESTING_DEPTH_MAX, NestedDispatch};
pub use network::{NetworkPrefix, SitePrefix};
pub use poll_on_wake::PollOnWake;
pub use range::{AddressRange, RangeError};
pub use rotation::{KeySuccession, RotationError};
pub use stream::{RecvHalf, RecvStream, SendHalf, SendStream, StreamError, Traffic};
pub use token::{AuthToken, KeyId, TokenError, TokenHash};
