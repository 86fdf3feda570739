use std::os::unix::fs::symlink;
use std::thread;

use tempfile::TempDir;

use super::left::is_locked;
use super::set::replace_all_within;
use super::*;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn write(path: &Path, content: &[u8], mode: u32) {
    fs::write(path, content).expect("the folder is ours");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("the file is ours");
}

fn content(path: &Path) -> Vec<u8> {
    fs::read(path).expect("a file")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o777
}

/// What is in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_has_the_content_and_the_mode_that_were_asked_for() {
    let folder = folder();
    let path = folder.path().join("file");
    // Whatever the umask is, and whatever the file before had.
    for (text, bits) in [
        ("first", 0o600),
        ("2nd", 0o666),
        ("", 0o640),
        ("4th", 0o600),
    ] {
        replace(&path, text.as_bytes(), bits).expect("the folder is ours");
        assert_eq!(
            (content(&path), mode(&path)),
            (text.as_bytes().to_vec(), bits)
        );
        assert_eq!(names(folder.path()), ["file"]);
    }
}

#[test]
fn what_a_power_cut_left_is_neither_kept_nor_written_to() {
    let folder = folder();
    let (path, left) = (folder.path().join("file"), folder.path().join(".file.new"));
    write(&path, b"old", 0o600);
    write(&left, b"longer than what comes", 0o666);
    let mut reader = File::open(&left).expect("it was just written");
    replace(&path, b"new", 0o600).expect("the folder is ours");
    assert_eq!((content(&path), mode(&path)), (b"new".to_vec(), 0o600));
    assert_eq!(names(folder.path()), ["file"]);
    // Who had it open reads what it was.
    let mut read = String::new();
    io::Read::read_to_string(&mut reader, &mut read).expect("still open");
    assert_eq!(read, "longer than what comes");
}

#[test]
fn links_are_replaced_and_never_written_through() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    write(&at("other"), b"other", 0o600);
    symlink(at("other"), at("file")).expect("the folder is ours");
    symlink(at("other"), at(".file.new")).expect("the folder is ours");
    replace(&at("file"), b"new", 0o600).expect("the folder is ours");
    assert_eq!(content(&at("other")), b"other");
    assert_eq!(content(&at("file")), b"new");
    assert!(fs::symlink_metadata(at("file")).is_ok_and(|found| found.is_file()));
    assert_eq!(names(folder.path()), ["file", "other"]);
}

#[test]
fn what_fails_leaves_everything_as_it_was() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    // A file cannot take the place of a folder.
    fs::create_dir(at("folder")).expect("the folder is ours");
    assert!(replace(&at("folder"), b"new", 0o600).is_err());
    assert_eq!(names(folder.path()), ["folder"]);
    // Nor be begun where a folder is.
    write(&at("file"), b"old", 0o600);
    fs::create_dir(at(".file.new")).expect("the folder is ours");
    assert!(replace(&at("file"), b"new", 0o600).is_err());
    assert_eq!(content(&at("file")), b"old");
    assert_eq!(names(folder.path()), [".file.new", "file", "folder"]);
    let error = replace(&at("absent/file"), b"new", 0o600).expect_err("no folder");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let error = replace(Path::new("/"), b"new", 0o600).expect_err("no file");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

/// The only test that changes where the process is: all others name files from the root on.
#[test]
fn a_bare_name_is_in_the_folder_that_the_process_is_in() {
    let folder = folder();
    std::env::set_current_dir(folder.path()).expect("it is there");
    replace(Path::new("bare"), b"new", 0o600).expect("the folder is ours");
    assert_eq!(content(&folder.path().join("bare")), b"new");
    assert_eq!(names(folder.path()), ["bare"]);
    sync_folder(Path::new("")).expect("the parent of a bare name");
    std::env::set_current_dir("/").expect("it is always there");
    assert!(sync_folder(&folder.path().join("absent")).is_err());
}

#[test]
fn many_at_once_all_succeed_and_the_file_is_always_whole() {
    const BYTES: usize = 100_000;
    let folder = folder();
    let path = folder.path().join("file");
    replace(&path, &[b'a'].repeat(BYTES), 0o600).expect("the folder is ours");
    thread::scope(|scope| {
        for letter in b'b'..=b'f' {
            let path = &path;
            scope.spawn(move || {
                for _ in 0..8 {
                    replace(path, &[letter].repeat(BYTES), 0o600).expect("each in its turn");
                    let read = content(path);
                    assert_eq!(read.len(), BYTES);
                    assert!(read.iter().all(|byte| *byte == read[0]));
                }
            });
        }
    });
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn a_private_file_is_made_or_made_private_and_keeps_its_content() {
    let folder = folder();
    let path = folder.path().join("file");
    private(&path).expect("the folder is ours");
    assert_eq!((content(&path), mode(&path)), (Vec::new(), 0o600));
    write(&path, b"kept", 0o644);
    private(&path).expect("the file is ours");
    assert_eq!((content(&path), mode(&path)), (b"kept".to_vec(), 0o600));
    assert!(private(folder.path()).is_err());
    let error = private(Path::new("/dev/null")).expect_err("a device");
    assert_eq!(error.to_string(), "it is no file");
}

/// The attack: what keeps one of the new files from being written stands beside it, or fills the disk.
#[test]
fn files_that_belong_together_stay_as_they_were_if_one_cannot_be_written() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let [one, two] = ["one", "two"].map(at);
    for path in [&one, &two] {
        write(path, b"old", 0o600);
    }
    fs::create_dir(at(".two.new")).expect("the folder is ours");
    let files: [(&Path, &[u8]); 2] = [(&two, b"new 2"), (&one, b"new 1")];
    let failed = replace_all(&files, 0o600).expect_err("a folder is in the way");
    assert_eq!((&failed.path, failed.replaced.len()), (&two, 0), "{failed}");
    assert_eq!([&one, &two].map(|path| content(path)), [b"old", b"old"]);
    assert_eq!(names(folder.path()), [".two.new", "one", "two"]);
    fs::remove_dir(at(".two.new")).expect("the folder is ours");
    replace_all(&files, 0o600).expect("nothing is in the way");
    assert_eq!([&one, &two].map(|path| content(path)), [b"new 1", b"new 2"]);
    assert_eq!(names(folder.path()), ["one", "two"]);
}

#[test]
fn a_rename_that_fails_names_the_files_that_were_replaced() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let [one, three, two] = ["one", "three", "two"].map(at);
    write(&two, b"old", 0o600);
    // A file cannot take the place of a folder. The names are in alphabetical order.
    fs::create_dir(&three).expect("the folder is ours");
    let files: [(&Path, &[u8]); 3] = [(&one, b"new"), (&two, b"new"), (&three, b"new")];
    let failed = replace_all(&files, 0o600).expect_err("a folder is in the way");
    assert_eq!((&failed.path, failed.replaced), (&three, vec![one.clone()]));
    assert_eq!(
        (content(&one), content(&two)),
        (b"new".to_vec(), b"old".to_vec())
    );
    assert_eq!(names(folder.path()), ["one", "three", "two"]);
}

#[test]
fn one_file_under_two_paths_is_refused() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    symlink(folder.path(), at("link")).expect("the folder is ours");
    let [file, again] = ["file", "link/file"].map(at);
    write(&file, b"old", 0o600);
    for other in [&file, &again] {
        let files: [(&Path, &[u8]); 2] = [(&file, b"new 1"), (other, b"new 2")];
        let refused = replace_all(&files, 0o600).expect_err("one file");
        assert_eq!(
            refused.source.kind(),
            io::ErrorKind::InvalidInput,
            "{refused}"
        );
        assert!(refused.replaced.is_empty(), "{refused}");
        assert_eq!(content(&file), b"old");
    }
    assert_eq!(names(folder.path()), ["file", "link"]);
}

/// Each call locks two files, and waits for the other call at the first one.
#[test]
fn calls_that_name_the_same_files_in_another_order_do_not_wait_for_each_other() {
    let folder = folder();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    let orders = [[&one, &two], [&two, &one]];
    thread::scope(|scope| {
        for (letter, order) in [b"a", b"b"].into_iter().zip(orders) {
            scope.spawn(move || {
                let files = order.map(|path| (path.as_path(), letter.as_slice()));
                for _ in 0..50 {
                    replace_all(&files, 0o600).expect("each in its turn");
                }
            });
        }
    });
    assert_eq!(names(folder.path()), ["one", "two"]);
}

/// The attack: another user who can write to the folder puts a file beside the one that is replaced, and keeps its
/// lock.
#[test]
fn a_lock_that_another_program_keeps_ends_the_call_with_an_error() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let [one, two] = ["one", "two"].map(at);
    for path in [&one, &two] {
        write(path, b"old", 0o600);
    }
    write(&at(".two.new"), b"locked", 0o600);
    let holder = File::open(at(".two.new")).expect("the file is ours");
    holder.lock().expect("the only lock");
    let wait = Duration::from_millis(1);
    let refused = replace_within(&two, b"new", 0o600, wait).expect_err("it is locked");
    let files: [(&Path, &[u8]); 2] = [(&one, b"new"), (&two, b"new")];
    let of_all = replace_all_within(&files, 0o600, wait).expect_err("it is locked");
    assert_eq!((&of_all.path, of_all.replaced.len()), (&two, 0), "{of_all}");
    for error in [refused, of_all.source] {
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "{error}");
        let name = at(".two.new").display().to_string();
        assert!(error.to_string().contains(&name), "{error}");
    }
    // The new file of the other one is gone.
    assert_eq!(names(folder.path()), [".two.new", "one", "two"]);
    assert_eq!([&one, &two].map(|path| content(path)), [b"old", b"old"]);
    drop(holder);
    replace_all_within(&files, 0o600, wait).expect("the lock has ended");
    assert_eq!([&one, &two].map(|path| content(path)), [b"new", b"new"]);
    assert_eq!(names(folder.path()), ["one", "two"]);
}

/// The attack: the same, by the new file of the call itself. A file with the permission bits of the caller could be
/// opened, and so locked, by every user before the call locks it, and after a power cut.
#[test]
fn a_new_file_is_locked_before_another_user_can_open_it() {
    let folder = folder();
    let [path, new] = ["file", ".file.new"].map(|name| folder.path().join(name));
    let mut file = begin(&new, LOCK_WAIT_MAX).expect("the folder is ours");
    assert_eq!(mode(&new), PRIVATE);
    let other = File::open(&new).expect("the file is ours");
    assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
    fill(&mut file, b"new").expect("the file is ours");
    assert_eq!((content(&new), mode(&new)), (b"new".to_vec(), PRIVATE));
    rename_with_mode(&file, &new, &path, 0o644).expect("the folder is ours");
    assert_eq!((content(&path), mode(&path)), (b"new".to_vec(), 0o644));
    assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
}

/// The attack: the power fails while the second of two files is written. Another user opens what the cut left of the first
/// one, and keeps its lock.
#[test]
fn the_first_of_two_new_files_is_its_owner_s_alone_while_the_second_is_written() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let [one, two] = ["one", "two"].map(at);
    // The call waits here, as behind a slow disk.
    write(&at(".two.new"), b"locked", 0o600);
    let holder = File::open(at(".two.new")).expect("the file is ours");
    holder.lock().expect("the only lock");
    let files: [(&Path, &[u8]); 2] = [(&one, b"new 1"), (&two, b"new 2")];
    thread::scope(|scope| {
        let call = scope.spawn(|| replace_all(&files, 0o644));
        let first = at(".one.new");
        let is_written = || fs::read(&first).is_ok_and(|found| found == b"new 1");
        while !is_written() && !call.is_finished() {
            thread::sleep(LOCK_PAUSE);
        }
        let left = mode(&first);
        drop(holder);
        let done = call.join().expect("it does not panic");
        done.expect("the lock has ended");
        assert_eq!(left, PRIVATE, "{left:o}");
    });
    for (path, wanted) in [(&one, b"new 1"), (&two, b"new 2")] {
        assert_eq!((content(path), mode(path)), (wanted.to_vec(), 0o644));
    }
    assert_eq!(names(folder.path()), ["one", "two"]);
}

/// The attack: the power fails after a new file got the permission bits of the caller, and before it got its name. At the
/// next start another user locks it, and the next call for the file fails.
#[test]
fn new_files_that_power_cuts_left_are_removed_before_other_users_run() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    for name in [".busy.new", ".new", ".other", ".two.new", "one.new", "two"] {
        write(&at(name), b"left", 0o644);
    }
    symlink(at("two"), at(".link.new")).expect("the folder is ours");
    // No call can have made this one.
    fs::create_dir(at(".folder.new")).expect("the folder is ours");
    let held = File::open(at(".busy.new")).expect("the file is ours");
    held.lock().expect("the only lock");
    remove_left(folder.path()).expect_err("a folder stays");
    let left = [
        ".busy.new",
        ".folder.new",
        ".new",
        ".other",
        "one.new",
        "two",
    ];
    assert_eq!(names(folder.path()), left);
    fs::remove_dir(at(".folder.new")).expect("the folder is ours");
    remove_left(folder.path()).expect("a call goes on with the last one");
    drop(held);
    remove_left(folder.path()).expect("the folder is ours");
    assert_eq!(names(folder.path()), [".new", ".other", "one.new", "two"]);
}

/// The attack: folders with the names of new files are on a plain disk that an attacker wrote to. No call can remove them, and
/// they must not keep the leftovers behind them in the list of the folder.
#[test]
fn each_leftover_that_stays_is_named_and_the_others_are_removed() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let (stays, goes) = (
        [".b.new", ".d.new", ".f.new"],
        [".a.new", ".c.new", ".e.new"],
    );
    for name in stays {
        fs::create_dir(at(name)).expect("the folder is ours");
        write(&at(name).join("file"), b"within", 0o600);
    }
    for name in goes {
        write(&at(name), b"left", 0o644);
    }
    let failed = remove_left(folder.path()).expect_err("three folders stay");
    assert_eq!(names(folder.path()), stays);
    let text = failed.to_string();
    let mut paths: Vec<_> = failed.failures.into_iter().map(|(path, _)| path).collect();
    paths.sort();
    assert_eq!(paths, stays.map(at));
    for path in paths {
        let path = path.display().to_string();
        assert!(text.contains(&path), "{path} in {text}");
    }
}

/// The attack: PID 1 starts with a plain disk on which an attacker made a great many of these folders. The error of each would
/// take memory.
#[test]
fn the_error_keeps_eight_failures_and_counts_the_others() {
    const FOLDERS: usize = 100;
    let folder = folder();
    for number in 0..FOLDERS {
        let left = folder.path().join(format!(".{number}.new"));
        fs::create_dir(left).expect("the folder is ours");
    }
    let failed = remove_left(folder.path()).expect_err("all of them stay");
    assert_eq!((failed.failures.len(), failed.more), (8, FOLDERS - 8));
    let text = failed.to_string();
    assert_eq!(text.matches(".new: ").count(), 8, "{text}");
    assert!(text.ends_with("; and 92 more"), "{text}");
    assert_eq!(names(folder.path()).len(), FOLDERS);
}

#[test]
fn a_folder_that_cannot_be_read_is_named() {
    let folder = folder();
    let missing = folder.path().join("missing");
    let failed = remove_left(&missing).expect_err("it does not exist");
    let [(path, error)] = failed.failures.as_slice() else {
        panic!("{failed}");
    };
    assert_eq!((path, error.kind()), (&missing, io::ErrorKind::NotFound));
}

/// The system says the same kind of error of a file on which another one is mounted.
#[test]
fn only_the_error_of_a_lock_says_that_a_call_goes_on() {
    let folder = folder();
    let new = folder.path().join(".file.new");
    write(&new, b"", 0o600);
    let [ours, other] = [(); 2].map(|()| File::open(&new).expect("the file is ours"));
    other.lock().expect("the only lock");
    let locked = lock(&ours, &new, Instant::now()).expect_err("it is locked");
    let mounted = io::Error::from_raw_os_error(libc::EBUSY);
    assert_eq!(locked.kind(), mounted.kind());
    assert_eq!((is_locked(&locked), is_locked(&mounted)), (true, false));
}

/// A call that removed the file at this name after it gave up could remove the new file of another call, which has taken
/// the first file for what a power cut left.
#[test]
fn a_call_that_gives_up_removes_no_file_and_the_next_one_does() {
    let folder = folder();
    let [path, new] = ["file", ".file.new"].map(|name| folder.path().join(name));
    write(&new, b"", 0o600);
    let [ours, other] = [(); 2].map(|()| File::open(&new).expect("the file is ours"));
    other.lock().expect("the only lock");
    let refused = lock(&ours, &new, Instant::now()).expect_err("it is locked");
    assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy, "{refused}");
    assert_eq!(names(folder.path()), [".file.new"]);
    drop(other);
    replace(&path, b"new", 0o600).expect("the lock has ended");
    assert_eq!(names(folder.path()), ["file"]);
    assert_eq!(content(&path), b"new");
}

/// What takes the place of a file after the look at it is neither followed nor waited for.
#[test]
fn a_link_or_a_pipe_counts_as_of_no_call() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    write(&at("other"), b"other", 0o600);
    symlink(at("other"), at("link")).expect("the folder is ours");
    let made = std::process::Command::new("mkfifo")
        .arg(at("pipe"))
        .status();
    assert!(made.is_ok_and(|status| status.success()));
    for name in ["link", "pipe"] {
        let error = open_left(&at(name)).expect_err(name);
        assert!(is_of_no_call(&error), "{name}: {error}");
    }
    open_left(&at("other")).expect("the file is ours");
}
