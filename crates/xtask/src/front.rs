//! Puts the compiler's [front](crate::rustc) where cargo finds it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::rustc;

/// Its owner may change it, and all users may run it.
const MODE: u32 = 0o755;

/// Puts `program`, which must first call [`rustc::stand_in`], where cargo finds the front. Anything
/// else there is replaced: the path depends on how the front compiles, not on which program it is.
pub fn install(program: &Path, cache: &Path) -> io::Result<()> {
    let path = rustc::path(cache);
    // An identical file stays, because cargo compiles everything again if its compiler's time
    // changes.
    if is_same(program, &path)? {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(cache);
    fs::create_dir_all(folder)?;
    // A rename, so that the file is complete whenever cargo of another clone starts it.
    let fresh = folder.join(format!("fresh-{}", std::process::id()));
    fs::copy(program, &fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(MODE))?;
    fs::rename(fresh, path)
}

/// Whether an executable copy of the program is there.
fn is_same(program: &Path, path: &Path) -> io::Result<bool> {
    // A link there is replaced, not followed.
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let is_like = there.is_file()
        && there.mode() & 0o7777 == MODE
        && there.len() == fs::metadata(program)?.len();
    Ok(is_like && fs::read(program)? == fs::read(path)?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The mode bits of a regular file, without permissions.
    const FILE: u32 = 0o100_000;

    /// A cache, and a clone's program.
    fn places() -> (tempfile::TempDir, PathBuf) {
        let cache = tempfile::tempdir().expect("a folder of this test's own");
        let program = cache.path().join("program");
        fs::write(&program, "one").expect("ours");
        (cache, program)
    }

    /// A program that a branch's code wrote there would compile every other clone.
    #[test]
    fn another_program_in_the_fronts_place_is_replaced() {
        let (cache, program) = places();
        let path = rustc::path(cache.path());
        let is_installed = || {
            install(&program, cache.path()).expect("writable");
            let mode = fs::symlink_metadata(&path).expect("it is there").mode();
            let content = fs::read_to_string(&path).expect("readable");
            content == "one" && mode == FILE | MODE
        };
        assert!(is_installed());
        fs::write(&path, "two").expect("ours");
        assert!(is_installed(), "of the same length");
        fs::write(&path, "another").expect("ours");
        assert!(is_installed());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
        assert!(is_installed(), "it can be run");
        fs::remove_file(&path).expect("ours");
        std::os::unix::fs::symlink(&program, &path).expect("ours");
        assert!(is_installed(), "a copy, and no link");
    }

    #[test]
    fn the_same_program_is_left_as_it_is() {
        let (cache, program) = places();
        let inode = || {
            install(&program, cache.path()).expect("writable");
            let there = fs::metadata(rustc::path(cache.path()));
            there.expect("it is there").ino()
        };
        assert_eq!(inode(), inode());
    }
}
