//! Bytes of messages that are not complete.

use std::sync::{Arc, OnceLock, Weak};

use crate::dispatcher::{Counters, Dispatcher};
use crate::limits::REQUEST_BYTES_FREE;
use crate::link::Link;
use crate::request_bytes::{Kept, RequestClaim};

/// A message in the making, counted for the peer until its request is: on every stream that it may open a peer could
/// have one that lacks its last byte.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    bytes: usize,
    claim: Option<Arc<RequestClaim>>,
}

/// There is no room for a message in the making: who sends it, or all peers, have as many bytes of others as they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overfull;

impl Unfinished {
    /// Counts it with so many bytes.
    pub(crate) fn count(&mut self, link: &Link, bytes: usize) -> Result<(), Overfull> {
        if bytes <= self.bytes.max(REQUEST_BYTES_FREE) {
            return Ok(());
        }
        let Dispatcher {
            unfinished_bytes,
            counters,
            ..
        } = &*link.dispatcher;
        // Not beside the same bytes.
        self.claim = None;
        let claimed = unfinished_bytes.claim(link.requester(), bytes, Kept::Once);
        self.claim = claimed.map_err(|_| {
            Counters::add(&counters.request_bytes_full);
            Overfull
        })?;
        self.bytes = bytes;
        Ok(())
    }
}

/// Stands for a guest from before it is served: [`Dispatcher::serve_guest`] is told which one.
#[derive(Clone, Debug, Default)]
pub struct GuestHandle(Arc<OnceLock<Weak<Link>>>);

impl GuestHandle {
    pub(crate) fn set(&self, link: &Arc<Link>) {
        self.0.get_or_init(|| Arc::downgrade(link));
    }
}

/// Counts messages that the carriage of a guest puts together, each before anything of it is passed on, with the frames
/// in the making of whom the guest is at that moment. Dropping it gives the bytes back.
#[derive(Debug)]
pub struct Assembly {
    guest: GuestHandle,
    unfinished: Unfinished,
}

impl Assembly {
    /// Of this guest, who has sent nothing yet.
    #[must_use]
    pub fn of(guest: &GuestHandle) -> Self {
        Self {
            guest: guest.clone(),
            unfinished: Unfinished::default(),
        }
    }

    /// Counts the message in the making with so many bytes. A short one is not counted.
    ///
    /// # Errors
    /// There is no room for it, or the guest has gone.
    pub fn count(&mut self, bytes: usize) -> Result<(), Overfull> {
        if bytes <= REQUEST_BYTES_FREE {
            return Ok(());
        }
        let link = self.guest.0.get().and_then(Weak::upgrade);
        let link = link.ok_or(Overfull)?;
        self.unfinished.count(&link, bytes)
    }

    /// The message was passed on, or given up.
    pub fn clear(&mut self) {
        self.unfinished = Unfinished::default();
    }
}
