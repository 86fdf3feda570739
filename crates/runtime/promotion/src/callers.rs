//! Calls of promoted operations that run at once: those of one author's operations, and of one caller among them.
//!
//! Each may take a session of the author's. Without a bound for all of an author's operations together
//! callers of two would take all of the author's; without one for each caller the first would take what is there for
//! all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_call::{CallError, Ctx, ErrorCode};
use alknet_core::PeerId;

use crate::limits::{AUTHOR_CALLS_MAX, CALL_RETRY_MS, CALLER_CALLS_MAX, CALLER_CALLS_SPARE};

/// Who calls; `None` is an unauthenticated peer.
type Caller = Option<PeerId>;

/// A request from outside, by the node's number for it: its id is its sender's choice.
type Root = u64;

/// Whose call it is.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    caller: Caller,
    root: Root,
    /// Another operation calls.
    internal: bool,
}

impl Origin {
    pub(crate) fn of(ctx: &Ctx) -> Self {
        Self {
            caller: ctx.identity().map(|who| who.id.clone()),
            root: ctx.root_number(),
            internal: ctx.internal(),
        }
    }
}

/// The calls of all promoted operations of a node.
#[derive(Debug, Default)]
pub(crate) struct Callers(Mutex<HashMap<String, Calls>>);

/// The calls of one author's.
#[derive(Debug, Default)]
struct Calls {
    all: u32,
    each: HashMap<Caller, u32>,
    /// Requests for one of the author's operations itself.
    roots: HashMap<Root, u32>,
}

impl Calls {
    /// Whether one more call of a caller who has `own` may run. Of the last quarter only those get any who have few: so
    /// two callers do not take all.
    fn take(&self, own: u32) -> Result<(), (u32, &'static str)> {
        if own >= CALLER_CALLS_MAX {
            let whose = "calls of one caller to the operations of one author at once";
            return Err((CALLER_CALLS_MAX, whose));
        }
        let few = self.all < AUTHOR_CALLS_MAX / 4 * 3 || own < CALLER_CALLS_SPARE;
        if self.all >= AUTHOR_CALLS_MAX || !few {
            return Err((
                AUTHOR_CALLS_MAX,
                "calls to the operations of one author at once",
            ));
        }
        Ok(())
    }
}

/// A call that is counted until this is gone.
#[derive(Debug)]
pub(crate) struct Counted {
    _entry: Option<Entry>,
}

#[derive(Debug)]
struct Entry {
    callers: Arc<Callers>,
    author: String,
    origin: Origin,
}

impl Callers {
    /// Counts a call of an author's operation. What an operation of the author's calls of the author's is a part of it,
    /// and the author's own affair: a part that found no room would fail a call that has some.
    ///
    /// # Errors
    /// `OVERLOADED` where as many run as may.
    pub(crate) fn enter(
        self: &Arc<Self>,
        author: &str,
        origin: Origin,
    ) -> Result<Counted, CallError> {
        let mut all = lock(&self.0);
        let calls = all.entry(author.to_owned()).or_default();
        if origin.internal && calls.roots.contains_key(&origin.root) {
            return Ok(Counted { _entry: None });
        }
        let own = calls.each.get(&origin.caller);
        let own = own.copied().unwrap_or_default();
        if let Err((most, whose)) = calls.take(own) {
            // Other calls run, or there would be room: no entry is left behind.
            let text = format!("at most {most} {whose}; wait for one to end");
            let error = CallError::new(ErrorCode::Overloaded, text);
            return Err(error.with_retry_after_ms(CALL_RETRY_MS));
        }
        calls.all += 1;
        calls.each.insert(origin.caller.clone(), own + 1);
        if !origin.internal {
            *calls.roots.entry(origin.root).or_default() += 1;
        }
        drop(all);
        Ok(Counted {
            _entry: Some(Entry {
                callers: Arc::clone(self),
                author: author.to_owned(),
                origin,
            }),
        })
    }
}

/// Counts one less.
fn leave<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut all = lock(&self.callers.0);
        let Some(calls) = all.get_mut(&self.author) else {
            return;
        };
        calls.all -= 1;
        leave(&mut calls.each, &self.origin.caller);
        if !self.origin.internal {
            leave(&mut calls.roots, &self.origin.root);
        }
        if calls.all == 0 {
            all.remove(&self.author);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(caller: Option<&str>, root: Root, internal: bool) -> Origin {
        Origin {
            caller: caller.map(|name| name.parse().expect("a peer id")),
            root,
            internal,
        }
    }

    fn takes_all(callers: &Arc<Callers>, author: &str, caller: Option<&str>) -> Vec<Counted> {
        let next = |root: Root| callers.enter(author, origin(caller, root, false)).ok();
        (0..).map_while(next).collect()
    }

    #[test]
    fn one_caller_has_half_and_two_leave_others_some() {
        let callers = Arc::new(Callers::default());
        let eve = takes_all(&callers, "ada", Some("eve"));
        assert_eq!(eve.len(), 64);
        let refused = callers.enter("ada", origin(Some("eve"), 64, false));
        let refused = refused.expect_err("half of them");
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert!(refused.retryable && refused.retry_after_ms.is_some());
        let mallory = takes_all(&callers, "ada", Some("mallory"));
        assert_eq!(mallory.len(), 32, "the last quarter is left");
        let others: Vec<_> = (0..8)
            .map(|n| takes_all(&callers, "ada", Some(&format!("other-{n}"))))
            .collect();
        assert!(others.iter().all(|calls| calls.len() == 4));
        assert!(takes_all(&callers, "ada", None).is_empty(), "128 run");
        // What is called of another author is not their affair.
        assert_eq!(takes_all(&callers, "bob", Some("eve")).len(), 64);
        drop((eve, mallory, others));
        assert!(lock(&callers.0).is_empty());
    }

    /// An operation of eve's that calls ada's without end takes what eve may have; one of ada's calls what it likes.
    #[test]
    fn what_an_author_s_operation_calls_of_the_author_s_is_part_of_it() {
        let callers = Arc::new(Callers::default());
        let calls = |author: &str, root: Root, internal| {
            callers.enter(author, origin(Some("cal"), root, internal))
        };
        let whole: Vec<_> = (0..64).map(|n| calls("ada", n, false)).collect();
        assert!(whole.iter().all(Result::is_ok));
        assert!(calls("ada", 64, false).is_err());
        let parts: Vec<_> = (0..100).map(|_| calls("ada", 7, true)).collect();
        assert!(parts.iter().all(Result::is_ok));
        let begun = 65;
        let of_eve = calls("eve", begun, false).expect("another author");
        assert!(calls("ada", begun, true).is_err(), "it counts for cal");
        drop((whole, parts));
        let taken: Vec<_> = (0..200)
            .map_while(|_| calls("ada", begun, true).ok())
            .collect();
        assert_eq!(taken.len(), 64, "no first one covers those that follow");
        drop((taken, of_eve));
        assert!(lock(&callers.0).is_empty());
    }
}
