//! By whose rights a call between operations, or one from outside, reads and writes.

use std::iter;
use std::sync::Arc;

use alknet_call::{CompositionAuthority, Ctx, Env};
use alknet_core::{Identity, PeerId, ScopeSet};
use alknet_tensor::FileId;

use crate::access::{TensorAccess, allows};
use crate::error::ServeError;
use crate::path::TensorFileRef;
use crate::store::TensorStore;

/// On whose behalf it happens, and what calls for them, where something does. Both have to be allowed it: who calls an
/// operation lends it no right, and an operation gives its caller none to read by.
#[derive(Clone, Debug)]
pub struct TensorRequester {
    identity: Arc<Identity>,
    calls: Option<CallingOperation>,
}

/// An operation or a script that calls.
#[derive(Clone, Debug)]
struct CallingOperation {
    label: Arc<str>,
    scopes: ScopeSet,
}

impl TensorRequester {
    /// Of a call.
    ///
    /// # Errors
    /// [`ServeError::Missing`] where the peer is not known, or what calls may do nothing.
    pub fn from_ctx(ctx: &Ctx) -> Result<Self, ServeError> {
        match ctx.internal() {
            true => Self::below(ctx.identity(), ctx.calling_authority()),
            false => Ok(Self {
                identity: ctx.identity().cloned().ok_or(ServeError::Missing)?,
                calls: None,
            }),
        }
    }

    /// Of whatever an operation or a script calls through `env`.
    ///
    /// # Errors
    /// As [`TensorRequester::from_ctx`].
    pub fn through(env: &Env) -> Result<Self, ServeError> {
        Self::below(env.identity(), env.authority())
    }

    fn below(
        identity: Option<&Arc<Identity>>,
        calls: Option<&CompositionAuthority>,
    ) -> Result<Self, ServeError> {
        let calls = calls.ok_or(ServeError::Missing)?;
        Ok(Self {
            identity: identity.cloned().ok_or(ServeError::Missing)?,
            calls: Some(CallingOperation {
                label: Arc::clone(&calls.label),
                scopes: calls.scopes.clone(),
            }),
        })
    }

    /// As [`TensorStore::resolve`], for both.
    ///
    /// # Errors
    /// [`ServeError::Missing`], whether it is not there or not for them.
    pub fn resolve(&self, store: &TensorStore, src: &TensorFileRef) -> Result<FileId, ServeError> {
        let id = store.resolve(&self.identity.scopes, src)?;
        match &self.calls {
            // A path that leads elsewhere meanwhile was allowed to the first as well: scopes name paths.
            Some(calls) => store.resolve(&calls.scopes, src),
            None => Ok(id),
        }
    }

    /// Whether both may store there.
    pub(crate) fn may_write(&self, place: &str) -> bool {
        let calls = self.calls.iter().map(|calls| &calls.scopes);
        let mut all = iter::once(&self.identity.scopes).chain(calls);
        all.all(|scopes| allows(scopes, TensorAccess::Write, place))
    }

    /// The peer that it counts for.
    pub(crate) fn id(&self) -> &PeerId {
        &self.identity.id
    }

    /// What calls for them.
    pub(crate) fn by(&self) -> Option<&Arc<str>> {
        self.calls.as_ref().map(|calls| &calls.label)
    }
}
