//! Computes the hash of content and, in the same pass, its outboard. The length need not be known before.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use blake3::{Hash, Hasher};
use tempfile::NamedTempFile;

use crate::disk::ObjectDisk;
use crate::hash_tree::PAIR_BYTES;
use crate::limits::{GROUP_BYTES, GROUP_HASHES, PAIR_BLOCK_GROUPS};
use crate::outboard::ROOT_BYTES;

/// Hashes content whose bytes come in order.
#[derive(Debug)]
pub(crate) enum ContentHasher {
    /// Without an outboard.
    Plain(Box<Hasher>),
    /// With an outboard.
    Tree(Box<TreeHasher>),
}

impl ContentHasher {
    /// Has no bytes yet. What does not fit into memory goes to an unnamed file in `staging`.
    pub(crate) fn new(has_outboard: bool, staging: &Path) -> Self {
        match has_outboard {
            true => Self::Tree(Box::new(TreeHasher::new(staging))),
            false => Self::Plain(Box::default()),
        }
    }

    /// Bytes that were hashed.
    pub(crate) fn hashed_bytes(&self) -> u64 {
        match self {
            Self::Plain(hasher) => hasher.count(),
            Self::Tree(hasher) => hasher.hashed_bytes,
        }
    }

    /// Hashes the next bytes. After an error the hasher is of no use any more.
    pub(crate) fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(hasher) => {
                hasher.update(bytes);
                Ok(())
            }
            Self::Tree(hasher) => hasher.update(bytes),
        }
    }

    /// The hash, and the outboard as a file in `staging` if the content has more than a group.
    pub(crate) fn finish(
        self,
        staging: &Path,
        disk: &dyn ObjectDisk,
    ) -> io::Result<(Hash, Option<NamedTempFile>)> {
        match self {
            Self::Plain(hasher) => Ok((hasher.finalize(), None)),
            Self::Tree(hasher) => hasher.finish(staging, disk),
        }
    }
}

/// Hashes content group by group, and remembers the hash of each group for the outboard.
#[derive(Debug)]
pub(crate) struct TreeHasher {
    groups: GroupHashes,
    /// The group under way.
    group: Hasher,
    group_bytes: u64,
    hashed_bytes: u64,
}

impl TreeHasher {
    /// Has no bytes yet. Hashes of groups that do not fit into memory go to an unnamed file in `staging`.
    pub(crate) fn new(staging: &Path) -> Self {
        Self::with_memory(staging, GROUP_HASHES)
    }

    /// The same with another number of hashes in memory.
    fn with_memory(staging: &Path, memory_max: usize) -> Self {
        Self {
            groups: GroupHashes {
                staging: staging.to_owned(),
                memory_max,
                memory: Vec::new(),
                file: None,
                count: 0,
            },
            group: Hasher::new(),
            group_bytes: 0,
            hashed_bytes: 0,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // A group ends only when the next byte comes, because the only group of short content is hashed as the root.
            if self.group_bytes == GROUP_BYTES {
                self.groups.push(self.group.finalize_non_root())?;
                self.group = Hasher::new();
                self.group.set_input_offset(self.hashed_bytes);
                self.group_bytes = 0;
            }
            // At most a group, so the cast keeps the value.
            let len = rest.len().min((GROUP_BYTES - self.group_bytes) as usize);
            self.group.update(&rest[..len]);
            self.group_bytes += len as u64;
            self.hashed_bytes += len as u64;
            rest = &rest[len..];
        }
        Ok(())
    }

    /// The hash, and the outboard as a file in `staging` if the content has more than a group.
    pub(crate) fn finish(
        mut self,
        staging: &Path,
        disk: &dyn ObjectDisk,
    ) -> io::Result<(Hash, Option<NamedTempFile>)> {
        if self.groups.count == 0 {
            return Ok((self.group.finalize(), None));
        }
        self.groups.push(self.group.finalize_non_root())?;
        let outboard = tempfile::Builder::new().tempfile_in(staging)?;
        let groups = self.groups.count;
        let mut writer = HashPairWriter {
            groups: self.groups.into_reader()?,
            file: outboard.as_file(),
            disk,
            block: None,
        };
        let [left, right] = writer.write_children(groups, 0)?;
        let root = merge_subtrees_root(&left, &right, Mode::Hash);
        disk.write_at(outboard.as_file(), 0, root.as_bytes())?;
        Ok((root, Some(outboard)))
    }
}

/// The hashes of groups, in order.
#[derive(Debug)]
struct GroupHashes {
    staging: PathBuf,
    memory_max: usize,
    /// The last ones.
    memory: Vec<ChainingValue>,
    /// Those before them.
    file: Option<File>,
    count: u64,
}

impl GroupHashes {
    fn push(&mut self, hash: ChainingValue) -> io::Result<()> {
        if self.memory.len() == self.memory_max {
            let file = match self.file.take() {
                Some(file) => file,
                None => tempfile::tempfile_in(&self.staging)?,
            };
            self.file
                .insert(file)
                .write_all(self.memory.as_flattened())?;
            self.memory.clear();
        }
        self.memory.push(hash);
        self.count += 1;
        Ok(())
    }

    /// Reads them from the first one on.
    fn into_reader(self) -> io::Result<Box<dyn Read>> {
        let memory = io::Cursor::new(self.memory.into_flattened());
        let Some(mut file) = self.file else {
            return Ok(Box::new(memory));
        };
        file.rewind()?;
        Ok(Box::new(BufReader::new(file).chain(memory)))
    }
}

/// Writes the pairs of hashes to an outboard, in pre-order: a node, what is below it on the left, then on the right.
struct HashPairWriter<'f> {
    groups: Box<dyn Read>,
    file: &'f File,
    disk: &'f dyn ObjectDisk,
    /// The subtree that is written at once.
    block: Option<PairBlock>,
}

/// The pairs of a subtree, which are contiguous in the outboard.
struct PairBlock {
    /// Number of its first pair.
    first: u64,
    bytes: Vec<u8>,
}

impl HashPairWriter<'_> {
    /// The hash of a node that is not the root, with this many groups below it, and its pair at number `at`.
    fn write_subtree(&mut self, groups: u64, at: u64) -> io::Result<ChainingValue> {
        if groups == 1 {
            let mut hash = ChainingValue::default();
            self.groups.read_exact(&mut hash)?;
            return Ok(hash);
        }
        let [left, right] = self.write_children(groups, at)?;
        Ok(merge_subtrees_non_root(&left, &right, Mode::Hash))
    }

    /// The hashes of both children of a node, which are its pair. `groups` is at least 2.
    fn write_children(&mut self, groups: u64, at: u64) -> io::Result<[ChainingValue; 2]> {
        let begins_block = self.block.is_none() && groups <= PAIR_BLOCK_GROUPS;
        if begins_block {
            // At most a block, so the cast keeps the value.
            let bytes = vec![0; (groups - 1) as usize * PAIR_BYTES];
            self.block = Some(PairBlock { first: at, bytes });
        }
        // The left side of a node is the largest whole subtree that leaves something for the right one (BLAKE3, section
        // 2.1). Only the last group can be short, so what holds for chunks holds for groups.
        let left_groups = 1 << (groups - 1).ilog2();
        // A subtree of n groups has n - 1 pairs.
        let left = self.write_subtree(left_groups, at + 1)?;
        let right = self.write_subtree(groups - left_groups, at + left_groups)?;
        let pair = [left, right];
        match &mut self.block {
            Some(block) => {
                let from = (at - block.first) as usize * PAIR_BYTES;
                block.bytes[from..from + PAIR_BYTES].copy_from_slice(pair.as_flattened());
            }
            None => self.write_at(pair.as_flattened(), at)?,
        }
        if begins_block && let Some(block) = self.block.take() {
            self.write_at(&block.bytes, block.first)?;
        }
        Ok(pair)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = ROOT_BYTES + at * PAIR_BYTES as u64;
        self.disk.write_at(self.file, at, bytes)
    }
}

#[cfg(test)]
mod tests {
    use bao_tree::BlockSize;
    use bao_tree::io::outboard::PreOrderMemOutboard;

    use super::*;
    use crate::disk::SystemObjectDisk;

    /// Hashed in pieces of this many bytes: the root, and the bytes of the outboard.
    fn hashed(mut hasher: TreeHasher, data: &[u8], piece: usize) -> (Hash, Vec<u8>) {
        let staging = tempfile::tempdir().expect("writable");
        for piece in data.chunks(piece) {
            hasher.update(piece).expect("writable");
        }
        let finished = hasher.finish(staging.path(), &SystemObjectDisk);
        let (root, file) = finished.expect("writable");
        let bytes = file.map(|file| std::fs::read(file.path()).expect("readable"));
        (root, bytes.unwrap_or_default())
    }

    fn expected(data: &[u8]) -> (Hash, Vec<u8>) {
        let theirs = PreOrderMemOutboard::create(data, BlockSize::from_chunk_log(4));
        let has_pairs = !theirs.data.is_empty();
        let bytes = [theirs.root.as_bytes(), theirs.data.as_slice()].concat();
        let bytes = if has_pairs { bytes } else { Vec::new() };
        (theirs.root, bytes)
    }

    #[test]
    fn outboards_are_those_of_the_library() {
        let staging = tempfile::tempdir().expect("writable");
        let data: Vec<u8> = (0..40_u32 << 20).map(|at| (at * 31 % 251) as u8).collect();
        let group = GROUP_BYTES as usize;
        let block = PAIR_BLOCK_GROUPS as usize * group;
        for len in [
            0,
            1,
            1024,
            group - 1,
            group,
            group + 1,
            2 * group,
            2 * group + 1,
            3 * group,
            7 * group + 5,
            block,
            block + 1,
            2 * block + group,
            data.len(),
        ] {
            let data = &data[..len];
            let found = hashed(TreeHasher::new(staging.path()), data, 100_000);
            assert!(found == expected(data), "{len}");
            assert_eq!(found.0, blake3::hash(data), "{len}");
        }
    }

    #[test]
    fn pieces_and_the_file_of_hashes_do_not_matter() {
        let staging = tempfile::tempdir().expect("writable");
        let data: Vec<u8> = (0..300_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        for memory_max in [1, 3, 18, 19] {
            for piece in [1000, 16 << 10, 300_000] {
                let hasher = TreeHasher::with_memory(staging.path(), memory_max);
                let found = hashed(hasher, &data, piece);
                assert!(found == expected(&data), "{memory_max}, {piece}");
            }
        }
        let left = std::fs::read_dir(staging.path()).expect("readable");
        assert_eq!(left.count(), 0, "the file of hashes has no name");
    }
}
