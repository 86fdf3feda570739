//! Folders in the cache, which several runs may make at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::digest;

/// Moves a finished folder to `destination`. If another command was faster, the same folder is
/// there.
pub(crate) fn settle(fresh: &Path, destination: &Path) -> io::Result<()> {
    fs::create_dir_all(destination.parent().unwrap_or(destination))?;
    match fs::rename(fresh, destination) {
        // Another command put the same there first, and rename(2) does not replace a folder that is
        // not empty.
        Err(_) if destination.exists() => Ok(()),
        moved => moved,
    }
}

/// Removes all but the newest `kept` folders in `parent` whose names have the form of a key. The
/// folder just made is the newest. Other entries in `parent` stay.
pub(crate) fn forget_old(parent: &Path, made: &Path, kept: usize) -> io::Result<()> {
    let mut folders: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        // This code did not make an entry with another name.
        if !entry.file_name().to_str().is_some_and(digest::is_key) {
            continue;
        }
        folders.push((entry.metadata()?.modified()?, entry.path()));
    }
    folders.sort();
    let surplus = folders.len().saturating_sub(kept);
    for (_, folder) in folders
        .into_iter()
        .take(surplus)
        .filter(|(_, folder)| folder != made)
    {
        fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_are_kept() {
        const KEPT: usize = 6;
        let parent = tempfile::tempdir().expect("a temporary folder");
        let folder = |n: usize| parent.path().join(format!("{n:016x}"));
        let holiday = parent.path().join("holiday");
        fs::create_dir(&holiday).expect("writable");
        let long_ago = fs::File::open(&holiday);
        long_ago
            .and_then(|f| f.set_modified(SystemTime::UNIX_EPOCH))
            .expect("ours to date");
        for n in 0..KEPT + 2 {
            fs::create_dir(folder(n)).expect("writable");
            let age = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n as u64);
            fs::File::open(folder(n))
                .and_then(|f| f.set_modified(age))
                .expect("ours to date");
        }
        forget_old(parent.path(), &folder(0), KEPT).expect("removable");
        assert!(
            folder(0).exists(),
            "the one just made stays whatever its date"
        );
        assert!(!folder(1).exists());
        assert!((2..KEPT + 2).all(|n| folder(n).exists()));
        assert!(holiday.exists(), "no command made it");
    }

    #[test]
    fn what_is_there_already_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [fresh, place] = ["fresh", "tools/place"].map(|name| folder.path().join(name));
        for content in ["first", "second"] {
            fs::create_dir(&fresh).expect("writable");
            fs::write(fresh.join("file"), content).expect("writable");
            settle(&fresh, &place).expect("settled");
            fs::remove_dir_all(&fresh).ok();
        }
        let kept = fs::read_to_string(place.join("file")).expect("readable");
        assert_eq!(kept, "first");
    }
}
