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

/// Layer 1: the operations that code in a sandbox registered, which only that session's own calls see.
///
/// A session is opened by the operation that runs the sandbox and never exceeds it: its authority
/// and its reach are parts of that operation's, and every operation it registers works with them.
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

    /// The same, in the place of one that this session registered under the name before: code that
    /// is written step by step gets better. Calls that run go on with the one they began with.
    ///
    /// # Errors
    /// As [`register`](Self::register), but for a name of the session's own.
    pub fn replace(&self, registration: Registration) -> Result<(), SessionError> {
        self.add(registration, true)
    }

    fn add(&self, mut registration: Registration, replaces: bool) -> Result<(), SessionError> {
        // It gets those of the session below; others could exceed them.
        if registration.authority.is_some() || registration.scoped_env.is_some() {
            return Err(SessionError::Authority(registration.spec.name.into()));
        }
        rules::check_namespace(&registration.spec)?;
        let name = registration.spec.name.clone();
        if self.exists_below(&name) {
            return Err(RegistryError::Duplicate(name).into());
        }
        registration.provenance = Provenance::Session;
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

    /// What the session's own code calls through, in the course of one request of `env`'s.
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

    /// Whether another layer has the name: taking it would put the session's operation in its place.
    fn exists_below(&self, name: &str) -> bool {
        let lookup = OperationLookup {
            operation: name,
            peer: None,
            // Wherever the session reaches: a name is taken out of its reach as well.
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

/// Why a session does not get what it asks for.
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
    /// The session has as many operations as it may.
    #[error("a session registers at most {SESSION_OPERATIONS_MAX} operations")]
    TooMany,
}
