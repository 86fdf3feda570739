//! A disk with boot slots, read and changed from outside of the machine.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use alknet_boot_state::{
    BootChoice, BootNote, BootRecord, BootRecordError, BootSlot, BootSlots, NOTE_BYTES,
    NOTE_OFFSET, NoteArea, NoteText, ProgramNotes, RECORD_BYTES, RECORD_OFFSET, loader_choice,
};
use alknet_fat::{BootFiles, FatError, FatVolume, FilePartition, RepairReport};
use alknet_image::{ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES};
use alknet_update::ReleaseVersion;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::{FIRST, SECOND};

/// The loader for UEFI.
const LOADER: &str = r"\EFI\BOOT\BOOTX64.EFI";
/// A file that is not the machine's.
pub(crate) const FOREIGN: &str = r"\FOREIGN.BIN";
/// More bytes than the loader may have.
const LOADER_BYTES_MAX: u32 = 1 << 20;
/// More bytes than a program may have.
const PROGRAM_BYTES_MAX: u32 = 128 << 20;
/// Bytes of a program that are read and compared at a time: they stay in the processor's cache.
const COMPARED_BYTES: usize = 256 << 10;

/// The disk in this file.
#[derive(Clone, Debug)]
pub(crate) struct SlotDiskImage(PathBuf);

/// What decides which program starts, and both programs.
#[derive(PartialEq, Eq)]
pub(crate) struct SlotContents {
    record: [u8; RECORD_BYTES],
    loader: Vec<u8>,
    programs: [Option<Vec<u8>>; 2],
}

impl SlotContents {
    /// Whether the programs and the loader are the same; the record may be another one.
    pub(crate) fn has_programs_of(&self, other: &Self) -> bool {
        (&self.loader, &self.programs) == (&other.loader, &other.programs)
    }
}

impl SlotDiskImage {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn file(&self) -> File {
        let opened = File::options().read(true).write(true).open(&self.0);
        opened.expect("the disk is ours")
    }

    pub(crate) fn volume(&self) -> FatVolume<FilePartition<File>> {
        let partition = FilePartition::new(self.file(), ESP_FIRST_LBA * LBA_BYTES, ESP_BYTES);
        FatVolume::open(partition).unwrap_or_else(|error| panic!("{error}"))
    }

    fn record_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let read = self.file().read_exact_at(&mut bytes, RECORD_OFFSET);
        read.expect("it is longer");
        bytes
    }

    pub(crate) fn record(&self) -> Result<BootRecord, BootRecordError> {
        BootRecord::parse(&self.record_bytes())
    }

    fn write_record(&self, record: &BootRecord) {
        let written = self.file().write_all_at(&record.encode(), RECORD_OFFSET);
        written.expect("the disk is ours");
    }

    /// The loader, which no update changes.
    pub(crate) fn loader(&self) -> Vec<u8> {
        let loader = self.volume().read_file(LOADER, LOADER_BYTES_MAX);
        loader.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The program in a slot, `None` if the slot has no file.
    pub(crate) fn program(&self, slot: BootSlot) -> Option<Vec<u8>> {
        match self.volume().read_file(&slot_path(slot), PROGRAM_BYTES_MAX) {
            Ok(program) => Some(program),
            Err(FatError::NotFound { .. }) => None,
            Err(error) => panic!("{slot}: {error}"),
        }
    }

    /// Whether a slot's file has these bytes, `None` if the slot has no file. For a test that asks after each of many
    /// cuts: it takes no memory for a whole program.
    pub(crate) fn has_program(&self, slot: BootSlot, program: &[u8]) -> Option<bool> {
        let volume = self.volume();
        let mut file = match volume.open_file(&slot_path(slot)) {
            Ok(file) => file,
            Err(FatError::NotFound { .. }) => return None,
            Err(error) => panic!("{slot}: {error}"),
        };
        let has_length = usize::try_from(file.size()).is_ok_and(|size| size == program.len());
        let mut buffer = vec![0; COMPARED_BYTES];
        let is_next = |piece: &[u8]| {
            let read = &mut buffer[..piece.len()];
            let done = file.read_exact(read);
            done.unwrap_or_else(|error| panic!("{slot}: {error}"));
            read == piece
        };
        Some(has_length && program.chunks(COMPARED_BYTES).all(is_next))
    }

    /// Changes one byte of a slot's program in its place, as a disk does that fails.
    pub(crate) fn flip(&self, slot: BootSlot, at: u64) {
        let volume = self.volume();
        let opened = volume.open_file(&slot_path(slot));
        let opened = opened.unwrap_or_else(|error| panic!("{error}"));
        let first = opened.extents().first().expect("it has content");
        assert!(at < first.bytes, "within the first piece of the file");
        let place = ESP_FIRST_LBA * LBA_BYTES + first.at + at;
        let (file, mut byte) = (self.file(), [0]);
        let read = file.read_exact_at(&mut byte, place);
        let written = read.and_then(|()| file.write_all_at(&[byte[0] ^ 1], place));
        written.expect("the disk is ours");
    }

    pub(crate) fn contents(&self) -> SlotContents {
        SlotContents {
            record: self.record_bytes(),
            loader: self.loader(),
            programs: BootSlot::ALL.map(|slot| self.program(slot)),
        }
    }

    pub(crate) fn put(&self, path: &str, content: &[u8]) {
        let length = content.len() as u64;
        let put = self
            .volume()
            .replace_file(path, length, &mut &*content, &mut |_| {});
        put.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Puts a program into slot b that the loader starts `tries` times, as an update leaves it that was started before
    /// as often as is missing. `vault` is the type of the slot that opened the vault before.
    pub(crate) fn put_on_trial(&self, program: &[u8], tries: u8, vault: &str) {
        let mut note = BootNote::new(BootSlot::B);
        note.vault = NoteText::new(vault);
        note.data = NoteText::new("mounted");
        note.config = NoteText::new("taken");
        self.put_with_note(program, tries, note);
    }

    /// The same for the last try, of a machine that had no data before: the version on trial may make the data partition.
    /// By the note the machine before had an open vault. This one has none, so that the gate confirms nothing while a test
    /// takes its time.
    pub(crate) fn put_on_first_trial(&self, program: &[u8]) {
        let mut note = BootNote::new(BootSlot::B);
        note.vault = NoteText::new("tpm2");
        self.put_with_note(program, 1, note);
    }

    fn put_with_note(&self, program: &[u8], tries: u8, mut note: BootNote) {
        self.put(&slot_path(BootSlot::B), program);
        // The log has the end of each trial once, by the number of its record.
        let before = self
            .record()
            .unwrap_or_else(|_| BootRecord::new(BootSlot::A));
        let vacated = before.vacate().expect("slot a is good");
        let record = vacated.stage().and_then(|it| it.arm()).expect("vacated");
        let record = count_tries(record, tries);
        note.version = NoteText::new(SECOND);
        note.from = NoteText::new(FIRST);
        let mut area = NoteArea::new([0; NOTE_BYTES]);
        area.put(&note);
        let file = self.file();
        let written = file
            .write_all_at(area.bytes(), NOTE_OFFSET)
            .and_then(|()| file.write_all_at(&record.encode(), RECORD_OFFSET));
        written.expect("the disk is ours");
    }

    /// Puts the staged version on trial from the next start on, as a machine does before it restarts.
    pub(crate) fn arm(&self) {
        let record = self.record().expect("a version is staged");
        self.write_record(&record.arm().expect("a version is staged"));
    }

    /// Puts a program into slot b as the version before the one in slot a, which an update brought. A loader started slot
    /// b last, so the one that starts slot a has to write the record.
    pub(crate) fn put_version_before(&self, program: &[u8]) {
        self.put(&slot_path(BootSlot::B), program);
        let staged = BootRecord::new(BootSlot::B).stage();
        let pending = staged.and_then(|it| it.arm()).expect("slot a is free");
        let trial = loader_choice(Some(&pending), BootSlots::ALL).write;
        let confirmed = trial.expect("a try is counted").confirm(BootSlot::A);
        let confirmed = confirmed.expect("slot a runs");
        let only_b = BootSlots::filter(|slot| slot == BootSlot::B);
        let record = loader_choice(Some(&confirmed), only_b).write;
        self.write_record(&record.expect("slot b starts"));
    }

    /// Replaces the record by one that says only that this slot is good, as an attacker who has the disk can.
    pub(crate) fn make_good(&self, slot: BootSlot) {
        self.write_record(&BootRecord::new(slot));
    }

    /// Makes the record say that slot b has no version. Its file stays.
    pub(crate) fn vacate(&self) {
        let record = self.record().expect("a record").vacate();
        self.write_record(&record.expect("no version is on trial"));
    }

    /// Where a slot's program ends on the disk, in bytes.
    pub(crate) fn program_end(&self, slot: BootSlot) -> u64 {
        let volume = self.volume();
        let opened = volume.open_file(&slot_path(slot));
        let opened = opened.unwrap_or_else(|error| panic!("{error}"));
        let last = opened.extents().last().expect("it has content");
        ESP_FIRST_LBA * LBA_BYTES + last.at + last.bytes
    }

    /// Leaves the version on trial its last try.
    pub(crate) fn leave_last_try(&self) {
        let record = self.record().expect("a version is on trial");
        self.write_record(&count_tries(record, 1));
    }

    /// The slot that a loader starts, by the record and the programs as they are. A loader looks only whether a file
    /// begins with `MZ`. This model also passes over a file whose chain does not have its size.
    pub(crate) fn chosen(&self) -> Option<BootSlot> {
        self.choice().start
    }

    fn choice(&self) -> BootChoice {
        let record = self.record().ok();
        let volume = self.volume();
        let present = BootSlots::filter(|slot| {
            let file = volume.open_file(&slot_path(slot)).ok();
            file.is_some_and(|mut file| {
                let mut begin = [0; 2];
                file.read_exact(&mut begin).is_ok() && begin == *b"MZ"
            })
        });
        loader_choice(record.as_ref(), present)
    }

    /// Writes the record as a loader leaves it, and returns the slot that it starts.
    pub(crate) fn pass_loader(&self) -> Option<BootSlot> {
        let choice = self.choice();
        if let Some(next) = choice.write {
            self.write_record(&next);
        }
        choice.start
    }

    /// Repairs the boot partition, as the machine that runs `running` and has these notes does at its start.
    pub(crate) fn repair(&self, running: BootSlot, notes: &SlotNotes) -> RepairReport {
        let written = running.other();
        let paths = [running, written].map(slot_path);
        let files = BootFiles {
            loader: LOADER,
            running: &paths[0],
            written: &paths[1],
        };
        let record = self.record().ok();
        let notes = notes.of_machine(running);
        let repaired = self.volume().repair_boot_files(&files, |volume| {
            record.is_some_and(|record| {
                notes.permit_version_before(&record, running, |slot| {
                    let program = volume.read_file(&slot_path(slot), PROGRAM_BYTES_MAX);
                    program.ok().map(|program| sha256(&program))
                })
            })
        });
        repaired.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The boot partition as a file of its own, for programs that know no disks.
    pub(crate) fn copy_partition(&self, to: &Path) {
        let from = self.file();
        let copy = File::create(to).expect("the folder is ours");
        copy.set_len(ESP_BYTES).expect("the folder is ours");
        let mut buffer = vec![0_u8; 1 << 20];
        // A comparison of two slices is quick also in this program, which is not optimised.
        let zeros = buffer.clone();
        for at in (0..ESP_BYTES).step_by(buffer.len()) {
            let read = from.read_exact_at(&mut buffer, ESP_FIRST_LBA * LBA_BYTES + at);
            read.expect("it is longer");
            if buffer != zeros {
                copy.write_all_at(&buffer, at).expect("the folder is ours");
            }
        }
    }
}

/// What a machine has noted of the programs in its slots: the first version in slot a, and the second one in slot b.
pub(crate) struct SlotNotes {
    versions: [ReleaseVersion; 2],
    hashes: [String; 2],
}

impl SlotNotes {
    /// The notes about these programs.
    pub(crate) fn new(programs: [&[u8]; 2]) -> Self {
        Self {
            versions: [FIRST, SECOND].map(|version| version.parse().expect("a version")),
            hashes: programs.map(sha256),
        }
    }

    /// What the machine goes by while this slot runs. The floor forbids neither version.
    fn of_machine(&self, running: BootSlot) -> ProgramNotes<'_, &ReleaseVersion> {
        let (running, other) = match running {
            BootSlot::A => (0, 1),
            BootSlot::B => (1, 0),
        };
        ProgramNotes {
            running_sha256: Some(self.hashes[running].as_str()),
            other: Some((&self.versions[other], self.hashes[other].as_str())),
            floor: Some(&self.versions[0]),
        }
    }
}

/// SHA-256 in hex.
fn sha256(program: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(program))
}

/// The record after so many starts of the version on trial that this number of tries is left.
fn count_tries(mut record: BootRecord, left: u8) -> BootRecord {
    while record.tries() > left {
        let choice = loader_choice(Some(&record), BootSlots::ALL);
        record = choice.write.expect("a try is counted");
    }
    record
}

pub(crate) fn slot_path(slot: BootSlot) -> String {
    format!(r"\EFI\ALKNET\{}", slot.file_name())
}
