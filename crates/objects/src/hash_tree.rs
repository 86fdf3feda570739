//! The hash tree of a part that is verified as it is received: BLAKE3 with groups of 16 KiB, in the
//! format of [`bao_tree`] and of iroh's blobs.
//!
//! An encoded part has, in pre-order, the two child hashes of each inner node on the way to it, and
//! each of its groups.

use std::ops::Range;

use bao_tree::iter::{BaoChunk, ResponseIter};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

use crate::limits::{CHUNK_BYTES, GROUP_BYTES};
use crate::selection::ChunkSelection;

/// Sixteen chunks of 1 KiB.
const BLOCK: BlockSize = BlockSize::from_chunk_log(4);
/// Bytes of the two hashes of an inner node.
pub const PAIR_BYTES: usize = 64;

/// One step of an encoded part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeStep {
    /// The child hashes of a node.
    Pair {
        /// Number of the pair in the outboard. `None` for a node within a group, of which the outboard has nothing.
        at: Option<u64>,
        /// The first byte below the node in the file.
        start: u64,
        /// Bytes below the node.
        len: u64,
        /// Whether the node is the root.
        root: bool,
        /// Whether the encoded part has what lies below the left child.
        left: bool,
        /// Whether it has what lies below the right child.
        right: bool,
    },
    /// A group.
    Group {
        /// Its first byte in the file.
        start: u64,
        /// Its bytes: those of a group, or fewer at the end of the file and where only a part of a group is selected.
        len: usize,
        /// Whether the file has no other group.
        root: bool,
    },
}

/// The tree of a file of `len` bytes.
pub(crate) fn tree(len: u64) -> BaoTree {
    BaoTree::new(len, BLOCK)
}

/// The groups that a part of `len` bytes touches.
fn groups(len: u64, part: &Range<u64>) -> Range<u64> {
    let end = part.end.next_multiple_of(GROUP_BYTES).min(len);
    part.start / GROUP_BYTES * GROUP_BYTES..end
}

/// The steps that encode a part of a file of `len` bytes.
#[derive(Debug)]
pub struct TreeSteps {
    tree: BaoTree,
    inner: ResponseIter,
}

impl TreeSteps {
    /// The steps of `part`, which ends at `len` or before.
    #[must_use]
    pub fn new(len: u64, part: &Range<u64>) -> Self {
        let groups = groups(len, part);
        let start = ChunkNum::full_chunks(groups.start);
        // `ChunkRanges` of an empty file needs its one empty chunk, or no hash is verified.
        let ranges = if len == 0 {
            ChunkRanges::all()
        } else if part.is_empty() {
            ChunkRanges::empty()
        } else if groups.end >= len {
            ChunkRanges::from(start..)
        } else {
            ChunkRanges::from(start..ChunkNum::chunks(groups.end))
        };
        let tree = tree(len);
        Self {
            tree,
            inner: ResponseIter::new(tree, ranges),
        }
    }

    /// The steps of the selected chunks, which may be parts of groups.
    #[must_use]
    pub fn selected(len: u64, selection: &ChunkSelection) -> Self {
        let tree = tree(len);
        Self {
            tree,
            inner: ResponseIter::new(tree, selection.chunks(len)),
        }
    }

    /// Bytes of the encoded part.
    #[must_use]
    pub fn encoded_len(len: u64, part: &Range<u64>) -> u64 {
        let bytes = |step| match step {
            TreeStep::Pair { .. } => PAIR_BYTES as u64,
            TreeStep::Group { len, .. } => len as u64,
        };
        Self::new(len, part).map(bytes).sum()
    }
}

impl Iterator for TreeSteps {
    type Item = TreeStep;

    fn next(&mut self) -> Option<TreeStep> {
        Some(match self.inner.next()? {
            BaoChunk::Parent {
                node,
                is_root,
                left,
                right,
                ..
            } => {
                let chunks = node.chunk_range();
                let start = chunks.start.to_bytes();
                TreeStep::Pair {
                    at: self.tree.pre_order_offset(node),
                    start,
                    len: chunks.end.to_bytes().min(self.tree.size()) - start,
                    root: is_root,
                    left,
                    right,
                }
            }
            BaoChunk::Leaf {
                start_chunk,
                size,
                is_root,
                ..
            } => TreeStep::Group {
                start: start_chunk.to_bytes(),
                len: size,
                root: is_root,
            },
        })
    }
}

/// The two hashes of a node's children, and the node's own hash computed from them.
fn pair(bytes: &[u8; PAIR_BYTES], root: bool) -> ([[u8; 32]; 2], [u8; 32]) {
    let mut two = [[0; 32]; 2];
    two[0].copy_from_slice(&bytes[..32]);
    two[1].copy_from_slice(&bytes[32..]);
    let above = if root {
        *merge_subtrees_root(&two[0], &two[1], Mode::Hash).as_bytes()
    } else {
        merge_subtrees_non_root(&two[0], &two[1], Mode::Hash)
    };
    (two, above)
}

/// The hash of a group.
fn group(start: u64, bytes: &[u8], root: bool) -> [u8; 32] {
    if root {
        return *blake3::hash(bytes).as_bytes();
    }
    let mut hasher = Hasher::new();
    hasher.set_input_offset(start).update(bytes);
    hasher.finalize_non_root()
}

/// The hashes of the children of a node within a group, computed from the bytes below the node.
pub(crate) fn pair_below(start: u64, bytes: &[u8]) -> [u8; PAIR_BYTES] {
    let chunks = bytes.len().div_ceil(CHUNK_BYTES as usize);
    // The left child has a power of two of chunks, as many as leave the right one at least one.
    let left = chunks.next_power_of_two() / 2 * CHUNK_BYTES as usize;
    let (left, right) = bytes.split_at(left.min(bytes.len()));
    let mut pair = [0; PAIR_BYTES];
    pair[..32].copy_from_slice(&group(start, left, false));
    pair[32..].copy_from_slice(&group(start + left.len() as u64, right, false));
    pair
}

/// The encoding of the selected chunks of a content of at most a group, as [`VerifiedPart::selected`] has it of an object.
/// The caller has compared the bytes with their hash.
///
/// [`VerifiedPart::selected`]: crate::VerifiedPart::selected
#[must_use]
pub fn encode_group(bytes: &[u8], selection: &ChunkSelection) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(bytes.len());
    for step in TreeSteps::selected(bytes.len() as u64, selection) {
        // The steps lie within the bytes, and the casts keep their values: the bytes are in memory.
        match step {
            TreeStep::Pair { start, len, .. } => {
                let below = bytes.get(start as usize..).unwrap_or_default();
                let below = below.get(..len as usize).unwrap_or(below);
                encoded.extend(pair_below(start, below));
            }
            TreeStep::Group { start, len, .. } => {
                let below = bytes.get(start as usize..).unwrap_or_default();
                encoded.extend_from_slice(below.get(..len).unwrap_or(below));
            }
        }
    }
    encoded
}

/// Hashes that a verified parent lists and whose bytes have not arrived yet.
#[derive(Debug)]
pub struct ExpectedHashes(Vec<[u8; 32]>);

impl ExpectedHashes {
    /// Nothing has arrived of a file with this hash.
    #[must_use]
    pub fn root(root: &Hash) -> Self {
        Self(vec![*root.as_bytes()])
    }

    /// Accepts a pair if it has the expected hash. The flags are those of the step: `root`, `left` and `right`.
    pub fn pair(
        &mut self,
        bytes: &[u8; PAIR_BYTES],
        (root, left, right): (bool, bool, bool),
    ) -> bool {
        let ([l, r], above) = pair(bytes, root);
        // A pair without its expected hash could be any bytes, so nothing below it is accepted.
        if self.0.pop() != Some(above) {
            return false;
        }
        // The left side comes first (pre-order), so its hash is pushed last.
        self.0.extend(right.then_some(r));
        self.0.extend(left.then_some(l));
        true
    }

    /// Accepts a group if it has the expected hash.
    pub fn group(&mut self, start: u64, bytes: &[u8], root: bool) -> bool {
        self.0.pop() == Some(group(start, bytes, root))
    }
}

#[cfg(test)]
mod selected_tests;

#[cfg(test)]
mod tests {
    use bao_tree::io::outboard::PreOrderMemOutboard;
    use bao_tree::io::round_up_to_chunks_groups;
    use bao_tree::io::sync::encode_ranges_validated;

    use super::*;

    /// Encoded here, byte for byte as the library does it.
    #[test]
    fn parts_are_encoded_as_the_library_does() {
        let data: Vec<u8> = (0..300_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        for len in [
            0_usize, 1, 1024, 16_384, 16_385, 32_768, 65_537, 180_000, 300_000,
        ] {
            let data = &data[..len];
            let outboard = PreOrderMemOutboard::create(data, BLOCK);
            let len = len as u64;
            let parts = [
                0..len,
                0..len.min(1),
                len / 2..len,
                len / 3..len * 2 / 3,
                len..len,
            ];
            for part in parts {
                let ranges = match part.is_empty() && len > 0 {
                    true => ChunkRanges::empty(),
                    false => {
                        let chunks = ChunkNum::full_chunks(part.start)..ChunkNum::chunks(part.end);
                        round_up_to_chunks_groups(ChunkRanges::from(chunks), BLOCK)
                    }
                };
                let ranges = if len == 0 { ChunkRanges::all() } else { ranges };
                let mut theirs = Vec::new();
                encode_ranges_validated(data, &outboard, &ranges, &mut theirs).expect("whole");
                let mut ours: Vec<u8> = Vec::new();
                let mut expected = ExpectedHashes::root(&outboard.root);
                for step in TreeSteps::new(len, &part) {
                    match step {
                        TreeStep::Pair {
                            at,
                            root,
                            left,
                            right,
                            ..
                        } => {
                            let at = at.expect("parts are whole groups") as usize * PAIR_BYTES;
                            let bytes = outboard.data[at..].first_chunk().expect("a pair");
                            assert!(expected.pair(bytes, (root, left, right)));
                            ours.extend(bytes);
                        }
                        TreeStep::Group { start, len, root } => {
                            let group = &data[start as usize..][..len];
                            assert!(expected.group(start, group, root));
                            ours.extend(group);
                        }
                    }
                }
                assert!(ours == theirs, "{part:?} of {len}");
                assert_eq!(ours.len() as u64, TreeSteps::encoded_len(len, &part));
            }
        }
    }
}
