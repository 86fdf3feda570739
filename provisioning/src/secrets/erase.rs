//! Overwrites words and credentials in place. File sizes and names do not change, so no file system
//! table is written, and a power cut leaves the volume intact.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use alknet_core::config::CONFIG_BYTES_MAX;
use zeroize::Zeroizing;

use super::split::{SecretSpans, SecretsPart, blank};
use super::{MediaLocation, SecretFile};
use crate::mount::Mounter;
use crate::{ConfigOrigin, FileSystem, SourceDiagnostic, SourcePaths, file, text};

/// Overwrites the words, or the credentials, at each of the places with spaces, syncs that to the
/// disk, and reads it back. A seed key stays, because the medium must keep it. Returns one problem,
/// `secrets-left`, for each place that still has them, so no problem means that all are erased.
///
/// Call this after the secrets were stored elsewhere and read back, and again at each start while a
/// medium still has them. Blocks on disks.
///
/// Old blocks in flash memory, and copies made by an editor, are out of its reach.
#[must_use]
pub fn erase(
    paths: &SourcePaths,
    mounter: &dyn Mounter,
    places: &[MediaLocation],
) -> Vec<SourceDiagnostic> {
    let left = |place: &MediaLocation| {
        // A pasted document is stored nowhere: it is not shown, and is wiped from memory.
        if place.source == ConfigOrigin::Console {
            return None;
        }
        let why = match &place.file {
            None => "it cannot be written from here".to_owned(),
            Some(found) => match erase_file(paths, mounter, found) {
                Ok(()) => return None,
                Err(error) => error.to_string(),
            },
        };
        let within = place.file.as_ref().map(|file| format!(" in {}", file.path));
        let text = format!(
            "{}: the {}{} are still there and cannot be erased ({why})",
            place.source,
            place.what,
            within.unwrap_or_default()
        );
        Some(SourceDiagnostic::new(
            "secrets-left",
            text,
            hint(&place.source),
        ))
    };
    places.iter().filter_map(left).collect()
}

fn hint(source: &ConfigOrigin) -> &'static str {
    match source {
        ConfigOrigin::CommandLine => "take alknet.node out of the boot loader's configuration",
        ConfigOrigin::FwCfg | ConfigOrigin::Smbios => {
            "take them out of the hypervisor's configuration"
        }
        _ => "remove it: take the medium away, and destroy it or erase the secrets on it",
    }
}

fn erase_file(paths: &SourcePaths, mounter: &dyn Mounter, place: &SecretFile) -> io::Result<()> {
    let SecretFile {
        device,
        file_system,
        path,
        within,
    } = place;
    // The kernel's driver of this file system is read-only.
    if *file_system == FileSystem::Iso9660 {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    {
        let mounted = mounter.mount_writable(device, *file_system, &paths.mount_point)?;
        overwrite(&mounted.root().join(path), *within)?;
    }
    // Mounted again, so that the bytes come from the disk and not from the cache.
    let mounted = mounter.mount(device, *file_system, &paths.mount_point)?;
    let file = file::open(&mounted.root().join(path))?;
    let SecretFileContent { bytes, words } = content(&file, *within)?;
    let is_blank = |at: Range<usize>| bytes[at].iter().all(u8::is_ascii_whitespace);
    if words.into_iter().all(is_blank) {
        Ok(())
    } else {
        Err(io::Error::other("it reads as before"))
    }
}

fn overwrite(path: &Path, within: Option<SecretsPart>) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let SecretFileContent { mut bytes, words } = content(&file, within)?;
    for at in words {
        blank(&mut bytes[at.clone()]);
        // In place and with the same length, because a new file would leave the old bytes on the
        // disk.
        file.write_all_at(&bytes[at.clone()], at.start as u64)?;
    }
    file.sync_all()
}

/// The content of a file, and where it contains the words or the credentials.
struct SecretFileContent {
    bytes: Zeroizing<Vec<u8>>,
    words: Vec<Range<usize>>,
}

fn content(file: &File, within: Option<SecretsPart>) -> io::Result<SecretFileContent> {
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let bytes = file::read_from(file, CONFIG_BYTES_MAX)?;
    let Some(part) = within else {
        let words = Vec::from_iter(Some(0..bytes.len()));
        return Ok(SecretFileContent { bytes, words });
    };
    let offset = text::offset(&bytes);
    // Without this error a document that became UTF-16 would count as one without words.
    let clean = text::clean(&bytes).ok_or(io::ErrorKind::InvalidData)?;
    let text = std::str::from_utf8(clean).map_err(|_| io::ErrorKind::InvalidData)?;
    let within = SecretSpans::parse(text).erasable(part);
    // The spans are positions in the text after a byte order mark, but the whole file is written.
    let moved = |at: Range<usize>| at.start + offset..at.end + offset;
    let words = within.into_iter().map(moved).collect();
    Ok(SecretFileContent { bytes, words })
}
