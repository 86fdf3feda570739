//! The output of `cargo metadata` about the packages of the workspace.

use std::process::Command;

use serde::de::DeserializeOwned;

use crate::failure::{Result, TaskError};

/// The part of it that `T` reads. `cargo_metadata` is the command without options.
pub(super) fn read_metadata<T: DeserializeOwned>(cargo_metadata: &mut Command) -> Result<T> {
    let output = cargo_metadata
        .args(["--format-version", "1", "--no-deps", "--offline"])
        .output()
        .map_err(TaskError::io("run cargo"))?;
    serde_json::from_slice(&output.stdout).map_err(|error| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        TaskError::Workspace(format!("cargo metadata: {error}: {}", stderr.trim()))
    })
}
