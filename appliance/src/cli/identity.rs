//! The key this computer acts with.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use alknet_tls::NodeKey;
use serde_json::json;

use super::{CommandError, CommandExit, StateArgs, output};
use crate::key::KeyFiles;
use crate::writers::{OtherWriter, check_writers, own_user};

/// File of the key inside the state directory.
pub(crate) const KEY_FILE: &str = "identity.key";

impl StateArgs {
    /// The state directory, made with mode 0700 if it is missing.
    ///
    /// # Errors
    /// The directory can be neither found nor made, belongs to another user than this one and root, or others may write
    /// it.
    pub(crate) fn dir(&self) -> Result<PathBuf, CommandError> {
        let dir = self.path()?;
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            // The key lies in it.
            .mode(0o700)
            .create(&dir)
            .map_err(|error| {
                CommandError::local(format!(
                    "cannot make the state directory {}: {error}",
                    dir.display()
                ))
            })?;
        // Before anything is read or written in it: with a link in the place of a file, root would write wherever
        // the owner of the directory cannot.
        let about = std::fs::metadata(&dir)
            .map_err(|error| CommandError::local(format!("{}: {error}", dir.display())))?;
        refuse_foreign(&dir, &about, own_user())?;
        Ok(dir)
    }

    /// Where the state directory is, or will be. Makes nothing.
    ///
    /// # Errors
    /// The directory cannot be found.
    pub(crate) fn path(&self) -> Result<PathBuf, CommandError> {
        self.state.clone().map_or_else(default_dir, Ok)
    }

    /// The key, made on first use.
    ///
    /// # Errors
    /// The file cannot be read or made, others may read it, or it belongs to another user; and those of
    /// [`dir`](Self::dir).
    pub(crate) fn key(&self) -> Result<NodeKey, CommandError> {
        let path = self.dir()?.join(KEY_FILE);
        KeyFiles::at(path.clone()).tidy();
        let (key, _made) = NodeKey::load_or_create(&path).map_err(CommandError::local)?;
        Ok(key)
    }

    /// Whether there is a key already. Makes nothing.
    pub(crate) fn has_key(&self) -> bool {
        self.path().is_ok_and(|dir| dir.join(KEY_FILE).exists())
    }

    /// What to say of the key that this command showed to a node that does not know it. `is_new`: this command made it.
    pub(crate) fn unknown_key(&self, is_new: bool) -> Option<String> {
        let used = self.path().ok()?;
        let default = default_dir().ok();
        unknown_key(&used, default.as_deref(), is_new)
    }
}

/// The hint where the state is in `used`, and would be in `default` without `--state`.
fn unknown_key(used: &Path, default: Option<&Path>, is_new: bool) -> Option<String> {
    let shown = used.display();
    if is_new {
        return Some(format!(
            "This command made the key, in {shown}, so that no node knows it yet. If your key is in another \
             directory, name that one with --state"
        ));
    }
    let key = |dir: &Path| NodeKey::load(&dir.join(KEY_FILE)).ok().flatten();
    let (own, other) = (key(used)?.public(), key(default?)?.public());
    (own != other).then(|| {
        format!("The key is the one in {shown}; without --state it is another one, which the node may know")
    })
}

/// The error of a file of a state directory that cannot be read. A folder of another user is probably named by mistake.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> CommandError {
    let mut text = format!("{}: {error}", path.display());
    if error.kind() == io::ErrorKind::PermissionDenied {
        let folder = path.parent().unwrap_or(path).display();
        text.push_str(&format!(
            ": you may not read the state directory {folder}; --state names another one"
        ));
    }
    CommandError::local(text)
}

/// Refuses a file or folder that another user of this computer can have written: what it says of a node and of its
/// key would be that user's word, and the key in it would be that user's. `us` is the user of this process; only
/// root writes what is root's.
///
/// What a group may write is refused as well. Commands make the directory and its files for their owner alone,
/// whatever the umask is, so that permission for a group came later.
///
/// # Errors
/// The directory belongs to another user than `us` and root, or others may write it.
pub(crate) fn refuse_foreign(path: &Path, about: &Metadata, us: u32) -> Result<(), CommandError> {
    let why = match check_writers(about, us) {
        Ok(()) => return Ok(()),
        Err(OtherWriter::Owner(owner)) => format!(
            "it belongs to user {owner} and not to you (user {us}), so that its nodes and its key are not used"
        ),
        Err(OtherWriter::Group(_) | OtherWriter::Everyone) => format!(
            "others may write it (mode {:o}), so that its nodes and its key are not used: once you know what is \
             in it, 'chmod go-w' lets it be used",
            about.mode() & 0o777
        ),
    };
    Err(CommandError::local(format!("{}: {why}", path.display())))
}

/// The XDG state directory of the person at the keyboard.
fn default_dir() -> Result<PathBuf, CommandError> {
    let base = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        // A relative path is to be ignored (XDG Base Directory Specification).
        .filter(|p| p.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    base.or_else(home)
        .map(|dir| dir.join("alknet"))
        .ok_or_else(|| {
            CommandError::usage(
                "neither XDG_STATE_HOME nor HOME is set: name a directory with --state DIR",
            )
        })
}

/// `alknet identity`
pub(crate) fn run(args: &StateArgs, json: bool) -> Result<CommandExit, CommandError> {
    let identity = args.key()?.public().to_string();
    if json {
        output::json_line(&json!({ "identity": identity }))?;
    } else {
        output::line(&identity)?;
    }
    Ok(CommandExit::Ok)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_that_no_node_knows_is_explained() {
        let (used, default) = (
            tempfile::tempdir().expect("a temporary directory"),
            tempfile::tempdir().expect("a temporary directory"),
        );
        let state = StateArgs {
            state: Some(used.path().to_owned()),
        };
        assert!(!state.has_key());
        state.key().expect("a writable directory");
        assert!(state.has_key());
        let said = |is_new| unknown_key(used.path(), Some(default.path()), is_new);
        assert!(said(true).is_some_and(|text| text.contains("made the key")));
        assert_eq!(said(false), None);
        let other = StateArgs {
            state: Some(default.path().to_owned()),
        };
        other.key().expect("a writable directory");
        assert!(said(false).is_some_and(|text| text.contains("without --state")));
        assert_eq!(unknown_key(used.path(), Some(used.path()), false), None);
    }

    #[test]
    fn what_another_user_can_have_written_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("nodes.json");
        fs::write(&file, "{}").expect("a writable directory");
        let judged = |mode: u32, us: u32| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("ours");
            refuse_foreign(&file, &fs::metadata(&file).expect("there"), us)
        };
        let us = own_user();
        for mode in [0o600, 0o644, 0o700, 0o755] {
            assert_eq!(judged(mode, us), Ok(()), "{mode:o}");
        }
        for mode in [0o620, 0o602, 0o666, 0o777] {
            assert!(judged(mode, us).is_err(), "{mode:o}");
        }
        // As another user than the one who wrote it; every user takes what root wrote.
        let other_user = judged(0o600, us + 1);
        assert_eq!(other_user.is_err(), us != 0, "{other_user:?}");
    }
}
