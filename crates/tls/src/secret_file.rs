//! Secrets in files of mode 0600. They are written so that a power cut leaves the old file or the new one.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;
use zeroize::Zeroizing;

use crate::error::TlsError;

/// Longest secret that is read, in bytes. Keys here have a few hundred bytes, and a huge file is a mistake.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Permission bits that a secret may have.
const MODE: u32 = 0o600;

/// The user that can read and write the files of every other one.
const ROOT: u32 = 0;

/// The content of `path`, or `None` if the file does not exist.
///
/// # Errors
/// The file cannot be read, other users can read it, or it belongs to another user than that of this process and
/// root.
pub(crate) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, TlsError> {
    read_as(path, geteuid().as_raw())
}

/// Like [`read`], for a process of the user `us`.
fn read_as(path: &Path, us: u32) -> Result<Option<Zeroizing<Vec<u8>>>, TlsError> {
    let fail = |source| TlsError::KeyRead {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(fail)?,
    };
    // The metadata is that of the open file: another one may have its name by now.
    let metadata = file.metadata().map_err(fail)?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o777);
    // Root could read the file, and would act with the key of the user who put it there.
    if owner != us && owner != ROOT {
        return Err(TlsError::KeyOwner {
            path: path.to_owned(),
            owner,
            us,
        });
    }
    if mode & !MODE != 0 {
        return Err(TlsError::KeyMode {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    // A file without end, such as a device, must not fill the memory.
    file.take(SECRET_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    Ok(Some(bytes))
}

/// Replaces `path` with `bytes`, durably.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    alknet_durable::replace(path, bytes, MODE).map_err(|source| TlsError::KeyWrite {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn a_secret_of_another_user_is_not_read() {
        /// A user without rights.
        const OTHER_USER: u32 = 65_534;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node.key");
        write(&path, b"a secret").expect("the directory is ours");
        let own = read(&path).expect("ours").expect("it is there");
        assert_eq!(own.as_slice(), b"a secret");
        // Every user takes what root wrote, and only root can give a file away.
        let (owner, us) = match geteuid().as_raw() {
            ROOT => {
                chown(&path, Some(OTHER_USER), None).expect("root may");
                (OTHER_USER, ROOT)
            }
            own => (own, own + 1),
        };
        let refused = read_as(&path, us).expect_err("it belongs to another user");
        let expected = (owner, us);
        assert!(
            matches!(refused, TlsError::KeyOwner { owner, us, .. } if (owner, us) == expected),
            "{refused}"
        );
    }
}
