//! Bytes of messages that are not complete.

use std::sync::{Arc, OnceLock, Weak};

use tokio::time::{Instant, timeout_at};

use crate::dispatcher::Counters;
use crate::limits::{FRAME_BYTES_FREE, REQUEST_BYTES_FREE};
use crate::link::Link;
use crate::request_bytes::RequestClaim;

/// A message in the making, counted for the peer until its request is: on every stream that it may open a peer could
/// have one that lacks its last byte.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    bytes: usize,
    claim: Option<RequestClaim>,
}

/// There is no room for a message in the making: who sends it, or all peers, have as many bytes of others as they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overfull;

impl Unfinished {
    /// Counts it with so many bytes. Where there is no room for them it is counted as before.
    pub(crate) fn count(&mut self, link: &Link, bytes: usize) -> Result<(), Overfull> {
        let counted = self.claim(link, bytes);
        if counted.is_err() {
            Counters::add(&link.dispatcher.counters.request_bytes_full);
        }
        counted
    }

    /// The same; waits for room until the deadline where the connection would end for want of it.
    pub(crate) async fn count_by(
        &mut self,
        link: &Link,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(), Overfull> {
        let mut counted = self.count(link, bytes);
        while counted.is_err() && waits(link) {
            // Before it is tried again: what is given back meanwhile is not missed.
            let given_back = link.dispatcher.unfinished_bytes.given_back();
            counted = self.claim(link, bytes);
            if counted.is_err() && timeout_at(deadline, given_back).await.is_err() {
                break;
            }
        }
        counted
    }

    fn claim(&mut self, link: &Link, bytes: usize) -> Result<(), Overfull> {
        let is_counted = bytes <= self.bytes.max(REQUEST_BYTES_FREE);
        if is_counted || bytes <= FRAME_BYTES_FREE && waits(link) {
            return Ok(());
        }
        let requester = link.requester();
        let empty = || RequestClaim::empty(&link.dispatcher.unfinished_bytes, &requester);
        let claim = self.claim.get_or_insert_with(empty);
        claim.resize(&requester, bytes).map_err(|_| Overfull)?;
        self.bytes = bytes;
        Ok(())
    }
}

/// Whether a message waits for room: its sender is known, and all calls of a connection would end with its stream.
fn waits(link: &Link) -> bool {
    link.ends_with_stream() && link.requester().is_known()
}

/// Stands for a guest from before it is served: [`Dispatcher::serve_guest`](crate::Dispatcher::serve_guest) is told
/// which one.
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
