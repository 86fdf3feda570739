//! The programs that this machine knows: those that it verified when it staged them, and the one that it ran at its first
//! start. Nothing authenticates the record and the boot partition, so a program of which nothing is noted here does not
//! go on trial: an attacker who had the disk may have put it there.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_boot_state::BootSlot;
use alknet_fat::BlockDevice;
use alknet_tpm::predict::MeasuredImage;
use alknet_update::ReleaseVersion;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::{SlotDisk, SlotFile, slot_path};
use super::program::read_version;
use super::progress::{StagingProgress, aborted};
use super::refusal::{RefusalCode, UpdateRefusal};
use crate::control::UpdateStager;

/// Name of the file in the folder of updates.
const FILE: &str = "programs.json";
/// The node may read it, and nothing in it is secret.
const MODE: u32 = 0o644;
/// Most bytes of the file.
const BYTES_MAX: u64 = 16 << 10;
/// Bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// A program that was verified, or ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownProgram {
    pub(super) version: ReleaseVersion,
    /// SHA-256 of the file, in hex.
    pub(super) sha256: String,
    /// What a TPM measures of a file with this hash, once a machine had to know it: PCR 11, and the digests of the image
    /// and of its kernel, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    measured: Option<Box<[String; 3]>>,
    /// The caller that staged it, on a machine that keeps nothing. Any other machine has this in the note of the release.
    #[serde(skip)]
    pub(super) stager: Option<Box<UpdateStager>>,
}

impl KnownProgram {
    pub(super) fn new(version: ReleaseVersion, sha256: String) -> Self {
        Self {
            version,
            sha256,
            measured: None,
            stager: None,
        }
    }

    /// What a TPM measures of the program. `None` if it was never computed, or the record is damaged.
    pub(super) fn measured(&self) -> Option<MeasuredImage> {
        let digests = self.measured.as_deref()?;
        let mut decoded = [[0; 32]; 3];
        for (digest, text) in decoded.iter_mut().zip(digests) {
            *digest = HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()?;
        }
        Some(MeasuredImage::from_digests(decoded))
    }
}

/// What the machine knows of both slots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownPrograms {
    #[serde(default)]
    a: Option<KnownProgram>,
    #[serde(default)]
    b: Option<KnownProgram>,
}

impl KnownPrograms {
    pub(super) fn of_slot(&self, slot: BootSlot) -> Option<&KnownProgram> {
        match slot {
            BootSlot::A => self.a.as_ref(),
            BootSlot::B => self.b.as_ref(),
        }
    }

    pub(super) fn put(&mut self, slot: BootSlot, program: KnownProgram) {
        match slot {
            BootSlot::A => self.a = Some(program),
            BootSlot::B => self.b = Some(program),
        }
    }
}

/// Where the knowledge is kept: a file on the data partition, or memory on a machine without one.
#[derive(Clone, Debug)]
pub(crate) struct KnownStore {
    /// `None` on a machine that keeps nothing.
    path: Option<PathBuf>,
    memory: Arc<Mutex<KnownPrograms>>,
}

impl KnownStore {
    /// The store in a folder, or in memory.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self {
            path: folder.map(|folder| folder.join(FILE)),
            memory: Arc::default(),
        }
    }

    /// What is known. Of a damaged file nothing is, and so no version in the slot that does not run starts.
    pub(super) fn load(&self) -> KnownPrograms {
        let Some(path) = &self.path else {
            return self.memory().clone();
        };
        // A damaged file may have any length, and all of it would be read into memory.
        let is_short = fs::metadata(path).is_ok_and(|about| about.len() <= BYTES_MAX);
        let bytes = is_short.then(|| fs::read(path).ok()).flatten();
        let known = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        known.unwrap_or_default()
    }

    pub(super) fn save(&self, known: &KnownPrograms) -> io::Result<()> {
        match &self.path {
            Some(path) => {
                let bytes = serde_json::to_vec(known).map_err(io::Error::other)?;
                alknet_durable::replace(path, &bytes, MODE)
            }
            None => {
                *self.memory() = known.clone();
                Ok(())
            }
        }
    }

    /// Like [`save`](Self::save), together with the file at `path`, which the node may read as well. Both new files are on
    /// the disk before the first one replaces anything, so a full disk leaves both as they were.
    pub(super) fn save_with(
        &self,
        known: &KnownPrograms,
        (path, content): (&Path, &[u8]),
    ) -> io::Result<()> {
        let Some(own) = &self.path else {
            alknet_durable::replace(path, content, MODE)?;
            return self.save(known);
        };
        let bytes = serde_json::to_vec(known).map_err(io::Error::other)?;
        let files = [(own.as_path(), bytes.as_slice()), (path, content)];
        alknet_durable::replace_all(&files, MODE).map_err(|error| error.source)
    }

    /// Notes what a TPM measures of the program in a slot, if the program with this hash is the known one. A note that is
    /// lost costs the next prediction its computation and nothing else, so the failure to write it ends nothing.
    pub(super) fn note_measured(&self, slot: BootSlot, sha256: &str, image: &MeasuredImage) {
        let mut known = self.load();
        let program = match slot {
            BootSlot::A => &mut known.a,
            BootSlot::B => &mut known.b,
        };
        if let Some(program) = program.as_mut().filter(|known| known.sha256 == sha256) {
            program.measured = Some(Box::new(
                image.digests().map(|digest| HEXLOWER.encode(&digest)),
            ));
            self.save(&known).ok();
        }
    }

    fn memory(&self) -> MutexGuard<'_, KnownPrograms> {
        // The value is replaced as a whole, so it is whole after any panic.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes the program that runs, if nothing is known of its slot: a machine that was never updated has it from its image.
/// Returns whether it was noted now. It ends with the refusal of a bundle that was given up, before the next piece of the
/// program, once `is_wanted` returns false.
pub(super) fn note_running<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    running: BootSlot,
    version: &str,
    store: &KnownStore,
    is_wanted: impl Fn() -> bool,
) -> Result<bool, UpdateRefusal> {
    let mut known = store.load();
    if known.of_slot(running).is_some() {
        return Ok(false);
    }
    let volume = disk.volume()?;
    let file = SlotFile::open(&volume, &slot_path(running))?;
    let other = |why: &dyn std::fmt::Display| {
        let text = format_args!(
            "the file of boot slot {running} is not the program that runs: {why}; a rollback to it will need a bundle"
        );
        UpdateRefusal::new(RefusalCode::SlotDamaged, text)
    };
    let found = read_version(&file).map_err(|error| other(&error))?;
    // If the slot has another program than the one that runs, the hash of its file proves nothing.
    if found.to_string() != version {
        return Err(other(&format_args!("it says version {found}")));
    }
    let sha256 = digest_while(&file, is_wanted).map_err(|error| match error.kind() {
        // The file was not read to its end, so nothing is known about it.
        ErrorKind::ConnectionAborted => UpdateRefusal::given_up(),
        _ => other(&error),
    })?;
    known.put(running, KnownProgram::new(found, sha256));
    store.save(&known).map_err(|error| {
        let text = format_args!("the program that runs is not noted: {error}");
        UpdateRefusal::new(RefusalCode::Disk, text)
    })?;
    Ok(true)
}

/// Refuses a slot's file that is not the program that the machine knows there. Returns its hash.
pub(super) fn require_known<D: BlockDevice>(
    file: &SlotFile<'_, D>,
    slot: BootSlot,
    version: &ReleaseVersion,
    known: &KnownPrograms,
) -> Result<String, UpdateRefusal> {
    let known = known.of_slot(slot);
    let Some(known) = known.filter(|known| known.version == *version) else {
        let why = "this machine has not noted that it verified or ran it";
        return Err(unverified(slot, version, why));
    };
    let found = digest(file).map_err(|error| {
        let text = format_args!(
            "the program of boot slot {slot} is damaged: {error}; stage a version again"
        );
        UpdateRefusal::new(RefusalCode::SlotDamaged, text)
    })?;
    // The version is a text in the program itself, so only the hash tells that it is the same program.
    match found == known.sha256 {
        true => Ok(found),
        false => Err(unverified(
            slot,
            version,
            "its SHA-256 is another one than when it was verified",
        )),
    }
}

/// A program that is not the verified one.
pub(super) fn unverified(slot: BootSlot, version: &ReleaseVersion, why: &str) -> UpdateRefusal {
    let text = format_args!(
        "boot slot {slot} has a program that says it is version {version}, and it does not start: {why}; stage the version \
         from a bundle"
    );
    UpdateRefusal::new(RefusalCode::Unverified, text)
}

/// SHA-256 of a program in memory, in hex.
pub(super) fn digest_of(program: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(program))
}

/// SHA-256 of a slot's file, in hex.
pub(super) fn digest<D: BlockDevice>(file: &SlotFile<'_, D>) -> io::Result<String> {
    digest_while(file, || true)
}

/// Like [`digest`], for a bundle that is being staged. It ends before the next piece once the bundle was given up: a part of
/// PID 1 may be waiting for the media, and a whole program takes a thread in the background long.
pub(super) fn digest_for_staging<D: BlockDevice>(
    file: &SlotFile<'_, D>,
    progress: &StagingProgress,
) -> io::Result<String> {
    digest_while(file, || !progress.is_given_up())
}

fn digest_while<D: BlockDevice>(
    file: &SlotFile<'_, D>,
    is_wanted: impl Fn() -> bool,
) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    while at < file.len() {
        if !is_wanted() {
            return Err(aborted());
        }
        let left = usize::try_from(file.len() - at).unwrap_or(usize::MAX);
        let piece = &mut buffer[..left.min(READ_BYTES)];
        file.read_at(piece, at)?;
        hash.update(&*piece);
        at += piece.len() as u64;
    }
    Ok(HEXLOWER.encode(&hash.finalize()))
}
