//! Writes a seed key to a medium as a new file. The file gets the name that each start looks for
//! only when it is complete.

use std::fs;
use std::io;
use std::path::Path;

use alknet_vault::slots::SeedKey;
use thiserror::Error;

use super::SECRET_BYTES_MAX;
use crate::mount::Mounter;
use crate::sources::{WritableVolume, writable};
use crate::{ConfigOrigin, FileSystem, SourcePaths, file};

/// Why a seed key was not written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PutSeedKeyError {
    /// It could not be written.
    #[error("{medium}: the seed.key cannot be written ({why}); use another drive")]
    Failed {
        /// The medium.
        medium: ConfigOrigin,
        /// Error of the operating system.
        why: io::Error,
    },
    /// No medium can be written.
    #[error(
        "no medium is there that can be written; attach a drive with a FAT file system and the label \
         CIDATA (mkfs.vfat -n CIDATA)"
    )]
    Nowhere,
    /// Only the boot partition could take it, which may be on the disk that the key protects.
    #[error("only the boot partition, {0}, could take the seed.key")]
    OnlyBoot(ConfigOrigin),
    /// Several volumes could take it, and one of them may be another owner's.
    #[error(
        "{} could each take the seed.key; leave the one that it is for, and detach the others",
        names(.0)
    )]
    Several(Vec<ConfigOrigin>),
    /// Another key is there, which something else may need.
    #[error("{0} has a seed.key of another vault, which is left there; use another drive")]
    Taken(ConfigOrigin),
}

fn names(volumes: &[ConfigOrigin]) -> String {
    let names: Vec<_> = volumes.iter().map(ConfigOrigin::to_string).collect();
    names.join(" and ")
}

/// Puts `key` on the NoCloud volume with FAT. Without such a volume, and if `boot`, it goes to the
/// boot partition. When this returns, the key is on the medium and was read back. Blocks on disks.
///
/// # Errors
/// See [`PutSeedKeyError`]. Existing files of the medium are unchanged.
pub fn put_seed_key(
    paths: &SourcePaths,
    mounter: &dyn Mounter,
    key: &SeedKey,
    boot: bool,
) -> Result<ConfigOrigin, PutSeedKeyError> {
    let (boots, drives): (Vec<_>, Vec<_>) = writable(paths)
        .into_iter()
        .partition(|volume| volume.is_boot);
    // A drive can be removed from the node, which is the purpose of a separate key.
    let volumes = if drives.is_empty() { boots } else { drives };
    let volume = match volumes.as_slice() {
        [] => return Err(PutSeedKeyError::Nowhere),
        [one] => one,
        // The key opens the vault, so the administrator must choose the drive.
        several => {
            let several = several.iter().map(|volume| volume.source.clone());
            return Err(PutSeedKeyError::Several(several.collect()));
        }
    };
    let medium = volume.source.clone();
    if volume.is_boot && !boot {
        return Err(PutSeedKeyError::OnlyBoot(medium));
    }
    match put(paths, mounter, key, volume) {
        Ok(true) => Ok(medium),
        Ok(false) => Err(PutSeedKeyError::Taken(medium)),
        Err(why) => Err(PutSeedKeyError::Failed { medium, why }),
    }
}

/// Whether it was written. False if another key is there.
fn put(
    paths: &SourcePaths,
    mounter: &dyn Mounter,
    key: &SeedKey,
    volume: &WritableVolume,
) -> io::Result<bool> {
    let text = key.to_text();
    let text = text.expose().as_bytes();
    {
        let mounted =
            mounter.mount_writable(&volume.device, FileSystem::Vfat, &paths.mount_point)?;
        let path = mounted.root().join(volume.seed_key);
        // A link counts as a file, even if it leads nowhere.
        if path.symlink_metadata().is_ok() {
            return Ok(false);
        }
        write(&path, text)?;
    }
    // Mounted again, so that the bytes come from the medium and not from the cache.
    let mounted = mounter.mount(&volume.device, FileSystem::Vfat, &paths.mount_point)?;
    let path = mounted.root().join(volume.seed_key);
    let read = file::read_bounded(&path, SECRET_BYTES_MAX).map_err(io::Error::other)?;
    if read.is_some_and(|read| read.as_slice() == text) {
        Ok(true)
    } else {
        Err(io::Error::other("it does not read back"))
    }
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    file::replace(path, text)
}
