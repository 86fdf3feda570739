//! Who asks, over what, and the name the request has in logs.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use alknet_call::Gate;
use alknet_core::{AuthToken, Identity};

/// One request's caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The connection it came over.
    pub gate: Gate,
    /// Whom its token, or else the connection's key, proved.
    pub identity: Option<Arc<Identity>>,
    /// The token that did.
    pub token: Option<Arc<AuthToken>>,
    /// By which way it came.
    pub via: Via,
    /// Where from.
    pub remote: Option<SocketAddr>,
    /// What it is called in logs and answers.
    pub request_id: RequestId,
}

impl Caller {
    /// The same caller by another way.
    #[must_use]
    pub fn via(mut self, via: Via) -> Self {
        self.via = via;
        self
    }
}

/// By which way a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Via {
    /// A route of this program's own that is none of the others.
    Custom(&'static str),
    /// The gateway's own paths.
    Http,
    /// A tool of the Model Context Protocol.
    Mcp,
    /// The page of the administrator.
    Page,
}

/// Names a request: unique in this process, and not to be guessed from another process's.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The next one.
    #[must_use]
    pub fn next() -> Self {
        static PROCESS: OnceLock<u64> = OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let process = PROCESS.get_or_init(|| {
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().hash_one(std::process::id())
        });
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("{:08x}-{n:x}", process >> 32).into())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
