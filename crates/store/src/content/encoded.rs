//! Contents as peers receive them: the selected chunks, with the hashes that verify them.

use alknet_objects::{ChunkSelection, ObjectBlocks, encode_group};

use super::read::{ContentReader, ReaderSource};
use super::{is_damage, object_error};
use crate::error::StoreError;

/// Blocks of an encoded content, in the encoding of bao-tree with groups of 16 KiB, without a length in front. All bytes in
/// them were compared with the hash. They end with the selection or at an error, and the blocks before an error have
/// everything that comes before the damage.
#[derive(Debug)]
pub struct ContentEncoding {
    reader: ContentReader,
    source: EncodingSource,
}

#[derive(Debug)]
enum EncodingSource {
    Ended,
    Object(ObjectBlocks),
    Row(Vec<u8>),
}

impl ContentReader {
    /// The selected chunks, with the hashes that verify them. Each step of the iterator blocks on the disk. If the hash tree
    /// of the content is damaged, the blocks end with an error, and the next reader computes it again.
    #[must_use]
    pub fn encoded(&self, selection: &ChunkSelection) -> ContentEncoding {
        let source = match self.source() {
            ReaderSource::Row(bytes) => EncodingSource::Row(encode_group(bytes, selection)),
            ReaderSource::Object(reader) => EncodingSource::Object(reader.selected(selection)),
        };
        ContentEncoding {
            reader: self.clone(),
            source,
        }
    }
}

impl Iterator for ContentEncoding {
    type Item = Result<Vec<u8>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        match std::mem::replace(&mut self.source, EncodingSource::Ended) {
            EncodingSource::Row(block) if !block.is_empty() => Some(Ok(block)),
            EncodingSource::Ended | EncodingSource::Row(_) => None,
            EncodingSource::Object(mut blocks) => match blocks.next()? {
                Ok(block) => {
                    self.source = EncodingSource::Object(blocks);
                    Some(Ok(block))
                }
                Err(error) if is_damage(&error) => Some(Err(self.reader.damaged())),
                Err(error) => Some(Err(object_error(error))),
            },
        }
    }
}
