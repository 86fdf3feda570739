//! The rights with which a call reads and writes: those of its caller, and of the operation that calls on its behalf.

use std::iter;
use std::sync::Arc;

use alknet_call::{CompositionAuthority, Ctx, Env};
use alknet_core::{Identity, PeerId, ScopeSet};
use alknet_tensor::FileId;

use crate::access::{ReadablePaths, TensorAccess, allows};
use crate::error::ServeError;
use crate::path::TensorFileRef;
use crate::store::TensorStore;

/// The caller's identity, and the operation that calls on its behalf, if one does. Both need the scope: an operation
/// does not gain its caller's rights, and a caller does not gain the operation's.
#[derive(Clone, Debug)]
pub struct TensorRequester {
    identity: Arc<Identity>,
    calls: Option<CallingOperation>,
}

/// An operation or a script that calls on a caller's behalf.
#[derive(Clone, Debug)]
struct CallingOperation {
    label: Arc<str>,
    scopes: ScopeSet,
}

impl TensorRequester {
    /// The requester of a call.
    ///
    /// # Errors
    /// [`ServeError::Missing`] if the peer is unknown, or the calling operation has no authority.
    pub fn from_ctx(ctx: &Ctx) -> Result<Self, ServeError> {
        match ctx.internal() {
            true => Self::below(ctx.identity(), ctx.calling_authority()),
            // A call from outside has no operation between the caller and the store.
            false => Ok(Self {
                identity: ctx.identity().cloned().ok_or(ServeError::Missing)?,
                calls: None,
            }),
        }
    }

    /// The requester of a call that an operation or a script makes through `env`.
    ///
    /// # Errors
    /// The errors of [`TensorRequester::from_ctx`].
    pub fn through(env: &Env) -> Result<Self, ServeError> {
        Self::below(env.identity(), env.authority())
    }

    fn below(
        identity: Option<&Arc<Identity>>,
        calls: Option<&CompositionAuthority>,
    ) -> Result<Self, ServeError> {
        // An operation without an authority has no scopes, so it may reach nothing.
        let calls = calls.ok_or(ServeError::Missing)?;
        Ok(Self {
            identity: identity.cloned().ok_or(ServeError::Missing)?,
            calls: Some(CallingOperation {
                label: Arc::clone(&calls.label),
                scopes: calls.scopes.clone(),
            }),
        })
    }

    /// As [`TensorStore::resolve`], with the scopes of both.
    ///
    /// # Errors
    /// [`ServeError::Missing`], whether the file does not exist or one of them may not read it.
    pub fn resolve(&self, store: &TensorStore, src: &TensorFileRef) -> Result<FileId, ServeError> {
        let id = store.resolve(&self.identity.scopes, src)?;
        match &self.calls {
            // The path may lead elsewhere by now, which the first identity was allowed to read as well, because
            // scopes name paths.
            Some(calls) => store.resolve(&calls.scopes, src),
            None => Ok(id),
        }
    }

    /// The paths that both may read; `None` if one of them has no scope for reading.
    pub(crate) fn readable(&self) -> Option<ReadablePaths> {
        let own = ReadablePaths::from_scopes(&self.identity.scopes)?;
        match &self.calls {
            Some(calls) => Some(own.and(ReadablePaths::from_scopes(&calls.scopes)?)),
            None => Some(own),
        }
    }

    /// Whether both may store at a path.
    pub(crate) fn may_write(&self, place: &str) -> bool {
        let calls = self.calls.iter().map(|calls| &calls.scopes);
        let mut all = iter::once(&self.identity.scopes).chain(calls);
        all.all(|scopes| allows(scopes, TensorAccess::Write, place))
    }

    /// The peer whose limits the request counts against.
    pub(crate) fn id(&self) -> &PeerId {
        &self.identity.id
    }

    /// The operation that calls on the peer's behalf.
    pub(crate) fn by(&self) -> Option<&Arc<str>> {
        self.calls.as_ref().map(|calls| &calls.label)
    }
}
