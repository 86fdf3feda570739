//! The boot note: written in turn, read by other versions, and refused after any damage.

use alknet_boot_state::{
    BootNote, BootNoteError, BootSlot, NOTE_BYTES, NOTE_CODES_BYTES_MAX, NOTE_HALF_BYTES, NOTE_LBA,
    NOTE_LINE_BYTES_MAX, NOTE_OFFSET, NoteArea, NoteText, RECORD_LBA, SECTOR_BYTES,
};
use proptest::prelude::*;

fn note(stage: &str) -> BootNote {
    let mut note = BootNote::new(BootSlot::B);
    note.version = NoteText::new("1.2.0");
    note.from = NoteText::new("1.1.0");
    note.vault = NoteText::new("tpm2");
    note.data = NoteText::new("mounted");
    note.config = NoteText::new("taken");
    note.starts = 1;
    note.stage = NoteText::new(stage);
    note.add_problem("vault-locked");
    note
}

/// An area with these notes, one after the other.
fn area(stages: &[&str]) -> NoteArea {
    let mut area = NoteArea::EMPTY;
    for stage in stages {
        area.put(&note(stage));
    }
    area
}

/// The area with one half changed and its checksum made right again.
fn forged(change: impl FnOnce(String) -> String) -> NoteArea {
    let area = area(&["init"]);
    let text = area.bytes()[..NOTE_HALF_BYTES - 4].to_vec();
    let text = String::from_utf8(text).expect("a note is ASCII");
    let mut changed = change(text.trim_end_matches('#').to_owned()).into_bytes();
    changed.resize(NOTE_HALF_BYTES - 4, b'#');
    let sum = crc32(&changed);
    changed.extend(sum.to_le_bytes());
    changed.resize(NOTE_BYTES, 0);
    NoteArea::new(changed.try_into().expect("an area"))
}

/// The sum by its definition, bit by bit from the highest one, which is not how the library computes it.
fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        for bit in 0..8 {
            let input = u32::from(byte >> bit) & 1;
            let out = (sum >> 31) ^ input;
            sum = (sum << 1) ^ (out * 0x04c1_1db7);
        }
    }
    !sum.reverse_bits()
}

#[test]
fn the_area_ends_before_the_header_of_the_record() {
    assert_eq!((NOTE_LBA, NOTE_OFFSET), (2037, 2037 * SECTOR_BYTES as u64));
    let end = NOTE_LBA + (NOTE_BYTES / SECTOR_BYTES) as u64;
    assert_eq!(end, RECORD_LBA - 1);
}

#[test]
fn the_newest_note_is_read_and_the_one_before_survives_a_torn_write() {
    assert_eq!(NoteArea::EMPTY.read(), Err(BootNoteError::Absent));
    let stages = ["init", "mounts", "data", "ready"];
    for (count, stage) in (1..).zip(stages) {
        let whole = area(&stages[..count]);
        assert_eq!(whole.read(), Ok(note(stage)));
        // The next write is torn at each of its bytes.
        let mut next = whole.clone();
        let (at, bytes) = next.put(&note("torn"));
        assert_eq!(next.read(), Ok(note("torn")));
        for cut in 0..NOTE_HALF_BYTES {
            let mut torn = *whole.bytes();
            torn[at..at + cut].copy_from_slice(&bytes[..cut]);
            assert_eq!(NoteArea::new(torn).read(), Ok(note(stage)), "{cut}");
        }
    }
}

#[test]
fn every_damage_of_the_only_note_is_noticed() {
    let whole = *area(&["init"]).bytes();
    for at in 0..NOTE_HALF_BYTES {
        for bit in 0..8 {
            let mut damaged = whole;
            damaged[at] ^= 1 << bit;
            let refused = NoteArea::new(damaged).read();
            let expected = if at < 17 {
                BootNoteError::Signature
            } else {
                BootNoteError::Checksum
            };
            assert_eq!(refused, Err(expected), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn what_contradicts_the_format_is_refused_by_its_name() {
    let cases: [(&str, &str, BootNoteError); 10] = [
        ("note 1\n", "note 2\n", BootNoteError::Format(2)),
        ("note 1\n", "note one\n", BootNoteError::Signature),
        ("seq=1\n", "", BootNoteError::Missing("seq")),
        ("seq=1\n", "seq=01\n", BootNoteError::Value("seq")),
        ("seq=1\n", "seq=4294967296\n", BootNoteError::Value("seq")),
        ("slot=b\n", "slot=c\n", BootNoteError::Value("slot")),
        ("person=0\n", "person=2\n", BootNoteError::Value("person")),
        ("starts=1\n", "starts=256\n", BootNoteError::Value("starts")),
        (
            "stage=init\n",
            "stage=a\u{1b}b\n",
            BootNoteError::Value("stage"),
        ),
        ("from=1.1.0\n", "from=1\nfrom=2\n", BootNoteError::Duplicate),
    ];
    for (from, to, error) in cases {
        let area = forged(|text| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        assert_eq!(area.read(), Err(error), "{to:?}");
    }
    let no_line = forged(|text| format!("{text}nothing\n"));
    assert_eq!(no_line.read(), Err(BootNoteError::Line));
    let no_end = forged(|text| format!("{text}more=1"));
    assert_eq!(no_end.read(), Err(BootNoteError::Line));
    let behind = forged(|text| format!("{text}##x=1\n"));
    assert_eq!(behind.read(), Err(BootNoteError::Line));
}

#[test]
fn a_variable_that_an_earlier_version_does_not_write_is_empty() {
    let area = forged(|text| {
        assert!(text.contains("config=taken\n"), "{text}");
        text.replace("config=taken\n", "")
    });
    let mut without = note("init");
    without.config = NoteText::EMPTY;
    assert_eq!(area.read(), Ok(without));
    let garbage = forged(|text| text.replace("config=taken", "config=\u{1b}"));
    assert_eq!(garbage.read(), Err(BootNoteError::Value("config")));
}

#[test]
fn a_variable_of_a_later_version_is_skipped() {
    let area = forged(|text| format!("{text}weather=fine\n"));
    assert_eq!(area.read(), Ok(note("init")));
}

#[test]
fn texts_are_made_safe_and_cut() {
    let text = NoteText::<4>::new("a\nß\u{1b}x");
    assert_eq!(text.as_str(), "a???");
    assert!(NoteText::<4>::EMPTY.is_empty() && !text.is_empty());
    let long = "x".repeat(NOTE_LINE_BYTES_MAX + 1);
    let text = NoteText::<NOTE_LINE_BYTES_MAX>::new(&long);
    assert_eq!(text.as_str().len(), NOTE_LINE_BYTES_MAX);
}

#[test]
fn a_problem_is_there_once_and_nothing_else_is_taken_for_one() {
    let mut note = BootNote::new(BootSlot::A);
    assert!(note.add_problem("data-full"));
    for refused in ["data-full", "", "a,b", "A-b", "a\nb=1", "ä"] {
        assert!(!note.add_problem(refused), "{refused}");
    }
    assert!(note.add_problem("vault-locked"));
    let codes: Vec<_> = note.problems().collect();
    assert_eq!(codes, ["data-full", "vault-locked"]);
    let mut number = 0;
    while note.add_problem(&format!("code-{number}")) {
        number += 1;
    }
    let bytes: usize = note.problems().map(|code| code.len() + 1).sum();
    assert!(bytes <= NOTE_CODES_BYTES_MAX + 1 && bytes > NOTE_CODES_BYTES_MAX - 10);
    let mut area = NoteArea::EMPTY;
    area.put(&note);
    assert_eq!(area.read(), Ok(note));
}

/// The text of a note that another program wrote, with the right checksum.
#[test]
fn what_is_not_spelled_like_a_code_is_no_problem_of_a_note() {
    let area = forged(|text| {
        let codes = "problems=vault-locked,,Vault-locked,<b>,a b,\\\"} 1,data-full\n";
        assert!(text.contains("problems=vault-locked\n"), "{text}");
        text.replace("problems=vault-locked\n", codes)
    });
    let note = area.read().expect("the note is whole");
    let codes: Vec<_> = note.problems().collect();
    assert_eq!(codes, ["vault-locked", "data-full"]);
}

proptest! {
    #[test]
    fn a_note_reads_back_whatever_its_texts_are(
        texts in prop::array::uniform9("\\PC{0,300}"),
        starts in any::<u8>(),
        needs_person in any::<bool>(),
    ) {
        let [version, from, vault, data, config, stage, end, reason, panic] = texts.each_ref();
        let mut note = BootNote::new(BootSlot::A);
        note.version = NoteText::new(version);
        note.from = NoteText::new(from);
        note.vault = NoteText::new(vault);
        note.needs_person = needs_person;
        note.data = NoteText::new(data);
        note.config = NoteText::new(config);
        note.starts = starts;
        note.stage = NoteText::new(stage);
        note.node_end = NoteText::new(end);
        note.reason = NoteText::new(reason);
        note.panic = NoteText::new(panic);
        let mut area = NoteArea::EMPTY;
        area.put(&note);
        prop_assert_eq!(area.read(), Ok(note));
    }

    #[test]
    fn any_bytes_are_a_note_or_refused(bytes in prop::collection::vec(any::<u8>(), NOTE_BYTES)) {
        let area = NoteArea::new(bytes.try_into().expect("an area"));
        prop_assert!(area.read().is_err());
    }
}

/// What the first version wrote, byte by byte, and with a variable that a later one may add.
#[test]
fn the_first_format_of_the_note_is_read() {
    const SAMPLE: &str = "alknet-boot-note 1\nseq=1\nslot=b\nversion=1.2.0\nfrom=1.1.0\nvault=tpm2\nperson=0\ndata=mounted\n\
        config=taken\nstarts=1\nstage=init\nended=\nreason=\npanic=\nproblems=vault-locked\n";
    assert_eq!(first_half(SAMPLE).read(), Ok(note("init")));
    assert_eq!(first_half(SAMPLE), area(&["init"]));
    let later = format!("{SAMPLE}later=1\n");
    assert_eq!(first_half(&later).read(), Ok(note("init")));
}

/// An area whose first half has this text.
fn first_half(text: &str) -> NoteArea {
    let mut half = text.as_bytes().to_vec();
    half.resize(NOTE_HALF_BYTES - 4, b'#');
    let sum = crc32(&half);
    half.extend(sum.to_le_bytes());
    half.resize(NOTE_BYTES, 0);
    NoteArea::new(half.try_into().expect("an area"))
}
