use std::process::Command;
use std::time::{Duration, SystemTime};

use alknet_test_support::deadline;

use super::*;

struct Folders(PathBuf);

impl Folders {
    fn new() -> Self {
        let base = tempfile::tempdir()
            .expect("a folder of this test's own")
            .keep();
        fs::create_dir_all(base.join("clone/src")).expect("ours");
        Self(base)
    }

    fn clone(&self) -> PathBuf {
        self.0.join("clone")
    }

    fn mirror(&self) -> PathBuf {
        self.0.join("mirror")
    }

    fn write(&self, file: &str, content: &str) {
        fs::write(self.clone().join(file), content).expect("the folder is ours");
    }

    fn sync(&self) -> MirrorChanges {
        self.synced().changes
    }

    fn synced(&self) -> SyncResult {
        self.try_sync().expect("both folders are ours")
    }

    fn try_sync(&self) -> io::Result<SyncResult> {
        let (mirror, cache) = (self.mirror(), self.0.join("cache"));
        sync(&self.clone(), &mirror, &cache, SystemTime::UNIX_EPOCH)
    }

    fn bring_back(&self, record: &mut MirrorRecord) -> BringBackResult {
        bring_back(&self.clone(), &self.mirror(), record).expect("both folders are ours")
    }

    fn in_mirror(&self, file: &str, content: &str) {
        let path = self.mirror().join(file);
        fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("ours");
        fs::write(path, content).expect("ours");
    }

    fn in_clone(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.clone().join(file)).ok()
    }

    fn git(&self, arguments: &[&str]) {
        let status = git(&self.clone()).args(arguments).status();
        assert!(status.expect("git is installed").success());
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn only_files_with_other_content_are_written() {
    let folders = Folders::new();
    folders.write("src/a.rs", "a");
    folders.write("src/b.rs", "b");
    assert_eq!(
        folders.sync(),
        MirrorChanges {
            written: 2,
            removed: 0
        }
    );
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let kept = folders.mirror().join("src/a.rs");
    let file = File::options()
        .write(true)
        .open(&kept)
        .expect("it is there");
    file.set_modified(old).expect("ours to date");
    // The clone's times do not count, because a fresh clone has new ones for old content.
    folders.write("src/a.rs", "a");
    folders.write("src/b.rs", "c");
    assert_eq!(
        folders.sync(),
        MirrorChanges {
            written: 1,
            removed: 0
        }
    );
    let modified = fs::metadata(&kept).and_then(|data| data.modified());
    assert_eq!(modified.expect("it is there"), old);
    let changed = fs::read_to_string(folders.mirror().join("src/b.rs"));
    assert_eq!(changed.expect("it is there"), "c");
}

#[test]
fn what_left_the_clone_leaves_the_mirror_and_what_the_build_wrote_stays() {
    let folders = Folders::new();
    folders.write("src/a.rs", "a");
    folders.write("b.rs", "b");
    folders.sync();
    let generated = folders.mirror().join(GENERATED[0]);
    fs::create_dir_all(generated.parent().expect("it lies in a folder")).expect("ours");
    fs::write(&generated, "llvmpipe=/x\n").expect("ours");
    fs::remove_file(folders.clone().join("src/a.rs")).expect("ours");
    assert_eq!(
        folders.sync(),
        MirrorChanges {
            written: 0,
            removed: 1
        }
    );
    assert!(!folders.mirror().join("src").exists() && generated.exists());
    // A folder may become a file, and a file a folder.
    fs::remove_dir(folders.clone().join("src")).expect("ours");
    folders.write("src", "a file");
    fs::remove_file(folders.clone().join("b.rs")).expect("ours");
    fs::create_dir(folders.clone().join("b.rs")).expect("ours");
    folders.write("b.rs/c.rs", "c");
    assert_eq!(
        folders.sync(),
        MirrorChanges {
            written: 2,
            removed: 1
        }
    );
    assert!(folders.mirror().join("b.rs/c.rs").exists());
}

#[test]
fn a_link_stays_a_link_and_a_program_a_program() {
    use std::os::unix::fs::PermissionsExt;
    let folders = Folders::new();
    folders.write("run", "#!/bin/sh\n");
    fs::set_permissions(folders.clone().join("run"), Permissions::from_mode(0o755)).expect("ours");
    symlink("run", folders.clone().join("link")).expect("ours");
    assert_eq!(folders.sync().written, 2);
    assert_eq!(folders.sync(), MirrorChanges::default());
    let link = fs::read_link(folders.mirror().join("link"));
    assert_eq!(link.expect("a link"), Path::new("run"));
    let mode = fs::metadata(folders.mirror().join("run")).map(|data| data.permissions().mode());
    assert_eq!(mode.expect("it is there") & 0o777, 0o755);
}

/// In the clone, replaces a folder by a link to a folder outside of it.
fn replace_by_link(folders: &Folders, folder: &str) -> PathBuf {
    let elsewhere = folders.0.join("elsewhere");
    fs::create_dir_all(elsewhere.join("driver")).expect("ours");
    for file in ["a.rs", "driver/a.rs"] {
        fs::write(elsewhere.join(file), "of others").expect("ours");
    }
    fs::remove_dir_all(folders.clone().join(folder)).expect("ours");
    symlink(&elsewhere, folders.clone().join(folder)).expect("ours");
    elsewhere
}

fn content_of_others(elsewhere: &Path) -> [String; 2] {
    ["a.rs", "driver/a.rs"].map(|file| fs::read_to_string(elsewhere.join(file)).expect("there"))
}

/// Git still lists the folder's files, and they are found through the link. In the mirror, the
/// folder contains what the build generated.
#[test]
fn a_tracked_folder_may_become_a_link() {
    let folders = Folders::new();
    folders.git(&["init", "--quiet"]);
    folders.write("src/a.rs", "a");
    fs::create_dir_all(folders.clone().join("compute/driver")).expect("ours");
    folders.write("compute/driver/a.rs", "a");
    folders.git(&["add", "."]);
    assert_eq!(folders.sync().written, 2);
    folders.in_mirror(GENERATED[0], "llvmpipe=/x");
    for (folder, file) in [("src", "a.rs"), ("compute", "driver/a.rs")] {
        let elsewhere = replace_by_link(&folders, folder);
        for (written, removed) in [(1, 1), (0, 0)] {
            assert_eq!(
                folders.sync(),
                MirrorChanges { written, removed },
                "{folder}"
            );
            let link = fs::read_link(folders.mirror().join(folder));
            assert_eq!(link.expect("it is a link"), elsewhere);
        }
        assert_eq!(content_of_others(&elsewhere), ["of others"; 2]);
        // And a folder again.
        fs::remove_file(folders.clone().join(folder)).expect("ours");
        let path = folders.clone().join(folder).join(file);
        fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("ours");
        fs::write(path, "b").expect("ours");
        let (written, removed) = (1, 1);
        assert_eq!(
            folders.sync(),
            MirrorChanges { written, removed },
            "{folder}"
        );
        assert_eq!(content_of_others(&elsewhere), ["of others"; 2]);
    }
}

#[test]
fn nothing_comes_back_through_a_link() {
    let folders = Folders::new();
    folders.write("src/a.rs", "a");
    let mut record = folders.synced().record;
    folders.in_mirror("src/a.rs", "of cargo");
    folders.in_mirror("src/new.rs", "of cargo");
    let elsewhere = replace_by_link(&folders, "src");
    let brought = folders.bring_back(&mut record);
    assert_eq!(brought.files, [] as [PathBuf; 0]);
    let conflicts = ["src/a.rs", "src/new.rs"].map(PathBuf::from);
    assert_eq!(brought.conflicts, conflicts);
    assert_eq!(content_of_others(&elsewhere), ["of others"; 2]);
    assert!(!elsewhere.join("new.rs").exists());
}

#[test]
fn what_git_ignores_is_not_copied_and_what_is_new_is() {
    let folders = Folders::new();
    folders.git(&["init", "--quiet"]);
    folders.write(".gitignore", "/out\n");
    folders.write("new.rs", "not added yet");
    folders.write("gone.rs", "added and deleted");
    folders.git(&["add", "gone.rs"]);
    fs::remove_file(folders.clone().join("gone.rs")).expect("ours");
    fs::create_dir(folders.clone().join("out")).expect("ours");
    folders.write("out/heavy.img", "an image");
    assert_eq!(
        folders.sync(),
        MirrorChanges {
            written: 2,
            removed: 0
        }
    );
    assert!(!folders.mirror().join("out").exists());
    assert!(folders.mirror().join("new.rs").exists());
}

#[test]
fn a_cache_in_the_clone_is_not_copied_into_itself() {
    for with_git in [false, true] {
        let folders = Folders::new();
        if with_git {
            folders.git(&["init", "--quiet"]);
        }
        folders.write("src/a.rs", "a");
        let cache = folders.clone().join(".cache");
        let mirror = cache.join("workspace");
        fs::create_dir_all(&cache).expect("ours");
        fs::write(cache.join("size"), "1").expect("ours");
        let sync = || sync(&folders.clone(), &mirror, &cache, SystemTime::UNIX_EPOCH);
        assert_eq!(sync().expect("ours").changes.written, 1);
        assert_eq!(sync().expect("ours").changes, MirrorChanges::default());
        assert!(mirror.join("src/a.rs").exists() && !mirror.join(".cache").exists());
    }
}

#[test]
fn what_changes_is_dated_later_than_every_artefact() {
    let folders = Folders::new();
    folders.write("src/a.rs", "a");
    folders.sync();
    folders.write("src/a.rs", "b");
    let newest = SystemTime::now() + Duration::from_secs(3600);
    let cache = folders.0.join("cache");
    sync(&folders.clone(), &folders.mirror(), &cache, newest).expect("ours");
    let modified = fs::metadata(folders.mirror().join("src/a.rs")).and_then(|data| data.modified());
    assert!(modified.expect("it is there") > newest);
}

#[test]
fn a_large_file_that_is_not_tracked_is_left_out_and_named() {
    for with_git in [false, true] {
        let folders = Folders::new();
        if with_git {
            folders.git(&["init", "--quiet"]);
        }
        folders.write("src/a.rs", "a");
        let disk = File::create(folders.clone().join("disk.raw")).expect("ours");
        disk.set_len(4 << 30).expect("a file may have holes");
        let synced = folders.synced();
        assert_eq!(synced.left_out, [PathBuf::from("disk.raw")]);
        assert_eq!(synced.changes.written, 1);
        assert!(!folders.mirror().join("disk.raw").exists());
    }
}

#[test]
fn a_large_file_that_is_tracked_is_copied() {
    let folders = Folders::new();
    folders.git(&["init", "--quiet"]);
    let content = vec![b'x'; usize::try_from(LARGEST_UNTRACKED).expect("small") + 1];
    fs::write(folders.clone().join("table"), &content).expect("ours");
    folders.git(&["add", "table"]);
    assert_eq!(folders.sync().written, 1);
    assert!(fs::read(folders.mirror().join("table")).expect("copied") == content);
    // A difference after the first chunk is found too.
    let mut other = content;
    *other.last_mut().expect("it is long") = b'y';
    fs::write(folders.clone().join("table"), &other).expect("ours");
    assert_eq!(folders.sync().written, 1);
    assert_eq!(folders.sync().written, 0);
}

#[test]
fn only_the_owner_reads_the_mirror() {
    let folders = Folders::new();
    folders.write("src/a.rs", "a");
    fs::set_permissions(
        folders.clone().join("src/a.rs"),
        Permissions::from_mode(0o600),
    )
    .expect("ours");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
    folders.sync();
    assert_eq!(mode(&folders.mirror()), 0o700);
    assert_eq!(mode(&folders.mirror().join("src/a.rs")), 0o600);
    // A mirror of an older version.
    fs::set_permissions(folders.mirror(), Permissions::from_mode(0o755)).expect("ours");
    folders.sync();
    assert_eq!(mode(&folders.mirror()), 0o700);
}

#[test]
fn what_git_says_of_a_checkout_it_refuses_is_the_error() {
    let folders = Folders::new();
    folders.write(".git", "gitdir: /nonexistent/alknet");
    folders.write("src/secret", "ignored");
    let error = folders.try_sync().expect_err("git cannot list this");
    assert!(error.to_string().contains("/nonexistent/alknet"), "{error}");
    assert!(!folders.mirror().join("src/secret").exists());
}

#[test]
fn a_pipe_in_the_clone_holds_no_command_up() {
    let folders = Folders::new();
    folders.write("src/a.rs", "a");
    let made = Command::new("mkfifo")
        .arg(folders.clone().join("pipe"))
        .status();
    assert!(made.expect("mkfifo is installed").success());
    let (done, waited) = std::sync::mpsc::channel();
    let (clone, mirror) = (folders.clone(), folders.mirror());
    std::thread::spawn(move || {
        let synced = sync(&clone, &mirror, &mirror, SystemTime::UNIX_EPOCH);
        // The test may have failed already.
        let _ = done.send(synced.map(|synced| synced.changes.written));
    });
    let written = waited.recv_timeout(deadline(Duration::from_secs(120)));
    let written = written.expect("it opens no pipe").expect("both are ours");
    assert_eq!(written, 1);
}

#[test]
fn what_cargo_changed_and_made_comes_back() {
    let folders = Folders::new();
    folders.git(&["init", "--quiet"]);
    folders.write(".gitignore", "*.orig\n");
    folders.write("src/a.rs", "fn a( ){}");
    folders.write("src/b.rs", "fn b() {}");
    let mut record = folders.synced().record;
    assert_eq!(folders.bring_back(&mut record), BringBackResult::default());
    folders.in_mirror("src/a.rs", "fn a() {}");
    folders.in_mirror("Cargo.lock", "version = 4");
    folders.in_mirror("snapshots/new.txt", "as it is now");
    // Not sources: ignored, built, and written by the commands themselves.
    folders.in_mirror("src/a.rs.orig", "fn a( ){}");
    folders.in_mirror("fuzz/target/release/a", "a program");
    folders.in_mirror(GENERATED[0], "llvmpipe=/x");
    let brought = folders.bring_back(&mut record);
    let files = ["Cargo.lock", "snapshots/new.txt", "src/a.rs"].map(PathBuf::from);
    assert_eq!(brought.files, files);
    assert_eq!(brought.conflicts, [] as [PathBuf; 0]);
    let lines = brought.lines(&folders.mirror());
    assert!(
        lines[0].ends_with("Cargo.lock, snapshots/new.txt, src/a.rs"),
        "{lines:?}"
    );
    assert_eq!(folders.in_clone("src/a.rs").as_deref(), Some("fn a() {}"));
    assert_eq!(
        folders.in_clone("Cargo.lock").as_deref(),
        Some("version = 4")
    );
    assert!(folders.in_clone("src/a.rs.orig").is_none() && !folders.clone().join("fuzz").exists());
    // A second change of the same file is copied too, and nothing is copied twice.
    assert_eq!(folders.bring_back(&mut record), BringBackResult::default());
    folders.in_mirror("src/a.rs", "fn a() { a() }");
    assert_eq!(folders.bring_back(&mut record).files, files[2..]);
    assert_eq!(folders.sync().written, 0);
}

#[test]
fn what_was_edited_meanwhile_is_not_overwritten() {
    let folders = Folders::new();
    folders.write("src/a.rs", "fn a( ){}");
    let mut record = folders.synced().record;
    folders.in_mirror("src/a.rs", "fn a() {}");
    folders.in_mirror("new.rs", "of cargo");
    folders.write("src/a.rs", "fn edited( ){}");
    folders.write("new.rs", "of a person");
    let brought = folders.bring_back(&mut record);
    assert_eq!(brought.files, [] as [PathBuf; 0]);
    assert_eq!(brought.conflicts, ["new.rs", "src/a.rs"].map(PathBuf::from));
    assert_eq!(
        folders.in_clone("src/a.rs").as_deref(),
        Some("fn edited( ){}")
    );
    assert_eq!(folders.in_clone("new.rs").as_deref(), Some("of a person"));
}
