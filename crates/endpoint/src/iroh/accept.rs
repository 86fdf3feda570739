//! Iroh's first packets, as the accept loop of QUIC takes them.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use alknet_core::{Carriage, ConnectionInfo, PeerKey};
use alknet_tls::PeerProof;
use iroh::Endpoint;
use iroh::endpoint::{ConnectingError, IncomingAddr, ServerConfigBuilder, TimeSource};

use super::carriage::{QuicSource, credit};
use crate::accept::quic::{Listener, QuicIncoming};
use crate::admission::AddressValidation;
use crate::serve::AcceptedConnection;
use crate::windows::ReceiveWindow;

/// The discard-only prefix 100::/64 (RFC 6666), which is routed nowhere: no client has an address in it.
const RELAYED: u16 = 0x100;

/// The endpoint on which iroh's first packets arrive.
pub(crate) struct IrohListener {
    endpoint: Endpoint,
    config: ServerConfigBuilder,
}

impl IrohListener {
    /// `alpns` are the protocols of the endpoint.
    pub(crate) fn new(endpoint: Endpoint, alpns: Vec<Vec<u8>>) -> Self {
        let config = endpoint.create_server_config_builder(alpns);
        Self { endpoint, config }
    }
}

impl Listener for IrohListener {
    type Incoming = IrohIncoming;

    async fn next(&self) -> Option<IrohIncoming> {
        let incoming = self.endpoint.accept().await?;
        let config = self.config.clone();
        Some(IrohIncoming { incoming, config })
    }
}

pub(crate) struct IrohIncoming {
    incoming: iroh::endpoint::Incoming,
    config: ServerConfigBuilder,
}

/// Owns the window of one connection in the role of the clock of its configuration. The library drops the clock
/// together with the last that it has of the connection. It does not report that moment, and its configuration takes
/// nothing else that belongs to one connection.
struct WindowClock {
    _window: Arc<ReceiveWindow>,
}

impl TimeSource for WindowClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

impl QuicIncoming for IrohIncoming {
    const CARRIAGE: Carriage = Carriage::Iroh;

    fn source(&self) -> IpAddr {
        charged(&self.incoming.remote_addr())
    }

    fn remote(&self) -> Option<SocketAddr> {
        None
    }

    /// The library answers a handshake that fails with its first packet with an alert. Where one fails later and the
    /// address is unproven, iroh's QUIC does not send the end, and the client would wait for it until its time is up.
    /// With post-quantum key exchange the ClientHello takes two packets.
    fn address(&self) -> AddressValidation {
        if self.incoming.remote_addr_validated() {
            AddressValidation::Proven
        } else if has_whole_hello(&self.incoming) {
            AddressValidation::Unproven
        } else {
            AddressValidation::Unanswerable
        }
    }

    fn ignore(self) {
        self.incoming.ignore();
    }

    fn refuse(self) {
        self.incoming.refuse();
    }

    fn retry(self) -> bool {
        self.incoming.retry().is_ok()
    }

    async fn finish(self, window: Arc<ReceiveWindow>) -> io::Result<AcceptedConnection> {
        let (from, remote) = (self.source(), direct(&self.incoming));
        let clock = WindowClock {
            _window: Arc::clone(&window),
        };
        let config = self.config.set_time_source(Arc::new(clock)).build();
        let accepting = self.incoming.accept_with(Arc::new(config));
        let accepting = accepting.map_err(io::Error::other)?;
        // Iroh lets clients send early data, which an attacker can replay (RFC 8446 section 8). The node waits for
        // the whole handshake, which a replaying attacker cannot finish.
        let connection = accepting.await.map_err(handshake_error)?;
        let credit = Some(credit(&connection, window));
        Ok(AcceptedConnection {
            info: ConnectionInfo {
                alpn: connection.alpn().into(),
                carriage: Carriage::Iroh,
                sni: None,
                remote_addr: remote,
                local_addr: None,
                dialled: false,
            },
            proof: Some(PeerProof {
                key: PeerKey::Ed25519(*connection.remote_id().as_bytes()),
                certificate: None,
            }),
            from,
            credit: credit.clone(),
            source: Box::new(QuicSource::new(connection, credit)),
        })
    }
}

/// Whether the first packet holds the whole ClientHello: the library reads the protocols in no other packet.
fn has_whole_hello(incoming: &iroh::endpoint::Incoming) -> bool {
    let initial = incoming.decrypt();
    initial.is_some_and(|initial| initial.alpns().is_some())
}

/// Keeps the library's own error, from which the metrics read the alert.
fn handshake_error(error: ConnectingError) -> io::Error {
    match error {
        ConnectingError::ConnectionError { source, .. } => io::Error::other(source),
        other => io::Error::other(format!("{other:#}")),
    }
}

/// The address that pays for a handshake. For a client behind a relay it is made from the client's key, and is not
/// the relay's, which other clients use as well.
fn charged(from: &IncomingAddr) -> IpAddr {
    match from {
        IncomingAddr::Ip(address) => address.ip().to_canonical(),
        IncomingAddr::Relay { endpoint_id, .. } => relayed(endpoint_id.as_bytes()),
        // The library's enum may grow. A transport that it adds has no address to charge, and all its clients count
        // as one.
        _ => relayed(&[0; 32]),
    }
}

/// The address that stands for a client behind a relay, whose own address the node does not know. All of them are in
/// one network, because a key costs nothing. Where the node saw a known peer's key, that address does not pay for the
/// others of the network, whose clients would use up its rate. The relay has had every client prove its key.
fn relayed(key: &[u8; 32]) -> IpAddr {
    let mut octets = [0; 16];
    let (network, host) = octets.split_at_mut(8);
    network[..2].copy_from_slice(&RELAYED.to_be_bytes());
    host.copy_from_slice(&key[..8]);
    Ipv6Addr::from(octets).into()
}

/// The address of a client that comes directly; `None` for a client behind a relay.
fn direct(incoming: &iroh::endpoint::Incoming) -> Option<SocketAddr> {
    match incoming.remote_addr() {
        IncomingAddr::Ip(address) => {
            Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use iroh::SecretKey;

    use super::*;
    use crate::admission::{Admission, RecognisedPeer};
    use crate::limits::EndpointLimits;

    /// Other clients try as many keys as they like.
    #[test]
    fn a_known_peer_behind_a_relay_has_a_rate_of_its_own() {
        let (own, now) = (relayed(&[1; 32]), Instant::now());
        let mut admission = Admission::new(EndpointLimits::default());
        let ada = RecognisedPeer {
            id: "ada".parse().expect("a peer id"),
            key: PeerKey::Ed25519([1; 32]),
            is_admin: false,
        };
        admission.remember(&ada, own, now);
        let others = (2..=u8::MAX).map(|n| relayed(&[n; 32]));
        let refused = others.filter(|from| !admission.charge(Carriage::Iroh, *from, now));
        assert!(refused.count() > 0, "all of them are one network");
        assert!(admission.charge(Carriage::Iroh, own, now));
    }

    /// Were the relay charged, all clients behind it would share one rate with the client that dials most through it.
    #[test]
    fn a_client_behind_a_relay_is_charged_and_not_the_relay() {
        let through = |relay: &str, key: u8| {
            charged(&IncomingAddr::Relay {
                url: relay.parse().expect("a URL"),
                endpoint_id: SecretKey::from_bytes(&[key; 32]).public(),
            })
        };
        let one = through("https://one.example.org", 1);
        assert_eq!(through("https://two.example.org", 1), one, "whatever relay");
        assert_ne!(through("https://one.example.org", 2), one);
        let key = SecretKey::from_bytes(&[1; 32]).public();
        assert_eq!(one, relayed(key.as_bytes()));
        // A client that comes over its own address is not taken for one behind a relay.
        let direct = IncomingAddr::Ip("[::ffff:192.0.2.1]:7".parse().expect("an address"));
        assert_eq!(charged(&direct), IpAddr::from([192, 0, 2, 1]));
    }
}
