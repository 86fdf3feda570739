//! What messages of a server take once they are parsed. It is counted before: the protocol's library makes trees of
//! them, which have up to 75 times the bytes of their text, and whatever an untyped message may be it tries.

use std::sync::{Arc, Mutex};

use alknet_call::{CallError, ErrorCode, ImportClaim, ImportShare, tree_bytes};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::client::lock;
use crate::limits::{NOTE_TREE_BYTES_MAX, TREE_BYTES_MAX};

/// How many times the library has a message at once: as what it may be, and as what it is.
const COPIES: usize = 2;

/// Where the transport leaves what it counts for the answer to a request, which carries it
/// ([`Extensions`](rmcp::model::Extensions)). It counts until request and answer are done with. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Counted(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: ImportShare,
    state: Mutex<State>,
    refused: Notify,
}

#[derive(Debug, Default)]
struct State {
    claims: Vec<ImportClaim>,
    tree_bytes: usize,
    refusal: Option<CallError>,
}

impl Counted {
    pub(super) fn new(memory: &ImportShare) -> Self {
        Self(Arc::new(Inner {
            memory: memory.clone(),
            state: Mutex::default(),
            refused: Notify::new(),
        }))
    }

    /// Counts an answer's tree beside those before it: a list has many pages.
    fn add(&self, claim: ImportClaim, tree_bytes: usize) -> Result<(), CallError> {
        let mut state = lock(&self.0.state);
        let all = state.tree_bytes.saturating_add(tree_bytes);
        within(all, TREE_BYTES_MAX)?;
        state.tree_bytes = all;
        state.claims.push(claim);
        Ok(())
    }

    /// Notes why the transport reads no more: the library says only that the connection broke.
    pub(super) fn refuse(&self, why: &CallError) {
        lock(&self.0.state).refusal.get_or_insert_with(|| why.clone());
        self.0.refused.notify_one();
    }

    /// Resolves once something was refused.
    pub(super) async fn refused(&self) -> CallError {
        loop {
            let refused = self.0.refused.notified();
            if let Some(why) = &lock(&self.0.state).refusal {
                return why.clone();
            }
            refused.await;
        }
    }

    /// These bytes, counted until they are dropped instead of the answer that they were made of.
    pub(super) fn pass_on(&self, text: Bytes) -> Result<Bytes, CallError> {
        let mut claim = self.0.memory.claim();
        claim.becomes(text.len())?;
        Ok(claim.hold(text))
    }
}

fn within(tree_bytes: usize, most: usize) -> Result<(), CallError> {
    match tree_bytes > most {
        true => Err(CallError::new(
            ErrorCode::PayloadTooLarge,
            format!("the server says more values than this node takes: {most} bytes of memory"),
        )),
        false => Ok(()),
    }
}

/// Looks at the messages of one body or stream before the library does.
#[derive(Debug)]
pub(super) struct Scale {
    /// Of the request that they answer, where there is one.
    counted: Option<Counted>,
    memory: ImportShare,
    /// Counts the last message that is no answer, or answers nothing that is counted: the library is done with it when
    /// it asks for another.
    passing: ImportClaim,
}

/// Of a message, all that tells an answer from a request or a notification.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    method: Option<&'a RawValue>,
}

impl Scale {
    pub(super) fn new(memory: &ImportShare, counted: Option<Counted>) -> Self {
        Self {
            counted,
            memory: memory.clone(),
            passing: memory.claim(),
        }
    }

    /// Counts what a message will take.
    ///
    /// # Errors
    /// It is more than is taken of a server, or than there is room for.
    pub(super) fn weigh(&mut self, text: &[u8]) -> Result<(), CallError> {
        self.weighed(text).inspect_err(|why| {
            if let Some(counted) = &self.counted {
                counted.refuse(why);
            }
        })
    }

    fn weighed(&mut self, text: &[u8]) -> Result<(), CallError> {
        let tree = tree_bytes(text)
            .map_err(|error| CallError::new(ErrorCode::PayloadTooLarge, error.message))?;
        let bytes = COPIES.saturating_mul(tree.saturating_add(text.len()));
        match &self.counted {
            Some(counted) if is_answer(text) => {
                within(tree, TREE_BYTES_MAX)?;
                let mut claim = self.memory.claim();
                claim.becomes(bytes)?;
                counted.add(claim, tree)
            }
            _ => {
                within(tree, NOTE_TREE_BYTES_MAX)?;
                self.passing.becomes(bytes)
            }
        }
    }
}

fn is_answer(text: &[u8]) -> bool {
    let is_object = text.trim_ascii_start().starts_with(b"{");
    let head = serde_json::from_slice::<Head<'_>>(text);
    is_object && head.is_ok_and(|head| head.method.is_none())
}

#[cfg(test)]
mod tests {
    use alknet_call::ImportMemory;

    use super::*;

    fn answer(values: usize) -> String {
        let list = format!("[{}0]", "0,".repeat(values));
        format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{{\"structuredContent\":{list}}}}}")
    }

    #[test]
    fn answers_count_until_they_are_dropped() {
        let memory = ImportMemory::default();
        let share = memory.share();
        let counted = Counted::new(&share);
        let mut scale = Scale::new(&share, Some(counted.clone()));
        scale.weigh(answer(1000).as_bytes()).expect("room");
        assert!(memory.taken() > 100_000, "{}", memory.taken());
        drop(scale);
        let passed = counted.pass_on(Bytes::from_static(b"{}")).expect("room");
        drop(counted);
        assert_eq!(memory.taken(), 2);
        drop(passed);
        assert_eq!(memory.taken(), 0);
    }

    #[tokio::test]
    async fn too_many_values_are_refused_with_the_limit() {
        let share = ImportMemory::default().share();
        let counted = Counted::new(&share);
        let mut scale = Scale::new(&share, Some(counted.clone()));
        let refused = scale.weigh(answer(1 << 20).as_bytes()).expect_err("many");
        assert_eq!(refused.code, ErrorCode::PayloadTooLarge);
        assert!(
            refused.message.contains(&TREE_BYTES_MAX.to_string()),
            "{refused}"
        );
        assert_eq!(counted.refused().await, refused);
        // Page by page they are as many.
        let counted = Counted::new(&share);
        let mut scale = Scale::new(&share, Some(counted));
        let page = answer(100_000);
        let pages = (0..10).take_while(|_| scale.weigh(page.as_bytes()).is_ok());
        assert_eq!(pages.count(), 2);
    }

    #[test]
    fn what_answers_nothing_is_smaller() {
        let share = ImportMemory::default().share();
        let list = format!("[{}0]", "0,".repeat(20_000));
        let note = format!("{{\"method\":\"notifications/message\",\"params\":{list}}}");
        let mut scale = Scale::new(&share, Some(Counted::new(&share)));
        assert!(scale.weigh(note.as_bytes()).is_err());
        assert!(scale.weigh(answer(20_000).as_bytes()).is_ok());
        let mut unasked = Scale::new(&share, None);
        assert!(unasked.weigh(answer(20_000).as_bytes()).is_err());
        assert!(unasked.weigh(answer(10_000).as_bytes()).is_ok());
        assert!(scale.weigh(list.as_bytes()).is_err());
    }
}
