//! Secrets of others, such as API keys. The vault seals them when a medium brings them, PID 1
//! stores them below the state directory, and hands them to the node as they were sealed.
//!
//! PID 1 alone writes the folder, which is root's: an attacker who took over a node cannot replace
//! a record by another, nor by a link. Rotation also happens here, before there is a node: all
//! records or none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use alknet_core::EncryptedData;
use alknet_core::config::{NodeConfig, VaultSection};
use alknet_provisioning::{KernelMounter, MediaCredential, MediaLocation, SourcePaths, erase};
use alknet_vault::audit::AuditEvent;
use alknet_vault::credentials::{CredentialsError, VaultCredentials};
use alknet_vault::{BlobLabel, KeyVersion, KeyVersions, SealedBlob, Vault};

use super::VaultHandle;
use crate::control::MachineDiagnostic;
use crate::media;

/// Folder of the sealed records below the state directory.
const FOLDER: &str = "credentials";
/// The kind in their labels.
const KIND: &str = "cred";
/// Bytes of all records, as JSON, that PID 1 sends to the node: half of a message line.
const SENT_BYTES_MAX: usize = 512 << 10;

/// The credentials for the node.
#[derive(Debug, Default)]
pub(crate) struct NodeCredentials {
    /// The records by their names in the configuration.
    pub(crate) records: BTreeMap<String, EncryptedData>,
    pub(crate) problems: Vec<MachineDiagnostic>,
    /// Whether every credential of the media is stored.
    pub(crate) settled: bool,
}

impl NodeCredentials {
    fn not_taken(&mut self, one: &MediaCredential, why: &str) {
        let text = format!("{}: secrets.credentials.{}: {why}", one.source, one.name);
        let hint = "take it away; 'alknet vault record add --print' makes a record of it for 'alknet config apply'";
        self.problem("credential-ignored", text, hint);
    }

    fn problem(&mut self, code: &str, text: String, hint: &str) {
        tracing::warn!("{code}: {text}");
        self.problems.push(MachineDiagnostic {
            code: code.to_owned(),
            text,
            hint: hint.to_owned(),
        });
    }
}

/// Seals what media brought for the credentials of `config`, if it `may_take` any, erases it there,
/// and reads what is stored. A medium never replaces a stored record. `state_dir` is the data
/// partition, if there is one.
pub(crate) fn keep_credentials(
    vault: &VaultHandle,
    state_dir: Option<&Path>,
    config: &NodeConfig,
    (found, may_take): (&[MediaCredential], bool),
    paths: &SourcePaths,
) -> NodeCredentials {
    let mut kept = NodeCredentials::default();
    // Each attempt to open the vault comes here again.
    if vault.is_locked() {
        return kept;
    }
    let wanted: BTreeSet<&str> = config
        .credentials
        .iter()
        .filter(|one| one.needs_secret() && one.record.is_none())
        .map(|one| one.name.as_str())
        .collect();
    let (found, unused): (Vec<_>, Vec<_>) = found
        .iter()
        .partition(|one| wanted.contains(one.name.as_str()));
    for one in &unused {
        let text = format!(
            "{}: secrets.credentials.{}: the configuration has no use for it",
            one.source, one.name
        );
        let hint = "add [[credentials]] of this name and without a record, or take it away";
        kept.problem("credential-unused", text, hint);
    }
    let folder = state_dir.map(|dir| dir.join(FOLDER));
    let Some(folder) = folder.filter(|_| vault.is_open()) else {
        if let Some(one) = found.first() {
            let text = format!(
                "{}: there is no vault on a data partition, so no credential is kept",
                one.source
            );
            let hint = "attach a data disk, or leave out vault.init = \"off\"";
            kept.problem("credentials-not-kept", text, hint);
        }
        return kept;
    };
    // A folder that cannot be read is not a missing one: it has the versions of the keys.
    if wanted.is_empty() && matches!(folder.try_exists(), Ok(false)) {
        use_versions(&vault.vault(), &config.vault, None);
        kept.settled = true;
        return kept;
    }
    let request = CredentialRequest {
        wanted: &wanted,
        found: &found,
        may_take,
    };
    match with_store(vault, &folder, config, &request, &mut kept) {
        Ok(left) => {
            kept.settled = true;
            let stay: Vec<_> = unused.into_iter().chain(left).collect();
            erase_stored(&found, &stay, &mut kept, paths);
        }
        Err(error) => kept.problem(
            "credentials-not-kept",
            error.to_string(),
            "check the data disk",
        ),
    }
    kept
}

/// The credentials that the configuration wants, and those that media have.
struct CredentialRequest<'a> {
    wanted: &'a BTreeSet<&'a str>,
    found: &'a [&'a MediaCredential],
    may_take: bool,
}

/// Returns those that are not stored. `kept` has a problem for each.
fn with_store<'a>(
    vault_handle: &VaultHandle,
    folder: &Path,
    config: &NodeConfig,
    request: &CredentialRequest<'a>,
    kept: &mut NodeCredentials,
) -> Result<Vec<&'a MediaCredential>, CredentialsError> {
    let store = VaultCredentials::open(folder)?;
    let vault = vault_handle.vault();
    rotate(vault_handle, &store, &vault, &config.vault, kept)?;
    let mut left = Vec::new();
    for &one in request.found {
        let Some(label) = label(&one.name) else {
            continue;
        };
        let secret = one.secret.expose().as_bytes();
        match store.get(&label) {
            // PID 1 stored it before, and the power failed before it was erased, or it is there
            // again.
            Ok(blob) if opens_to(&vault, &label, &blob, secret) => continue,
            Ok(_) => {
                kept.not_taken(one, "another one is kept, which no medium replaces");
                left.push(one);
                continue;
            }
            Err(CredentialsError::NotFound(_)) if request.may_take => {}
            Err(CredentialsError::NotFound(_)) => {
                kept.not_taken(
                    one,
                    "not taken, since the node is sealed and was provisioned",
                );
                left.push(one);
                continue;
            }
            // The loop below reports it.
            Err(_) => continue,
        }
        let sealed = vault.seal(&label, secret);
        let sealed = sealed.map_err(|source| CredentialsError::Record {
            label: label.clone(),
            source,
        })?;
        store.put(&label, &sealed)?;
        vault_handle.events().add(AuditEvent::Sealed { label });
        tracing::info!("the credential {} of {} is kept", one.name, one.source);
    }
    let mut bytes = 0;
    for name in request.wanted {
        let Some(label) = label(name) else { continue };
        let text = match store.get(&label) {
            Ok(blob) => blob.to_json(),
            // The node reports this, with what it knows of it.
            Err(CredentialsError::NotFound(_)) => continue,
            Err(error) => {
                refused(kept, name, &error);
                continue;
            }
        };
        bytes += text.len();
        match serde_json::from_str(&text) {
            Ok(record) if bytes <= SENT_BYTES_MAX => {
                kept.records.insert((*name).to_owned(), record);
            }
            _ => {
                let text = format!(
                    "the credential {name} is left out: all of them have more than \
                     {SENT_BYTES_MAX} bytes"
                );
                kept.problem(
                    "credential-unusable",
                    text,
                    "put its record into the configuration",
                );
            }
        }
    }
    Ok(left)
}

/// Whether the record holds that secret.
fn opens_to(vault: &Vault, label: &BlobLabel, blob: &SealedBlob, secret: &[u8]) -> bool {
    let opened = vault.open(label, blob);
    // Another place reports a record that does not open. It may or may not hold this secret.
    opened.is_ok_and(|opened| opened.expose() == secret)
}

fn refused(kept: &mut NodeCredentials, name: &str, error: &CredentialsError) {
    let text = format!("the credential {name} cannot be read: {error}");
    let hint = "seal it again ('alknet vault record add --print') and put its record into the configuration";
    kept.problem("credential-unusable", text, hint);
}

/// Seals every record again if the configuration wants a newer key version. Records with versions
/// that it forbids do not open afterwards.
fn rotate(
    vault_handle: &VaultHandle,
    store: &VaultCredentials,
    vault: &Vault,
    config: &VaultSection,
    kept: &mut NodeCredentials,
) -> Result<(), CredentialsError> {
    let to = version(config.key_version);
    let before = store.versions()?.current;
    if to > before {
        // During the rotation every stored version may be read. The vault refuses only an oldest version after the
        // current one.
        let _ = vault.use_versions(KeyVersions {
            current: to,
            oldest: KeyVersion::FIRST,
        });
        let rotated = store.list().and_then(|entries| {
            store.rotate_to(vault, to)?;
            Ok(entries)
        });
        match rotated {
            Ok(entries) => {
                tracing::info!("{} credentials have key version {to}", entries.len());
                for entry in entries {
                    let label = entry.label;
                    vault_handle.events().add(AuditEvent::Rotated { label, to });
                }
            }
            Err(error) => {
                let text = format!("the credentials keep their key version: {error}");
                let hint = "the next start tries again; seal again the one that does not open";
                kept.problem("credentials-not-rotated", text, hint);
            }
        }
    }
    use_versions(vault, config, Some(store.versions()?.current));
    Ok(())
}

/// Uses the versions of the configuration, but never an older key than the records already have.
fn use_versions(vault: &Vault, config: &VaultSection, kept: Option<KeyVersion>) {
    let current = version(config.key_version);
    let versions = KeyVersions {
        current: kept.map_or(current, |kept| kept.max(current)),
        oldest: version(config.min_version),
    };
    // This cannot fail, because the configuration was validated.
    let _ = vault.use_versions(versions);
}

/// The version in the configuration, which was validated as it was read.
fn version(number: u32) -> KeyVersion {
    KeyVersion::new(number).unwrap_or(KeyVersion::FIRST)
}

fn label(name: &str) -> Option<BlobLabel> {
    format!("{KIND}:{name}").parse().ok()
}

/// Erases locations as a whole: one that has something that is not stored stays.
fn erase_stored(
    found: &[&MediaCredential],
    unused: &[&MediaCredential],
    kept: &mut NodeCredentials,
    paths: &SourcePaths,
) {
    let is_kept = |one: &&&MediaCredential| kept.records.contains_key(&one.name);
    let stay = found.iter().filter(|one| !is_kept(one)).chain(unused);
    let stay: Vec<&MediaLocation> = stay.flat_map(|one| &one.locations).collect();
    let mut gone: Vec<MediaLocation> = Vec::new();
    for place in found.iter().filter(is_kept).flat_map(|one| &one.locations) {
        if !stay.contains(&place) && !gone.contains(place) {
            gone.push(place.clone());
        }
    }
    let media = media::alone();
    let left = erase(paths, &KernelMounter, &gone);
    drop(media);
    for problem in left {
        kept.problem(problem.code, problem.text, &problem.hint);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use alknet_vault::{Entropy, SecretStr};

    use super::*;
    use crate::settings::tests::paths_below;

    const CONFIG: &str = "[[credentials]]\nname = \"openai\"\nkind = \"bearer\"\n\
                          [[credentials]]\nname = \"mail\"\nkind = \"basic\"\nuser = \"ada\"\n";

    fn vault_handle() -> VaultHandle {
        let vault = VaultHandle::new().expect("memory");
        let words = Entropy::from_bytes(&[1; 16]).expect("16 bytes");
        let unlocked = vault.vault().unlock(&words, &SecretStr::empty());
        unlocked.expect("it was locked");
        vault
    }

    /// A machine whose fw_cfg has that document.
    fn machine(document: &str) -> (tempfile::TempDir, SourcePaths) {
        let root = tempfile::tempdir().expect("a folder");
        let at = |name: &str| root.path().join(name);
        let paths = paths_below(root.path());
        fs::create_dir_all(at("fw_cfg/node")).expect("ours");
        fs::create_dir_all(at("data")).expect("ours");
        fs::write(at("fw_cfg/node/raw"), document).expect("ours");
        (root, paths)
    }

    fn keep_loaded(
        vault: &VaultHandle,
        root: &Path,
        paths: &SourcePaths,
        config: &str,
    ) -> NodeCredentials {
        keep_loaded_if(true, vault, root, paths, config)
    }

    fn keep_loaded_if(
        may_take: bool,
        vault: &VaultHandle,
        root: &Path,
        paths: &SourcePaths,
        config: &str,
    ) -> NodeCredentials {
        let config = NodeConfig::parse(config.as_bytes()).expect("correct");
        let found = alknet_provisioning::load(paths).secrets.credentials;
        let data = root.join("data");
        keep_credentials(vault, Some(&data), &config, (&found, may_take), paths)
    }

    fn codes(kept: &NodeCredentials) -> Vec<&str> {
        kept.problems.iter().map(|it| it.code.as_str()).collect()
    }

    fn opened(vault: &VaultHandle, kept: &NodeCredentials, name: &str) -> String {
        let record = serde_json::to_string(&kept.records[name]).expect("JSON");
        let blob = SealedBlob::from_json(&record).expect("a record");
        let opened = vault.vault().open(&label(name).expect("a label"), &blob);
        String::from_utf8(opened.expect("it opens").expose().to_vec()).expect("text")
    }

    #[test]
    fn what_a_medium_brings_is_sealed_once_and_never_replaced() {
        let vault = vault_handle();
        let table = "[secrets.credentials]\nopenai = \"sk-hush\"\n";
        let (root, paths) = machine(&format!("{table}\n{CONFIG}"));
        let first = keep_loaded(&vault, root.path(), &paths, CONFIG);
        // PID 1 cannot erase the hypervisor's copy.
        assert_eq!(codes(&first), ["secrets-left"]);
        assert!(first.problems[0].text.contains("credentials"));
        assert_eq!(opened(&vault, &first, "openai"), "sk-hush");
        assert!(!first.records.contains_key("mail"));
        assert!(!format!("{first:?}").contains("hush"));
        fs::write(
            paths.fw_cfg.join("node/raw"),
            "[secrets.credentials]\nopenai = \"other\"\n",
        )
        .expect("ours");
        let again = keep_loaded(&vault, root.path(), &paths, CONFIG);
        assert_eq!(opened(&vault, &again, "openai"), "sk-hush");
        // The medium has another secret, so it is not erased either.
        assert_eq!(codes(&again), ["credential-ignored"]);
        let files = fs::read_dir(root.path().join("data/credentials/set-1")).expect("a set");
        for file in files {
            let text = fs::read_to_string(file.expect("a file").path()).expect("text");
            assert!(
                text.starts_with("cred:openai\n") && !text.contains("hush"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_folder_that_cannot_be_looked_into_is_no_missing_one() {
        let vault = vault_handle();
        let (root, paths) = machine("");
        fs::remove_dir(root.path().join("data")).expect("ours");
        fs::write(root.path().join("data"), "no folder").expect("ours");
        let none_wanted = "[node]\nname = \"attic\"\n";
        let looked = keep_loaded(&vault, root.path(), &paths, none_wanted);
        assert_eq!(codes(&looked), ["credentials-not-kept"]);
        assert!(!looked.settled);
    }

    #[test]
    fn a_node_that_may_not_take_any_leaves_them_and_says_so() {
        let vault = vault_handle();
        let (root, paths) = machine("[secrets.credentials]\nopenai = \"sk-hush\"\n");
        assert!(keep_loaded(&vault, root.path(), &paths, CONFIG).settled);
        let both = "[secrets.credentials]\nopenai = \"sk-hush\"\nmail = \"pw\"\n";
        fs::write(paths.fw_cfg.join("node/raw"), both).expect("ours");
        let later = keep_loaded_if(false, &vault, root.path(), &paths, CONFIG);
        assert_eq!(codes(&later), ["credential-ignored"]);
        assert!(later.problems[0].text.contains("mail: not taken"));
        assert!(!later.records.contains_key("mail"));
        assert_eq!(opened(&vault, &later, "openai"), "sk-hush");
    }

    #[test]
    fn a_newer_key_version_reseals_everything() {
        let vault = vault_handle();
        let table = "[secrets.credentials]\nopenai = \"sk-hush\"\nmail = \"pw\"\n";
        let (root, paths) = machine(&format!("{table}\n{CONFIG}"));
        keep_loaded(&vault, root.path(), &paths, CONFIG);
        let newer = format!("{CONFIG}[vault]\nkey_version = 4\nmin_version = 4\n");
        let after = keep_loaded(&vault, root.path(), &paths, &newer);
        for (name, secret) in [("openai", "sk-hush"), ("mail", "pw")] {
            assert_eq!(after.records[name].key_version, 4);
            assert_eq!(opened(&vault, &after, name), secret);
        }
        assert_eq!(vault.vault().versions().oldest.number(), 4);
        // After the version is set back, the records stay where they are, and open.
        let before = keep_loaded(&vault, root.path(), &paths, CONFIG);
        assert_eq!(before.records["openai"].key_version, 4);
        assert_eq!(opened(&vault, &before, "openai"), "sk-hush");
    }

    #[test]
    fn what_cannot_be_kept_is_said_and_stays_where_it_is() {
        let table = "[secrets.credentials]\nopenai = \"sk-hush\"\nother = \"x\"\n";
        let (root, paths) = machine(&format!("{table}\n{CONFIG}"));
        let closed = VaultHandle::new().expect("memory");
        let none = keep_loaded(&closed, root.path(), &paths, CONFIG);
        assert_eq!(codes(&none), ["credential-unused", "credentials-not-kept"]);
        assert!(none.records.is_empty());
        let vault = vault_handle();
        let one = keep_loaded(&vault, root.path(), &paths, CONFIG);
        // The medium has a secret that the configuration does not name, so PID 1 neither erases nor
        // tries it.
        assert_eq!(codes(&one), ["credential-unused"]);
        assert_eq!(opened(&vault, &one, "openai"), "sk-hush");
        // A damaged record is named, and the others are there.
        let (root, paths) = machine(&format!(
            "[secrets.credentials]\nopenai = \"a\"\nmail = \"b\"\n\n{CONFIG}"
        ));
        keep_loaded(&vault, root.path(), &paths, CONFIG);
        let folder = root.path().join("data/credentials/set-1");
        for file in fs::read_dir(folder).expect("a set") {
            let path = file.expect("a file").path();
            if fs::read_to_string(&path)
                .expect("text")
                .starts_with("cred:mail")
            {
                fs::write(&path, "cred:mail\n{}\n").expect("ours");
            }
        }
        let rest = keep_loaded(&vault, root.path(), &paths, CONFIG);
        assert_eq!(opened(&vault, &rest, "openai"), "a");
        let damaged = rest
            .problems
            .iter()
            .find(|it| it.code == "credential-unusable");
        assert!(damaged.expect("a problem").text.contains("mail"));
    }
}
