//! The rights behind a running subscription, and the watch over them.
//!
//! A requester that loses the right to an operation keeps nothing of it that runs: a subscription whose rule no
//! longer holds ends with `FORBIDDEN`, or `UNAUTHENTICATED` where the identity is gone. Queries and mutations run to
//! their end: that comes by itself, and half a mutation helps no requester.
//!
//! The node looks the right up at its source and not on the connection, whose identity the endpoint replaces at its
//! own pace. So a change of rights counts without any notice to the connections: from the moment at which the
//! identities have it, which is before the node answers the administrator who made it,
//!
//! - the node admits a request by the rights of that moment,
//! - it answers a query, and gives an event, only if the right to it holds at that moment.
//!
//! The node answers a mutation as it ended: the change is made.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_core::{AuthToken, Identity};
use tokio::sync::watch;

use crate::access::{AccessControl, AccessDecision};
use crate::admission::no_way;
use crate::connection::CallConnectionState;
use crate::error::CallError;
use crate::limits::SESSION_RECHECK;
use crate::local_caller::CallerProof;
use crate::request::InboundRequest;
use crate::spec::OperationType;

/// The facts with which a request was admitted, to be checked again.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestGrant {
    /// What else proves the identity, if not the connection.
    pub(crate) proved_by: Option<CallerProof>,
    /// The resource its input names.
    pub(crate) resource: Option<Box<str>>,
    /// The rule of the way to the peer that it was passed on to.
    pub(crate) route: Option<AccessControl>,
}

impl InboundRequest {
    /// The identity that the request acts for at this moment.
    pub(crate) fn identity_now(&self) -> Option<Arc<Identity>> {
        let before = self.identity()?;
        let grant = self.head.grant.as_ref();
        let token = self.head.token.as_deref();
        let proved_by = grant.and_then(|grant| grant.proved_by);
        self.connection_state().proved(before, token, proved_by)
    }

    /// Whether the requester may still get an answer or an event. While nothing changes, this looks up no identity.
    pub(crate) fn may_still_receive(&self) -> Result<(), CallError> {
        let is_made = self.operation().spec.op_type == OperationType::Mutation;
        let (Some(grant), Some(requester), false) = (&self.head.grant, self.identity(), is_made)
        else {
            return Ok(());
        };
        let dispatcher = &self.connection_state().dispatcher;
        // The common case: no table of identities replaced the one that admitted the request.
        if dispatcher.is_current(requester) {
            return Ok(());
        }
        // Before the lookup of the identity: the next check sees a change in between.
        let table = dispatcher.table();
        // Relaxed: a number that this thread sees late costs one more check of the rights.
        if table.is_some_and(|table| self.seen.load(Ordering::Relaxed) == table) {
            return Ok(());
        }
        self.still_allowed(grant)?;
        if let Some(table) = table {
            self.seen.store(table, Ordering::Relaxed);
        }
        Ok(())
    }

    fn still_allowed(&self, grant: &RequestGrant) -> Result<(), CallError> {
        let requester = self.identity_now();
        let (requester, key) = (requester.as_deref(), self.connection_state().info.key);
        if let Some(route) = &grant.route
            && route.check(requester, None, None) != AccessDecision::Allowed
        {
            return Err(no_way(requester, key));
        }
        let ownership = self.connection_state().dispatcher.ownership.as_deref();
        let rule = &self.operation().spec.access_control;
        rule.admit(requester, grant.resource.as_deref(), ownership, key)
    }
}

impl CallConnectionState {
    /// The identity that the peer acts as now, by a lookup and not by the one stored on the connection.
    pub(crate) fn identity_now(&self) -> Option<Arc<Identity>> {
        if let (Some(stored), Some(token)) = (self.session.identity(), self.session.token()) {
            let now = self.dispatcher.by_token(token.expose());
            // The token may be another identity's by now.
            return now.filter(|now| now.id == stored.id);
        }
        let stored = self.connection.identity()?;
        let by_key = self.dispatcher.by_keys(self.info.key.as_slice());
        match by_key.filter(|now| now.id == stored.id) {
            Some(now) => Some(now),
            // The key no longer has this identity. A closed connection may still store it: no watch removes it there.
            None if self.holder.as_ref() == Some(&stored.id) => None,
            // The code that made such an identity also replaces it.
            None if stored.generation == 0 => Some(stored),
            None => self.dispatcher.by_id(&stored.id),
        }
    }

    /// The identity `before` as it is now, by its proof: a token of the request, something else, or the connection.
    pub(crate) fn proved(
        &self,
        before: &Identity,
        token: Option<&AuthToken>,
        proved_by: Option<CallerProof>,
    ) -> Option<Arc<Identity>> {
        let dispatcher = &self.dispatcher;
        let now = match (token, proved_by) {
            (Some(token), _) => dispatcher.by_token(token.expose()),
            (None, Some(CallerProof::Key(key))) => dispatcher.by_keys(&[key]),
            (None, Some(CallerProof::Name)) => dispatcher.by_id(&before.id),
            (None, None) => self.identity_now(),
        };
        now.filter(|now| now.id == before.id)
    }

    /// Like `proved`, for a request whose requester proved its identity some time ago: receiving the rest of the
    /// request may have taken until now.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` where its token is no longer valid.
    pub(crate) fn still(
        &self,
        before: Option<Arc<Identity>>,
        token: Option<&AuthToken>,
        proved_by: Option<CallerProof>,
    ) -> Result<Option<Arc<Identity>>, CallError> {
        let Some(before) = before else {
            return Ok(None);
        };
        if self.dispatcher.is_current(&before) {
            return Ok(Some(before));
        }
        match self.proved(&before, token, proved_by) {
            None if token.is_some() => Err(CallError::bad_token()),
            now => Ok(now),
        }
    }
}

/// Resolves once the subscription may no longer run.
pub(crate) async fn withdrawn(request: &InboundRequest) -> CallError {
    let Some(grant) = &request.head.grant else {
        return std::future::pending().await;
    };
    let open = grant.route.is_none() && request.operation().spec.access_control.is_open();
    let changes = request.connection_state().dispatcher.identity_changes();
    // An operation that every caller may use needs no watch.
    let Some(mut changes) = changes.filter(|_| !open) else {
        return std::future::pending().await;
    };
    loop {
        // At first, too: rights may have changed since the request was admitted.
        if let Err(error) = request.still_allowed(grant) {
            return error;
        }
        if !wait(&mut changes, SESSION_RECHECK).await {
            return std::future::pending().await;
        }
    }
}

/// Waits until identities may have changed; `false` when they never will again. Keys and tokens also expire, which no
/// notice announces.
pub(crate) async fn wait(changes: &mut watch::Receiver<u64>, at_most: Duration) -> bool {
    match tokio::time::timeout(at_most, changes.changed()).await {
        Ok(changed) => changed.is_ok(),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use alknet_core::{
        AuthContext, AuthToken, IdentityKind, IdentityProvider, PeerKey, memory_pair,
    };
    use futures_util::{StreamExt, stream};
    use serde_json::Value;

    use super::*;
    use crate::{
        ALPN, Dispatcher, HandlerKind, LocalCaller, LocalRequest, OperationSpec, Registration,
        Registry,
    };

    const KEY: PeerKey = PeerKey::Ed25519([7; 32]);

    /// Knows one key until the test removes it.
    #[derive(Default)]
    struct RevocableKeyIdentities {
        changed: watch::Sender<u64>,
        removed: AtomicBool,
    }

    impl RevocableKeyIdentities {
        fn remove(&self) {
            self.removed.store(true, Ordering::SeqCst);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    impl IdentityProvider for RevocableKeyIdentities {
        fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
            let known = *key == KEY && !self.removed.load(Ordering::SeqCst);
            known.then(|| {
                Arc::new(Identity {
                    id: "mole".parse().expect("a peer id"),
                    kind: IdentityKind::Peer,
                    scopes: ["work"].iter().collect(),
                    resources: Default::default(),
                    generation: 0,
                })
            })
        }

        fn by_token(&self, _: &AuthToken) -> Option<Arc<Identity>> {
            None
        }

        fn watch(&self) -> watch::Receiver<u64> {
            self.changed.subscribe()
        }
    }

    /// No watch removes the identity from the connection, as with a closed one.
    #[tokio::test]
    async fn a_subscription_ends_with_the_key_of_a_connection_that_is_closed() {
        let spec = OperationSpec::subscription("test/silent", "A test.").with_scope("work");
        let silent = HandlerKind::stream(|_, _| stream::pending::<Result<Value, CallError>>());
        let registry = Registry::builder().with(Registration::new(spec, silent));
        let registry = registry.build().expect("the operation is fine");
        let known = Arc::new(RevocableKeyIdentities::default());
        let dispatcher = Dispatcher::new(registry).with_identities(Arc::clone(&known) as _);
        let (_dialled, accepted) = memory_pair(ALPN);
        let identity = known.by_key(&KEY).expect("it is known");
        let set = accepted.set_identity(Arc::clone(&identity));
        set.expect("it has no owner yet");
        let auth = AuthContext {
            identity: Some(Arc::clone(&identity)),
            key: Some(KEY),
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: accepted.carriage(),
            early_data: false,
        };
        let gate = LocalCaller::new(&Arc::new(dispatcher), &accepted, Some(&auth));
        let incoming = LocalRequest {
            identity: Some(identity),
            ..LocalRequest::new("1", "test/silent")
        };
        let mut events = gate.subscribe(incoming).expect("it is allowed");
        known.remove();
        let ended = tokio::time::timeout(SESSION_RECHECK / 2, events.next()).await;
        let ended = ended.expect("it hears of the removal").expect("an end");
        let refused = ended.expect_err("no event").error;
        assert_eq!(refused.code.name(), "UNAUTHENTICATED");
        // The connection keeps its identity: only a lookup of the key shows the removal.
        assert!(gate.identity().is_some());
    }
}
