//! Output files that a person names on the command line, such as `--out`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use alknet_durable::{ReplaceAllError, replace, replace_all};

use super::named_stream::open_stream;
use crate::cli::{CommandError, output};

/// Permission bits of a new file: every user may read it.
const MODE: u32 = 0o644;

/// Writes a file that is never there with a part of its bytes. A link to another file is replaced.
///
/// A pipe or a character device is not replaced: the bytes are written into it, as into `/dev/stdout`. A folder, a
/// socket or another device is refused.
pub(super) fn put(path: &Path, content: &[u8]) -> Result<(), CommandError> {
    let written = write(path, content);
    written
        .map_err(|error| CommandError::local(format!("cannot write {}: {error}", path.display())))
}

/// Replaces several files, and none before all of them are written. `remedy` says what to do if the command has replaced
/// only some of them. Pipes and devices are refused: nothing could take back what they got.
pub(super) fn put_all(files: &[(&Path, &[u8])], remedy: &str) -> Result<(), CommandError> {
    if let [(path, content)] = files {
        return put(path, content);
    }
    for (path, _) in files {
        refuse_unreplaceable(path).map_err(|error| {
            let text = format!("cannot write {}: {error}", path.display());
            CommandError::local(format!("{text}; none of the files was replaced"))
        })?;
    }
    replace_all(files, MODE).map_err(|error| of_replacement(&error, remedy))
}

/// Says which files are the new ones, and what to do if these are not all.
fn of_replacement(error: &ReplaceAllError, remedy: &str) -> CommandError {
    if error.replaced.is_empty() {
        return CommandError::local(format!("{error}; none of the files was replaced"));
    }
    let replaced = error.replaced.iter().map(|path| path.display().to_string());
    let replaced = replaced.collect::<Vec<_>>().join(" ");
    CommandError::local(format!(
        "{error}; these files were replaced before: {replaced}. {remedy}"
    ))
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(mut stream) = output::stream_of_name(path) {
        stream.write_all(content)?;
        return stream.flush();
    }
    match open_stream(path, File::options().write(true))? {
        Some(mut stream) => stream.write_all(content),
        None => replace(path, content, MODE),
    }
}

fn refuse_unreplaceable(path: &Path) -> io::Result<()> {
    let is_replaceable = match fs::metadata(path) {
        Ok(about) => about.is_file() && output::stream_of_name(path).is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(error),
    };
    match is_replaceable {
        true => Ok(()),
        false => Err(io::Error::other(
            "it is no regular file, and the results are several files; name another one",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    use super::*;

    const REMEDY: &str = "Run the command again";

    /// A folder to which no other user can write, whatever the umask is.
    fn own_folder() -> TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        set_mode(folder.path(), 0o700);
        folder
    }

    fn set_mode(path: &Path, mode: u32) {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, mode).expect("it is ours");
    }

    /// A folder with a pipe and a link to it.
    fn folder_with_pipe() -> (TempDir, PathBuf, PathBuf) {
        let folder = own_folder();
        let [pipe, link] = ["pipe", "link"].map(|name| folder.path().join(name));
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).expect("the folder is ours");
        symlink(&pipe, &link).expect("the folder is ours");
        (folder, pipe, link)
    }

    fn is_pipe(path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_fifo())
    }

    #[test]
    fn a_named_pipe_and_a_link_to_one_get_the_bytes_and_stay() {
        let (_folder, pipe, link) = folder_with_pipe();
        for path in [&pipe, &link] {
            // With this reader no open waits.
            let mut options = File::options();
            let mut reader = options.read(true).write(true).open(&pipe).expect("a pipe");
            put(path, b"12345").expect("it has a reader");
            assert!(is_pipe(&pipe) && link.is_symlink(), "{}", path.display());
            let mut read = [0; 5];
            io::Read::read_exact(&mut reader, &mut read).expect("it was written");
            assert_eq!(&read, b"12345");
        }
    }

    #[test]
    fn a_device_stays_and_a_folder_is_refused() {
        let folder = own_folder();
        let [null, below] = ["null", "below"].map(|name| folder.path().join(name));
        symlink("/dev/null", &null).expect("the folder is ours");
        fs::create_dir(&below).expect("the folder is ours");
        put(&null, b"1").expect("the device takes it");
        assert!(null.is_symlink());
        let refused = put(&below, b"1").expect_err("a folder");
        assert!(refused.message.contains("it is a folder"), "{refused}");
        let names = fs::read_dir(folder.path()).expect("a folder");
        assert_eq!(names.count(), 2, "nothing is beside them");
    }

    /// The attack: a pipe without a reader, or a link to a watchdog, in a folder to which others can write.
    #[test]
    fn what_another_user_may_have_put_there_is_not_opened() {
        let (folder, pipe, link) = folder_with_pipe();
        set_mode(folder.path(), 0o777);
        // Without this reader a command that opens the pipe would wait for ever.
        let mut options = File::options();
        let opened = options.read(true).write(true).open(&pipe);
        let _reader = opened.expect("a pipe");
        for path in [&pipe, &link] {
            let refused = put(path, b"1").expect_err("others can write to the folder");
            assert!(
                refused.message.contains("another user may have put it"),
                "{refused}"
            );
            assert!(is_pipe(&pipe) && link.is_symlink(), "{}", path.display());
        }
    }

    /// The attack: a link of the user's own leads into a folder to which others can write, where another user has put a
    /// pipe without a reader, or a link to a watchdog.
    #[test]
    fn an_own_link_to_what_another_user_may_have_put_there_is_not_opened() {
        let (shared, pipe, link) = folder_with_pipe();
        set_mode(shared.path(), 0o777);
        let own = own_folder();
        // Without this reader a command that opens the pipe would wait for ever.
        let mut options = File::options();
        let opened = options.read(true).write(true).open(&pipe);
        let _reader = opened.expect("a pipe");
        let [first, second] = ["first", "second"].map(|name| own.path().join(name));
        for target in [&pipe, &link] {
            symlink(target, &first).expect("the folder is ours");
            symlink("first", &second).expect("the folder is ours");
            for path in [&first, &second] {
                let refused = put(path, b"1").expect_err("others can write to the folder");
                assert!(
                    refused.message.contains("another user may have put it"),
                    "{refused}"
                );
            }
            for path in [&first, &second] {
                fs::remove_file(path).expect("it stays");
            }
        }
    }

    /// A link that leads to a regular file of the user may be another person's.
    #[test]
    fn a_link_to_a_regular_file_is_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [keys, link, absent] = ["keys", "link", "absent"].map(|name| folder.path().join(name));
        fs::write(&keys, "owner").expect("the folder is ours");
        for target in [&keys, &absent] {
            symlink(target, &link).expect("the folder is ours");
            put(&link, b"new").expect("the folder is ours");
            assert!(!link.is_symlink());
            assert_eq!(fs::read(&link).expect("it was written"), b"new");
            fs::remove_file(&link).expect("it is there");
        }
        assert_eq!(fs::read(&keys).expect("it stays"), b"owner");
        assert!(!absent.exists());
    }

    #[test]
    fn a_pipe_among_several_files_is_refused_before_one_is_replaced() {
        let (folder, pipe, link) = folder_with_pipe();
        let file = folder.path().join("file");
        fs::write(&file, "old").expect("the folder is ours");
        for other in [&pipe, &link] {
            let files: [(&Path, &[u8]); 2] = [(&file, b"new"), (other, b"new")];
            let refused = put_all(&files, REMEDY).expect_err("a pipe");
            assert!(refused.message.contains("no regular file"), "{refused}");
            assert!(is_pipe(&pipe) && link.is_symlink(), "{refused}");
            assert_eq!(fs::read(&file).expect("it stays"), b"old");
        }
    }

    #[test]
    fn an_error_between_two_files_names_those_that_were_replaced() {
        let mut error = ReplaceAllError {
            path: "two.tar".into(),
            replaced: Vec::new(),
            source: io::ErrorKind::StorageFull.into(),
        };
        let none = of_replacement(&error, REMEDY).message;
        assert!(none.contains("cannot write two.tar: "), "{none}");
        assert!(none.ends_with("none of the files was replaced"), "{none}");
        error.replaced.push("one.tar".into());
        let one = of_replacement(&error, REMEDY).message;
        let said = format!("were replaced before: one.tar. {REMEDY}");
        assert!(one.ends_with(&said), "{one}");
    }
}
