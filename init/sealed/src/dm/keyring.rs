//! Passes the volume key to the kernel: as a key of type `logon`, which no process can read back,
//! in a keyring of this process while a table is loaded.

use std::io;

use nix::errno::Errno;

use crate::error::SealedError;
use crate::secret::VolumeKey;

/// Name of the key for the device mapper.
const DESCRIPTION: &str = "alknet:data";
/// `KEY_SPEC_PROCESS_KEYRING`.
const PROCESS_KEYRING: libc::c_long = -2;
/// `KEYCTL_UNLINK`.
const UNLINK: libc::c_long = 9;

/// A volume key in the kernel's keyring. It is removed on drop. The copy that dm-crypt took stays
/// there.
#[derive(Debug)]
pub(crate) struct LoadedKey {
    id: libc::c_long,
    bytes: usize,
}

impl LoadedKey {
    pub(crate) fn new(key: &VolumeKey) -> Result<Self, SealedError> {
        let secret = key.expose();
        // SAFETY: the kernel reads two texts that end with a zero byte and `secret.len()` bytes of
        // the key. All of them outlive the call.
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

    /// The key's reference in a table.
    pub(crate) fn reference(&self) -> String {
        format!(":{}:logon:{DESCRIPTION}", self.bytes)
    }

    /// Removes the key from the keyring, and returns whether that worked.
    pub(crate) fn unlink(self) -> Result<(), SealedError> {
        let outcome = self.remove();
        // `Drop` would try to remove the key a second time.
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
        // The caller gets an earlier error already, and the keyring ends with the process.
        let _ = self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the process has a key of this name.
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
