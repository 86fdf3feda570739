//! What a refused document still gives: the way in for its administrators, and nothing to other peers.

use super::*;

#[test]
fn salvage_keeps_administrators_and_grants_no_other_peer_anything() {
    let broken = COMPLETE.replace("domain =", "domian =");
    let salvaged = NodeConfig::salvage(broken.as_bytes());
    let whole = NodeConfig::parse(COMPLETE.as_bytes()).expect("a correct document");
    assert_eq!(salvaged.node.admin_keys, whole.node.admin_keys);
    assert_eq!(salvaged.node.name, whole.node.name);
    assert_eq!(
        (salvaged.listen, salvaged.network),
        (whole.listen, whole.network)
    );
    assert!(salvaged.peers.is_empty() && salvaged.node.domain.is_none());
}

#[test]
fn salvage_leaves_out_the_faulty_entry_itself() {
    let good = format!("ed25519:{}", "11".repeat(32));
    let document = format!(
        "[listen]\nport = 0\n[node]\nname = \"Bad\"\nadmin_keys = [\"nonsense\", \"{good}\"]\n\
         [[network]]\nmatch = \"eth0\"\nmethod = \"static\"\n[[network]]\nmatch = \"eth1\"\n"
    );
    let salvaged = NodeConfig::salvage(document.as_bytes());
    assert_eq!(salvaged.node.admin_keys, [good]);
    assert_eq!((salvaged.listen.port, &salvaged.node.name), (443, &None));
    assert_eq!(salvaged.network.len(), 1);
    assert_eq!(salvaged.network[0].matches, "eth1");
    assert_eq!(
        NodeConfig::salvage(b"[node\nname = 1"),
        NodeConfig::default()
    );
}

/// A document that ends too early, as after a full disk, gives no more rights than the whole one.
#[test]
fn every_truncation_is_refused_or_says_less() {
    let keys = |config: &NodeConfig| config.node.admin_keys.clone();
    let whole = NodeConfig::parse(COMPLETE.as_bytes()).expect("complete");
    let mut broken = 0;
    for end in 0..COMPLETE.len() {
        let cut = &COMPLETE.as_bytes()[..end];
        match NodeConfig::parse(cut) {
            Ok(config) => {
                let again = toml::to_string(&config).expect("a serialisable configuration");
                assert_eq!(NodeConfig::parse(again.as_bytes()), Ok(config.clone()));
                assert!(keys(&config).iter().all(|k| keys(&whole).contains(k)));
                assert!(config.peers.len() <= whole.peers.len());
            }
            Err(errors) => assert!((1..=CONFIG_ERRORS_MAX).contains(&errors.len())),
        }
        let salvaged = NodeConfig::salvage(cut);
        assert!(salvaged.peers.is_empty());
        assert!(keys(&salvaged).iter().all(|k| keys(&whole).contains(k)));
        // Of half a sentence nothing is taken, of the keys before it neither.
        if toml::from_str::<toml::Table>(&COMPLETE[..end]).is_err() {
            assert_eq!(salvaged, NodeConfig::default(), "up to {end}");
            broken += 1;
        }
    }
    assert!(broken > 100, "{broken} of the cuts break a line");
}
