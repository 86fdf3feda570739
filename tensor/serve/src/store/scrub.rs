//! The check of all stored files against their ids: a disk may return other bytes than it was given, or none.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;

use alknet_tensor::FileId;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{OBJECTS, TensorStore};
use crate::limits::{BLOCK_BYTES, SCRUB_NAMED};

/// Folders below the folder of objects: one for each pair of digits.
const FOLDERS: u16 = 256;

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

/// A check of a store under way. It holds one open file, and the names of one folder of 256.
#[derive(Debug, Default)]
pub struct StoredFileScrub {
    report: StoreScrubReport,
    /// The next folder.
    folder: u16,
    /// Files of the folder before it that were not read yet.
    waiting: Vec<FileId>,
    open: Option<OpenedFile>,
}

#[derive(Debug)]
struct OpenedFile {
    id: FileId,
    file: File,
    hasher: blake3::Hasher,
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
            if scrub.open.is_none() && !self.open_next(scrub)? {
                return Ok(false);
            }
            let Some(opened) = &mut scrub.open else {
                continue;
            };
            let read = opened.read(left);
            let is_done = !matches!(read, Ok(read) if read > 0);
            let read_bytes = *read.as_ref().unwrap_or(&0);
            scrub.report.bytes += read_bytes;
            // A file without bytes takes its turn as well.
            left = left.saturating_sub(read_bytes.max(1));
            if is_done && let Some(opened) = scrub.open.take() {
                opened.finish(read.err(), &mut scrub.report);
            }
        }
        Ok(true)
    }

    /// Opens the next file. Returns whether there is one.
    fn open_next(&self, scrub: &mut StoredFileScrub) -> io::Result<bool> {
        loop {
            let Some(id) = scrub.waiting.pop() else {
                if scrub.folder == FOLDERS {
                    return Ok(false);
                }
                scrub.waiting = self.ids_in(scrub.folder)?;
                scrub.folder += 1;
                continue;
            };
            match File::open(self.object_path(&id)) {
                Ok(file) => {
                    scrub.open = Some(OpenedFile::new(id, file));
                    return Ok(true);
                }
                // It was removed after the folder was read.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => scrub.report.add_damaged(id, &error.to_string()),
            }
        }
    }

    fn ids_in(&self, folder: u16) -> io::Result<Vec<FileId>> {
        let folder = self.root.join(OBJECTS).join(format!("{folder:02x}"));
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            // A file of another name is not of the store.
            ids.extend(
                entry?
                    .file_name()
                    .to_str()
                    .and_then(|it| it.parse::<FileId>().ok()),
            );
        }
        Ok(ids)
    }
}

impl OpenedFile {
    fn new(id: FileId, file: File) -> Self {
        // The kernel drops what it has of the file, so that the disk is read. Where it does not, the check sees the
        // memory of the kernel, which is still worth a comparison.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let hasher = blake3::Hasher::new();
        Self { id, file, hasher }
    }

    /// Reads at most this many bytes. Returns 0 at the end of the file.
    fn read(&mut self, bytes: u64) -> io::Result<u64> {
        let mut block = vec![0; BLOCK_BYTES];
        let mut done = 0;
        while done < bytes {
            let most = usize::try_from(bytes - done).unwrap_or(usize::MAX);
            let read = self.file.read(&mut block[..most.min(BLOCK_BYTES)])?;
            if read == 0 {
                break;
            }
            self.hasher.update(&block[..read]);
            done += read as u64;
        }
        Ok(done)
    }

    fn finish(self, failed: Option<io::Error>, report: &mut StoreScrubReport) {
        // The kernel need not keep in memory what no client asked for.
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        // A file that was removed meanwhile is damaged no more.
        let is_removed = self.file.metadata().is_ok_and(|about| about.nlink() == 0);
        report.files += 1;
        match failed {
            _ if is_removed => {}
            Some(error) => report.add_damaged(self.id, &error.to_string()),
            None if self.hasher.finalize() != self.id.0 => {
                report.add_damaged(self.id, "other bytes");
            }
            None => {}
        }
    }
}

impl StoreScrubReport {
    fn add_damaged(&mut self, id: FileId, why: &str) {
        tracing::error!(file = %id, "damaged in the store of tensors: {why}");
        self.damaged_files += 1;
        if self.damaged.len() < SCRUB_NAMED {
            self.damaged.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert!(scrub.open.is_some(), "it is being read");
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
