//! The one binary, as cargo built it.

use std::path::PathBuf;

use crate::context::Context;
use crate::failure::{Failure, Result};

/// Where the binary lies; the front door built it.
pub(crate) fn path(cx: &Context) -> Result<PathBuf> {
    let path = cx.executable("alknet");
    if path.exists() {
        return Ok(path);
    }
    Err(Failure::Workspace(format!(
        "{} is missing: run this through `cargo xtask`",
        path.display()
    )))
}
