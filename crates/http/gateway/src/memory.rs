//! Memory that requests and answers take, counted for each identity and for the node before it is taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{CallError, ErrorCode, InputMemory};
use bytes::Bytes;
use http::StatusCode;

use crate::error::ApiError;
use crate::limits::{ANSWER_BYTES_MIN, BYTES_LEAST, FREE_EIGHTHS, LONG_LEAST, SMALL_BYTES};
use crate::rate_limit::{CallerQuota, QuotaLoad};

/// Milliseconds after which a refused caller may try again: until then others have been answered.
const RETRY_MS: u64 = 1000;

/// Bytes under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryCaps {
    /// For the node.
    pub(crate) node: usize,
    /// For all unknown peers together.
    pub(crate) strangers: usize,
    /// For one identity, or one network of unknown peers.
    pub(crate) each: usize,
}

impl MemoryCaps {
    /// Bytes of the node that a request of so many bytes may use. A quarter is kept for small requests.
    fn of_node(self, bytes: usize) -> usize {
        match bytes > SMALL_BYTES {
            true => self.node / 4 * 3,
            false => self.node,
        }
    }

    /// Bytes that one request may ever have.
    fn fits(self, bytes: usize) -> usize {
        self.each.min(self.of_node(bytes))
    }

    /// Whether the node has room for what is counted. Once [`FREE_EIGHTHS`] are taken, each identity has at most a part
    /// of what is left: otherwise two identities would take all of it, be it in long requests or in small ones.
    fn has_room(self, sums: MemoryTotals) -> bool {
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
    /// Of the account: of each request no more than a small one has.
    small: usize,
    /// 0 for a known identity.
    strangers: usize,
    node: usize,
}

/// What a request of so many bytes has as a small one.
fn small_part(bytes: usize) -> usize {
    bytes.min(SMALL_BYTES)
}

/// Bytes that are counted for one request until it is dropped.
#[derive(Debug)]
pub struct MemoryLease {
    own: Arc<CallerQuota>,
    /// The unknown peers together, where the request is one of theirs.
    strangers: Option<Arc<QuotaLoad>>,
    all: Arc<QuotaLoad>,
    most: MemoryCaps,
    bytes: AtomicUsize,
}

impl MemoryLease {
    pub(crate) fn new(
        own: Arc<CallerQuota>,
        strangers: Option<Arc<QuotaLoad>>,
        all: Arc<QuotaLoad>,
        most: MemoryCaps,
    ) -> Self {
        Self {
            own,
            strangers,
            all,
            most,
            bytes: AtomicUsize::new(0),
        }
    }

    /// Counts so many bytes more.
    ///
    /// # Errors
    /// 429 where other requests have them now, 413 where one request never has as many.
    pub fn more(&self, bytes: usize) -> Result<(), ApiError> {
        let add = |counter: &AtomicUsize, bytes| counter.fetch_add(bytes, Ordering::AcqRel) + bytes;
        // Counted first and looked at then: two requests that come at once cannot both take the last room.
        let had = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.refusal(self.sums(had, bytes, add))
            .map_or(Ok(()), |refused| {
                self.less(bytes);
                Err(refused)
            })
    }

    /// Whether so many bytes more could be counted now. Nothing is counted: they may be gone when they are wanted.
    ///
    /// # Errors
    /// As [`more`](Self::more).
    pub fn could(&self, bytes: usize) -> Result<(), ApiError> {
        let with = |counter: &AtomicUsize, bytes| {
            let counted: usize = counter.load(Ordering::Acquire);
            counted.saturating_add(bytes)
        };
        let had = self.bytes.load(Ordering::Acquire);
        self.refusal(self.sums(had, bytes, with))
            .map_or(Ok(()), Err)
    }

    /// Counts the least that an answer takes, before what it answers runs: a call that is refused for want of
    /// memory has then not run, and one that ran can say so.
    ///
    /// # Errors
    /// As [`more`](Self::more).
    pub fn reserve(&self) -> Result<ResponseReserve<'_>, ApiError> {
        self.more(ANSWER_BYTES_MIN)?;
        Ok(ResponseReserve {
            lease: self,
            bytes: ANSWER_BYTES_MIN,
        })
    }

    /// Counts so many bytes from now on, and none besides.
    ///
    /// # Errors
    /// 413 where there is no room: the calls have run, and are not to be tried again as they are.
    pub fn settle(&self, bytes: usize) -> Result<(), ApiError> {
        let had = self.bytes.load(Ordering::Acquire);
        self.change(had, bytes)
    }

    /// Counts `bytes` in place of `had`.
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

    /// Counts so many bytes less.
    pub fn less(&self, bytes: usize) {
        let had = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        let left = had.saturating_sub(bytes);
        let take = |counter: &AtomicUsize, bytes| counter.fetch_sub(bytes, Ordering::AcqRel);
        self.sums(left, bytes, take);
    }

    /// What `of` makes of each counter that the request counts against, and of the bytes that are counted there
    /// where a request of `least` bytes has `bytes` more, or had.
    fn sums(
        &self,
        least: usize,
        bytes: usize,
        of: impl Fn(&AtomicUsize, usize) -> usize,
    ) -> MemoryTotals {
        let request = least.saturating_add(bytes);
        let own = self.own.load();
        let strangers = self.strangers.as_ref();
        MemoryTotals {
            request,
            account: of(&own.bytes, bytes),
            small: of(&own.small_bytes, small_part(request) - small_part(least)),
            strangers: strangers.map_or(0, |strangers| of(&strangers.bytes, bytes)),
            node: of(&self.all.bytes, bytes),
        }
    }

    /// Why there are not as many bytes.
    fn refusal(&self, sums: MemoryTotals) -> Option<ApiError> {
        let most = self.most;
        let fits = most.fits(sums.request);
        if sums.request > fits {
            let message =
                format!("a request and its answer have {fits} bytes of this machine's memory");
            return Some(too_large(message));
        }
        let message = if sums.account > most.each {
            let whose = match self.strangers {
                None => "identity",
                Some(_) => "network",
            };
            format!("requests of one {whose} have {} bytes at once", most.each)
        } else if sums.strangers > most.strangers || !most.has_room(sums) {
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

/// The least that an answer takes, counted until it is dropped or the answer is counted in its place.
#[derive(Debug)]
#[must_use]
pub struct ResponseReserve<'a> {
    lease: &'a MemoryLease,
    bytes: usize,
}

impl ResponseReserve<'_> {
    /// Counts the bytes of the answer instead, against the lease.
    ///
    /// # Errors
    /// 413 where there is no room: the call has run, and is not to be tried again as it is.
    pub fn answer(mut self, bytes: usize) -> Result<(), ApiError> {
        self.lease.change(self.bytes, bytes)?;
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

/// The text of a request, and what it counts against as long as a part of it is kept.
#[derive(Clone, Debug)]
pub struct RequestText {
    /// All of it.
    pub text: Bytes,
    /// `None` where its length is bounded by something else.
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
