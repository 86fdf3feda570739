//! Secrets in files: mode 0600, written so that a power cut leaves the old file or the new one.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::TlsError;

/// Longest secret read. Keys here are a few hundred bytes; a huge file is a mistake.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Permission bits a secret may have.
const MODE: u32 = 0o600;

/// The content of `path`, or `None` when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, TlsError> {
    let fail = |source| TlsError::KeyRead {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(fail)?,
    };
    // Of the file that is open: its path could lead to another one by now.
    let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o777;
    if mode & !MODE != 0 {
        return Err(TlsError::KeyMode {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Zeroizing::new(Vec::new());
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
