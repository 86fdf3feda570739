//! The read-only root drive, which `mkfs.erofs` writes from a folder that is staged for it.
//!
//! Its files are not compressed: unpacking the parts of the binary that a boot touches took half of
//! all instructions from power-on to the first answered call. A drive that travels is compressed
//! whole.

use std::env;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use uuid::Uuid;

use crate::error::ImageError;
use crate::manifest::{ManifestSource, hex_sha256};
use crate::tree::{TreeEntry, TreeEntryKind};

const TOOL: &str = "mkfs.erofs";
const PACKAGE: &str = "erofs-utils";
/// The tool's path for a user whose search path lacks the system's own folder.
const FALLBACK: &str = "/usr/sbin/mkfs.erofs";
/// How much of a failed tool's output an error keeps, in bytes.
const STDERR_BYTES_MAX: usize = 2000;

/// Writes the tree to `output`, without device nodes: an ordinary user cannot stage them, and the
/// kernel mounts `/dev` on a root drive itself.
pub(crate) fn write(tree: &[TreeEntry<'_>], uuid: Uuid, output: &Path) -> Result<(), ImageError> {
    let dir = output.parent().unwrap_or_else(|| Path::new("."));
    let at = |source| ImageError::Output {
        path: dir.to_owned(),
        source,
    };
    let staging = tempfile::Builder::new()
        // The folder is beside the output and not in /tmp, which may be small or another file
        // system.
        .prefix(".root-")
        .tempdir_in(dir)
        .map_err(at)?;
    stage(tree, staging.path()).map_err(at)?;
    let result = run(uuid, output, staging.path())?;
    check(&result)
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

fn run(uuid: Uuid, output: &Path, root: &Path) -> Result<Output, ImageError> {
    let run = |program: &str| {
        Command::new(program)
            // Times and owners are fixed, because two builds must give the same bytes.
            .args(["-T0", "--all-root", "-U", &uuid.to_string()])
            .arg(output)
            .arg(root)
            .env("LC_ALL", "C")
            .output()
    };
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match run(TOOL) {
        // sbin is not in the PATH of an ordinary user.
        Err(error) if missing(&error) => run(FALLBACK),
        other => other,
    }
    .map_err(|error| could_not_start(error, output))
}

/// The tool for the manifest: its version, and the hash of its file.
pub(crate) fn tool() -> Option<ManifestSource> {
    let program = executable()?;
    // The exit status does not count: 1.5 has no such option, and prints its version first all the same.
    let said = Command::new(&program).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&said.stdout);
    // "mkfs.erofs 1.5", and since 1.8 "mkfs.erofs (erofs-utils) 1.8.6".
    let version = said.lines().next()?.split_whitespace().next_back()?;
    let hash = fs::read(&program).ok().map(|bytes| hex_sha256(&bytes));
    Some(ManifestSource::new(TOOL, Some(version.to_owned()), hash))
}

/// The file that [`run`] starts.
fn executable() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(TOOL));
    let mut found = found.chain([PathBuf::from(FALLBACK)]);
    found.find(|program| program.is_file())
}

fn could_not_start(error: io::Error, output: &Path) -> ImageError {
    if error.kind() == io::ErrorKind::NotFound {
        return ImageError::ToolMissing {
            tool: TOOL,
            package: PACKAGE,
        };
    }
    ImageError::Output {
        path: output.to_owned(),
        source: error,
    }
}

fn check(result: &Output) -> Result<(), ImageError> {
    if result.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&result.stderr);
    let stderr = stderr.trim();
    // The end of a tool's output has the reason.
    let start = stderr.ceil_char_boundary(stderr.len().saturating_sub(STDERR_BYTES_MAX));
    Err(ImageError::ToolFailed {
        tool: TOOL,
        status: result.status.to_string(),
        stderr: stderr[start..].to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tool_is_known_by_its_version_and_its_hash() {
        let tool = tool().expect("erofs-utils is installed");
        let version = tool.version.expect("it prints one");
        assert!(
            version.starts_with(|c: char| c.is_ascii_digit()),
            "{version}"
        );
        assert!(tool.sha256.is_some_and(|hash| hash.len() == 64));
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = could_not_start(io::ErrorKind::NotFound.into(), Path::new("x"));
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("erofs-utils"), "{error}");
    }

    #[test]
    fn a_failed_tool_is_quoted_by_its_last_words() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let result = run(
            Uuid::nil(),
            &dir.path().join("out"),
            &dir.path().join("missing"),
        );
        let error = check(&result.expect("erofs-utils is installed")).expect_err("no such folder");
        assert!(matches!(&error, ImageError::ToolFailed { stderr, .. } if !stderr.is_empty()));
    }
}
