use std::os::unix::fs::symlink;
use std::thread;

use tempfile::TempDir;

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
