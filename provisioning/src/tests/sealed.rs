//! Sealed nodes, which take their first configuration once.

use super::*;

/// An administrator was removed, and damages the sealed node's stored document. Garbage in one block is enough. The
/// document that is then used must not be the previous one.
#[test]
fn damage_does_not_bring_a_removed_administrator_back() {
    let mut machine = DirectoryMachine::new();
    machine.paths.is_sealed = true;
    let both = document(1).replace("admin_keys = [", &format!("admin_keys = [\"{}\", ", key(2)));
    machine.fw_cfg(&both);
    let admins = |loaded: &LoadedConfig| loaded.config.node.admin_keys.clone();
    assert_eq!(admins(&machine.load()), [key(2), key(1)]);
    machine.paths.is_configured = true;
    let dir = machine.paths.config_dir.clone().expect("a data partition");
    store_document(&dir, document(1).as_bytes()).expect(FILE);
    for damaged in [&b"\0"[..], b"\xff\xfe\x5a"] {
        machine.store("config.toml", damaged);
        let loaded = machine.load();
        assert_eq!(admins(&loaded), [key(1)], "{loaded:?}");
        assert_eq!(loaded.source, ConfigOrigin::LastGood);
    }
    // Nor does damage to both documents.
    machine.store("config.last-good.toml", b"\0");
    let loaded = machine.load();
    assert!(admins(&loaded).is_empty() && loaded.salvaged, "{loaded:?}");
}

#[test]
fn a_sealed_node_is_provisioned_once() {
    let mut machine = DirectoryMachine::new();
    machine.paths.is_sealed = true;
    machine.fw_cfg(document(1));
    let first = machine.load();
    assert_eq!((name(&first), codes(&first)), ("node-1", vec![]));
    let again = machine.load();
    assert_eq!(
        (&again.source, codes(&again)),
        (&ConfigOrigin::Stored, vec![])
    );

    for other in [document(2), misspelt(2)] {
        machine.fw_cfg(other);
        let loaded = machine.load();
        assert_eq!(
            (name(&loaded), codes(&loaded)),
            ("node-1", vec!["provisioning-ignored"])
        );
        assert!(loaded.problems[0].is_notice());
        assert_eq!(machine.stored("config.toml"), Some(document(1)));
    }
    // The power was lost before the document was recorded as taken.
    let applied = machine
        .paths
        .config_dir
        .as_ref()
        .map(|dir| dir.join("provisioned.toml"));
    fs::remove_file(applied.expect("given above")).expect(FILE);
    machine.fw_cfg(document(1));
    assert_eq!(codes(&machine.load()), Vec::<&str>::new());
    // Nothing correct is stored, so only the medium is left.
    machine.fw_cfg(document(3));
    machine.store("config.toml", b"\0");
    assert_eq!(name(&machine.load()), "node-1");
    machine.store("config.last-good.toml", b"\0");
    assert_eq!(name(&machine.load()), "node-3");
}

/// An attacker who cannot read a sealed disk can damage its content, but that does not make a medium count.
#[test]
fn a_sealed_node_that_was_configured_takes_nothing_from_a_medium() {
    let mut machine = DirectoryMachine::new();
    machine.paths.is_sealed = true;
    machine.fw_cfg(document(1));
    assert!(machine.load().is_stored);
    machine.paths.is_configured = true;
    assert_eq!(codes(&machine.load()), Vec::<&str>::new());
    machine.fw_cfg(document(2));
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), codes(&loaded)),
        ("node-1", vec!["provisioning-ignored"])
    );
    for damaged in [&b"\0"[..], b"\xff\xfe"] {
        for name in ["config.toml", "config.last-good.toml", "provisioned.toml"] {
            machine.store(name, damaged);
        }
        let loaded = machine.load();
        assert!(!loaded.takes_credentials);
        assert!(codes(&loaded).contains(&"provisioning-ignored"));
        assert!(loaded.config.node.admin_keys.is_empty(), "{loaded:?}");
        assert_eq!(loaded.source, ConfigOrigin::Stored);
    }
    let dir = machine.paths.config_dir.clone().expect("given above");
    fs::remove_dir_all(dir).expect(FILE);
    let loaded = machine.load();
    assert_eq!(
        (&loaded.source, loaded.is_stored),
        (&ConfigOrigin::Default, false)
    );
    // The copy is the node's own as well.
    machine.store("config.toml", b"\0");
    machine.store("config.last-good.toml", document(3));
    assert_eq!(name(&machine.load()), "node-3");
    // A node that is not sealed has nothing to protect this way.
    machine.paths.is_sealed = false;
    assert_eq!(name(&machine.load()), "node-2");
}

#[test]
fn a_sealed_node_takes_credentials_with_its_document_only() {
    let mut machine = DirectoryMachine::new();
    let dir = machine.paths.config_dir.clone().expect("given above");
    machine.paths.is_sealed = true;
    machine.fw_cfg(document(1));
    // Until they are processed, because the power may be lost before.
    assert!(machine.load().takes_credentials);
    assert!(machine.load().takes_credentials);
    settle_credentials(&dir).expect(FILE);
    assert!(!machine.load().takes_credentials);
    machine.fw_cfg(document(2));
    assert!(!machine.load().takes_credentials);
    // A node that is not sealed takes credentials from any attached medium.
    machine.paths.is_sealed = false;
    assert!(machine.load().takes_credentials);
    // It took the second document, so the credentials that come with it may be taken.
    machine.paths.is_sealed = true;
    assert!(machine.load().takes_credentials);
    settle_credentials(&dir).expect(FILE);
    assert!(!machine.load().takes_credentials);
}
