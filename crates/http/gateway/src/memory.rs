//! Memory that requests and answers take, counted for each identity and for the node before it is taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{CallError, ErrorCode, InputMemory};
use bytes::Bytes;
use http::StatusCode;

use crate::error::ApiError;
use crate::limits::SMALL_BYTES;
use crate::room::{Account, Load};

/// What is told to wait until others have been answered.
const RETRY_MS: u64 = 1000;

/// Bytes under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Most {
    /// For the node.
    pub(crate) node: usize,
    /// For one identity, or one stranger's address.
    pub(crate) each: usize,
}

impl Most {
    /// What one request may ever have. A quarter of what there is is kept for those with little.
    fn fits(self, bytes: usize) -> usize {
        let large = if bytes > SMALL_BYTES {
            self.node / 4 * 3
        } else {
            self.node
        };
        self.each.min(large)
    }
}

/// Bytes that are counted for one request until it is dropped.
#[derive(Debug)]
pub struct Lease {
    own: Arc<Account>,
    all: Arc<Load>,
    most: Most,
    bytes: AtomicUsize,
}

impl Lease {
    pub(crate) fn new(own: Arc<Account>, all: Arc<Load>, most: Most) -> Self {
        Self {
            own,
            all,
            most,
            bytes: AtomicUsize::new(0),
        }
    }

    /// Counts so many bytes more.
    ///
    /// # Errors
    /// 429 where others have them now, 413 where there are never as many for one request.
    pub fn more(&self, bytes: usize) -> Result<(), ApiError> {
        let ours = self.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let own = self.own.load().bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let all = self.all.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let fits = self.most.fits(ours);
        let room = if ours > SMALL_BYTES {
            self.most.node / 4 * 3
        } else {
            self.most.node
        };
        if ours <= fits && own <= self.most.each && all <= room {
            return Ok(());
        }
        self.less(bytes);
        if ours > fits {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorCode::PayloadTooLarge,
                format!("a request and its answer have {fits} bytes of this machine's memory"),
            ));
        }
        let message = match own > self.most.each {
            true => format!(
                "requests of one identity have {} bytes at once",
                self.most.each
            ),
            false => "the node has no memory for more at once".to_owned(),
        };
        Err(ApiError::overloaded(message, RETRY_MS))
    }

    /// Counts the bytes of an answer.
    ///
    /// # Errors
    /// 413 where there is no room: the call has run, and is not to be tried again as it is.
    pub fn answer(&self, bytes: usize) -> Result<(), ApiError> {
        self.more(bytes).map_err(|refused| {
            let message = format!(
                "the call ran, and there is no memory for its answer: {}",
                refused.error.message
            );
            ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorCode::PayloadTooLarge,
                message,
            )
        })
    }

    /// Counts so many bytes less.
    pub fn less(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.own.load().bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.all.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.less(self.bytes.load(Ordering::Acquire));
    }
}

impl InputMemory for Lease {
    fn take(&self, bytes: usize) -> Result<(), CallError> {
        self.more(bytes).map_err(|error| *error.error)
    }

    fn give_back(&self, bytes: usize) {
        self.less(bytes);
    }
}

/// The text of a request, and what it counts against as long as a part of it is kept.
#[derive(Clone, Debug)]
pub struct Upload {
    /// All of it.
    pub text: Bytes,
    /// `None` where its length is bounded by something else.
    pub lease: Option<Arc<Lease>>,
}

impl Upload {
    pub(crate) fn memory(&self) -> Option<Arc<dyn InputMemory>> {
        self.lease.clone().map(|lease| lease as _)
    }
}

impl From<Bytes> for Upload {
    fn from(text: Bytes) -> Self {
        Self { text, lease: None }
    }
}
