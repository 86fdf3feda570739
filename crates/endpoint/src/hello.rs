//! Chooses the TLS configuration of a QUIC connection by its ClientHello.
//!
//! QUIC asks for a session before the first byte has come, and the TLS library needs its configuration from the
//! start. The session of this module keeps the handshake bytes until the ClientHello is complete, chooses, starts a
//! session with the chosen configuration and replays the bytes to it.
//!
//! A session lives as long as the library keeps anything of its connection, longer than any handle to it. Hence its
//! configuration, which belongs to one connection, owns that connection's receive window as well, and the window
//! counts until then.

use std::any::Any;
use std::sync::Arc;

use alknet_tls::{HelloError, ServerTls, TlsConfigSlot};
use quinn::crypto::rustls::{HandshakeData, NoInitialCipherSuite, QuicServerConfig};
use quinn::crypto::{
    self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
    UnsupportedVersion,
};
use quinn::{ConnectionId, Side, TransportErrorCode};
use quinn_proto::TransportError;
use quinn_proto::transport_parameters::TransportParameters;

use crate::windows::ReceiveWindow;

/// The TLS configurations of a node for QUIC.
#[derive(Clone)]
pub(crate) struct HelloChooser {
    tls: Arc<ServerTls>,
    configs: [Arc<QuicServerConfig>; 5],
    /// The receive window of the one connection that this is for; unused in the endpoint's own.
    window: Arc<ReceiveWindow>,
}

impl HelloChooser {
    pub(crate) fn new(tls: &Arc<ServerTls>) -> Result<Self, NoInitialCipherSuite> {
        let config = |slot| Ok(Arc::new(QuicServerConfig::try_from(tls.quic(slot))?));
        let [a, b, c, d, e] = TlsConfigSlot::ALL;
        Ok(Self {
            configs: [config(a)?, config(b)?, config(c)?, config(d)?, config(e)?],
            tls: Arc::clone(tls),
            window: Arc::default(),
        })
    }

    /// A copy for the connection that has this window.
    pub(crate) fn with_window(&self, window: Arc<ReceiveWindow>) -> Arc<Self> {
        Arc::new(Self {
            window,
            ..self.clone()
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
        // Keys of Initial packets come from the client's connection id and the version only (RFC 9001 section 5.2),
        // so every configuration gives the same.
        self.any().initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        // The tag's key is the same for every server (RFC 9001 section 5.8).
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

/// The result of the choice, once a handshake has made it.
pub(crate) struct NegotiatedHandshake {
    pub(crate) tls: Box<HandshakeData>,
    pub(crate) window: Arc<ReceiveWindow>,
}

struct HelloSession {
    chooser: Arc<HelloChooser>,
    version: u32,
    params: TransportParameters,
    hello: Vec<u8>,
    chosen: Option<Box<dyn Session>>,
}

impl HelloSession {
    fn start(&self, slot: TlsConfigSlot) -> Box<dyn Session> {
        let config = Arc::clone(&self.chooser.configs[slot as usize]);
        crypto::ServerConfig::start_session(config, self.version, &self.params)
    }
}

impl Session for HelloSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        match &self.chosen {
            Some(session) => session.initial_keys(dst_cid, side),
            // Before the ClientHello is complete every configuration gives the same keys (RFC 9001 section 5.2).
            None => self
                .start(TlsConfigSlot::RawRaw)
                .initial_keys(dst_cid, side),
        }
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let tls = self.chosen.as_ref()?.handshake_data()?;
        Some(Box::new(NegotiatedHandshake {
            tls: tls.downcast().ok()?,
            window: Arc::clone(&self.chooser.window),
        }))
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
        let Some(slot) = self.chooser.tls.slot_of(&self.hello).map_err(refuse)? else {
            // The rest comes in later packets: with a post-quantum key share the ClientHello takes two.
            return Ok(false);
        };
        let mut session = self.start(slot);
        let ready = session.read_handshake(&self.hello);
        // The buffer is freed and not only cleared, because the session lives as long as its connection.
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
            // Only clients receive Retry packets (RFC 9000 section 17.2.5).
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

fn refuse(error: HelloError) -> TransportError {
    TransportError {
        code: TransportErrorCode::crypto(error.alert()),
        frame: None,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::PeerKey;
    use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost, ServerTlsOptions};
    use quinn::crypto::ClientConfig;
    use quinn::crypto::rustls::QuicClientConfig;

    use super::*;

    /// What a dialler of a peer sends first: once with a raw key, once with a certificate.
    fn hellos() -> Vec<Vec<u8>> {
        let tls = ClientTls::new(ClientTlsOptions::default());
        let host = RemoteHost::Name("peer.example.org");
        let pin = [PeerKey::Ed25519([1; 32])];
        let pinned = tls.remote(None, &pin, host).expect("a pin");
        let hello = |config| {
            let config = Arc::new(QuicClientConfig::try_from(config).expect("QUIC"));
            let client = ClientConfig::start_session(config, VERSION, "peer.example.org", &none());
            let mut bytes = Vec::new();
            client.expect("a name").write_handshake(&mut bytes);
            bytes
        };
        let configs = pinned.attempts(host, b"alknet/call").into_iter();
        configs.map(hello).collect()
    }

    const VERSION: u32 = 1;

    fn none() -> TransportParameters {
        TransportParameters::read(Side::Server, &mut &b""[..]).expect("defaults")
    }

    /// However the bytes are cut into two CRYPTO frames, and in pieces of every size, the session
    /// begins with the last of the ClientHello and not before.
    #[test]
    fn every_split_is_put_together() {
        let key = NodeKey::from_seed(&[3; 32]);
        let tls = ServerTls::new(&key, ServerTlsOptions::default(), &[], &[b"alknet/call"]);
        let tls = Arc::new(tls.expect("a server"));
        let chooser = Arc::new(HelloChooser::new(&tls).expect("QUIC"));
        for hello in hellos() {
            let splits = (1..hello.len()).map(|at| (at, hello.len()));
            let pieces = (1..64).map(|size| (size, size));
            for (first, rest) in splits.chain(pieces) {
                let mut session = HelloSession {
                    chooser: Arc::clone(&chooser),
                    version: VERSION,
                    params: none(),
                    hello: Vec::new(),
                    chosen: None,
                };
                let (head, mut tail) = hello.split_at(first);
                assert!(!session.read_handshake(head).expect("waits"));
                while session.chosen.is_none() {
                    assert!(!tail.is_empty(), "the whole ClientHello chooses");
                    let (piece, left) = tail.split_at(rest.min(tail.len()));
                    tail = left;
                    let known = session.read_handshake(piece).expect("a good hello");
                    assert_eq!(session.chosen.is_some(), tail.is_empty());
                    assert_eq!(known, tail.is_empty(), "what the client wants is known");
                }
            }
        }
    }
}
