//! The check of all stored files against their ids: a disk may return other bytes than it was given, or none.

use std::io;

use alknet_objects::{ObjectDamage, ObjectScrub};
use alknet_tensor::FileId;

use super::TensorStore;
use crate::limits::SCRUB_NAMED;

/// What a check has found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreScrubReport {
    /// Files that were read to their end.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// The first damaged files, of which [`SCRUB_NAMED`](crate::limits::SCRUB_NAMED) are named at most.
    pub damaged: Vec<FileId>,
    /// All damaged files.
    pub damaged_files: u64,
}

/// A check of a store under way. It holds one open file, and one open folder.
#[derive(Debug, Default)]
pub struct StoredFileScrub {
    report: StoreScrubReport,
    objects: ObjectScrub,
}

impl StoredFileScrub {
    /// What was found so far.
    #[must_use]
    pub const fn report(&self) -> &StoreScrubReport {
        &self.report
    }
}

impl TensorStore {
    /// Reads about `bytes` more bytes of stored files, each from the disk and not from the kernel's cache, and compares
    /// each whole file with its id. Returns whether there are more. Changes nothing: a damaged file stays until it is
    /// removed, or stored again. Blocks.
    ///
    /// # Errors
    /// A folder of the store cannot be read.
    pub fn scrub(&self, scrub: &mut StoredFileScrub, bytes: u64) -> io::Result<bool> {
        let mut left = bytes;
        while left > 0 {
            let step = self.objects.scrub(&mut scrub.objects, left);
            let Some(step) = step.map_err(io::Error::other)? else {
                return Ok(false);
            };
            scrub.report.bytes += step.bytes;
            // A file without bytes takes its turn as well.
            left = left.saturating_sub(step.bytes.max(1));
            if let Some(checked) = step.checked {
                scrub.report.files += 1;
                if let Some(damage) = checked.damage {
                    scrub.report.add_damaged(FileId(checked.hash), &damage);
                }
            }
        }
        Ok(true)
    }
}

impl StoreScrubReport {
    fn add_damaged(&mut self, id: FileId, why: &ObjectDamage) {
        tracing::error!(file = %id, "damaged in the store of tensors: {why}");
        self.damaged_files += 1;
        if self.damaged.len() < SCRUB_NAMED {
            self.damaged.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Cursor;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use alknet_tensor::{ContainerWriter, Dtype};

    use super::*;
    use crate::{StoreOptions, StorePath};

    /// A store with files of different lengths.
    fn store(files: u8) -> (tempfile::TempDir, Arc<TensorStore>, Vec<FileId>) {
        let folder = tempfile::tempdir().expect("writable");
        let store = TensorStore::open(folder.path(), StoreOptions::default()).expect("writable");
        let ids = (0..files).map(|n| {
            let mut writer = ContainerWriter::new(Cursor::new(Vec::new()));
            let bytes = 1_000 * usize::from(n) + 1;
            let content = vec![n; bytes].into();
            let shape = [bytes as u64];
            writer
                .flat("x", Dtype::U8, &shape, content)
                .expect("it fits");
            let file = writer.finish().expect("memory").1.into_inner();
            let path = StorePath::parse(&format!("file{n}")).expect("a path");
            store.add(file.as_slice(), Some(path)).expect("a good file")
        });
        let ids = ids.collect();
        (folder, store, ids)
    }

    /// Reads the whole store in pieces. Returns the report and the number of pieces.
    fn scrub(store: &TensorStore, bytes: u64) -> (StoreScrubReport, usize) {
        let mut scrub = StoredFileScrub::default();
        let mut pieces = 1;
        while store.scrub(&mut scrub, bytes).expect("readable") {
            pieces += 1;
        }
        (scrub.report().clone(), pieces)
    }

    fn flip(store: &TensorStore, id: &FileId) {
        let path = store.object_path(id);
        let file = File::options().read(true).write(true).open(path);
        let file = file.expect("it is stored");
        let last = file.metadata().expect("a file").len() - 1;
        let mut byte = [0];
        file.read_exact_at(&mut byte, last).expect("within");
        file.write_all_at(&[byte[0] ^ 1], last).expect("within");
    }

    #[test]
    fn whole_files_are_read_in_pieces_and_damaged_ones_are_named() {
        let (_folder, store, ids) = store(9);
        let (whole, pieces) = scrub(&store, 500);
        let length = |id| fs::metadata(store.object_path(id)).expect("stored").len();
        let bytes: u64 = ids.iter().map(length).sum();
        let expected = StoreScrubReport {
            files: 9,
            bytes,
            ..StoreScrubReport::default()
        };
        assert_eq!(whole, expected);
        assert!(pieces as u64 >= bytes / 500, "{pieces} pieces");
        flip(&store, &ids[4]);
        for bytes in [500, u64::MAX] {
            let (found, _) = scrub(&store, bytes);
            assert_eq!(
                (found.damaged.as_slice(), found.damaged_files),
                (&ids[4..5], 1)
            );
        }
        store
            .remove(&StorePath::parse("file4").expect("a path"))
            .expect("it is there");
        assert_eq!(scrub(&store, 500).0.damaged_files, 0);
    }

    #[test]
    fn a_file_that_was_removed_meanwhile_is_not_damaged() {
        let (_folder, store, ids) = store(1);
        flip(&store, &ids[0]);
        let mut scrub = StoredFileScrub::default();
        assert!(store.scrub(&mut scrub, 10).expect("readable"));
        assert_eq!(scrub.report().files, 0, "it is being read");
        store
            .remove(&StorePath::parse("file0").expect("a path"))
            .expect("it is there");
        assert!(!store.scrub(&mut scrub, u64::MAX).expect("readable"));
        assert_eq!(scrub.report().damaged, []);
        assert_eq!(scrub.report().files, 1);
    }

    #[test]
    fn few_of_many_damaged_files_are_named() {
        let (_folder, store, ids) = store(20);
        ids.iter().for_each(|id| flip(&store, id));
        let (found, _) = scrub(&store, u64::MAX);
        assert_eq!(
            (found.damaged.len(), found.damaged_files),
            (SCRUB_NAMED, 20)
        );
    }
}
