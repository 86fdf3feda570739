//! The outboards that a folder keeps of those that readers wanted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use blake3::Hash;
use tempfile::NamedTempFile;

use crate::disk_usage::bytes_on_disk;

/// The folder of hash trees. A reader decides of which parts there are trees, so they have limits, and the trees that
/// no request has used for longest give way: a tree can be computed again.
#[derive(Debug)]
pub(crate) struct TreeFiles {
    folder: PathBuf,
    count_max: usize,
    /// Bytes that all trees take of the disk at most, unless there is only one.
    bytes_max: u64,
    bytes: u64,
    /// Number of uses so far.
    uses: u64,
    files: BTreeMap<String, TreeFile>,
}

#[derive(Clone, Copy, Debug)]
struct TreeFile {
    /// Bytes that it takes of the disk.
    bytes: u64,
    /// Number of its last use.
    used: u64,
}

impl TreeFiles {
    /// Reads the folder, and removes what is beyond the limits. Blocks.
    pub(crate) fn open(folder: PathBuf, count_max: usize, bytes_max: u64) -> io::Result<Self> {
        let mut trees = Self {
            folder,
            count_max,
            bytes_max,
            bytes: 0,
            uses: 0,
            files: BTreeMap::new(),
        };
        for file in fs::read_dir(&trees.folder)? {
            let file = file?;
            let len = file.metadata()?.len();
            trees.insert(file.file_name().to_string_lossy().into_owned(), len);
        }
        trees.shrink()?;
        Ok(trees)
    }

    /// Opens a tree, which counts as used.
    pub(crate) fn find(&mut self, name: &str) -> io::Result<File> {
        let file = File::open(self.folder.join(name))?;
        self.uses += 1;
        if let Some(known) = self.files.get_mut(name) {
            known.used = self.uses;
        }
        Ok(file)
    }

    /// Keeps a tree that was computed. The trees that give way to it stay readable for responses that have opened them.
    pub(crate) fn add(&mut self, name: String, new: NamedTempFile) -> io::Result<File> {
        // The file is not synced: a tree that a power cut damaged does not match its root and is computed again.
        let file = new.persist(self.folder.join(&name))?;
        let len = file.metadata()?.len();
        self.insert(name, len);
        self.shrink()?;
        Ok(file)
    }

    /// Removes the trees that were computed from this file.
    pub(crate) fn remove_of(&mut self, hash: &Hash) -> io::Result<()> {
        let prefix = format!("{hash}-");
        let names = self.files.range(prefix.clone()..).map(|(name, _)| name);
        let names = names.take_while(|name| name.starts_with(&prefix));
        for name in names.cloned().collect::<Vec<_>>() {
            self.remove(&name)?;
        }
        Ok(())
    }

    fn insert(&mut self, name: String, len: u64) {
        self.uses += 1;
        let file = TreeFile {
            bytes: bytes_on_disk(len),
            used: self.uses,
        };
        self.bytes = self.bytes.saturating_add(file.bytes);
        if let Some(before) = self.files.insert(name, file) {
            self.bytes = self.bytes.saturating_sub(before.bytes);
        }
    }

    fn shrink(&mut self) -> io::Result<()> {
        // The last one stays even if it alone is above the limit, or it would be computed for each request.
        while self.files.len() > self.count_max
            || (self.files.len() > 1 && self.bytes > self.bytes_max)
        {
            let oldest = self.files.iter().min_by_key(|(_, file)| file.used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else {
                return Ok(());
            };
            self.remove(&oldest)?;
        }
        Ok(())
    }

    /// Removes a tree, if there is one.
    pub(crate) fn remove(&mut self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.folder.join(Path::new(name))) {
            // A user may delete trees at any time.
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(file) = self.files.remove(name) {
            self.bytes = self.bytes.saturating_sub(file.bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREES: usize = 1024;

    fn add_tree(trees: &mut TreeFiles, folder: &Path, name: &str, len: u64) {
        let new = NamedTempFile::new_in(folder).expect("writable");
        new.as_file().set_len(len).expect("writable");
        trees.add(name.to_owned(), new).expect("writable");
    }

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).expect("readable").count()
    }

    /// A reader asked for the trees of 65,536 entries of a file, which took as many inodes.
    #[test]
    fn trees_have_a_number_and_give_way() {
        let uploads = tempfile::tempdir().expect("writable");
        let folder = tempfile::tempdir().expect("writable");
        let folder = folder.path();
        let mut trees = TreeFiles::open(folder.to_owned(), TREES, u64::MAX).expect("empty");
        for at in 0..TREES {
            add_tree(&mut trees, uploads.path(), &format!("tree{at}"), 96);
        }
        trees.find("tree0").expect("the first is there");
        for at in 0..10 {
            add_tree(&mut trees, uploads.path(), &format!("more{at}"), 96);
        }
        assert_eq!((count(folder), count(uploads.path())), (TREES, 0));
        assert_eq!(trees.bytes, TREES as u64 * bytes_on_disk(96));
        trees.find("tree0").expect("it was used");
        trees.find("tree1").expect_err("it was not used");
        // Those of an earlier version are removed at the start.
        for at in 0..20 {
            fs::write(folder.join(format!("old{at}")), [0; 32]).expect("writable");
        }
        let trees = TreeFiles::open(folder.to_owned(), TREES, u64::MAX).expect("readable");
        assert_eq!((count(folder), trees.files.len()), (TREES, TREES));
    }

    #[test]
    fn trees_have_bytes_and_go_with_their_file() {
        let uploads = tempfile::tempdir().expect("writable");
        let folder = tempfile::tempdir().expect("writable");
        let folder = folder.path();
        let bytes_max = 3 * bytes_on_disk(4096);
        let mut trees = TreeFiles::open(folder.to_owned(), TREES, bytes_max).expect("empty");
        let [one, other] = [b"a", b"b"].map(|bytes| blake3::hash(bytes));
        for (id, at) in [(one, 0), (one, 1), (other, 2), (one, 3)] {
            add_tree(&mut trees, uploads.path(), &format!("{id}-{at}-9"), 4096);
        }
        assert_eq!((count(folder), trees.bytes), (3, bytes_max));
        fs::remove_file(folder.join(format!("{one}-1-9"))).expect("a user may");
        trees.remove_of(&one).expect("writable");
        assert_eq!((count(folder), trees.bytes), (1, bytes_on_disk(4096)));
        // One that is larger than all may be.
        add_tree(&mut trees, uploads.path(), "large", 10 * bytes_max);
        assert_eq!(count(folder), 1);
        trees.find("large").expect("it stays");
    }
}
