//! The device mapper, called by its ioctls: without a library, udev or another program.
//!
//! Mappings have the names and numbers that stock cryptsetup would give them. Hence cryptsetup can
//! show, resize and close them.

mod keyring;
mod table;
mod wire;

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::fd::AsRawFd,
    path::Path,
};

use nix::errno::Errno;

pub(crate) use keyring::LoadedKey;
pub use table::{CryptTable, DmTarget};
use wire::{DmMessage, flags};

use crate::limits::ANSWER_BYTES_MAX;

/// The kernel's control file of the device mapper.
const CONTROL: &str = "/dev/mapper/control";
/// Type and number of its ioctls: read and write, with a header of 312 bytes.
const IOCTL: libc::c_ulong = 0xc138_fd00;
/// The oldest supported interface: version 4.27 has deferred removal.
const INTERFACE: (u32, u32) = (4, 27);
/// Expected maximum length of an answer in bytes. A call with a longer answer is repeated.
const ANSWER_BYTES: usize = 16 << 10;

/// The calls of the device mapper.
#[derive(Clone, Copy, Debug)]
enum DmIoctl {
    Version = 0,
    List = 2,
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Status = 7,
    Load = 9,
    Clear = 10,
    TableStatus = 12,
}

impl DmIoctl {
    const fn name(self) -> &'static str {
        match self {
            Self::Version => "tell its version",
            Self::List => "list mappings",
            Self::Create => "create a mapping",
            Self::Remove => "remove a mapping",
            Self::Suspend => "suspend or resume a mapping",
            Self::Status => "tell of a mapping",
            Self::Load => "take the table of a mapping",
            Self::Clear => "forget a table",
            Self::TableStatus => "show the table of a mapping",
        }
    }
}

/// Why a call of the device mapper failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmError {
    /// The kernel has no device mapper.
    #[error("{CONTROL} is missing: the kernel needs CONFIG_BLK_DEV_DM and CONFIG_DM_CRYPT")]
    Absent,
    /// The kernel's answer makes no sense.
    #[error("the device mapper answered what it never should: {0}")]
    Answer(&'static str),
    /// A process has opened the mapping.
    #[error("the mapping {0} is in use; unmount what is on it")]
    Busy(String),
    /// Any other refusal.
    #[error("the device mapper cannot {what}: {source}")]
    Call {
        /// The call, as a verb.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A mapping of this name or UUID exists.
    #[error("there is a mapping {0} already; close it first")]
    Exists(String),
    /// The name is empty, too long, or has invalid characters.
    #[error("{0:?} is no name for a mapping")]
    Name(String),
    /// There is no such mapping.
    #[error("there is no mapping {0}")]
    NotFound(String),
    /// The interface is older than Linux 3.13.
    #[error("the device mapper speaks {0}.{1}, which is too old")]
    Old(u32, u32),
    /// The kernel refused the table.
    #[error(
        "the kernel refuses to encrypt with {cipher}: {source}; it needs the cipher, \
         CONFIG_DM_CRYPT, and a partition that nothing else uses and that is long enough (its log \
         says more)"
    )]
    Refused {
        /// The cipher.
        cipher: String,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The state of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmStatus {
    /// No other mapping has the same.
    pub name: String,
    /// Its UUID, which names the program that made it.
    pub uuid: String,
    /// Major and minor number of its block device.
    pub device: (u32, u32),
    /// How many times it is open.
    pub open_count: u32,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Whether it has a table.
    pub active: bool,
    /// Whether it is removed when it is closed.
    pub leaving: bool,
}

/// A mapping in the kernel's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmMapping {
    pub name: String,
    /// Major and minor number of its block device.
    pub device: (u32, u32),
}

/// When to remove a mapping that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmRemoval {
    /// After the last process has closed it.
    Deferred,
    /// Never: the removal fails.
    Now,
}

/// The open control file of the device mapper.
#[derive(Debug)]
pub struct DeviceMapper {
    file: File,
    version: (u32, u32, u32),
}

impl DeviceMapper {
    /// Opens the control file, and reads the version of its interface.
    pub fn open() -> Result<Self, DmError> {
        Self::open_at(Path::new(CONTROL))
    }

    fn open_at(path: &Path) -> Result<Self, DmError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|source| match source.kind() {
            ErrorKind::NotFound => DmError::Absent,
            // The file may exist without the driver behind it.
            _ if source.raw_os_error() == Some(libc::ENODEV) => DmError::Absent,
            _ => DmError::Call {
                what: "be opened",
                source,
            },
        })?;
        let mut control = Self {
            file,
            version: (4, 0, 0),
        };
        let answer = control.call(DmIoctl::Version, DmMessage::new())?;
        control.version = answer.version();
        let (major, minor, _) = control.version;
        // A higher major number means an incompatible interface (linux/dm-ioctl.h).
        if major != INTERFACE.0 || minor < INTERFACE.1 {
            return Err(DmError::Old(major, minor));
        }
        Ok(control)
    }

    /// Major, minor and patch number of the interface.
    #[must_use]
    pub const fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// Creates a mapping without a table.
    pub fn create(&self, name: &str, uuid: &str) -> Result<DmStatus, DmError> {
        let message = DmMessage::new().name(name)?.uuid(uuid)?;
        match self.call(DmIoctl::Create, message) {
            Err(DmError::Call { source, .. }) if is(&source, Errno::EBUSY) => {
                Err(DmError::Exists(name.to_owned()))
            }
            answer => answer?.status(),
        }
    }

    /// Loads the next table of a mapping, which takes effect at the next [`resume`](Self::resume).
    pub fn load(&self, name: &str, table: &CryptTable) -> Result<(), DmError> {
        // The flag makes the kernel wipe its copy of the buffer, which names the key and the place
        // of the data.
        let flags = flags::SECURE_DATA | if table.read_only { flags::READ_ONLY } else { 0 };
        let message = DmMessage::new().name(name)?.flags(flags).table(table)?;
        from_refusal(self.call_for(DmIoctl::Load, name, message), table).map(drop)
    }

    /// Loads a table and lets the mapping run with it. If the kernel refuses, the mapping continues
    /// with its present table, if it has one.
    pub fn run(&self, name: &str, table: &CryptTable) -> Result<DmStatus, DmError> {
        self.load(name, table)?;
        // Only this call finds that the partition is too short.
        let outcome = from_refusal(self.resume(name), table);
        if outcome.is_err() {
            // The refused table must not stay for the next resume, and the kernel has suspended the
            // mapping for the change. The first error matters more than those of these calls.
            drop(self.clear(name));
            drop(self.resume(name));
        }
        outcome
    }

    /// Removes the loaded next table.
    pub fn clear(&self, name: &str) -> Result<(), DmError> {
        let message = DmMessage::new().name(name)?;
        self.call_for(DmIoctl::Clear, name, message).map(drop)
    }

    /// Lets a mapping run, with its next table if it has one.
    pub fn resume(&self, name: &str) -> Result<DmStatus, DmError> {
        // A file system on the mapping need not be frozen for a table that only grew.
        let message = DmMessage::new().name(name)?.flags(flags::SKIP_LOCK_FS);
        self.call_for(DmIoctl::Suspend, name, message)?.status()
    }

    /// Suspends a mapping, after everything written to it is on the disk.
    pub fn suspend(&self, name: &str) -> Result<DmStatus, DmError> {
        let message = DmMessage::new().name(name)?.flags(flags::SUSPEND);
        self.call_for(DmIoctl::Suspend, name, message)?.status()
    }

    /// Removes a mapping. Returns whether it is gone. With a deferred removal it may go later.
    pub fn remove(&self, name: &str, removal: DmRemoval) -> Result<bool, DmError> {
        let deferred = match removal {
            DmRemoval::Deferred => flags::DEFERRED_REMOVE,
            DmRemoval::Now => 0,
        };
        let message = DmMessage::new().name(name)?.flags(deferred);
        match self.call_for(DmIoctl::Remove, name, message) {
            Err(DmError::Call { source, .. }) if is(&source, Errno::EBUSY) => {
                Err(DmError::Busy(name.to_owned()))
            }
            answer => Ok(!answer?.has(flags::DEFERRED_REMOVE)),
        }
    }

    /// The state of a mapping.
    pub fn status(&self, name: &str) -> Result<DmStatus, DmError> {
        let message = DmMessage::new().name(name)?;
        self.call_for(DmIoctl::Status, name, message)?.status()
    }

    /// The active table. For a key in the keyring it has the key's name.
    pub fn table(&self, name: &str) -> Result<Vec<DmTarget>, DmError> {
        let message = DmMessage::new().name(name)?.flags(flags::STATUS_TABLE);
        self.call_for(DmIoctl::TableStatus, name, message)?
            .targets()
    }

    /// Lists every mapping.
    pub fn list(&self) -> Result<Vec<DmMapping>, DmError> {
        self.call(DmIoctl::List, DmMessage::new())?.names()
    }

    fn call_for(
        &self,
        call: DmIoctl,
        name: &str,
        message: DmMessage,
    ) -> Result<DmMessage, DmError> {
        match self.call(call, message) {
            Err(DmError::Call { source, .. }) if is(&source, Errno::ENXIO) => {
                Err(DmError::NotFound(name.to_owned()))
            }
            other => other,
        }
    }

    /// Makes a call, and repeats it with a larger buffer if the answer did not fit.
    fn call(&self, call: DmIoctl, message: DmMessage) -> Result<DmMessage, DmError> {
        let mut capacity = ANSWER_BYTES;
        loop {
            let mut attempt = message.with_capacity(capacity);
            self.ioctl(call, &mut attempt)?;
            if !attempt.has(flags::BUFFER_FULL) {
                return Ok(attempt);
            }
            capacity *= 2;
            if capacity > ANSWER_BYTES_MAX {
                return Err(DmError::Answer("more than a mebibyte"));
            }
        }
    }

    fn ioctl(&self, call: DmIoctl, message: &mut DmMessage) -> Result<(), DmError> {
        let request = IOCTL | call as libc::c_ulong;
        let bytes = message.bytes_mut();
        // SAFETY: the kernel reads the length of the buffer from its header, which has the true
        // length, and reads and writes no more than that.
        let outcome = unsafe { libc::ioctl(self.file.as_raw_fd(), request, bytes.as_mut_ptr()) };
        let outcome = Errno::result(outcome).map(drop);
        outcome.map_err(|errno| DmError::Call {
            what: call.name(),
            source: errno.into(),
        })
    }
}

/// Makes a node for a block device, on a system without devtmpfs. It replaces an existing node.
pub(crate) fn make_node(path: &Path, device: (u32, u32)) -> io::Result<()> {
    // A node from an earlier mapping may name another device now.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let text = CString::new(path.as_os_str().as_encoded_bytes())?;
    let number = libc::makedev(device.0, device.1);
    // SAFETY: the kernel reads the text behind the pointer, which outlives the call.
    let outcome = unsafe { libc::mknod(text.as_ptr(), libc::S_IFBLK | 0o600, number) };
    Ok(Errno::result(outcome).map(drop)?)
}

/// Converts the kernel's refusal of a table.
fn from_refusal<T>(outcome: Result<T, DmError>, table: &CryptTable) -> Result<T, DmError> {
    outcome.map_err(|error| match error {
        DmError::Call { source, .. } => DmError::Refused {
            cipher: table.cipher.clone(),
            source,
        },
        other => other,
    })
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_device_mapper_and_a_refusing_one_give_different_errors() {
        let absent = DeviceMapper::open_at(Path::new("/nonexistent/control"));
        assert!(matches!(absent, Err(DmError::Absent)), "{absent:?}");
        // The file opens and has no such ioctl.
        let other = DeviceMapper::open_at(Path::new("/dev/null"));
        assert!(matches!(other, Err(DmError::Call { .. })), "{other:?}");
    }
}
