//! Trees of many entries, made by the library: each entry has a content of its own, whose bytes exist nowhere.

use alknet_store::limits::BATCH_CHANGES_MAX;
use alknet_store::{
    BranchId, ChangeRequest, ContentHash, Durability, EntryPath, FileContent, NewBucket, StoreDb,
    StoreError, TreeChange,
};

use crate::call::measure::failed;
use alknet_tasks::failure::{Result, TaskError};

/// Who makes the changes.
pub(super) const ACTOR: &str = "bench";

/// Files of each directory of a tree.
pub(super) const DIRECTORY_FILES: usize = 1000;

/// Bytes that each content claims to have.
const CONTENT_BYTES: u64 = 1000;

/// For `map_err`: the store refused a read or a change.
pub(super) fn store_failed(error: StoreError) -> TaskError {
    failed("the store")(error)
}

/// A bucket without a quota, and its branch.
pub(super) fn make_bucket(db: &StoreDb, name: &str) -> Result<BranchId> {
    let mut bucket = NewBucket::new(name.parse().map_err(failed("naming a bucket"))?, ACTOR);
    bucket.quota_bytes = None;
    bucket.quota_entries = None;
    let made = db.write(move |tx| tx.create_bucket(&bucket)).wait();
    let (_, main) = made.map_err(store_failed)?;
    Ok(main.id)
}

/// Name of a file. Names have the order of their numbers.
pub(super) fn file_name(number: usize) -> String {
    format!("file-{number:07}")
}

/// Path of a file in a directory of many.
pub(super) fn flat_path(directory: &str, number: usize) -> String {
    format!("/{directory}/{}", file_name(number))
}

/// Path of a file in a tree of directories.
pub(super) fn tree_path(number: usize) -> String {
    let directory = number / DIRECTORY_FILES;
    format!("/tree/{directory:04}/{}", file_name(number))
}

/// Puts files at paths, each with a content of its own.
pub(super) fn fill(
    db: &StoreDb,
    branch: BranchId,
    paths: impl Iterator<Item = String>,
) -> Result<()> {
    let mut paths = paths.peekable();
    while paths.peek().is_some() {
        let puts = paths.by_ref().take(BATCH_CHANGES_MAX);
        let puts = puts.map(|path| put_version(&path, 0));
        let request = ChangeRequest {
            branch,
            actor: ACTOR.to_owned(),
            message: None,
            changes: puts.collect::<Result<_>>()?,
        };
        // Nothing here is to outlive a power cut.
        let written = db.write_with(Durability::Normal, move |tx| tx.apply(&request));
        written.wait().map_err(store_failed)?;
    }
    Ok(())
}

/// The put of this version of a file.
pub(super) fn put_version(path: &str, version: u64) -> Result<TreeChange> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(path.as_bytes());
    hasher.update(&version.to_le_bytes());
    let hash = ContentHash::new(*hasher.finalize().as_bytes());
    Ok(TreeChange::put(
        parse_path(path)?,
        FileContent::new(hash, CONTENT_BYTES),
    ))
}

/// A path of an entry.
pub(super) fn parse_path(path: &str) -> Result<EntryPath> {
    path.parse().map_err(failed("naming an entry"))
}

#[cfg(test)]
mod tests {
    use alknet_store::{ListRequest, StoreDbOptions};

    use super::*;

    #[test]
    fn a_tree_has_every_file_in_directories() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fs.db");
        let db = StoreDb::open(&path, StoreDbOptions::default()).expect("it opens");
        let main = make_bucket(&db, "bench").expect("a bucket");
        let count = DIRECTORY_FILES + 1;
        fill(&db, main, (0..count).map(tree_path)).expect("filled");
        let listed = db.read(move |tx| {
            let request = ListRequest {
                is_recursive: true,
                ..ListRequest::new("/tree".parse()?)
            };
            tx.list(&tx.view(main, None)?, &request)
        });
        let page = listed.wait().expect("listed");
        // Both directories come first.
        assert!(page.entries[0].state.is_directory() && page.entries[1].state.is_directory());
        assert!(page.next.is_some(), "it is longer than a page");
    }
}
