//! The disk of the form `raw` on the medium, from which a machine writes it to a disk.
//!
//! Nearly all of the disk is the EFI program, which the medium has already: on its EFI system partition. So the medium
//! has the rest of the disk, compressed, and a note that says where the program belongs. Together they are the disk of
//! the form `raw`, byte for byte.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use alknet_fat::{BlockDevice, FatVolume, FilePartition};
use data_encoding::HEXLOWER;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::disk::{ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES};
use crate::disk_parts::ManifestDisk;
use crate::virtual_disk::{RawDisk, to_usize};

/// The label of the medium's ISO 9660 file system.
pub const MEDIUM_LABEL: &str = "ALKNET";

/// The file of the medium that is its EFI system partition.
pub(crate) const SYSTEM_FILE: &str = "boot/efi.img";
/// The note, and the rest of the disk.
pub(crate) const NOTE_FILE: &str = "install/disk.json";
pub(crate) const REST_FILE: &str = "install/disk.zst";
/// The program on the medium's EFI system partition, and on that of the disk.
const MEDIUM_PROGRAM: &str = "EFI/BOOT/BOOTX64.EFI";
const DISK_PROGRAM: &str = "EFI/ALKNET/A.EFI";

/// Longest note that is read, in bytes.
const NOTE_BYTES_MAX: u64 = 4096;
/// Bytes of the disk that are read at once.
const UNIT_BYTES: u64 = 1 << 20;
/// Most bytes of the disk beside its program that are kept in memory, in the units in which they are read: tables, the
/// loader, and GRUB.
const REST_BYTES_MAX: u64 = 64 << 20;
/// Level of the compression: the rest is mostly zeros, and small programs.
const LEVEL: i32 = 6;

/// What the medium says about the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskNote {
    /// The version of the image.
    version: String,
    /// Bytes of the disk.
    bytes: u64,
    /// SHA-256 of the disk, in lower-case hexadecimal.
    sha256: String,
    /// Bytes of the EFI program.
    program_bytes: u64,
    /// The first byte of the program on the disk.
    disk_at: u64,
    /// The first byte of the program in the file of the EFI system partition.
    medium_at: u64,
}

/// The two files that a medium has for this.
#[derive(Debug)]
pub(crate) struct InstallFiles {
    pub(crate) note: Vec<u8>,
    pub(crate) rest: Vec<u8>,
}

impl InstallFiles {
    /// Splits a disk whose EFI program is also on the EFI system partition of a medium.
    pub(crate) fn new(disk: &RawDisk, system: &File, version: &str) -> io::Result<Self> {
        let partition = FilePartition::new(disk.file(), ESP_FIRST_LBA * LBA_BYTES, ESP_BYTES);
        let (at, program_bytes) = file_extent(partition, DISK_PROGRAM)?;
        let disk_at = ESP_FIRST_LBA * LBA_BYTES + at;
        let (medium_at, medium_bytes) = file_extent(FilePartition::whole(system)?, MEDIUM_PROGRAM)?;
        if medium_bytes != program_bytes {
            return Err(io::Error::other("medium and disk have two EFI programs"));
        }
        let mut hasher = Sha256::new();
        let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
        encoder.include_checksum(true)?;
        let program = disk_at..disk_at + program_bytes;
        for index in 0..disk.units(UNIT_BYTES) {
            let start = index * UNIT_BYTES;
            let length = to_usize(UNIT_BYTES.min(disk.bytes() - start));
            let mut unit = disk.unit(UNIT_BYTES, index)?.unwrap_or_default();
            unit.resize(length, 0);
            hasher.update(&unit);
            // Places of the program's ends in this unit.
            let [from, to] = [program.start, program.end]
                .map(|at| length.min(to_usize(at.saturating_sub(start))));
            encoder.write_all(&unit[..from])?;
            encoder.write_all(&unit[to..])?;
        }
        let note = DiskNote {
            version: version.to_owned(),
            bytes: disk.bytes(),
            sha256: HEXLOWER.encode(&hasher.finalize()),
            program_bytes,
            disk_at,
            medium_at,
        };
        Ok(Self {
            note: serde_json::to_vec_pretty(&note).map_err(io::Error::other)?,
            rest: encoder.finish()?,
        })
    }
}

/// The first byte of a file on a volume, and its bytes. A new volume has each file in one piece.
fn file_extent(partition: impl BlockDevice, path: &str) -> io::Result<(u64, u64)> {
    let volume = FatVolume::open(partition)?;
    let file = volume.open_file(path)?;
    match file.extents() {
        [extent] => Ok((extent.at, extent.bytes)),
        _ => Err(io::Error::other(format!("{path} is in several pieces"))),
    }
}

/// The disk of the form `raw`, read from a medium.
///
/// ```no_run
/// use std::io::Read;
///
/// let mut disk = alknet_image::MediumDisk::open("/mnt".as_ref())?;
/// let mut head = [0; 512];
/// disk.read_exact(&mut head)?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct MediumDisk {
    note: DiskNote,
    rest: zstd::Decoder<'static, BufReader<File>>,
    program: File,
    at: u64,
}

impl MediumDisk {
    /// Opens the disk on a medium whose files are below `root`.
    ///
    /// # Errors
    /// The medium cannot be read, has a link, a pipe or a folder in the place of a file, or was made by a version that had no disk on it.
    pub fn open(root: &Path) -> io::Result<Self> {
        let mut note = Vec::new();
        let file = open_file(root, NOTE_FILE)?;
        file.take(NOTE_BYTES_MAX).read_to_end(&mut note)?;
        let note: DiskNote = serde_json::from_slice(&note)?;
        let mut program = open_file(root, SYSTEM_FILE)?;
        program.seek(SeekFrom::Start(note.medium_at))?;
        Ok(Self {
            rest: zstd::Decoder::new(open_file(root, REST_FILE)?)?,
            program,
            note,
            at: 0,
        })
    }

    /// The version of the image.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.note.version
    }

    /// Bytes of the disk.
    #[must_use]
    pub const fn disk_bytes(&self) -> u64 {
        self.note.bytes
    }

    /// SHA-256 of the disk in lower-case hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.note.sha256
    }
}

impl MediumDisk {
    /// The parts of the disk that stay the same on a disk in use, with the program's hash in the place of the program. Reads
    /// the medium to its end.
    ///
    /// # Errors
    /// The medium cannot be read, or what it has is no disk of this project.
    pub fn parts(mut self) -> io::Result<ManifestDisk> {
        let DiskNote {
            bytes,
            program_bytes,
            disk_at,
            ..
        } = self.note;
        let invalid = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
        // A file in memory, which has only the blocks that are written.
        let disk = File::from(memfd_create("disk", MFdFlags::MFD_CLOEXEC)?);
        disk.set_len(bytes)?;
        let mut hasher = Sha256::new();
        let mut hashed = 0;
        let mut kept = 0;
        let mut unit = vec![0; to_usize(UNIT_BYTES)];
        loop {
            let at = self.at;
            // A read has either bytes of the program or others.
            let read = self.read(&mut unit)?;
            let content = &unit[..read];
            if read == 0 {
                break;
            }
            if self.at > bytes {
                return Err(invalid(
                    "the disk on the medium is longer than its note says",
                ));
            }
            if (disk_at..disk_at.saturating_add(program_bytes)).contains(&at) {
                hasher.update(content);
                hashed += read as u64;
            } else if content.iter().any(|byte| *byte != 0) {
                kept += read as u64;
                if kept > REST_BYTES_MAX {
                    return Err(invalid(
                        "the disk on the medium has too much beside its program",
                    ));
                }
                disk.write_all_at(content, at)?;
            }
        }
        let mut parts = ManifestDisk::read(&disk)?;
        let program = parts
            .files
            .iter_mut()
            .find(|file| file.path == DISK_PROGRAM);
        match program {
            Some(program) if hashed == program_bytes && program.bytes == hashed => {
                program.sha256 = HEXLOWER.encode(&hasher.finalize());
                Ok(parts)
            }
            _ => Err(invalid(
                "the disk on the medium has another program than its note says",
            )),
        }
    }
}

/// Opens a regular file of a medium, which an attacker may have made. A link could lead to a file of the machine, and an
/// open of a pipe would wait for ever.
fn open_file(root: &Path, name: &str) -> io::Result<File> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(root.join(name))?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("{name} of the medium is no regular file"),
        )),
    }
}

impl Read for MediumDisk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let DiskNote {
            disk_at,
            program_bytes,
            ..
        } = self.note;
        let program_end = disk_at.saturating_add(program_bytes);
        let (from, left): (&mut dyn Read, u64) = match self.at {
            at if at < disk_at => (&mut self.rest, disk_at - at),
            at if at < program_end => (&mut self.program, program_end - at),
            _ => (&mut self.rest, u64::MAX),
        };
        // A note may say any number.
        let length = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = from.read(&mut buffer[..length])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl std::fmt::Debug for MediumDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MediumDisk({:?} at {})", self.note, self.at)
    }
}

/// Writes both files below the root of a medium.
pub(crate) fn write(files: &InstallFiles, root: &Path) -> io::Result<()> {
    let [note, rest] = [NOTE_FILE, REST_FILE].map(|file| root.join(file));
    if let Some(folder) = note.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(note, &files.note)?;
    fs::write(rest, &files.rest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use alknet_test_support::deadline;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::disk;
    use crate::ids::BuildIds;

    /// A medium in a folder, for a program of these bytes, and the disk itself.
    fn medium(program: &[u8]) -> (tempfile::TempDir, Vec<u8>) {
        let root = tempfile::tempdir().expect("a temporary folder");
        let mut file = disk::tests::written(program, "a");
        let mut content = Vec::new();
        file.rewind().expect("seekable");
        file.read_to_end(&mut content).expect("readable");
        fs::create_dir(root.path().join("boot")).expect("creatable");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let system = options.open(root.path().join(SYSTEM_FILE));
        let system = system.expect("creatable");
        let ids = BuildIds::new("1", "a");
        disk::write_system_image(&system, program, 1 << 20, &ids).expect("written");
        let raw = RawDisk::new(file).expect("readable");
        let files = InstallFiles::new(&raw, &system, "1").expect("the same program");
        write(&files, root.path()).expect("writable");
        (root, content)
    }

    #[test]
    fn the_disk_comes_back_byte_for_byte() {
        // Not whole clusters, and longer than what is read at once.
        let program: Vec<u8> = (0..3_000_001_u32).map(|at| (at >> 4) as u8 | 1).collect();
        let (root, content) = medium(&program);
        let mut disk = MediumDisk::open(root.path()).expect("a medium");
        assert_eq!(
            (disk.version(), disk.disk_bytes()),
            ("1", content.len() as u64)
        );
        let sum = HEXLOWER.encode(&Sha256::digest(&content));
        assert_eq!(disk.sha256(), sum);
        let mut read = Vec::new();
        disk.read_to_end(&mut read).expect("readable");
        assert!(read == content, "the disk differs");
        // The program is not on the medium twice.
        let rest = fs::metadata(root.path().join(REST_FILE)).expect("written");
        assert!(rest.len() < 1_000_000, "{} bytes", rest.len());
    }

    #[test]
    fn the_parts_of_the_disk_are_those_of_the_raw_disk() {
        let program: Vec<u8> = (0..3_000_001_u32).map(|at| (at >> 4) as u8 | 1).collect();
        let (root, content) = medium(&program);
        let raw = tempfile::tempfile().expect("a temporary file");
        raw.write_all_at(&content, 0).expect("writable");
        let disk = MediumDisk::open(root.path()).expect("a medium");
        let parts = disk.parts().expect("a disk");
        assert_eq!(parts, ManifestDisk::read(&raw).expect("readable"));

        // The program of the note is longer than that of the disk.
        let path = root.path().join(NOTE_FILE);
        let note = fs::read_to_string(&path).expect("written");
        let longer = note.replace("3000001", "3000002");
        assert_ne!(note, longer);
        fs::write(&path, longer).expect("writable");
        let error = MediumDisk::open(root.path()).and_then(MediumDisk::parts);
        error.expect_err("another program");
    }

    #[test]
    fn a_medium_without_its_disk_is_an_error() {
        let (root, _) = medium(b"program");
        for file in [REST_FILE, SYSTEM_FILE, NOTE_FILE] {
            fs::remove_file(root.path().join(file)).expect("it was written");
            let error = MediumDisk::open(root.path()).expect_err(file);
            assert_eq!(error.kind(), ErrorKind::NotFound, "{file}");
        }
        let note = r#"{"version":"1","bytes":1,"sha256":"","program_bytes":1,"disk_at":1}"#;
        fs::write(root.path().join(NOTE_FILE), note).expect("writable");
        let error = MediumDisk::open(root.path()).expect_err("half a note");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    /// The open of a pipe waits until a program writes to it.
    #[test]
    fn a_pipe_or_a_link_in_the_place_of_a_file_is_refused_at_once() {
        // Making a medium takes longer than all cases.
        let (root, _) = medium(b"program");
        let aside = root.path().join("aside");
        for name in [NOTE_FILE, SYSTEM_FILE, REST_FILE] {
            let path = root.path().join(name);
            fs::rename(&path, &aside).expect("it was written");
            for is_pipe in [true, false] {
                match is_pipe {
                    true => mkfifo(&path, Mode::S_IRWXU).expect("creatable"),
                    false => symlink(&aside, &path).expect("creatable"),
                }
                let (done, opened) = mpsc::channel();
                let folder = root.path().to_owned();
                // The thread outlives the test if the open waits.
                thread::spawn(move || done.send(MediumDisk::open(&folder).err()));
                let opened = opened.recv_timeout(deadline(Duration::from_secs(10)));
                let error = opened.unwrap_or_else(|_| panic!("{name}, pipe {is_pipe}: it waits"));
                assert!(error.is_some(), "{name}, pipe {is_pipe}");
                fs::remove_file(&path).expect("it was made");
            }
            fs::rename(&aside, &path).expect("it was moved");
        }
        // The files themselves are whole.
        MediumDisk::open(root.path()).expect("a medium");
    }

    #[test]
    fn a_program_that_ends_early_ends_the_disk() {
        let (root, content) = medium(b"program");
        let system = File::options()
            .write(true)
            .open(root.path().join(SYSTEM_FILE));
        system.expect("written").set_len(1024).expect("writable");
        let mut disk = MediumDisk::open(root.path()).expect("a medium");
        let mut read = Vec::new();
        disk.read_to_end(&mut read).expect("readable");
        assert!(read.len() < content.len());
    }
}
