//! The key this computer acts with.

use std::path::PathBuf;

use alknet_tls::NodeKey;
use serde_json::json;

use super::{CommandError, CommandExit, StateArgs, output};
use crate::key::KeyFiles;

/// File of the key inside the state directory.
pub(crate) const KEY_FILE: &str = "identity.key";

impl StateArgs {
    /// The state directory, made with mode 0700 if it is missing.
    ///
    /// # Errors
    /// It can be neither found nor made.
    pub(crate) fn dir(&self) -> Result<PathBuf, CommandError> {
        let dir = match &self.state {
            Some(dir) => dir.clone(),
            None => default_dir()?,
        };
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|error| {
                CommandError::local(format!(
                    "cannot make the state directory {}: {error}",
                    dir.display()
                ))
            })?;
        Ok(dir)
    }

    /// The key, made on first use.
    ///
    /// # Errors
    /// The file cannot be read or made, or others may read it.
    pub(crate) fn key(&self) -> Result<NodeKey, CommandError> {
        let path = self.dir()?.join(KEY_FILE);
        KeyFiles::at(path.clone()).tidy();
        let (key, _made) = NodeKey::load_or_create(&path).map_err(CommandError::local)?;
        Ok(key)
    }
}

/// The XDG state directory of the person at the keyboard.
fn default_dir() -> Result<PathBuf, CommandError> {
    let base = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
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
