//! A content that lists other contents: their hashes, one behind the other.

use alknet_store::{ContentHash, ContentReader, StoreError};

/// Hashes that are read at once: those of one verified group.
const PAGE_HASHES: u64 = 512;
const HASH_BYTES: u64 = ContentHash::BYTES as u64;

/// The hashes that a content lists. They are read in pages, so that a long list takes no memory.
#[derive(Debug)]
pub(super) struct HashSequence {
    reader: ContentReader,
    /// The number of the first hash of the page.
    from: u64,
    page: Vec<u8>,
}

impl HashSequence {
    /// `None` if the content is no list of hashes.
    pub(super) fn new(reader: ContentReader) -> Option<Self> {
        let is_list = reader.size().is_multiple_of(HASH_BYTES);
        is_list.then_some(Self {
            reader,
            from: 0,
            page: Vec::new(),
        })
    }

    /// The hash of this number, or `None` behind the end. Blocks.
    pub(super) fn hash(&mut self, number: u64) -> Result<Option<ContentHash>, StoreError> {
        if number >= self.reader.size() / HASH_BYTES {
            return Ok(None);
        }
        let from = number / PAGE_HASHES * PAGE_HASHES;
        if from != self.from || self.page.is_empty() {
            let range = from * HASH_BYTES..(from + PAGE_HASHES) * HASH_BYTES;
            self.page = self.reader.read(range)?;
            self.from = from;
        }
        // Within a page, so the cast keeps the value.
        let at = ((number - from) * HASH_BYTES) as usize;
        let bytes = self.page.get(at..).and_then(<[u8]>::first_chunk);
        Ok(bytes.copied().map(ContentHash::new))
    }
}
