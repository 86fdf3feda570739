//! Lets the ClientHello choose the TLS configuration of a QUIC connection.
//!
//! QUIC asks for a session before the first byte is there, and the TLS library wants to know its
//! configuration from the start. The session here keeps the handshake bytes until the ClientHello
//! is complete, looks at it, starts the right session and replays them.

use std::any::Any;
use std::sync::Arc;

use alknet_tls::{ServerTls, Slot};
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

/// QUIC's view of a node's TLS configurations.
pub(crate) struct HelloChooser([Arc<QuicServerConfig>; 5]);

impl HelloChooser {
    pub(crate) fn new(tls: &ServerTls) -> Result<Self, NoInitialCipherSuite> {
        let config = |slot| Ok(Arc::new(QuicServerConfig::try_from(tls.quic(slot))?));
        let [a, b, c, d, e] = Slot::ALL;
        Ok(Self([
            config(a)?,
            config(b)?,
            config(c)?,
            config(d)?,
            config(e)?,
        ]))
    }

    fn any(&self) -> &Arc<QuicServerConfig> {
        &self.0[0]
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
        let config = Arc::clone(&self.chooser.0[slot as usize]);
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
        let Some(slot) = choose(&self.hello)? else {
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
fn choose(bytes: &[u8]) -> Result<Option<Slot>, TransportError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    let total = HEADER_BYTES + length;
    if total > HELLO_BYTES_MAX {
        return Err(refuse("the ClientHello is longer than 16 KiB"));
    }
    match bytes.get(..total) {
        Some(hello) => parse(hello).map(Some),
        None => Ok(None),
    }
}

/// Reads a whole ClientHello by putting it into the one TLS record TCP would carry it in.
fn parse(hello: &[u8]) -> Result<Slot, TransportError> {
    let length = u16::try_from(hello.len()).map_err(|_| refuse("the ClientHello is too long"))?;
    let [high, low] = length.to_be_bytes();
    let record = [&[22, 3, 1, high, low], hello].concat();
    let mut acceptor = Acceptor::default();
    acceptor
        .read_tls(&mut record.as_slice())
        .map_err(|_| refuse("the ClientHello cannot be read"))?;
    match acceptor.accept() {
        Ok(Some(accepted)) => Ok(Slot::choose(&accepted.client_hello())),
        Ok(None) => Err(refuse("the ClientHello is incomplete")),
        Err((error, _alert)) => Err(refuse(&error.to_string())),
    }
}

fn refuse(reason: &str) -> TransportError {
    TransportError {
        code: TransportErrorCode::crypto(ALERT_DECODE_ERROR),
        frame: None,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::PeerKey;
    use alknet_tls::{ClientTls, Form, bundled_roots};
    use proptest::prelude::*;

    use super::*;

    fn hello(form: Form) -> Vec<u8> {
        let tls = ClientTls::new(None, bundled_roots());
        let remote = tls.pinned(&[PeerKey::Ed25519([1; 32])]).expect("a pin");
        let config = Arc::new(remote.config(form, b"alknet/call"));
        let name = "peer.alknet.invalid".try_into().expect("a name");
        let mut client =
            rustls::quic::ClientConnection::new(config, rustls::quic::Version::V1, name, vec![])
                .expect("a client");
        let mut bytes = Vec::new();
        let _ = client.write_hs(&mut bytes);
        bytes
    }

    #[test]
    fn every_prefix_waits_and_the_whole_chooses() {
        for (form, slot) in [(Form::Raw, Slot::RawX509), (Form::X509, Slot::X509X509)] {
            let hello = hello(form);
            for end in 0..hello.len() {
                assert_eq!(choose(&hello[..end]).expect("no error"), None);
            }
            assert_eq!(choose(&hello).expect("no error"), Some(slot));
            let longer = [&hello[..], b"more"].concat();
            assert_eq!(choose(&longer).expect("no error"), Some(slot));
        }
    }

    #[test]
    fn a_hello_over_the_limit_is_refused_at_its_header() {
        let header = |length: u32| {
            let [_, a, b, c] = length.to_be_bytes();
            [1, a, b, c]
        };
        let fits = u32::try_from(HELLO_BYTES_MAX - HEADER_BYTES).expect("small");
        assert_eq!(choose(&header(fits)).expect("waits"), None);
        assert!(choose(&header(fits + 1)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = choose(&bytes);
        }

        #[test]
        fn no_damage_panics(at in 0usize..200, to in any::<u8>()) {
            let mut hello = hello(Form::Raw);
            let at = at % hello.len();
            hello[at] = to;
            let _ = choose(&hello);
        }
    }
}
