//! Reaches another port: QUIC first, TCP when QUIC is slow or impossible, iroh where the caller names it.

mod attempt;
mod failure;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use alknet_core::{
    BoxFuture, Carriage, CloseCode, Connection, DialAllowList, DialHost, DialRequest,
    DialedConnection, PeerAddr as Target, PeerId, PeerKey, PeerVerification,
};
use alknet_tls::{
    ClientTls, ClientTlsOptions, KnownPeer, NodeKey, RemoteHost, TlsError, TlsRemote,
};
use rustls::RootCertStore;
use tokio::time::timeout;

use crate::error::EndpointDialError;
use crate::iroh::Endpoints;
use crate::self_dial::{SelfDialGuard, SelfDials};

pub(crate) use attempt::DialAttempt;
pub(crate) use failure::alert_of;
use failure::timed_out;

/// Time for everything from resolving the name to the finished handshake, unless
/// [`EndpointDialer::with_dial_timeout`] sets another one.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Time for close frames to leave, which they do as soon as their tasks run. The rest of QUIC's closing period, three
/// probe timeouts (RFC 9000 section 10.2), would only answer packets that still arrive. A peer that misses the frame
/// notices the end by its idle timeout.
const GOODBYE: Duration = Duration::from_millis(50);

/// The same time for iroh, whose endpoint waits until its peers have answered.
const IROH_GOODBYE: Duration = Duration::from_secs(1);

/// Makes connections, with one key or none. Protocols use it as [`alknet_core::Dialer`].
#[derive(Debug)]
pub struct EndpointDialer {
    tls: ClientTls,
    /// Created for the first request that shows no key.
    keyless: OnceLock<ClientTls>,
    options: ClientTlsOptions,
    /// Time for one dial.
    dial_timeout: Duration,
    quic: Mutex<Option<quinn::Endpoint>>,
    iroh: Endpoints,
    /// Set where the node dials itself.
    self_dials: Option<Arc<SelfDials>>,
}

impl EndpointDialer {
    /// Dials with `key`, or anonymously. Servers with public names are trusted by the bundled certificate
    /// authorities.
    #[must_use]
    pub fn new(key: Option<NodeKey>) -> Self {
        Self::with_options(ClientTlsOptions {
            key,
            ..ClientTlsOptions::default()
        })
    }

    /// Like [`new`](Self::new), but with other certificate authorities.
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
            dial_timeout: DIAL_TIMEOUT,
            quic: Mutex::new(None),
            iroh: Endpoints::default(),
            self_dials: None,
        }
    }

    /// Gives each dial this time in place of [`DIAL_TIMEOUT`], for everything from resolving the name to the finished
    /// handshake. A dial that takes longer fails with [`EndpointDialError::TimedOut`].
    #[must_use]
    pub fn with_dial_timeout(mut self, timeout: Duration) -> Self {
        self.dial_timeout = timeout;
        self
    }

    /// Dials the node itself, whose key is `key`, at one address.
    pub(crate) fn to_itself(key: NodeKey, dials: &Arc<SelfDials>) -> Self {
        Self {
            self_dials: Some(Arc::clone(dials)),
            ..Self::new(Some(key))
        }
    }

    pub(crate) fn self_dials(&self) -> Option<&Arc<SelfDials>> {
        self.self_dials.as_ref()
    }

    /// Connects over whichever carriage works first.
    ///
    /// # Errors
    /// See [`EndpointDialError`]; of several failures the one that says most is returned.
    pub async fn dial(
        &self,
        target: &Target,
        alpn: &[u8],
    ) -> Result<Connection, EndpointDialError> {
        self.dial_over(Carriage::Both, target, alpn).await
    }

    /// Connects over `carriage`.
    ///
    /// # Errors
    /// See [`EndpointDialError`].
    pub async fn dial_over(
        &self,
        carriage: Carriage,
        target: &Target,
        alpn: &[u8],
    ) -> Result<Connection, EndpointDialError> {
        let remote = remote(&self.tls, None, &target.pins, target)?;
        let options = EndpointDialOptions::new(carriage, alpn);
        let dialled = self.attempt(target, remote, options).await?;
        Ok(dialled.connection)
    }

    /// Connects to the peer of a configured entry, at `target`. The keys are those of the entry; keys in `target` are
    /// ignored.
    ///
    /// # Errors
    /// See [`EndpointDialError`].
    pub async fn dial_peer(
        &self,
        carriage: Carriage,
        peer: &KnownPeer,
        target: &Target,
        alpn: &[u8],
    ) -> Result<Connection, EndpointDialError> {
        let remote = remote(&self.tls, Some(peer), &[], target)?;
        let options = EndpointDialOptions::new(carriage, alpn);
        let dialled = self.attempt(target, remote, options).await?;
        Ok(dialled.connection)
    }

    /// Takes over a changed entry at once: a dial that began with its old keys fails unless the new ones contain the
    /// server's key.
    ///
    /// # Errors
    /// The entry has no key.
    pub fn set_peer(&self, peer: &KnownPeer) -> Result<(), EndpointDialError> {
        Ok(self.tls.set_peer(peer)?)
    }

    /// Forgets a removed entry: a dial to it that has begun fails.
    pub fn forget_peer(&self, id: &PeerId) {
        self.tls.forget_peer(id);
    }

    async fn attempt(
        &self,
        target: &Target,
        remote: TlsRemote,
        options: EndpointDialOptions<'_>,
    ) -> Result<DialedConnection, EndpointDialError> {
        // The remote may still hold the mismatch that an earlier dial found.
        let _ = remote.take_mismatch();
        let dial = async {
            let attempt = DialAttempt {
                dialer: self,
                target,
                // The list is compared with the addresses and not with the name: the owner of the name chooses, at
                // each query, what it resolves to.
                addresses: within(options.reach, resolve(target).await?, target)?,
                remote,
                key: self.options.key.as_ref().filter(|_| options.present_key),
                alpn: options.alpn,
            };
            match options.carriage {
                Carriage::Quic => attempt.over(Carriage::Quic).await,
                Carriage::Tcp => attempt.over(Carriage::Tcp).await,
                Carriage::Iroh => attempt.iroh(&self.iroh).await,
                Carriage::Both | Carriage::Memory => attempt.race().await,
            }
        };
        timeout(self.dial_timeout, dial)
            .await
            .unwrap_or_else(|_| Err(timed_out(target, self.dial_timeout)))
    }

    /// Closes every QUIC and iroh connection, and waits until the close frames have left: 50 ms at most, and a second
    /// where iroh was used.
    pub async fn close(&self) {
        // The endpoint is taken out of its slot: the lock is not held during the wait, and a later dial opens a
        // socket of its own.
        let endpoint = self.endpoint_slot().take();
        if let Some(endpoint) = endpoint {
            endpoint.close(CloseCode::Normal.code().into(), b"");
            let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
        }
        let _ = timeout(IROH_GOODBYE, self.iroh.close()).await;
    }

    /// The server that `request` expects. A client that presents no key has TLS settings of its own.
    fn expected(&self, request: &DialRequest) -> Result<TlsRemote, EndpointDialError> {
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
            // No server can satisfy an empty list of pins, and the TLS side takes one for a public server.
            PeerVerification::Pinned(pins) if pins.is_empty() => {
                return Err(TlsError::NoPins.into());
            }
            PeerVerification::Pinned(pins) => pins.as_slice(),
            PeerVerification::WebPki => &[],
        };
        remote(tls, None, pins, &request.addr)
    }

    fn endpoint_slot(&self) -> std::sync::MutexGuard<'_, Option<quinn::Endpoint>> {
        self.quic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The UDP socket, opened with the first QUIC dial.
    fn endpoint(&self) -> Result<quinn::Endpoint, EndpointDialError> {
        let mut slot = self.endpoint_slot();
        // All dials share one socket, so that the kernel's port and quinn's connection table are needed once.
        if let Some(endpoint) = &*slot {
            return Ok(endpoint.clone());
        }
        let any = |ip: IpAddr| quinn::Endpoint::client(SocketAddr::new(ip, 0));
        // A socket of IPv6 reaches both families. A kernel without IPv6 has only the other one.
        let endpoint = any(Ipv6Addr::UNSPECIFIED.into())
            .or_else(|_| any(Ipv4Addr::UNSPECIFIED.into()))
            .map_err(EndpointDialError::Local)?;
        Ok(slot.insert(endpoint).clone())
    }

    /// The UDP socket of a dial to `address`, and what announces the dial where the node dials itself.
    fn quic_socket(
        &self,
        address: SocketAddr,
    ) -> Result<(quinn::Endpoint, Option<SelfDialGuard>), EndpointDialError> {
        let Some(dials) = &self.self_dials else {
            return Ok((self.endpoint()?, None));
        };
        // The server knows the dial by its source: the socket has the address of the server, and a port of its own.
        let mut slot = self.endpoint_slot();
        let endpoint = match &*slot {
            Some(endpoint) => endpoint.clone(),
            None => {
                let opened = quinn::Endpoint::client(SocketAddr::new(address.ip(), 0));
                slot.insert(opened.map_err(EndpointDialError::Local)?)
                    .clone()
            }
        };
        let from = endpoint.local_addr().map_err(EndpointDialError::Local)?;
        Ok((endpoint, Some(dials.announce(Carriage::Quic, from))))
    }
}

impl alknet_core::Dialer for EndpointDialer {
    fn connect(
        &self,
        request: DialRequest,
    ) -> BoxFuture<'_, Result<DialedConnection, alknet_core::DialError>> {
        Box::pin(async move {
            let remote = self.expected(&request)?;
            let options = EndpointDialOptions {
                carriage: request.carriage,
                alpn: &request.alpn,
                present_key: request.present_key,
                reach: &request.reach,
            };
            Ok(self.attempt(&request.addr, remote, options).await?)
        })
    }
}

/// The settings of a dial beside its address and the server that it expects.
#[derive(Clone, Copy)]
struct EndpointDialOptions<'a> {
    carriage: Carriage,
    alpn: &'a [u8],
    present_key: bool,
    reach: &'a DialAllowList,
}

impl<'a> EndpointDialOptions<'a> {
    const fn new(carriage: Carriage, alpn: &'a [u8]) -> Self {
        Self {
            carriage,
            alpn,
            present_key: true,
            reach: &DialAllowList::Anywhere,
        }
    }
}

/// The addresses that the list allows.
fn within(
    reach: &DialAllowList,
    mut found: Vec<SocketAddr>,
    target: &Target,
) -> Result<Vec<SocketAddr>, EndpointDialError> {
    let first = found.first().copied();
    found.retain(|address| reach.allows(address.ip()));
    match first {
        // This is an error only where no address is left: a name may have public addresses beside private ones.
        Some(first) if found.is_empty() => Err(EndpointDialError::OutOfReach {
            target: target.address(),
            address: first.ip(),
        }),
        _ => Ok(found),
    }
}

fn remote(
    tls: &ClientTls,
    peer: Option<&KnownPeer>,
    pins: &[PeerKey],
    target: &Target,
) -> Result<TlsRemote, EndpointDialError> {
    tls.remote(peer, pins, remote_host(target))
        .map_err(|error| match error {
            TlsError::UnknownPeer(_) => EndpointDialError::UnknownPeer {
                target: target.address(),
            },
            other => other.into(),
        })
}

fn remote_host(target: &Target) -> RemoteHost<'_> {
    match &target.host {
        DialHost::Ip(ip) => RemoteHost::Ip(*ip),
        DialHost::Name(name) => RemoteHost::Name(name),
    }
}

async fn resolve(target: &Target) -> Result<Vec<SocketAddr>, EndpointDialError> {
    let name = match &target.host {
        DialHost::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, target.port)]),
        DialHost::Name(name) => name,
    };
    let fail = |source| EndpointDialError::Resolve {
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
