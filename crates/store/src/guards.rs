//! What other parts of the store have a say in. Each function is called at one place, before the work that it can refuse.

use std::path::Path;

use crate::db::WriteTransaction;
use crate::error::StoreError;
use crate::names::BranchId;
use crate::path::EntryPath;

/// Refuses a write that would leave less than the reserve of the file system that this folder is on.
pub(crate) fn check_reserve(_folder: &Path, _bytes: u64) -> Result<(), StoreError> {
    // The reserve is looked at by the part that has its file. Until then a full disk is found by the write itself.
    Ok(())
}

/// Whether contents may be removed. A repair from an older copy of the names holds them: names that it brings back may lead
/// to contents that look unused.
pub(crate) fn is_removal_allowed(_tx: &WriteTransaction<'_>) -> Result<bool, StoreError> {
    Ok(true)
}

/// Refuses the commit of a session while another owner has the advisory lock of the path.
pub(crate) fn check_path_lock(
    _tx: &WriteTransaction<'_>,
    _branch: BranchId,
    _path: &EntryPath,
    _identity: &str,
) -> Result<(), StoreError> {
    Ok(())
}
