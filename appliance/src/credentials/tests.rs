use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use super::*;

/// A value that no file may have unencrypted.
const HUSH: &[u8] = b"sk-hush-4b1d-for-the-server-alone";

struct CredentialTestFolder {
    dir: tempfile::TempDir,
    folder: CredentialFolder,
}

impl CredentialTestFolder {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let folder = CredentialFolder::new(dir.path());
        Self { dir, folder }
    }

    fn with(names: &[&str]) -> Self {
        let place = Self::new();
        for name in names {
            let value = format!("value of {name}");
            let replaced = place.folder.set(name, value.as_bytes(), 7);
            assert_eq!(replaced, Ok(false), "{name}");
        }
        place
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join(KEY_FILE)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.folder.file()).expect("it was written")
    }

    fn write(&self, text: &str) {
        fs::write(self.folder.file(), text).expect("the folder is ours");
    }

    fn opened(&self, name: &str) -> Option<Result<Vec<u8>, String>> {
        let found = self.folder.read().expect("readable");
        let opened = found.open(name)?;
        Some(opened.map(|value| value.expose().to_vec()))
    }

    /// The error that a reader returns.
    fn error(&self) -> String {
        self.folder.read().err().expect("it is refused").message
    }
}

#[test]
fn a_value_is_set_replaced_and_removed() {
    let place = CredentialTestFolder::new();
    assert!(place.opened("forge").is_none());
    assert_eq!(place.folder.remove("forge"), Ok(false));
    assert_eq!(place.folder.set("forge", b"one", 7), Ok(false));
    assert_eq!(place.folder.set("mail", b"\0\xff\n", 8), Ok(false));
    assert_eq!(place.folder.set("forge", b"two", 9), Ok(true));
    let found = place.folder.read().expect("readable");
    let entries: Vec<_> = found.entries().collect();
    assert_eq!(entries, [("forge", 9), ("mail", 8)]);
    assert_eq!(place.opened("forge"), Some(Ok(b"two".to_vec())));
    assert_eq!(place.opened("mail"), Some(Ok(b"\0\xff\n".to_vec())));
    assert_eq!(place.folder.remove("forge"), Ok(true));
    assert_eq!(place.folder.remove("mail"), Ok(true));
    assert!(place.opened("forge").is_none());
    // The key stays for the next credential.
    assert_eq!(place.folder.set("forge", b"three", 10), Ok(false));
    assert_eq!(place.opened("forge"), Some(Ok(b"three".to_vec())));
}

#[test]
fn files_are_their_owner_s_and_have_no_value_in_the_clear() {
    let place = CredentialTestFolder::new();
    place.folder.set("forge", HUSH, 7).expect("room");
    for path in [place.folder.file(), place.key()] {
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        let bytes = fs::read(&path).expect("ours");
        assert!(!bytes.windows(HUSH.len()).any(|part| part == HUSH));
        let folder = path.parent().expect("a folder");
        let mode = fs::metadata(folder).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
    }
    let entries = fs::read_dir(place.dir.path().join(FOLDER)).expect("a folder");
    assert_eq!(entries.count(), 1, "nothing is left beside it");
    for path in [place.folder.file(), place.key()] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
        let error = place.error();
        let name = path.display().to_string();
        assert!(error.contains(&name) && error.contains("644"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
    }
    assert!(place.folder.read().is_ok());
}

/// The attacker may write the file, and does not have the key.
#[test]
fn an_entry_opens_under_its_own_name_and_time_only() {
    let place = CredentialTestFolder::with(&["cheap", "costly"]);
    let text = place.text();
    let swapped = text
        .replace("\"cheap\"", "\"other\"")
        .replace("\"costly\"", "\"cheap\"")
        .replace("\"other\"", "\"costly\"");
    assert_ne!(swapped, text);
    place.write(&swapped);
    for name in ["cheap", "costly"] {
        let error = place.opened(name).expect("an entry").expect_err("swapped");
        assert!(error.contains("does not open"), "{error}");
        assert!(!error.contains("value of"), "{error}");
    }
    place.write(&text.replace("\"set_s\":7", "\"set_s\":8"));
    assert!(place.opened("cheap").expect("an entry").is_err());
    place.write(&text);
    assert_eq!(place.opened("cheap"), Some(Ok(b"value of cheap".to_vec())));
}

#[test]
fn a_file_that_was_cut_is_named_and_never_overwritten() {
    let place = CredentialTestFolder::with(&["forge"]);
    let text = place.text();
    let name = place.folder.file().display().to_string();
    for len in [0, 1, text.len() / 2, text.len() - 2] {
        let cut = &text[..len];
        place.write(cut);
        let error = place.error();
        assert!(error.starts_with(&format!("{name} is damaged")), "{error}");
        let refused = place.folder.set("mail", b"x", 8).expect_err("damaged");
        assert_eq!(refused.message, error);
        assert_eq!(place.folder.remove("forge"), Err(refused));
        assert_eq!(place.text(), cut);
    }
    place.write(&text.replace("\"alkcred\":1", "\"alkcred\":9"));
    assert!(place.error().contains("of a newer alknet"));
    // The test changes one digit of the sealed bytes.
    let at = text.find("\"data\":\"").expect("sealed bytes") + 8;
    let other = if text[at..].starts_with('A') {
        "B"
    } else {
        "A"
    };
    place.write(&[&text[..at], other, &text[at + 1..]].concat());
    assert!(place.opened("forge").expect("an entry").is_err());
}

#[test]
fn a_file_of_another_folder_and_a_key_that_is_gone_are_named() {
    let (place, other) = (
        CredentialTestFolder::with(&["forge"]),
        CredentialTestFolder::with(&["forge"]),
    );
    let text = place.text();
    place.write(&other.text());
    let error = place.error();
    assert!(error.contains("is sealed under another key"), "{error}");
    assert!(place.folder.set("mail", b"x", 8).is_err());
    place.write(&text);
    fs::remove_file(place.key()).expect("ours");
    let error = place.error();
    assert!(error.contains("credentials.key is missing"), "{error}");
    assert!(place.folder.set("mail", b"x", 8).is_err());
    assert!(!place.key().exists(), "no other key takes its place");
    fs::write(place.key(), [1; 31]).expect("ours");
    fs::set_permissions(place.key(), fs::Permissions::from_mode(0o600)).expect("ours");
    assert!(place.error().contains("credentials.key"));
}

#[test]
fn limits_are_held_and_named_and_no_word_is_repeated() {
    let place = CredentialTestFolder::new();
    for name in ["", "Hush", "hush hush", "1hush", &"h".repeat(33)] {
        let error = place.folder.set(name, b"x", 7).expect_err(name).message;
        assert!(error.contains("1 to 32 of a-z"), "{error}");
        assert!(name.is_empty() || !error.contains(name), "{error}");
    }
    let empty = place.folder.set("forge", b"", 7).expect_err("empty");
    assert!(empty.message.contains("the value is empty"), "{empty}");
    let reads = "'alknet credential set NAME <FILE'";
    assert!(empty.message.contains(reads), "{empty}");
    let long = vec![b'x'; VALUE_BYTES_MAX];
    assert_eq!(place.folder.set("forge", &long, 7), Ok(false));
    let longer = vec![b'x'; VALUE_BYTES_MAX + 1];
    let error = place.folder.set("forge", &longer, 7).expect_err("long");
    assert!(error.message.contains("longer than 16384 bytes"), "{error}");
    assert_eq!(place.opened("forge"), Some(Ok(long)));
}

#[test]
fn a_folder_has_so_many_and_no_more() {
    let place = CredentialTestFolder::with(&["a"]);
    let mut found = place.folder.read().expect("readable");
    for n in 1..ENTRIES_MAX {
        let entry = SealedEntry {
            set_s: 7,
            record: found.sealed.entries["a"].record.clone(),
        };
        found.sealed.entries.insert(format!("a{n}"), entry);
    }
    file::write(&found.path, &found.sealed).expect("room");
    let error = place.folder.set("b", b"x", 8).expect_err("it is full");
    assert!(error.message.contains("has 256 credentials"), "{error}");
    assert_eq!(place.folder.set("a", b"x", 8), Ok(true));
}

#[test]
fn writers_at_the_same_time_all_succeed() {
    let place = CredentialTestFolder::new();
    let names: Vec<_> = (0..8).map(|n| format!("name-{n}")).collect();
    thread::scope(|scope| {
        for name in &names {
            let folder = &place.folder;
            scope.spawn(move || folder.set(name, name.as_bytes(), 7).expect("its turn"));
        }
    });
    for name in &names {
        assert_eq!(place.opened(name), Some(Ok(name.as_bytes().to_vec())));
    }
}

#[test]
fn what_uses_a_credential_is_named() {
    let text = "[[credentials]]\nname = \"forge\"\nkind = \"bearer\"\n\
                [[operations]]\nname = \"js/mint\"\ncapabilities = [\"forge\"]\n\
                [[http.import]]\nkind = \"mcp\"\nnamespace = \"tools\"\n\
                url = \"https://tools.example/mcp\"\ncredential = \"forge\"\n";
    let config = NodeConfig::parse(text.as_bytes()).expect("a correct document");
    assert_eq!(
        uses(&config, "forge"),
        ["import tools", "operation js/mint"]
    );
    assert!(uses(&config, "mail").is_empty());
}
