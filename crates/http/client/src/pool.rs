//! Idle connections for the next requests.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::{Instant, sleep};

use crate::connection::HttpClientConnection;
use crate::limits::{POOL_IDLE, POOL_MAX, POOL_PER_ORIGIN_MAX};
use crate::origin::HttpOrigin;

/// Servers without HTTP/2 that the pool remembers.
const OLD_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct HttpConnectionPool(Mutex<HttpPoolState>);

#[derive(Default)]
struct HttpPoolState {
    lines: HashMap<HttpOrigin, Vec<(HttpClientConnection, Instant)>>,
    /// Servers that did not support HTTP/2 at the last connection.
    old: HashSet<HttpOrigin>,
    is_swept: bool,
}

impl HttpConnectionPool {
    /// An idle connection, or one that takes concurrent requests.
    pub(crate) fn take(&self, origin: &HttpOrigin) -> Option<HttpClientConnection> {
        let mut state = self.state();
        let lines = state.lines.get_mut(origin)?;
        let now = Instant::now();
        lines.retain(|(line, since)| !line.is_closed() && now - *since < POOL_IDLE);
        let (line, since) = lines.last_mut()?;
        match line.share() {
            Some(shared) => {
                *since = now;
                Some(shared)
            }
            None => lines.pop().map(|(line, _)| line),
        }
    }

    /// Keeps `line`, unless the pool is full.
    pub(crate) fn put(self: &Arc<Self>, origin: HttpOrigin, line: HttpClientConnection) {
        if line.is_closed() {
            return;
        }
        let mut state = self.state();
        let all: usize = state.lines.values().map(Vec::len).sum();
        let lines = state.lines.entry(origin).or_default();
        if all < POOL_MAX && lines.len() < POOL_PER_ORIGIN_MAX {
            lines.push((line, Instant::now()));
        }
        if !state.is_swept {
            state.is_swept = true;
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    pub(crate) fn is_old(&self, origin: &HttpOrigin) -> bool {
        self.state().old.contains(origin)
    }

    pub(crate) fn set_old(&self, origin: HttpOrigin) {
        let mut state = self.state();
        // Clearing the set costs one more attempt at HTTP/2 for each server.
        if state.old.len() >= OLD_MAX {
            state.old.clear();
        }
        state.old.insert(origin);
    }

    /// Closes idle connections; returns whether any are left.
    fn prune(&self) -> bool {
        let mut state = self.state();
        let now = Instant::now();
        state.lines.retain(|_, lines| {
            lines.retain(|(line, since)| !line.is_closed() && now - *since < POOL_IDLE);
            !lines.is_empty()
        });
        state.is_swept = !state.lines.is_empty();
        state.is_swept
    }

    fn state(&self) -> MutexGuard<'_, HttpPoolState> {
        // Each change leaves the state consistent, even if a thread panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for HttpConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpConnectionPool({})", self.state().lines.len())
    }
}

/// Closes connections that have been idle for [`POOL_IDLE`]; ends when the pool is empty or
/// dropped.
async fn sweep(pool: Weak<HttpConnectionPool>) {
    loop {
        sleep(POOL_IDLE).await;
        match pool.upgrade() {
            Some(pool) if pool.prune() => {}
            _ => return,
        }
    }
}
