//! Reads objects whose every byte is verified.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use blake3::Hash;

use crate::error::{DamagedPart, ObjectError};
use crate::folder::ObjectFolder;
use crate::outboard::Outboard;
use crate::selection::ChunkSelection;
use crate::verified::VerifiedPart;
use crate::view::{ObjectStamp, ObjectView};

/// An object that was opened, with its outboard. It stays readable if the object is removed. A clone shares the file.
#[derive(Clone, Debug)]
pub struct ObjectReader {
    open: Arc<OpenedObject>,
}

#[derive(Debug)]
struct OpenedObject {
    hash: Hash,
    file: File,
    stamp: ObjectStamp,
    outboard: Outboard,
}

impl OpenedObject {
    const fn view(&self) -> ObjectView<'_> {
        ObjectView::new(self.hash, &self.file, self.stamp)
    }
}

/// Blocks of verified bytes of an object, which end with its part or at an error.
#[derive(Debug)]
pub struct ObjectBlocks {
    open: Arc<OpenedObject>,
    /// `None` behind the end.
    part: Option<VerifiedPart>,
}

impl ObjectFolder {
    /// Opens an object. An object of one group is read, and compared with its hash. If the outboard of a longer one is
    /// missing, the whole object is read to compute it. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Missing`]; [`ObjectError::Damaged`] if what was read is not what was stored, or the object is no
    /// regular file; [`ObjectError::Changed`]; [`ObjectError::Io`].
    pub fn reader(&self, hash: &Hash) -> Result<ObjectReader, ObjectError> {
        self.reader_of(*hash, None)
    }

    /// The same for an object that has `size` bytes. One of another length is damaged, and no byte of it is read: another
    /// program can make a file of 16 TiB with one call.
    ///
    /// # Errors
    /// As for [`reader`](Self::reader).
    pub fn reader_of_size(&self, hash: &Hash, size: u64) -> Result<ObjectReader, ObjectError> {
        self.reader_of(*hash, Some(size))
    }

    fn reader_of(&self, hash: Hash, size: Option<u64>) -> Result<ObjectReader, ObjectError> {
        let file = self.open_any(&hash)?;
        let stamp = ObjectStamp::read(&file);
        let stamp =
            stamp.map_err(|error| ObjectError::io(format_args!("look at object {hash}"), error))?;
        if size.is_some_and(|size| size != stamp.size()) {
            let part = DamagedPart::Content;
            let source = None;
            return Err(ObjectError::Damaged { hash, part, source });
        }
        let whole = 0..stamp.size();
        let view = ObjectView::new(hash, &file, stamp);
        let outboard = self.build_outboard(&view, &whole, Some(hash));
        let outboard = outboard.map_err(|error| match error {
            ObjectError::OtherHash { .. } => ObjectError::Damaged {
                hash,
                part: DamagedPart::Content,
                source: None,
            },
            error => error,
        })?;
        let open = Arc::new(OpenedObject {
            hash,
            file,
            stamp,
            outboard,
        });
        Ok(ObjectReader { open })
    }
}

impl ObjectReader {
    /// BLAKE3 of the object.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.open.hash
    }

    /// Bytes of the object.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.open.stamp.size()
    }

    /// These bytes of the object, each group of which is verified before any byte of it is handed out.
    ///
    /// # Errors
    /// [`ObjectError::OutOfRange`].
    pub fn bytes(&self, range: Range<u64>) -> Result<ObjectBlocks, ObjectError> {
        self.blocks(range, VerifiedPart::bytes)
    }

    /// The groups that this range touches, with the hashes that verify them, as [`VerifiedPart::encoded`] has them. They
    /// are verified here as well.
    ///
    /// # Errors
    /// [`ObjectError::OutOfRange`].
    pub fn encoded(&self, range: Range<u64>) -> Result<ObjectBlocks, ObjectError> {
        self.blocks(range, |outboard, range| {
            VerifiedPart::encoded(outboard, &range)
        })
    }

    /// The selected chunks, with the hashes that verify them, as [`VerifiedPart::selected`] has them. They are verified
    /// here as well.
    #[must_use]
    pub fn selected(&self, selection: &ChunkSelection) -> ObjectBlocks {
        ObjectBlocks {
            open: Arc::clone(&self.open),
            part: Some(VerifiedPart::selected(
                self.open.outboard.clone(),
                selection,
            )),
        }
    }

    fn blocks(
        &self,
        range: Range<u64>,
        part: impl FnOnce(Outboard, Range<u64>) -> VerifiedPart,
    ) -> Result<ObjectBlocks, ObjectError> {
        let size = self.size();
        if range.start > range.end || range.end > size {
            return Err(ObjectError::OutOfRange { range, size });
        }
        Ok(ObjectBlocks {
            open: Arc::clone(&self.open),
            part: Some(part(self.open.outboard.clone(), range)),
        })
    }
}

impl Iterator for ObjectBlocks {
    type Item = Result<Vec<u8>, ObjectError>;

    /// Reads the next block from the disk, and compares it with the outboard, in the calling thread.
    fn next(&mut self) -> Option<Self::Item> {
        let part = self.part.as_mut()?;
        match part.next_block(&self.open.view()) {
            Ok(block) if !block.is_empty() => Some(Ok(block)),
            end => {
                self.part = None;
                end.err().map(Err)
            }
        }
    }
}
