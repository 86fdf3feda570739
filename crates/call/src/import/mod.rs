//! Operations described elsewhere.

mod call;
mod jsonschema;
mod memory;
mod permits;

use alknet_core::BoxFuture;
use thiserror::Error;

use crate::client::Caller;
use crate::error::{CallError, ErrorCode};
use crate::registry::Registration;
use crate::rules::RegistryError;
use crate::services::OperationSummary;

pub use call::FromCall;
pub use jsonschema::FromJsonSchema;
pub use memory::{ImportClaim, ImportMemory, ImportReservation, ImportShare};
pub use permits::{ImportCallPermit, ImportCallPermits};

pub(crate) use call::{ImportedOperations, read_peer};

/// Reads operations from elsewhere: a peer, a description, another protocol's server.
pub trait OperationAdapter: Send + Sync {
    /// Reads them all, or says why not. It registers nothing.
    fn import(&self) -> BoxFuture<'_, Result<Vec<Registration>, AdapterError>>;
}

/// Why operations cannot be imported.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum AdapterError {
    /// Two operations would have one name.
    #[error("the operation '{name}' exists already; import under a prefix, or rename one")]
    Collision {
        /// The name.
        name: String,
    },
    /// A description cannot be read, or breaks a rule.
    #[error("at {path}: {reason}")]
    Schema {
        /// The path in the document.
        path: String,
        /// The fault.
        reason: String,
    },
    /// The other side has more than this node takes.
    #[error("the other side has more {0} than this node takes")]
    TooLarge(&'static str),
    /// This node could not ask the other side.
    #[error("the other side could not be asked: {0}")]
    Transport(CallError),
    /// The other side refuses.
    #[error("the other side refuses: {0}")]
    Unauthorized(CallError),
    /// The other side does not describe its operations.
    #[error("the other side does not tell its operations")]
    Unsupported,
}

impl AdapterError {
    pub(crate) fn schema(path: impl Into<String>, reason: impl ToString) -> Self {
        Self::Schema {
            path: path.into(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn lost(why: &str) -> Self {
        Self::Transport(CallError::unavailable(why))
    }

    /// Whether the same import may succeed later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Transport(error) if error.retryable)
    }
}

impl From<CallError> for AdapterError {
    fn from(error: CallError) -> Self {
        match error.code {
            ErrorCode::Forbidden | ErrorCode::Unauthenticated => Self::Unauthorized(error),
            // A node without `services/list` does not describe its operations.
            ErrorCode::NotFound => Self::Unsupported,
            ErrorCode::PayloadTooLarge => Self::TooLarge("schemas"),
            _ => Self::Transport(error),
        }
    }
}

impl From<RegistryError> for AdapterError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Duplicate(name) => Self::Collision { name },
            error => Self::schema("/", error),
        }
    }
}

/// What this node discloses to a peer about the identity that it forwards a call for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallerDisclosure {
    /// Id, scopes and resources.
    Full,
    /// The id.
    #[default]
    Id,
    /// Discloses nothing.
    None,
}

/// What this node imports from a peer, and how.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ImportOptions {
    /// Put before every name, with a slash: `w1` makes `w1/container/exec` of `container/exec`.
    pub prefix: Option<String>,
    /// Only operations whose name starts with one of these; empty for all.
    pub only: Vec<String>,
    /// What this node discloses to the peer about the identity that it forwards a call for.
    pub disclose: CallerDisclosure,
}

impl ImportOptions {
    /// Under a prefix.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.trim_matches('/').to_owned());
        self
    }

    /// Only operations whose name starts with `prefix`, or with one given before.
    #[must_use]
    pub fn with_only(mut self, prefix: &str) -> Self {
        self.only.push(prefix.trim_start_matches('/').to_owned());
        self
    }

    /// Discloses this much to the peer about originators.
    #[must_use]
    pub fn with_disclose(mut self, disclose: CallerDisclosure) -> Self {
        self.disclose = disclose;
        self
    }

    fn takes(&self, operation: &OperationSummary) -> bool {
        self.only.is_empty() || self.only.iter().any(|p| operation.name.starts_with(p))
    }

    fn local_name(&self, remote: &str) -> String {
        match &self.prefix {
            Some(prefix) => format!("{prefix}/{remote}"),
            None => remote.to_owned(),
        }
    }
}

/// Reads the operations of the other side of a connection. They become internal operations of this node, without
/// authority, whose code runs there. The peer's own operations about itself (`services/*`, `session/*`) are left out.
///
/// # Errors
/// This node cannot ask the peer, or the peer refuses, announces too much, or describes operations that break a rule.
pub async fn from_call(
    caller: &Caller,
    options: &ImportOptions,
) -> Result<Vec<Registration>, AdapterError> {
    Ok(read_peer(caller, options).await?.registrations)
}
