//! Whatever is written, and whatever is damaged.

use proptest::prelude::*;

use super::*;

fn key() -> impl Strategy<Value = String> {
    "(ed25519|spki|SHA256):[0-9a-f]{64}"
}

fn link_config() -> impl Strategy<Value = LinkConfig> {
    let dns = prop::collection::vec(any::<IpAddr>(), 0..3);
    ("[a-z]{1,8}[0-9]{1,3}", any::<bool>(), dns).prop_map(|(matches, fixed, dns)| LinkConfig {
        matches,
        method: if fixed {
            LinkMethod::Static
        } else {
            LinkMethod::Auto
        },
        addresses: if fixed {
            vec!["192.0.2.2/24".into()]
        } else {
            Vec::new()
        },
        gateways: Vec::new(),
        dns,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_written_out_reads_back(
        port in 1u16..,
        name in prop::option::of("[a-z]([a-z0-9-]{0,20}[a-z0-9])?"),
        admin_keys in prop::collection::hash_set(key(), 0..4),
        link in prop::option::of(link_config()),
        peer in prop::option::of((key(), "[a-z0-9][a-z0-9._]{0,20}", any::<bool>())),
    ) {
        let mut config = NodeConfig::default();
        config.listen.port = port;
        config.node.name = name;
        config.node.admin_keys = admin_keys.into_iter().collect();
        config.network.extend(link);
        config.peers.extend(peer.map(|(key, peer_id, enabled)| PeerConfig {
            peer_id,
            keys: vec![key],
            tokens: Vec::new(),
            scopes: vec!["fs:read:*".into()],
            resources: BTreeMap::from([("disk".into(), vec!["vda".into()])]),
            addresses: vec!["edge:4433".into()],
            display_name: Some("\"Ada's\"".into()),
            enabled,
            expires: None,
            max_connections: Some(u32::from(port % 16) + 1),
        }));
        config.limits.connections = Some(u32::from(port % 4096) + 1);
        config.log.hash_addresses = port % 2 == 0;
        let document = toml::to_string(&config).expect("a serialisable configuration");
        prop_assert_eq!(NodeConfig::parse(document.as_bytes()), Ok(config));
    }

    #[test]
    fn no_bytes_make_it_panic(document in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = NodeConfig::parse(&document);
    }

    #[test]
    fn damage_to_a_document_is_survived(at in 0usize..COMPLETE.len(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut document = COMPLETE.as_bytes().to_vec();
        if cut { document.truncate(at) } else { document[at] = byte }
        let salvaged = NodeConfig::salvage(&document);
        prop_assert!(salvaged.peers.is_empty());
        if let Err(errors) = NodeConfig::parse(&document) {
            prop_assert!(!errors.is_empty() && errors.len() <= CONFIG_ERRORS_MAX);
        }
    }
}
