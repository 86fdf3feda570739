//! The caller of a request, and the request's id.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use alknet_call::{CallerProof, LocalCaller};
use alknet_core::{AuthToken, Identity};

use crate::rate_limit::CallerQuota;

/// The caller of one request.
#[derive(Clone, Debug)]
pub struct HttpCaller {
    /// The connection of the request.
    pub gate: LocalCaller,
    /// The identity that the token, or otherwise the connection's key, proved.
    pub identity: Option<Arc<Identity>>,
    /// The token that proved the identity.
    pub token: Option<Arc<AuthToken>>,
    /// The proof of the identity, if it is neither a token nor the connection's key.
    pub proved_by: Option<CallerProof>,
    /// The interface through which the request came.
    pub via: HttpIngress,
    /// The address of the client.
    pub remote: Option<SocketAddr>,
    /// The quota that the request counts against, if it is known already.
    pub account: Option<Arc<CallerQuota>>,
    /// When the request began.
    pub began: Instant,
    /// The request's id in logs and responses.
    pub request_id: RequestId,
}

impl HttpCaller {
    /// The same caller through another interface.
    #[must_use]
    pub fn via(mut self, via: HttpIngress) -> Self {
        self.via = via;
        self
    }

    /// The identity with the scopes that it has by now, or `None` if its proof is not valid any more.
    #[must_use]
    pub fn identity_now(&self) -> Option<Arc<Identity>> {
        let before = self.identity.as_ref()?;
        let token = self.token.as_deref();
        self.gate.identity_now(before, token, self.proved_by)
    }
}

/// The interface through which a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HttpIngress {
    /// A route that the embedding program adds.
    Custom(&'static str),
    /// The gateway's own paths.
    Http,
    /// A tool of the Model Context Protocol.
    Mcp,
    /// The page of the administrator.
    Page,
}

/// The id of a request: unique in this process, and unpredictable in other processes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    text: [u8; ID_BYTES_MAX],
    len: u8,
}

/// Longest id: eight digits, a dash, and the digits of a 64-bit number.
const ID_BYTES_MAX: usize = 8 + 1 + 16;

impl RequestId {
    /// The id of the next request.
    #[must_use]
    pub fn next() -> Self {
        static PROCESS: OnceLock<u64> = OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let process = PROCESS.get_or_init(|| {
            use std::hash::{BuildHasher, RandomState};
            // The keys of `RandomState` are random, and std has no other source of randomness.
            RandomState::new().hash_one(std::process::id())
        });
        // The number only has to be unique, so no ordering is needed.
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::from_parts(process >> 32, n)
    }

    /// Formats `{process:08x}-{n:x}` by hand, because every request needs an id.
    fn from_parts(process: u64, n: u64) -> Self {
        let mut text = [0; ID_BYTES_MAX];
        append_hex(&mut text[..8], process);
        text[8] = b'-';
        // Zero has one digit as well.
        let digits = (u64::BITS - n.leading_zeros()).div_ceil(4).max(1) as usize;
        append_hex(&mut text[9..9 + digits], n);
        Self {
            text,
            len: 9 + digits as u8,
        }
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let text = &self.text[..usize::from(self.len)];
        // The text has digits and a dash only, so it is valid UTF-8.
        std::str::from_utf8(text).unwrap_or_default()
    }
}

/// Writes the last digits of `number`, as many as `room` has bytes.
fn append_hex(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_requests_are_hexadecimal_and_differ() {
        for (process, n) in [(0, 0), (1, 15), (0xfedc_ba98, 16), (0xffff_ffff, u64::MAX)] {
            let id = RequestId::from_parts(process, n);
            assert_eq!(id.as_str(), format!("{process:08x}-{n:x}"));
            assert_eq!(id.to_string(), id.as_str());
        }
        assert_ne!(RequestId::next(), RequestId::next());
    }
}
