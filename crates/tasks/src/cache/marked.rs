//! The mark of a cache: pruning touches no folder that lacks it.

use std::fs;
use std::io::Read;
use std::path::Path;

use crate::failure::{Failure, Result};

/// The file that marks a cache, and what it begins with: the Cache Directory Tagging Specification,
/// <https://bford.info/cachedir/>.
const TAG: &str = "CACHEDIR.TAG";
const SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// A cache that a command of this project has claimed.
///
/// `ALKNET_CACHE` may name any folder. In a home directory, `bin` and `image` are the user's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct MarkedCache<'a>(&'a Path);

impl<'a> MarkedCache<'a> {
    /// An error that names the folder when it has no mark.
    pub(super) fn find(cache: &'a Path) -> Result<Self> {
        if is_marked(cache) {
            return Ok(Self(cache));
        }
        Err(Failure::Arguments(format!(
            "{} is not known to be a cache of this project, so nothing in it is removed: it has no {TAG}, \
             which the commands write into the cache that they use; see what ALKNET_CACHE names",
            cache.display()
        )))
    }

    pub(super) const fn path(self) -> &'a Path {
        self.0
    }
}

fn is_marked(cache: &Path) -> bool {
    let tag = cache.join(TAG);
    // A link may lead to the tag of another cache; the specification wants a regular file.
    if !fs::symlink_metadata(&tag).is_ok_and(|data| data.is_file()) {
        return false;
    }
    let mut begin = [0; SIGNATURE.len()];
    let read = fs::File::open(&tag).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == *SIGNATURE
}

/// Marks a folder as the front does, for tests.
#[cfg(test)]
pub(super) fn mark(cache: &Path) {
    fs::create_dir_all(cache).expect("writable");
    let text = [SIGNATURE.as_slice(), b"\n# A cache.\n"].concat();
    fs::write(cache.join(TAG), text).expect("writable");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_the_specifications_signature_is_a_mark() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(!is_marked(folder.path()));
        for text in [
            "",
            "Signature: ",
            "signature: 8a477f597d28d172789f06886806bc55",
        ] {
            fs::write(folder.path().join(TAG), text).expect("writable");
            assert!(!is_marked(folder.path()), "{text}");
        }
        mark(folder.path());
        assert!(is_marked(folder.path()));
        let other = tempfile::tempdir().expect("a temporary folder");
        symlink(folder.path().join(TAG), other.path().join(TAG)).expect("links");
        assert!(!is_marked(other.path()));
    }
}
