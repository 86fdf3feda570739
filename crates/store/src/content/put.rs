//! Contents on their way into the store: staged, made durable, and pinned until a name leads to them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use alknet_objects::{ObjectPin, Placement, StagedObject};

use super::steps::CommitStep;
use super::{ContentFolder, content_hash, io_error, object_error, object_hash};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::{FILE_BYTES_MAX, INLINE_BYTES_MAX};
use crate::names::FileContent;

/// A content that a transaction may name. The collection does not remove it while this value, or a clone of it, exists.
#[derive(Clone, Debug)]
#[must_use = "no name leads to the content yet"]
pub struct PreparedContent {
    content: FileContent,
    /// The bytes, if they become a row in the transaction of the name.
    inline: Option<Arc<[u8]>>,
    /// Whether a damaged object was replaced.
    is_repaired: bool,
    _pin: Arc<ObjectPin>,
}

impl PreparedContent {
    /// BLAKE3 of the bytes.
    #[must_use]
    pub const fn hash(&self) -> ContentHash {
        self.content.hash
    }

    /// Number of the bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.content.size
    }

    /// What a [`TreeChange::Put`](crate::TreeChange::Put) takes.
    #[must_use]
    pub const fn content(&self) -> FileContent {
        self.content
    }

    pub(crate) fn inline(&self) -> Option<&[u8]> {
        self.inline.as_deref()
    }

    pub(crate) const fn is_repaired(&self) -> bool {
        self.is_repaired
    }
}

/// A file that becomes a content. It is written by offset, and what no write reached is zero. If it is dropped before it is
/// put, it is removed.
#[derive(Debug)]
pub struct StagedContent {
    object: StagedObject,
    /// Another descriptor of the file.
    reader: File,
    folder: ContentFolder,
}

impl StagedContent {
    /// Bytes so far: the end of what was written, or the length that was set.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.object.size()
    }

    /// Writes at an offset. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails; or the content would be larger than any file.
    pub fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let len = bytes.len() as u64;
        check_file_size(at.saturating_add(len))?;
        let _counted = self.folder.count_write(len)?;
        self.folder.count_moved(bytes.len());
        self.object.write_at(at, bytes).map_err(object_error)
    }

    /// Sets the length. Bytes beyond it are gone; a file that grows has zeros there. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails; or the content would be larger than any file.
    pub fn set_len(&mut self, size: u64) -> Result<(), StoreError> {
        check_file_size(size)?;
        self.object.set_len(size).map_err(object_error)
    }

    /// Returns when everything that was written is on the disk. It is no content yet, and a restart removes it. Blocks.
    ///
    /// # Errors
    /// The disk fails. What was written may be lost then, and the content cannot be put any more.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.object.sync().map_err(object_error)
    }

    /// Reads what was written, at most up to the end of the file. Blocks.
    pub(crate) fn read_at(&self, at: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; len];
        let read = self.reader.read_exact_at(&mut bytes, at);
        read.map_err(|error| io_error("read a staging file", &error))?;
        Ok(bytes)
    }
}

impl ContentFolder {
    /// Begins a content whose size may be unknown. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn stage(&self) -> Result<StagedContent, StoreError> {
        self.check_space(0)?;
        let object = self.objects.stage().map_err(object_error)?;
        let reader = object.reader().map_err(object_error)?;
        Ok(StagedContent {
            object,
            reader,
            folder: self.clone(),
        })
    }

    /// Makes bytes ready to be named: durable as an object, or for at most
    /// [`INLINE_BYTES_MAX`](crate::limits::INLINE_BYTES_MAX) bytes to be a row in the transaction of the name. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails; or the content would be larger than any file.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<PreparedContent, StoreError> {
        check_file_size(bytes.len() as u64)?;
        if bytes.len() as u64 <= INLINE_BYTES_MAX {
            self.observer.observe_step(CommitStep::StagingComplete)?;
            return Ok(self.prepare_inline(bytes));
        }
        self.check_space(bytes.len() as u64)?;
        let mut staged = self.stage()?;
        staged.write_at(0, bytes)?;
        self.put_staged(staged)
    }

    /// The same for a staged file. What was written in order is hashed already; otherwise the file is read once. Blocks.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn put_staged(&self, staged: StagedContent) -> Result<PreparedContent, StoreError> {
        self.observer.observe_step(CommitStep::StagingComplete)?;
        let size = staged.size();
        if size <= INLINE_BYTES_MAX {
            // At most 16 KiB, so the cast keeps its value.
            let bytes = staged.read_at(0, size as usize)?;
            return Ok(self.prepare_inline(&bytes));
        }
        self.put_object(staged.object)
    }

    /// Gives a whole object its place.
    pub(super) fn put_object(&self, object: StagedObject) -> Result<PreparedContent, StoreError> {
        // Synced and named before any row: a name never leads to bytes that a power cut may take.
        let placed = object.place().map_err(object_error)?;
        let is_repaired = matches!(placed.placement(), Placement::Repaired { .. });
        let content = FileContent::new(content_hash(placed.hash()), placed.size());
        let prepared = PreparedContent {
            content,
            inline: None,
            is_repaired,
            _pin: Arc::new(placed.into_pin()),
        };
        self.observer.observe_step(CommitStep::ObjectPlaced)?;
        Ok(prepared)
    }

    fn prepare_inline(&self, bytes: &[u8]) -> PreparedContent {
        let hash = blake3::hash(bytes);
        PreparedContent {
            content: FileContent::new(content_hash(hash), bytes.len() as u64),
            inline: Some(bytes.into()),
            is_repaired: false,
            _pin: Arc::new(self.objects.pin(hash)),
        }
    }

    /// Pins a content that is here, so that a further name may be given to it. Its bytes are not verified, and whether the
    /// caller has a right to them is not looked at: [`has_content`](crate::ReadTransaction::has_content) says that. Blocks.
    ///
    /// # Errors
    /// The store does not know the content, or does not have it.
    pub fn pin_stored(&self, hash: ContentHash) -> Result<PreparedContent, StoreError> {
        // Before the row is read: a sweep that comes later finds the pin.
        let pin = self.objects.pin(object_hash(hash));
        let row = self
            .db
            .read(move |tx| tx.complete_content_row(hash))
            .wait()?;
        let inline: Option<Arc<[u8]>> = row.inline.map(Into::into);
        // The row of an object may be older than the loss of its file.
        if inline.is_none() {
            let size = self
                .objects
                .size(&object_hash(hash))
                .map_err(object_error)?;
            if size != Some(row.size) {
                self.report_damage(hash, row.verified_ms)?;
                return Err(StoreError::ContentMissing { hash });
            }
        }
        Ok(PreparedContent {
            content: FileContent::new(hash, row.size),
            inline,
            is_repaired: false,
            _pin: Arc::new(pin),
        })
    }
}

/// Refuses a content that is larger than any file.
pub(crate) fn check_file_size(size: u64) -> Result<(), StoreError> {
    if size > FILE_BYTES_MAX {
        return Err(StoreError::TooLarge {
            unit: "bytes in a file",
            limit: FILE_BYTES_MAX,
        });
    }
    Ok(())
}
