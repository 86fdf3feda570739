//! The hash tree of a part of a file, computed when a request first needs it and cached beside the store.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use alknet_core::PeerId;
use alknet_tensor::{Hash, TensorError, TensorErrorCode};
use bao_tree::io::sync::{OutboardMut, outboard};
use bao_tree::{BaoTree, TreeNode};
use tempfile::NamedTempFile;

use crate::error::ServeError;
use crate::handler::blocking;
use crate::hash_tree::{PAIR_BYTES, tree};
use crate::limits::{BLOCK_BYTES, GROUP_BYTES};
use crate::store::{Object, TensorStore};

/// Bytes of the root before the pairs.
const ROOT_BYTES: u64 = 32;

/// The root of a tree, and the file with its pairs in pre-order.
#[derive(Debug)]
pub(crate) struct Outboard {
    root: Hash,
    /// `None` if the tree has no pairs.
    file: Option<File>,
}

impl Outboard {
    /// The tree of these bytes of a file, for a request of this identity. A cached tree is not trusted: each pair is
    /// checked against the root when it is read, and the root against the hash in the header.
    pub(crate) async fn prepare(
        store: &Arc<TensorStore>,
        object: &Arc<Object>,
        range: Range<u64>,
        listed: Option<Hash>,
        who: &PeerId,
    ) -> Result<Self, ServeError> {
        let find = {
            let (store, object, range) = (Arc::clone(store), Arc::clone(object), range.clone());
            move || match range.end - range.start <= GROUP_BYTES {
                true => Self::of_one_group(&object, &range, listed).map(Some),
                false => Ok(Self::find(&store, &object, &range, listed)),
            }
        };
        if let Some(found) = blocking(find).await? {
            return Ok(found);
        }
        // The build reads the whole range. The turn comes before the thread: requests that wait hold none.
        let turn = store.tree_turns().turn(who).await;
        let (store, object) = (Arc::clone(store), Arc::clone(object));
        blocking(move || {
            let _turn = turn;
            Self::build(&store, &object, &range, listed)
        })
        .await
    }

    /// Computes the tree, unless another request did so while this one waited for its turn. Blocks.
    fn build(
        store: &TensorStore,
        object: &Arc<Object>,
        range: &Range<u64>,
        listed: Option<Hash>,
    ) -> Result<Self, ServeError> {
        let io = |error| ServeError::io("keep a hash tree", error);
        let found = match Self::find(store, object, range, listed) {
            Some(found) => found,
            None => {
                let mut new = store.temporary().map_err(io)?;
                let root = compute(object, range, &mut new)?;
                let kept = store.tree_files().add(name(object, range), new);
                let file = Some(kept.map_err(io)?);
                Self { root, file }
            }
        };
        found.with_root(range, listed)
    }

    /// The cached tree of these bytes of a file, if it has this root.
    fn find(
        store: &TensorStore,
        object: &Object,
        range: &Range<u64>,
        listed: Option<Hash>,
    ) -> Option<Self> {
        let file = store.tree_files().find(&name(object, range));
        let cached = file.and_then(|file| Self::cached(file, range.end - range.start));
        let has_root = |found: &Self| listed.is_none_or(|listed| listed == found.root);
        cached.ok().flatten().filter(has_root)
    }

    /// Opens a cached tree, if it has the right length.
    fn cached(file: File, len: u64) -> io::Result<Option<Self>> {
        if file.metadata()?.len() != ROOT_BYTES + tree(len).outboard_size() {
            return Ok(None);
        }
        let mut root = [0; ROOT_BYTES as usize];
        file.read_exact_at(&mut root, 0)?;
        let root = Hash::from_bytes(root);
        let file = Some(file);
        Ok(Some(Self { root, file }))
    }

    /// The tree of a range that is one group, or empty. It has no pairs, and no file is kept for it: a file of 65,536
    /// short entries would have as many.
    fn of_one_group(
        object: &Object,
        range: &Range<u64>,
        listed: Option<Hash>,
    ) -> Result<Self, ServeError> {
        // At most a group, so the cast keeps the value.
        let mut bytes = vec![0; (range.end - range.start) as usize];
        object.read(&mut bytes, range.start)?;
        object.check()?;
        let found = Self {
            root: blake3::hash(&bytes),
            file: None,
        };
        found.with_root(range, listed)
    }

    /// Fails if the header lists another root: the header's hash is the one that the client compares, so a tree with
    /// another root would fail there.
    fn with_root(self, range: &Range<u64>, listed: Option<Hash>) -> Result<Self, ServeError> {
        match listed {
            Some(listed) if listed != self.root => {
                let root = self.root;
                let what =
                    format!("bytes {range:?} have the hash {root}, the header says {listed}");
                Err(ServeError::Stored(TensorError::new(
                    TensorErrorCode::Hash,
                    what,
                )))
            }
            _ => Ok(self),
        }
    }

    pub(crate) const fn root(&self) -> Hash {
        self.root
    }

    /// The pair at this position.
    pub(crate) fn pair(&self, at: u64) -> Result<[u8; PAIR_BYTES], ServeError> {
        let mut bytes = [0; PAIR_BYTES];
        let file = self.file.as_ref().ok_or(io::ErrorKind::UnexpectedEof);
        let at = ROOT_BYTES + at * PAIR_BYTES as u64;
        let read = file.map_err(io::Error::from);
        let read = read.and_then(|file| file.read_exact_at(&mut bytes, at));
        read.map_err(|error| ServeError::io("read a hash tree", error))?;
        Ok(bytes)
    }
}

/// The name of the tree of these bytes in its folder.
fn name(object: &Object, range: &Range<u64>) -> String {
    format!("{}-{}-{}", object.id(), range.start, range.end)
}

fn compute(
    object: &Arc<Object>,
    range: &Range<u64>,
    file: &mut NamedTempFile,
) -> Result<Hash, ServeError> {
    let tree = tree(range.end - range.start);
    let source = ObjectRange {
        object,
        at: range.start,
        end: range.end,
    };
    let source = BufReader::with_capacity(BLOCK_BYTES, source);
    let hash = |error| ServeError::io("hash a stored file", error);
    // The file gets its full length first, because the pairs are not written in their order.
    let len = ROOT_BYTES + tree.outboard_size();
    file.as_file().set_len(len).map_err(hash)?;
    let root = outboard(source, tree, HashPairWriter { tree, file }).map_err(hash)?;
    file.as_file()
        .write_all_at(root.as_bytes(), 0)
        .map_err(hash)?;
    // A change of the file while it was hashed would leave a tree of mixed content.
    object.check()?;
    Ok(root)
}

/// Writes the pairs of hashes to their file.
struct HashPairWriter<'f> {
    tree: BaoTree,
    file: &'f mut NamedTempFile,
}

impl OutboardMut for HashPairWriter<'_> {
    fn save(&mut self, node: TreeNode, pair: &(Hash, Hash)) -> io::Result<()> {
        // Nodes within a group have no pair in the outboard.
        let Some(at) = self.tree.pre_order_offset(node) else {
            return Ok(());
        };
        let mut bytes = [0; PAIR_BYTES];
        bytes[..32].copy_from_slice(pair.0.as_bytes());
        bytes[32..].copy_from_slice(pair.1.as_bytes());
        let at = ROOT_BYTES + at * PAIR_BYTES as u64;
        self.file.as_file().write_all_at(&bytes, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The bytes of a part of a file, in order.
struct ObjectRange<'o> {
    object: &'o Object,
    at: u64,
    end: u64,
}

impl Read for ObjectRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // At most what the buffer holds, so the cast keeps the value.
        let len = (self.end - self.at).min(buffer.len() as u64) as usize;
        let source = self.object.reader().source();
        source.read_exact_at(&mut buffer[..len], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}
