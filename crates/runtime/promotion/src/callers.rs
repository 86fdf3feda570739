//! Counts the running calls of promoted operations: those of one author's operations, and those of each caller among
//! them.
//!
//! Each call may use a session of the author. Without a limit for all operations of an author, callers of two
//! operations could use all of the author's sessions. Without a limit for each caller, the first caller could use all
//! that the callers share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_call::{CallError, Ctx, ErrorCode};
use alknet_core::PeerId;

use crate::limits::{AUTHOR_CALLS_MAX, CALL_RETRY_MS, CALLER_CALLS_MAX, CALLER_CALLS_SPARE};

/// The caller; `None` is an unknown peer.
type Caller = Option<PeerId>;

/// A call of an operation, by the node's own number for it. The id of a request is unsuitable: its sender chooses it,
/// and with an idempotency key a repeated request's calls have the ids of the first one's.
type Call = u64;

/// Where a call comes from.
#[derive(Clone, Debug)]
pub(crate) struct PromotedCallOrigin {
    caller: Caller,
    call: Call,
    /// The operation call that makes this call; `None` for a request from outside.
    parent: Option<Call>,
}

impl PromotedCallOrigin {
    pub(crate) fn from_ctx(ctx: &Ctx) -> Self {
        Self {
            caller: ctx.identity().map(|who| who.id.clone()),
            call: ctx.call_number(),
            parent: ctx.parent_call_number(),
        }
    }
}

/// The calls of all promoted operations of a node.
#[derive(Debug, Default)]
pub(crate) struct PromotedCalls(Mutex<HashMap<String, AuthorCalls>>);

/// The calls of one author's operations.
#[derive(Debug, Default)]
struct AuthorCalls {
    all: u32,
    each: HashMap<Caller, u32>,
    /// All running calls, including those that do not count.
    running: HashSet<Call>,
}

impl AuthorCalls {
    /// Whether a caller with `own` calls may make one more. The last quarter is only for callers with few calls, so
    /// that two callers cannot use all.
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

/// A call that counts until this is dropped.
#[derive(Debug)]
pub(crate) struct PromotedCallPermit {
    _entry: PromotedCallEntry,
}

#[derive(Debug)]
struct PromotedCallEntry {
    callers: Arc<PromotedCalls>,
    author: String,
    origin: PromotedCallOrigin,
    /// The call is a part of another call of the same author, and does not count.
    is_part: bool,
}

impl PromotedCalls {
    /// Counts a call of an author's operation. A call that one operation of an author makes to another of the same
    /// author is a part of the first one and does not count: a part without room would fail a call that has room. A
    /// call from another author's operation counts, even if an operation of this author has called that one.
    ///
    /// # Errors
    /// `OVERLOADED` if the most calls are running.
    pub(crate) fn enter(
        self: &Arc<Self>,
        author: &str,
        origin: PromotedCallOrigin,
    ) -> Result<PromotedCallPermit, CallError> {
        let mut all = lock(&self.0);
        let calls = all.entry(author.to_owned()).or_default();
        let is_part = origin
            .parent
            .is_some_and(|parent| calls.running.contains(&parent));
        if !is_part {
            let own = calls.each.get(&origin.caller);
            let own = own.copied().unwrap_or_default();
            if let Err((most, whose)) = calls.take(own) {
                // Other calls run, or there would be room, so this leaves no empty entry.
                let text = format!("at most {most} {whose}; wait for one to end");
                let error = CallError::new(ErrorCode::Overloaded, text);
                return Err(error.with_retry_after_ms(CALL_RETRY_MS));
            }
            calls.all += 1;
            calls.each.insert(origin.caller.clone(), own + 1);
        }
        // The call is recorded even if it does not count, so that its own parts do not count either.
        calls.running.insert(origin.call);
        drop(all);
        Ok(PromotedCallPermit {
            _entry: PromotedCallEntry {
                callers: Arc::clone(self),
                author: author.to_owned(),
                origin,
                is_part,
            },
        })
    }
}

/// Decrements the count of `key`.
fn leave<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Drop for PromotedCallEntry {
    fn drop(&mut self) {
        let mut all = lock(&self.callers.0);
        let Some(calls) = all.get_mut(&self.author) else {
            return;
        };
        calls.running.remove(&self.origin.call);
        if !self.is_part {
            calls.all = calls.all.saturating_sub(1);
            leave(&mut calls.each, &self.origin.caller);
        }
        // An author without calls needs no entry, so the table does not grow with every author.
        if calls.all == 0 && calls.running.is_empty() {
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

    /// A request from outside.
    fn origin(caller: Option<&str>, call: Call) -> PromotedCallOrigin {
        PromotedCallOrigin {
            caller: caller.map(|name| name.parse().expect("a peer id")),
            call,
            parent: None,
        }
    }

    /// The call `number` that `parent` makes.
    fn part(parent: &PromotedCallOrigin, number: u64) -> PromotedCallOrigin {
        PromotedCallOrigin {
            caller: parent.caller.clone(),
            call: (parent.call + 1) * 1000 + number,
            parent: Some(parent.call),
        }
    }

    fn takes_all(
        callers: &Arc<PromotedCalls>,
        author: &str,
        caller: Option<&str>,
    ) -> Vec<PromotedCallPermit> {
        let next = |call: Call| callers.enter(author, origin(caller, call)).ok();
        (0..).map_while(next).collect()
    }

    #[test]
    fn one_caller_has_half_and_two_leave_others_some() {
        let callers = Arc::new(PromotedCalls::default());
        let eve = takes_all(&callers, "ada", Some("eve"));
        assert_eq!(eve.len(), 64);
        let refused = callers.enter("ada", origin(Some("eve"), 64));
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

    /// No two calls are alike. If two were, the end of one would not be that of the account of all.
    #[test]
    fn what_runs_is_counted_until_it_ends() {
        let callers = Arc::new(PromotedCalls::default());
        let slow = callers.enter("ada", origin(Some("eve"), 1));
        let slow = slow.expect("no other caller");
        drop(callers.enter("ada", origin(Some("eve"), 1)));
        let more = takes_all(&callers, "ada", Some("eve"));
        assert_eq!(more.len(), 63, "one still runs");
        drop((slow, more));
        assert!(lock(&callers.0).is_empty());
    }

    /// An operation of eve's that calls ada's without end takes what its caller may have, also below one of ada's; one
    /// of ada's calls what it likes of ada's.
    #[test]
    fn what_an_author_s_operation_calls_of_the_author_s_is_part_of_it() {
        let callers = Arc::new(PromotedCalls::default());
        let whole: Vec<_> = (0..63)
            .map(|n| callers.enter("ada", origin(Some("cal"), n)))
            .collect();
        assert!(whole.iter().all(Result::is_ok));
        let seventh = origin(Some("cal"), 7);
        let parts: Vec<_> = (0..100)
            .map(|n| callers.enter("ada", part(&seventh, n)))
            .collect();
        assert!(parts.iter().all(Result::is_ok));
        let deep = callers.enter("ada", part(&part(&seventh, 1), 0));
        let deep = deep.expect("a part of a part");

        let below = part(&seventh, 100);
        let of_eve = callers.enter("eve", below.clone());
        let of_eve = of_eve.expect("another author");
        let counts = callers.enter("ada", part(&below, 0)).expect("the last one");
        let more = callers.enter("ada", part(&below, 1));
        assert!(more.is_err(), "what eve's calls counts for cal");
        assert!(callers.enter("ada", part(&seventh, 101)).is_ok());
        drop((whole, parts, deep, counts));

        let taken: Vec<_> = (0..200)
            .map_while(|n| callers.enter("ada", part(&below, n)).ok())
            .collect();
        assert_eq!(taken.len(), 64, "no first one covers those that follow");
        drop((taken, of_eve));
        assert!(lock(&callers.0).is_empty());
    }
}
