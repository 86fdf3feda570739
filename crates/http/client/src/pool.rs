//! Connections that are kept for the next request.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::{Instant, sleep};

use crate::connection::HttpClientConnection;
use crate::limits::{POOL_IDLE, POOL_MAX, POOL_PER_ORIGIN_MAX};
use crate::origin::HttpOrigin;

/// Servers without HTTP/2 that are remembered.
const OLD_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct HttpConnectionPool(Mutex<HttpPoolState>);

#[derive(Default)]
struct HttpPoolState {
    lines: HashMap<HttpOrigin, Vec<(HttpClientConnection, Instant)>>,
    /// Servers that had no HTTP/2 when they were asked.
    old: HashSet<HttpOrigin>,
    is_swept: bool,
}

impl HttpConnectionPool {
    /// One that is not used, or that takes more than one request.
    pub(crate) fn take(&self, origin: &HttpOrigin) -> Option<HttpClientConnection> {
        let mut kept = self.kept();
        let lines = kept.lines.get_mut(origin)?;
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

    /// Keeps `line`, unless there are enough.
    pub(crate) fn put(self: &Arc<Self>, origin: HttpOrigin, line: HttpClientConnection) {
        if line.is_closed() {
            return;
        }
        let mut kept = self.kept();
        let all: usize = kept.lines.values().map(Vec::len).sum();
        let lines = kept.lines.entry(origin).or_default();
        if all < POOL_MAX && lines.len() < POOL_PER_ORIGIN_MAX {
            lines.push((line, Instant::now()));
        }
        if !kept.is_swept {
            kept.is_swept = true;
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    pub(crate) fn is_old(&self, origin: &HttpOrigin) -> bool {
        self.kept().old.contains(origin)
    }

    pub(crate) fn set_old(&self, origin: HttpOrigin) {
        let mut kept = self.kept();
        // What is lost is one attempt at HTTP/2 for each.
        if kept.old.len() >= OLD_MAX {
            kept.old.clear();
        }
        kept.old.insert(origin);
    }

    /// Whether there is anything left to look after.
    fn prune(&self) -> bool {
        let mut kept = self.kept();
        let now = Instant::now();
        kept.lines.retain(|_, lines| {
            lines.retain(|(line, since)| !line.is_closed() && now - *since < POOL_IDLE);
            !lines.is_empty()
        });
        kept.is_swept = !kept.lines.is_empty();
        kept.is_swept
    }

    fn kept(&self) -> MutexGuard<'_, HttpPoolState> {
        // Each step leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for HttpConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpConnectionPool({})", self.kept().lines.len())
    }
}

/// Closes connections that have been idle for [`POOL_IDLE`], and ends when the pool is empty or
/// gone.
async fn sweep(pool: Weak<HttpConnectionPool>) {
    loop {
        sleep(POOL_IDLE).await;
        match pool.upgrade() {
            Some(pool) if pool.prune() => {}
            _ => return,
        }
    }
}
