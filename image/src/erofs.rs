//! The read-only root drive, which `mkfs.erofs` writes from a folder that is staged for it.
//!
//! Its files are not compressed: unpacking the parts of the binary that a boot touches took half of
//! all instructions from power-on to the first answered call. A drive that travels is compressed
//! whole.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use uuid::Uuid;

use crate::error::ImageError;
use crate::manifest::ManifestSource;
use crate::tool::ImageTool;
use crate::tree::{TreeEntry, TreeEntryKind};

const MKFS: ImageTool = ImageTool {
    name: "mkfs.erofs",
    package: "erofs-utils",
    fallback: Some("/usr/sbin/mkfs.erofs"),
};

/// Writes the tree to `output`, without device nodes: an ordinary user cannot stage them, and the
/// kernel mounts `/dev` on a root drive itself.
pub(crate) fn write(tree: &[TreeEntry<'_>], uuid: Uuid, output: &Path) -> Result<(), ImageError> {
    let dir = output.parent().unwrap_or_else(|| Path::new("."));
    let at = |source| ImageError::Output {
        path: dir.to_owned(),
        source,
    };
    let staging = tempfile::Builder::new()
        // The folder is beside the output, where no other user can change it.
        .prefix(".root-")
        .tempdir_in(dir)
        .map_err(at)?;
    stage(tree, staging.path()).map_err(at)?;
    run(uuid, output, staging.path())
}

fn run(uuid: Uuid, output: &Path, root: &Path) -> Result<(), ImageError> {
    MKFS.run(output, |command| {
        // Times and owners are fixed, because two builds must give the same bytes.
        command
            .args(["-T0", "--all-root", "-U", &uuid.to_string()])
            .arg(output)
            .arg(root);
    })
}

fn stage(tree: &[TreeEntry<'_>], root: &Path) -> io::Result<()> {
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    for entry in tree {
        let path = root.join(entry.path);
        match &entry.kind {
            // Making device nodes takes root, and the kernel mounts devtmpfs there.
            TreeEntryKind::Char { .. } => continue,
            TreeEntryKind::Dir => fs::create_dir(&path)?,
            TreeEntryKind::File(bytes) => fs::write(&path, bytes)?,
            TreeEntryKind::Link(target) => {
                symlink(target, &path)?;
                continue;
            }
        }
        // Permissions are not set at creation, where the caller's umask would change them.
        fs::set_permissions(&path, Permissions::from_mode(entry.mode))?;
    }
    Ok(())
}

/// The tool for the manifest: its version, and the hash of its file.
pub(crate) fn tool() -> Option<ManifestSource> {
    MKFS.source()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_tool_is_quoted_by_its_last_words() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let [out, missing] = ["out", "missing"].map(|name| dir.path().join(name));
        let error = run(Uuid::nil(), &out, &missing).expect_err("no such folder");
        assert!(matches!(&error, ImageError::ToolFailed { stderr, .. } if !stderr.is_empty()));
    }
}
