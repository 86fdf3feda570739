//! Addresses, as users write them for dialling, and as a configuration lists them.

use alknet_core::{DialErrorKind, DialHost, PeerAddr, PeerVerification};

/// The one reader of addresses, for command lines and documents.
pub fn address(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let dialled = text.parse::<PeerAddr>();
    if let Ok(addr) = &dialled {
        dialable(text, addr);
    }
    dialled.is_ok()
}

fn dialable(text: &str, addr: &PeerAddr) {
    let shown = addr.to_string();
    assert_eq!(shown.parse::<PeerAddr>().as_ref(), Ok(addr), "{shown}");
    assert_ne!(addr.port, 0);
    assert_eq!(addr.pins.is_empty(), !text.contains('@'), "pins get lost");
    if let DialHost::Name(name) = &addr.host {
        assert!(alknet_tls::is_dns_name(name), "{name} cannot be asked for");
        assert!(!name.bytes().any(|b| b.is_ascii_uppercase()));
    }
    match PeerVerification::for_address(addr, &[]) {
        Ok(PeerVerification::Pinned(pins)) => assert!(!pins.is_empty() && pins == addr.pins),
        Ok(PeerVerification::WebPki) => {
            assert!(addr.pins.is_empty() && matches!(addr.host, DialHost::Name(_)));
        }
        Err(error) => {
            assert_eq!(error.kind, DialErrorKind::UnknownPeer);
            assert!(addr.pins.is_empty() && matches!(addr.host, DialHost::Ip(_)));
        }
    }
}
