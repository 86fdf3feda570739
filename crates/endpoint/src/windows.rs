//! Receive windows of QUIC connections: bytes that peers may send before the node has looked at any. No sockets.
//!
//! What a window lets come stays in memory for as long as the peer likes, on streams that the node does not read or
//! whose first byte is missing, and a window that was announced cannot be taken back. So each connection begins with a
//! small one, and what it gets beside that is counted before it is announced, for its peer and for the node, until
//! nothing of the connection is left. A window grows with what the node reads: a long path fills it in a round trip,
//! and a peer whose bytes are not read does not.

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

/// A window grows when half of it is read within two round trips, or within this time: on a short path what bounds a
/// transfer is how soon its reader gets its turn.
const FAST: Duration = Duration::from_millis(5);

/// What a window needs of its connection.
pub(crate) trait WindowControl: Send + Sync {
    /// Lets the peer send so many bytes more than were read.
    fn set_window(&self, bytes: u32);

    /// Smoothed round-trip time, where it is known.
    fn rtt(&self) -> Option<Duration>;
}

/// The window of one connection, and its connection. Until [`begin`](Self::begin) it stays as it is.
pub(crate) struct WindowCredit {
    window: Arc<ReceiveWindow>,
    connection: Box<dyn WindowControl>,
}

impl WindowCredit {
    pub(crate) fn new(window: Arc<ReceiveWindow>, connection: Box<dyn WindowControl>) -> Arc<Self> {
        Arc::new(Self { window, connection })
    }

    /// The connection is served: from now on its window counts for the unknown peers of the network of `from`.
    pub(crate) fn begin(&self, windows: &Arc<ReceiveWindows>, from: IpAddr) {
        self.window.begin(windows, from, Instant::now());
    }

    /// Keeps this until the library has let go of the connection: a while after its end, as the peer likes.
    pub(crate) fn keep(&self, until_gone: impl Any + Send + Sync) {
        self.window.keep(until_gone);
    }

    /// The peer is `who`: its window counts for it.
    pub(crate) fn identify(&self, who: &PeerId) {
        let set = |bytes| self.connection.set_window(bytes);
        self.window.identify(who, set);
    }

    /// The window may grow to so many bytes.
    pub(crate) fn allow(&self, most: u32) {
        let set = |bytes| self.connection.set_window(bytes);
        self.window.allow(most, set);
    }

    /// So many bytes were read.
    pub(crate) fn read(&self, bytes: usize) {
        if self.window.is_due(bytes) {
            let set = |bytes| self.connection.set_window(bytes);
            self.window.look(Instant::now(), self.connection.rtt(), set);
        }
    }
}

/// The window of one connection. It counts until its last owner drops it: code that keeps bytes which came in the
/// window has to be one of its owners.
#[derive(Debug)]
pub(crate) struct ReceiveWindow {
    /// Once it counts.
    counted: Mutex<Option<WindowUsage>>,
    /// Bytes read since it was looked at.
    read: AtomicUsize,
    /// As many let it be looked at.
    due: AtomicUsize,
    /// What is dropped with it.
    until_gone: OnceLock<Box<dyn Any + Send + Sync>>,
    /// Counts its connection among those that are not served, until it is.
    unserved: Mutex<Option<UnservedGuard>>,
}

#[derive(Debug)]
struct WindowUsage {
    windows: Arc<ReceiveWindows>,
    owner: WindowOwner,
    /// Its size.
    bytes: usize,
    /// The largest that it may have.
    most: usize,
    /// When it was looked at.
    since: Instant,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self {
            counted: Mutex::default(),
            read: AtomicUsize::new(0),
            // Until the connection is served its window does not grow, whatever was read.
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

    /// Keeps this until the window is dropped.
    pub(crate) fn keep(&self, until_gone: impl Any + Send + Sync) {
        // A connection ends once.
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
        self.due.store(counted.due(), Ordering::Relaxed);
        let mut unserved = self.unserved.lock().unwrap_or_else(PoisonError::into_inner);
        *unserved = None;
    }

    fn identify(&self, who: &PeerId, set: impl Fn(u32)) {
        self.change(set, |counted| {
            if matches!(counted.owner, WindowOwner::Network(_)) {
                let peer = WindowOwner::Peer(who.clone());
                let extra = counted.extra();
                // Where the peer has no room it stays the network's, and as small.
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

    /// Adds to what was read; whether the window is to be looked at.
    fn is_due(&self, bytes: usize) -> bool {
        let read = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        read >= self.due.load(Ordering::Relaxed)
    }

    /// Lets it grow where what was read came fast.
    fn look(&self, now: Instant, rtt: Option<Duration>, set: impl Fn(u32)) {
        self.change(set, |counted| {
            // Another task may have looked meanwhile.
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

    /// Changes it, and says so to the peer before another task can change it again: the library takes a smaller size
    /// for one that shrinks.
    fn change(&self, set: impl Fn(u32), change: impl FnOnce(&mut WindowUsage)) {
        let mut slot = self.lock();
        let Some(counted) = slot.as_mut() else {
            return;
        };
        let before = counted.bytes;
        change(counted);
        self.due.store(counted.due(), Ordering::Relaxed);
        if counted.bytes > before {
            set(u32::try_from(counted.bytes).unwrap_or(u32::MAX));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<WindowUsage>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WindowUsage {
    /// What it has beside that with which every window begins.
    fn extra(&self) -> usize {
        self.bytes - WINDOW_BYTES_FIRST as usize
    }

    /// A known peer that may have more begins with more: some of its streams may wait to be read beside others.
    fn start(&mut self) {
        let strangers = StreamBudget::UNAUTHENTICATED.connection_window_bytes as usize;
        if matches!(self.owner, WindowOwner::Peer(_)) && self.most > strangers {
            let start = self.most.min(WINDOW_BYTES_START as usize);
            self.grow(start, WindowDemand::Start);
        }
    }

    fn grow(&mut self, to: usize, need: WindowDemand) {
        let more = to.saturating_sub(self.bytes);
        self.bytes += self.windows.grant(&self.owner, more, need);
    }

    /// After how many bytes it is looked at. One that has all that it may have is not.
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
