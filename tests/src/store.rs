//! The cache's folder of saved machines.
//!
//! Concurrent test programs share it: one of them makes a machine while the others wait for it. A
//! machine is used for a day, and until the host reboots. Each program checks each machine once
//! before it uses it, and makes a damaged one again. One that QEMU cannot read fails the test.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cli::CliRunner;

/// Sources that decide what is written into a machine's folder, and when. After a change of these,
/// each machine is made again. How a machine is built is in its recipe
/// ([`alknet_qemu::VmBuilder::recipe`]).
const MAKERS: [&str; 5] = [
    include_str!("../../qemu/src/snapshot.rs"),
    include_str!("../../qemu/src/tpm/mod.rs"),
    include_str!("../../qemu/src/tpm/command.rs"),
    include_str!("../../qemu/src/tpm/relay.rs"),
    include_str!("snapshot.rs"),
];

/// The list of a folder's files. It is written last, so a folder without it is incomplete.
const CONTENTS: &str = "contents.json";

/// The guests' clocks show the time of the save.
const USED_FOR: Duration = Duration::from_secs(24 * 3600);

/// How many machines are kept, the last used ones. A machine takes about 100 MB.
const KEPT: usize = 16;

/// The folder.
#[derive(Debug)]
pub(crate) struct SnapshotStore {
    folder: PathBuf,
}

/// A saved machine. No process removes it while this value exists.
#[derive(Debug)]
pub(crate) struct SnapshotEntry {
    path: PathBuf,
    /// Held while the files may be opened.
    lock: File,
}

/// The manifest of a complete folder.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct SnapshotManifest {
    /// The host's boot ID. After a reboot, its clocks start again.
    boot_id: String,
    /// Seconds since 1970.
    made_s: u64,
    files: Vec<SnapshotFile>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct SnapshotFile {
    name: String,
    checksum: u64,
}

impl SnapshotStore {
    /// The store in the project's cache.
    pub(crate) fn open() -> Self {
        let cache = alknet_qemu::cache_dir().expect("ALKNET_CACHE or HOME names a folder");
        Self::at(&cache.join("machines"))
    }

    /// The store in this folder.
    pub(crate) fn at(folder: &Path) -> Self {
        let folder = folder.to_owned();
        // Another user who can open a lock file could hold the lock for ever.
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder);
        made.expect("the cache can be written");
        Self { folder }
    }

    /// State directory of the administrator of all machines in the store.
    pub(crate) fn administrator(&self) -> PathBuf {
        let state = self.folder.join("administrator");
        let _one = self.exclusive("administrator");
        CliRunner::new(state.clone()).identity();
        state
    }

    /// The text of a file here, never empty, which `make` provides first. The file is complete or
    /// missing, because a process may be killed at any moment.
    pub(crate) fn text(&self, name: &str, make: impl FnOnce() -> String) -> String {
        let _one = self.exclusive(name);
        let file = self.folder.join(name);
        let known = fs::read_to_string(&file).unwrap_or_default();
        if !known.is_empty() {
            return known;
        }
        let text = make();
        let new = self.folder.join(format!("{name}.new"));
        let written = fs::write(&new, &text).and_then(|()| fs::rename(&new, &file));
        written.expect("the cache can be written");
        text
    }

    /// The result of `restore` with the folder of the machine with this recipe.
    ///
    /// # Panics
    /// `restore` fails. A machine that QEMU could not restore is removed: its files may be intact
    /// and still be unusable, and the next run makes it again.
    pub(crate) fn restore<T>(
        &self,
        recipe: &str,
        make: impl Fn(&Path),
        restore: impl Fn(&Path) -> alknet_qemu::Result<T>,
    ) -> T {
        use alknet_qemu::Error;

        let entry = self.entry(recipe, &make);
        match restore(entry.path()) {
            Ok(restored) => restored,
            Err(error @ (Error::Ended { .. } | Error::NotStarted { .. } | Error::Qmp { .. })) => {
                let path = entry.path().to_owned();
                self.discard(entry);
                panic!(
                    "QEMU cannot restore the saved machine in {}, which is removed: {error}",
                    path.display()
                );
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Removes a machine, unless another process has already made it again.
    fn discard(&self, entry: SnapshotEntry) {
        let SnapshotEntry { path, lock } = entry;
        let failed = SnapshotManifest::read(&path).ok();
        let key = path.file_name().unwrap_or_default().to_string_lossy();
        drop(lock);
        let _one = self.exclusive(&key);
        if SnapshotManifest::read(&path).ok() == failed {
            remove(&path);
        }
    }

    /// The machine made by this recipe. `make` is called, with an empty folder, only if the cache
    /// has no complete machine of this recipe.
    pub(crate) fn entry(&self, recipe: &str, make: impl Fn(&Path)) -> SnapshotEntry {
        let qemu = alknet_qemu::version().unwrap_or_else(|error| panic!("{error}"));
        let all = format!("{qemu}\n{}\n{recipe}", MAKERS.concat());
        let key = HEXLOWER.encode(&Sha256::digest(all)[..16]);
        let path = self.folder.join(&key);
        loop {
            let lock = self.lock(&key);
            lock.lock_shared().expect("a lock can be waited for");
            if is_whole(&path) {
                let entry = SnapshotEntry { path, lock };
                entry.used(SystemTime::now());
                return entry;
            }
            drop(lock);
            let lock = self.exclusive(&key);
            if !is_whole(&path) {
                self.make(&path, recipe, &make);
                self.prune(&key);
            }
            drop(lock);
        }
    }

    /// Makes a machine in a temporary folder and moves it to its path when complete.
    fn make(&self, path: &Path, recipe: &str, make: impl Fn(&Path)) {
        remove(path);
        let new = tempfile::tempdir_in(&self.folder).expect("the cache can be written");
        make(new.path());
        let write = |name: &str, text: &str| {
            let file = new.path().join(name);
            fs::write(file, text).expect("the cache can be written");
        };
        write("recipe", recipe);
        let contents = SnapshotManifest::scan(new.path()).expect("it was just written");
        let contents = serde_json::to_string(&contents).expect("plain values");
        write(CONTENTS, &contents);
        fs::rename(new.keep(), path).expect("a folder in the same place");
    }

    /// Removes machines that no process uses, except the last used ones.
    fn prune(&self, made: &str) {
        let entries = fs::read_dir(&self.folder).expect("the cache can be read");
        let mut locks: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|it| it == "lock"))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, lock)| lock.with_extension("").join(CONTENTS).exists())
            .collect();
        locks.sort();
        let surplus = locks.len().saturating_sub(KEPT);
        for (_, path) in locks.into_iter().take(surplus) {
            let folder = path.with_extension("");
            let is_made = folder.file_name().is_some_and(|name| name == made);
            let Ok(lock) = File::open(&path) else {
                continue;
            };
            // Held until the folder is removed, because the next process may already need the
            // machine.
            if !is_made && lock.try_lock().is_ok() {
                remove(&folder);
            }
        }
    }

    fn exclusive(&self, name: &str) -> File {
        let lock = self.lock(name);
        lock.lock().expect("a lock can be waited for");
        lock
    }

    fn lock(&self, name: &str) -> File {
        let path = self.folder.join(format!("{name}.lock"));
        let opened = OpenOptions::new().create(true).append(true).open(path);
        opened.expect("the cache can be written")
    }
}

impl SnapshotEntry {
    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Records the time of use, which decides how long it is kept.
    fn used(&self, at: SystemTime) {
        self.lock.set_modified(at).ok();
    }
}

impl SnapshotManifest {
    /// The current content of this folder.
    fn scan(folder: &Path) -> io::Result<Self> {
        let mut files = vec![];
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == CONTENTS {
                continue;
            }
            let checksum = alknet_qemu::checksum(&entry.path()).map_err(io::Error::other)?;
            files.push(SnapshotFile { name, checksum });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            boot_id: boot_id(),
            made_s: since_1970().as_secs(),
            files,
        })
    }

    fn read(folder: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(folder.join(CONTENTS))?;
        Ok(serde_json::from_str(&text)?)
    }

    fn age(&self) -> Duration {
        since_1970().saturating_sub(Duration::from_secs(self.made_s))
    }
}

/// The machines that this process has checked.
static CHECKED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn checked() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    CHECKED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn forget(path: &Path) {
    checked().remove(path);
}

/// Whether the machine at this path can be used.
fn is_whole(path: &Path) -> bool {
    let Ok(contents) = SnapshotManifest::read(path) else {
        return false;
    };
    if contents.boot_id != boot_id() || contents.age() > USED_FOR {
        return false;
    }
    if checked().contains(path) {
        return true;
    }
    let whole = SnapshotManifest::scan(path).is_ok_and(|now| now.files == contents.files);
    if whole {
        checked().insert(path.to_owned());
    } else {
        eprintln!("{} is damaged and is made again", path.display());
    }
    whole
}

fn remove(path: &Path) {
    forget(path);
    match fs::remove_dir_all(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => panic!("the cache can be written: {error}"),
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn since_1970() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Makes an entry of one file, and counts.
    fn entry(store: &SnapshotStore, made: &Cell<u32>) -> SnapshotEntry {
        store.entry("a recipe", |folder| {
            made.set(made.get() + 1);
            fs::write(folder.join("memory"), "what it was").expect("the folder is ours");
        })
    }

    #[test]
    fn a_machine_is_made_once_and_again_when_it_is_damaged() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let (store, made) = (SnapshotStore::at(folder.path()), Cell::new(0));
        let first = entry(&store, &made);
        let memory = first.path().join("memory");
        drop((entry(&store, &made), first));
        assert_eq!(made.get(), 1);

        // Another process has not checked it yet.
        let damages: [fn(&Path); 4] = [
            |memory| fs::write(memory, "what it Was").expect("ours"),
            |memory| fs::remove_file(memory).expect("ours"),
            |memory| fs::write(memory.with_file_name(CONTENTS), "{").expect("ours"),
            |memory| fs::remove_dir_all(memory.with_file_name("")).expect("ours"),
        ];
        for (count, damage) in (2..).zip(damages) {
            damage(&memory);
            forget(memory.parent().expect("a folder"));
            drop(entry(&store, &made));
            assert_eq!(made.get(), count);
            let text = fs::read_to_string(&memory).expect("it is whole");
            assert_eq!(text, "what it was");
        }
    }

    #[test]
    fn a_machine_of_another_boot_or_another_day_is_made_again() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let (store, made) = (SnapshotStore::at(folder.path()), Cell::new(0));
        let path = entry(&store, &made).path().to_owned();
        let changes: [fn(&mut SnapshotManifest); 2] = [
            |contents| contents.boot_id.clear(),
            |contents| contents.made_s -= USED_FOR.as_secs() + 60,
        ];
        for (count, change) in (2..).zip(changes) {
            let mut contents = SnapshotManifest::read(&path).expect("it is whole");
            change(&mut contents);
            let text = serde_json::to_string(&contents).expect("plain values");
            fs::write(path.join(CONTENTS), text).expect("the folder is ours");
            drop(entry(&store, &made));
            assert_eq!(made.get(), count);
        }
    }

    #[test]
    fn threads_that_want_the_same_machine_have_it_made_once() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let store = SnapshotStore::at(folder.path());
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let entry = store.entry("a recipe", |folder| {
                        made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(50));
                        fs::write(folder.join("memory"), "x").expect("the folder is ours");
                    });
                    assert!(entry.path().join("memory").exists());
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    /// Its checksum is correct for its content. Only QEMU finds that it is not a machine.
    #[test]
    fn a_machine_that_cannot_be_restored_fails_and_is_made_again_next_time() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let store = SnapshotStore::at(folder.path());
        let made = Cell::new(0);
        let restored = |error: fn() -> alknet_qemu::Error| {
            let make = |folder: &Path| {
                made.set(made.get() + 1);
                fs::write(folder.join("devices"), "garbage").expect("the folder is ours");
            };
            let restore = || store.restore("a recipe", make, |_| Err::<(), _>(error()));
            let panic = catch_unwind(AssertUnwindSafe(restore)).expect_err("it fails");
            panic.downcast::<String>().expect("a text")
        };
        let not_started = || alknet_qemu::Error::NotStarted {
            status: "exit status: 1".to_owned(),
            stderr: "no machine".to_owned(),
        };
        let said = restored(not_started);
        assert!(
            said.contains("which is removed: ") && said.contains("no machine"),
            "{said}"
        );
        // An error that does not concern the saved machine keeps it.
        let said = restored(|| alknet_qemu::Error::BeyondNeeds {
            all: 2,
            most_mib: 1,
        });
        assert!(said.contains("machines-mib"), "{said}");
        assert_eq!(made.get(), 2);
        let again = store.restore("a recipe", |_| unreachable!("it is whole"), |_| Ok("it"));
        assert_eq!(again, "it");
    }

    #[test]
    fn a_text_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let store = SnapshotStore::at(folder.path());
        // Files left by killed processes: before they wrote, and before the rename.
        fs::write(folder.path().join("token"), "").expect("the folder is ours");
        fs::write(folder.path().join("token.new"), "ha").expect("the folder is ours");
        assert_eq!(store.text("token", || "whole".to_owned()), "whole");
        let kept = store.text("token", || unreachable!("it is there"));
        assert_eq!(kept, "whole");
        assert!(!folder.path().join("token.new").exists());
    }

    #[test]
    fn two_that_remove_the_same_machines_do_not_disturb_each_other() {
        const ROUNDS: usize = 50;
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let store = SnapshotStore::at(folder.path());
        let make = |folder: &Path| {
            for number in 0..8 {
                fs::write(folder.join(number.to_string()), "x").expect("the folder is ours");
            }
        };
        let used = store.entry("used", make);
        let old = SystemTime::now() - Duration::from_secs(60);
        used.used(old);
        for round in 0..ROUNDS {
            for number in 0..2 * KEPT {
                let key = format!("{round}-{number}");
                let (lock, path) = (store.lock(&key), folder.path().join(&key));
                fs::create_dir(&path).expect("the folder is ours");
                make(&path);
                fs::write(path.join(CONTENTS), "{}").expect("the folder is ours");
                lock.set_modified(old).expect("the lock is ours");
            }
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| store.prune("none"));
                }
            });
            assert!(used.path().join(CONTENTS).exists(), "it is in use");
        }
    }

    #[test]
    fn machines_that_were_used_last_are_kept() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let store = SnapshotStore::at(folder.path());
        let make = |folder: &Path| fs::write(folder.join("x"), "x").expect("ours");
        // In use, so that it stays although it is the oldest.
        let used = store.entry("used", make);
        let old = SystemTime::now() - Duration::from_secs(60);
        used.used(old);
        let free = store.entry("free", make);
        let path = free.path().to_owned();
        free.used(old);
        drop(free);
        for number in 0..KEPT {
            drop(store.entry(&number.to_string(), make));
        }
        assert!(used.path().exists(), "it is in use");
        assert!(!path.exists(), "it was used least lately");
        let entries = fs::read_dir(folder.path()).expect("it is there").flatten();
        let kept = entries.filter(|entry| entry.path().join(CONTENTS).exists());
        assert_eq!(kept.count(), KEPT + 1, "and the one in use");
    }
}
