//! The ClientHello that chooses a configuration, compared with the TLS library's reader fed as on TCP, and with a
//! reader of 40 lines.

use std::sync::OnceLock;

use alknet_tls::{HelloError, NodeKey, ServerTls, ServerTlsOptions, TlsConfigSlot};
use rustls::server::Acceptor;

/// Handshake bytes of one record when they come in many.
const RECORD_BYTES: usize = 100;

/// The first bytes of a handshake, as QUIC hands them out.
pub fn hello(data: &[u8]) -> bool {
    let (open, strict) = servers();
    let chosen = open.slot_of(data);
    match &chosen {
        Ok(Some(slot)) => {
            let end = 4 + length(data).expect("a header was read");
            let hello = &data[..end];
            assert_eq!(
                open.slot_of(hello).as_ref(),
                Ok(&Some(*slot)),
                "what follows counts"
            );
            assert_eq!(
                open.slot_of(&hello[..end - 1]),
                Ok(None),
                "it was chosen too early"
            );
            assert_eq!(by_records(open, hello, end), Some(*slot), "one record");
            assert_eq!(
                by_records(open, hello, RECORD_BYTES),
                Some(*slot),
                "records"
            );
            assert_eq!(by_hand(hello), Some(*slot), "another reader");
            match strict.slot_of(data) {
                Ok(strict) => assert_eq!(strict, Some(*slot)),
                // A raw key has no names.
                Err(error) => {
                    assert!(matches!(error, HelloError::UnknownName(_)));
                    assert!(!matches!(
                        slot,
                        TlsConfigSlot::RawRaw | TlsConfigSlot::RawX509
                    ));
                }
            }
        }
        Ok(None) => assert!(length(data).is_none_or(|length| data.len() < 4 + length)),
        Err(error) => {
            // `decode_error` and `unrecognized_name` (RFC 8446 section 6).
            assert!(matches!(error.alert(), 50 | 112));
            let whole = length(data).and_then(|length| data.get(..4 + length));
            let read = whole.and_then(|hello| by_records(open, hello, RECORD_BYTES));
            assert!(read.is_none() || *error == HelloError::TooLong);
        }
    }
    matches!(chosen, Ok(Some(_)))
}

/// One server that takes every name, and one that takes none of a client's.
fn servers() -> &'static (ServerTls, ServerTls) {
    static SERVERS: OnceLock<(ServerTls, ServerTls)> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let server = |strict_sni| {
            let options = ServerTlsOptions {
                strict_sni,
                ..ServerTlsOptions::default()
            };
            let key = NodeKey::from_seed(&[3; 32]);
            ServerTls::new(&key, options, &[], &[b"alknet/call"]).expect("a correct set-up")
        };
        (server(false), server(true))
    })
}

fn length(data: &[u8]) -> Option<usize> {
    let header = data.first_chunk::<4>()?;
    Some(u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize)
}

/// The slot on TCP, where the ClientHello comes in records of `size` bytes.
fn by_records(tls: &ServerTls, hello: &[u8], size: usize) -> Option<TlsConfigSlot> {
    let mut acceptor = Acceptor::default();
    for piece in hello.chunks(size) {
        let length = u16::try_from(piece.len()).ok()?.to_be_bytes();
        let record = [&[22, 3, 1], &length[..], piece].concat();
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest).ok()?;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            return tls.slot(&accepted.client_hello()).ok();
        }
    }
    None
}

/// Reads a ClientHello as RFC 8446 section 4.1.2 lays it out.
fn by_hand(hello: &[u8]) -> Option<TlsConfigSlot> {
    let body = hello.strip_prefix(&[1])?.get(3..)?;
    let mut rest = body.get(2 + 32..)?;
    for width in [1, 2, 1] {
        vector(&mut rest, width)?;
    }
    let mut extensions = vector(&mut rest, 2)?;
    let (mut raw_server, mut raw_client, mut own) = (false, false, false);
    while !extensions.is_empty() {
        let (kind, after) = extensions.split_first_chunk::<2>()?;
        extensions = after;
        let mut data = vector(&mut extensions, 2)?;
        match u16::from_be_bytes(*kind) {
            // Extension 16 is ALPN (RFC 7301).
            16 => {
                let mut names = vector(&mut data, 2)?;
                while !names.is_empty() {
                    let name = vector(&mut names, 1)?;
                    own |= name.starts_with(b"alknet/") || name.starts_with(b"/iroh-bytes/");
                }
            }
            // 19 and 20 are the certificate types of client and server (RFC 7250), and 2 is a raw key.
            19 => raw_client = vector(&mut data, 1)?.contains(&2),
            20 => raw_server = vector(&mut data, 1)?.contains(&2),
            _ => {}
        }
    }
    Some(match (raw_server, raw_client) {
        (true, true) => TlsConfigSlot::RawRaw,
        (true, false) => TlsConfigSlot::RawX509,
        (false, true) => TlsConfigSlot::X509Raw,
        (false, false) if own => TlsConfigSlot::X509X509,
        (false, false) => TlsConfigSlot::Web,
    })
}

/// Takes a vector whose length has `width` bytes.
fn vector<'a>(rest: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let (length, after) = rest.split_at_checked(width)?;
    let length = length
        .iter()
        .fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
    let (inner, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(inner)
}
