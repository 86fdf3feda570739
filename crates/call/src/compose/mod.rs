//! Operations made of other operations: their authority, their reach, and how they end together.

mod authority;
mod child;
mod env;
mod follow;
mod invoke;
mod session;
mod tokens;

pub use authority::{CompositionAuthority, Provenance};
pub use env::{OperationEnv, OperationLookup, PeerCompositeEnv, ResolvedOperation};
pub use follow::Followed;
pub use invoke::{Env, InvokeOptions, OnAbort};
pub use session::{SandboxSession, SessionError};

pub(crate) use child::ChildCall;
pub(crate) use tokens::CancellationTokens;
