//! A folder of objects that goes away, and what the tests store there.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use alknet_objects::{ObjectError, ObjectFolder, OutboardPolicy};
use blake3::Hash;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

pub(crate) const GROUP: usize = 16 << 10;

/// Lengths around those at which something changes.
pub(crate) const SIZES: [usize; 6] = [0, 1, GROUP - 1, GROUP, GROUP + 1, (4 << 20) + 1];

/// An outboard for each object that a reader wanted.
pub(crate) const CACHED: OutboardPolicy = OutboardPolicy::Cached {
    count_max: 1024,
    bytes_max: 1 << 30,
};

pub(crate) struct ObjectScene {
    pub(crate) objects: Arc<ObjectFolder>,
    pub(crate) folder: tempfile::TempDir,
}

impl ObjectScene {
    pub(crate) fn new(outboards: OutboardPolicy) -> Self {
        let folder = tempfile::tempdir().expect("writable");
        let objects = ObjectFolder::open(folder.path(), outboards).expect("the folder is ours");
        Self { objects, folder }
    }

    /// Stores content that comes in pieces of this many bytes.
    pub(crate) fn store(&self, content: &[u8], piece: usize) -> Hash {
        let mut staged = self.objects.stage().expect("writable");
        for (at, bytes) in content.chunks(piece).enumerate() {
            staged.write_at((at * piece) as u64, bytes).expect("room");
        }
        staged.place().expect("room").hash()
    }

    pub(crate) fn outboard(&self, hash: &Hash, size: usize) -> PathBuf {
        self.path(&format!("outboards/{hash}-0-{size}"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Files in a folder of the store.
    pub(crate) fn count(&self, folder: &str) -> usize {
        let entries = fs::read_dir(self.path(folder)).expect("readable");
        entries.count()
    }
}

/// Runs this in a thread that the permission bits of files bind, also where the tests run as root.
pub(crate) fn bound_by_permissions<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let bound = || {
        let mut sets = capabilities(None).expect("they are its own");
        let beyond = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        sets.effective.remove(beyond);
        set_capabilities(None, sets).expect("a thread may have fewer");
        work()
    };
    thread::scope(|scope| scope.spawn(bound).join().expect("it does not panic"))
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

pub(crate) fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 % 251) as u8).collect()
}

/// The verified bytes of a whole object, up to the error if there is one.
pub(crate) fn read(objects: &ObjectFolder, hash: &Hash) -> (Vec<u8>, Option<ObjectError>) {
    let mut bytes = Vec::new();
    let reader = objects.reader(hash);
    let blocks = reader.and_then(|reader| reader.bytes(0..reader.size()));
    let blocks = match blocks {
        Ok(blocks) => blocks,
        Err(error) => return (bytes, Some(error)),
    };
    for block in blocks {
        match block {
            Ok(block) => bytes.extend(block),
            Err(error) => return (bytes, Some(error)),
        }
    }
    (bytes, None)
}
