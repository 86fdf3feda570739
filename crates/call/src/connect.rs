//! Dialling a peer and becoming its caller.

use std::sync::Arc;

use alknet_core::{
    AuthContext, AuthToken, Carriage, DialError, DialRequest, DialedConnection, PeerAddr, PeerKey,
    PeerVerification, StreamBudget,
};
use thiserror::Error;

use crate::client::{CallClient, CallConnection};
use crate::error::CallError;
use crate::serve::ALPN;
use crate::session::{self, SessionProof};

/// How this side proves its identity, and how the other side has to prove its own.
#[derive(Clone, Debug)]
pub struct DialCredentials {
    /// The server to expect; `None` for the one that the address itself names, by its pins or a public name.
    pub expect: Option<PeerVerification>,
    /// Whether this side shows a pinned server its key.
    pub present_key: bool,
    /// Authenticates the connection, once, as the token's identity in place of that of this side's key.
    pub auth_token: Option<AuthToken>,
    /// The carriages to dial over. [`Carriage::Both`] means QUIC, and TLS over TCP where QUIC is slow.
    pub carriage: Carriage,
}

impl Default for DialCredentials {
    fn default() -> Self {
        Self {
            expect: None,
            present_key: true,
            auth_token: None,
            carriage: Carriage::Both,
        }
    }
}

/// Why no connection came about.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The peer did not accept the token.
    #[error("the peer did not authenticate the connection: {0}")]
    Authenticate(CallError),
    /// The dial failed.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The client was made without a dialer.
    #[error("this client cannot dial: it was made without a dialer")]
    NoDialer,
    /// A step that has to come before any caller uses the connection failed.
    #[error("the connection could not be prepared: {0}")]
    Prepare(CallError),
}

impl ConnectError {
    /// Whether another attempt fails as well until an administrator of either side changes something.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Authenticate(error) => !error.retryable,
            Self::Dial(error) => error.is_permanent(),
            Self::NoDialer => true,
            Self::Prepare(_) => false,
        }
    }
}

impl From<ConnectError> for CallError {
    fn from(error: ConnectError) -> Self {
        let permanent = error.is_permanent();
        match error {
            ConnectError::Authenticate(error) => error,
            other => Self {
                retryable: !permanent,
                ..Self::unavailable(other.to_string())
            },
        }
    }
}

impl CallClient {
    /// Dials `addr`, proves the identity of both sides, and authenticates by token where `credentials` has one. From
    /// then on the peer can call this side's operations, as the identity that its key has here.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        &self,
        addr: &PeerAddr,
        credentials: &DialCredentials,
    ) -> Result<CallConnection, ConnectError> {
        let dialer = self.dialer.as_ref().ok_or(ConnectError::NoDialer)?;
        let expect = match &credentials.expect {
            Some(expect) => expect.clone(),
            None => PeerVerification::for_address(addr, &[])?,
        };
        let mut request = DialRequest::new(addr.clone(), expect, ALPN);
        request.carriage = credentials.carriage;
        request.present_key = credentials.present_key;
        let connection = self.adopt(dialer.connect(request).await?);
        if let Some(token) = &credentials.auth_token {
            // Before any caller uses the connection: its requests would have the identity of the key.
            let authenticated = connection.authenticate(token).await;
            authenticated.map_err(ConnectError::Authenticate)?;
        }
        Ok(connection)
    }

    /// Uses a dialled connection. The peer has the identity of the key that it proved, where this node
    /// knows that key.
    fn adopt(&self, dialled: DialedConnection) -> CallConnection {
        let DialedConnection { connection, keys } = dialled;
        let identity = self.dispatcher.by_keys(&keys);
        if let Some(identity) = &identity {
            // A fresh connection has no other identity, so this cannot fail.
            let _ = connection.set_identity(Arc::clone(identity));
            connection.raise_budget(StreamBudget::CALL);
        }
        let is_known = |key: &&PeerKey| self.dispatcher.by_keys(&[**key]).is_some();
        // A server may prove several names of one key: the known one decides.
        let known = keys.iter().find(is_known).copied();
        let auth = AuthContext {
            identity: identity.clone(),
            key: known.or_else(|| keys.first().copied()),
            alpn: ALPN.into(),
            sni: None,
            remote_addr: connection.remote_addr(),
            carriage: connection.carriage(),
            // Only clients send early data (RFC 8446, section 2.3), and this side is the client.
            early_data: false,
        };
        let connection = self.attach(connection, Some(&auth));
        if let Some(identity) = &identity {
            session::watch_over(&connection.state, SessionProof::Keys(keys), identity);
        }
        connection
    }
}
