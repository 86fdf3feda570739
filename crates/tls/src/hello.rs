//! Chooses the configuration for a client from the bytes of its ClientHello alone.
//!
//! QUIC hands over handshake bytes without the records of TCP, and in pieces. Both carriages must choose in the same
//! way, so that the bytes go through the same reader.

use rustls::server::Acceptor;
use thiserror::Error;

use crate::server::{ServerTls, TlsConfigSlot, UnknownName};

/// Longest ClientHello in bytes: it fits into one TLS record, and is ten times what clients send.
pub const HELLO_BYTES_MAX: usize = 16 << 10;

/// Handshake header: one byte type, three bytes length (RFC 8446 section 4).
const HEADER_BYTES: usize = 4;

/// Alert `decode_error` (RFC 8446 section 6).
const ALERT_DECODE_ERROR: u8 = 50;

/// Alert `unrecognized_name` (RFC 6066 section 3).
pub const ALERT_UNRECOGNIZED_NAME: u8 = 112;

impl ServerTls {
    /// The slot for the ClientHello at the start of `bytes`, the first ones of a handshake; `None` while it is
    /// incomplete. Bytes after it are ignored.
    ///
    /// # Errors
    /// The ClientHello is longer than [`HELLO_BYTES_MAX`], as its first four bytes say, is no ClientHello, or has a
    /// name that the node refuses.
    pub fn slot_of(&self, bytes: &[u8]) -> Result<Option<TlsConfigSlot>, HelloError> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
        let total = HEADER_BYTES + length;
        if total > HELLO_BYTES_MAX {
            return Err(HelloError::TooLong);
        }
        match bytes.get(..total) {
            Some(hello) => self.slot_of_whole(hello).map(Some),
            None => Ok(None),
        }
    }

    /// Reads a whole ClientHello in the one TLS record in which TCP would carry it.
    fn slot_of_whole(&self, hello: &[u8]) -> Result<TlsConfigSlot, HelloError> {
        let length = u16::try_from(hello.len()).map_err(|_| HelloError::TooLong)?;
        let [high, low] = length.to_be_bytes();
        // 22 is a handshake record, and 3, 1 the version that the record of a first ClientHello may have (RFC 8446
        // section 5.1).
        let record = [&[22, 3, 1, high, low], hello].concat();
        let mut acceptor = Acceptor::default();
        acceptor
            .read_tls(&mut record.as_slice())
            .map_err(|error| HelloError::Undecodable(error.to_string()))?;
        match acceptor.accept() {
            Ok(Some(accepted)) => Ok(self.slot(&accepted.client_hello())?),
            Ok(None) => Err(HelloError::Undecodable("it is incomplete".to_owned())),
            Err((error, _alert)) => Err(HelloError::Undecodable(error.to_string())),
        }
    }
}

/// Why a client gets no configuration.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HelloError {
    /// The ClientHello is longer than [`HELLO_BYTES_MAX`].
    #[error("the ClientHello is longer than {} KiB", HELLO_BYTES_MAX >> 10)]
    TooLong,
    /// The bytes are no ClientHello.
    #[error("the ClientHello cannot be read: {0}")]
    Undecodable(String),
    /// The node does not serve the name.
    #[error(transparent)]
    UnknownName(#[from] UnknownName),
}

impl HelloError {
    /// The alert that the client gets (RFC 8446 section 6.2).
    #[must_use]
    pub const fn alert(&self) -> u8 {
        match self {
            Self::TooLong | Self::Undecodable(_) => ALERT_DECODE_ERROR,
            Self::UnknownName(_) => ALERT_UNRECOGNIZED_NAME,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use alknet_core::PeerKey;
    use proptest::prelude::*;

    use super::*;
    use crate::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost, ServerTlsOptions};

    fn server(strict_sni: bool) -> ServerTls {
        let options = ServerTlsOptions {
            strict_sni,
            ..ServerTlsOptions::default()
        };
        let key = NodeKey::from_seed(&[3; 32]);
        ServerTls::new(&key, options, &[], &[b"alknet/call"]).expect("a server")
    }

    /// What a dialler sends first: raw and X.509 clients of a peer, and one of a public name.
    fn hellos() -> Vec<(Vec<u8>, TlsConfigSlot)> {
        hellos_for(b"alknet/call")
    }

    fn hellos_for(alpn: &[u8]) -> Vec<(Vec<u8>, TlsConfigSlot)> {
        let tls = ClientTls::new(ClientTlsOptions::default());
        let host = RemoteHost::Name("peer.example.org");
        let pin = [PeerKey::Ed25519([1; 32])];
        let pinned = tls.remote(None, &pin, host).expect("a pin");
        let public = tls.remote(None, &[], host).expect("a name");
        let pinned = pinned.attempts(host, alpn).into_iter();
        let public = public.attempts(host, b"h3");
        pinned
            .chain(public)
            .zip([
                TlsConfigSlot::RawX509,
                TlsConfigSlot::X509X509,
                TlsConfigSlot::Web,
            ])
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
                assert_eq!(tls.slot_of(&hello[..end]), Ok(None));
            }
            assert_eq!(tls.slot_of(&hello), Ok(Some(slot)));
            let longer = [&hello[..], b"more"].concat();
            assert_eq!(tls.slot_of(&longer), Ok(Some(slot)));
        }
    }

    /// A client without raw keys, such as one of another project, has to get the question for its certificate.
    #[test]
    fn clients_of_contents_are_asked_for_a_key_as_those_of_calls() {
        let tls = server(false);
        for (hello, slot) in hellos_for(b"/iroh-bytes/4") {
            assert_eq!(tls.slot_of(&hello), Ok(Some(slot)));
        }
    }

    #[test]
    fn strict_names_refuse_a_client_with_another_name() {
        let tls = server(true);
        let choices: Vec<_> = hellos()
            .iter()
            .map(|(hello, _)| tls.slot_of(hello))
            .collect();
        // Raw keys know no names.
        assert_eq!(choices[0], Ok(Some(TlsConfigSlot::RawX509)));
        for refused in &choices[1..] {
            assert_eq!(refused, &Err(HelloError::UnknownName(UnknownName)));
            let alert = refused.as_ref().map_err(HelloError::alert);
            assert_eq!(alert, Err(ALERT_UNRECOGNIZED_NAME));
        }
    }

    #[test]
    fn a_hello_over_the_limit_is_refused_at_its_header() {
        let tls = server(false);
        let header = |length: u32| {
            let [_, a, b, c] = length.to_be_bytes();
            [1, a, b, c]
        };
        let longest = u32::try_from(HELLO_BYTES_MAX - HEADER_BYTES).expect("small");
        assert_eq!(tls.slot_of(&header(longest)), Ok(None));
        let error = tls.slot_of(&header(longest + 1)).expect_err("too long");
        assert_eq!(error, HelloError::TooLong);
        assert_eq!(error.alert(), ALERT_DECODE_ERROR);
    }

    thread_local! {
        static TLS: ServerTls = server(false);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            TLS.with(|tls| drop(tls.slot_of(&bytes)));
        }

        /// A header that fits what follows gets past the length, into the parser.
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..600)) {
            let length = u16::try_from(body.len()).expect("small").to_be_bytes();
            let hello = [&[1, 0, length[0], length[1]], &body[..]].concat();
            TLS.with(|tls| drop(tls.slot_of(&hello)));
        }

        #[test]
        fn no_damage_panics(which in 0usize..3, at in 0usize..1500, to in any::<u8>()) {
            let mut hello = hellos().swap_remove(which).0;
            let at = at % hello.len();
            hello[at] = to;
            TLS.with(|tls| drop(tls.slot_of(&hello)));
        }
    }
}
