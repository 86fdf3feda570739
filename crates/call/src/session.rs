//! `session/authenticate`, which sets the identity that a connection acts as, and the watch over the proof of a
//! connection's identity.
//!
//! The endpoint watches, too, and both are needed. It ends connections of every protocol whose peer it knew by its
//! key at the accept, and knows no tokens and no connection that this node dialled. This module watches those.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use alknet_core::{AuthToken, CloseCode, Identity, PeerKey, StreamBudget};
use arc_swap::ArcSwapOption;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::body::CallBody;
use crate::client::Caller;
use crate::connection::CallConnectionState;
use crate::context::Ctx;
use crate::dispatcher::Dispatcher;
use crate::error::{CallError, ErrorCode};
use crate::handler::HandlerKind;
use crate::limits::SESSION_RECHECK;
use crate::registry::Registration;
use crate::request_grant::wait;
use crate::spec::OperationSpec;

/// Why a connection ends whose token expired.
pub(crate) const EXPIRED: &str = "expired";
/// Why a connection ends whose token or key was revoked.
pub(crate) const REVOKED: &str = "revoked";

/// The namespace of the connection's own operations.
pub(crate) const NAMESPACE: &str = "session";

/// The identity that a connection took by a token: at most one, once.
#[derive(Debug, Default)]
pub(crate) struct TokenSession {
    identity: ArcSwapOption<Identity>,
    token: OnceLock<Arc<AuthToken>>,
}

impl TokenSession {
    /// The identity, once a token authenticated the connection.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.load_full()
    }

    /// The token, once it authenticated the connection.
    pub(crate) fn token(&self) -> Option<&Arc<AuthToken>> {
        self.token.get()
    }

    /// Sets the identity; `false` when the session has one.
    fn begin(&self, identity: &Arc<Identity>, token: &Arc<AuthToken>) -> bool {
        let first = self.token.set(Arc::clone(token)).is_ok();
        if first {
            self.identity.store(Some(Arc::clone(identity)));
        }
        first
    }
}

/// The operation.
pub(crate) fn registration() -> Registration {
    let spec = OperationSpec::mutation(
        "session/authenticate",
        "Makes this connection act as the identity of a token, once.",
    )
    .with_input(json!({
        "type": "object",
        "properties": { "token": { "type": "string", "description": "alk_…" } },
        "required": ["token"],
    }))
    .with_output(json!({
        "type": "object",
        "properties": {
            "id": { "type": "string" },
            "scopes": { "type": "array", "items": { "type": "string" } },
        },
        "required": ["id", "scopes"],
    }));
    let handler = HandlerKind::once(|input, ctx| std::future::ready(run(&input, &ctx)));
    Registration::new(spec, handler).open()
}

fn run(input: &CallBody, ctx: &Ctx) -> Result<Value, CallError> {
    // Below a request the connection is that of the requester, which sent something else, and the identity would
    // outlast the request.
    if ctx.internal() || ctx.is_forwarded() {
        let text = "only the peer that made a connection authenticates it, and no operation or node in between";
        return Err(CallError::new(ErrorCode::Forbidden, text));
    }
    // The schema was checked, and its errors mask values: no message contains a token.
    let token = input.member("token").and_then(|token| token.parse().ok());
    let token: String = token.unwrap_or_default();
    let identity = authenticate(&ctx.caller().state, &token)?;
    Ok(json!({ "id": identity.id, "scopes": identity.scopes }))
}

fn authenticate(state: &Arc<CallConnectionState>, token: &str) -> Result<Arc<Identity>, CallError> {
    if state.session.identity().is_some() {
        return Err(once());
    }
    let identity = state.by_token(token)?;
    let token = Arc::new(AuthToken::new(token.to_owned()));
    if !state.session.begin(&identity, &token) {
        return Err(once());
    }
    // A peer known by its key stays that peer for the connection's limits and in its log lines.
    if state.connection.identity().is_none() {
        let _ = state.connection.set_identity(Arc::clone(&identity));
    }
    state.connection.raise_budget(StreamBudget::CALL);
    tracing::info!(conn = %state.info.id, identity = identity.id.as_str(), "authenticated");
    watch_over(state, SessionProof::Token(token), &identity);
    Ok(identity)
}

fn once() -> CallError {
    let message = "this connection is authenticated; open another for another identity";
    CallError::new(ErrorCode::Conflict, message)
}

/// Begins a connection as the identity of a token that the accepting server checked. `false` where the token is no
/// longer valid.
pub(crate) fn begin(state: &Arc<CallConnectionState>, token: Arc<AuthToken>) -> bool {
    let Some(identity) = state.dispatcher.by_token(token.expose()) else {
        return false;
    };
    // The guest has an identity of its own from the start: that of the carrying connection no longer counts.
    let first = state.session.begin(&identity, &token)
        && state.connection.set_identity(Arc::clone(&identity)).is_ok();
    if first {
        state.connection.raise_budget(StreamBudget::CALL);
        watch_over(state, SessionProof::Token(token), &identity);
    }
    first
}

impl Caller {
    /// Authenticates this connection by a token: from now on this side calls over it as the token's identity. Works
    /// once per connection.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for an unknown or expired token, `CONFLICT` the second time, and every error that a call can
    /// have.
    pub async fn authenticate(&self, token: &AuthToken) -> Result<(), CallError> {
        let input = json!({ "token": token.expose() });
        self.call("session/authenticate", &input).await.map(drop)
    }
}

/// The proof of an identity.
#[derive(Debug)]
pub(crate) enum SessionProof {
    /// The dialled server proved a key, which has these names.
    Keys(Vec<PeerKey>),
    /// The peer sent a token.
    Token(Arc<AuthToken>),
}

impl SessionProof {
    /// How long to wait at most before the next lookup, and whether the proof ends then by itself.
    fn lasts(&self, dispatcher: &Dispatcher) -> (Duration, bool) {
        let end = match self {
            Self::Keys(_) => None,
            Self::Token(token) => dispatcher.token_ends_in(token),
        };
        let end = end.filter(|end| *end <= SESSION_RECHECK);
        (end.unwrap_or(SESSION_RECHECK), end.is_some())
    }

    fn resolve(&self, dispatcher: &Dispatcher) -> Option<Arc<Identity>> {
        match self {
            Self::Keys(keys) => dispatcher.by_keys(keys),
            Self::Token(token) => dispatcher.by_token(token.expose()),
        }
    }
}

/// Ends the connection once `proof` no longer stands for `identity`, and follows its scopes until then. It does for
/// all other proofs what the endpoint does for keys of accepted connections.
pub(crate) fn watch_over(
    state: &Arc<CallConnectionState>,
    proof: SessionProof,
    identity: &Arc<Identity>,
) {
    let Some(mut changes) = state.dispatcher.identity_changes() else {
        return;
    };
    // The proof may have been revoked between its lookup and this: the watch looks it up again at once.
    changes.mark_changed();
    let watch = watch(Arc::downgrade(state), proof, Arc::clone(identity), changes);
    // The watch must not outlive the connection.
    let over = state.over();
    tokio::spawn(async move {
        over.run_until_cancelled(watch).await;
    });
}

async fn watch(
    state: Weak<CallConnectionState>,
    proof: SessionProof,
    mut current: Arc<Identity>,
    mut changes: watch::Receiver<u64>,
) {
    loop {
        let Some((lasts, ends)) = state.upgrade().map(|state| proof.lasts(&state.dispatcher))
        else {
            return;
        };
        let begun = Instant::now();
        if !wait(&mut changes, lasts).await {
            return;
        }
        let Some(state) = state.upgrade() else {
            return;
        };
        let now = proof.resolve(&state.dispatcher);
        // A token that is gone before its end was revoked.
        let expired = ends && begun.elapsed() >= lasts;
        match now.filter(|identity| identity.id == current.id) {
            Some(identity) => {
                replace(&state, &proof, &current, &identity);
                current = identity;
            }
            None if expired => return state.close(CloseCode::Policy, EXPIRED),
            None => return state.close(CloseCode::Policy, REVOKED),
        }
    }
}

fn replace(
    state: &CallConnectionState,
    proof: &SessionProof,
    before: &Arc<Identity>,
    now: &Arc<Identity>,
) {
    // A connection that is identified by its key keeps that identity: a token changes nothing about it.
    let connections = state.connection.identity();
    if connections.is_some_and(|old| Arc::ptr_eq(&old, before)) {
        let _ = state.connection.set_identity(Arc::clone(now));
    }
    if matches!(proof, SessionProof::Token(_)) {
        state.session.identity.store(Some(Arc::clone(now)));
    }
}
