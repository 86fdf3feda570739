//! Who asks, over what, and the name the request has in logs.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use alknet_call::{CallerProof, LocalCaller};
use alknet_core::{AuthToken, Identity};

use crate::rate_limit::CallerQuota;

/// One request's caller.
#[derive(Clone, Debug)]
pub struct HttpCaller {
    /// The connection it came over.
    pub gate: LocalCaller,
    /// The identity that its token, or else the connection's key, proved.
    pub identity: Option<Arc<Identity>>,
    /// The token that did.
    pub token: Option<Arc<AuthToken>>,
    /// What did, where it is neither.
    pub proved_by: Option<CallerProof>,
    /// By which way it came.
    pub via: HttpIngress,
    /// Where from.
    pub remote: Option<SocketAddr>,
    /// Where its requests are counted, if that was looked up already.
    pub account: Option<Arc<CallerQuota>>,
    /// When the request began.
    pub began: Instant,
    /// What it is called in logs and answers.
    pub request_id: RequestId,
}

impl HttpCaller {
    /// The same caller by another way.
    #[must_use]
    pub fn via(mut self, via: HttpIngress) -> Self {
        self.via = via;
        self
    }
}

/// By which way a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HttpIngress {
    /// A route of this program's own, beside the others.
    Custom(&'static str),
    /// The gateway's own paths.
    Http,
    /// A tool of the Model Context Protocol.
    Mcp,
    /// The page of the administrator.
    Page,
}

/// Names a request: unique in this process, and not to be guessed from another process's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    text: [u8; ID_BYTES_MAX],
    len: u8,
}

/// Longest name of a request: eight digits, a dash, and the digits of a number of 64 bits.
const ID_BYTES_MAX: usize = 8 + 1 + 16;

impl RequestId {
    /// The next one.
    #[must_use]
    pub fn next() -> Self {
        static PROCESS: OnceLock<u64> = OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let process = PROCESS.get_or_init(|| {
            use std::hash::{BuildHasher, RandomState};
            // Its keys are random: std has no other source of that.
            RandomState::new().hash_one(std::process::id())
        });
        // Only the number has to be another one each time.
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::from_parts(process >> 32, n)
    }

    /// `{process:08x}-{n:x}`, which every request needs: written without the library's formatting.
    fn from_parts(process: u64, n: u64) -> Self {
        let mut text = [0; ID_BYTES_MAX];
        append_hex(&mut text[..8], process);
        text[8] = b'-';
        let digits = (u64::BITS - n.leading_zeros()).div_ceil(4).max(1) as usize;
        append_hex(&mut text[9..9 + digits], n);
        Self {
            text,
            len: 9 + digits as u8,
        }
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let text = &self.text[..usize::from(self.len)];
        // Digits and a dash: this is always UTF-8.
        std::str::from_utf8(text).unwrap_or_default()
    }
}

/// The last digits of `number`, as many as there is room for.
fn append_hex(room: &mut [u8], mut number: u64) {
    for digit in room.iter_mut().rev() {
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
