//! The memory of requests and responses, counted for each identity and for the node before it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{CallError, ErrorCode, InputMemory};
use bytes::Bytes;
use http::StatusCode;

use crate::error::ApiError;
use crate::limits::{ANSWER_BYTES_MIN, BYTES_LEAST, FREE_EIGHTHS, LONG_LEAST, SMALL_BYTES};
use crate::rate_limit::{CallerQuota, QuotaLoad};

/// Milliseconds after which a refused caller may retry, when other requests have ended.
const RETRY_MS: u64 = 1000;

/// Limits of the bytes under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryCaps {
    /// Of the node.
    pub(crate) node: usize,
    /// Of all unknown peers together.
    pub(crate) unknown_peers: usize,
    /// Of one identity, or of one network of unknown peers.
    pub(crate) each: usize,
}

impl MemoryCaps {
    /// The bytes of the node that a request of this size may use. A quarter is reserved for small requests.
    fn of_node(self, bytes: usize) -> usize {
        match bytes > SMALL_BYTES {
            true => self.node / 4 * 3,
            false => self.node,
        }
    }

    /// The most bytes that one request can ever have.
    fn request_max(self, bytes: usize) -> usize {
        self.each.min(self.of_node(bytes))
    }

    /// Whether the node has room for the counted bytes. Once [`FREE_EIGHTHS`] are taken, each identity gets at most a
    /// part of the rest; otherwise two identities could take everything, by long requests or by small ones.
    fn has_capacity(self, sums: MemoryTotals) -> bool {
        let most = self.of_node(sums.request);
        let (own, part) = match sums.request > SMALL_BYTES {
            true => (sums.account, LONG_LEAST),
            false => (sums.small, BYTES_LEAST),
        };
        sums.node <= self.node / 8 * FREE_EIGHTHS
            || (sums.node <= most && own <= (most - sums.node) / part)
    }
}

/// Bytes that are counted, or would be.
#[derive(Clone, Copy, Debug, Default)]
struct MemoryTotals {
    request: usize,
    account: usize,
    /// Bytes of the account, where each request counts at most as a small one.
    small: usize,
    /// 0 for a known identity.
    unknown_peers: usize,
    node: usize,
}

/// The bytes of a request that count as those of a small one.
fn small_part(bytes: usize) -> usize {
    bytes.min(SMALL_BYTES)
}

/// Bytes that are counted for one request until it is dropped.
#[derive(Debug)]
pub struct MemoryLease {
    own: Arc<CallerQuota>,
    /// The load of all unknown peers, if the request is one of theirs.
    unknown_peers: Option<Arc<QuotaLoad>>,
    all: Arc<QuotaLoad>,
    most: MemoryCaps,
    bytes: AtomicUsize,
}

impl MemoryLease {
    pub(crate) fn new(
        own: Arc<CallerQuota>,
        unknown_peers: Option<Arc<QuotaLoad>>,
        all: Arc<QuotaLoad>,
        most: MemoryCaps,
    ) -> Self {
        Self {
            own,
            unknown_peers,
            all,
            most,
            bytes: AtomicUsize::new(0),
        }
    }

    /// Whether the request is one of an unknown peer.
    #[must_use]
    pub fn is_of_unknown_peer(&self) -> bool {
        self.unknown_peers.is_some()
    }

    /// Counts further bytes.
    ///
    /// # Errors
    /// 429 if other requests have the bytes now, 413 if one request can never have as many.
    pub fn more(&self, bytes: usize) -> Result<(), ApiError> {
        let add = |counter: &AtomicUsize, bytes| counter.fetch_add(bytes, Ordering::AcqRel) + bytes;
        // The bytes are added before the check, so that two concurrent requests cannot both take the last room.
        let had = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        if let Some(refused) = self.refusal(self.sums(had, bytes, add)) {
            self.uncount(bytes);
            return Err(refused);
        }
        self.all.granted(bytes);
        Ok(())
    }

    /// Checks whether further bytes could be counted now. Nothing is counted, so they may be taken when they are
    /// needed.
    ///
    /// # Errors
    /// The errors of [`more`](Self::more).
    pub fn could(&self, bytes: usize) -> Result<(), ApiError> {
        let with = |counter: &AtomicUsize, bytes| {
            let counted: usize = counter.load(Ordering::Acquire);
            // A sum that wrapped around would look like free memory.
            counted.saturating_add(bytes)
        };
        let had = self.bytes.load(Ordering::Acquire);
        self.refusal(self.sums(had, bytes, with))
            .map_or(Ok(()), Err)
    }

    /// Counts the smallest response before the call runs: a call that is refused for lack of memory has then not run,
    /// and one that has run can say so.
    ///
    /// # Errors
    /// The errors of [`more`](Self::more).
    pub fn reserve(&self) -> Result<ResponseReserve<'_>, ApiError> {
        self.more(ANSWER_BYTES_MIN)?;
        Ok(ResponseReserve {
            lease: self,
            bytes: ANSWER_BYTES_MIN,
        })
    }

    /// Counts exactly this many bytes from now on.
    ///
    /// # Errors
    /// 413 if there is no room: the calls have run, and must not be retried unchanged.
    pub fn settle(&self, bytes: usize) -> Result<(), ApiError> {
        let had = self.bytes.load(Ordering::Acquire);
        self.change(had, bytes)
    }

    /// Replaces `had` counted bytes by `bytes`.
    fn change(&self, had: usize, bytes: usize) -> Result<(), ApiError> {
        if bytes <= had {
            self.less(had - bytes);
            return Ok(());
        }
        self.more(bytes - had).map_err(|refused| {
            let message = format!(
                "the call ran, and there is no memory for its answer: {}",
                refused.error.message
            );
            too_large(message)
        })
    }

    /// Returns counted bytes.
    pub fn less(&self, bytes: usize) {
        // First, so that the granted bytes are never more than the counted ones.
        self.all.returned(bytes);
        self.uncount(bytes);
    }

    /// Takes bytes from the counters again.
    fn uncount(&self, bytes: usize) {
        let had = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        let left = had.saturating_sub(bytes);
        let take = |counter: &AtomicUsize, bytes| counter.fetch_sub(bytes, Ordering::AcqRel);
        self.sums(left, bytes, take);
    }

    /// Applies `of` to each counter of the request, with the bytes that count there if a request of `least` bytes
    /// gets, or had, `bytes` more.
    fn sums(
        &self,
        least: usize,
        bytes: usize,
        apply: impl Fn(&AtomicUsize, usize) -> usize,
    ) -> MemoryTotals {
        let request = least.saturating_add(bytes);
        let own = self.own.load();
        let unknown_peers = self.unknown_peers.as_ref();
        MemoryTotals {
            request,
            account: apply(&own.bytes, bytes),
            small: apply(&own.small_bytes, small_part(request) - small_part(least)),
            unknown_peers: unknown_peers
                .map_or(0, |unknown_peers| apply(&unknown_peers.bytes, bytes)),
            node: apply(&self.all.bytes, bytes),
        }
    }

    /// Why the bytes are refused, if they are.
    fn refusal(&self, sums: MemoryTotals) -> Option<ApiError> {
        let most = self.most;
        let request_max = most.request_max(sums.request);
        // No retry can help a request of this size, so it gets a status of its own.
        if sums.request > request_max {
            let message = format!(
                "a request and its answer have {request_max} bytes of this machine's memory"
            );
            return Some(too_large(message));
        }
        let message = if sums.account > most.each {
            let whose = match self.unknown_peers {
                None => "identity",
                // Unknown peers are counted by their network.
                Some(_) => "network",
            };
            format!("requests of one {whose} have {} bytes at once", most.each)
        } else if sums.unknown_peers > most.unknown_peers || !most.has_capacity(sums) {
            "the node has no memory for more at once".to_owned()
        } else {
            return None;
        };
        Some(ApiError::overloaded(message, RETRY_MS))
    }
}

fn too_large(message: String) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::PayloadTooLarge,
        message,
    )
}

/// The smallest response, counted until this is dropped or replaced by the real one.
#[derive(Debug)]
#[must_use]
pub struct ResponseReserve<'a> {
    lease: &'a MemoryLease,
    bytes: usize,
}

impl ResponseReserve<'_> {
    /// Counts the bytes of the response instead, against the lease.
    ///
    /// # Errors
    /// 413 if there is no room: the call has run, and must not be retried unchanged.
    pub fn answer(mut self, bytes: usize) -> Result<(), ApiError> {
        self.lease.change(self.bytes, bytes)?;
        // The lease counts the response from now on, so the drop must return nothing.
        self.bytes = 0;
        Ok(())
    }
}

impl Drop for ResponseReserve<'_> {
    fn drop(&mut self) {
        self.lease.less(self.bytes);
    }
}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        self.less(self.bytes.load(Ordering::Acquire));
    }
}

impl InputMemory for MemoryLease {
    fn take(&self, bytes: usize) -> Result<(), CallError> {
        self.more(bytes).map_err(|error| *error.error)
    }

    fn give_back(&self, bytes: usize) {
        self.less(bytes);
    }
}

/// The text of a request, with the lease that counts it as long as a part of it is in use.
#[derive(Clone, Debug)]
pub struct RequestText {
    /// The whole text.
    pub text: Bytes,
    /// `None` if another limit bounds its length.
    pub lease: Option<Arc<MemoryLease>>,
}

impl RequestText {
    pub(crate) fn memory(&self) -> Option<Arc<dyn InputMemory>> {
        self.lease.clone().map(|lease| lease as _)
    }
}

impl From<Bytes> for RequestText {
    fn from(text: Bytes) -> Self {
        Self { text, lease: None }
    }
}
