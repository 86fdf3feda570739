//! What messages of a server take once they are parsed. It is counted before: the protocol's library makes trees of
//! them, which have up to 75 times the bytes of their text, and whatever an untyped message may be it tries.

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

/// How many times the library has a message at once: as what it may be, and as what it is. Of what it sends it keeps
/// one and passes on another.
pub(super) const COPIES: usize = 2;

/// Where the transport leaves what it counts for the answer to a request, which carries it
/// ([`Extensions`](rmcp::model::Extensions)). It counts until request and answer are done with. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct AnswerMeter(Arc<AnswerMeterInner>);

#[derive(Debug)]
struct AnswerMeterInner {
    memory: ImportShare,
    /// The call that it belongs to, unless it is for a list of tools.
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

    /// For the answer to this call, whose requester's share is `memory`.
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

    /// What the answer counts against.
    pub(super) fn memory(&self) -> &ImportShare {
        &self.0.memory
    }

    /// Notes with a call that changes something whether its request is on its way ([`Ctx::set_sent`]).
    pub(super) fn set_sent(&self, sent: bool) {
        if let Some(ctx) = self.0.call.as_ref().filter(|ctx| !ctx.is_query()) {
            ctx.set_sent(sent);
        }
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

    /// Keeps what counts the request itself.
    pub(super) fn add_request(&self, claim: ImportClaim) {
        lock(&self.0.state).claims.push(claim);
    }

    /// Notes why the transport reads no more: the library says only that the connection broke.
    pub(super) fn refuse(&self, why: &CallError) {
        // The first reason stays: those behind it follow from it.
        lock(&self.0.state)
            .refusal
            .get_or_insert_with(|| why.clone());
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
pub(super) struct MessageScale {
    /// Of the request that they answer, where there is one.
    counted: Option<AnswerMeter>,
    memory: ImportShare,
    /// Counts the last message that is no answer, or answers nothing that is counted: the library is done with it when
    /// it asks for another.
    passing: ImportClaim,
    asked: ServerRequests,
}

/// What the library gets of a message.
#[derive(Debug)]
pub(super) enum WeighedMessage {
    AsItIs,
    /// Nothing: it is a request beyond those that the server may have open.
    Dropped,
    /// This in its place.
    Sealed(String),
}

/// Of a message, all that tells an answer from a request or a notification.
#[derive(Deserialize)]
struct MessageHead<'a> {
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

impl<'a> MessageHead<'a> {
    /// `None` where the message is no object, or names a member of the head twice.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let is_object = text.trim_ascii_start().starts_with(b"{");
        let head = is_object.then(|| serde_json::from_slice(text));
        head.and_then(Result::ok)
    }
}

impl MessageScale {
    /// For a body of the connection on which the server has `asked` for something.
    pub(super) fn new(
        memory: &ImportShare,
        counted: Option<AnswerMeter>,
        asked: &ServerRequests,
    ) -> Self {
        Self {
            counted,
            memory: memory.clone(),
            passing: memory.claim(),
            asked: asked.clone(),
        }
    }

    /// Counts what a message will take, and tells what the library gets of it.
    ///
    /// # Errors
    /// It is more than is taken of a server, or than there is room for.
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

    /// Whether the library may have this message: it is no request, or one of few.
    fn admits(&self, text: &[u8]) -> bool {
        match MessageHead::parse(text) {
            Some(MessageHead {
                method: Some(method),
                id: Some(id),
            }) => self.asked.admits(id.get(), method.get()),
            Some(_) => true,
            // An object that names its method or its id twice, which the library could read as a request.
            None => !text.trim_ascii_start().starts_with(b"{"),
        }
    }

    fn weighed(&mut self, text: &[u8], list: Option<&McpListAnswer<'_>>) -> Result<(), CallError> {
        let tree = tree_bytes(text)
            .map_err(|error| CallError::new(ErrorCode::PayloadTooLarge, error.message))?;
        let bytes = match list {
            None => COPIES.saturating_mul(tree.saturating_add(text.len())),
            // Its tree is made once, of the text that the library passed on.
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
