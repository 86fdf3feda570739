//! BLAKE3 of a file whose header is known last.
//!
//! The header holds hashes of the data and is complete only when all data was written. BLAKE3 is a tree over pieces
//! of the file, so the data can be hashed first: with `K` the first power of two at or after the end of the header,
//! the bytes from `K` to `2K`, from `2K` to `4K` and so on are whole subtrees, and the last one is the rest. Only the
//! data below `K` must stay in memory, which is at most as long as the header.

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use blake3::{CHUNK_LEN, Hash, Hasher};

use crate::writer::chunk_aligner::ChunkAligner;

/// The hash tree of a file, without its header.
#[derive(Debug)]
pub(super) struct FileHashTree {
    /// Where the first subtree begins that holds data alone.
    first: u64,
    /// The data before that subtree.
    low_data: Vec<u8>,
    /// Bytes of the file so far.
    at: u64,
    /// Subtrees that are complete.
    done: Vec<ChainingValue>,
    /// The subtree that is not complete, and its end.
    open: Option<(ChunkAligner, u64)>,
}

impl FileHashTree {
    /// Begins with the data after a header of this many bytes.
    pub(super) fn behind(header_len: u64) -> Self {
        Self {
            first: header_len.max(CHUNK_LEN as u64).next_power_of_two(),
            low_data: Vec::new(),
            at: header_len,
            done: Vec::new(),
            open: None,
        }
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let end = match &self.open {
                Some((_, end)) => *end,
                None if self.at < self.first => self.first,
                None => {
                    // The next subtree is as large as everything before it (BLAKE3's tree is left-balanced).
                    let end = self.at.saturating_mul(2);
                    self.open = Some((ChunkAligner::at(self.at), end));
                    end
                }
            };
            let room = usize::try_from(end - self.at).unwrap_or(usize::MAX);
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            bytes = rest;
            self.at += piece.len() as u64;
            match &mut self.open {
                None => self.low_data.extend_from_slice(piece),
                Some((part, _)) => part.update(piece),
            }
            if self.at == end {
                self.close();
            }
        }
    }

    /// The hash of the file with this header.
    pub(super) fn finish(mut self, header: &[u8]) -> Hash {
        self.close();
        let mut hasher = Hasher::new();
        hasher.update(header).update(&self.low_data);
        let Some((last, others)) = self.done.split_last() else {
            return hasher.finalize();
        };
        let first = hasher.finalize_non_root();
        let left = others.iter().fold(first, |left, right| {
            merge_subtrees_non_root(&left, right, Mode::Hash)
        });
        merge_subtrees_root(&left, last, Mode::Hash)
    }

    fn close(&mut self) {
        if let Some((part, _)) = self.open.take() {
            self.done.push(part.subtree());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way the end of header and file can lie to pieces and subtrees.
    #[test]
    fn the_hash_is_the_one_of_the_whole() {
        let file: Vec<u8> = (0..70_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        let headers = [10, 64, 1000, 1024, 1025, 2048, 3000, 4096, 9000];
        let lens = [
            0, 1, 24, 960, 1024, 1025, 2047, 2048, 2049, 4096, 8191, 8192, 8193, 61_000,
        ];
        for header in headers {
            for len in lens {
                for piece in [1_usize, 1000, 1024, 100_000] {
                    let file = &file[..header + len];
                    let mut tree = FileHashTree::behind(header as u64);
                    for piece in file[header..].chunks(piece) {
                        tree.update(piece);
                    }
                    assert!(tree.low_data.len() <= header.max(CHUNK_LEN));
                    let hash = tree.finish(&file[..header]);
                    assert_eq!(hash, blake3::hash(file), "{header} {len} {piece}");
                }
            }
        }
    }
}
