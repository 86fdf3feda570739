//! The volume key's way into the kernel: a key of type `logon`, which no process can read back, in a
//! keyring of this process for as long as a table is loaded.

use std::io;

use nix::errno::Errno;

use crate::error::SealedError;
use crate::secret::VolumeKey;

/// What device mapper calls the key.
const DESCRIPTION: &str = "alknet:data";
/// `KEY_SPEC_PROCESS_KEYRING`.
const PROCESS_KEYRING: libc::c_long = -2;
/// `KEYCTL_UNLINK`.
const UNLINK: libc::c_long = 9;

/// A volume key in the kernel. It goes with this; what dm-crypt has taken of it stays there.
#[derive(Debug)]
pub(crate) struct LoadedKey {
    id: libc::c_long,
    bytes: usize,
}

impl LoadedKey {
    pub(crate) fn new(key: &VolumeKey) -> Result<Self, SealedError> {
        let secret = key.expose();
        // SAFETY: the kernel reads two texts that end in zero and `secret.len()` bytes of the key;
        // all outlive the call.
        let id = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"logon".as_ptr(),
                c"alknet:data".as_ptr(),
                secret.as_ptr(),
                secret.len(),
                PROCESS_KEYRING,
            )
        };
        let id = Errno::result(id).map_err(|errno| SealedError::Keyring(errno.into()))?;
        Ok(Self {
            id,
            bytes: secret.len(),
        })
    }

    /// As a table names it.
    pub(crate) fn reference(&self) -> String {
        format!(":{}:logon:{DESCRIPTION}", self.bytes)
    }

    /// Takes it out of the keyring and says whether that worked.
    pub(crate) fn unlink(self) -> Result<(), SealedError> {
        let outcome = self.remove();
        // `Drop` would take it out once more.
        std::mem::forget(self);
        outcome.map_err(SealedError::Keyring)
    }

    fn remove(&self) -> io::Result<()> {
        // SAFETY: the call takes numbers only.
        let outcome = unsafe { libc::syscall(libc::SYS_keyctl, UNLINK, self.id, PROCESS_KEYRING) };
        Ok(Errno::result(outcome).map(drop)?)
    }
}

impl Drop for LoadedKey {
    fn drop(&mut self) {
        // An error is already on its way to the caller, and the keyring goes with the process.
        let _ = self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the process has a key of that name.
    fn is_there() -> bool {
        // KEYCTL_SEARCH
        // SAFETY: the kernel reads two texts that end in zero.
        let found = unsafe {
            libc::syscall(
                libc::SYS_keyctl,
                10_i64,
                PROCESS_KEYRING,
                c"logon".as_ptr(),
                c"alknet:data".as_ptr(),
                0_i64,
            )
        };
        found > 0
    }

    #[test]
    fn a_key_is_there_only_as_long_as_it_is_needed() {
        let key = VolumeKey::random(64).expect("random numbers");
        let loaded = LoadedKey::new(&key).expect("a kernel with keyrings");
        assert_eq!(loaded.reference(), ":64:logon:alknet:data");
        assert!(is_there());
        loaded.unlink().expect("it was there");
        assert!(!is_there());
        drop(LoadedKey::new(&key).expect("a kernel with keyrings"));
        assert!(!is_there());
    }
}
