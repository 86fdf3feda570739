//! Whether the EFI programs of an image or of a written disk are signed for Secure Boot.

use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use alknet_image::{
    ImageError, ImageForm, LOADER_PATH, Manifest, ManifestDisk, OutputRole, open_regular_or_disk,
};
use thiserror::Error;

use crate::authenticode::{AuthenticodeError, EfiCertificate};

/// Longest EFI program that is read, in bytes: far beyond a third of the EFI system partition.
const PROGRAM_BYTES_MAX: u64 = 1 << 30;
/// What an EFI program begins with, and no disk of this project does.
const PROGRAM_MARK: &[u8] = b"MZ";

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
        "cannot read EFI programs from {}: {source}; give a disk, a file of the form raw or uki, or the folder of one",
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
    /// A program is not signed by the key of the certificate.
    #[error("{program} of {}: {source}", path.display())]
    NotSigned {
        /// The file or disk.
        path: PathBuf,
        /// The program.
        program: String,
        /// What its signature lacks.
        source: AuthenticodeError,
    },
}

/// What was checked: the EFI programs, each with a signature that holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignedPrograms {
    /// A file's name, or the path on the EFI system partition behind the file's name.
    pub checked: Vec<String>,
    /// Files of a folder that have EFI programs inside, which this library does not read.
    pub left_out: Vec<String>,
}

/// Checks that every EFI program of a folder, a file or a disk has a signature by the key of a certificate: of a disk the
/// loader and the programs of the boot slots that are there.
///
/// # Errors
/// A program is not signed so, or none can be read.
pub fn verify_programs(
    path: &Path,
    certificate: &EfiCertificate,
) -> Result<SignedPrograms, SignedProgramsError> {
    let mut programs = SignedPrograms::default();
    if !path.is_dir() {
        programs.checked = file(path, certificate)?;
        return Ok(programs);
    }
    for output in Manifest::read(path)?.outputs {
        match (output.form, output.role) {
            (ImageForm::Raw, OutputRole::Disk) | (ImageForm::Uki, OutputRole::Uki) => {
                let checked = file(&path.join(&output.file), certificate)?;
                programs.checked.extend(checked);
            }
            (
                form,
                OutputRole::Archive
                | OutputRole::Disk
                | OutputRole::OciImage
                | OutputRole::PackedDisk,
            ) if form.holds_efi_program() => programs.left_out.push(output.file),
            _ => {}
        }
    }
    match programs.checked.is_empty() {
        true => Err(SignedProgramsError::NoForm {
            path: path.to_owned(),
        }),
        false => Ok(programs),
    }
}

/// Checks the programs of a file, which is one itself or has a disk. Returns their names.
fn file(path: &Path, certificate: &EfiCertificate) -> Result<Vec<String>, SignedProgramsError> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let programs = read(path, &name).map_err(|source| SignedProgramsError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let missing = |what| SignedProgramsError::Missing {
        path: path.to_owned(),
        what,
    };
    let is_loader = |place: &str| place.eq_ignore_ascii_case(LOADER_PATH);
    // A file that is a program itself has its own name here.
    let is_whole = |place: &str| place == name;
    let places = || programs.iter().map(|(place, _)| place.as_str());
    if !places().any(|place| is_loader(place) || is_whole(place)) {
        return Err(missing("loader (EFI/BOOT/BOOTX64.EFI)"));
    }
    if places().all(is_loader) {
        return Err(missing(
            "program of a boot slot (EFI/ALKNET/A.EFI or B.EFI)",
        ));
    }
    for (place, program) in &programs {
        let signed = certificate.verify(program);
        signed.map_err(|source| SignedProgramsError::NotSigned {
            path: path.to_owned(),
            program: place.clone(),
            source,
        })?;
    }
    let shown = |place: &str| match is_whole(place) {
        true => name.clone(),
        false => format!("{name}: {place}"),
    };
    Ok(places().map(shown).collect())
}

/// The programs of a file: itself under `name`, or those of its disk under their paths.
fn read(path: &Path, name: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    // Another person may have put a pipe or another device there.
    let mut file = open_regular_or_disk(path)?;
    let mut mark = [0; PROGRAM_MARK.len()];
    file.read_exact(&mut mark)?;
    if mark != PROGRAM_MARK {
        return ManifestDisk::programs(&file);
    }
    file.rewind()?;
    let mut program = Vec::new();
    file.take(PROGRAM_BYTES_MAX).read_to_end(&mut program)?;
    Ok(vec![(name.to_owned(), program)])
}
