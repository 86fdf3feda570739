//! The boot state record of a disk, and the boot note beside it.

use alknet_boot_state::{
    BootNote, BootPhase, BootRecord, BootSlot, BootSlots, NOTE_BYTES, NoteArea, NoteText,
    RECORD_BYTES, SECTOR_BYTES, TRIES, loader_choice,
};

/// The input is the record's beginning; the rest is filled up as GRUB fills up, so that the engine need not find 1,024
/// bytes. A longer input is cut.
pub fn boot(data: &[u8]) -> bool {
    note(data);
    let mut bytes = [b'#'; RECORD_BYTES];
    let length = data.len().min(RECORD_BYTES);
    bytes[..length].copy_from_slice(&data[..length]);
    let record = BootRecord::parse(&bytes).ok();
    for a in [false, true] {
        for b in [false, true] {
            let present = BootSlots::filter(|slot| if slot == BootSlot::A { a } else { b });
            starts(record, present);
        }
    }
    let Some(record) = record else {
        return false;
    };
    reads_back(&record);
    let changed = [
        record.vacate(),
        record.stage(),
        record.arm(),
        record.confirm(BootSlot::A),
        record.confirm(BootSlot::B),
        record.give_up(),
        record.rollback(),
        record.take_over(BootSlot::A),
        record.take_over(BootSlot::B),
    ];
    for next in changed.into_iter().flatten() {
        reads_back(&next);
        assert_eq!(next.foreign_lines(), record.foreign_lines());
        assert!(next.seq() >= record.seq());
    }
    true
}

/// One record, one text, whose variables end within the first sector.
fn reads_back(record: &BootRecord) {
    let bytes = record.encode();
    assert_eq!(BootRecord::parse(&bytes), Ok(*record));
    assert!(bytes[SECTOR_BYTES..].iter().all(|byte| *byte == b'#'));
}

/// A loader that never gets further starts a slot that exists each time, and after the last try it returns to the good
/// one if there is one.
fn starts(record: Option<BootRecord>, present: BootSlots) {
    let mut now = record;
    for _ in 0..=TRIES {
        let choice = loader_choice(now.as_ref(), present);
        let exists = choice.start.is_some_and(|slot| present.contains(slot));
        assert_eq!(exists, present != BootSlots::NONE);
        if let Some(next) = choice.write {
            reads_back(&next);
            now = Some(next);
        }
    }
    let good = record.map_or(BootSlot::A, |record| record.good());
    let last = loader_choice(now.as_ref(), present);
    assert_eq!(last.start, present.prefer(good));
    assert!(last.write.is_none(), "the record is settled");
    let is_over = now.is_none_or(|record| record.phase() != BootPhase::Trial);
    assert!(is_over || present == BootSlots::NONE);
}

/// Any bytes are a note or refused, and the next note is read whatever was there before. The engine does not find the
/// checksum of a note, so the input is also the texts of one.
fn note(data: &[u8]) {
    let mut bytes = [0; NOTE_BYTES];
    let length = data.len().min(NOTE_BYTES);
    bytes[..length].copy_from_slice(&data[..length]);
    let mut area = NoteArea::new(bytes);
    let text = String::from_utf8_lossy(data);
    let mut next = area.read().unwrap_or(BootNote::new(BootSlot::B));
    next.reason = NoteText::new(&text);
    next.stage = NoteText::new(&text);
    text.split('\n').for_each(|code| {
        next.add_problem(code);
    });
    for _ in 0..3 {
        area.put(&next);
        assert_eq!(area.read(), Ok(next));
    }
}
