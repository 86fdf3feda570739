//! Receive windows of QUIC connections: bytes that peers may send before the node has read any. No sockets.
//!
//! Bytes that came in a window stay in memory for as long as the peer likes, on streams that the node does not read
//! or whose first byte is missing, and a window that was announced cannot be taken back. So each connection begins
//! with a small one. What it gets beyond that counts for its peer and for the node before it is announced, until
//! nothing of the connection is left. A window grows with what the node reads: on a long path a round trip fills it,
//! and a peer whose bytes the node does not read gets no more.

mod quota;

use std::any::Any;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use alknet_core::{NetworkPrefix, PeerId, StreamBudget};

use crate::closing::UnservedGuard;
use crate::limits::{WINDOW_BYTES_FIRST, WINDOW_BYTES_START};

use quota::WindowDemand;

pub(crate) use quota::{ReceiveWindows, WindowOwner};

/// A window grows when half of it is read within two round trips, or within this time: on a short path the bound of a
/// transfer is how soon its reader runs.
const FAST: Duration = Duration::from_millis(5);

/// The connection of a window, as the window needs it.
pub(crate) trait WindowControl: Send + Sync {
    /// Lets the peer send this many bytes beyond those that were read.
    fn set_window(&self, bytes: u32);

    /// The smoothed round-trip time, where the library knows it.
    fn rtt(&self) -> Option<Duration>;
}

/// The window of one connection together with that connection. Its size is fixed until [`begin`](Self::begin).
pub(crate) struct WindowCredit {
    window: Arc<ReceiveWindow>,
    connection: Box<dyn WindowControl>,
}

impl WindowCredit {
    pub(crate) fn new(window: Arc<ReceiveWindow>, connection: Box<dyn WindowControl>) -> Arc<Self> {
        Arc::new(Self { window, connection })
    }

    /// The node serves the connection: from now on its window counts for the unknown peers of the network of `from`.
    pub(crate) fn begin(&self, windows: &Arc<ReceiveWindows>, from: IpAddr) {
        self.window.begin(windows, from, Instant::now());
    }

    /// Keeps `until_gone` until the library has let go of the connection: a while after its end, of which the peer
    /// chooses a part.
    pub(crate) fn hold_until_gone(&self, until_gone: impl Any + Send + Sync) {
        self.window.hold_until_gone(until_gone);
    }

    /// The peer has proved to be `who`: the window counts for that peer.
    pub(crate) fn identify(&self, who: &PeerId) {
        let set = |bytes| self.connection.set_window(bytes);
        self.window.identify(who, set);
    }

    /// Lets the window grow to `most` bytes.
    pub(crate) fn allow(&self, most: u32) {
        let set = |bytes| self.connection.set_window(bytes);
        self.window.allow(most, set);
    }

    /// Counts bytes that the handler read.
    pub(crate) fn read(&self, bytes: usize) {
        if self.window.is_due(bytes) {
            let set = |bytes| self.connection.set_window(bytes);
            self.window
                .check(Instant::now(), self.connection.rtt(), set);
        }
    }
}

/// The window of one connection. It counts until its last owner drops it: code that keeps bytes which came in the
/// window has to own it.
#[derive(Debug)]
pub(crate) struct ReceiveWindow {
    /// Set once it counts.
    counted: Mutex<Option<WindowUsage>>,
    /// Bytes read since the last check.
    read: AtomicUsize,
    /// Number of bytes read after which the next check is due.
    due: AtomicUsize,
    /// Dropped together with the window.
    until_gone: OnceLock<Box<dyn Any + Send + Sync>>,
    /// Counts the connection among those that the node does not serve, until it does.
    unserved: Mutex<Option<UnservedGuard>>,
}

#[derive(Debug)]
struct WindowUsage {
    windows: Arc<ReceiveWindows>,
    owner: WindowOwner,
    /// Size in bytes.
    bytes: usize,
    /// Largest size in bytes that it may get.
    most: usize,
    /// Time of the last check.
    since: Instant,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self {
            counted: Mutex::default(),
            read: AtomicUsize::new(0),
            // Until the node serves the connection its window does not grow, whatever it reads.
            due: AtomicUsize::new(usize::MAX),
            until_gone: OnceLock::new(),
            unserved: Mutex::default(),
        }
    }
}

impl ReceiveWindow {
    /// The window of a connection whose handshake begins.
    pub(crate) fn new(unserved: UnservedGuard) -> Arc<Self> {
        Arc::new(Self {
            unserved: Mutex::new(Some(unserved)),
            ..Self::default()
        })
    }

    /// Keeps `until_gone` until the window is dropped.
    pub(crate) fn hold_until_gone(&self, until_gone: impl Any + Send + Sync) {
        // A connection ends only once, so the cell is empty.
        let _ = self.until_gone.set(Box::new(until_gone));
    }

    fn begin(&self, windows: &Arc<ReceiveWindows>, from: IpAddr, now: Instant) {
        let mut slot = self.lock();
        let counted = slot.get_or_insert_with(|| WindowUsage {
            windows: Arc::clone(windows),
            owner: WindowOwner::Network(NetworkPrefix::from_ip(from)),
            bytes: WINDOW_BYTES_FIRST as usize,
            most: StreamBudget::UNAUTHENTICATED.connection_window_bytes as usize,
            since: now,
        });
        // From here on the window counts for its owner, and no longer among the connections that are not served.
        self.due.store(counted.due(), Ordering::Relaxed);
        let mut unserved = self.unserved.lock().unwrap_or_else(PoisonError::into_inner);
        *unserved = None;
    }

    fn identify(&self, who: &PeerId, set: impl Fn(u32)) {
        self.change(set, |counted| {
            if matches!(counted.owner, WindowOwner::Network(_)) {
                let peer = WindowOwner::Peer(who.clone());
                let extra = counted.extra();
                // Where the peer has no room the window stays the network's, with the size that it has.
                if counted.windows.hand_over(&counted.owner, &peer, extra) {
                    counted.owner = peer;
                }
            }
            counted.start();
        });
    }

    fn allow(&self, most: u32, set: impl Fn(u32)) {
        self.change(set, |counted| {
            counted.most = most as usize;
            counted.start();
        });
    }

    /// Adds to the bytes read. Returns whether a check is due.
    fn is_due(&self, bytes: usize) -> bool {
        let read = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        read >= self.due.load(Ordering::Relaxed)
    }

    /// Lets the window grow if its bytes were read fast.
    fn check(&self, now: Instant, rtt: Option<Duration>, set: impl Fn(u32)) {
        self.change(set, |counted| {
            // Another task may have made this check meanwhile.
            if self.read.load(Ordering::Relaxed) < counted.due() {
                return;
            }
            self.read.store(0, Ordering::Relaxed);
            let took = now.saturating_duration_since(counted.since);
            counted.since = now;
            if took <= (rtt.unwrap_or_default() * 2).max(FAST) {
                let twice = counted.bytes.saturating_mul(2).min(counted.most);
                counted.grow(twice, WindowDemand::Read);
            }
        });
    }

    /// Changes the window, and announces the size before another task can change it again: the library takes a
    /// smaller size for a window that shrinks.
    fn change(&self, set: impl Fn(u32), change: impl FnOnce(&mut WindowUsage)) {
        let mut slot = self.lock();
        let Some(counted) = slot.as_mut() else {
            return;
        };
        let before = counted.bytes;
        change(counted);
        self.due.store(counted.due(), Ordering::Relaxed);
        // A window that was announced cannot be taken back (RFC 9000 section 4.1): only growth is sent.
        if counted.bytes > before {
            set(u32::try_from(counted.bytes).unwrap_or(u32::MAX));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<WindowUsage>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WindowUsage {
    /// The bytes beyond those with which every window begins.
    fn extra(&self) -> usize {
        self.bytes - WINDOW_BYTES_FIRST as usize
    }

    /// Gives a known peer that may have more a larger window at once: some of its streams may wait to be read beside
    /// others.
    fn start(&mut self) {
        let unauthenticated = StreamBudget::UNAUTHENTICATED.connection_window_bytes as usize;
        if matches!(self.owner, WindowOwner::Peer(_)) && self.most > unauthenticated {
            let start = self.most.min(WINDOW_BYTES_START as usize);
            self.grow(start, WindowDemand::Start);
        }
    }

    fn grow(&mut self, to: usize, need: WindowDemand) {
        let more = to.saturating_sub(self.bytes);
        self.bytes += self.windows.grant(&self.owner, more, need);
    }

    /// The number of bytes read after which the next check is due. A window of full size needs none.
    fn due(&self) -> usize {
        match self.bytes < self.most {
            true => self.bytes / 2,
            false => usize::MAX,
        }
    }
}

impl Drop for WindowUsage {
    fn drop(&mut self) {
        self.windows.give_back(&self.owner, self.extra());
    }
}

#[cfg(test)]
mod tests;
