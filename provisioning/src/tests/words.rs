//! Words and seed keys on media: found, never stored, erased.

use alknet_vault::Entropy;
use alknet_vault::slots::SeedKey;

use super::*;

const WORDS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                     abandon about";
const OTHERS: &str = "legal winner thank year wave sausage worth useful legal winner thank yellow";
const ID: &str = "00112233-4455-4677-8899-aabbccddeeff";

fn seed_key() -> String {
    let vault = ID.parse().expect("an id");
    let key = SeedKey::generate(vault).expect("random bytes");
    key.to_text().expose().to_owned()
}

fn with_secrets(n: u8, secrets: &str) -> String {
    format!(
        "# mine\n[secrets] # hidden\n{secrets}\n\n# who\n{}",
        document(n)
    )
}

fn entropy(text: &str) -> Entropy {
    Entropy::parse(text).expect("words")
}

fn words(loaded: &LoadedConfig) -> &RecoveryWords {
    loaded.secrets.words.as_ref().expect("words on a medium")
}

fn erased(machine: &DirectoryMachine, loaded: &LoadedConfig) -> Vec<SourceDiagnostic> {
    erase(&machine.paths, &machine.volumes, &words(loaded).locations)
}

fn content(machine: &DirectoryMachine, path: &str) -> String {
    fs::read_to_string(machine.root.path().join(path)).expect("there")
}

#[test]
fn secrets_of_a_document_are_not_stored_with_it() {
    let machine = DirectoryMachine::new();
    let table = format!(
        "words = \"{WORDS}\"\nwords_passphrase = \"TREZOR\"\nseed_key = \"{}\"",
        seed_key().trim()
    );
    machine.fw_cfg(with_secrets(1, &table));
    let loaded = machine.load();
    assert_eq!((name(&loaded), codes(&loaded)), ("node-1", vec![]));
    let found = words(&loaded);
    assert_eq!(found.entropy, entropy(WORDS));
    assert_eq!(
        (found.passphrase.expose(), &found.source),
        ("TREZOR", &ConfigOrigin::FwCfg)
    );
    let vault = ID.parse().expect("an id");
    assert!(loaded.secrets.seed_keys_of(vault).next().is_some());
    let dir = machine.paths.config_dir.clone().expect("given");
    for file in fs::read_dir(dir).expect(FILE) {
        let stored = fs::read_to_string(file.expect(FILE).path()).expect(FILE);
        assert!(
            stored.contains("# mine\n") && stored.contains("# who\n[node]"),
            "{stored}"
        );
        for secret in ["abandon", "TREZOR", "alknet-seed", "secrets", "hidden"] {
            assert!(!stored.contains(secret), "{stored}");
        }
    }
    assert!(!format!("{loaded:?}").contains("abandon"));
    assert_eq!(
        machine.load().source,
        ConfigOrigin::Stored,
        "the same document again"
    );
}

#[test]
fn a_mistake_keeps_its_line_behind_the_secrets() {
    let machine = DirectoryMachine::new();
    machine.fw_cfg(with_secrets(1, &format!("words = \"{WORDS}\"")) + "nmae = 1\n");
    let loaded = machine.load();
    assert!(
        loaded.problems[0]
            .text
            .starts_with("fw_cfg: line 9, node.nmae:"),
        "{:?}",
        loaded.problems
    );
    assert_eq!(machine.stored("config.toml"), None);
}

#[test]
fn secrets_lie_beside_the_document_as_well() {
    let mut machine = DirectoryMachine::new();
    machine.fw_cfg(document(1));
    machine.fw_cfg_entry("words", format!("\u{feff}{}\r\n\0\0", WORDS.to_uppercase()));
    machine.fw_cfg_entry("seed.key", seed_key());
    machine.disk(
        "sda1",
        fat16_volume("CIDATA", None),
        &[("seed.key", &seed_key())],
    );
    machine.disk(
        "sdb1",
        fat16_volume("CIDATA", None),
        &[("vault.words", WORDS)],
    );
    let loaded = machine.load();
    assert_eq!(
        codes(&loaded),
        Vec::<&str>::new(),
        "sticks with nothing but secrets are whole"
    );
    assert_eq!(words(&loaded).entropy, entropy(WORDS));
    assert_eq!(words(&loaded).locations.len(), 2);
    let sources: Vec<_> = loaded
        .secrets
        .seed_keys
        .iter()
        .map(|it| it.source.to_string())
        .collect();
    assert_eq!(sources, ["fw_cfg", "nocloud (sda1)"]);
}

#[test]
fn words_that_are_none_are_not_repeated() {
    let unknown = WORDS.replace("about", "abuot");
    let checksum = WORDS.replace("about", "abandon");
    for (text, word) in [
        (unknown.as_str(), "words: word 12 is not in the list"),
        (&checksum, "checksum"),
        ("abandon about", "2 words"),
        (&"x".repeat(5000), "longer than 4096 bytes"),
        ("a\0b\0c\0", "UTF-16"),
        ("\u{0}", ""),
        (" \n ", ""),
    ] {
        let machine = DirectoryMachine::new();
        machine.fw_cfg(document(1));
        machine.fw_cfg_entry("words", text);
        let loaded = machine.load();
        assert!(loaded.secrets.words.is_none());
        assert_eq!(name(&loaded), "node-1");
        if word.is_empty() {
            assert!(loaded.problems.is_empty(), "erased words are no words");
            continue;
        }
        assert_eq!(codes(&loaded), ["secrets-refused"]);
        let problem = &loaded.problems[0];
        assert!(
            problem.text.starts_with("fw_cfg: ") && problem.text.contains(word),
            "{problem:?}"
        );
        assert!(
            !problem.text.contains("abuot") && !problem.text.contains("about"),
            "{problem:?}"
        );
    }
}

#[test]
fn a_damaged_table_of_secrets_is_not_quoted() {
    for (table, place, word) in [
        ("wrods = \"hush\"", "line 3, secrets", "unknown key"),
        ("words = 5", "line 3, secrets.words", "expected a string"),
        ("seed_key = \"hush\"", "secrets.seed_key", "no seed.key"),
    ] {
        let machine = DirectoryMachine::new();
        machine.fw_cfg(with_secrets(1, table));
        let loaded = machine.load();
        assert_eq!(
            (name(&loaded), codes(&loaded)),
            ("node-1", vec!["secrets-refused"])
        );
        let text = &loaded.problems[0].text;
        assert!(
            text.contains(place) && text.contains(word) && !text.contains("hush"),
            "{text}"
        );
    }
    for table in [
        "words = \"hush",
        "words = hush",
        "words \"hush\"",
        "words = \"\"\"hush",
    ] {
        let machine = DirectoryMachine::new();
        machine.fw_cfg(with_secrets(1, table));
        let loaded = machine.load();
        assert_eq!(codes(&loaded)[0], "config-refused", "{table}");
        assert!(loaded.salvaged);
        for problem in &loaded.problems {
            assert!(!problem.text.contains("hush"), "{problem:?}");
        }
        assert_eq!(machine.stored("config.toml"), None);
    }
    let machine = DirectoryMachine::new();
    machine.fw_cfg(format!("secrets = 5\n{}", document(1)));
    assert_eq!(codes(&machine.load()), ["secrets-refused"]);
}

#[test]
fn other_words_of_a_later_source_are_named_and_left() {
    let mut machine = DirectoryMachine::new();
    machine.fw_cfg_entry("words", WORDS);
    machine.disk(
        "sdb1",
        fat16_volume("CIDATA", None),
        &[("vault.words", OTHERS)],
    );
    let loaded = machine.load();
    assert_eq!(codes(&loaded), ["provisioning-conflict"]);
    assert_eq!(
        loaded.problems[0].text,
        "nocloud (sdb1): vault.words: other words than those of fw_cfg"
    );
    assert_eq!(words(&loaded).locations.len(), 1);
    let others = loaded.secrets.other_words.iter();
    let others: Vec<_> = others.map(|it| it.source.to_string()).collect();
    assert_eq!(others, ["nocloud (sdb1)"]);
}

#[test]
fn words_in_a_file_are_erased_and_the_seed_key_stays() {
    let mut machine = DirectoryMachine::new();
    let key = seed_key();
    let files = [
        ("vault.words", WORDS),
        ("seed.key", &key),
        ("meta-data", ""),
        ("user-data", &document(1)),
    ];
    machine.disk("sda1", fat16_volume("CIDATA", None), &files);
    let loaded = machine.load();
    assert_eq!(erased(&machine, &loaded), []);
    let after = content(&machine, "content-sda1/vault.words");
    assert_eq!((after.len(), after.trim()), (WORDS.len(), ""));
    assert_eq!(content(&machine, "content-sda1/seed.key"), key);
    let again = machine.load();
    assert!(again.secrets.words.is_none() && again.problems.is_empty());
    assert_eq!(again.secrets.seed_keys.len(), 1);
}

#[test]
fn words_in_a_document_are_erased_and_nothing_else_of_it() {
    let mut machine = DirectoryMachine::new();
    let table = format!(
        "words = \"{WORDS}\"\nwords_passphrase = \"TREZOR\"\nseed_key = \"{}\"\n# {WORDS}",
        seed_key().trim()
    );
    let whole = format!("\u{feff}{}", with_secrets(1, &table).replace('\n', "\r\n"));
    machine.disk(
        "vda2",
        fat32_boot_sector("ALKESP"),
        &[("alknet.toml", &whole)],
    );
    let loaded = machine.load();
    assert_eq!(erased(&machine, &loaded), []);
    let after = content(&machine, "content-vda2/alknet.toml");
    assert_eq!(after.len(), whole.len());
    assert_eq!(after.matches("\r\n").count(), whole.matches("\r\n").count());
    for gone in ["abandon", "TREZOR", "words"] {
        assert!(!after.contains(gone), "{after}");
    }
    for there in [
        "# mine",
        "[secrets]",
        "seed_key = \"alknet-seed-1",
        "# who",
        "[node]",
    ] {
        assert!(after.contains(there), "{after}");
    }
    let again = machine.load();
    assert_eq!(
        (again.source, again.problems),
        (ConfigOrigin::Stored, vec![]),
        "the same document"
    );
    assert!(again.secrets.words.is_none());
    assert_eq!(again.secrets.seed_keys.len(), 1);
}

#[test]
fn words_that_cannot_be_erased_are_a_problem_each() {
    let mut machine = DirectoryMachine::new();
    machine.fw_cfg_entry("words", WORDS);
    machine.disk("sr0", iso_volume("cidata"), &[("vault.words", WORDS)]);
    machine.disk(
        "sda1",
        fat16_volume("CIDATA", None),
        &[("vault.words", WORDS)],
    );
    machine.disk(
        "sdb1",
        fat16_volume("CIDATA", None),
        &[("vault.words", WORDS)],
    );
    let loaded = machine.load();
    machine.volumes.remove(&machine.paths.dev.join("sda1"));
    let problems = erased(&machine, &loaded);
    let texts: Vec<_> = problems.iter().map(|it| it.text.as_str()).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    for (text, source) in texts
        .iter()
        .zip(["fw_cfg:", "nocloud (sda1):", "nocloud (sr0):"])
    {
        assert!(
            text.starts_with(source) && text.contains("still there"),
            "{text}"
        );
    }
    assert!(
        problems
            .iter()
            .all(|it| it.code == "secrets-left" && it.is_notice())
    );
    assert_eq!(content(&machine, "content-sdb1/vault.words").trim(), "");
}

/// An editor saved the document in UTF-16 after the machine had read it.
#[test]
fn words_in_a_document_that_became_utf_16_are_reported_as_left() {
    let mut machine = DirectoryMachine::new();
    let whole = with_secrets(1, &format!("words = \"{WORDS}\""));
    machine.disk(
        "vda2",
        fat32_boot_sector("ALKESP"),
        &[("alknet.toml", &whole)],
    );
    let loaded = machine.load();
    let units = whole.encode_utf16().flat_map(u16::to_le_bytes);
    let saved: Vec<u8> = [0xff, 0xfe].into_iter().chain(units).collect();
    let file = machine.root.path().join("content-vda2/alknet.toml");
    fs::write(&file, &saved).expect(FILE);
    let problems = erased(&machine, &loaded);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].text.contains("still there"), "{problems:?}");
    assert!(fs::read(&file).expect(FILE) == saved);
}

#[test]
fn a_link_is_not_followed_to_be_overwritten() {
    let mut machine = DirectoryMachine::new();
    machine.disk(
        "sda1",
        fat16_volume("CIDATA", None),
        &[("vault.words", WORDS)],
    );
    let loaded = machine.load();
    let elsewhere = machine.root.path().join("elsewhere");
    fs::write(&elsewhere, WORDS).expect(FILE);
    let file = machine.root.path().join("content-sda1/vault.words");
    fs::remove_file(&file).expect(FILE);
    std::os::unix::fs::symlink(&elsewhere, &file).expect(FILE);
    assert_eq!(erased(&machine, &loaded).len(), 1);
    assert_eq!(content(&machine, "elsewhere"), WORDS);
}

#[test]
fn a_document_of_secrets_alone_is_not_called_empty() {
    let machine = DirectoryMachine::new();
    machine.store("config.toml", document(1));
    machine.fw_cfg(format!("[secrets]\nwords = \"{WORDS}\"\n"));
    let loaded = machine.load();
    assert_eq!((name(&loaded), codes(&loaded)), ("node-1", vec![]));
    assert!(loaded.secrets.words.is_some());
}

#[test]
fn words_of_the_vault_are_found_on_every_source_whichever_are_used() {
    let mut machine = DirectoryMachine::new();
    machine.disk(
        "sda1",
        fat16_volume("CIDATA", None),
        &[("vault.words", OTHERS)],
    );
    machine.disk(
        "sdb1",
        fat16_volume("CIDATA", None),
        &[("vault.words", WORDS)],
    );
    let loaded = machine.load();
    assert_eq!(words(&loaded).entropy, entropy(OTHERS));
    // The words that are not the vault's are reported, whichever come first.
    for (vault, medium) in [(WORDS, "nocloud (sda1)"), (OTHERS, "nocloud (sdb1)")] {
        let conflicts = loaded.secrets.conflicts_with(&entropy(vault));
        let said: Vec<_> = conflicts.iter().map(|one| one.text.as_str()).collect();
        let text = format!("{medium}: words that are not those of this node's vault");
        assert_eq!(said, [text]);
    }
    let places = loaded.secrets.locations_of(&entropy(WORDS));
    assert_eq!(erase(&machine.paths, &machine.volumes, &places), []);
    assert!(
        content(&machine, "content-sdb1/vault.words")
            .trim()
            .is_empty()
    );
    assert_eq!(content(&machine, "content-sda1/vault.words"), OTHERS);
}

#[test]
fn a_seed_key_is_put_on_a_stick_and_never_over_another() {
    let key = || SeedKey::parse(&seed_key()).expect("a key");
    let put = |machine: &DirectoryMachine, boot| {
        put_seed_key(&machine.paths, &machine.volumes, &key(), boot)
    };
    let mut machine = DirectoryMachine::new();
    assert!(matches!(put(&machine, true), Err(PutSeedKeyError::Nowhere)));
    machine.disk("sda1", fat16_volume("ALKESP", None), &[]);
    assert!(matches!(
        put(&machine, false),
        Err(PutSeedKeyError::OnlyBoot(_))
    ));
    let source = put(&machine, true).expect("written");
    assert_eq!(source.to_string(), "alknet.toml (sda1)");
    let read = content(&machine, "content-sda1/alknet/seed.key");
    assert!(SeedKey::parse(&read).is_ok(), "{read}");
    assert!(matches!(
        put(&machine, true),
        Err(PutSeedKeyError::Taken(_))
    ));
    // A stick goes before the boot partition.
    machine.disk("sdb1", fat16_volume("CIDATA", None), &[]);
    assert_eq!(
        put(&machine, true).expect("written").to_string(),
        "nocloud (sdb1)"
    );
    let vault = ID.parse().expect("an id");
    assert!(machine.load().secrets.seed_keys_of(vault).next().is_some());
    let left = fs::read_dir(machine.root.path().join("content-sdb1")).expect(FILE);
    assert_eq!(left.count(), 1);
}

/// An attacker left another drive in the machine.
#[test]
fn of_two_drives_none_gets_a_seed_key_and_both_are_named() {
    let key = SeedKey::parse(&seed_key()).expect("a key");
    let mut machine = DirectoryMachine::new();
    for name in ["sda1", "sdb1"] {
        machine.disk(name, fat16_volume("CIDATA", None), &[]);
    }
    let refused = put_seed_key(&machine.paths, &machine.volumes, &key, true);
    let refused = refused.expect_err("either could take it").to_string();
    for name in ["sda1", "sdb1"] {
        assert!(refused.contains(name), "{refused}");
        let path = machine.root.path().join(format!("content-{name}/seed.key"));
        assert!(!path.exists(), "{name}");
    }
}

/// A vault's ID is not secret, so an attacker can write a key that names it.
#[test]
fn every_key_that_names_a_vault_is_found() {
    let vault = ID.parse().expect("an id");
    let forged = SeedKey::generate(vault).expect("random numbers").to_text();
    let mut machine = DirectoryMachine::new();
    let table = format!("seed_key = \"{}\"", forged.expose().trim());
    machine.fw_cfg(with_secrets(1, &table));
    let right = seed_key();
    machine.disk(
        "sda1",
        fat16_volume("CIDATA", None),
        &[("seed.key", right.as_str())],
    );
    let loaded = machine.load();
    let found = loaded.secrets.seed_keys_of(vault);
    let found: Vec<_> = found
        .map(|found| (found.source.to_string(), found.key.to_text()))
        .collect();
    let texts: Vec<_> = found.iter().map(|(_, text)| text.expose().trim()).collect();
    assert_eq!(texts, [forged.expose().trim(), right.trim()]);
    assert_eq!(found[1].0, "nocloud (sda1)");
}

/// A document with words and credentials, on a stick.
fn with_credentials(machine: &mut DirectoryMachine, credentials: &str) {
    let table = format!("words = \"{WORDS}\"\n[secrets.credentials]\n{credentials}");
    let files = [("alknet.toml", with_secrets(1, &table))];
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| (*name, text.as_str()))
        .collect();
    machine.disk("vda2", fat32_boot_sector("ALKESP"), &files);
}

#[test]
fn credentials_are_found_never_stored_and_erased_apart_from_the_words() {
    let mut machine = DirectoryMachine::new();
    with_credentials(
        &mut machine,
        "openai = \"sk-hush\"\nmint = \'\'\'\nhush\n\'\'\'",
    );
    let loaded = machine.load();
    assert_eq!((name(&loaded), codes(&loaded)), ("node-1", vec![]));
    let found = &loaded.secrets.credentials;
    let names: Vec<_> = found.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["mint", "openai"]);
    assert_eq!(found[0].secret.expose(), "hush\n");
    assert_eq!(found[1].secret.expose(), "sk-hush");
    assert!(!format!("{loaded:?}").contains("hush"));
    let dir = machine.paths.config_dir.clone().expect("given");
    for file in fs::read_dir(dir).expect(FILE) {
        let stored = fs::read_to_string(file.expect(FILE).path()).expect(FILE);
        assert!(
            !stored.contains("hush") && !stored.contains("credentials"),
            "{stored}"
        );
    }
    // The words are erased first, and what is not stored yet stays.
    assert_eq!(erased(&machine, &loaded), []);
    let again = machine.load();
    assert!(again.secrets.words.is_none() && again.secrets.credentials.len() == 2);
    let places = &again.secrets.credentials[0].locations;
    assert_eq!(erase(&machine.paths, &machine.volumes, places), []);
    let after = content(&machine, "content-vda2/alknet.toml");
    assert!(
        !after.contains("hush") && after.contains("[node]"),
        "{after}"
    );
    let again = machine.load();
    assert_eq!(
        (again.source, again.problems),
        (ConfigOrigin::Stored, vec![])
    );
    assert!(again.secrets.credentials.is_empty());
}

#[test]
fn credentials_that_are_none_are_not_repeated() {
    for (table, word) in [
        ("[secrets.credentials]\nHush = \"a\"", "no name"),
        ("[secrets.credentials]\nhush = 5", "expected a string"),
        ("[secrets.credentials]\nopenai = \"\"", "nothing in it"),
        (
            "[[secrets.credentials]]\nopenai = \"hush\"",
            "a table of its own",
        ),
        ("[secrets]\ncredentials = \"hush\"", "a table of its own"),
    ] {
        let machine = DirectoryMachine::new();
        machine.fw_cfg(format!("{table}\n\n{}", document(1)));
        let loaded = machine.load();
        assert_eq!(
            (name(&loaded), codes(&loaded)),
            ("node-1", vec!["secrets-refused"])
        );
        let text = &loaded.problems[0].text;
        assert!(text.contains(word) && !text.contains("ush"), "{text}");
        assert!(loaded.secrets.credentials.is_empty());
    }
    let machine = DirectoryMachine::new();
    let line = "secrets = { credentials = { openai = \"hush\" } }";
    machine.fw_cfg(format!("{line}\n{}", document(1)));
    assert_eq!(codes(&machine.load()), ["secrets-refused"]);
}

#[test]
fn another_secret_of_a_name_is_a_conflict_and_the_first_one_counts() {
    let mut machine = DirectoryMachine::new();
    let text = |secret: &str| format!("[secrets.credentials]\nopenai = \"{secret}\"\n");
    machine.fw_cfg(format!("{}\n{}", text("one"), document(1)));
    with_credentials(&mut machine, "openai = \"two\"");
    let loaded = machine.load();
    let found = &loaded.secrets.credentials;
    assert_eq!((found.len(), found[0].secret.expose()), (1, "one"));
    let conflict = loaded.problems.iter().find(|it| it.text.contains("openai"));
    let conflict = conflict.expect("a problem");
    assert_eq!(conflict.code, "provisioning-conflict");
    assert!(!conflict.text.contains("two"), "{conflict:?}");
}
