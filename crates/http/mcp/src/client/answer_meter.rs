//! Counts the memory that messages of a server take once they are parsed. The node counts it before it parses them:
//! the protocol's library makes trees of messages, which have up to 75 times the bytes of their text, and tries each
//! type that an untyped message may have.

use std::sync::{Arc, Mutex};

use alknet_call::{CallError, Ctx, ErrorCode, ImportClaim, ImportShare, tree_bytes};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::client::lock;
use crate::client::server_requests::ServerRequests;
use crate::client::tool_list::{McpListAnswer, SEALED_COPIES};
use crate::limits::{NOTE_TREE_BYTES_MAX, TREE_BYTES_MAX};

/// How many copies of a message the library has at once: one of each type that it tries, and the final one. Of a
/// message that it sends, it keeps one copy and passes on another.
pub(super) const COPIES: usize = 2;

/// The counted memory of the answer to a request. The request carries the meter to the transport
/// ([`Extensions`](rmcp::model::Extensions)). The memory counts until the request and the answer are dropped. Clones
/// share their state.
#[derive(Clone, Debug)]
pub(super) struct AnswerMeter(Arc<AnswerMeterInner>);

#[derive(Debug)]
struct AnswerMeterInner {
    memory: ImportShare,
    /// The call that the answer belongs to; `None` for a list of tools.
    call: Option<Ctx>,
    state: Mutex<AnswerMeterState>,
    refused: Notify,
}

#[derive(Debug, Default)]
struct AnswerMeterState {
    claims: Vec<ImportClaim>,
    tree_bytes: usize,
    refusal: Option<CallError>,
}

impl AnswerMeter {
    pub(super) fn new(memory: &ImportShare) -> Self {
        Self::build(memory, None)
    }

    /// A meter for the answer to this call. `memory` is the share of the call's requester.
    pub(super) fn for_call(memory: &ImportShare, ctx: &Ctx) -> Self {
        Self::build(memory, Some(ctx.clone()))
    }

    fn build(memory: &ImportShare, call: Option<Ctx>) -> Self {
        Self(Arc::new(AnswerMeterInner {
            memory: memory.clone(),
            call,
            state: Mutex::default(),
            refused: Notify::new(),
        }))
    }

    /// The memory that the answer counts against.
    pub(super) fn memory(&self) -> &ImportShare {
        &self.0.memory
    }

    /// Records in a call that changes something whether its request is on its way ([`Ctx::set_sent`]).
    pub(super) fn set_sent(&self, sent: bool) {
        if let Some(ctx) = self.0.call.as_ref().filter(|ctx| !ctx.is_query()) {
            ctx.set_sent(sent);
        }
    }

    /// Adds the tree of an answer to the trees before it: a list has several pages.
    fn add(&self, claim: ImportClaim, tree_bytes: usize) -> Result<(), CallError> {
        let mut state = lock(&self.0.state);
        let all = state.tree_bytes.saturating_add(tree_bytes);
        within(all, TREE_BYTES_MAX)?;
        state.tree_bytes = all;
        state.claims.push(claim);
        Ok(())
    }

    /// Keeps the claim that counts the request itself.
    pub(super) fn add_request(&self, claim: ImportClaim) {
        lock(&self.0.state).claims.push(claim);
    }

    /// Records why the transport stops reading: the library reports only that the connection broke.
    pub(super) fn refuse(&self, why: &CallError) {
        // Only the first reason is recorded, because later failures follow from it.
        lock(&self.0.state)
            .refusal
            .get_or_insert_with(|| why.clone());
        self.0.refused.notify_one();
    }

    /// Resolves once the transport refused something.
    pub(super) async fn refused(&self) -> CallError {
        loop {
            // The future is made before the check, so a refusal between both is not missed.
            let refused = self.0.refused.notified();
            if let Some(why) = &lock(&self.0.state).refusal {
                return why.clone();
            }
            refused.await;
        }
    }

    /// Returns `text`, whose bytes count until it is dropped. The answer that it was made from counts no longer.
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

/// Counts the messages of one body or stream before the library reads them.
#[derive(Debug)]
pub(super) struct MessageScale {
    /// The meter of the request that the messages answer, if there is one.
    counted: Option<AnswerMeter>,
    memory: ImportShare,
    /// Counts the last message that no meter counts: one that is no answer, or answers an uncounted request. The
    /// library has finished with it when it asks for the next message.
    passing: ImportClaim,
    server_requests: ServerRequests,
}

/// How the library gets a message.
#[derive(Debug)]
pub(super) enum WeighedMessage {
    AsItIs,
    /// The library does not get it: the server has as many open requests as it may have.
    Dropped,
    /// The library gets this text in its place.
    Sealed(String),
}

/// The members of a message that distinguish an answer from a request or a notification.
#[derive(Deserialize)]
struct MessageHead<'a> {
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

impl<'a> MessageHead<'a> {
    /// `None` if the message is no object or has a member of the head twice.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let is_object = text.trim_ascii_start().starts_with(b"{");
        let head = is_object.then(|| serde_json::from_slice(text));
        head.and_then(Result::ok)
    }
}

impl MessageScale {
    /// Counts the messages of one body. `server_requests` has the open requests of the server on its connection.
    pub(super) fn new(
        memory: &ImportShare,
        counted: Option<AnswerMeter>,
        server_requests: &ServerRequests,
    ) -> Self {
        Self {
            counted,
            memory: memory.clone(),
            passing: memory.claim(),
            server_requests: server_requests.clone(),
        }
    }

    /// Counts the memory that a message will take, and returns how the library gets it.
    ///
    /// # Errors
    /// The message is larger than the node accepts from a server, or memory is short.
    pub(super) fn weigh(&mut self, text: &[u8]) -> Result<WeighedMessage, CallError> {
        let list = McpListAnswer::from_message(text);
        self.weighed(text, list.as_ref()).inspect_err(|why| {
            if let Some(counted) = &self.counted {
                counted.refuse(why);
            }
        })?;
        Ok(match list {
            Some(list) => WeighedMessage::Sealed(list.sealed()),
            None if self.admits(text) => WeighedMessage::AsItIs,
            None => WeighedMessage::Dropped,
        })
    }

    /// Whether the library may have this message: it is no request, or the server has few open requests.
    fn admits(&self, text: &[u8]) -> bool {
        match MessageHead::parse(text) {
            Some(MessageHead {
                method: Some(method),
                id: Some(id),
            }) => self.server_requests.admits(id.get(), method.get()),
            Some(_) => true,
            // The library could read an object that has its method or its id twice as a request.
            None => !text.trim_ascii_start().starts_with(b"{"),
        }
    }

    fn weighed(&mut self, text: &[u8], list: Option<&McpListAnswer<'_>>) -> Result<(), CallError> {
        let tree = tree_bytes(text)
            .map_err(|error| CallError::new(ErrorCode::PayloadTooLarge, error.message))?;
        let bytes = match list {
            None => COPIES.saturating_mul(tree.saturating_add(text.len())),
            // The library makes the list's tree once, from the sealed text that it passed on.
            Some(list) => tree.saturating_add(SEALED_COPIES.saturating_mul(list.sealed_bytes())),
        };
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
    MessageHead::parse(text).is_some_and(|head| head.method.is_none())
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
        let counted = AnswerMeter::new(&share);
        let mut scale =
            MessageScale::new(&share, Some(counted.clone()), &ServerRequests::default());
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
        let counted = AnswerMeter::new(&share);
        let mut scale =
            MessageScale::new(&share, Some(counted.clone()), &ServerRequests::default());
        let refused = scale.weigh(answer(1 << 20).as_bytes()).expect_err("many");
        assert_eq!(refused.code, ErrorCode::PayloadTooLarge);
        assert!(
            refused.message.contains(&TREE_BYTES_MAX.to_string()),
            "{refused}"
        );
        assert_eq!(counted.refused().await, refused);
        // Page by page they are as many.
        let counted = AnswerMeter::new(&share);
        let mut scale = MessageScale::new(&share, Some(counted), &ServerRequests::default());
        let page = answer(100_000);
        let pages = (0..10).take_while(|_| scale.weigh(page.as_bytes()).is_ok());
        assert_eq!(pages.count(), 2);
    }

    #[test]
    fn what_answers_nothing_is_smaller() {
        let share = ImportMemory::default().share();
        let list = format!("[{}0]", "0,".repeat(20_000));
        let note = format!("{{\"method\":\"notifications/message\",\"params\":{list}}}");
        let mut scale = MessageScale::new(
            &share,
            Some(AnswerMeter::new(&share)),
            &ServerRequests::default(),
        );
        assert!(scale.weigh(note.as_bytes()).is_err());
        assert!(scale.weigh(answer(20_000).as_bytes()).is_ok());
        let mut unasked = MessageScale::new(&share, None, &ServerRequests::default());
        assert!(unasked.weigh(answer(20_000).as_bytes()).is_err());
        assert!(unasked.weigh(answer(10_000).as_bytes()).is_ok());
        assert!(scale.weigh(list.as_bytes()).is_err());
    }
}
