//! The configuration document.

use alknet_core::config::{CONFIG_ERRORS_MAX, NodeConfig};

/// Reads a document as a whole, and the parts that can be salvaged.
pub fn config(data: &[u8]) -> bool {
    let salvaged = NodeConfig::salvage(data);
    assert!(salvaged.peers.is_empty() && salvaged.api_keys.is_empty());
    let lines = 1 + data.iter().filter(|byte| **byte == b'\n').count();
    match NodeConfig::parse(data) {
        Err(errors) => {
            assert!((1..=CONFIG_ERRORS_MAX).contains(&errors.len()));
            for error in errors {
                assert!(!error.what.is_empty() && !error.fix.is_empty());
                assert!(error.line.is_none_or(|line| (1..=lines).contains(&line)));
                assert!(!error.to_string().contains('\u{1b}'), "a console obeys it");
            }
            false
        }
        Ok(config) => {
            reads_back(&config);
            assert_eq!(salvaged.listen, config.listen);
            assert_eq!(salvaged.network, config.network);
            assert_eq!(salvaged.node.admin_keys, config.node.admin_keys);
            // Each key, token and address of the document is in the result: the reader accepts none that it then
            // drops.
            let known = config.entries();
            assert_eq!(known.admins.len(), config.node.admin_keys.len());
            assert_eq!(known.api_keys.len(), config.api_keys.len());
            for (entry, peer) in known.peers.iter().zip(&config.peers) {
                assert_eq!(entry.keys.len(), peer.keys.len());
                assert_eq!(entry.token_hashes.len(), peer.tokens.len());
                assert_eq!(entry.addresses.len(), peer.addresses.len());
            }
            assert_eq!(known.peers.len(), config.peers.len());
            true
        }
    }
}

fn reads_back(config: &NodeConfig) {
    let text = toml::to_string(config).expect("a configuration can be written");
    let again = NodeConfig::parse(text.as_bytes());
    assert_eq!(again.as_ref(), Ok(config), "{text}");
}
