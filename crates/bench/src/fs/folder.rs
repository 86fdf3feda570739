//! Folders in which servers keep their files.

use std::fs::File;
use std::path::Path;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::TempDir;

use crate::call::measure::failed;
use alknet_tasks::failure::{Result, TaskError};

/// A folder on a disk, removed on drop. In memory a sync costs nothing, so that durable writes would mean nothing.
pub(super) fn disk_folder() -> Result<TempDir> {
    let folder = tempfile::tempdir().map_err(TaskError::io("make a folder"))?;
    let system = statfs(folder.path()).map_err(failed("looking at a file system"))?;
    match system.filesystem_type() == TMPFS_MAGIC {
        true => Err(TaskError::Arguments(format!(
            "{} is in memory: set TMPDIR to a folder on a disk",
            folder.path().display()
        ))),
        false => Ok(folder),
    }
}

/// Writes back what earlier servers left in memory: the next one would wait for their bytes.
pub(super) fn settle_disk() {
    nix::unistd::sync();
}

/// Makes the bytes of a file that another program wrote durable.
pub(super) fn sync_file(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(TaskError::io(format!("open {}", path.display())))?;
    file.sync_all().map_err(TaskError::io("sync a file"))
}
