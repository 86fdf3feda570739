//! Lets the ClientHello choose the TLS configuration of a QUIC connection.
//!
//! QUIC asks for a session before the first byte is there, and the TLS library wants to know its
//! configuration from the start. The session here keeps the handshake bytes until the ClientHello
//! is complete, looks at it, starts the right session and replays them.

use std::any::Any;
use std::sync::Arc;

use alknet_tls::{ServerTls, Slot, UnknownName};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::crypto::{
    self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
    UnsupportedVersion,
};
use quinn::{ConnectionId, Side, TransportErrorCode};
use quinn_proto::TransportError;
use quinn_proto::transport_parameters::TransportParameters;
use rustls::server::Acceptor;

/// Longest ClientHello: fits one TLS record and is ten times what clients send.
const HELLO_BYTES_MAX: usize = 16 << 10;

/// Handshake header: one byte type, three bytes length (RFC 8446 section 4).
const HEADER_BYTES: usize = 4;

/// Alert `decode_error` (RFC 8446 section 6).
const ALERT_DECODE_ERROR: u8 = 50;

/// Alert `unrecognized_name` (RFC 6066 section 3).
pub(crate) const ALERT_UNRECOGNIZED_NAME: u8 = 112;

/// QUIC's view of a node's TLS configurations.
pub(crate) struct HelloChooser {
    tls: Arc<ServerTls>,
    configs: [Arc<QuicServerConfig>; 5],
}

impl HelloChooser {
    pub(crate) fn new(tls: &Arc<ServerTls>) -> Result<Self, NoInitialCipherSuite> {
        let config = |slot| Ok(Arc::new(QuicServerConfig::try_from(tls.quic(slot))?));
        let [a, b, c, d, e] = Slot::ALL;
        Ok(Self {
            configs: [config(a)?, config(b)?, config(c)?, config(d)?, config(e)?],
            tls: Arc::clone(tls),
        })
    }

    fn any(&self) -> &Arc<QuicServerConfig> {
        &self.configs[0]
    }
}

impl crypto::ServerConfig for HelloChooser {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        self.any().initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.any().retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        Box::new(HelloSession {
            chooser: self,
            version,
            params: *params,
            hello: Vec::new(),
            chosen: None,
        })
    }
}

struct HelloSession {
    chooser: Arc<HelloChooser>,
    version: u32,
    params: TransportParameters,
    hello: Vec<u8>,
    chosen: Option<Box<dyn Session>>,
}

impl HelloSession {
    fn start(&self, slot: Slot) -> Box<dyn Session> {
        let config = Arc::clone(&self.chooser.configs[slot as usize]);
        crypto::ServerConfig::start_session(config, self.version, &self.params)
    }
}

impl Session for HelloSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        match &self.chosen {
            Some(session) => session.initial_keys(dst_cid, side),
            None => self.start(Slot::RawRaw).initial_keys(dst_cid, side),
        }
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.chosen.as_ref()?.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.chosen.as_ref()?.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.chosen.as_ref()?.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.chosen.as_ref()?.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.chosen.as_ref().is_none_or(|s| s.is_handshaking())
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        if let Some(session) = &mut self.chosen {
            return session.read_handshake(buf);
        }
        self.hello.extend_from_slice(buf);
        let Some(slot) = choose(&self.chooser.tls, &self.hello)? else {
            return Ok(false);
        };
        let mut session = self.start(slot);
        let ready = session.read_handshake(&self.hello);
        self.hello = Vec::new();
        self.chosen = Some(session);
        ready
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        match &self.chosen {
            Some(session) => session.transport_parameters(),
            None => Ok(None),
        }
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.chosen.as_mut()?.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.chosen.as_mut()?.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        match &self.chosen {
            Some(session) => session.is_valid_retry(orig_dst_cid, header, payload),
            None => false,
        }
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.chosen
            .as_ref()
            .ok_or(ExportKeyingMaterialError)?
            .export_keying_material(output, label, context)
    }
}

/// The slot the ClientHello in `bytes` gets, or `None` while it is incomplete.
fn choose(tls: &ServerTls, bytes: &[u8]) -> Result<Option<Slot>, TransportError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    let total = HEADER_BYTES + length;
    if total > HELLO_BYTES_MAX {
        return Err(undecodable("the ClientHello is longer than 16 KiB"));
    }
    match bytes.get(..total) {
        Some(hello) => parse(tls, hello).map(Some),
        None => Ok(None),
    }
}

/// Reads a whole ClientHello by putting it into the one TLS record TCP would carry it in.
fn parse(tls: &ServerTls, hello: &[u8]) -> Result<Slot, TransportError> {
    let length =
        u16::try_from(hello.len()).map_err(|_| undecodable("the ClientHello is too long"))?;
    let [high, low] = length.to_be_bytes();
    let record = [&[22, 3, 1, high, low], hello].concat();
    let mut acceptor = Acceptor::default();
    acceptor
        .read_tls(&mut record.as_slice())
        .map_err(|_| undecodable("the ClientHello cannot be read"))?;
    match acceptor.accept() {
        Ok(Some(accepted)) => tls.slot(&accepted.client_hello()).map_err(unknown_name),
        Ok(None) => Err(undecodable("the ClientHello is incomplete")),
        Err((error, _alert)) => Err(undecodable(&error.to_string())),
    }
}

fn undecodable(reason: &str) -> TransportError {
    refuse(ALERT_DECODE_ERROR, reason)
}

fn unknown_name(error: UnknownName) -> TransportError {
    refuse(ALERT_UNRECOGNIZED_NAME, &error.to_string())
}

fn refuse(alert: u8, reason: &str) -> TransportError {
    TransportError {
        code: TransportErrorCode::crypto(alert),
        frame: None,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::PeerKey;
    use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, Place, ServerTlsOptions};
    use proptest::prelude::*;

    use super::*;

    fn server(strict_sni: bool) -> ServerTls {
        let options = ServerTlsOptions {
            strict_sni,
            ..ServerTlsOptions::default()
        };
        let key = NodeKey::from_seed(&[3; 32]);
        ServerTls::new(&key, options, &[], &[b"alknet/call"]).expect("a server")
    }

    /// What a dialler sends first: raw and X.509 clients of a peer, and one of a public name.
    fn hellos() -> Vec<(Vec<u8>, Slot)> {
        let tls = ClientTls::new(ClientTlsOptions::default());
        let place = Place::Name("peer.example.org");
        let pin = [PeerKey::Ed25519([1; 32])];
        let pinned = tls.remote(None, &pin, place).expect("a pin");
        let public = tls.remote(None, &[], place).expect("a name");
        let pinned = pinned.attempts(place, b"alknet/call").into_iter();
        let public = public.attempts(place, b"h3");
        pinned
            .chain(public)
            .zip([Slot::RawX509, Slot::X509X509, Slot::Web])
            .map(|(config, slot)| (hello(config), slot))
            .collect()
    }

    fn hello(config: rustls::ClientConfig) -> Vec<u8> {
        let name = "peer.example.org".try_into().expect("a name");
        let version = rustls::quic::Version::V1;
        let config = Arc::new(config);
        let mut client =
            rustls::quic::ClientConnection::new(config, version, name, vec![]).expect("a client");
        let mut bytes = Vec::new();
        let _ = client.write_hs(&mut bytes);
        bytes
    }

    #[test]
    fn every_prefix_waits_and_the_whole_chooses() {
        let tls = server(false);
        for (hello, slot) in hellos() {
            for end in 0..hello.len() {
                assert_eq!(choose(&tls, &hello[..end]).expect("no error"), None);
            }
            assert_eq!(choose(&tls, &hello).expect("no error"), Some(slot));
            let longer = [&hello[..], b"more"].concat();
            assert_eq!(choose(&tls, &longer).expect("no error"), Some(slot));
        }
    }

    /// However the bytes are cut into two CRYPTO frames, and in pieces of every size, the session
    /// begins with the last of the ClientHello and not before.
    #[test]
    fn every_split_is_put_together() {
        let tls = Arc::new(server(false));
        let chooser = Arc::new(HelloChooser::new(&tls).expect("QUIC"));
        let none = TransportParameters::read(Side::Server, &mut &b""[..]).expect("defaults");
        for (hello, _) in hellos() {
            let splits = (1..hello.len()).map(|at| (at, hello.len()));
            let pieces = (1..64).map(|size| (size, size));
            for (first, rest) in splits.chain(pieces) {
                let mut session = HelloSession {
                    chooser: Arc::clone(&chooser),
                    version: 1,
                    params: none,
                    hello: Vec::new(),
                    chosen: None,
                };
                let (head, mut tail) = hello.split_at(first);
                assert!(!session.read_handshake(head).expect("waits"));
                while session.chosen.is_none() {
                    assert!(!tail.is_empty(), "the whole ClientHello chooses");
                    let (piece, left) = tail.split_at(rest.min(tail.len()));
                    tail = left;
                    // The client of this test sends no transport parameters, which the session
                    // that was chosen refuses; that it was chosen is the point here.
                    let _ = session.read_handshake(piece);
                    assert_eq!(session.chosen.is_some(), tail.is_empty());
                }
            }
        }
    }

    #[test]
    fn strict_names_refuse_who_asks_for_another() {
        let tls = server(true);
        let choices: Vec<_> = hellos()
            .iter()
            .map(|(hello, _)| choose(&tls, hello))
            .collect();
        // Raw keys know no names.
        assert_eq!(choices[0].as_ref().expect("raw"), &Some(Slot::RawX509));
        for refused in &choices[1..] {
            let error = refused.as_ref().expect_err("refused");
            let alert = TransportErrorCode::crypto(ALERT_UNRECOGNIZED_NAME);
            assert_eq!(error.code, alert);
        }
    }

    #[test]
    fn a_hello_over_the_limit_is_refused_at_its_header() {
        let tls = server(false);
        let header = |length: u32| {
            let [_, a, b, c] = length.to_be_bytes();
            [1, a, b, c]
        };
        let fits = u32::try_from(HELLO_BYTES_MAX - HEADER_BYTES).expect("small");
        assert_eq!(choose(&tls, &header(fits)).expect("waits"), None);
        assert!(choose(&tls, &header(fits + 1)).is_err());
    }

    thread_local! {
        static TLS: ServerTls = server(false);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            TLS.with(|tls| drop(choose(tls, &bytes)));
        }

        /// A header that fits what follows gets past the length, into the parser.
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..600)) {
            let length = u16::try_from(body.len()).expect("small").to_be_bytes();
            let hello = [&[1, 0, length[0], length[1]], &body[..]].concat();
            TLS.with(|tls| drop(choose(tls, &hello)));
        }

        #[test]
        fn no_damage_panics(which in 0usize..3, at in 0usize..1500, to in any::<u8>()) {
            let mut hello = hellos().swap_remove(which).0;
            let at = at % hello.len();
            hello[at] = to;
            TLS.with(|tls| drop(choose(tls, &hello)));
        }
    }
}
