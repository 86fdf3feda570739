//! Stock cryptsetup reads our headers, and we read those that it made or changed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use alknet_sealed::limits::{DATA_AT, VAULT_A_AT, VAULT_AREA_BYTES, VAULT_B_AT};
use alknet_sealed::{HeaderCopyId, NewHeader, SealedError, SealedPartition, SectorCipher};
use uuid::Uuid;

use crate::{content, cryptsetup, text};

/// Phrases in the vault's form: 32 bytes in base64url.
const ONE: &str = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA";
const TWO: &str = "EjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJCrze8";
const THREE: &str = "VniQq83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjQ";
const VAULT: &str = "0b9e8a4e-5e6c-4a1f-9d55-7f3f6f0d9f11";
const BYTES: u64 = 24 << 20;

/// A partition in a file, with the phrases beside it.
struct PartitionFile {
    dir: tempfile::TempDir,
}

impl PartitionFile {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let lab = Self { dir };
        for (name, phrase) in [("one", ONE), ("two", TWO), ("three", THREE)] {
            fs::write(lab.dir.path().join(name), phrase).expect("writable");
        }
        let disk = File::create(lab.dir.path().join("disk")).expect("writable");
        disk.set_len(BYTES).expect("a sparse file");
        lab
    }

    fn sealed(cipher: SectorCipher) -> Self {
        let lab = Self::new();
        for (at, byte) in [(VAULT_A_AT, 0xaa), (VAULT_B_AT, 0xbb)] {
            let area = [byte; VAULT_AREA_BYTES as usize];
            lab.file().write_all_at(&area, at).expect("writable");
        }
        let new = NewHeader {
            uuid: Uuid::from_bytes([0x42; 16]),
            vault: VAULT,
            cipher,
            phrases: &[ONE.as_bytes(), TWO.as_bytes()],
        };
        SealedPartition::format(lab.file(), BYTES, &new).expect("a file that can be written");
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn disk(&self) -> String {
        text(&self.path("disk")).to_owned()
    }

    fn key(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }

    fn file(&self) -> File {
        let mut options = File::options();
        let file = options.read(true).write(true).open(self.path("disk"));
        file.expect("the disk is there")
    }

    fn load(&self) -> SealedPartition {
        SealedPartition::load(self.file(), BYTES).expect("a header")
    }

    /// Whether a phrase opens a slot for cryptsetup.
    fn opens(&self, name: &str, slot: u32) -> bool {
        let (slot, key, disk) = (slot.to_string(), self.key(name), self.disk());
        let open = ["open", "--test-passphrase", "--key-slot", &slot];
        let output = cryptsetup(&[&open[..], &["--key-file", &key, &disk]].concat());
        // Exit status 2 means that the phrase opens no slot.
        assert!(matches!(output.status.code(), Some(0 | 2)), "{output:?}");
        output.status.success()
    }

    /// The volume key that cryptsetup finds.
    fn volume_key(&self, name: &str) -> Vec<u8> {
        let out = self.path("volume-key");
        let (key, disk) = (self.key(name), self.disk());
        let dump = ["luksDump", "--dump-volume-key", "--volume-key-file"];
        content(&[&dump[..], &[text(&out), "--key-file", &key, &disk]].concat());
        let found = fs::read(&out).expect("just written");
        fs::remove_file(&out).expect("just written");
        found
    }

    #[track_caller]
    fn vault_is_whole(&self) {
        for (at, byte) in [(VAULT_A_AT, 0xaa), (VAULT_B_AT, 0xbb)] {
            let mut area = vec![0; VAULT_AREA_BYTES as usize];
            self.file().read_exact_at(&mut area, at).expect("readable");
            assert!(area.iter().all(|found| *found == byte), "area at {at}");
        }
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = vec![0; DATA_AT as usize];
        self.file().read_exact_at(&mut bytes, 0).expect("readable");
        bytes
    }
}

#[test]
fn cryptsetup_knows_and_opens_what_is_written_here() {
    for cipher in [SectorCipher::AesXts, SectorCipher::Adiantum] {
        let lab = PartitionFile::sealed(cipher);
        content(&["isLuks", "--type", "luks2", &lab.disk()]);
        let dump = content(&["luksDump", &lab.disk()]);
        for expected in [
            "0: luks2",
            "1: luks2",
            "0: alknet",
            "42424242-4242-4242-4242-424242424242",
            "offset: 16777216 [bytes]",
            "sector: 4096 [bytes]",
            &format!("cipher: {cipher}"),
        ] {
            assert!(dump.contains(expected), "{expected} is not in {dump}");
        }
        let token = content(&["token", "export", "--token-id", "0", &lab.disk()]);
        assert!(token.contains(VAULT), "{token}");
        assert!(lab.opens("one", 0) && lab.opens("two", 1));
        assert!(!lab.opens("two", 0) && !lab.opens("three", 0));
        let ours = lab.load().unlock(0, ONE.as_bytes()).expect("its phrase");
        assert_eq!(ours.expose().len(), cipher.key_bytes());
        assert_eq!(lab.volume_key("one"), ours.expose());
        assert_eq!(lab.volume_key("two"), ours.expose());
    }
}

#[test]
fn a_repair_finds_nothing_to_repair() {
    let lab = PartitionFile::sealed(SectorCipher::AesXts);
    let before = lab.header();
    content(&["repair", &lab.disk()]);
    assert!(lab.header() == before);
}

#[test]
fn what_cryptsetup_changes_is_understood_and_kept() {
    let lab = PartitionFile::sealed(SectorCipher::AesXts);
    let key = lab.load().unlock(0, ONE.as_bytes()).expect("its phrase");
    let (disk, one, three) = (lab.disk(), lab.key("one"), lab.key("three"));
    // A key slot of ours, one of argon2id, a label, a token.
    let slow = [
        "--pbkdf",
        "argon2id",
        "--pbkdf-force-iterations",
        "4",
        "--pbkdf-memory",
        "64",
    ];
    let quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let add = |slot, how: &[&str]| {
        let add = [
            "luksAddKey",
            "--key-slot",
            slot,
            "--key-file",
            &one,
            &disk,
            &three,
        ];
        content(&[&add[..], how].concat());
    };
    add("4", &quick);
    add("5", &slow);
    content(&[
        "config",
        &disk,
        "--label",
        "salt flats",
        "--subsystem",
        "alknet",
    ]);
    let json = r#"{"type":"user","keyslots":["4"],"hello":[1]}"#;
    fs::write(lab.path("token"), json).expect("writable");
    content(&["token", "import", "--json-file", &lab.key("token"), &disk]);
    let sealed = lab.load();
    assert!(matches!(sealed.repaired(), Ok(None)));
    let slots = sealed.summary().slots;
    assert_eq!(
        slots.iter().map(|slot| slot.number).collect::<Vec<_>>(),
        [0, 1, 4, 5]
    );
    let open = |slot, phrase: &str| sealed.unlock(slot, phrase.as_bytes());
    assert!(open(0, ONE).expect("its phrase") == key);
    assert!(open(4, THREE).expect("its phrase") == key);
    let refused = open(5, THREE).expect_err("argon2id");
    assert!(
        matches!(refused, SealedError::SlotUnsupported { slot: 5, .. }),
        "{refused}"
    );
    // Our changes leave its parts alone.
    let mut sealed = sealed;
    sealed
        .set_phrase(0, TWO.as_bytes(), &key)
        .expect("writable");
    sealed.remove_slot(1).expect("others are left");
    let dump = content(&["luksDump", &disk]);
    for expected in ["5: luks2", "argon2id", "salt flats", "1: user", "0: alknet"] {
        assert!(dump.contains(expected), "{expected} is not in {dump}");
    }
    assert!(lab.opens("two", 0) && lab.opens("three", 4) && lab.opens("three", 5));
    assert!(!lab.opens("one", 0));
    lab.vault_is_whole();
}

#[test]
fn phrases_are_changed_by_either() {
    let lab = PartitionFile::sealed(SectorCipher::AesXts);
    let key = lab.load().unlock(1, TWO.as_bytes()).expect("its phrase");
    let (disk, one, three) = (lab.disk(), lab.key("one"), lab.key("three"));
    let change = [
        "luksChangeKey",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
    ];
    content(
        &[
            &change[..],
            &["--key-slot", "0", "--key-file", &one, &disk, &three],
        ]
        .concat(),
    );
    let mut sealed = lab.load();
    assert!(sealed.unlock(0, ONE.as_bytes()).is_err());
    assert!(sealed.unlock(0, THREE.as_bytes()).expect("its phrase") == key);
    sealed
        .set_phrase(0, ONE.as_bytes(), &key)
        .expect("writable");
    assert!(lab.opens("one", 0) && lab.opens("two", 1) && !lab.opens("three", 0));
    assert_eq!(lab.volume_key("one"), key.expose());
    lab.vault_is_whole();
}

#[test]
fn a_backup_of_the_header_ends_where_the_vault_begins() {
    let lab = PartitionFile::sealed(SectorCipher::AesXts);
    let (disk, backup) = (lab.disk(), lab.key("backup"));
    content(&["luksHeaderBackup", &disk, "--header-backup-file", &backup]);
    let bytes = fs::metadata(&backup).expect("just made").len();
    assert_eq!(bytes, VAULT_A_AT);
    lab.file()
        .write_all_at(&vec![0; 1 << 20], 0)
        .expect("writable");
    assert!(matches!(
        SealedPartition::load(lab.file(), BYTES),
        Err(SealedError::NotSealed)
    ));
    content(&["luksHeaderRestore", &disk, "--header-backup-file", &backup]);
    assert!(lab.load().unlock(1, TWO.as_bytes()).is_ok());
    lab.vault_is_whole();
}

#[test]
fn what_cryptsetup_formats_is_opened_here() {
    let ways: [&[&str]; 4] = [
        &["--sector-size", "4096"],
        &["--sector-size", "512", "--key-size", "256"],
        &[
            "--luks2-metadata-size",
            "64k",
            "--luks2-keyslots-size",
            "8m",
        ],
        &["--label", "other", "--offset", "34816"],
    ];
    for way in ways {
        let lab = PartitionFile::new();
        let (disk, one) = (lab.disk(), lab.key("one"));
        let format = ["luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2"];
        let quick = [
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            &one,
            &disk,
        ];
        content(&[&format[..], &quick, way].concat());
        let mut sealed = lab.load();
        assert_eq!(sealed.summary().vault, None);
        let key = sealed.unlock(0, ONE.as_bytes()).expect("its phrase");
        assert_eq!(lab.volume_key("one"), key.expose(), "{way:?}");
        sealed.segment().expect("one that can be mapped");
        // A second slot, and the loss of a copy.
        sealed
            .set_phrase(1, TWO.as_bytes(), &key)
            .expect("writable");
        assert!(lab.opens("one", 0) && lab.opens("two", 1));
        lab.file().write_all_at(&[0; 512], 0).expect("writable");
        let sealed = lab.load();
        assert!(matches!(sealed.repaired(), Ok(Some(HeaderCopyId::First))));
        assert!(sealed.unlock(1, TWO.as_bytes()).expect("its phrase") == key);
        content(&["luksDump", &disk]);
    }
}

#[test]
fn cryptsetup_opens_by_the_second_copy_alone() {
    let lab = PartitionFile::sealed(SectorCipher::AesXts);
    lab.file().write_all_at(&[0; 16_384], 0).expect("writable");
    assert!(lab.opens("one", 0) && lab.opens("two", 1));
    content(&["repair", &lab.disk()]);
    let sealed = lab.load();
    assert!(matches!(sealed.repaired(), Ok(None)), "it repaired it");
    assert!(sealed.unlock(0, ONE.as_bytes()).is_ok());
}

#[test]
fn a_slot_that_cryptsetup_removes_is_gone() {
    let lab = PartitionFile::sealed(SectorCipher::AesXts);
    let (disk, two) = (lab.disk(), lab.key("two"));
    content(&["luksKillSlot", "--key-file", &two, &disk, "0"]);
    let mut sealed = lab.load();
    let gone = sealed.unlock(0, ONE.as_bytes());
    assert!(matches!(gone, Err(SealedError::NoSlot(0))), "{gone:?}");
    let key = sealed.unlock(1, TWO.as_bytes()).expect("its phrase");
    // The slot is made again, and the token names it again.
    sealed
        .set_phrase(0, ONE.as_bytes(), &key)
        .expect("writable");
    assert!(lab.opens("one", 0));
    let token = content(&["token", "export", "--token-id", "0", &disk]);
    assert!(token.contains(r#"["1","0"]"#), "{token}");
}

#[test]
fn nothing_opens_what_was_erased() {
    let lab = PartitionFile::sealed(SectorCipher::AesXts);
    lab.file().write_all_at(b"data", DATA_AT).expect("writable");
    let erased = SealedPartition::erase(&lab.file(), BYTES).expect("writable");
    assert_eq!(erased.overwritten, DATA_AT);
    assert!(erased.discarded.is_err(), "a file takes no blocks back");
    assert!(lab.header().iter().all(|byte| *byte == 0));
    assert!(!cryptsetup(&["isLuks", &lab.disk()]).status.success());
    assert!(matches!(
        SealedPartition::load(lab.file(), BYTES),
        Err(SealedError::NotSealed)
    ));
}
