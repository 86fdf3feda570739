//! The mark of a cache. Pruning does not touch a folder without it.

use std::path::Path;

use xtask::cache::is_marked;

use crate::failure::{Result, TaskError};

/// A cache that a command of this project has claimed.
///
/// `ALKNET_CACHE` may name any folder. In a home directory, `bin` and `image` are the user's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct MarkedCache<'a>(&'a Path);

impl<'a> MarkedCache<'a> {
    /// Fails with an error that names the folder if the folder has no mark.
    pub(super) fn find(cache: &'a Path) -> Result<Self> {
        if is_marked(cache) {
            return Ok(Self(cache));
        }
        Err(TaskError::Arguments(format!(
            "{} is not known to be a cache of this project, so nothing in it is removed: it has no \
             CACHEDIR.TAG of this project's, which the commands write into the cache that they use; see what \
             ALKNET_CACHE names",
            cache.display()
        )))
    }

    pub(super) const fn path(self) -> &'a Path {
        self.0
    }
}

/// Marks a folder as the front does, for tests. It is empty, or has only entries of a cache.
#[cfg(test)]
pub(super) fn mark(cache: &Path) {
    // The clone is beside the cache, so that no folder above the cache lacks it.
    let beside = cache.parent().expect("it lies in a folder");
    let clone = tempfile::tempdir_in(beside).expect("a temporary folder");
    xtask::cache::open(clone.path(), cache).expect("a cache");
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Cargo and other programs mark their caches, too.
    const OF_CARGO: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# created by cargo.\n";

    #[test]
    fn the_mark_of_another_program_and_a_link_to_ours_are_none() {
        let folders = [(); 3].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let [ours, of_cargo, linked] = folders.each_ref().map(tempfile::TempDir::path);
        assert!(MarkedCache::find(ours).is_err());
        mark(ours);
        assert!(MarkedCache::find(ours).is_ok());
        fs::write(of_cargo.join("CACHEDIR.TAG"), OF_CARGO).expect("writable");
        assert!(MarkedCache::find(of_cargo).is_err());
        symlink(ours.join("CACHEDIR.TAG"), linked.join("CACHEDIR.TAG")).expect("links");
        assert!(MarkedCache::find(linked).is_err());
    }
}
