//! Checks a file, or a disk that was written, against the manifest of its build.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use alknet_image::{
    BACKUP_LBAS, DATA_FIRST_LBA, DATA_HEAD_END, DISK_PARTS_LEFT_OUT, ImageForm, LBA_BYTES,
    Manifest, ManifestDisk, ManifestOutput, NEW_DISK_PARTS, OutputRole, boot_state_difference,
    end_difference, has_image_identity, identity_difference, open_regular, open_regular_or_disk,
    table_difference,
};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::other_form::{bytes_behind_table, form_beside_raw};
use crate::read_back::{DirectReader, READ_BYTES, forget, is_zero};

/// What an administrator places on the EFI system partition, for the first boot.
const CONFIGURATION_FILE: &str = "alknet.toml";
const CONFIGURATION_FOLDER: &str = "alknet/";

/// The other boot slot, to which an update writes. [`DISK_PARTS_LEFT_OUT`] names it.
const SECOND_SLOT: &str = "EFI/ALKNET/B.EFI";

/// What differs on a disk that was not started, and on which a first boot would find more than the image.
const EARLIER_DATA: &str = "data partition: it has bytes that are not of the image, such as the vault of an earlier \
                            node. Write the image by 'alknet image write', or zero the first 16 MiB of the partition";

/// What differs on such a disk if an attacker has placed a program that an update would place.
const SECOND_PROGRAM: &str = "second boot slot: EFI/ALKNET/B.EFI is there, which only an update writes, and no machine \
                              was started from the disk";

/// Why a file or a disk is not what the manifest says.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file or disk.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The manifest has no such file.
    #[error("the manifest has no file {name}; of a written disk or its copy, give --disk")]
    NotListed {
        /// The file's name.
        name: String,
    },
    /// The file has other bytes than the manifest says.
    #[error(
        "{name} is not the file of the manifest: it has {actual}, and the manifest says {expected}"
    )]
    OtherContent {
        /// The file's name.
        name: String,
        /// Its size, or its SHA-256.
        actual: String,
        /// The same of the manifest.
        expected: String,
    },
    /// The manifest has no disk to compare with.
    #[error("the manifest has no disk of the form raw: build that form, and take its manifest")]
    NoDisk,
    /// The disk is smaller than the image.
    #[error("{} has {present} bytes, and the image {needed}", path.display())]
    TooShort {
        /// The disk.
        path: PathBuf,
        /// Bytes of the image.
        needed: u64,
        /// Bytes of the disk.
        present: u64,
    },
    /// A part of the disk has other bytes.
    #[error("{} differs from the manifest: {part}", path.display())]
    OtherPart {
        /// The disk.
        path: PathBuf,
        /// The part.
        part: String,
    },
    /// The EFI system partition has files that the manifest does not have. Firmware or the loader of systemd may load
    /// them beside the program.
    #[error(
        "{} has files on its EFI system partition that the manifest does not have: {}",
        path.display(),
        files.join(", ")
    )]
    OtherFiles {
        /// The disk.
        path: PathBuf,
        /// Their paths from the root of the partition.
        files: Vec<String>,
    },
}

/// A part that was compared.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckedPart {
    /// As the manifest calls the file or the part of the disk.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// What was checked, and is as the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageCheck {
    /// The parts that were compared.
    pub checked: Vec<CheckedPart>,
    /// The parts that were not, by rule, each with the reason. Empty if everything was compared.
    pub left_out: Vec<(&'static str, &'static str)>,
    /// Files of the EFI system partition that the manifest does not have: those of a configuration, and the program in
    /// the second boot slot.
    pub others: Vec<String>,
    /// Bytes behind the image that were not looked at, on a disk whose partition table ends with the image or that no
    /// machine was started from. Of the blocks at its end only the beginnings were looked at.
    pub bytes_behind: u64,
}

impl ImageCheck {
    fn whole(name: &str, bytes: u64) -> Self {
        Self {
            checked: vec![CheckedPart {
                name: name.to_owned(),
                bytes,
            }],
            left_out: Vec::new(),
            others: Vec::new(),
            bytes_behind: 0,
        }
    }
}

/// Checks a file that the manifest lists under the same name.
///
/// # Errors
/// See [`VerifyError`].
pub fn verify_file(path: &Path, manifest: &Manifest) -> Result<ImageCheck, VerifyError> {
    let unreadable = |source| VerifyError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let listed = manifest.outputs.iter().find(|it| it.file == name);
    let Some(listed) = listed else {
        return Err(VerifyError::NotListed {
            name: name.into_owned(),
        });
    };
    let differs = |actual: String, expected: String| VerifyError::OtherContent {
        name: listed.file.clone(),
        actual,
        expected,
    };
    // Another person may have put a pipe or a device there.
    let mut file = open_regular(path).map_err(|error| unreadable(error.into()))?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    if bytes != listed.bytes {
        let say = |bytes| format!("{bytes} bytes");
        return Err(differs(say(bytes), say(listed.bytes)));
    }
    let sha256 = hash(&mut file).map_err(unreadable)?;
    match sha256 == listed.sha256 {
        true => Ok(ImageCheck::whole(&listed.file, bytes)),
        false => {
            let say = |hash: &str| format!("the SHA-256 {hash}");
            Err(differs(say(&sha256), say(&listed.sha256)))
        }
    }
}

/// Checks a disk that was written from the form `raw`, or a copy of it.
///
/// A disk that no machine was started from is compared as a whole, and must have zeros where the first boot looks for a
/// vault, also behind the image: a disk that was in use before may have an earlier one there. Of another one the parts
/// are compared that stay as they are, and [`ImageCheck::left_out`] names the others. If it has the identity of the
/// image, no machine has updated it: it must also have the boot state of a new disk, no program in the second boot slot,
/// and those zeros. The partition table and its backup must have the layout of the image, and identities that the image or a
/// first start gives, and no block at the end of the disk may begin as another table. Every firmware must find the same
/// files on the EFI system partition: those of the manifest, a configuration, and on a disk in use the program of the second
/// boot slot.
///
/// A file must not also be one of another form, from which a virtual machine may start another disk, except for the footer
/// of a fixed VHD.
///
/// # Errors
/// See [`VerifyError`].
pub fn verify_disk(path: &Path, manifest: &Manifest) -> Result<ImageCheck, VerifyError> {
    let is_raw = |it: &&ManifestOutput| it.form == ImageForm::Raw && it.role == OutputRole::Disk;
    let image = manifest.outputs.iter().find(is_raw);
    let (Some(image), Some(expected)) = (image, &manifest.disk) else {
        return Err(VerifyError::NoDisk);
    };
    let disk = CheckedDisk::open(path, image)?;
    let data_end = DATA_HEAD_END.min(disk.bytes);
    let bytes_behind = disk.bytes.saturating_sub(data_end.max(image.bytes));
    let sha256 = disk.read(|file| hash_disk(file, image.bytes))?;
    let check = if sha256 == image.sha256 {
        let is_zero = disk.read(|file| is_zero(file, image.bytes..data_end))?;
        disk.accept((!is_zero).then_some(EARLIER_DATA))?;
        // The table itself is that of the image.
        let part = disk.read(|file| end_difference(file, disk.bytes))?;
        disk.accept(part)?;
        ImageCheck {
            bytes_behind,
            ..ImageCheck::whole("the whole image", image.bytes)
        }
    } else {
        let mut check = disk.compare_parts(image, manifest, expected)?;
        if disk.read(has_image_identity)? {
            let part = disk.read(|file| compare_new(file, image.bytes, data_end, &mut check))?;
            disk.accept(part)?;
            check.bytes_behind = bytes_behind;
        } else {
            // Another program may have replaced the identities. A first start also moves the end of the table.
            check.bytes_behind = disk.read(|file| bytes_behind_table(file, disk.bytes))?;
        }
        disk.accept_others(&check)?;
        check
    };
    let form = disk.read(|file| other_form(file, disk.bytes))?;
    disk.accept(form)?;
    Ok(check)
}

/// A disk, or a file with a copy of one, that is compared. Its errors name it.
#[derive(Debug)]
struct CheckedDisk<'a> {
    path: &'a Path,
    file: File,
    bytes: u64,
}

impl<'a> CheckedDisk<'a> {
    /// Opens a disk that has to hold `image`.
    fn open(path: &'a Path, image: &ManifestOutput) -> Result<Self, VerifyError> {
        let unreadable = |source| VerifyError::Unreadable {
            path: path.to_owned(),
            source,
        };
        // Another person may have put a pipe or another device there.
        let file = open_regular_or_disk(path).map_err(|error| unreadable(error.into()));
        let mut file = file?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
        if bytes < image.bytes {
            return Err(VerifyError::TooShort {
                path: path.to_owned(),
                needed: image.bytes,
                present: bytes,
            });
        }
        // What the kernel remembers may be older than what the disk has.
        forget(&file, 0, 0);
        Ok(Self { path, file, bytes })
    }

    /// Compares the parts that stay as they are on a disk in use.
    fn compare_parts(
        &self,
        image: &ManifestOutput,
        manifest: &Manifest,
        expected: &ManifestDisk,
    ) -> Result<ImageCheck, VerifyError> {
        let part = self.read(|file| table_difference(file, image.bytes, self.bytes))?;
        self.accept(part)?;
        let part = self.read(|file| identity_difference(file, &manifest.version, &manifest.git))?;
        self.accept(part)?;
        let found = ManifestDisk::read(&self.file).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                self.other_part(format!("EFI system partition: {error}"))
            }
            _ => self.unreadable(error),
        })?;
        compared(expected, &found).map_err(|part| self.other_part(part))
    }

    /// Refuses files that are neither of the image, nor a configuration, nor the program of the second boot slot.
    fn accept_others(&self, check: &ImageCheck) -> Result<(), VerifyError> {
        let is_foreign = |it: &&String| !is_configuration(it) && *it != SECOND_SLOT;
        let foreign = check.others.iter().filter(is_foreign);
        let files: Vec<String> = foreign.cloned().collect();
        if files.is_empty() {
            return Ok(());
        }
        Err(VerifyError::OtherFiles {
            path: self.path.to_owned(),
            files,
        })
    }

    fn read<T>(&self, read: impl FnOnce(&File) -> io::Result<T>) -> Result<T, VerifyError> {
        read(&self.file).map_err(|error| self.unreadable(error))
    }

    /// Refuses the disk if a comparison found a part that differs.
    fn accept(&self, different: Option<impl Into<String>>) -> Result<(), VerifyError> {
        different.map_or(Ok(()), |part| Err(self.other_part(part.into())))
    }

    fn unreadable(&self, source: io::Error) -> VerifyError {
        VerifyError::Unreadable {
            path: self.path.to_owned(),
            source,
        }
    }

    fn other_part(&self, part: String) -> VerifyError {
        VerifyError::OtherPart {
            path: self.path.to_owned(),
            part,
        }
    }
}

/// The form that a file has beside that of a raw disk, as a text for a person. Programs read a disk that is no file as it
/// is.
fn other_form(disk: &File, bytes: u64) -> io::Result<Option<String>> {
    if !disk.metadata()?.is_file() {
        return Ok(None);
    }
    let form = form_beside_raw(disk, bytes)?;
    let text = |what| format!("it is also {what}, so a virtual machine may start another disk");
    Ok(form.map(text))
}

/// Compares what has to be on a disk from which no machine was started, beside the parts of the manifest. Returns the
/// first part that differs.
fn compare_new(
    disk: &File,
    image_bytes: u64,
    data_end: u64,
    check: &mut ImageCheck,
) -> io::Result<Option<&'static str>> {
    if check.others.iter().any(|path| path == SECOND_SLOT) {
        return Ok(Some(SECOND_PROGRAM));
    }
    if let Some(part) = boot_state_difference(disk)? {
        return Ok(Some(part));
    }
    // The backup of the partition table ends the image.
    let start = DATA_FIRST_LBA * LBA_BYTES;
    let table = image_bytes.saturating_sub(BACKUP_LBAS * LBA_BYTES);
    for range in [start..table, image_bytes..data_end] {
        if !is_zero(disk, range)? {
            return Ok(Some(EARLIER_DATA));
        }
    }
    let left_out = &mut check.left_out;
    left_out.retain(|(name, _)| !NEW_DISK_PARTS.contains(name));
    let zeros = "zeros at the beginning of the data partition";
    let zero_bytes = table.saturating_sub(start) + data_end.saturating_sub(image_bytes);
    let names = NEW_DISK_PARTS.map(|name| (format!("{name}, as on a new disk"), 0));
    let compared = names.into_iter().chain([(zeros.to_owned(), zero_bytes)]);
    let compared = compared.map(|(name, bytes)| CheckedPart { name, bytes });
    check.checked.extend(compared);
    Ok(None)
}

/// Compares the parts, and returns the name of the first that differs.
fn compared(expected: &ManifestDisk, found: &ManifestDisk) -> Result<ImageCheck, String> {
    let mut checked = vec![CheckedPart {
        name: "partition table and its backup, but for identities".to_owned(),
        bytes: 0,
    }];
    for region in &expected.regions {
        if !found.regions.contains(region) {
            return Err(region.name.clone());
        }
        checked.push(CheckedPart {
            name: region.name.clone(),
            bytes: region.bytes,
        });
    }
    for file in &expected.files {
        if !found.files.contains(file) {
            let is_there = found.files.iter().any(|it| it.path == file.path);
            let why = if is_there { "" } else { " is missing" };
            return Err(format!("{} of the EFI system partition{why}", file.path));
        }
        checked.push(CheckedPart {
            name: file.path.clone(),
            bytes: file.bytes,
        });
    }
    let is_other = |path: &String| !expected.files.iter().any(|it| it.path == *path);
    let others = found.files.iter().map(|it| it.path.clone());
    Ok(ImageCheck {
        checked,
        left_out: DISK_PARTS_LEFT_OUT.to_vec(),
        others: others.filter(is_other).collect(),
        bytes_behind: 0,
    })
}

/// Whether a file on the EFI system partition is a part of a configuration, which no firmware loads.
#[must_use]
pub fn is_configuration(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    path == CONFIGURATION_FILE || path.starts_with(CONFIGURATION_FOLDER)
}

/// SHA-256 of the first bytes of a disk.
fn hash_disk(disk: &File, bytes: u64) -> io::Result<String> {
    let mut reader = DirectReader::new(disk)?;
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < bytes {
        let wanted = (bytes - at).min(READ_BYTES as u64) as usize;
        hasher.update(reader.read(at, wanted)?);
        at += wanted as u64;
    }
    Ok(HEXLOWER.encode(&hasher.finalize()))
}

fn hash(file: &mut dyn Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(HEXLOWER.encode(&hasher.finalize())),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
