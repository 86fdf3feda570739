//! Starts on trial whose boot note is lost.

use std::path::{Path, PathBuf};

use alknet_boot_state::{
    BootNote, BootRecord, BootSlot, BootSlots, NoteText, RECORD_BYTES, RECORD_LBA, SECTOR_BYTES,
    loader_choice,
};

use super::super::boot_partitions::{BIOS_LBA, BootPartitions};
use super::super::disk::SlotDisk;
use super::super::gate::{
    BASELINE_UNKNOWN, GateBaseline, GateStep, GateVault, GateView, UpdateGate,
};
use super::super::judge::StartKind;
use super::super::note_schedule;
use super::super::system::UpdateSystem;

/// Bytes of the boot partition, which no start reads unless a trial failed.
const ESP_BYTES: u64 = 1 << 20;

/// A folder for a disk in files. It is on the disk of the build, because a file in memory may refuse `O_DIRECT`.
pub(super) fn disk_folder() -> tempfile::TempDir {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let build = build
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    tempfile::tempdir_in(build).expect("a temporary folder")
}

/// A disk in files whose record has slot B on trial, with this note.
fn on_trial(note: Option<&BootNote>) -> (tempfile::TempDir, BootPartitions) {
    let folder = disk_folder();
    let file = |name: &str, bytes: u64| {
        let path = folder.path().join(name);
        let file = std::fs::File::create(&path).expect("creatable");
        file.set_len(bytes).expect("sparse");
        path
    };
    let sectors = RECORD_LBA - BIOS_LBA + (RECORD_BYTES / SECTOR_BYTES) as u64;
    let partitions = BootPartitions {
        disk: "vda".to_owned(),
        bios: file("bios", sectors * SECTOR_BYTES as u64),
        esp: file("esp", ESP_BYTES),
    };
    let armed = BootRecord::new(BootSlot::A).stage().expect("idle");
    let armed = armed.arm().expect("staged");
    let counted = loader_choice(Some(&armed), BootSlots::filter(|_| true));
    assert_eq!(counted.start, Some(BootSlot::B));
    let mut disk = SlotDisk::open(&partitions).expect("files");
    let counted = counted.write.expect("a start is counted");
    disk.write_record(&counted).expect("writable");
    note.iter()
        .for_each(|note| disk.write_note(note).expect("writable"));
    drop(disk);
    (folder, partitions)
}

/// The note with which slot B starts on trial, and the gate of this start.
fn begun(note: Option<&BootNote>) -> (BootNote, GateBaseline) {
    let (_folder, partitions) = on_trial(note);
    let (report, begun) = UpdateSystem::on_disk(partitions.clone(), BootSlot::B)
        .begin()
        .expect("the disk has boot slots");
    assert_eq!(report.kind, StartKind::Trial);
    let begun = begun.expect("a trial has a note");
    let disk = SlotDisk::open(&partitions).expect("files");
    let written = disk.note().expect("readable").expect("a note");
    assert_eq!(written, begun, "the next start of the trial reads it");
    note_schedule::disarm();
    (begun, GateBaseline::from_note(Some(&begun)))
}

fn last_step(baseline: GateBaseline, view: &GateView) -> Option<GateStep> {
    let mut gate = UpdateGate::new(baseline, 0);
    gate.step(view, 0);
    gate.step(view, 60_000)
}

/// An attacker, or a disk that fails, empties the note or leaves the one of an earlier trial of slot A.
#[test]
fn a_trial_with_a_lost_note_asks_for_what_the_machine_has() {
    let mut foreign = BootNote::new(BootSlot::A);
    foreign.vault = NoteText::new("absent");
    foreign.data = NoteText::new("volatile");
    let well = GateView::WELL;
    for lost in [None, Some(&foreign)] {
        let (note, baseline) = begun(lost);
        for word in [note.vault, note.data, note.config] {
            assert_eq!(word.as_str(), BASELINE_UNKNOWN);
        }
        assert_eq!((note.slot, note.starts), (BootSlot::B, 1));
        // A machine without a vault proves itself, and one with a closed vault does not.
        for (view, is_confirmed) in [
            (well, true),
            (
                GateView {
                    vault: GateVault::Absent,
                    ..well
                },
                true,
            ),
            (
                GateView {
                    vault: GateVault::Closed,
                    ..well
                },
                false,
            ),
            (
                GateView {
                    data_writable: false,
                    ..well
                },
                false,
            ),
            (
                GateView {
                    config_taken: false,
                    ..well
                },
                false,
            ),
        ] {
            let step = last_step(baseline, &view);
            assert_eq!(
                step == Some(GateStep::Confirm),
                is_confirmed,
                "{view:?}: {step:?}"
            );
        }
    }
    // The note of this trial is kept as it is.
    let mut own = BootNote::new(BootSlot::B);
    own.vault = NoteText::new("absent");
    let (note, _) = begun(Some(&own));
    assert_eq!((note.vault, note.starts), (own.vault, 1));
}

/// A disk that does not answer once must not make the version on trial the good one.
#[test]
fn a_record_that_the_disk_does_not_give_is_not_replaced() {
    let (_folder, partitions) = on_trial(None);
    let start = || UpdateSystem::on_disk(partitions.clone(), BootSlot::B).begin();
    let bios = std::fs::File::options().write(true).open(&partitions.bios);
    let bios = bios.expect("a file");
    let bytes = bios.metadata().expect("a file").len();
    let sectors_before = RECORD_LBA - BIOS_LBA;
    bios.set_len(sectors_before * SECTOR_BYTES as u64)
        .expect("writable");
    let (report, note) = start().expect("the disk has boot slots");
    assert_eq!((report.kind, note), (StartKind::Unread, None));
    // Bytes that are no record are replaced.
    bios.set_len(bytes).expect("sparse");
    let (report, _) = start().expect("the disk has boot slots");
    assert_eq!(report.kind, StartKind::StateLost);
    let disk = SlotDisk::open(&partitions).expect("files");
    assert_eq!(disk.record().expect("a new one").good(), BootSlot::B);
}
