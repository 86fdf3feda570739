//! Reaching another port: QUIC first, TCP when QUIC is slow or impossible.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use alknet_core::{
    BoxFuture, Carriage, CloseCode, CloseReason, Connection, ConnectionInfo, DialRequest, Dialled,
    Expect, Host, PeerAddr as Target, PeerId, PeerKey, StreamBudget, StreamSource,
};
use alknet_tls::{
    CheckError, ClientTls, ClientTlsOptions, KnownPeer, NodeKey, PeerProof, Place, Remote, TlsError,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsConnector, TlsStream};

use crate::error::DialError;
use crate::quic::{self, QuicSource};
use crate::sockets;
use crate::tcp::TcpSource;

/// Everything from the name to the finished handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Head start of QUIC.
const TCP_DELAY: Duration = Duration::from_millis(400);

/// What QUIC still gets once TCP has failed: a refused TCP port makes a UDP answer unlikely, and
/// UDP itself never says no.
const QUIC_GRACE: Duration = Duration::from_secs(3);

/// Head start of each address of a name over the next (RFC 8305 section 5).
const ADDRESS_DELAY: Duration = Duration::from_millis(250);

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Time for close frames to leave, which they do as soon as their tasks run. The rest of QUIC's
/// closing period, three probe time-outs (RFC 9000 section 10.2), would only answer what still
/// arrives; a peer that misses the frame notices by its idle time-out.
const GOODBYE: Duration = Duration::from_millis(50);

/// First QUIC code of a TLS alert (RFC 9001 section 4.8).
const QUIC_ALERT_BASE: u64 = 0x100;

/// QUIC `CONNECTION_REFUSED` (RFC 9000 section 20.1).
const QUIC_REFUSED: u64 = 0x2;

/// Makes connections, with one key or none. Protocols use it as [`alknet_core::Dialer`].
#[derive(Debug)]
pub struct Dialer {
    tls: ClientTls,
    /// For requests that want no key shown.
    keyless: OnceLock<ClientTls>,
    options: ClientTlsOptions,
    quic: Mutex<Option<quinn::Endpoint>>,
}

impl Dialer {
    /// Dials with `key`, or anonymously, trusting the bundled certificate authorities for public
    /// names.
    #[must_use]
    pub fn new(key: Option<NodeKey>) -> Self {
        Self::with_options(ClientTlsOptions {
            key,
            ..ClientTlsOptions::default()
        })
    }

    /// As [`new`](Self::new), with other certificate authorities.
    #[must_use]
    pub fn with_roots(key: Option<NodeKey>, roots: RootCertStore) -> Self {
        Self::with_options(ClientTlsOptions {
            key,
            roots,
            ..ClientTlsOptions::default()
        })
    }

    /// Dials as `options` say.
    #[must_use]
    pub fn with_options(options: ClientTlsOptions) -> Self {
        Self {
            tls: ClientTls::new(options.clone()),
            keyless: OnceLock::new(),
            options,
            quic: Mutex::new(None),
        }
    }

    /// Connects over whichever carriage works first.
    ///
    /// # Errors
    /// See [`DialError`]; of several failures the one that says most is returned.
    pub async fn dial(&self, target: &Target, alpn: &[u8]) -> Result<Connection, DialError> {
        self.dial_over(Carriage::Both, target, alpn).await
    }

    /// Connects over `carriage`.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial_over(
        &self,
        carriage: Carriage,
        target: &Target,
        alpn: &[u8],
    ) -> Result<Connection, DialError> {
        let remote = remote(&self.tls, None, &target.pins, target)?;
        let dialled = self.attempt(carriage, target, remote, alpn).await?;
        Ok(dialled.connection)
    }

    /// Connects to the peer of an entry, at `target`. The keys are those of the entry; any in
    /// `target` are not looked at.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial_peer(
        &self,
        carriage: Carriage,
        peer: &KnownPeer,
        target: &Target,
        alpn: &[u8],
    ) -> Result<Connection, DialError> {
        let remote = remote(&self.tls, Some(peer), &[], target)?;
        let dialled = self.attempt(carriage, target, remote, alpn).await?;
        Ok(dialled.connection)
    }

    /// Takes over a changed entry at once: a dial that has begun with its old keys fails unless
    /// the server's key is still among the new ones.
    ///
    /// # Errors
    /// The entry has no key.
    pub fn set_peer(&self, peer: &KnownPeer) -> Result<(), DialError> {
        Ok(self.tls.set_peer(peer)?)
    }

    /// Forgets a removed entry: a dial to it that has begun fails.
    pub fn forget_peer(&self, id: &PeerId) {
        self.tls.forget_peer(id);
    }

    async fn attempt(
        &self,
        carriage: Carriage,
        target: &Target,
        remote: Remote,
        alpn: &[u8],
    ) -> Result<Dialled, DialError> {
        // What an earlier dial ended with is not this one's doing.
        let _ = remote.take_mismatch();
        let dial = async {
            let attempt = Attempt {
                dialer: self,
                target,
                addresses: resolve(target).await?,
                remote,
                alpn,
            };
            match carriage {
                Carriage::Quic => attempt.over(Carriage::Quic).await,
                Carriage::Tcp => attempt.over(Carriage::Tcp).await,
                Carriage::Both | Carriage::Memory => attempt.race().await,
            }
        };
        timeout(DIAL_TIMEOUT, dial)
            .await
            .unwrap_or_else(|_| Err(timed_out(target, DIAL_TIMEOUT)))
    }

    /// Closes every QUIC connection and waits, at most 50 ms, until their peers can know.
    pub async fn close(&self) {
        let endpoint = self.endpoint_slot().take();
        if let Some(endpoint) = endpoint {
            endpoint.close(CloseCode::Normal.code().into(), b"");
            let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
        }
    }

    /// Whom `request` expects, who is shown a key or not.
    fn expected(&self, request: &DialRequest) -> Result<Remote, DialError> {
        let tls = if request.present_key {
            &self.tls
        } else {
            self.keyless.get_or_init(|| {
                ClientTls::new(ClientTlsOptions {
                    key: None,
                    ..self.options.clone()
                })
            })
        };
        let pins = match &request.expect {
            // Satisfied by nobody; to the TLS side no pins mean a public server.
            Expect::Pinned(pins) if pins.is_empty() => return Err(TlsError::NoPins.into()),
            Expect::Pinned(pins) => pins.as_slice(),
            Expect::WebPki => &[],
        };
        remote(tls, None, pins, &request.addr)
    }

    fn endpoint_slot(&self) -> std::sync::MutexGuard<'_, Option<quinn::Endpoint>> {
        self.quic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The UDP socket, opened with the first QUIC dial.
    fn endpoint(&self) -> Result<quinn::Endpoint, DialError> {
        let mut slot = self.endpoint_slot();
        if let Some(endpoint) = &*slot {
            return Ok(endpoint.clone());
        }
        let any = |ip: IpAddr| quinn::Endpoint::client(SocketAddr::new(ip, 0));
        let endpoint = any(Ipv6Addr::UNSPECIFIED.into())
            .or_else(|_| any(Ipv4Addr::UNSPECIFIED.into()))
            .map_err(DialError::Local)?;
        Ok(slot.insert(endpoint).clone())
    }
}

impl alknet_core::Dialer for Dialer {
    fn connect(
        &self,
        request: DialRequest,
    ) -> BoxFuture<'_, Result<Dialled, alknet_core::DialError>> {
        Box::pin(async move {
            let remote = self.expected(&request)?;
            let dialled = self.attempt(request.carriage, &request.addr, remote, &request.alpn);
            Ok(dialled.await?)
        })
    }
}

fn remote(
    tls: &ClientTls,
    peer: Option<&KnownPeer>,
    pins: &[PeerKey],
    target: &Target,
) -> Result<Remote, DialError> {
    tls.remote(peer, pins, place(target))
        .map_err(|error| match error {
            TlsError::UnknownPeer(_) => DialError::UnknownPeer {
                target: target.address(),
            },
            other => other.into(),
        })
}

fn place(target: &Target) -> Place<'_> {
    match &target.host {
        Host::Ip(ip) => Place::Ip(*ip),
        Host::Name(name) => Place::Name(name),
    }
}

async fn resolve(target: &Target) -> Result<Vec<SocketAddr>, DialError> {
    let name = match &target.host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, target.port)]),
        Host::Name(name) => name,
    };
    let fail = |source| DialError::Resolve {
        host: name.clone(),
        source,
    };
    let found = tokio::net::lookup_host((name.as_str(), target.port))
        .await
        .map_err(fail)?;
    let found: Vec<_> = found.take(ADDRESSES_MAX).collect();
    if found.is_empty() {
        return Err(fail(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no address",
        )));
    }
    Ok(found)
}

/// One dial: everything its parallel tries share.
struct Attempt<'a> {
    dialer: &'a Dialer,
    target: &'a Target,
    addresses: Vec<SocketAddr>,
    remote: Remote,
    alpn: &'a [u8],
}

impl Attempt<'_> {
    async fn race(&self) -> Result<Dialled, DialError> {
        let quic_failed = Notify::new();
        let quic = self.over(Carriage::Quic);
        let tcp = async {
            tokio::select! {
                () = sleep(TCP_DELAY) => {}
                () = quic_failed.notified() => {}
            }
            self.over(Carriage::Tcp).await
        };
        tokio::pin!(quic, tcp);
        tokio::select! {
            biased;
            result = &mut quic => match result {
                Err(error) if error.is_about_whom() => Err(error),
                Err(first) => {
                    quic_failed.notify_one();
                    tcp.await.map_err(|second| heavier(first, second))
                }
                connected => connected,
            },
            result = &mut tcp => match result {
                Err(error) if error.is_about_whom() => Err(error),
                Err(first) => timeout(QUIC_GRACE, quic)
                    .await
                    .unwrap_or_else(|_| Err(timed_out(self.target, QUIC_GRACE)))
                    .map_err(|second| heavier(first, second)),
                connected => connected,
            },
        }
    }

    /// Every form of key on one carriage: a server that knows no raw keys gets certificates.
    async fn over(&self, carriage: Carriage) -> Result<Dialled, DialError> {
        let mut configs = self
            .remote
            .attempts(place(self.target), self.alpn)
            .into_iter()
            .peekable();
        loop {
            let Some(config) = configs.next() else {
                return Err(self.tls_error("there is no way to know the server"));
            };
            match self.addresses(carriage, config).await {
                Err(DialError::Tls { .. }) if configs.peek().is_some() => {}
                result => return result,
            }
        }
    }

    /// Every address, each with a head start over the next.
    async fn addresses(
        &self,
        carriage: Carriage,
        config: ClientConfig,
    ) -> Result<Dialled, DialError> {
        let config = Arc::new(config);
        let mut running = FuturesUnordered::new();
        let mut rest = self.addresses.iter();
        let mut worst: Option<DialError> = None;
        loop {
            if let Some(address) = rest.next() {
                running.push(self.one(carriage, *address, Arc::clone(&config)));
            }
            let more = rest.len() > 0;
            tokio::select! {
                result = running.next() => match result {
                    Some(Ok(connection)) => return Ok(connection),
                    Some(Err(error)) => worst = Some(match worst {
                        Some(first) => heavier(first, error),
                        None => error,
                    }),
                    None => return Err(worst.unwrap_or_else(|| timed_out(self.target, DIAL_TIMEOUT))),
                },
                () = sleep(ADDRESS_DELAY), if more => {}
            }
        }
    }

    async fn one(
        &self,
        carriage: Carriage,
        address: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<Dialled, DialError> {
        match carriage {
            Carriage::Tcp => self.tcp(address, config).await,
            _ => self.quic(address, config).await,
        }
    }

    async fn quic(
        &self,
        address: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<Dialled, DialError> {
        let tls = QuicClientConfig::try_from(config).map_err(|e| self.tls_error(&e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(quic::transport(StreamBudget::AUTHENTICATED, true));
        let connecting = self
            .dialer
            .endpoint()?
            .connect_with(config, address, &self.server_name().to_str())
            .map_err(|error| self.unreachable(io::Error::other(error)))?;
        let connection = connecting.await.map_err(|error| self.quic_error(error))?;
        let chain = connection
            .peer_identity()
            .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let keys = self.check(chain.as_deref().map_or(&[], Vec::as_slice))?;
        let local = connection.local_ip().map(|ip| SocketAddr::new(ip, 0));
        let source = Box::new(QuicSource::new(connection));
        let connection = self.connection(source, Carriage::Quic, address, local);
        Ok(Dialled { connection, keys })
    }

    async fn tcp(
        &self,
        address: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<Dialled, DialError> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| self.unreachable(error))?;
        sockets::tune(&stream).map_err(DialError::Local)?;
        let local = stream.local_addr().ok();
        let tls = TlsConnector::from(config)
            .connect(self.server_name(), stream)
            .await
            .map_err(|error| self.tcp_error(error))?;
        let session = tls.get_ref().1;
        let keys = self.check(session.peer_certificates().unwrap_or_default())?;
        if session.alpn_protocol() != Some(self.alpn) {
            return Err(self.no_protocol());
        }
        let source = Box::new(TcpSource::new(TlsStream::Client(tls)));
        let connection = self.connection(source, Carriage::Tcp, address, local);
        Ok(Dialled { connection, keys })
    }

    fn connection(
        &self,
        source: Box<dyn StreamSource>,
        carriage: Carriage,
        remote: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Connection {
        let info = ConnectionInfo {
            alpn: self.alpn.into(),
            carriage,
            sni: None,
            remote_addr: Some(remote),
            local_addr: local,
            dialled: true,
        };
        Connection::from_source(source, info)
    }

    fn server_name(&self) -> ServerName<'static> {
        self.remote.server_name(place(self.target))
    }

    /// Keys are compared again: a resumed session was verified when it began, not now. Returns the
    /// names of the key that was proved to a pin.
    fn check(&self, chain: &[CertificateDer<'_>]) -> Result<Vec<PeerKey>, DialError> {
        self.remote.check(chain).map_err(|error| match error {
            CheckError::Pin(mismatch) => mismatch.into(),
            CheckError::NoKey => self.no_key(),
        })?;
        if matches!(self.remote, Remote::Public(_)) {
            return Ok(Vec::new());
        }
        match chain.first().map(PeerProof::from_certificate) {
            Some(Ok(proof)) => Ok(proof.names().collect()),
            _ => Err(self.no_key()),
        }
    }

    fn no_key(&self) -> DialError {
        self.tls_error("the server presented no key")
    }

    fn quic_error(&self, error: ConnectionError) -> DialError {
        let (code, reason) = match &error {
            ConnectionError::TransportError(error) => (u64::from(error.code), error.reason.clone()),
            ConnectionError::ConnectionClosed(close) => (
                u64::from(close.error_code),
                String::from_utf8_lossy(&close.reason).into_owned(),
            ),
            ConnectionError::TimedOut => return timed_out(self.target, DIAL_TIMEOUT),
            _ => return self.refused(quic::close_reason(error)),
        };
        let alert = code
            .checked_sub(QUIC_ALERT_BASE)
            .and_then(|alert| u8::try_from(alert).ok());
        match alert {
            Some(alert) => self.alert_error(alert.into(), &reason),
            None if code == QUIC_REFUSED => self.refused(CloseReason::Peer(
                None,
                "it takes no more connections".into(),
            )),
            None => self.tls_error(&error.to_string()),
        }
    }

    fn tcp_error(&self, error: io::Error) -> DialError {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(alert)) => {
                self.alert_error(*alert, &error.to_string())
            }
            Some(rustls::Error::InvalidCertificate(reason)) => {
                self.alert_error(AlertDescription::BadCertificate, &reason.to_string())
            }
            Some(rustls::Error::NoApplicationProtocol) => self.no_protocol(),
            Some(error) => self.alert_error(AlertDescription::InternalError, &error.to_string()),
            None => self.refused(CloseReason::Lost(error.to_string())),
        }
    }

    /// Sorts a failed handshake by the alert it ended with, sent or received.
    fn alert_error(&self, alert: AlertDescription, reason: &str) -> DialError {
        use AlertDescription as A;
        if alert == A::NoApplicationProtocol {
            return self.no_protocol();
        }
        if let Some(mismatch) = self.remote.take_mismatch() {
            return mismatch.into();
        }
        match (&self.remote, alert) {
            (
                Remote::Public(_),
                A::BadCertificate
                | A::CertificateExpired
                | A::CertificateRevoked
                | A::CertificateUnknown
                // A signature in the chain, or the server's own, does not verify.
                | A::DecryptError
                | A::UnknownCA
                | A::UnsupportedCertificate,
            ) => DialError::Certificate {
                target: self.target.address(),
                reason: reason.to_owned(),
            },
            _ => self.tls_error(&format!("{alert:?} {reason}")),
        }
    }

    fn no_protocol(&self) -> DialError {
        DialError::NoProtocol {
            target: self.target.address(),
            alpn: String::from_utf8_lossy(self.alpn).into_owned(),
        }
    }

    fn refused(&self, reason: CloseReason) -> DialError {
        DialError::Refused {
            target: self.target.address(),
            reason,
        }
    }

    fn tls_error(&self, reason: &str) -> DialError {
        DialError::Tls {
            target: self.target.address(),
            reason: reason.to_owned(),
        }
    }

    fn unreachable(&self, source: io::Error) -> DialError {
        DialError::Unreachable {
            target: self.target.address(),
            source,
        }
    }
}

fn timed_out(target: &Target, after: Duration) -> DialError {
    DialError::TimedOut {
        target: target.address(),
        seconds: after.as_secs(),
    }
}

/// Of two failures the one that says more.
fn heavier(first: DialError, second: DialError) -> DialError {
    if first.weight() >= second.weight() {
        first
    } else {
        second
    }
}
