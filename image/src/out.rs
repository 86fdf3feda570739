//! The output folder: files appear whole or not at all, each beside its checksum.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::disk_parts::ManifestDisk;
use crate::error::ImageError;
use crate::form::{ImageForm, OutputRole};
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestOutput, NO_FILE_NAME, is_file_name};
use crate::start::StartMethod;
use crate::travel::MANIFEST_SIGNATURE_FILE;

/// Bytes read at once when a finished file is hashed.
const READ_BYTES: usize = 1 << 20;
/// Permission bits of a file that is being written.
const PART_MODE: u32 = 0o600;
/// Permission bits of a finished file, before the umask clears some of them.
const MODE: u32 = 0o644;
/// The umask where the kernel does not say it: Linux before 4.7, or `/proc` is not mounted.
const UMASK_UNKNOWN: u32 = 0o077;

#[derive(Debug)]
pub(crate) struct OutDir<'a> {
    dir: &'a Path,
    outputs: Vec<ManifestOutput>,
    /// The parts of the disk of the form `raw`, if it is among the outputs.
    disk: Option<ManifestDisk>,
}

impl<'a> OutDir<'a> {
    /// Opens the folder, and makes it if it is missing. An older manifest is removed first: from
    /// here on it would describe files that are being replaced.
    pub(crate) fn open(dir: &'a Path) -> Result<Self, ImageError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let manifest = dir.join(MANIFEST_FILE);
        match fs::remove_file(&manifest) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(at(&manifest)(source)),
            _ => Ok(Self {
                dir,
                outputs: Vec::new(),
                disk: None,
            }),
        }
    }

    /// Adds files to a finished folder. Its manifest stays until [`finish`](Self::finish) replaces it. The outputs that
    /// `is_kept` are carried over, and so is what it says of the disk: another person may have put another disk at the
    /// path by now.
    pub(crate) fn add_to(
        dir: &'a Path,
        manifest: &Manifest,
        is_kept: impl Fn(&ManifestOutput) -> bool,
    ) -> Self {
        let outputs = manifest.outputs.iter().filter(|it| is_kept(it)).cloned();
        Self {
            dir,
            outputs: outputs.collect(),
            disk: manifest.disk.clone(),
        }
    }

    /// The file of this name, if it was written.
    pub(crate) fn output(&self, name: &str) -> Option<&ManifestOutput> {
        self.outputs.iter().find(|output| output.file == name)
    }

    /// Writes bytes as `name`, unless an earlier form has already written the same file.
    pub(crate) fn bytes(
        &mut self,
        form: ImageForm,
        role: OutputRole,
        name: &str,
        bytes: &[u8],
    ) -> Result<(), ImageError> {
        if let Some(shared) = self.output(name) {
            let output = ManifestOutput {
                form,
                role,
                start: StartMethod::names(form, role),
                ..shared.clone()
            };
            self.outputs.push(output);
            return Ok(());
        }
        self.with(form, role, name, |mut file| file.write_all(bytes))
    }

    /// Lets `write` fill a new file, which gets its name when it is whole, and records it.
    pub(crate) fn with(
        &mut self,
        form: ImageForm,
        role: OutputRole,
        name: &str,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), ImageError> {
        let part = PartialFile::new(self.dir, name)?;
        let file = part.create().map_err(at(&part.0))?;
        write(&file).map_err(at(&part.0))?;
        let (bytes, sha256) = hash(&file).map_err(at(&part.0))?;
        if (form, role) == (ImageForm::Raw, OutputRole::Disk) {
            self.disk = Some(ManifestDisk::read(&file).map_err(at(&part.0))?);
        }
        part.finish(&file, &self.dir.join(name))?;
        // The format of sha256sum(1), which can check the file with it.
        let sums = format!("{sha256}  {name}\n");
        put(self.dir, &format!("{name}.sha256"), sums.as_bytes())?;
        self.outputs.push(ManifestOutput {
            form,
            role,
            file: name.to_owned(),
            bytes,
            sha256,
            start: StartMethod::names(form, role),
        });
        Ok(())
    }

    /// Does the same by a program, for which `run` gets a path in a folder of this user alone, and copies what the
    /// program wrote.
    pub(crate) fn by_tool(
        &mut self,
        form: ImageForm,
        role: OutputRole,
        name: &str,
        run: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let folder = ToolFolder::new().map_err(at(Path::new("the temporary folder")))?;
        let path = folder.dir.path().join(name);
        run(&path)?;
        let made = folder.open(name).map_err(at(&path))?;
        self.with(form, role, name, |mut file| {
            io::copy(&mut &made, &mut file).map(drop)
        })
    }

    /// Writes the manifest, which shows that everything that it names is complete.
    pub(crate) fn finish(self, mut manifest: Manifest) -> Result<Manifest, ImageError> {
        manifest.outputs = self.outputs;
        manifest.disk = self.disk;
        // The signature of an earlier manifest does not hold for this one.
        let signature = self.dir.join(MANIFEST_SIGNATURE_FILE);
        match fs::remove_file(&signature) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(at(&signature)(source));
            }
            _ => {}
        }
        put(self.dir, MANIFEST_FILE, &manifest.to_json())?;
        Ok(manifest)
    }
}

/// A folder for a program that writes a file by its path. It is below the system's temporary folder, whose sticky bit
/// keeps other users from renaming it. A user who can write to the output folder could rename a folder there, and put
/// another one with a link in its place, through which the program would write.
struct ToolFolder {
    dir: TempDir,
    opened: File,
}

impl ToolFolder {
    fn new() -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        // Whatever the umask is.
        let builder = builder.permissions(Permissions::from_mode(0o700));
        let dir = builder.prefix("alknet-image-").tempdir()?;
        let mut options = File::options();
        options.read(true);
        options.custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
        let opened = options.open(dir.path())?;
        Ok(Self { dir, opened })
    }

    /// Opens a file of the folder that was made, whatever has its path now, and no file to which a link leads.
    fn open(&self, name: &str) -> io::Result<File> {
        // O_NONBLOCK: the open waits for no writer of a pipe.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = File::from(openat(&self.opened, name, flags, Mode::empty())?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("it is no regular file")),
        }
    }
}

/// The error for a file that cannot be written.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Output { path, source }
}

/// Puts a file with this content into the place of another one, or of a link.
pub(crate) fn put(dir: &Path, name: &str, content: &[u8]) -> Result<(), ImageError> {
    let part = PartialFile::new(dir, name)?;
    let mut file = part.create().map_err(at(&part.0))?;
    file.write_all(content).map_err(at(&part.0))?;
    part.finish(&file, &dir.join(name))
}

/// A file under its temporary name, which is removed after an error.
struct PartialFile(PathBuf);

impl PartialFile {
    fn new(dir: &Path, name: &str) -> Result<Self, ImageError> {
        match is_file_name(name) {
            true => Ok(Self(dir.join(format!(".{name}.part")))),
            false => Err(ImageError::Argument {
                what: "file name",
                value: name.to_owned(),
                why: NO_FILE_NAME,
            }),
        }
    }

    /// Creates it, for this user alone: the umask, or the default access control list of the folder (acl(5)), may let
    /// the members of a group write to new files, and a member could change the file before it is hashed. Another person
    /// who can write to the folder may have put a link at its path, to a file of this user.
    fn create(&self) -> io::Result<File> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = File::options();
        // `create_new` follows no link that came there since (open(2), O_EXCL).
        let options = options.read(true).write(true).create_new(true);
        options.mode(PART_MODE).open(&self.0)
    }

    /// Gives the file, of which everything was read by now, its permission bits and its name. A link of this name is
    /// replaced.
    fn finish(&self, file: &File, path: &Path) -> Result<(), ImageError> {
        let mode = MODE & !umask();
        let set = |about: fs::Metadata| match about.mode() & 0o777 == mode {
            true => Ok(()),
            // An access control list permits a group no more than the bits of the group do (acl(5)).
            false => file.set_permissions(Permissions::from_mode(mode)),
        };
        file.metadata().and_then(set).map_err(at(&self.0))?;
        fs::rename(&self.0, path).map_err(at(path))
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // After success it has another name, and there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// The umask of this process. It is read from `/proc`, because umask(2) returns it only by setting another one, which
/// other threads would use.
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let mask = mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok());
    mask.unwrap_or(UMASK_UNKNOWN)
}

/// Size and hash of what was written, and not of what another person has put at its path.
pub(crate) fn hash(mut file: &File) -> io::Result<(u64, String)> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, HEXLOWER.encode(&hasher.finalize())));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_failed_file_leaves_nothing_behind_and_takes_the_old_manifest_along() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::write(dir.path().join(MANIFEST_FILE), "old").expect("writable");
        let mut out = OutDir::open(dir.path()).expect("opens");
        let failed = out.by_tool(ImageForm::Uki, OutputRole::Uki, "x", |path| {
            fs::write(path, "half").map_err(at(path))?;
            Err(ImageError::ToolMissing {
                tool: "t",
                package: "p",
            })
        });
        assert_eq!(failed.expect_err("the tool's error").exit_code(), 4);
        let failed = out.with(ImageForm::Uki, OutputRole::Uki, "x", |mut file| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.expect_err("the writer's error").exit_code(), 1);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    /// The attack: another person who can write to the folder has put links there, which lead to a file of the owner.
    #[test]
    fn links_are_replaced_and_never_written_through() {
        let [dir, home] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let keys = home.path().join("authorized_keys");
        fs::write(&keys, "owner").expect("writable");
        let mut out = OutDir::open(dir.path()).expect("opens");
        for name in [
            "x",
            "x.sha256",
            ".x.part",
            ".x.sha256.part",
            "y",
            "y.sha256",
        ] {
            symlink(&keys, dir.path().join(name)).expect("writable");
        }
        out.bytes(ImageForm::Uki, OutputRole::Uki, "x", b"new")
            .expect("writable");
        let run = |path: &Path| fs::write(path, "tool").map_err(at(path));
        out.by_tool(ImageForm::Uki, OutputRole::Uki, "y", run)
            .expect("writable");
        let content = |path: &Path| fs::read_to_string(path).expect("readable");
        assert_eq!(content(&keys), "owner");
        for (name, expected) in [("x", "new"), ("y", "tool")] {
            let [path, sums] =
                [name.to_owned(), format!("{name}.sha256")].map(|it| dir.path().join(it));
            assert!([&path, &sums].iter().all(|it| !it.is_symlink()), "{name}");
            assert_eq!(content(&path), expected);
            let recorded = &out.output(name).expect("it is recorded").sha256;
            assert_eq!(content(&sums), format!("{recorded}  {name}\n"));
        }
    }

    /// The attack: a member of a group whose members may write to new files of the folder opens the file while it is
    /// written, and changes it before it is hashed, or when it has its name. The umask is that of the whole process.
    #[test]
    fn no_other_user_can_open_a_file_that_is_written_or_change_a_finished_one() {
        let name =
            "out::tests::no_other_user_can_open_a_file_that_is_written_or_change_a_finished_one";
        alknet_test_support::alone(name, || {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let mut out = OutDir::open(dir.path()).expect("opens");
            let mode = |about: fs::Metadata| about.mode() & 0o777;
            for (mask, file, finished) in
                [(0, "x", 0o644), (0o002, "y", 0o644), (0o077, "z", 0o600)]
            {
                nix::sys::stat::umask(Mode::from_bits_truncate(mask));
                let part = dir.path().join(format!(".{file}.part"));
                let written = out.with(ImageForm::Uki, OutputRole::Uki, file, |mut opened| {
                    assert_eq!(mode(fs::symlink_metadata(&part)?), 0o600, "{file}");
                    opened.write_all(b"new")
                });
                written.expect("writable");
                for name in [file.to_owned(), format!("{file}.sha256")] {
                    let about = fs::symlink_metadata(dir.path().join(&name));
                    assert_eq!(mode(about.expect("it was written")), finished, "{name}");
                }
            }
        });
    }

    /// The attack: another person who can write to the output folder changes every folder there while the program runs.
    #[test]
    fn a_program_writes_to_no_folder_that_another_person_can_rename() {
        let [dir, home] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let keys = home.path().join("authorized_keys");
        fs::write(&keys, "owner").expect("writable");
        let mut out = OutDir::open(dir.path()).expect("opens");
        let attacked = |path: &Path| {
            for entry in fs::read_dir(dir.path()).expect("readable") {
                let folder = entry.expect("an entry").path();
                fs::rename(&folder, home.path().join("away")).expect("writable");
                fs::create_dir(&folder).expect("writable");
                symlink(&keys, folder.join("x")).expect("writable");
            }
            fs::write(path, "tool").map_err(at(path))
        };
        out.by_tool(ImageForm::Uki, OutputRole::Uki, "x", attacked)
            .expect("writable");
        let content = |path: &Path| fs::read_to_string(path).expect("readable");
        assert_eq!(content(&keys), "owner");
        assert_eq!(content(&dir.path().join("x")), "tool");
    }

    /// The same where the temporary folder lets others rename: then the command takes no file of theirs.
    #[test]
    fn only_what_is_in_the_folder_of_the_program_is_taken() {
        let [dir, home] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let keys = home.path().join("authorized_keys");
        fs::write(&keys, "owner").expect("writable");
        let mut out = OutDir::open(dir.path()).expect("opens");
        let linked = |path: &Path| symlink(&keys, path).map_err(at(path));
        let refused = out.by_tool(ImageForm::Uki, OutputRole::Uki, "x", linked);
        assert_eq!(refused.expect_err("a link").exit_code(), 1);
        let replaced = |path: &Path| {
            let folder = path.parent().expect("the folder of the program");
            fs::rename(folder, home.path().join("away")).expect("writable");
            fs::create_dir(folder).expect("writable");
            fs::write(path, "attacker").map_err(at(path))
        };
        let refused = out.by_tool(ImageForm::Uki, OutputRole::Uki, "x", replaced);
        assert_eq!(refused.expect_err("another folder").exit_code(), 1);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_name_with_a_line_break_is_not_written() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut out = OutDir::open(dir.path()).expect("opens");
        let refused = out.bytes(ImageForm::Uki, OutputRole::Uki, "a\nb", b"new");
        assert_eq!(refused.expect_err("two lines").exit_code(), 2);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn an_output_folder_that_is_a_file_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = OutDir::open(file.path()).expect_err("not a folder");
        assert_eq!(error.exit_code(), 1);
        assert!(
            error.to_string().contains(&*file.path().to_string_lossy()),
            "{error}"
        );
    }
}
