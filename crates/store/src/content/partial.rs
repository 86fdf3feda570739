//! Contents that arrive from peers, group by group. What has arrived outlives a restart.
//!
//! The bytes lie in `partials/BUCKET-HEX`, and `partials/BUCKET-HEX.have` says which of them are there. That list is written
//! after the bytes are on the disk. It is not trusted: a content that is whole is hashed before it gets its place.
//!
//! Each bucket that waits for a content receives it for itself. What has arrived for one would otherwise show to another one,
//! and to the peers of that one, which content it waits for, how far it came, and how long it is.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use alknet_objects::ChunkSelection;

use super::put::{PreparedContent, check_file_size};
use super::{ContentFolder, ContentStatus, io_error, object_error};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::{INLINE_BYTES_MAX, PARTIAL_KEPT_TIME, PARTIAL_SAVE_BYTES};
use crate::names::BucketId;
use crate::sessions::ranges::ByteRanges;

/// The folder of contents that arrive, beside the one of objects.
const PARTIALS: &str = "partials";
/// What the name of the list of what is there has behind the hash.
const LIST: &str = "have";
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A content of which a part is here. If it is dropped, the part stays for the next fetch; what came since the last
/// [`save`](Self::save) has to come again.
#[derive(Debug)]
pub struct PartialContent {
    folder: ContentFolder,
    hash: ContentHash,
    size: u64,
    /// Locked for as long as this value exists.
    file: File,
    path: PathBuf,
    have: ByteRanges,
    /// Bytes that came since the list was written.
    unsaved: u64,
}

impl ContentFolder {
    /// Begins to receive a content for a bucket, or goes on with what has arrived of it for this bucket. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails; the content would be larger than any file; [`StoreError::Busy`] while another value for
    /// this bucket and this content exists.
    pub fn receive(
        &self,
        bucket: BucketId,
        hash: ContentHash,
        size: u64,
    ) -> Result<PartialContent, StoreError> {
        check_file_size(size)?;
        let folder = self.partials();
        let path = folder.join(format!("{bucket}-{hash}"));
        let opened = open_locked(&folder, &path);
        let file = opened.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => StoreError::Busy("the content is being fetched already"),
            _ => io_error("open a content that arrives", &error),
        })?;
        let failed = |error| io_error("open a content that arrives", &error);
        let have = read_list(&path, size);
        // A file of another size, or one whose list is gone, begins again.
        let have = have.filter(|_| file.metadata().is_ok_and(|about| about.len() == size));
        if have.is_none() {
            file.set_len(0).map_err(failed)?;
        }
        let partial = PartialContent {
            folder: self.clone(),
            hash,
            size,
            file,
            path,
            have: have.unwrap_or_default(),
            unsaved: 0,
        };
        self.check_space(partial.missing_bytes())?;
        partial.file.set_len(size).map_err(failed)?;
        Ok(partial)
    }

    /// Removes contents that arrive no further: those that no name of their bucket wants any more, and those that got
    /// nothing for [`PARTIAL_KEPT_TIME`]. One that is being received stays. Returns how many were removed. Blocks.
    ///
    /// # Errors
    /// The database refuses a query, or the folder cannot be read.
    pub fn sweep_partials(&self) -> Result<usize, StoreError> {
        let failed = |error: io::Error| io_error("sweep the contents that arrive", &error);
        let listed = match fs::read_dir(self.partials()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            listed => listed.map_err(failed)?,
        };
        let mut removed = 0;
        for file in listed {
            let file = file.map_err(failed)?;
            // A list goes with its content.
            let name = file.file_name();
            let Some((bucket, hash)) = name.to_str().and_then(read_name) else {
                continue;
            };
            let is_wanted = match bucket {
                Some(bucket) => self.is_wanted_in(bucket, hash)?,
                None => false,
            };
            if (!is_wanted || is_stale(&file.path())) && remove_unless_open(&file.path()) {
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Whether names of a bucket lead to a content whose bytes it does not have, or lost.
    fn is_wanted_in(&self, bucket: BucketId, hash: ContentHash) -> Result<bool, StoreError> {
        let status = self.db.read(move |tx| tx.content_status_in(bucket, hash));
        Ok(matches!(
            status.wait()?,
            ContentStatus::Wanted { .. }
                | ContentStatus::Partial { .. }
                | ContentStatus::Bad { .. }
        ))
    }

    fn partials(&self) -> PathBuf {
        let staging = self.objects().staging();
        staging.with_file_name(PARTIALS)
    }
}

impl PartialContent {
    /// BLAKE3 of the whole content.
    #[must_use]
    pub const fn hash(&self) -> ContentHash {
        self.hash
    }

    /// Bytes of the whole content.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are not here.
    #[must_use]
    pub fn missing_bytes(&self) -> u64 {
        self.have.missing_bytes(&(0..self.size))
    }

    /// The groups that are not here, in at most this many ranges.
    #[must_use]
    pub fn missing(&self, ranges_max: usize) -> ChunkSelection {
        if self.size == 0 {
            return ChunkSelection::all();
        }
        let whole = 0..self.size;
        let gaps = self.have.gaps(&whole);
        ChunkSelection::of_groups(gaps.take(ranges_max))
    }

    /// Whether all bytes are here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing_bytes() == 0
    }

    /// Writes bytes that the caller has compared with the hash. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails; or the bytes would lie behind the end.
    pub fn write_verified(&mut self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let end = at.saturating_add(bytes.len() as u64);
        if end > self.size {
            return Err(StoreError::Denied("the bytes lie behind the end"));
        }
        let disk = self.folder.observer.disk();
        let written = disk.write_at(&self.file, at, bytes);
        written.map_err(|error| io_error("write a content that arrives", &error))?;
        self.have.insert(at..end);
        self.unsaved += bytes.len() as u64;
        if self.unsaved >= PARTIAL_SAVE_BYTES {
            self.folder.check_space(PARTIAL_SAVE_BYTES)?;
            self.save()?;
        }
        Ok(())
    }

    /// Notes on the disk what is here, so that a later value goes on with it. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn save(&mut self) -> Result<(), StoreError> {
        if self.unsaved == 0 {
            return Ok(());
        }
        // The bytes before the list that names them.
        let list = format!("{}\n{}\n", self.size, self.have);
        let synced = self.folder.observer.disk().sync_data(&self.file);
        let saved = synced.and_then(|()| {
            alknet_durable::replace(&list_path(&self.path), list.as_bytes(), FILE_MODE)
        });
        saved.map_err(|error| io_error("write a content that arrives", &error))?;
        self.unsaved = 0;
        Ok(())
    }

    /// Notes in the row of the content that a part of it is here, and which peer sent it last. Blocks.
    ///
    /// # Errors
    /// The database refuses the statement.
    pub fn mark_partial(&self, peer: &str) -> Result<(), StoreError> {
        let (hash, peer) = (self.hash, peer.to_owned());
        let marked = self
            .folder
            .db
            .write(move |tx| tx.mark_content_partial(hash, &peer));
        marked.wait()
    }

    /// Gives the whole content its place, as [`ContentFolder::put_staged`]. Its bytes are hashed once more. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails; [`StoreError::ContentUnavailable`] if bytes are missing, or if the disk has other bytes
    /// than arrived. In that case nothing of the content is kept.
    pub fn place(self) -> Result<PreparedContent, StoreError> {
        let hash = self.hash;
        let unavailable = StoreError::ContentUnavailable { hash };
        if !self.is_whole() {
            return Err(unavailable);
        }
        let failed = |error: io::Error| io_error("place a content that arrived", &error);
        let placed = if self.size <= INLINE_BYTES_MAX {
            // At most 16 KiB, so the cast keeps its value.
            let mut bytes = vec![0; self.size as usize];
            self.file.read_exact_at(&mut bytes, 0).map_err(failed)?;
            let prepared = self.folder.put_bytes(&bytes);
            fs::remove_file(&self.path).map_err(failed)?;
            prepared
        } else {
            let staged = self.folder.objects().adopt(&self.path);
            self.folder.put_object(staged.map_err(object_error)?)
        };
        // Without its file the list means nothing, and the next value of this content begins again.
        let list = fs::remove_file(list_path(&self.path));
        if let Err(error) = list
            && error.kind() != ErrorKind::NotFound
        {
            tracing::debug!(%error, "the list of a content that arrived stays");
        }
        let prepared = placed?;
        match prepared.hash() == hash {
            true => Ok(prepared),
            // The object that was placed has no name and no row, so that the next collection removes it.
            false => Err(unavailable),
        }
    }
}

/// Opens the file, and makes it if it is missing. [`ErrorKind::WouldBlock`] while another value has it open.
fn open_locked(folder: &Path, path: &Path) -> io::Result<File> {
    let mut builder = DirBuilder::new();
    match builder.mode(FOLDER_MODE).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.mode(FILE_MODE).open(path)?;
    match file.try_lock() {
        // A sweep may have removed the name before the lock was taken.
        Ok(()) if fs::metadata(path)?.ino() == file.metadata()?.ino() => Ok(file),
        Ok(()) => Err(ErrorKind::WouldBlock.into()),
        Err(TryLockError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The bucket and the content by the name of a file. Earlier versions had no bucket there. `None` for other files.
fn read_name(name: &str) -> Option<(Option<BucketId>, ContentHash)> {
    match name.split_once('-') {
        Some((bucket, hash)) => {
            let bucket = bucket.parse().ok().map(BucketId::new)?;
            Some((Some(bucket), hash.parse().ok()?))
        }
        None => Some((None, name.parse().ok()?)),
    }
}

fn list_path(path: &Path) -> PathBuf {
    path.with_extension(LIST)
}

/// What is here of a content of this size. `None` if the list is missing, of another size, or no list.
fn read_list(path: &Path, size: u64) -> Option<ByteRanges> {
    let text = fs::read_to_string(list_path(path)).ok()?;
    let mut lines = text.lines();
    let listed_size: u64 = lines.next()?.parse().ok()?;
    let have = ByteRanges::parse(lines.next()?)?;
    let whole: Range<u64> = 0..size;
    let listed: u64 = have
        .covered(&(0..u64::MAX))
        .map(|it| it.end - it.start)
        .sum();
    let inside: u64 = have.covered(&whole).map(|it| it.end - it.start).sum();
    (listed_size == size && listed == inside).then_some(have)
}

/// Whether a file was written long ago. One that cannot be looked at stays.
fn is_stale(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|about| about.modified());
    let age = modified.map(|modified| SystemTime::now().duration_since(modified));
    matches!(age, Ok(Ok(age)) if age >= PARTIAL_KEPT_TIME)
}

/// Removes a content that arrives and its list, unless a value has it open.
fn remove_unless_open(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    if file.try_lock().is_err() {
        return false;
    }
    // The lock is held until both are gone.
    let list = fs::remove_file(list_path(path));
    let removed = fs::remove_file(path);
    if let Err(error) = list
        && error.kind() != ErrorKind::NotFound
    {
        tracing::debug!(%error, "the list of a content that arrived stays");
    }
    drop(file);
    removed.is_ok()
}

#[cfg(test)]
mod tests;
