//! Locks on files in the cache. A lock lasts as long as a process has the file open.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether other processes may hold the lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// With every other process that takes it shared.
    Shared,
    /// With no other process.
    Exclusive,
}

/// Takes the lock on the file at `path`, and creates the file if needed. Before this waits for
/// another process, `waiting` is called once with the file's text.
pub fn take(path: &Path, sharing: Sharing, waiting: impl FnOnce(&str)) -> io::Result<File> {
    let mut waiting = Some(waiting);
    loop {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        // The first try does not wait, so that the user sees which process holds the lock.
        let tried = match sharing {
            Sharing::Shared => file.try_lock_shared(),
            Sharing::Exclusive => file.try_lock(),
        };
        match tried {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                if let Some(waiting) = waiting.take() {
                    waiting(holder.trim());
                }
                match sharing {
                    Sharing::Shared => file.lock_shared()?,
                    Sharing::Exclusive => file.lock()?,
                }
            }
        }
        // If the file was deleted meanwhile, its lock does not exclude a process that opens the
        // path now.
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((held.dev(), held.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_lock_whose_folder_was_deleted_goes_to_one_process_only() {
        let folder = tempfile::tempdir().expect("a folder of this test's own");
        let folder = folder.path();
        let path = folder.join("cache/lock");
        let first = take(&path, Sharing::Exclusive, |_| {}).expect("it is free");
        let (waits, waited) = mpsc::channel();
        let released = AtomicBool::new(false);
        thread::scope(|scope| {
            let second = scope.spawn(|| {
                let lock = take(&path, Sharing::Exclusive, |_| {
                    waits.send(()).expect("the test listens");
                });
                let alone = released.load(Ordering::SeqCst);
                drop(lock.expect("it is taken in the end"));
                alone
            });
            waited.recv().expect("the second waits");
            fs::remove_dir_all(folder.join("cache")).expect("ours");
            let third = take(&path, Sharing::Exclusive, |_| {}).expect("the path is free");
            drop(first);
            // Long enough that the second thread, which waited for the old file, could mistake it
            // for the lock.
            thread::sleep(Duration::from_millis(300));
            released.store(true, Ordering::SeqCst);
            drop(third);
            assert!(
                second.join().expect("no panic"),
                "two held the lock at once"
            );
        });
    }

    #[test]
    fn shared_locks_keep_an_exclusive_one_out() {
        let folder = tempfile::tempdir().expect("a folder of this test's own");
        let path = folder.path().join("lock");
        let one = take(&path, Sharing::Shared, |_| panic!("it is free")).expect("writable");
        let two = take(&path, Sharing::Shared, |_| panic!("it is shared")).expect("writable");
        assert!(File::open(&path).expect("there").try_lock().is_err());
        drop((one, two));
    }
}
