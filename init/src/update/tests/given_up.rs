//! Bundles that are given up before PID 1 reads the first byte, for a person who waits for the media.

use std::cell::Cell;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use alknet_boot_state::{RECORD_BYTES, RECORD_LBA, RECORD_OFFSET};
use alknet_test_support::deadline;

use super::super::boot_partitions::{BIOS_LBA, BootPartitions};
use super::super::direct::watch;
use super::lost_note::disk_folder;
use super::*;
use crate::media;

/// Where the boot partition begins on the disk, in sectors.
const ESP_LBA: u64 = 2048;

/// The person of one test would give up the bundle of another one: all have the same media.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine with a disk in files, which runs slot a. It has not noted the program that runs, and a power cut kept it from
/// completing the confirmation of that program.
struct FileMachine {
    system: UpdateSystem,
    data: tempfile::TempDir,
    _disk: tempfile::TempDir,
    esp_bytes: u64,
    /// Where the program that runs lies on the boot partition.
    program: Range<u64>,
}

impl FileMachine {
    fn new() -> Self {
        let runs = crate::image_version();
        let model = ModelDisk::new(&program(runs, 4096, 0));
        let volume = model.volume();
        let esp_bytes = BlockDevice::len(volume.device());
        let file = volume.open_file(&slot_path(BootSlot::A));
        let file = file.expect("a program");
        let first = file.extents().first().expect("it has bytes");
        let last = file.extents().last().expect("it has bytes");
        let program = first.at..last.at + last.bytes;
        let (disk, partitions) = in_files(&model, esp_bytes);
        let data = tempfile::tempdir().expect("a temporary directory");
        let folder = data.path().join("update");
        fs::create_dir(&folder).expect("a new folder");
        let owed = StagedRelease::new(BootSlot::A, version(runs), 9, "00".repeat(32), None);
        owed.save(&folder).expect("writable");
        let mut system = UpdateSystem::on_disk(partitions, BootSlot::A);
        assert!(system.set_data(Some(data.path())));
        Self {
            system,
            data,
            _disk: disk,
            esp_bytes,
            program,
        }
    }

    fn has_noted_program(&self) -> bool {
        let store = KnownStore::new(Some(self.data.path().join("update")));
        store.load().of_slot(BootSlot::A).is_some()
    }

    fn owes_confirmation(&self) -> bool {
        StagedRelease::load(&self.data.path().join("update")).is_some()
    }

    /// Begins a bundle without a byte.
    fn stage(&self, progress: &Arc<StagingProgress>) -> RefusalCode {
        let anchor = UpdateAnchor::of_root(Path::new("/missing"));
        let mut frames = BundleFrameReader::new(std::io::empty(), 9, Arc::clone(progress));
        let order = StageOrder::default();
        let staged = self.system.stage_for(&mut frames, &order, &anchor, true);
        staged.expect_err("it has no bytes").code
    }

    /// Begins a bundle that is given up at so many of these reads, each told by the bytes of its partition and its place
    /// there, or before it begins. Returns the refusal, and how many of these reads there were.
    fn stage_until(
        &self,
        reads: usize,
        is_counted: impl Fn(u64, u64) -> bool + 'static,
    ) -> (RefusalCode, usize) {
        let progress = Arc::new(StagingProgress::default());
        if reads == 0 {
            progress.give_up();
        }
        let count = Rc::new(Cell::new(0));
        let (counted, bundle) = (Rc::clone(&count), Arc::clone(&progress));
        let each = move |partition: u64, at: u64| {
            if is_counted(partition, at) {
                counted.set(counted.get() + 1);
                if counted.get() == reads {
                    bundle.give_up();
                }
            }
        };
        let refused = watch::during(each, || self.stage(&progress));
        (refused, count.get())
    }
}

/// The same disk in files, one for each partition.
pub(super) fn in_files(model: &ModelDisk, esp_bytes: u64) -> (tempfile::TempDir, BootPartitions) {
    let folder = disk_folder();
    let sectors = model.sectors();
    let file = |name: &str, first: u64, bytes: u64| {
        let path = folder.path().join(name);
        let file = fs::File::create(&path).expect("creatable");
        file.set_len(bytes).expect("sparse");
        for (number, sector) in &sectors {
            let within = number.checked_sub(first);
            let at = within.map(|sectors| sectors * SECTOR_BYTES as u64);
            if let Some(at) = at.filter(|at| *at < bytes) {
                file.write_all_at(sector, at).expect("writable");
            }
        }
        path
    };
    let bios_sectors = RECORD_LBA - BIOS_LBA + (RECORD_BYTES / SECTOR_BYTES) as u64;
    let partitions = BootPartitions {
        disk: "vda".to_owned(),
        bios: file("bios", BIOS_LBA, bios_sectors * SECTOR_BYTES as u64),
        esp: file("esp", ESP_LBA, esp_bytes),
    };
    (folder, partitions)
}

/// A machine that cannot keep its notes hashes the program that runs before each bundle.
#[test]
fn the_program_that_runs_is_not_hashed_to_its_end_for_a_bundle_that_is_given_up() {
    /// Of the headers and the version, and of two pieces.
    const READS: usize = 4;

    let _turn = turn();
    let machine = FileMachine::new();
    let (esp_bytes, program) = (machine.esp_bytes, machine.program.clone());
    let is_program = move |partition: u64, at: u64| partition == esp_bytes && program.contains(&at);
    let (refused, reads) = machine.stage_until(READS, is_program);
    assert_eq!(refused, RefusalCode::Aborted);
    // Fewer if another test, for a person of its own, gave the bundle up before.
    assert!(reads <= READS, "{reads} reads of the program");
    assert!(!machine.has_noted_program());
    let owes = machine.owes_confirmation();
    assert!(owes, "the disk is opened again, for the confirmation");
    machine.system.note_running(|| true);
    assert!(machine.has_noted_program(), "the next look notes it");
}

/// A confirmation that was begun is completed.
#[test]
fn a_bundle_that_is_given_up_during_a_confirmation_does_not_open_the_disk_again() {
    let _turn = turn();
    let machine = FileMachine::new();
    machine.system.note_running(|| true);
    let esp_bytes = machine.esp_bytes;
    let record_at = RECORD_OFFSET - BIOS_LBA * SECTOR_BYTES as u64;
    let is_record = move |partition: u64, at: u64| partition != esp_bytes && at == record_at;
    let (refused, reads) = machine.stage_until(1, is_record);
    assert_eq!(refused, RefusalCode::Aborted);
    assert_eq!(reads, 1, "of the record");
    assert!(!machine.owes_confirmation());
}

/// Another part of PID 1 has the media, and both the thread that stages and a person wait for them.
#[test]
fn a_bundle_can_be_given_up_before_it_uses_the_media() {
    let _turn = turn();
    let machine = FileMachine::new();
    let refused = machine.stage_until(0, |_, _| true);
    assert_eq!(refused, (RefusalCode::Aborted, 0), "and reads of the disk");
    let progress = Arc::new(StagingProgress::default());
    let held = media::in_turn();
    let refused = thread::scope(|scope| {
        let staging = scope.spawn(|| machine.stage(&progress));
        scope.spawn(|| drop(media::alone()));
        let limit = Instant::now() + deadline(Duration::from_secs(10));
        while !progress.is_given_up() && Instant::now() < limit {
            thread::yield_now();
        }
        let is_given_up = progress.is_given_up();
        drop(held);
        assert!(is_given_up, "the person does not find the bundle");
        staging.join().expect("no panic")
    });
    assert_eq!(refused, RefusalCode::Aborted);
    assert!(!machine.has_noted_program() && machine.owes_confirmation());
}
