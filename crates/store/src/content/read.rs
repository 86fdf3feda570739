//! Verified reads, of rows and of objects alike.

use std::ops::Range;
use std::sync::Arc;

use alknet_objects::{DamagedPart, ObjectBlocks, ObjectError, ObjectReader};

use super::{ContentFolder, ContentStatus, content_hash, is_damage, object_error, object_hash};
use crate::error::{StoreError, StoreObject};
use crate::hash::ContentHash;
use crate::limits::READ_BLOCK_BYTES;
use crate::names::BucketId;

/// A content that was opened. It stays readable if the collection removes it. A clone shares the file.
#[derive(Clone, Debug)]
pub struct ContentReader {
    folder: ContentFolder,
    hash: ContentHash,
    size: u64,
    /// When the row that led here was last verified.
    verified_ms: Option<u64>,
    source: ReaderSource,
}

#[derive(Clone, Debug)]
pub(super) enum ReaderSource {
    /// The whole content, which was compared with its hash.
    Row(Arc<[u8]>),
    Object(ObjectReader),
}

/// Blocks of a content, each of which was compared with the hash. They end with the range or at an error.
#[derive(Debug)]
pub struct ContentBlocks {
    reader: ContentReader,
    /// The next byte that is to be handed out, and the end.
    rest: Range<u64>,
    /// Blocks of the object. `None` for a row, and behind the end.
    object: Option<ObjectBlocks>,
    /// What was verified and is more than a block.
    ready: Vec<u8>,
    /// Whether a damaged outboard was computed again.
    is_retried: bool,
}

impl ContentFolder {
    /// Opens a content for a bucket. One that the bucket only announced is not here for it, whatever other buckets have.
    /// Blocks.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the bucket has no name of it, [`StoreError::ContentUnavailable`] if its bytes never came for
    /// the bucket, [`StoreError::ContentMissing`] if it is damaged or lost.
    pub fn reader_in(
        &self,
        bucket: BucketId,
        hash: ContentHash,
    ) -> Result<ContentReader, StoreError> {
        let status = self.db.read(move |tx| tx.content_status_in(bucket, hash));
        match status.wait()? {
            ContentStatus::Missing => Err(StoreError::NotFound(StoreObject::Content)),
            ContentStatus::Wanted { .. } | ContentStatus::Partial { .. } => {
                Err(StoreError::ContentUnavailable { hash })
            }
            ContentStatus::Complete { .. } | ContentStatus::Bad { .. } => self.reader(hash),
        }
    }

    /// Opens a content, without a look at who has a right to it. The first read of an object without an outboard reads the whole object. Blocks.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if the store does not know the content, [`StoreError::ContentUnavailable`] if it is on peers
    /// only, [`StoreError::ContentMissing`] if it is damaged or lost.
    pub fn reader(&self, hash: ContentHash) -> Result<ContentReader, StoreError> {
        let row = self
            .db
            .read(move |tx| tx.complete_content_row(hash))
            .wait()?;
        let source = match row.inline {
            Some(bytes)
                if bytes.len() as u64 == row.size && content_hash(blake3::hash(&bytes)) == hash =>
            {
                ReaderSource::Row(bytes.into())
            }
            Some(_) => return Err(self.found_damaged(hash, row.verified_ms)),
            // The hash covers the size: with another one in the row, a part would pass for the whole. The length is looked
            // at first, because a file without its outboard is read whole.
            None => match self.objects.reader_of_size(&object_hash(hash), row.size) {
                Ok(reader) => ReaderSource::Object(reader),
                Err(error) if is_damage(&error) => {
                    return Err(self.found_damaged(hash, row.verified_ms));
                }
                Err(error) => return Err(object_error(error)),
            },
        };
        Ok(ContentReader {
            folder: self.clone(),
            hash,
            size: row.size,
            verified_ms: row.verified_ms,
            source,
        })
    }

    /// Notes the damage, and returns what a reader gets.
    fn found_damaged(&self, hash: ContentHash, verified_ms: Option<u64>) -> StoreError {
        // The reader gets the same error whether the note was written or not: the next one finds the damage again.
        if let Err(error) = self.report_damage(hash, verified_ms) {
            tracing::warn!(%error, "a damaged content is not marked");
        }
        StoreError::ContentMissing { hash }
    }
}

impl ContentReader {
    /// BLAKE3 of the content.
    #[must_use]
    pub const fn hash(&self) -> ContentHash {
        self.hash
    }

    /// Bytes of the content.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// These bytes, in blocks of at most [`READ_BLOCK_BYTES`]. What lies behind the end of the content is left out. Each
    /// step of the iterator blocks on the disk.
    #[must_use]
    pub fn blocks(&self, range: Range<u64>) -> ContentBlocks {
        let end = range.end.min(self.size);
        let rest = range.start.min(end)..end;
        ContentBlocks {
            reader: self.clone(),
            rest,
            object: None,
            ready: Vec::new(),
            is_retried: false,
        }
    }

    /// The same bytes at once. The caller bounds the range.
    ///
    /// # Errors
    /// [`StoreError::ContentMissing`] if the content is damaged.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let blocks = self.blocks(range).collect::<Result<Vec<_>, _>>()?;
        Ok(blocks.concat())
    }

    pub(super) const fn source(&self) -> &ReaderSource {
        &self.source
    }

    /// Notes that the bytes are not what was stored, and returns what the reader gets.
    pub(super) fn damaged(&self) -> StoreError {
        self.folder.found_damaged(self.hash, self.verified_ms)
    }
}

impl ContentBlocks {
    fn next_block(&mut self) -> Result<Vec<u8>, StoreError> {
        if self.ready.is_empty() {
            self.ready = self.next_verified()?;
        }
        // The object's first group may be cut, so that its blocks can be longer than ours.
        let rest = match self.ready.len() > READ_BLOCK_BYTES {
            true => self.ready.split_off(READ_BLOCK_BYTES),
            false => Vec::new(),
        };
        let block = std::mem::replace(&mut self.ready, rest);
        self.rest.start += block.len() as u64;
        self.reader.folder.count_moved(block.len());
        Ok(block)
    }

    fn next_verified(&mut self) -> Result<Vec<u8>, StoreError> {
        let reader = match &self.reader.source {
            // At most 16 KiB, so both casts keep their values.
            ReaderSource::Row(bytes) => {
                let range = self.rest.start as usize..self.rest.end as usize;
                let part = bytes.get(range);
                return part.map(<[u8]>::to_vec).ok_or_else(|| self.damaged());
            }
            ReaderSource::Object(reader) => reader.clone(),
        };
        loop {
            let mut blocks = match self.object.take() {
                Some(blocks) => Ok(blocks),
                None if self.is_retried => self.reopen(),
                None => reader.bytes(self.rest.clone()),
            };
            let next = match &mut blocks {
                Ok(blocks) => blocks.next(),
                Err(_) => None,
            };
            let error = match (next, blocks) {
                (Some(Ok(block)), Ok(blocks)) => {
                    self.object = Some(blocks);
                    return Ok(block);
                }
                (Some(Err(error)), _) | (None, Err(error)) => error,
                // The file ended before the range did.
                _ => return Err(self.damaged()),
            };
            let is_outboard = matches!(
                error,
                ObjectError::Damaged {
                    part: DamagedPart::Outboard,
                    ..
                }
            );
            // The content may be whole: the library has removed the outboard, and computes it again.
            if is_outboard && !self.is_retried {
                self.is_retried = true;
                continue;
            }
            return Err(match is_damage(&error) {
                true => self.damaged(),
                false => object_error(error),
            });
        }
    }

    /// Opens the object once more, with a new outboard, behind what was handed out.
    fn reopen(&self) -> Result<ObjectBlocks, ObjectError> {
        let hash = object_hash(self.reader.hash);
        let objects = &self.reader.folder.objects;
        let reader = objects.reader_of_size(&hash, self.reader.size)?;
        reader.bytes(self.rest.clone())
    }

    fn damaged(&self) -> StoreError {
        self.reader.damaged()
    }
}

impl Iterator for ContentBlocks {
    type Item = Result<Vec<u8>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let block = self.next_block();
        // Nothing comes after an error: the caller must not take later bytes for these.
        if block.is_err() {
            self.rest = 0..0;
        }
        Some(block)
    }
}
