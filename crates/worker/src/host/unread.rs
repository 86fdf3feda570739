//! Descriptors between the host and a worker that may not read them.
//!
//! The kernel counts descriptors that wait in sockets for the user who sent them. If a user has more of them than a
//! process of that user may open, the process sends no descriptor (unix(7), ETOOMANYREFS). On the appliance all workers
//! and the host have one user, so one worker that reads nothing could stop the large values of all others.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::WorkerCallError;
use crate::limits::{
    SEALED_FRAMES_RESERVED_MAX, SEALED_FRAMES_WAITING_MAX, UNREAD_FDS_MAX, UNREAD_LOOK_MAX,
    UNREAD_LOOK_MIN,
};
use crate::sys::is_all_read;

/// The frames with descriptors that may wait for one worker. Clones share the quota.
#[derive(Clone, Debug)]
pub struct DescriptorQuota {
    /// For senders that wait for a permit.
    reserved: Arc<Semaphore>,
    /// For senders that do not.
    others: Arc<Semaphore>,
}

/// A permit for one frame with descriptors. It is returned once the frame was sent, or dropped.
#[derive(Debug)]
pub struct DescriptorPermit {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Default for DescriptorQuota {
    fn default() -> Self {
        Self {
            reserved: Arc::new(Semaphore::new(SEALED_FRAMES_RESERVED_MAX)),
            others: Arc::new(Semaphore::new(SEALED_FRAMES_WAITING_MAX)),
        }
    }
}

impl DescriptorQuota {
    /// Waits until the worker has been sent enough of the frames before this one. A worker that reads nothing ends,
    /// which returns the permits as well.
    pub async fn reserve(&self) -> DescriptorPermit {
        // No code closes the semaphore.
        let permit = Arc::clone(&self.reserved).acquire_owned().await;
        DescriptorPermit {
            _permit: permit.ok(),
        }
    }

    /// A permit for a frame with `fds`, if it needs one and its sender has none.
    pub(super) fn permit(
        &self,
        fds: &[OwnedFd],
        reserved: Option<DescriptorPermit>,
    ) -> Result<Option<DescriptorPermit>, WorkerCallError> {
        if fds.is_empty() || reserved.is_some() {
            return Ok(reserved);
        }
        let permit = Arc::clone(&self.others).try_acquire_owned();
        let permit = permit.map_err(|_| WorkerCallError::Busy)?;
        Ok(Some(DescriptorPermit {
            _permit: Some(permit),
        }))
    }
}

/// The descriptors in a worker's socket. Times are microseconds of the supervisor's clock.
#[derive(Debug)]
pub(super) struct UnreadDescriptors {
    /// Descriptors that were sent since the worker was last seen to have read everything.
    count: usize,
    /// The time at which the first of them was sent.
    since: u64,
    /// Time for which the worker may leave them.
    most: u64,
    /// The time of the next look, if there is a reason for one.
    look_at: Option<u64>,
    pause: u64,
}

impl UnreadDescriptors {
    pub(super) fn new(most: Duration) -> Self {
        Self {
            count: 0,
            since: 0,
            most: us(most),
            look_at: None,
            pause: us(UNREAD_LOOK_MIN),
        }
    }

    /// The time of the next look.
    pub(super) const fn look_at(&self) -> Option<u64> {
        self.look_at
    }

    /// Whether a frame with `fds` descriptors has to wait until the worker has read those before it. So does every
    /// frame if they are unread for so long that the worker may read nothing at all: otherwise a worker that is sent
    /// something all the time would never be seen to have read everything.
    pub(super) fn hold_back(&mut self, now: u64, fds: usize, socket: impl AsFd) -> bool {
        let full = fds > 0 && self.count + fds > UNREAD_FDS_MAX;
        let late = now >= self.since.saturating_add(self.most);
        if self.count == 0 || !(full || late) {
            return false;
        }
        if is_all_read(socket) {
            self.read();
            return false;
        }
        self.wait(now);
        true
    }

    /// Looks again soon: the kernel refused a descriptor, or a frame was held back.
    pub(super) fn wait(&mut self, now: u64) {
        self.look_at = Some(now.saturating_add(self.pause));
        self.pause = (self.pause * 2).min(us(UNREAD_LOOK_MAX));
    }

    /// Counts the descriptors of a frame whose first bytes were sent.
    pub(super) fn sent(&mut self, now: u64, fds: usize) {
        if fds == 0 {
            return;
        }
        if self.count == 0 {
            self.since = now;
        }
        self.count += fds;
        self.pause = us(UNREAD_LOOK_MIN);
        self.look_at = Some(self.since.saturating_add(self.most));
    }

    /// Whether the worker left descriptors unread for twice the time that it may: in the second half it was sent
    /// nothing else.
    pub(super) fn are_left(&mut self, now: u64, socket: impl AsFd) -> bool {
        if self.count == 0 {
            self.look_at = None;
            return false;
        }
        if is_all_read(socket) {
            self.read();
            return false;
        }
        self.wait(now);
        now >= self.since.saturating_add(self.most.saturating_mul(2))
    }

    fn read(&mut self) {
        self.count = 0;
        self.look_at = None;
        self.pause = us(UNREAD_LOOK_MIN);
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    const MS: u64 = 1000;

    #[test]
    fn a_frame_with_descriptors_waits_until_those_before_it_are_read() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut unread = UnreadDescriptors::new(Duration::from_millis(100));
        assert!(!unread.hold_back(0, 8, &ours), "none is unread");
        unread.sent(0, 1);
        ours.write_all(b"x").expect("sent");
        assert!(!unread.hold_back(1, 1, &ours) && !unread.hold_back(1, 0, &ours));
        unread.sent(1, 1);
        assert!(unread.hold_back(2, 1, &ours));
        assert!(!unread.hold_back(2, 0, &ours), "it has no descriptor");
        theirs.read_exact(&mut [0; 1]).expect("read");
        assert!(!unread.hold_back(3, 1, &ours));
        assert_eq!(unread.look_at(), None);
    }

    #[test]
    fn a_worker_that_reads_nothing_is_sent_nothing_and_then_ended() {
        let (mut ours, _theirs) = UnixStream::pair().expect("a pair");
        let mut unread = UnreadDescriptors::new(Duration::from_millis(100));
        unread.sent(0, 1);
        ours.write_all(b"x").expect("sent");
        assert_eq!(unread.look_at(), Some(100 * MS));
        assert!(!unread.hold_back(99 * MS, 0, &ours));
        assert!(unread.hold_back(100 * MS, 0, &ours));
        assert!(!unread.are_left(199 * MS, &ours));
        assert!(unread.are_left(200 * MS, &ours));
    }
}
