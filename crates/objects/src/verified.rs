//! A part of an object whose every byte is compared with the hash before it is handed out.

use std::io;
use std::ops::Range;

use crate::error::{DamagedPart, ObjectError};
use crate::hash_tree::{ExpectedHashes, PAIR_BYTES, TreeStep, TreeSteps, pair_below};
use crate::limits::{BLOCK_BYTES, GROUP_BYTES};
use crate::outboard::Outboard;
use crate::selection::ChunkSelection;
use crate::view::ObjectView;

/// A part of an object, block by block.
#[derive(Debug)]
pub struct VerifiedPart {
    outboard: Outboard,
    steps: TreeSteps,
    expected: ExpectedHashes,
    /// The only bytes that are handed out, without hashes. They count as the tree's bytes do.
    only: Option<Range<u64>>,
    /// What was refused. Nothing comes after it.
    refused: Option<RefusedPart>,
}

/// What is damaged, and the error of the system if it does not give the bytes. The first caller gets the error.
#[derive(Debug)]
struct RefusedPart {
    part: DamagedPart,
    source: Option<io::Error>,
}

impl VerifiedPart {
    /// The groups that `part` touches, with the hashes that verify them: the encoding of bao-tree and of iroh's blobs,
    /// without a length in front. `part` counts from the first byte of the outboard's [range](Outboard::range), and ends
    /// with the range or before.
    #[must_use]
    pub fn encoded(outboard: Outboard, part: &Range<u64>) -> Self {
        let range = outboard.range();
        Self {
            steps: TreeSteps::new(range.end - range.start, part),
            expected: ExpectedHashes::root(&outboard.root()),
            outboard,
            only: None,
            refused: None,
        }
    }

    /// The selected chunks of the outboard's [range](Outboard::range), with the hashes that verify them, in the same
    /// encoding. Where only a part of a group is selected, the hashes within the group are computed from its bytes.
    #[must_use]
    pub fn selected(outboard: Outboard, selection: &ChunkSelection) -> Self {
        let range = outboard.range();
        Self {
            steps: TreeSteps::selected(range.end - range.start, selection),
            expected: ExpectedHashes::root(&outboard.root()),
            outboard,
            only: None,
            refused: None,
        }
    }

    /// The bytes of `part` alone, which counts as for [`encoded`](Self::encoded).
    #[must_use]
    pub fn bytes(outboard: Outboard, part: Range<u64>) -> Self {
        let encoded = Self::encoded(outboard, &part);
        Self {
            only: Some(part),
            ..encoded
        }
    }

    /// The next block, which is empty at the end: 256 KiB, and a group and its hashes more at most. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Damaged`] for the first pair or group that is not what was stored, and for a pair that cannot be
    /// read. The blocks before have everything that comes before it. [`ObjectError::Io`].
    pub fn next_block(&mut self, object: &ObjectView<'_>) -> Result<Vec<u8>, ObjectError> {
        let mut block = Vec::new();
        while self.refused.is_none() && block.len() < BLOCK_BYTES {
            let Some(step) = self.steps.next() else {
                break;
            };
            self.refused = self.step(step, object, &mut block)?;
        }
        debug_assert!(block.len() < BLOCK_BYTES + PAIR_BYTES + GROUP_BYTES as usize + 1);
        match &mut self.refused {
            Some(refused) if block.is_empty() => Err(ObjectError::Damaged {
                hash: object.hash(),
                part: refused.part,
                source: refused.source.take(),
            }),
            _ => Ok(block),
        }
    }

    /// Adds what a step has to the block, if it is what was stored.
    fn step(
        &mut self,
        step: TreeStep,
        object: &ObjectView<'_>,
        block: &mut Vec<u8>,
    ) -> Result<Option<RefusedPart>, ObjectError> {
        match step {
            TreeStep::Pair {
                at: None,
                start,
                len,
                root,
                left,
                right,
            } => {
                // At most a group, so the cast keeps the value.
                let mut below = vec![0; len as usize];
                object.read_exact_at(&mut below, self.outboard.range().start + start)?;
                let pair = pair_below(start, &below);
                if !self.expected.pair(&pair, (root, left, right)) {
                    let part = DamagedPart::Content;
                    return Ok(Some(RefusedPart { part, source: None }));
                }
                block.extend(pair);
            }
            TreeStep::Pair {
                at: Some(at),
                root,
                left,
                right,
                ..
            } => {
                let (pair, source) = match self.outboard.pair(at) {
                    Ok(pair) => (Some(pair), None),
                    // A pair that the disk cannot read is damaged, too: the same file would fail each later reader. The
                    // file is removed, so this error alone says what the disk did.
                    Err(error) => (None, Some(error)),
                };
                let is_expected =
                    |bytes: &[u8; PAIR_BYTES]| self.expected.pair(bytes, (root, left, right));
                let Some(bytes) = pair.filter(is_expected) else {
                    self.outboard.remove_file();
                    let part = DamagedPart::Outboard;
                    return Ok(Some(RefusedPart { part, source }));
                };
                if self.only.is_none() {
                    block.extend(bytes);
                }
            }
            TreeStep::Group { start, len, root } => {
                let from = block.len();
                block.resize(from + len, 0);
                let start_in_object = self.outboard.range().start + start;
                object.read_exact_at(&mut block[from..], start_in_object)?;
                if !self.expected.group(start, &block[from..], root) {
                    block.truncate(from);
                    let part = DamagedPart::Content;
                    return Ok(Some(RefusedPart { part, source: None }));
                }
                if let Some(only) = &self.only {
                    trim(block, from, start, only);
                }
            }
        }
        Ok(None)
    }
}

/// Keeps of the group that begins at `start` of the tree's bytes, and at `from` in the block, only the bytes of `only`.
fn trim(block: &mut Vec<u8>, from: usize, start: u64, only: &Range<u64>) {
    let end = start + (block.len() - from) as u64;
    // Every group has a byte that is wanted, so less than a group is cut off and the casts keep
    // their values.
    let behind = end.saturating_sub(only.end) as usize;
    let before = only.start.saturating_sub(start) as usize;
    block.truncate(block.len() - behind);
    block.drain(from..from + before);
}
