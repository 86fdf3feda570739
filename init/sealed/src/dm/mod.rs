//! The device mapper, spoken to by its ioctls: no library, no udev, no other program.
//!
//! Mappings are called and numbered as stock cryptsetup does it, which therefore shows, resizes and
//! closes them.

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

/// Where the kernel's device mapper is spoken to.
const CONTROL: &str = "/dev/mapper/control";
/// Type and number of its ioctls: read and write, a head of 312 bytes.
const IOCTL: libc::c_ulong = 0xc138_fd00;
/// The oldest interface that is spoken: 4.2 removes mappings later.
const INTERFACE: (u32, u32) = (4, 27);
/// Answers are expected to be no longer than this, bytes; longer ones are asked for again.
const ANSWER_BYTES: usize = 16 << 10;

/// What the kernel is asked for.
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

/// Why the device mapper did not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmError {
    /// The kernel has none.
    #[error("{CONTROL} is missing: the kernel needs CONFIG_BLK_DEV_DM and CONFIG_DM_CRYPT")]
    Absent,
    /// It answered something that cannot be.
    #[error("the device mapper answered what it never should: {0}")]
    Answer(&'static str),
    /// A process has the mapping open.
    #[error("the mapping {0} is in use; unmount what is on it")]
    Busy(String),
    /// Any other refusal.
    #[error("the device mapper cannot {what}: {source}")]
    Call {
        /// What was asked, as a verb.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A mapping of this name or uuid is there.
    #[error("there is a mapping {0} already; close it first")]
    Exists(String),
    /// A name is empty, too long or has characters that names do not have.
    #[error("{0:?} is no name for a mapping")]
    Name(String),
    /// There is no such mapping.
    #[error("there is no mapping {0}")]
    NotFound(String),
    /// It speaks an interface of before Linux 3.13.
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
        /// What the kernel said.
        source: io::Error,
    },
}

/// The state of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmStatus {
    /// Its name.
    pub name: String,
    /// Its uuid, which says who made it.
    pub uuid: String,
    /// Major and minor number of its block device.
    pub device: (u32, u32),
    /// How often it is open.
    pub open_count: u32,
    /// Whether it stands still.
    pub suspended: bool,
    /// Whether it has a table.
    pub active: bool,
    /// Whether it goes when it is no longer open.
    pub leaving: bool,
}

/// A mapping in the kernel's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmMapping {
    /// Its name.
    pub name: String,
    /// Major and minor number of its block device.
    pub device: (u32, u32),
}

/// When to remove a mapping that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmRemoval {
    /// When the last process has closed it.
    Deferred,
    /// Not at all.
    Now,
}

/// The device mapper.
#[derive(Debug)]
pub struct DeviceMapper {
    file: File,
    version: (u32, u32, u32),
}

impl DeviceMapper {
    /// Opens it and asks which interface it speaks.
    pub fn open() -> Result<Self, DmError> {
        Self::open_at(Path::new(CONTROL))
    }

    fn open_at(path: &Path) -> Result<Self, DmError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|source| match source.kind() {
            ErrorKind::NotFound => DmError::Absent,
            // The node may be there without the driver behind it.
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

    /// Makes a mapping without a table.
    pub fn create(&self, name: &str, uuid: &str) -> Result<DmStatus, DmError> {
        let message = DmMessage::new().name(name)?.uuid(uuid)?;
        match self.call(DmIoctl::Create, message) {
            Err(DmError::Call { source, .. }) if is(&source, Errno::EBUSY) => {
                Err(DmError::Exists(name.to_owned()))
            }
            answer => answer?.status(),
        }
    }

    /// Gives a mapping its next table, which counts from the next [`resume`](Self::resume) on.
    pub fn load(&self, name: &str, table: &CryptTable) -> Result<(), DmError> {
        // The kernel wipes its copy of the buffer: the table names the key and where the data are.
        let flags = flags::SECURE_DATA | if table.read_only { flags::READ_ONLY } else { 0 };
        let message = DmMessage::new().name(name)?.flags(flags).table(table)?;
        refused(self.named(DmIoctl::Load, name, message), table).map(drop)
    }

    /// Gives a mapping its table and lets it run with it. If the kernel refuses, it runs on with the
    /// table it has, if it has one.
    pub fn run(&self, name: &str, table: &CryptTable) -> Result<DmStatus, DmError> {
        self.load(name, table)?;
        // That the partition is too short is only found out here.
        let outcome = refused(self.resume(name), table);
        if outcome.is_err() {
            // The refused table must not wait for the next time, and the kernel has stopped the old
            // one for the change. What was refused matters more than either.
            drop(self.clear(name));
            drop(self.resume(name));
        }
        outcome
    }

    /// Forgets the next table.
    pub fn clear(&self, name: &str) -> Result<(), DmError> {
        let message = DmMessage::new().name(name)?;
        self.named(DmIoctl::Clear, name, message).map(drop)
    }

    /// Lets a mapping run, with its next table if there is one.
    pub fn resume(&self, name: &str) -> Result<DmStatus, DmError> {
        // What is mounted on it need not stand still for a table that only grew.
        let message = DmMessage::new().name(name)?.flags(flags::SKIP_LOCK_FS);
        self.named(DmIoctl::Suspend, name, message)?.status()
    }

    /// Makes a mapping stand still, when everything written to it is on the disk.
    pub fn suspend(&self, name: &str) -> Result<DmStatus, DmError> {
        let message = DmMessage::new().name(name)?.flags(flags::SUSPEND);
        self.named(DmIoctl::Suspend, name, message)?.status()
    }

    /// Removes a mapping. Answers whether it is gone; a deferred one goes later.
    pub fn remove(&self, name: &str, removal: DmRemoval) -> Result<bool, DmError> {
        let deferred = match removal {
            DmRemoval::Deferred => flags::DEFERRED_REMOVE,
            DmRemoval::Now => 0,
        };
        let message = DmMessage::new().name(name)?.flags(deferred);
        match self.named(DmIoctl::Remove, name, message) {
            Err(DmError::Call { source, .. }) if is(&source, Errno::EBUSY) => {
                Err(DmError::Busy(name.to_owned()))
            }
            answer => Ok(!answer?.has(flags::DEFERRED_REMOVE)),
        }
    }

    /// The state of a mapping.
    pub fn status(&self, name: &str) -> Result<DmStatus, DmError> {
        let message = DmMessage::new().name(name)?;
        self.named(DmIoctl::Status, name, message)?.status()
    }

    /// The table that counts. Of a key in the keyring, it has the name.
    pub fn table(&self, name: &str) -> Result<Vec<DmTarget>, DmError> {
        let message = DmMessage::new().name(name)?.flags(flags::STATUS_TABLE);
        self.named(DmIoctl::TableStatus, name, message)?.targets()
    }

    /// Every mapping.
    pub fn list(&self) -> Result<Vec<DmMapping>, DmError> {
        self.call(DmIoctl::List, DmMessage::new())?.names()
    }

    fn named(&self, call: DmIoctl, name: &str, message: DmMessage) -> Result<DmMessage, DmError> {
        match self.call(call, message) {
            Err(DmError::Call { source, .. }) if is(&source, Errno::ENXIO) => {
                Err(DmError::NotFound(name.to_owned()))
            }
            other => other,
        }
    }

    /// Asks, with more room where the answer did not fit.
    fn call(&self, call: DmIoctl, message: DmMessage) -> Result<DmMessage, DmError> {
        let mut room = ANSWER_BYTES;
        loop {
            let mut attempt = message.with_room(room);
            self.ioctl(call, &mut attempt)?;
            if !attempt.has(flags::BUFFER_FULL) {
                return Ok(attempt);
            }
            room *= 2;
            if room > ANSWER_BYTES_MAX {
                return Err(DmError::Answer("more than a mebibyte"));
            }
        }
    }

    fn ioctl(&self, call: DmIoctl, message: &mut DmMessage) -> Result<(), DmError> {
        let request = IOCTL | call as libc::c_ulong;
        let bytes = message.bytes_mut();
        // SAFETY: the kernel reads the length of the buffer from its head, where it is what the
        // buffer has, and reads and writes no more than that.
        let outcome = unsafe { libc::ioctl(self.file.as_raw_fd(), request, bytes.as_mut_ptr()) };
        let outcome = Errno::result(outcome).map(drop);
        outcome.map_err(|errno| DmError::Call {
            what: call.name(),
            source: errno.into(),
        })
    }
}

/// Makes a node for a block device, where no devtmpfs does it. One that is there is replaced.
pub(crate) fn make_node(path: &Path, device: (u32, u32)) -> io::Result<()> {
    // A node that was left behind may name another device by now.
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

/// What the kernel says against a table.
fn refused<T>(outcome: Result<T, DmError>, table: &CryptTable) -> Result<T, DmError> {
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
        // It opens and knows no such ioctl.
        let other = DeviceMapper::open_at(Path::new("/dev/null"));
        assert!(matches!(other, Err(DmError::Call { .. })), "{other:?}");
    }
}
