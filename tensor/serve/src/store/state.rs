//! What a store holds, as it was read at the start and changed since.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use alknet_tensor::{FileId, TensorErrorCode};

use crate::error::ServeError;
use crate::limits::PATHS;
use crate::path::StorePath;
use crate::store::{Object, bytes_on_disk};

/// Depth to which the store searches folders for paths: as many as a path has segments.
const DEPTH_MAX: usize = crate::limits::PATH_SEGMENTS;
/// Bytes for the file of a path, and for a folder of paths: each has one block.
const NAME_BYTES: u64 = bytes_on_disk(1);

/// The most bytes that a path takes of the disk: no other path may need its folders.
pub(super) fn path_bytes_max(path: &StorePath) -> u64 {
    NAME_BYTES.saturating_mul(path.as_str().split('/').count() as u64)
}

#[derive(Debug, Default)]
pub(super) struct TensorStoreState {
    /// Bytes that objects, paths, and uploads that have begun take of the disk.
    pub(super) used: u64,
    pub(super) paths: BTreeMap<StorePath, FileId>,
    /// The paths that lead to each file.
    pub(super) names: BTreeMap<[u8; 32], BTreeSet<StorePath>>,
    /// Files that were opened last, the most recent one at the end.
    pub(super) open: Vec<Arc<Object>>,
}

impl TensorStoreState {
    pub(super) fn lead(&mut self, path: StorePath, id: FileId) {
        self.forget_path(&path);
        self.used = self.used.saturating_add(self.path_bytes(&path));
        self.paths.insert(path.clone(), id);
        self.names.entry(*id.0.as_bytes()).or_default().insert(path);
    }

    /// Forgets a path.
    pub(super) fn forget_path(&mut self, path: &StorePath) {
        let Some(id) = self.paths.remove(path) else {
            return;
        };
        if let Some(names) = self.names.get_mut(id.0.as_bytes()) {
            names.remove(path);
        }
        self.used = self.used.saturating_sub(self.path_bytes(path));
    }

    /// Bytes of the disk for a path that the table does not have: for its file, and for each folder above it that no
    /// other path needs.
    fn path_bytes(&self, path: &StorePath) -> u64 {
        let path = path.as_str();
        let is_missing = |at: &usize| {
            let folder = &path[..=*at];
            let mut within = self
                .paths
                .range::<str, _>((Bound::Included(folder), Bound::Unbounded));
            within
                .next()
                .is_none_or(|(other, _)| !other.as_str().starts_with(folder))
        };
        let folders = path.match_indices('/').map(|(at, _)| at);
        NAME_BYTES.saturating_mul(1 + folders.filter(is_missing).count() as u64)
    }

    /// Whether no path leads to a file.
    pub(super) fn is_free(&self, id: &FileId) -> bool {
        let names = self.names.get(id.0.as_bytes());
        names.is_none_or(BTreeSet::is_empty)
    }
}

/// Reads every path below a folder.
pub(super) fn paths(
    folder: &Path,
    prefix: &str,
    depth: usize,
    state: &mut TensorStoreState,
) -> Result<(), ServeError> {
    let io = |error| ServeError::io(format_args!("read {}", folder.display()), error);
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let path = format!("{prefix}{}", name.to_string_lossy());
        if entry.file_type().map_err(io)?.is_dir() {
            if depth < DEPTH_MAX {
                paths(&entry.path(), &format!("{path}/"), depth + 1, state)?;
            }
            continue;
        }
        if state.paths.len() >= PATHS {
            let what = format!("{}: more than {PATHS} paths", folder.display());
            return Err(ServeError::input(TensorErrorCode::Limit, what));
        }
        let mut text = String::new();
        // An id is 64 digits; a file with other content leads nowhere.
        let read =
            File::open(entry.path()).and_then(|file| file.take(66).read_to_string(&mut text));
        match (
            read,
            text.trim_end().parse::<FileId>(),
            StorePath::parse(&path),
        ) {
            (Ok(_), Ok(id), Ok(path)) => state.lead(path, id),
            (Err(error), ..) => tracing::warn!(
                "{} in the store of tensors cannot be read and leads nowhere: {error}",
                entry.path().display()
            ),
            _ => tracing::warn!(
                "{} in the store of tensors leads nowhere",
                entry.path().display()
            ),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_count_once_and_as_long_as_a_path_needs_them() {
        let mut state = TensorStoreState::default();
        let id = FileId(blake3::hash(b"x"));
        let path = |text: &str| StorePath::parse(text).expect("a path");
        let mut entries = Vec::new();
        for name in ["a/b/c", "a/b/d", "a-b", "a/bc", "a/b/c"] {
            state.lead(path(name), id);
            entries.push(state.used / NAME_BYTES);
        }
        assert_eq!(entries, [3, 4, 5, 6, 6]);
        entries.clear();
        for name in ["a/b/c", "a/b/c", "a/b/d", "a/bc", "a-b"] {
            state.forget_path(&path(name));
            entries.push(state.used / NAME_BYTES);
        }
        assert_eq!(entries, [5, 5, 3, 1, 0]);
        assert_eq!(
            (state.used, path_bytes_max(&path("a/b/c"))),
            (0, 3 * NAME_BYTES)
        );
    }
}
