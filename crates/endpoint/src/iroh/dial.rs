//! Dials an iroh endpoint by its key, at known addresses.

use alknet_core::{Carriage, DialedConnection, PeerKey};
use alknet_tls::NodeKey;
use iroh::endpoint::{ConnectError, ConnectWithOptsError, ConnectingError, ConnectionError};
use iroh::{Endpoint, EndpointAddr, EndpointId};
use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;
use tokio::sync::Mutex;

use super::carriage::{QuicSource, close_reason};
use super::{IDLE, bind_client};
use crate::dial::{DialAttempt, alert_of};
use crate::error::EndpointDialError;

/// The endpoints that dial. Each is opened with the first dial that needs it.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    /// Shows the node's key.
    with_key: Mutex<Option<Endpoint>>,
    /// Shows a key generated for it: iroh has no clients without a key.
    with_generated_key: Mutex<Option<Endpoint>>,
}

impl Endpoints {
    async fn get(&self, key: Option<&NodeKey>) -> Result<Endpoint, EndpointDialError> {
        let slot = if key.is_some() {
            &self.with_key
        } else {
            &self.with_generated_key
        };
        // The lock is held during the bind: two first dials at the same time open one endpoint.
        let mut slot = slot.lock().await;
        if let Some(endpoint) = &*slot {
            return Ok(endpoint.clone());
        }
        let made;
        let key = match key {
            Some(key) => key,
            None => {
                made = NodeKey::generate()?;
                &made
            }
        };
        let endpoint = bind_client(key).await.map_err(EndpointDialError::Local)?;
        Ok(slot.insert(endpoint).clone())
    }

    /// Closes every connection, and waits until the peers have answered or count as gone.
    pub(crate) async fn close(&self) {
        for slot in [&self.with_key, &self.with_generated_key] {
            let endpoint = slot.lock().await.take();
            if let Some(endpoint) = endpoint {
                endpoint.close().await;
            }
        }
    }
}

impl DialAttempt<'_> {
    /// Tries each key that the server may prove, until it proves one.
    pub(crate) async fn iroh(
        &self,
        endpoints: &Endpoints,
    ) -> Result<DialedConnection, EndpointDialError> {
        let keys = self.remote.ed25519_keys();
        let mut failure = EndpointDialError::UnknownPeer {
            target: self.target.address(),
        };
        if keys.is_empty() {
            return Err(failure);
        }
        let endpoint = endpoints.get(self.key).await?;
        for key in keys {
            match self.iroh_key(&endpoint, key).await {
                // Any other failure would come with the next key as well.
                Err(error @ EndpointDialError::OtherKey { .. }) => failure = error,
                result => return result,
            }
        }
        Err(failure)
    }

    async fn iroh_key(
        &self,
        endpoint: &Endpoint,
        key: [u8; 32],
    ) -> Result<DialedConnection, EndpointDialError> {
        let id = EndpointId::from_bytes(&key)
            .map_err(|_| self.tls_error("the pinned key is no Ed25519 key"))?;
        let addresses = self.addresses.iter().copied();
        let address = addresses.fold(EndpointAddr::new(id), EndpointAddr::with_ip_addr);
        let connection = endpoint
            .connect(address, self.alpn)
            .await
            .map_err(|error| self.iroh_error(error, key))?;
        // The configured entry may have changed since the dial began.
        let shown = connection.remote_id();
        let spki = PeerKey::ed25519_spki(shown.as_bytes()).to_vec();
        let keys = self.check(&[CertificateDer::from(spki)])?;
        let source = Box::new(QuicSource::new(connection, None));
        // Iroh moves a connection among paths, so the first dialled address stands for all of them.
        let connection = self.connection(source, Carriage::Iroh, self.addresses[0], None);
        Ok(DialedConnection { connection, keys })
    }

    fn iroh_error(&self, error: ConnectError, key: [u8; 32]) -> EndpointDialError {
        let error = match error {
            ConnectError::Connection { source, .. }
            | ConnectError::Connecting {
                source: ConnectingError::ConnectionError { source, .. },
                ..
            } => source,
            ConnectError::Connect {
                source: source @ ConnectWithOptsError::SelfConnect { .. },
                ..
            } => return self.unreachable(std::io::Error::other(source.to_string())),
            other => return self.tls_error(&format!("{other:#}")),
        };
        match &error {
            // This alert comes from this client's own check of the key, which does not say which key it saw.
            ConnectionError::TransportError(failure)
                if alert_of(failure.code.into()) == Some(AlertDescription::UnknownCA) =>
            {
                EndpointDialError::OtherKey {
                    target: self.target.address(),
                    expected: PeerKey::Ed25519(key),
                }
            }
            ConnectionError::TransportError(failure) => {
                self.handshake_error(failure.code.into(), &failure.reason, &error.to_string())
            }
            ConnectionError::ConnectionClosed(close) => self.handshake_error(
                close.error_code.into(),
                &String::from_utf8_lossy(&close.reason),
                &error.to_string(),
            ),
            ConnectionError::TimedOut => self.silence_error(IDLE),
            _ => self.refused(close_reason(error)),
        }
    }
}
