use std::fs;

use alknet_core::Secret;
use alknet_test_support::deadline;
use alknet_vault::{Entropy, KeyVersion, KeyVersions, SecretStr};
use tokio::time::timeout;

use super::*;

/// RFC 8032, section 7.1, test 1.
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

const CONFIG: &str = "
[[credentials]]
name = \"openai\"
kind = \"bearer\"

[[credentials]]
name = \"mint\"
kind = \"signer\"

[[credentials]]
name = \"zone\"
kind = \"signer\"
purpose = \"dns-zone-3-0\"

[[credentials]]
name = \"box\"
kind = \"aead\"

[[credentials]]
name = \"none\"
kind = \"bytes\"

[[operations]]
name = \"js/mint\"
capabilities = [\"mint\", \"openai\", \"none\"]

[[operations]]
name = \"js/zone\"
capabilities = [\"zone\", \"box\"]
";

fn config() -> NodeConfig {
    NodeConfig::parse(CONFIG.as_bytes()).expect("a correct document")
}

fn words(byte: u8) -> Entropy {
    Entropy::from_bytes(&[byte; 16]).expect("16 bytes")
}

fn open_vault(byte: u8) -> Vault {
    let vault = Vault::locked();
    unlock(&vault, byte);
    vault
}

fn unlock(vault: &Vault, byte: u8) {
    let unlocked = vault.unlock(&words(byte), &SecretStr::empty());
    unlocked.expect("it was locked");
}

fn record(vault: &Vault, label: &str, secret: &str) -> EncryptedData {
    let label = label.parse().expect("a label");
    let blob = vault.seal(&label, secret.as_bytes()).expect("sealed");
    serde_json::from_str(&blob.to_json()).expect("the same form")
}

fn records(vault: &Vault) -> BTreeMap<String, EncryptedData> {
    let one = |name: &str, secret| {
        (
            name.to_owned(),
            record(vault, &format!("cred:{name}"), secret),
        )
    };
    BTreeMap::from([one("openai", "sk-hush\n"), one("mint", SEED)])
}

fn capability_of(capabilities: &CapabilityStore, operation: &str, name: &str) -> Capability {
    capabilities.granted()[operation]
        .get(name)
        .expect("given")
        .clone()
}

fn states(capabilities: &CapabilityStore) -> Vec<(String, String)> {
    let summaries = capabilities.summaries();
    let all = summaries.as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    all.map(|one| (text(&one["name"]), text(&one["state"])))
        .collect()
}

fn bearer(one: &Capability) -> Result<String, CapabilityError> {
    let mut seen = String::new();
    one.authorize(&mut |_, _, value| seen = String::from_utf8_lossy(value).into_owned())?;
    Ok(seen)
}

#[test]
fn operations_act_with_what_they_were_given_and_with_nothing_else() {
    let vault = open_vault(1);
    let capabilities = CapabilityStore::new(&config(), records(&vault), Some(&vault));
    let mint = capability_of(&capabilities, "js/mint", "mint");
    assert_eq!(
        data_encoding::HEXLOWER.encode(&mint.public().expect("a key")),
        PUBLIC
    );
    let signature = mint.sign(b"x").expect("signed");
    let key = alknet_core::PeerKey::Ed25519(mint.public().expect("a key"));
    assert!(alknet_tls::is_signed(&key, b"x", &signature));
    let openai = capability_of(&capabilities, "js/mint", "openai");
    assert_eq!(bearer(&openai).expect("filled"), "Bearer sk-hush");
    for (operation, name) in [
        ("js/mint", "zone"),
        ("js/zone", "mint"),
        ("js/zone", "other"),
    ] {
        let refused = capabilities.granted()[operation].get(name).err();
        assert_eq!(refused, Some(CapabilityError::NotGranted));
    }
    let zone = capability_of(&capabilities, "js/zone", "zone");
    let derived: KeyPurpose = "dns-zone-3-0".parse().expect("a purpose");
    let derived = vault.signer(derived).expect("open").public();
    assert_eq!(zone.public(), Ok(derived));
    // One problem names the credential without a secret. The other credentials work.
    let problems = capabilities.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].text.contains("credential none"), "{problems:?}");
    let none = capability_of(&capabilities, "js/mint", "none");
    assert_eq!(none.with_bytes(|_| ()), Err(CapabilityError::Missing));
    for shown in [
        capabilities.summaries().to_string(),
        format!("{capabilities:?}"),
        format!("{problems:?}"),
    ] {
        assert!(!shown.contains("hush") && !shown.contains(SEED), "{shown}");
    }
    let summaries = capabilities.summaries();
    assert_eq!(summaries[0]["origin"], "node");
    assert_eq!(summaries[1]["operations"], json!(["js/mint"]));
    assert_eq!(summaries[2]["origin"], "vault");
}

#[test]
fn what_an_operation_seals_opens_for_it_alone_and_where_it_was_sealed() {
    let vault = open_vault(1);
    let capabilities = CapabilityStore::new(&config(), BTreeMap::new(), Some(&vault));
    let own = capability_of(&capabilities, "js/zone", "box");
    let sealed = own.seal("a/1", b"mine").expect("sealed");
    let opened = own
        .open("a/1", &sealed)
        .map(|it: Secret| it.expose().to_vec());
    assert_eq!(opened.expect("opened"), b"mine");
    let mut changed = sealed.clone();
    changed[60] ^= 1;
    for (name, bytes) in [("a/2", &sealed), ("a/1", &changed), ("a/1", &b"x".to_vec())] {
        let refused = own.open(name, bytes).err();
        assert_eq!(refused, Some(CapabilityError::NotOpened));
    }
    // The vault itself refuses as well: the label says which credential the data belongs to.
    let blob = alknet_vault::SealedBlob::parse(&sealed).expect("a record");
    let other = "op:other/a/1".parse().expect("a label");
    assert!(vault.open(&other, &blob).is_err());
    for name in ["", "a b", &"x".repeat(129)] {
        assert_eq!(own.seal(name, b"").err(), Some(CapabilityError::Label));
    }
    let long = vec![0; (1 << 20) + 1];
    assert!(matches!(
        own.seal("a", &long),
        Err(CapabilityError::TooLarge { .. })
    ));
}

#[test]
fn a_lock_empties_everything_and_the_next_opening_brings_it_back() {
    let vault = open_vault(1);
    let capabilities = CapabilityStore::new(&config(), records(&vault), Some(&vault));
    let mint = capability_of(&capabilities, "js/mint", "mint");
    let zone = capability_of(&capabilities, "js/zone", "zone");
    vault.lock();
    // The store's task has not noticed the lock yet.
    for one in [&mint, &zone] {
        assert_eq!(one.sign(b"x"), Err(CapabilityError::Locked));
    }
    capabilities.refresh();
    let locked = states(&capabilities);
    assert!(
        locked.iter().all(|(_, state)| state == "vault_locked"),
        "{locked:?}"
    );
    unlock(&vault, 1);
    assert_eq!(
        mint.sign(b"x"),
        Err(CapabilityError::Locked),
        "until it is noticed"
    );
    capabilities.refresh();
    assert!(mint.sign(b"x").is_ok() && zone.sign(b"x").is_ok());
    // The vault is locked and opened again between two refreshes.
    vault.lock_hard();
    unlock(&vault, 1);
    capabilities.refresh();
    assert!(mint.sign(b"x").is_ok() && zone.sign(b"x").is_ok());
}

#[test]
fn a_record_that_does_not_open_is_one_problem_and_the_others_work() {
    let vault = open_vault(1);
    let mut wrong = record(&vault, "cred:openai", "sk-hush");
    wrong.data[3] ^= 1;
    let version = |number| KeyVersion::new(number).expect("a version");
    let cases = [
        (wrong, "does not open"),
        (
            record(&open_vault(2), "cred:openai", "sk-hush"),
            "other words",
        ),
        (record(&vault, "cred:mint", "sk-hush"), "under another name"),
        (record(&vault, "cred:openai", "two\nlines"), "not one line"),
    ];
    let look = |record: EncryptedData, word: &str| {
        let mut all = records(&vault);
        all.insert("openai".to_owned(), record);
        all.insert("none".to_owned(), self::record(&vault, "cred:none", "raw"));
        let capabilities = CapabilityStore::new(&config(), all, Some(&vault));
        let problems = capabilities.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        let text = &problems[0].text;
        assert!(
            text.starts_with("credential openai: ") && text.contains(word),
            "{text}"
        );
        assert!(!text.contains("hush"), "{text}");
        let openai = capability_of(&capabilities, "js/mint", "openai");
        assert_eq!(bearer(&openai), Err(CapabilityError::Unusable));
        let mint = capability_of(&capabilities, "js/mint", "mint");
        assert!(mint.sign(b"x").is_ok());
    };
    for (record, word) in cases {
        look(record, word);
    }
    // The record has an older key version than the configuration allows.
    let old = record(&vault, "cred:openai", "sk-hush");
    let only = KeyVersions {
        current: version(4),
        oldest: version(4),
    };
    vault.use_versions(only).expect("in order");
    let mut all = records(&vault);
    all.insert("none".to_owned(), record(&vault, "cred:none", "raw"));
    all.insert("openai".to_owned(), old);
    let capabilities = CapabilityStore::new(&config(), all, Some(&vault));
    let problems = capabilities.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].text.contains("vault.min_version"),
        "{problems:?}"
    );
}

#[test]
fn a_record_of_the_configuration_counts_before_one_of_the_node() {
    let vault = open_vault(1);
    let mut config = config();
    config.credentials[0].record = Some(record(&vault, "cred:openai", "sk-newer"));
    let capabilities = CapabilityStore::new(&config, records(&vault), Some(&vault));
    let openai = capability_of(&capabilities, "js/mint", "openai");
    assert_eq!(bearer(&openai).expect("filled"), "Bearer sk-newer");
    assert_eq!(capabilities.summaries()[0]["origin"], "configuration");
}

#[test]
fn a_node_without_a_vault_says_so_and_has_nothing_behind_them() {
    let capabilities = CapabilityStore::new(&config(), BTreeMap::new(), None);
    let mint = capability_of(&capabilities, "js/mint", "mint");
    assert_eq!(mint.sign(b"x"), Err(CapabilityError::NoVault));
    assert_eq!(capabilities.problems().len(), 1);
    capabilities.refresh();
    assert_eq!(capabilities.problems().len(), 1);
    let none = CapabilityStore::new(&NodeConfig::default(), BTreeMap::new(), None);
    assert!(none.problems().is_empty() && none.granted().is_empty());
}

/// A state directory with these credentials.
fn local(values: &[(&str, &str)]) -> (tempfile::TempDir, CredentialFolder) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let folder = CredentialFolder::new(dir.path());
    for (name, value) in values {
        folder.set(name, value.as_bytes(), 7).expect("room");
    }
    (dir, folder)
}

fn codes(capabilities: &CapabilityStore) -> Vec<(String, String)> {
    let problems = capabilities.problems().into_iter();
    problems.map(|one| (one.code, one.text)).collect()
}

#[test]
fn without_a_vault_secrets_are_those_of_the_folder() {
    let (dir, folder) = local(&[("openai", "sk-hush"), ("mint", SEED)]);
    let capabilities = CapabilityStore::of_folder(&config(), folder);
    let openai = capability_of(&capabilities, "js/mint", "openai");
    assert_eq!(bearer(&openai).expect("filled"), "Bearer sk-hush");
    assert!(
        capability_of(&capabilities, "js/mint", "mint")
            .sign(b"x")
            .is_ok()
    );
    let states = states(&capabilities);
    let state = |name: &str| {
        let found = states.iter().find(|(one, _)| one == name);
        found.map(|(_, state)| state.as_str())
    };
    assert_eq!(state("openai"), Some("ready"));
    assert_eq!(state("none"), Some("credential_missing"));
    // Keys that are derived from the recovery words do not exist without them.
    assert_eq!(state("zone"), Some("no_vault"));
    assert_eq!(state("box"), Some("no_vault"));
    assert_eq!(capabilities.summaries()[0]["origin"], "node");
    assert_eq!(capabilities.summaries()[4]["origin"], Value::Null);
    let problems = capabilities.problems();
    let missing = problems.iter().find(|it| it.code == "credential-missing");
    let missing = missing.expect("a problem");
    assert_eq!(
        missing.text,
        "credential none: it is not set; operation js/mint uses it"
    );
    let command = format!(
        "'alknet credential set none --state {}'",
        dir.path().display()
    );
    assert!(missing.hint.contains(&command), "{missing:?}");
    assert_eq!(problems.len(), 3, "{problems:?}");
    for shown in [
        capabilities.summaries().to_string(),
        format!("{capabilities:?}"),
        format!("{problems:?}"),
    ] {
        assert!(!shown.contains("hush") && !shown.contains(SEED), "{shown}");
    }
}

#[test]
fn a_changed_folder_counts_when_it_is_read_again() {
    let (_dir, folder) = local(&[("openai", "sk-hush")]);
    let capabilities = CapabilityStore::of_folder(&config(), folder.clone());
    let openai = capability_of(&capabilities, "js/mint", "openai");
    folder.set("openai", b"sk-newer", 8).expect("room");
    capabilities.refresh();
    assert_eq!(bearer(&openai).expect("filled"), "Bearer sk-newer");
    // A value of another form is one problem, which does not show the value.
    folder.set("openai", b"two\nhush", 9).expect("room");
    capabilities.refresh();
    assert_eq!(bearer(&openai), Err(CapabilityError::Unusable));
    let unusable = codes(&capabilities);
    let unusable = unusable
        .iter()
        .find(|(code, _)| code == "credential-unusable");
    let (_, text) = unusable.expect("a problem");
    assert!(
        text.starts_with("credential openai: ") && !text.contains("hush"),
        "{text}"
    );
    folder.remove("openai").expect("it is there");
    capabilities.refresh();
    assert_eq!(bearer(&openai), Err(CapabilityError::Missing));
    // A file that cannot be read is one problem of the node, and not a problem of each credential.
    fs::write(folder.file(), "{").expect("ours");
    capabilities.refresh();
    assert_eq!(bearer(&openai), Err(CapabilityError::Unusable));
    let said = codes(&capabilities);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].1.contains("sealed.json is damaged"), "{said:?}");
    fs::remove_file(folder.file()).expect("ours");
    folder.set("openai", b"sk-again", 10).expect("room");
    capabilities.refresh();
    assert_eq!(bearer(&openai).expect("filled"), "Bearer sk-again");
}

/// Without a watch of the folder: what was set counts for the call that follows.
#[test]
fn a_use_after_a_change_has_the_new_value() {
    let (_dir, folder) = local(&[("openai", "sk-hush")]);
    let capabilities = CapabilityStore::of_folder(&config(), folder.clone());
    let openai = capability_of(&capabilities, "js/mint", "openai");
    folder.set("openai", b"sk-newer", 8).expect("room");
    assert_eq!(bearer(&openai).expect("filled"), "Bearer sk-newer");
    folder.remove("openai").expect("it is there");
    assert_eq!(bearer(&openai), Err(CapabilityError::Missing));
    folder.set("openai", b"sk-again", 9).expect("room");
    assert_eq!(bearer(&openai).expect("filled"), "Bearer sk-again");
    // The same for administrators who ask what is there.
    folder.remove("openai").expect("it is there");
    let is_missing = |(code, text): &(String, String)| {
        code == "credential-missing" && text.starts_with("credential openai: ")
    };
    assert!(codes(&capabilities).iter().any(is_missing));
    folder.set("openai", b"sk-hush", 10).expect("room");
    let openai = ("openai".to_owned(), "ready".to_owned());
    assert!(states(&capabilities).contains(&openai));
}

#[tokio::test]
async fn a_credential_that_is_set_while_the_node_runs_is_noticed() {
    let (_dir, folder) = local(&[]);
    let capabilities = CapabilityStore::of_folder(&config(), folder.clone());
    let openai = capability_of(&capabilities, "js/mint", "openai");
    assert_eq!(bearer(&openai), Err(CapabilityError::Missing));
    let mut reads = capabilities.watch();
    capabilities.follow();
    folder.set("openai", b"sk-hush", 7).expect("room");
    // A use would read it by itself.
    let noticed = async {
        while !capabilities.seen().local.contains("openai") {
            reads.changed().await.expect("the store is there");
        }
    };
    let noticed = timeout(deadline(Duration::from_secs(60)), noticed).await;
    noticed.expect("it is noticed");
    assert_eq!(bearer(&openai).expect("filled"), "Bearer sk-hush");
}
