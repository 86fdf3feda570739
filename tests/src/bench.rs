//! Files and keys that belong to one test and are removed with it.

use std::path::{Path, PathBuf};

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::ScratchDir;

use crate::cli::CliRunner;
use crate::host::HostNode;
use crate::image::BuiltImageFolder;
use crate::node::{BootVariant, MachineBuilder};

/// Size of a test's data disk, which is sparse.
pub(crate) const DATA_BYTES: u64 = 1 << 30;

/// A folder, an administrator with a new key, and disks that outlive a machine.
#[derive(Debug)]
pub struct TestBench {
    folder: ScratchDir,
    admin: CliRunner,
}

impl Default for TestBench {
    fn default() -> Self {
        Self::new()
    }
}

impl TestBench {
    /// A new bench.
    ///
    /// # Panics
    /// The temporary directory cannot be written.
    pub fn new() -> Self {
        // A bench that a killed run left has disks. The next process that makes a bench removes it.
        let folder = ScratchDir::new().unwrap_or_else(|error| panic!("{error}"));
        let admin = CliRunner::new(folder.path().join("admin"));
        Self { folder, admin }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The administrator.
    pub fn admin(&self) -> &CliRunner {
        &self.admin
    }

    /// The command line of another user, with a new key and no rights on any node.
    pub fn user(&self, name: &str) -> CliRunner {
        CliRunner::new(self.path().join(name))
    }

    /// A machine that boots the image, administered by [`admin`](Self::admin), with QEMU's network
    /// and, unless changed, with this bench's data disk.
    pub fn machine(&self, boot: BootVariant) -> MachineBuilder<'_> {
        MachineBuilder::new(self, boot)
    }

    /// The node on this host.
    pub fn host(&self) -> HostNode {
        HostNode::start(&self.path().join("host"), &self.admin)
    }

    /// The same with this configuration, stored as `node.toml` in the folder.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn host_with(&self, config: &str) -> HostNode {
        self.host_at(0, config)
    }

    /// The same on this port. 0 means a free port.
    ///
    /// # Panics
    /// As [`host_with`](Self::host_with).
    pub fn host_at(&self, port: u16, config: &str) -> HostNode {
        let file = self.path().join("node.toml");
        std::fs::write(&file, config).expect("the folder is ours");
        let state = self.path().join("host");
        HostNode::start_at(&state, &self.admin, Some(&file), port)
    }

    /// The same as [`host_with`](Self::host_with), on a machine that seems to the node to have this
    /// much memory. `None` without root, see [`HostNode::start_on`].
    ///
    /// # Panics
    /// As [`host_with`](Self::host_with).
    pub fn host_on(&self, memory_bytes: u64, config: &str) -> Option<HostNode> {
        let file = self.path().join("node.toml");
        std::fs::write(&file, config).expect("the folder is ours");
        let state = self.path().join("host");
        HostNode::start_on(memory_bytes, &state, &self.admin, Some(&file))
    }

    /// The same as [`host_with`](Self::host_with), with an allocator that keeps no freed memory.
    ///
    /// # Panics
    /// As [`host_with`](Self::host_with).
    pub fn host_without_free_memory(&self, config: &str) -> HostNode {
        let file = self.path().join("node.toml");
        std::fs::write(&file, config).expect("the folder is ours");
        let state = self.path().join("host");
        HostNode::start_without_free_memory(&state, &self.admin, Some(&file))
    }

    /// The same as [`host_with`](Self::host_with), with so many files that the node may have open.
    ///
    /// # Panics
    /// As [`host_with`](Self::host_with).
    pub fn host_with_files(&self, files: u64, config: &str) -> HostNode {
        let file = self.path().join("node.toml");
        std::fs::write(&file, config).expect("the folder is ours");
        let state = self.path().join("host");
        HostNode::start_with_files(files, &state, &self.admin, Some(&file))
    }

    /// The same as [`host_with`](Self::host_with), with its state on a file system of so many bytes and inodes. `None`
    /// without root, see [`HostNode::start_on_disk`].
    ///
    /// # Panics
    /// As [`host_with`](Self::host_with).
    pub fn host_on_disk(&self, disk: (u64, u64), config: &str) -> Option<HostNode> {
        let file = self.path().join("node.toml");
        std::fs::write(&file, config).expect("the folder is ours");
        let state = self.path().join("host");
        HostNode::start_on_disk(disk, &state, &self.admin, Some(&file))
    }

    /// The data disk, blank at first.
    ///
    /// # Panics
    /// It cannot be created.
    pub fn data(&self) -> PathBuf {
        self.data_of(DATA_BYTES)
    }

    /// The same with another size, if this is the first call for it.
    pub(crate) fn data_of(&self, bytes: u64) -> PathBuf {
        self.disk("data", bytes)
    }

    /// A disk of `bytes`, blank at first.
    ///
    /// # Panics
    /// It cannot be created.
    pub fn disk(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path().join(format!("{name}.raw"));
        if !path.exists() {
            alknet_qemu::blank(&path, bytes).unwrap_or_else(|error| panic!("{error}"));
        }
        path
    }

    /// This bench's copy of the raw image, enlarged as on a disk larger than the image.
    ///
    /// # Panics
    /// It cannot be created.
    pub fn raw(&self) -> PathBuf {
        let path = self.path().join("raw.raw");
        if !path.exists() {
            let image = BuiltImageFolder::get().file(ImageForm::Raw, OutputRole::Disk);
            alknet_qemu::copy(&image, &path).unwrap_or_else(|error| panic!("{error}"));
            grow(&path, DATA_BYTES).expect("the file is ours");
        }
        path
    }
}

fn grow(path: &Path, by: u64) -> std::io::Result<()> {
    let file = std::fs::File::options().write(true).open(path)?;
    file.set_len(file.metadata()?.len() + by)
}
