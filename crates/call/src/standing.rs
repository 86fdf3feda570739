//! What the right to a running subscription rests on, and the watch over it.
//!
//! Whoever loses the right to an operation keeps nothing of it that runs: a subscription whose rule
//! no longer holds ends with `FORBIDDEN`, or `UNAUTHENTICATED` where nobody is left. Queries and
//! mutations are not looked at again: they end by themselves, and half a mutation helps nobody.
//!
//! The right is looked up where it comes from and not on the connection, whose identity the endpoint
//! replaces at its own pace.

use std::sync::Arc;
use std::time::Duration;

use alknet_core::{AuthToken, Identity};
use tokio::sync::watch;

use crate::access::AccessControl;
use crate::error::CallError;
use crate::limits::SESSION_RECHECK;
use crate::link::Link;
use crate::local::ProvedBy;
use crate::request::Request;

/// What was true when a subscription was let in, to be asked again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// The token of this one request.
    pub(crate) token: Option<Arc<AuthToken>>,
    /// What else proves whose it is, if not the connection.
    pub(crate) proved_by: Option<ProvedBy>,
    /// The resource its input names.
    pub(crate) resource: Option<Box<str>>,
    /// The rule of the way to the peer it was passed on to.
    pub(crate) route: Option<AccessControl>,
}

impl Request {
    /// Whom the request acts for, as things are now.
    pub(crate) fn identity_now(&self) -> Option<Arc<Identity>> {
        let before = self.identity()?;
        let standing = self.head.standing.as_ref();
        let token = standing.and_then(|standing| standing.token.as_ref());
        let proved_by = standing.and_then(|standing| standing.proved_by);
        let dispatcher = &self.link().dispatcher;
        let now = match (token, proved_by) {
            (Some(token), _) => dispatcher.by_token(token.expose()),
            (None, Some(ProvedBy::Key(key))) => dispatcher.by_keys(&[key]),
            (None, Some(ProvedBy::Name)) => dispatcher.by_id(&before.id),
            (None, None) => self.link().identity_now(before),
        };
        now.filter(|now| now.id == before.id)
    }

    fn still_allowed(&self, standing: &Standing) -> Result<(), CallError> {
        let who = self.identity_now();
        if let Some(route) = &standing.route {
            route.check(who.as_deref(), None, None).into_result()?;
        }
        let ownership = self.link().dispatcher.ownership.as_deref();
        let rule = &self.operation().spec.access_control;
        rule.check(who.as_deref(), standing.resource.as_deref(), ownership)
            .into_result()
    }
}

impl Link {
    /// Who `before` is now, on this connection.
    fn identity_now(&self, before: &Identity) -> Option<Arc<Identity>> {
        if let Some(token) = self.session.token() {
            return self.dispatcher.by_token(token.expose());
        }
        let key = self.info.key.as_slice();
        let by_key = self.dispatcher.by_keys(key);
        // Who is somebody by other means is for whoever found that out to replace.
        by_key
            .filter(|now| now.id == before.id)
            .or_else(|| self.identity())
    }
}

/// Resolves once the subscription may no longer run.
pub(crate) async fn withdrawn(request: &Request) -> CallError {
    let Some(standing) = &request.head.standing else {
        return std::future::pending().await;
    };
    let open = standing.route.is_none() && request.operation().spec.access_control.is_open();
    let changes = request.link().dispatcher.identity_changes();
    let Some(mut changes) = changes.filter(|_| !open) else {
        return std::future::pending().await;
    };
    loop {
        // At first, too: something may have changed since the request was let in.
        if let Err(error) = request.still_allowed(standing)
            && !alknet_core::mutant_a(1028)
        {
            return error;
        }
        if !wait(&mut changes, SESSION_RECHECK).await {
            return std::future::pending().await;
        }
    }
}

/// Waits until identities may have changed; `false` when they never will again. Keys and tokens
/// also expire, which nobody announces.
pub(crate) async fn wait(changes: &mut watch::Receiver<u64>, at_most: Duration) -> bool {
    if alknet_core::mutant_a(1161) {
        tokio::time::sleep(at_most).await;
        return true;
    }
    match tokio::time::timeout(at_most, changes.changed()).await {
        Ok(changed) => changed.is_ok(),
        Err(_) => true,
    }
}
