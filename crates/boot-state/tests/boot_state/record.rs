//! The bytes of the record: what is read, what is written, and what is refused.

use alknet_boot_state::{
    BootPhase, BootRecord, BootRecordError, BootSlot, FOREIGN_BYTES_MAX, RECORD_BYTES,
    RECORD_OFFSET, SECTOR_BYTES,
};
use proptest::prelude::*;

use crate::reachable;

const SIGNATURE: &str = "# GRUB Environment Block\n";
const NEW: &str = "good=a\ntries=0\nseq=0\n";

/// A block with these lines, filled up.
fn block(lines: &str) -> Vec<u8> {
    let mut bytes = format!("{SIGNATURE}{lines}").into_bytes();
    bytes.resize(RECORD_BYTES, b'#');
    bytes
}

fn parse(lines: &str) -> Result<BootRecord, BootRecordError> {
    BootRecord::parse(&block(lines))
}

#[test]
fn a_new_record_is_this_text() {
    let record = BootRecord::new(BootSlot::A);
    let text = String::from_utf8(record.encode().to_vec()).expect("ASCII");
    let expected = "# GRUB Environment Block\ngood=a\ntrial=\ntries=0\nstaged=\nprevious=\nbooted=\nfailed=\nseq=0\n";
    assert_eq!(text.trim_end_matches('#'), expected);
    assert_eq!(text.len(), RECORD_BYTES);
    // The last two sectors before the EFI system partition, which begins at 1 MiB.
    assert_eq!(RECORD_OFFSET + RECORD_BYTES as u64, 1 << 20);
}

#[test]
fn every_record_reads_back_as_the_same() {
    let all = reachable();
    assert!(all.len() > 30, "{}", all.len());
    for record in all {
        let bytes = record.encode();
        assert_eq!(BootRecord::parse(&bytes), Ok(record));
        // One sector has all that ever changes.
        assert!(bytes[SECTOR_BYTES..].iter().all(|byte| *byte == b'#'));
    }
}

/// A write of two sectors that a power cut tears leaves the old record or the new one.
#[test]
fn a_torn_write_is_the_old_record_or_the_new_one() {
    let all = reachable();
    for old in &all {
        for new in &all {
            let [from, to] = [old, new].map(BootRecord::encode);
            let first_only = [&to[..SECTOR_BYTES], &from[SECTOR_BYTES..]].concat();
            assert_eq!(BootRecord::parse(&first_only).as_ref(), Ok(new));
            let second_only = [&from[..SECTOR_BYTES], &to[SECTOR_BYTES..]].concat();
            assert_eq!(BootRecord::parse(&second_only).as_ref(), Ok(old));
        }
    }
}

#[test]
fn the_order_of_the_variables_does_not_matter() {
    let expected = parse("good=b\ntrial=a\ntries=2\nbooted=a\nseq=7\n").expect("a record");
    assert_eq!(expected.phase(), BootPhase::Trial);
    let other = "seq=7\nbooted=a\nfailed=\nstaged=\ntries=2\nprevious=\ngood=b\ntrial=a\n";
    assert_eq!(parse(other), Ok(expected));
}

/// The loader stays on a disk for years, and newer versions may add variables.
#[test]
fn unknown_variables_stay_as_they_are() {
    let lines = "note=a \\\\ and \\\na line\n_x1=\n";
    let record = parse(&format!("{lines}{NEW}")).expect("a record");
    assert_eq!(record.foreign_lines(), lines.as_bytes());
    let staged = record.stage().expect("the slot is unused");
    let read = BootRecord::parse(&staged.encode()).expect("a record");
    assert_eq!((read, read.foreign_lines()), (staged, lines.as_bytes()));
}

#[test]
fn unknown_variables_have_a_limit() {
    let line = |bytes: usize| format!("x={}\n", "y".repeat(bytes - 3));
    let most = parse(&format!("{NEW}{}", line(FOREIGN_BYTES_MAX))).expect("a record");
    assert_eq!(most.foreign_lines().len(), FOREIGN_BYTES_MAX);
    assert_eq!(BootRecord::parse(&most.encode()), Ok(most));
    let more = parse(&format!("{NEW}{}", line(FOREIGN_BYTES_MAX + 1)));
    assert_eq!(more, Err(BootRecordError::Foreign));
}

#[test]
fn everything_else_is_refused_by_name() {
    use BootRecordError::{
        Contradiction, Duplicate, Escape, Foreign, Line, Missing, TooLong, Value,
    };
    let good = |rest: &str| format!("{NEW}{rest}");
    let cases = [
        ("tries=0\nseq=0\n".to_owned(), Missing("good")),
        ("good=\ntries=0\nseq=0\n".to_owned(), Value("good")),
        ("good=c\ntries=0\nseq=0\n".to_owned(), Value("good")),
        ("good=a\nseq=0\n".to_owned(), Missing("tries")),
        ("good=a\ntries=0\n".to_owned(), Missing("seq")),
        (
            "good=a\ntries=4\nseq=0\ntrial=b\n".to_owned(),
            Value("tries"),
        ),
        ("good=a\ntries=\nseq=0\n".to_owned(), Value("tries")),
        (
            "good=a\ntries=1\nseq=0\n".to_owned(),
            Contradiction("tries"),
        ),
        ("good=a\ntries=0\nseq=00\n".to_owned(), Value("seq")),
        ("good=a\ntries=0\nseq=-1\n".to_owned(), Value("seq")),
        (
            "good=a\ntries=0\nseq=18446744073709551616\n".to_owned(),
            Value("seq"),
        ),
        (good("trial=a\n"), Contradiction("trial")),
        (good("trial=b\nfailed=b\n"), Contradiction("failed")),
        (good("staged=b\nprevious=b\n"), Contradiction("previous")),
        (good("staged=ab\n"), Value("staged")),
        (good("booted=x\n"), Value("booted")),
        (good("good=a\n"), Duplicate),
        (good("x=1\nx=2\n"), Duplicate),
        (good("no variable\n"), Line),
        (good("\n"), Line),
        (good("=1\n"), Line),
        (good("1x=1\n"), Line),
        (good("# a comment\n"), Line),
        (good("x=\\n\n"), Escape),
        (good("x=\0\n"), Escape),
        (good("x=\\\n"), Line),
        (good(&format!("x={}\n", "y".repeat(300))), Foreign),
        (good(&format!("x={}\n", "y".repeat(500))), TooLong),
    ];
    for (lines, error) in cases {
        assert_eq!(parse(&lines), Err(error), "{lines:?}");
    }
}

#[test]
fn blocks_of_another_form_are_refused_by_name() {
    let whole = block(NEW);
    assert!(BootRecord::parse(&whole).is_ok());
    for length in [0, 512, RECORD_BYTES - 1] {
        let error = BootRecordError::Length(length);
        assert_eq!(BootRecord::parse(&whole[..length]), Err(error));
    }
    let zeros = [0; RECORD_BYTES];
    assert_eq!(BootRecord::parse(&zeros), Err(BootRecordError::Signature));
    let mut lower = whole.clone();
    lower[2] = b'g';
    assert_eq!(BootRecord::parse(&lower), Err(BootRecordError::Signature));
    // GRUB finds the room for a longer value by the `#` behind the last line feed.
    let mut ends_otherwise = whole.clone();
    ends_otherwise[700] = 0;
    assert_eq!(
        BootRecord::parse(&ends_otherwise),
        Err(BootRecordError::Padding)
    );
    let mut second_sector = whole;
    second_sector[SECTOR_BYTES] = b'\n';
    assert_eq!(
        BootRecord::parse(&second_sector),
        Err(BootRecordError::TooLong)
    );
    assert_eq!(
        BootRecord::parse(&block("")),
        Err(BootRecordError::Missing("good"))
    );
}

#[test]
fn errors_are_sentences_with_the_name_of_the_variable() {
    let error = parse("good=c\ntries=0\nseq=0\n").expect_err("no slot c");
    assert_eq!(
        error.to_string(),
        "the variable `good` has an impossible value"
    );
    let refusal = BootRecord::FALLBACK.arm().expect_err("nothing is staged");
    assert_eq!(refusal.to_string(), "no version is staged");
}

/// What GRUB's `save_env` does to a block, by its documented effect: a known variable gets its value in place, a new one
/// is appended, and an unset one is removed.
fn save_env(bytes: &[u8], name: &str, value: Option<&str>) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).expect("ASCII");
    let lines = text
        .trim_end_matches('#')
        .strip_prefix(SIGNATURE)
        .expect("a block");
    let start = format!("{name}=");
    let mut lines: Vec<String> = lines.lines().map(str::to_owned).collect();
    let new = value.map(|value| format!("{start}{value}"));
    match lines.iter().position(|line| line.starts_with(&start)) {
        Some(at) => drop(lines.splice(at..=at, new)),
        None => lines.extend(new),
    }
    block(
        &lines
            .iter()
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )
}

/// A variable that GRUB has removed, because it was not set, counts as empty.
#[test]
fn what_grub_writes_is_read() {
    for record in reachable() {
        let mut bytes = record.encode().to_vec();
        for (name, slot) in [
            ("trial", record.trial()),
            ("booted", record.booted()),
            ("failed", record.failed()),
        ] {
            let value = slot.map(BootSlot::letter);
            let unset = save_env(&bytes, name, None);
            bytes = save_env(&unset, name, value);
        }
        assert_eq!(BootRecord::parse(&bytes), Ok(record));
    }
}

proptest! {
    #[test]
    fn any_lines_are_a_record_of_one_form_or_an_error(lines in "[a-z_=\\\\\n0-9#+]{0,80}", record in any::<bool>()) {
        let lines = if record { format!("{NEW}{lines}\n") } else { lines };
        if let Ok(record) = parse(&lines) {
            prop_assert_eq!(BootRecord::parse(&record.encode()), Ok(record));
        }
    }
}
