//! Serves the connections that handlers carry inside their own connections.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock, Weak};

use alknet_core::{
    AuthContext, AuthNeed, BoxFuture, Carriage, Connection, DispatchError, NESTING_DEPTH_MAX,
    NestedDispatch,
};

use crate::serve::{self, Admitted, EndpointShared};

/// The place where handlers hand over the connections that they carry.
///
/// Handlers are made before the port that serves them, so they get this first, and
/// [`Server::serve_nested`](crate::EndpointServer::serve_nested) attaches the port to it. Before that, and once the
/// port is gone, the node serves no carried connection.
#[derive(Default)]
pub struct Nesting(OnceLock<Weak<EndpointShared>>);

impl Nesting {
    /// A dispatcher that has no port yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn attach(&self, shared: &Arc<EndpointShared>) {
        self.0.get_or_init(|| Arc::downgrade(shared));
    }
}

impl NestedDispatch for Nesting {
    fn dispatch(
        &self,
        nested: Connection,
        auth: AuthContext,
    ) -> Result<BoxFuture<'static, ()>, DispatchError> {
        let shared = self.0.get().and_then(Weak::upgrade);
        let shared = shared.filter(|shared| !*shared.stop.borrow());
        // A node that drains serves nothing new, nested or not.
        let shared = shared.ok_or(DispatchError::Unavailable)?;
        let admitted = admit(&shared, &nested, auth)?;
        let from = nested
            .remote_addr()
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |addr| addr.ip());
        Ok(Box::pin(async move {
            serve::run(&shared, &nested, from, admitted).await;
        }))
    }
}

/// Admits a carried connection. It takes no slot of its own: its carrier has one, and bounds how many connections it
/// carries.
fn admit(
    shared: &EndpointShared,
    nested: &Connection,
    auth: AuthContext,
) -> Result<Admitted, DispatchError> {
    if nested.carriers().count() > NESTING_DEPTH_MAX {
        return Err(DispatchError::Depth);
    }
    let alpn = nested.alpn();
    if nested.carriers().any(|carrier| carrier.alpn() == alpn) {
        return Err(DispatchError::Itself);
    }
    let Some((spec, handler)) = shared.registry.get(alpn, Carriage::Memory) else {
        shared.totals.no_handler.add();
        return Err(DispatchError::NoHandler);
    };
    // The carrier may have learnt an identity since it made `auth`, and that counts.
    let identity = nested.identity();
    if identity.is_none() && spec.auth == AuthNeed::Tls {
        shared.totals.policy_refusals.add();
        nested.auth_failed();
        return Err(DispatchError::UnknownKey);
    }
    let auth = AuthContext {
        identity,
        alpn: Arc::clone(&nested.info().alpn),
        carriage: Carriage::Memory,
        ..auth
    };
    Ok((auth, spec.clone(), Arc::clone(handler)))
}

impl fmt::Debug for Nesting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nesting").finish_non_exhaustive()
    }
}
