//! The outboard of an object, or of a part of one: the root of its hash tree, then the pairs of hashes in pre-order.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use blake3::Hash;

use crate::error::ObjectError;
use crate::folder::ObjectFolder;
use crate::hash_tree::{PAIR_BYTES, tree};
use crate::limits::{BLOCK_BYTES, GROUP_BYTES};
use crate::outboard_folder::outboard_name;
use crate::tree_hasher::TreeHasher;
use crate::view::ObjectView;

/// Bytes of the root before the pairs.
pub(crate) const ROOT_BYTES: u64 = 32;

/// The hash tree of these bytes of an object. It is not trusted: a [`VerifiedPart`](crate::VerifiedPart) compares each
/// pair with the root when it reads the pair.
#[derive(Clone, Debug)]
pub struct Outboard {
    root: Hash,
    range: Range<u64>,
    /// `None` if the tree has no pairs.
    pairs: Option<Arc<OutboardFile>>,
}

#[derive(Debug)]
struct OutboardFile {
    file: File,
    path: PathBuf,
}

impl Outboard {
    /// The root: BLAKE3 of the bytes.
    #[must_use]
    pub const fn root(&self) -> Hash {
        self.root
    }

    /// The bytes of the object that the outboard is of.
    #[must_use]
    pub const fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// The pair of this number.
    pub(crate) fn pair(&self, at: u64) -> io::Result<[u8; PAIR_BYTES]> {
        let mut bytes = [0; PAIR_BYTES];
        let pairs = self.pairs.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
        let at = ROOT_BYTES + at * PAIR_BYTES as u64;
        pairs.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Removes the file, because a pair in it is not the one of the tree, or cannot be read. The next reader computes it
    /// again.
    pub(crate) fn remove_file(&self) {
        if let Some(pairs) = &self.pairs {
            // If it cannot be removed, the next reader refuses the pair as well.
            let _ = fs::remove_file(&pairs.path);
        }
    }

    /// The tree of a range that is one group, or empty. It has no pairs, and no file is kept for it: an object of 65,536
    /// short parts would have as many.
    fn read_group(object: &ObjectView<'_>, range: &Range<u64>) -> Result<Self, ObjectError> {
        // At most a group, so the cast keeps the value.
        let mut bytes = vec![0; (range.end - range.start) as usize];
        object.read_exact_at(&mut bytes, range.start)?;
        object.check()?;
        Ok(Self {
            root: blake3::hash(&bytes),
            range: range.clone(),
            pairs: None,
        })
    }

    /// Opens the file of an outboard, if it has the right length.
    fn open(file: File, path: PathBuf, range: &Range<u64>) -> io::Result<Option<Self>> {
        let pairs_len = tree(range.end - range.start).outboard_size();
        if file.metadata()?.len() != ROOT_BYTES + pairs_len {
            return Ok(None);
        }
        let mut root = [0; ROOT_BYTES as usize];
        file.read_exact_at(&mut root, 0)?;
        Ok(Some(Self {
            root: Hash::from_bytes(root),
            range: range.clone(),
            pairs: Some(Arc::new(OutboardFile { file, path })),
        }))
    }

    /// Fails if the root is not the expected one.
    fn with_root(self, expected: Option<Hash>) -> Result<Self, ObjectError> {
        match expected {
            Some(expected) if expected != self.root => Err(ObjectError::OtherHash {
                range: self.range,
                found: self.root,
                expected,
            }),
            _ => Ok(self),
        }
    }
}

impl ObjectFolder {
    /// The outboard of these bytes of an object, if it is there and has the `expected` root. A range of one group is
    /// hashed at once, so it always has an outboard. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::OtherHash`] if a range of one group has another hash; [`ObjectError::Changed`];
    /// [`ObjectError::Io`].
    pub fn find_outboard(
        &self,
        object: &ObjectView<'_>,
        range: &Range<u64>,
        expected: Option<Hash>,
    ) -> Result<Option<Outboard>, ObjectError> {
        if range.end - range.start <= GROUP_BYTES {
            let found = Outboard::read_group(object, range)?;
            return found.with_root(expected).map(Some);
        }
        let name = outboard_name(&object.hash(), range);
        let outboards = self.outboards();
        let file = outboards.find(&name);
        let found = file.and_then(|file| Outboard::open(file, outboards.path(&name), range));
        let has_root = |found: &Outboard| expected.is_none_or(|expected| expected == found.root);
        // An outboard that cannot be read is computed again.
        Ok(found.ok().flatten().filter(has_root))
    }

    /// The same, and computes the outboard if it is missing, which reads the whole range. Blocks.
    ///
    /// A folder whose outboards are [placed](crate::OutboardPolicy::Placed) does not keep that of a part of an object.
    ///
    /// # Errors
    /// [`ObjectError::OtherHash`] if the bytes have another hash; [`ObjectError::Changed`]; [`ObjectError::Io`].
    pub fn build_outboard(
        &self,
        object: &ObjectView<'_>,
        range: &Range<u64>,
        expected: Option<Hash>,
    ) -> Result<Outboard, ObjectError> {
        if let Some(found) = self.find_outboard(object, range, expected)? {
            return Ok(found);
        }
        let io = |error| ObjectError::io(format_args!("hash object {}", object.hash()), error);
        let mut hasher = TreeHasher::new(self.staging());
        let mut at = range.start;
        let mut block = vec![0; BLOCK_BYTES];
        while at < range.end {
            // At most a block, so the cast keeps the value.
            let len = (range.end - at).min(BLOCK_BYTES as u64) as usize;
            object.read_exact_at(&mut block[..len], at)?;
            hasher.update(&block[..len]).map_err(io)?;
            at += len as u64;
        }
        let (root, new) = hasher.finish(self.staging(), &**self.disk()).map_err(io)?;
        // A change of the file while it was hashed would leave a tree of mixed content.
        object.check()?;
        let mut found = Outboard {
            root,
            range: range.clone(),
            pairs: None,
        }
        .with_root(expected)?;
        let Some(new) = new else {
            return Ok(found);
        };
        let name = outboard_name(&object.hash(), range);
        let outboards = self.outboards();
        let is_whole = *range == (0..object.size());
        let path = outboards.path(&name);
        let file = match is_whole || !outboards.is_placed() {
            true => {
                let file = outboards.add(name.clone(), new).map_err(io)?;
                // The removal of an object that comes after this look removes the outboard as well.
                if object.is_removed() {
                    outboards.remove(&name).map_err(io)?;
                }
                file
            }
            false => new.into_file(),
        };
        found.pairs = Some(Arc::new(OutboardFile { file, path }));
        Ok(found)
    }
}
