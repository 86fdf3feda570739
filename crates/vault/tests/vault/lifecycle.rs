//! From the first words over a restart and a rotation to a new disk with the same words.

use std::sync::{Arc, Mutex};

use alknet_vault::audit::{
    AuditEvent, AuditLog, AuditRecord, BootId, SlotName, UnwrittenEvents, verify,
};
use alknet_vault::slots::{
    Argon2Params, Consent, FileCopyStorage, NewSlot, NewVault, OpenAlkv, SeedKey, SlotError,
    UnlockKey, VaultCopies,
};
use alknet_vault::{
    Entropy, KeyPurpose, KeyVersion, KeyVersions, Observer, PathIndex, SealedBlob, SecretStr,
    Vault, WordCount, limits,
};

const CAP: u32 = limits::ARGON2_FLOOR_KIB;

fn copies(dir: &std::path::Path) -> VaultCopies<FileCopyStorage> {
    let file = |name| FileCopyStorage::file(dir.join(name));
    VaultCopies::new(file("vault.a"), file("vault.b"))
}

/// What a program does to write down what happens: keeps it until the log takes it.
#[derive(Clone, Default)]
struct EventBuffer(Arc<Mutex<UnwrittenEvents>>);

impl EventBuffer {
    fn record(&self, event: AuditEvent) {
        let boot: BootId = "first".parse().expect("a name");
        let mut pending = self.0.lock().expect("whole");
        pending.push(AuditRecord::new(1_767_225_600_000, boot, event));
    }
}

impl Observer for EventBuffer {
    fn happened(&self, event: &AuditEvent) {
        self.record(event.clone());
    }
}

#[test]
fn a_node_is_made_restarted_rotated_and_made_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut disk = copies(dir.path());
    assert!(disk.load().expect("readable").is_none());

    let words = Entropy::generate(WordCount::default()).expect("random bytes");
    let paper = words.phrase();
    let typed = SecretStr::from("correct horse");
    let first = NewSlot::Passphrase {
        passphrase: &typed,
        cost: Argon2Params::FLOOR,
        cap_kib: CAP,
    };
    let mut open = OpenAlkv::create(NewVault::new(words, 1_767_225_600), first).expect("made");
    let seed = SeedKey::generate(open.alkv().uuid()).expect("random bytes");
    open.add(NewSlot::Provisioning(&seed)).expect("added");
    disk.create(&open).expect("written");
    drop(open);

    // The next start: a wrong passphrase, then the medium.
    let found = disk.load().expect("readable").expect("a vault");
    let wrong = SecretStr::from("wrong horse");
    let mut key = UnlockKey::Passphrase {
        passphrase: &wrong,
        cap_kib: CAP,
    };
    assert!(matches!(found.open(&mut key), Err(SlotError::WrongKey(_))));
    let medium = SeedKey::parse(seed.to_text().expose()).expect("its own text");
    let mut open = found.open(&mut UnlockKey::Seed(&medium)).expect("opened");

    let recorder = EventBuffer::default();
    let vault = Vault::locked_as(open.alkv().device(), Some(Box::new(recorder.clone())));
    vault
        .unlock(open.entropy(), open.passphrase())
        .expect("unlocked");
    let slot = &found.newest.slots()[1];
    let name = SlotName {
        kind: slot.kind(),
        id: slot.id(),
    };
    recorder.record(AuditEvent::Unlocked(name));
    let public = vault
        .signer(KeyPurpose::NodeIdentity)
        .expect("open")
        .public();
    let label = "cred:openai".parse().expect("a label");
    let kept = vault
        .seal(&label, b"sk-test-123")
        .expect("sealed")
        .to_json();

    // Rotation: everything under a new version, then the old one is forbidden.
    let to = KeyVersion::new(3).expect("a version");
    let old = SealedBlob::from_json(&kept).expect("its own text");
    let new = vault.rewrap(&label, &old, to).expect("rewrapped");
    let versions = KeyVersions {
        current: to,
        oldest: to,
    };
    vault.use_versions(versions).expect("in order");
    assert!(vault.open(&label, &old).is_err());

    // The passphrase changes; the old one opens nothing.
    let id = open.alkv().slots()[0].id();
    let changed = SecretStr::from("battery staple");
    let slot = NewSlot::Passphrase {
        passphrase: &changed,
        cost: Argon2Params::FLOOR,
        cap_kib: CAP,
    };
    open.replace(id, slot, Consent::None).expect("replaced");
    disk.save(&open).expect("written");
    let found = disk.load().expect("readable").expect("a vault");
    let mut key = UnlockKey::Passphrase {
        passphrase: &typed,
        cap_kib: CAP,
    };
    assert!(found.open(&mut key).is_err());

    // The log has all of it, and nothing that is secret.
    let mut log = AuditLog::open(dir.path()).expect("opened");
    recorder
        .0
        .lock()
        .expect("whole")
        .flush(&mut log, &vault)
        .expect("written");
    let verified = verify(dir.path(), &vault).expect("whole");
    assert_eq!(verified.lines, 4);
    let text = std::fs::read_to_string(dir.path().join("vault.log")).expect("text");
    assert!(!text.contains("sk-test"), "{text}");

    // Nothing on the disk gives the words away.
    let word = paper.expose().split(' ').next().expect("a word");
    for name in ["vault.a", "vault.b", "vault.log"] {
        let bytes = std::fs::read(dir.path().join(name)).expect("a file");
        let plain = bytes.windows(32).any(|part| part == open.entropy().bytes());
        assert!(!plain, "{name} holds the entropy");
        assert!(!String::from_utf8_lossy(&bytes).contains(&format!("{word} ")));
    }

    // Another disk and the words from the paper: the same node, and its credentials open.
    let again = Vault::locked_as(PathIndex::default(), None);
    let words = Entropy::parse(&paper.expose().to_uppercase()).expect("words");
    again.unlock(&words, &SecretStr::empty()).expect("unlocked");
    assert_eq!(
        again
            .signer(KeyPurpose::NodeIdentity)
            .expect("open")
            .public(),
        public
    );
    assert_eq!(
        again.open(&label, &new).expect("opened").expose(),
        b"sk-test-123"
    );
    assert_eq!(
        again.recovery_secret().expect("open"),
        vault.recovery_secret().expect("open")
    );
    verify(dir.path(), &again).expect("written with the same words");
}
