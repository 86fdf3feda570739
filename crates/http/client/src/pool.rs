//! Connections that are kept for the next request.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::{Instant, sleep};

use crate::limits::{POOL_IDLE, POOL_MAX, POOL_PER_ORIGIN_MAX};
use crate::line::Line;
use crate::origin::Origin;

/// Servers without HTTP/2 that are remembered.
const OLD_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct Pool(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    lines: HashMap<Origin, Vec<(Line, Instant)>>,
    /// Servers that had no HTTP/2 when they were asked.
    old: HashSet<Origin>,
    is_swept: bool,
}

impl Pool {
    /// One that is not used, or that takes more than one request.
    pub(crate) fn take(&self, origin: &Origin) -> Option<Line> {
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
    pub(crate) fn put(self: &Arc<Self>, origin: Origin, line: Line) {
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

    pub(crate) fn is_old(&self, origin: &Origin) -> bool {
        self.kept().old.contains(origin)
    }

    pub(crate) fn set_old(&self, origin: Origin) {
        let mut kept = self.kept();
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

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each step leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.kept().lines.len())
    }
}

/// Closes what nobody uses any more, and ends with the last.
async fn sweep(pool: Weak<Pool>) {
    loop {
        sleep(POOL_IDLE).await;
        match pool.upgrade() {
            Some(pool) if pool.prune() => {}
            _ => return,
        }
    }
}
