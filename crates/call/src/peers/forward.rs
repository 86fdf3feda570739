//! Operations whose code runs on a peer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use alknet_core::{BoxFuture, Identity, PeerId};
use futures_util::{StreamExt, stream};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::body::{CallBody, CallOutput, SubscriptionItem};
use crate::client::{CallOptions, Caller, Subscription};
use crate::connection::{CallConnectionState, ForwardingGuard};
use crate::context::Ctx;
use crate::envelope::ForwardedFor;
use crate::error::{CallError, ErrorCode};
use crate::handler::{BoxStream, HandlerKind, OnceHandler, StreamHandler};
use crate::import::CallerDisclosure;
use crate::keyed::{is_keyed, key_for};
use crate::limits::{CURSOR_BYTES_MAX, FORWARDING_HOPS_MAX, HOP_MARGIN};
use crate::outbound::SubscriptionEvent;
use crate::outgoing::PendingCall;
use crate::peers::attach::peer_of;
use crate::request_bytes::Requester;
use crate::spec::{OperationSpec, OperationType};

/// The scope of a caller that may have this node pass on requests that are forwarded already.
const TRANSIT_SCOPE: &str = "hub:transit";

/// The handler of an operation that a peer announces with `spec` and serves as `remote`.
pub(crate) fn forwarding(
    caller: &Caller,
    spec: &OperationSpec,
    remote: &str,
    disclose: CallerDisclosure,
) -> HandlerKind {
    let forward = Arc::new(ForwardHandler {
        state: Arc::downgrade(caller.connection_state()),
        peer: peer_of(caller.connection_state()),
        remote: remote.into(),
        disclose,
        changes: spec.op_type == OperationType::Mutation,
        is_keyed: is_keyed(spec),
    });
    match spec.op_type {
        OperationType::Subscription => HandlerKind::Stream(forward),
        OperationType::Mutation | OperationType::Query => HandlerKind::Once(forward),
    }
}

struct ForwardHandler {
    /// Weak: an import must not keep a connection alive.
    state: Weak<CallConnectionState>,
    peer: Option<PeerId>,
    remote: Box<str>,
    disclose: CallerDisclosure,
    /// Whether it is a mutation.
    changes: bool,
    /// Whether the peer runs it once for a key.
    is_keyed: bool,
}

impl ForwardHandler {
    /// The connection over which this node read the operation, while it is open.
    fn connection_state(&self, ctx: &Ctx) -> Result<Arc<CallConnectionState>, CallError> {
        let gone = || CallError::unavailable("the peer is gone");
        self.state
            .upgrade()
            .map_or_else(|| self.newer(ctx, gone()), Ok)
    }

    /// The connection over which the peer is attached now, for a call that sent nothing before `error`. The call was
    /// routed here just before that connection replaced another one, which was idle and ended.
    fn newer(&self, ctx: &Ctx, error: CallError) -> Result<Arc<CallConnectionState>, CallError> {
        let peer = self.peer.as_ref();
        let state = peer.and_then(|peer| ctx.dispatcher().peers.connection_to(peer));
        state.ok_or(error)
    }

    /// The connection to use after `error` over `state`: another one, or the error.
    fn other(
        &self,
        ctx: &Ctx,
        state: &Arc<CallConnectionState>,
        error: CallError,
    ) -> Result<Arc<CallConnectionState>, CallError> {
        // Any other error means that the peer has the request.
        if error.code != ErrorCode::Unavailable {
            return Err(error);
        }
        let newer = self.newer(ctx, error.clone())?;
        // Sending it again over the same connection would fail in the same way.
        if Arc::ptr_eq(&newer, state) {
            return Err(error);
        }
        Ok(newer)
    }

    /// Everything that a forwarded request carries: the time that is left, the identity it is forwarded for, the key
    /// under which it runs once, its trace and its hops. It carries nothing else of the request, least of all its
    /// token.
    fn options(&self, ctx: &Ctx) -> Result<CallOptions, CallError> {
        Ok(CallOptions {
            timeout: time_left(ctx.deadline())?,
            forwarded_for: self.originator(ctx)?,
            idempotency_key: forwarded_key(ctx),
            trace: ctx.trace().map(str::to_owned),
            hops: next_hop(ctx.hops())?,
            ..CallOptions::default()
        })
    }

    /// The requester of this node. A claim that came with the request replaces it, for a forwarder with the scope
    /// `hub:transit`: nodes build no chain of claims.
    fn originator(&self, ctx: &Ctx) -> Result<Option<ForwardedFor>, CallError> {
        let identity = ctx.identity().map(AsRef::as_ref);
        if let Some(claim) = ctx.forwarded_for() {
            if !identity.is_some_and(|identity: &Identity| identity.scopes.allows(TRANSIT_SCOPE)) {
                return Err(CallError::new(
                    ErrorCode::Forbidden,
                    "a forwarded request is not forwarded again; ask for the scope hub:transit",
                ));
            }
            return Ok(match self.disclose {
                CallerDisclosure::Full => Some(claim.clone()),
                CallerDisclosure::Id => Some(ForwardedFor::new(claim.id())),
                CallerDisclosure::None => None,
            });
        }
        Ok(identity.and_then(|identity| self.disclose.claim(identity)))
    }

    async fn once(&self, input: CallBody, ctx: Ctx) -> Result<CallOutput, CallError> {
        let (_counted, pending) = match self.begin(input, &ctx).await {
            Ok(begun) => begun,
            Err(error) => {
                self.note_sent(false, &ctx);
                return Err(error);
            }
        };
        // The caller repeats this request with the key, and the peer honours the key.
        let asks_again = self.is_keyed && forwarded_key(&ctx).is_some() && !ctx.may_go_elsewhere();
        if !asks_again {
            self.note_sent(true, &ctx);
        }
        let outcome = pending.outcome().await;
        // The peer says that it has not begun: a call that has run is not retryable with this code.
        let untaken = |error: &CallError| error.retryable && error.code == ErrorCode::Overloaded;
        if outcome.as_ref().is_err_and(untaken) {
            self.note_sent(false, &ctx);
        }
        Ok(outcome?.into())
    }

    /// Notes with a mutation whether the peer may have made its change.
    fn note_sent(&self, sent: bool, ctx: &Ctx) {
        if self.changes {
            ctx.set_sent(sent);
        }
    }

    /// Sends the request. Its input is not kept while the peer works.
    async fn begin(
        &self,
        input: CallBody,
        ctx: &Ctx,
    ) -> Result<(ForwardingGuard, PendingCall), CallError> {
        let input = json_text(&input)?;
        let mut state = self.connection_state(ctx)?;
        loop {
            // For each connection: waiting for a connection that ended has used up part of the time.
            let options = self.options(ctx)?;
            let counted = ForwardingGuard::new(&state);
            let _queued = state.claim_unsent(input.get().len())?;
            let caller = Caller::new(Arc::clone(&state));
            match caller.begin(&self.remote, &*input, &options).await {
                Ok(pending) => return Ok((counted, pending)),
                Err(error) => state = self.other(ctx, &state, error)?,
            }
        }
    }

    /// Begins a subscription. Its events that wait to be passed on count for the requester.
    async fn subscribe(
        &self,
        input: CallBody,
        ctx: &Ctx,
    ) -> Result<(ForwardingGuard, Subscription), CallError> {
        let input = json_text(&input)?;
        let requester =
            Requester::from_identity(ctx.identity().map(AsRef::as_ref), ctx.conn().remote_addr);
        let mut state = self.connection_state(ctx)?;
        loop {
            let options = self.options(ctx)?;
            let counted = ForwardingGuard::new(&state);
            let _queued = state.claim_unsent(input.get().len())?;
            let caller = Caller::new(Arc::clone(&state));
            let events = caller.subscribe_for(&requester, &self.remote, &*input, &options);
            match events.await {
                Ok(events) => return Ok((counted, events)),
                Err(error) => state = self.other(ctx, &state, error)?,
            }
        }
    }

    async fn events(
        &self,
        input: CallBody,
        ctx: Ctx,
    ) -> Result<BoxStream<Result<SubscriptionItem, CallError>>, CallError> {
        let (counted, events) = self.subscribe(input, &ctx).await?;
        Ok(Box::pin(events.map(move |event| {
            // The closure takes the guard along: the call counts while its events come.
            let _counted = &counted;
            event.and_then(item)
        })))
    }
}

impl OnceHandler for ForwardHandler {
    fn call(
        self: Arc<Self>,
        input: CallBody,
        ctx: Ctx,
    ) -> BoxFuture<'static, Result<CallOutput, CallError>> {
        Box::pin(async move { self.once(input, ctx).await })
    }
}

impl StreamHandler for ForwardHandler {
    fn call(
        self: Arc<Self>,
        input: CallBody,
        ctx: Ctx,
    ) -> BoxStream<Result<SubscriptionItem, CallError>> {
        let begun = stream::once(async move { self.events(input, ctx).await });
        Box::pin(
            begun.flat_map(|events| {
                events.unwrap_or_else(|error| Box::pin(stream::iter([Err(error)])))
            }),
        )
    }
}

impl CallerDisclosure {
    /// What this node discloses to a peer about `identity`.
    fn claim(self, identity: &Identity) -> Option<ForwardedFor> {
        let id = ForwardedFor::new(identity.id.as_str());
        match self {
            Self::Full => Some(
                id.with_scopes(identity.scopes.clone().into())
                    .with_resources(json!(identity.resources)),
            ),
            Self::Id => Some(id),
            Self::None => None,
        }
    }
}

/// How often a request has been passed on once this node does so. The node sends the number whether or not it
/// discloses a forwarder, and also with calls that operations make for a request: a circle of nodes ends.
fn next_hop(hops: u8) -> Result<u8, CallError> {
    // Nodes that do not disclose forwarders cannot see a circle in any other way.
    if hops >= FORWARDING_HOPS_MAX {
        let message = format!(
            "the request was passed on {FORWARDING_HOPS_MAX} times already: do nodes forward to each other \
             in a circle?"
        );
        return Err(CallError::new(ErrorCode::Forbidden, message));
    }
    Ok(hops + 1)
}

/// The idempotency key of a forwarded request. Without one, a request whose answer is lost on the way to the peer
/// would run there again when its caller repeats it: this node does not remember failures that may be gone next time.
///
/// To the peer all requests come from this node, so the key includes the caller's name as well: equal keys of two
/// callers stay two. Callers without a lasting name have no key here.
fn forwarded_key(ctx: &Ctx) -> Option<String> {
    let key = ctx.idempotency_key()?;
    let caller = match (ctx.identity(), ctx.conn().key) {
        (Some(identity), _) => identity.id.to_string(),
        (None, key) => key?.to_string(),
    };
    Some(key_for(&caller, key))
}

fn item(event: SubscriptionEvent) -> Result<SubscriptionItem, CallError> {
    Ok(SubscriptionItem {
        output: event.output.into(),
        cursor: event.cursor.as_ref().map(cursor).transpose()?,
        dropped: event.dropped,
    })
}

fn cursor(cursor: &CallBody) -> Result<Value, CallError> {
    let bytes = cursor.raw().len();
    // A cursor becomes a tree, of many times its length.
    if bytes > CURSOR_BYTES_MAX {
        let message = format!(
            "the peer's cursor has {bytes} bytes, and at most {CURSOR_BYTES_MAX} are passed on"
        );
        return Err(CallError::internal(message));
    }
    cursor.try_value().cloned()
}

/// The input in the form that a request carries.
fn json_text(input: &CallBody) -> Result<Box<RawValue>, CallError> {
    let text = String::from_utf8(input.inlined()?.into_owned());
    let text = text.map_err(|error| CallError::invalid_input(error.to_string()))?;
    RawValue::from_string(text).map_err(|error| CallError::invalid_input(error.to_string()))
}

/// The time until a deadline, less the time it takes to answer.
fn time_left(deadline: Option<Instant>) -> Result<Option<Duration>, CallError> {
    let Some(deadline) = deadline else {
        return Ok(None);
    };
    deadline
        .checked_duration_since(Instant::now())
        .and_then(|left| left.checked_sub(HOP_MARGIN))
        .filter(|left| !left.is_zero())
        .map(Some)
        .ok_or_else(CallError::timeout)
}

#[cfg(test)]
mod tests {
    use alknet_core::IdentityKind;

    use super::*;
    use crate::limits::IDEMPOTENCY_KEY_BYTES_MAX;

    #[test]
    fn what_is_disclosed_is_what_was_chosen() {
        let identity = Identity {
            id: "someone".parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: ["a:b"].into_iter().collect(),
            resources: [("disk".into(), vec!["sda".into()])].into(),
            generation: 0,
        };
        let text = |disclose: CallerDisclosure| disclose.claim(&identity).map(|claim| json!(claim));
        assert_eq!(text(CallerDisclosure::None), None);
        assert_eq!(text(CallerDisclosure::Id), Some(json!({"id": "someone"})));
        assert_eq!(
            text(CallerDisclosure::Full),
            Some(json!({
                "id": "someone", "scopes": ["a:b"], "resources": {"disk": ["sda"]},
            }))
        );
    }

    #[test]
    fn a_key_is_one_callers_and_not_too_long() {
        let key = key_for("someone", "k");
        assert_eq!(key.len(), IDEMPOTENCY_KEY_BYTES_MAX);
        assert_ne!(key, key_for("someon", "ek"));
        assert_ne!(key, key_for("another", "k"));
    }

    #[test]
    fn a_long_cursor_is_not_made_into_a_tree() {
        let text = |n| CallBody::from_text(format!("[{}0]", "0,".repeat(n)).into());
        assert_eq!(cursor(&text(1)).expect("short"), json!([0, 0]));
        let long = cursor(&text(CURSOR_BYTES_MAX)).expect_err("too long");
        assert_eq!(long.code, ErrorCode::Internal);
    }

    #[test]
    fn a_request_is_passed_on_so_often() {
        assert_eq!(next_hop(0), Ok(1));
        assert_eq!(next_hop(FORWARDING_HOPS_MAX - 1), Ok(FORWARDING_HOPS_MAX));
        for hops in [FORWARDING_HOPS_MAX, u8::MAX] {
            let refused = next_hop(hops).expect_err("too often");
            assert_eq!(refused.code, ErrorCode::Forbidden);
        }
    }

    #[tokio::test]
    async fn no_time_left_is_no_call() {
        let now = Instant::now();
        assert_eq!(time_left(None).expect("no deadline"), None);
        assert!(time_left(Some(now)).is_err());
        let left = time_left(Some(now + Duration::from_secs(9))).expect("time enough");
        assert!(left.is_some_and(|left| left <= Duration::from_secs(9) - HOP_MARGIN));
    }
}
