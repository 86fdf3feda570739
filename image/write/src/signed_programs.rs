//! Whether the EFI programs of an image or of a written disk are signed for Secure Boot.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use alknet_image::{
    DISK_BYTES, ImageError, ImageForm, LOADER_PATH, Manifest, ManifestDisk, ManifestOutput,
    OutputRole, PROGRAM_MARK_BYTES, SLOT_PATHS, begins_as_program, open_regular_or_disk,
    read_regular, table_difference,
};
use thiserror::Error;

use crate::authenticode::{AuthenticodeError, EfiCertificate};
use crate::other_form::{bytes_behind_table, form_beside_raw};

/// Longest EFI program that is read, in bytes: far beyond a third of the EFI system partition.
const PROGRAM_BYTES_MAX: u64 = 1 << 30;
/// Longest file of a folder that may be a text, in bytes: far beyond a bill of materials.
const TEXT_BYTES_MAX: u64 = 16 << 20;
/// What lines of the description of a VMDK container begin with. It is a text, and names the file with the disk.
const DESCRIPTION_LINES: [&str; 3] = ["# Disk DescriptorFile", "version=", "createType"];

/// Why EFI programs do not count as signed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SignedProgramsError {
    /// The folder has no manifest of this library.
    #[error(transparent)]
    Folder(#[from] ImageError),
    /// The folder has no form from which this library reads the programs.
    #[error(
        "{} has neither the form raw nor the form uki, of which this command reads the EFI programs: build one of them \
         as well",
        path.display()
    )]
    NoForm {
        /// The folder.
        path: PathBuf,
    },
    /// The file cannot be read, or has no EFI system partition that every firmware reads in the same way.
    #[error(
        "cannot read EFI programs from {}: {source}; give a disk, a file of the form raw, vhd or \
         uki, or a folder with the form raw or uki",
        path.display()
    )]
    Unreadable {
        /// The file or disk.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The disk lacks a program that a machine needs to start.
    #[error("{} has no {what} on its EFI system partition", path.display())]
    Missing {
        /// The disk.
        path: PathBuf,
        /// The program.
        what: &'static str,
    },
    /// Programs are not signed by the key of the certificate.
    #[error("{}: {}", path.display(), unsigned_list(programs))]
    NotSigned {
        /// The file or disk.
        path: PathBuf,
        /// Each program, and what its signature lacks.
        programs: Vec<(String, AuthenticodeError)>,
    },
    /// Firmware may start programs from another place of the disk.
    #[error(
        "{} has another layout than a disk of this project, so firmware may start other programs: \
         {part}; 'alknet image write' writes an image with the right one",
        path.display()
    )]
    OtherLayout {
        /// The disk.
        path: PathBuf,
        /// What differs.
        part: String,
    },
    /// Other programs may find another disk in the file.
    #[error(
        "{} has the layout of a raw disk and is also {what}, so a virtual machine may start another disk from \
         it; build the image again, or take its file from where it was built",
        path.display()
    )]
    OtherForm {
        /// The file or disk.
        path: PathBuf,
        /// The other form.
        what: &'static str,
    },
}

/// What was checked: the EFI programs, each with a signature that holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignedPrograms {
    /// A file's name, or the path on the EFI system partition behind the file's name.
    pub checked: Vec<String>,
    /// What else a folder has, whether its manifest names it or not: it may have EFI programs inside. Texts are left out
    /// here, unless the manifest calls one a disk, or one describes a disk.
    pub left_out: Vec<String>,
    /// Bytes behind the images of disks that were not looked at, but for the beginnings of the blocks at the end. A first start
    /// moves the end of the partition table to that of the disk, so a disk that a machine was started from has 0.
    pub bytes_behind: u64,
}

fn unsigned_list(programs: &[(String, AuthenticodeError)]) -> String {
    let texts: Vec<_> = programs
        .iter()
        .map(|(place, error)| format!("{place}: {error}"))
        .collect();
    texts.join("; ")
}

/// Checks that every EFI program of a folder, a file or a disk has a signature by the key of a certificate: of a disk each
/// file of the EFI system partition that [begins as a program](begins_as_program). One without a DOS header does not count
/// as signed. The partition table of a disk has to be the one of this project, and no partition may have other ones or
/// another volume within it, so that firmware finds no other program. A disk that is also a file of another form is
/// refused, except for one with the footer of a fixed VHD.
///
/// Of a folder the files are checked that its manifest calls a disk of the form `raw`, or a program of the form `uki`.
/// Another person may have changed the manifest, so each other file is named that is no text, and each one
/// that the manifest calls a disk with an EFI program.
///
/// # Errors
/// A program is not signed so, none can be read, or the disk has another layout or another form as well.
pub fn verify_programs(
    path: &Path,
    certificate: &EfiCertificate,
) -> Result<SignedPrograms, SignedProgramsError> {
    if !path.is_dir() {
        return file(path, certificate);
    }
    let mut programs = SignedPrograms::default();
    let outputs = Manifest::read(path)?.outputs;
    let mut seen = BTreeSet::new();
    for output in &outputs {
        let is_read = matches!(
            (output.form, output.role),
            (ImageForm::Raw, OutputRole::Disk) | (ImageForm::Uki, OutputRole::Uki)
        );
        if is_read && seen.insert(OsString::from(&output.file)) {
            let found = file(&path.join(&output.file), certificate)?;
            programs.checked.extend(found.checked);
            programs.bytes_behind += found.bytes_behind;
        }
    }
    if programs.checked.is_empty() {
        return Err(SignedProgramsError::NoForm {
            path: path.to_owned(),
        });
    }
    let disks = outputs.iter().filter(|it| holds_disk(it));
    let disks: BTreeSet<_> = disks.map(|it| OsString::from(&it.file)).collect();
    let named = outputs.into_iter().map(|it| OsString::from(it.file));
    let present = names(path).map_err(|source| SignedProgramsError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    for name in named.chain(present) {
        let is_new = seen.insert(name.clone());
        if is_new && (disks.contains(&name) || !is_text(&path.join(&name))) {
            let name = name.to_string_lossy().into_owned();
            programs.left_out.push(name);
        }
    }
    Ok(programs)
}

/// Whether a manifest calls an output a disk that has an EFI program inside, packed or not.
fn holds_disk(output: &ManifestOutput) -> bool {
    let has_disk = matches!(
        output.role,
        OutputRole::Archive | OutputRole::Disk | OutputRole::OciImage | OutputRole::PackedDisk
    );
    has_disk && output.form.holds_efi_program()
}

/// The names of what is in a folder, in their order.
fn names(folder: &Path) -> io::Result<BTreeSet<OsString>> {
    let entries = fs::read_dir(folder)?;
    entries
        .map(|entry| entry.map(|it| it.file_name()))
        .collect()
}

/// Whether a file is a text that describes no disk. No program, disk or archive is one.
fn is_text(path: &Path) -> bool {
    let Ok(content) = read_regular(path, TEXT_BYTES_MAX) else {
        return false;
    };
    let is_written = |it: char| !it.is_control() || it.is_whitespace();
    let Ok(text) = std::str::from_utf8(&content) else {
        return false;
    };
    let describes = |line: &str| DESCRIPTION_LINES.iter().any(|it| line.starts_with(it));
    let is_description = text.lines().any(|line| describes(line.trim_start()));
    !begins_as_program(&content) && !is_description && text.chars().all(is_written)
}

/// Checks the programs of a file, which is one itself or has a disk.
fn file(path: &Path, certificate: &EfiCertificate) -> Result<SignedPrograms, SignedProgramsError> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let unreadable = |source| SignedProgramsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut file = open_regular_or_disk(path).map_err(|error| unreadable(error.into()))?;
    if let Some(program) = whole(&mut file).map_err(unreadable)? {
        check(path, vec![(name.clone(), program)], certificate)?;
        return Ok(SignedPrograms {
            checked: vec![name],
            ..SignedPrograms::default()
        });
    }
    let programs = ManifestDisk::programs(&file).map_err(unreadable)?;
    let disk_bytes = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    // Without a manifest the size of an image is the one that this version builds.
    let difference = table_difference(&file, DISK_BYTES, disk_bytes).map_err(unreadable)?;
    if let Some(part) = difference {
        return Err(SignedProgramsError::OtherLayout {
            path: path.to_owned(),
            part,
        });
    }
    // Of the code for a BIOS, its partition and the data partition only the beginnings are looked at, so the rest may have
    // the tables of a container.
    if let Some(what) = form_beside_raw(&file, disk_bytes).map_err(unreadable)? {
        return Err(SignedProgramsError::OtherForm {
            path: path.to_owned(),
            what,
        });
    }
    let bytes_behind = bytes_behind_table(&file, disk_bytes).map_err(unreadable)?;
    let missing = |what| SignedProgramsError::Missing {
        path: path.to_owned(),
        what,
    };
    let has = |wanted: &str| {
        let mut places = programs.iter().map(|(place, _)| place);
        places.any(|place| place.eq_ignore_ascii_case(wanted))
    };
    if !has(LOADER_PATH) {
        return Err(missing("loader (EFI/BOOT/BOOTX64.EFI)"));
    }
    if !SLOT_PATHS.into_iter().any(has) {
        return Err(missing(
            "program of a boot slot (EFI/ALKNET/A.EFI or B.EFI)",
        ));
    }
    let shown = programs.iter().map(|(place, _)| format!("{name}: {place}"));
    let found = SignedPrograms {
        checked: shown.collect(),
        bytes_behind,
        ..SignedPrograms::default()
    };
    check(path, programs, certificate)?;
    Ok(found)
}

/// The file as a whole, if it is a program. No disk of this project begins as one.
fn whole(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let mut program = Vec::new();
    let mut mark = file.by_ref().take(PROGRAM_MARK_BYTES);
    mark.read_to_end(&mut program)?;
    if !begins_as_program(&program) {
        return Ok(None);
    }
    let bytes = file.seek(SeekFrom::End(0))?;
    // Firmware hashes every byte of a program.
    if bytes > PROGRAM_BYTES_MAX {
        let why = format!("it is {bytes} bytes, and a program has at most {PROGRAM_BYTES_MAX}");
        return Err(io::Error::other(why));
    }
    file.seek(SeekFrom::Start(program.len() as u64))?;
    file.take(PROGRAM_BYTES_MAX).read_to_end(&mut program)?;
    Ok(Some(program))
}

/// Checks programs, and names all that are not signed.
fn check(
    path: &Path,
    programs: Vec<(String, Vec<u8>)>,
    certificate: &EfiCertificate,
) -> Result<(), SignedProgramsError> {
    let unsigned = programs.into_iter().filter_map(|(place, program)| {
        let error = certificate.verify(&program).err()?;
        Some((place, error))
    });
    let unsigned: Vec<_> = unsigned.collect();
    match unsigned.is_empty() {
        true => Ok(()),
        false => Err(SignedProgramsError::NotSigned {
            path: path.to_owned(),
            programs: unsigned,
        }),
    }
}
