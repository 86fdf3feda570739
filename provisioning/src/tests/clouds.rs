//! The metadata service as a source: when it is to be asked, and what its answer is worth.

use super::*;

const SERVICE: MetadataService = MetadataService::Hetzner;

impl DirectoryMachine {
    /// The firmware's tables of a machine of Hetzner.
    fn of_cloud() -> Self {
        let machine = Self::new();
        let dir = machine.paths.dmi.join("1-0");
        fs::create_dir_all(&dir).expect(FILE);
        let mut raw = vec![1, 6, 0, 1, 1, 2];
        raw.extend(b"Hetzner\0vServer\0\0");
        fs::write(dir.join("raw"), raw).expect(FILE);
        machine
    }

    fn answered(&self, document: &str) {
        let stored = SERVICE.store_answer(&self.paths, document.as_bytes());
        stored.expect(FILE);
    }
}

#[test]
fn a_service_is_asked_once_in_a_start_and_its_document_is_taken_once() {
    let machine = DirectoryMachine::of_cloud();
    assert_eq!(machine.load().asks, Some(SERVICE));
    machine.answered(&document(1));
    let loaded = machine.load();
    assert_eq!((name(&loaded), codes(&loaded)), ("node-1", vec![]));
    assert_eq!(loaded.source.to_string(), "metadata (Hetzner)");
    assert_eq!(loaded.source.trust(), "hypervisor");
    assert_eq!(loaded.asks, None);
    // An administrator changes the configuration. At the next start the service is not asked.
    let dir = machine.paths.config_dir.clone().expect("a data partition");
    store_document(&dir, document(2).as_bytes()).expect(FILE);
    fs::remove_dir_all(&machine.paths.metadata).expect(FILE);
    let loaded = machine.load();
    assert_eq!((name(&loaded), loaded.asks), ("node-2", None));
}

#[test]
fn a_service_without_a_document_is_not_asked_again() {
    let machine = DirectoryMachine::of_cloud();
    machine.answered("");
    let loaded = machine.load();
    assert_eq!(
        (&loaded.source, loaded.asks),
        (&ConfigOrigin::Default, None)
    );
    assert!(loaded.problems.is_empty());
}

#[test]
fn a_document_of_any_other_source_turns_the_question_off() {
    let machine = DirectoryMachine::of_cloud();
    machine.fw_cfg(document(3));
    assert_eq!(machine.load().asks, None);
    // One with mistakes, too: its owner meant that one.
    let machine = DirectoryMachine::of_cloud();
    machine.fw_cfg(misspelt(3));
    let loaded = machine.load();
    assert_eq!((loaded.asks, loaded.salvaged), (None, true));
    // It also counts before an answer that is there already.
    let machine = DirectoryMachine::of_cloud();
    machine.answered(&document(1));
    machine.fw_cfg(document(3));
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), codes(&loaded)),
        ("node-3", vec!["provisioning-conflict"])
    );
    let text = &loaded.problems[0].text;
    assert!(text.ends_with("not used: metadata (Hetzner)"), "{text}");
}

#[test]
fn a_sealed_node_that_was_configured_asks_nothing() {
    let machine = DirectoryMachine::of_cloud();
    let sealed = |paths: SourcePaths| load_with(&paths, &machine.volumes).asks;
    let paths = || machine.paths.clone().sealed(true);
    assert_eq!(sealed(paths()), Some(SERVICE), "its first configuration");
    // Even if an attacker who cannot read the disk has damaged the stored one.
    assert_eq!(sealed(paths().configured(true)), None);
}

#[test]
fn a_machine_of_no_cloud_asks_nothing() {
    assert_eq!(DirectoryMachine::new().load().asks, None);
}

#[test]
fn a_document_with_mistakes_is_refused_as_on_a_medium() {
    let machine = DirectoryMachine::of_cloud();
    machine.answered(&misspelt(1));
    let loaded = machine.load();
    assert_eq!(codes(&loaded), ["config-refused", "config-salvaged"]);
    let text = &loaded.problems[0].text;
    assert!(text.starts_with("metadata (Hetzner): line 4"), "{text}");
}

#[test]
fn a_seed_key_of_a_service_is_refused_since_a_closed_vault_asks_none() {
    let machine = DirectoryMachine::of_cloud();
    machine.answered(&(document(1) + "[secrets]\nseed_key = \"alknet-seed-1 x\"\n"));
    let loaded = machine.load();
    assert_eq!(
        (name(&loaded), codes(&loaded)),
        ("node-1", vec!["secrets-refused"])
    );
    assert!(loaded.secrets.seed_keys.is_empty());
    let text = &loaded.problems[0].text;
    assert!(text.contains("asks no metadata service"), "{text}");
}
