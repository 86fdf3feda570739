//! The end of an attempt to open the data: checks that everything fits together before the node
//! serves, and ends the permissions of a first boot in the vault.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use alknet_core::config::{NodeConfig, VaultInit};
use alknet_vault::slots::{FirstBootPermissions, OpenAlkv};

use super::{DataAccess, PreparedData, close_all, sealed};
use crate::{
    control::{DataState, MachineDiagnostic},
    settings::NodeSettings,
    vault::{self, VaultWait},
};

/// The node's key on a partition that is not sealed, and its length in bytes.
const KEY: &str = "identity/node.key";
const KEY_BYTES: u64 = 32;
/// Files that show that the key was made: a note of PID 1, and the database that the node makes for
/// its first enrolled peer. A disk from before the note has only the database, or neither.
const AFTER_KEY: [&str; 2] = [KEY_MADE, "identity/identity.db"];
/// Path of the note, in the configuration's folder, which belongs to root.
const KEY_MADE: &str = "config/key-made";
/// Permission bits of the note, which has no secret.
const MODE: u32 = 0o644;

/// Why a machine with data in this state cannot have this configuration. `None` if it can.
pub(crate) fn contradiction(config: &NodeConfig, data: &DataState) -> Option<MachineDiagnostic> {
    let device = data.device.as_deref().unwrap_or("data");
    let problem = |code: &str, text: String, hint: &str| MachineDiagnostic {
        code: code.to_owned(),
        text,
        hint: hint.to_owned(),
    };
    // Without a partition there are no data that the configuration could contradict.
    if !["mounted", "read-only"].contains(&data.mode.as_str()) {
        return None;
    }
    if config.node.stateless {
        return Some(problem(
            "data-unwanted",
            format!(
                "the configuration says that this node is stateless, and {device} holds its data"
            ),
            "detach the disk, or leave node.stateless out of the configuration",
        ));
    }
    (data.cipher.is_none() && config.vault.init != VaultInit::Off).then(|| {
        problem(
            "data-unsealed",
            format!("{device} is not sealed, and the configuration does not say vault.init = \"off\""),
            "write vault.init = \"off\" if the data need no encryption, or attach a blank disk, which is sealed at its first start",
        )
    })
}

/// Ends an attempt that opened the data and read the configuration. It withdraws the permissions of
/// the first boot in the vault, after everything that depends on them is on the disk. If something
/// does not fit, or cannot be written, it closes everything again.
pub(crate) fn conclude(
    prepared: PreparedData,
    opened: Option<OpenAlkv>,
    settings: &NodeSettings,
    access: DataAccess<'_>,
) -> PreparedData {
    if prepared.waiting.is_some() || !prepared.is_mounted() {
        return prepared;
    }
    let vault = access.vault;
    if let Some(problem) = contradiction(&settings.config, &prepared.state) {
        return close_all(
            VaultWait::from_diagnostic(problem),
            prepared.vault_at,
            vault,
        );
    }
    let Some(open) = opened else {
        return match lost_key(&prepared.state_dir) {
            Some(problem) => close_all(VaultWait::from_diagnostic(problem).for_good(), None, vault),
            None => prepared,
        };
    };
    match settle(&prepared, open, settings, access) {
        Ok(()) => prepared,
        Err(problem) => close_all(
            VaultWait::from_diagnostic(problem).for_good(),
            prepared.vault_at,
            vault,
        ),
    }
}

/// Notes, on a partition that is not sealed, that its node has a key. From then on the node makes
/// no other key, even if the file is lost. When this returns, the note is durable.
///
/// # Errors
/// The data partition cannot be written.
pub(crate) fn note_key(state_dir: &Path) -> io::Result<()> {
    let path = state_dir.join(KEY_MADE);
    if path.try_exists()? || !state_dir.join(KEY).try_exists()? {
        return Ok(());
    }
    // The note is empty: the existence of the file is the note.
    alknet_durable::replace(&path, b"", MODE)
}

/// The problem of a lost key, on a node without a vault. `None` if the key exists, or was never
/// made. Without this check, the node would make another key.
fn lost_key(state_dir: &Path) -> Option<MachineDiagnostic> {
    // A file that cannot be looked up counts as existing.
    let is_there = |name: &&str| match fs::symlink_metadata(state_dir.join(name)) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::NotFound,
    };
    let has_been_made = AFTER_KEY.iter().any(is_there);
    let what = match fs::symlink_metadata(state_dir.join(KEY)) {
        // A power cut while the key was written may have left a shorter file.
        Ok(found) if found.is_file() && found.len() == KEY_BYTES => return None,
        Ok(_) => "is no key".to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound && !has_been_made => return None,
        Err(error) => format!("cannot be read: {error}"),
    };
    Some(MachineDiagnostic {
        code: "data-damaged".to_owned(),
        text: format!("the key of this node, {KEY}, {what}"),
        hint:
            "put a copy of it back, or blank the first 16 MiB of the disk to start as another node"
                .to_owned(),
    })
}

fn settle(
    prepared: &PreparedData,
    mut open: OpenAlkv,
    settings: &NodeSettings,
    access: DataAccess<'_>,
) -> Result<(), MachineDiagnostic> {
    let vault = access.vault;
    // The check comes before the first withdrawal: the permission of the first boot must be there
    // for a repair.
    if settings.is_lost() {
        return Err(MachineDiagnostic {
            code: "config-lost".to_owned(),
            text: "the stored configuration of this sealed node cannot be read, and none is taken from a medium"
                .to_owned(),
            hint: "repair the disk elsewhere with cryptsetup and e2fsck, or reset the machine at the console (v) and \
                   provision it again"
                .to_owned(),
        });
    }
    let is_first = open.pending().partition;
    // The words are written before the permission to show them ends: otherwise they would be lost.
    vault::settle_words(vault, &prepared.state_dir).map_err(|error| MachineDiagnostic {
        code: "words-not-kept".to_owned(),
        text: format!(
            "the new words of this node cannot be written, encrypted to vault.words_to: {error}"
        ),
        hint: "attach another data disk".to_owned(),
    })?;
    let ended = FirstBootPermissions {
        configuration: settings.is_settled(),
        partition: true,
        // After a later start, the console says that the owner has not confirmed the words. They
        // can be shown until the start after that.
        words: !is_first || vault.facts().words_kept,
    };
    let unwritten = |error: &dyn std::fmt::Display| MachineDiagnostic {
        code: "vault-damaged".to_owned(),
        text: format!("the end of the first boot cannot be noted in the vault: {error}"),
        hint: "attach another data disk, or look for what keeps this one from being written"
            .to_owned(),
    };
    let changed = open.conclude(ended).map_err(|error| unwritten(&error))?;
    if let (true, Some(device)) = (changed, &prepared.vault_at) {
        let saved = sealed::copies(device).save(&open);
        saved.map_err(|error| unwritten(&error))?;
        // An older copy of the vault permits more, so the ledger records this one.
        access.ledger(device, &prepared.state_dir).note(&open);
    }
    vault.settle(&open);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(mode: &str, cipher: Option<&str>) -> DataState {
        DataState {
            mode: mode.to_owned(),
            cipher: cipher.map(str::to_owned),
            ..DataState::default()
        }
    }

    #[test]
    fn a_key_that_was_made_is_not_made_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lost = || lost_key(dir.path()).map(|problem| problem.text);
        for folder in ["config", "identity"] {
            fs::create_dir(dir.path().join(folder)).expect("writable");
        }
        note_key(dir.path()).expect("writable");
        assert_eq!(lost(), None, "a first boot");
        let key = dir.path().join(KEY);
        fs::write(&key, [7; 32]).expect("writable");
        assert_eq!(lost(), None);
        fs::remove_file(&key).expect("it is there");
        assert_eq!(lost(), None, "it was not reported yet");
        // Each of the two files is a note.
        for after in AFTER_KEY {
            fs::write(&key, [7; 32]).expect("writable");
            match after {
                KEY_MADE => note_key(dir.path()).expect("writable"),
                other => fs::write(dir.path().join(other), "").expect("writable"),
            }
            assert_eq!(lost(), None);
            fs::write(&key, [7; 31]).expect("writable");
            assert!(lost().is_some_and(|text| text.ends_with("is no key")));
            fs::remove_file(&key).expect("it is there");
            assert!(lost().is_some_and(|text| text.contains("cannot be read")));
            fs::remove_file(dir.path().join(after)).expect("it is there");
        }
    }

    #[test]
    fn a_configuration_has_to_fit_the_data() {
        let config = |text: &str| NodeConfig::parse(text.as_bytes()).expect("a right one");
        let (off, on) = ("vault.init = \"off\"\n", "");
        let stateless = "node.stateless = true\n";
        let aes = Some("aes-xts-plain64");
        for (text, state, code) in [
            (on, data("mounted", None), Some("data-unsealed")),
            (on, data("read-only", None), Some("data-unsealed")),
            (off, data("mounted", None), None),
            (on, data("mounted", aes), None),
            // A vault stays even if the configuration no longer wants one.
            (off, data("mounted", aes), None),
            (stateless, data("mounted", aes), Some("data-unwanted")),
            (stateless, data("volatile", None), None),
            (on, data("locked", None), None),
        ] {
            let found = contradiction(&config(text), &state).map(|problem| problem.code);
            assert_eq!(found.as_deref(), code, "{text:?} {state:?}");
        }
    }
}
