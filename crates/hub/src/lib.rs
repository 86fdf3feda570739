//! How a node joins a hub: join strings, enrolment tokens, and the protocol `alknet/enroll`.
//!
//! A hub makes an [`EnrolToken`] for a role, keeps its hash, and hands out a [`JoinCode`]: where the hub is, its key,
//! and the token, in one line of text. Its holder calls [`enrol`], which dials the hub, pins the hub's key, proves its
//! own key by TLS and shows the token; the hub's [`EnrolmentService`] decides, and makes a peer of that key.
//!
//! ```
//! use alknet_hub::{EnrolToken, JoinCode};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let code = JoinCode {
//!     addresses: vec!["hub.example.org".parse()?],
//!     hub: [7; 32],
//!     token: EnrolToken::generate()?,
//!     expires: 1_900_000_000,
//!     role: "worker".parse()?,
//! };
//! let text = code.encode()?;
//! assert_eq!(text.parse::<JoinCode>()?, code);
//! # Ok(())
//! # }
//! # example().expect("a join string");
//! ```
//!
//! The decisions ([`EnrolmentService`], [`TokenRecord`], [`PendingKeys`]) know neither sockets nor clocks.

mod client;
mod enrolment;
mod fingerprint;
mod handler;
mod id;
mod join;
mod names;
mod pending;
mod proof;
mod record;
mod store;
mod token;
mod wire;

pub use client::{EnrolClientError, enrol};
pub use enrolment::{
    Applicant, Approval, ApproveError, EnrolError, EnrolMode, EnrolPolicy, EnrolmentService,
    Invitation, InviteError, change_peer, has_invitation, shut_out,
};
pub use fingerprint::fingerprint;
pub use handler::{ENROL_REFUSED_TARGET, EnrolHandler};
pub use id::new_peer_id;
pub use join::{ADDRESSES_MAX, JOIN_CHARS_MAX, JoinCode, JoinError};
pub use names::{
    Alias, EnrolRole, LABELS_MAX, NameError, NamePattern, PeerLabel, RoleName, check_labels,
};
pub use pending::{PENDING_MAX, PENDING_TIME, PendingKey, PendingKeys};
pub use proof::{JoinProof, PROOF_SKEW, ProofError};
pub use record::{REPEAT_TIME_S, TokenKind, TokenRecord, TokenUse, TokenValidity, USES_MAX};
pub use store::{MemoryTokens, TokenStore, TokenStoreError};
pub use token::{EnrolToken, EnrolTokenError};
pub use wire::{ALPN, HubInfo, JoinAcceptance, JoinRefusal, JoinRequest, MESSAGE_BYTES_MAX};
