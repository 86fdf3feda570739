//! Operations that a session wrote for itself.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::compose::authority::{CompositionAuthority, Provenance};
use crate::compose::env::{OperationEnv, OperationLookup, SessionEnv};
use crate::compose::invoke::Env;
use crate::layers::SessionLayer;
use crate::limits::SESSION_OPERATIONS_MAX;
use crate::peers::ScopedPeerEnv;
use crate::registry::Registration;
use crate::rules::{self, RegistryError};

/// Layer 1: the operations that code in a sandbox registered. Only that session's own calls see them.
///
/// The operation that runs the sandbox opens the session, which never exceeds it: the session's authority and reach
/// are parts of that operation's, and every operation that the session registers works with them.
#[derive(Clone)]
pub struct SandboxSession {
    layer: Arc<SessionLayer>,
    below: Arc<dyn OperationEnv>,
    authority: Arc<CompositionAuthority>,
    scope: Arc<ScopedPeerEnv>,
}

impl SandboxSession {
    /// Opens a session within what `env` may do and reaches.
    ///
    /// # Errors
    /// `authority` or `scope` exceeds that of `env`.
    pub fn open(
        env: &Env,
        authority: CompositionAuthority,
        scope: ScopedPeerEnv,
    ) -> Result<Self, SessionError> {
        if !env.authority().is_some_and(|own| own.covers(&authority)) {
            return Err(SessionError::Authority(authority.label.as_ref().into()));
        }
        if !env.scope().is_some_and(|own| own.covers(&scope)) {
            return Err(SessionError::Reach(authority.label.as_ref().into()));
        }
        Ok(Self {
            layer: Arc::default(),
            below: Arc::clone(env.resolver()),
            authority: Arc::new(authority),
            scope: Arc::new(scope),
        })
    }

    /// Adds an operation. It is internal, whatever its spec says, and works with the session's
    /// authority and reach. The session's code and its other operations reach it from now on.
    ///
    /// # Errors
    /// A rule of every operation is broken, the name exists in this or another layer, it lies in a
    /// reserved namespace, it brings an authority of its own, or there are too many.
    pub fn register(&self, registration: Registration) -> Result<(), SessionError> {
        self.add(registration, false)
    }

    /// Like `register`, replacing the operation that this session registered under the name before: code that is
    /// written step by step gets better. Running calls go on with the operation they began with.
    ///
    /// # Errors
    /// The errors of [`register`](Self::register), but for a name of the session's own.
    pub fn replace(&self, registration: Registration) -> Result<(), SessionError> {
        self.add(registration, true)
    }

    fn add(&self, mut registration: Registration, replaces: bool) -> Result<(), SessionError> {
        // The session below supplies both; others could exceed it.
        if registration.authority.is_some() || registration.scoped_env.is_some() {
            return Err(SessionError::Authority(registration.spec.name.into()));
        }
        // A script must not look like an operation of the node itself.
        rules::check_namespace(&registration.spec)?;
        let name = registration.spec.name.clone();
        if self.exists_below(&name) {
            return Err(RegistryError::Duplicate(name).into());
        }
        registration.provenance = Provenance::Session;
        // Requests from outside must not reach a script's operation, whatever its spec says.
        registration.spec = registration.spec.internal();
        let authority = CompositionAuthority::clone(&self.authority);
        let registration = registration.composing(authority, ScopedPeerEnv::clone(&self.scope));
        if self
            .layer
            .insert(registration, SESSION_OPERATIONS_MAX, replaces)?
        {
            Ok(())
        } else {
            Err(SessionError::TooMany)
        }
    }

    /// The environment of the session's own code, in the course of one request of `env`'s.
    #[must_use]
    pub fn env(&self, env: &Env) -> Env {
        let resolver = SessionEnv {
            layer: Arc::clone(&self.layer),
            below: Arc::clone(env.resolver()),
        };
        env.narrowed(
            Arc::new(resolver),
            Arc::clone(&self.authority),
            Arc::clone(&self.scope),
        )
    }

    /// Whether another layer has the name: the session's operation would hide that one.
    fn exists_below(&self, name: &str) -> bool {
        let lookup = OperationLookup {
            operation: name,
            peer: None,
            // The scope is the name itself: a name that lies outside of the session's reach is taken, too.
            scope: &ScopedPeerEnv::new([name]),
            except: None,
        };
        self.below.resolve(&lookup).is_some()
    }
}

impl fmt::Debug for SandboxSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxSession")
            .field("authority", &self.authority)
            .field("operations", &self.layer)
            .finish_non_exhaustive()
    }
}

/// Why a session is refused its request.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionError {
    /// More authority than the operation that opens the session has.
    #[error("'{0}' asks for more authority than the operation that opens the session has")]
    Authority(Box<str>),
    /// More reach than the operation that opens the session has.
    #[error("'{0}' reaches further than the operation that opens the session")]
    Reach(Box<str>),
    /// The operation cannot be registered.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The session has reached its limit of operations.
    #[error("a session registers at most {SESSION_OPERATIONS_MAX} operations")]
    TooMany,
}
