//! Files for a disk that travels: compressed for a download, with the map by which bmaptool writes it, and the list
//! that Raspberry Pi Imager reads.

mod bmap;
mod rpi_imager;
mod signatures;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

pub use signatures::{
    FileToSign, MANIFEST_SIGNATURE_FILE, SIGNATURE_ENDING, sign_folder, sign_outputs,
};

use crate::error::ImageError;
use crate::form::{ImageForm, OutputRole};
use crate::inputs::invalid;
use crate::manifest::{Manifest, ManifestOutput};
use crate::out::{OutDir, at};
use crate::regular_file::open_regular;
use rpi_imager::DownloadFacts;
use signatures::check_content;

/// The disk is mostly the EFI program, which is compressed already: higher levels take longer and save nothing.
const LEVEL: i32 = 6;
/// Bytes of the disk that are copied at once, unless they are zeros alone.
const COPY_BYTES: usize = 1 << 16;
/// Roles of the files that [`pack`] writes.
const PACKED: [OutputRole; 3] = [
    OutputRole::BlockMap,
    OutputRole::PackedDisk,
    OutputRole::RpiImager,
];

/// What the packed files say about the release.
#[derive(Clone, Debug, Default)]
pub struct PackOptions {
    /// The URL of the folder from which the files are downloaded, without a slash at its end.
    pub url: Option<String>,
    /// The day of the release, such as `2027-01-31`. A build cannot know it and be repeatable, so the caller says it.
    pub release_date: Option<String>,
}

/// Packs the disk of the form `raw` in a finished folder, and adds the files to its manifest.
///
/// The files are the disk as one frame of Zstandard (`.zst`), its map for bmaptool (`.bmap`), and the list for Raspberry
/// Pi Imager (`rpi-imager.json`). They are the same for the same disk and the same options.
///
/// # Errors
/// The folder has no manifest or no such disk, the disk differs from the manifest, or the folder cannot be written. The
/// folder's manifest is as before then.
pub fn pack(
    dir: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Manifest, ImageError> {
    pack_outputs(dir, Manifest::read(dir)?, options, progress)
}

/// Does the same with a manifest that the caller has made or read: another person who can write to the folder may have
/// put another one there.
///
/// # Errors
/// The errors of [`pack`], but for those of reading a manifest.
pub fn pack_outputs(
    dir: &Path,
    manifest: Manifest,
    options: &PackOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Manifest, ImageError> {
    check_date(options)?;
    let is_raw = |it: &&ManifestOutput| it.form == ImageForm::Raw && it.role == OutputRole::Disk;
    let Some(disk) = manifest.outputs.iter().find(is_raw).cloned() else {
        return Err(ImageError::Argument {
            what: "folder",
            value: dir.display().to_string(),
            why: "it has no disk of the form raw, which is the one that travels; build this form, too",
        });
    };
    let path = dir.join(&disk.file);
    // Another person may have put a pipe or a device there.
    let raw = open_regular(&path).map_err(|error| at(&path)(error.into()))?;
    let bytes = raw.metadata().map_err(at(&path))?.len();
    if bytes != disk.bytes {
        let why = format!("the manifest says {} bytes, and it has {bytes}", disk.bytes);
        return Err(invalid("disk", &path, why));
    }
    // Another person may have put another disk there since the build, or may still have it open to change it. What is
    // compared, compressed and mapped is one copy, which no other user can open.
    let copy = tempfile::tempfile_in(dir).map_err(at(dir))?;
    let actual = copy_hashed(&raw, bytes, &copy).map_err(at(&path))?;
    check_content(path.clone(), &disk, actual)?;
    let kept = |it: &ManifestOutput| !PACKED.contains(&it.role) && it.role != OutputRole::Signature;
    let mut out = OutDir::add_to(dir, &manifest, kept);
    progress("compressing the disk");
    let packed = format!("{}.zst", disk.file);
    out.with(ImageForm::Raw, OutputRole::PackedDisk, &packed, |file| {
        compress(&copy, bytes, file)
    })?;
    progress("mapping the disk");
    let map = bmap::text(&copy, bytes).map_err(at(&path))?;
    let name = format!("{}.bmap", disk.file);
    out.bytes(ImageForm::Raw, OutputRole::BlockMap, &name, map.as_bytes())?;
    let download = out.output(&packed).cloned();
    let facts = DownloadFacts {
        version: &manifest.version,
        disk: &disk,
        download: download.as_ref(),
        options,
    };
    out.bytes(
        ImageForm::Raw,
        OutputRole::RpiImager,
        "rpi-imager.json",
        facts.list().as_bytes(),
    )?;
    out.finish(manifest)
}

/// A date is shown to people as it is, so it has one form only.
fn check_date(options: &PackOptions) -> Result<(), ImageError> {
    let Some(date) = &options.release_date else {
        return Ok(());
    };
    let is_digit = |(place, byte): (usize, u8)| match place {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    match date.len() == 10 && date.bytes().enumerate().all(is_digit) {
        true => Ok(()),
        false => Err(ImageError::Argument {
            what: "release date",
            value: date.clone(),
            why: "write it as 2027-01-31",
        }),
    }
}

/// A file whose content is hashed while it is read.
struct HashedFile<'a> {
    file: &'a File,
    hasher: Sha256,
}

impl<'a> HashedFile<'a> {
    fn new(file: &'a File) -> Self {
        Self {
            file,
            hasher: Sha256::new(),
        }
    }

    /// SHA-256 of what was read, in lower-case hexadecimal.
    fn sha256(self) -> String {
        HEXLOWER.encode(&self.hasher.finalize())
    }
}

impl Read for HashedFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// Copies the disk, without its blocks of zeros, into an empty file. Returns SHA-256 of the disk.
fn copy_hashed(raw: &File, bytes: u64, copy: &File) -> io::Result<String> {
    copy.set_len(bytes)?;
    let mut disk = HashedFile::new(raw);
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < bytes {
        let wanted = (bytes - at).min(COPY_BYTES as u64) as usize;
        let block = &mut buffer[..wanted];
        disk.read_exact(block)?;
        if block.iter().any(|byte| *byte != 0) {
            copy.write_all_at(block, at)?;
        }
        at += wanted as u64;
    }
    Ok(disk.sha256())
}

/// One frame with its size and a checksum. One thread makes it, because the bytes of several depend on their number.
fn compress(mut disk: &File, bytes: u64, packed: &File) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(packed, LEVEL)?;
    encoder.set_pledged_src_size(Some(bytes))?;
    encoder.include_contentsize(true)?;
    encoder.include_checksum(true)?;
    disk.seek(SeekFrom::Start(0))?;
    let mut disk = io::BufReader::with_capacity(1 << 20, disk);
    io::copy(&mut disk, &mut encoder)?;
    encoder.finish().map(drop)
}
