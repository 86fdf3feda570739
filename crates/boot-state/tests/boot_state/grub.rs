//! The script for GRUB names what the record has, and compares with the texts that the record uses; and tar finds the
//! record in its partition, as GRUB does.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use alknet_boot_state::{
    BootRecord, BootSlot, GRUB_CONFIG_BYTES, GRUB_CONFIG_FILE, GRUB_CONFIG_LBA,
    GRUB_CORE_BYTES_MAX, GRUB_CORE_LBA, GRUB_SCRIPT, GRUB_STATE_FILE, NOTE_BYTES, NOTE_OFFSET,
    RECORD_OFFSET, SECTOR_BYTES, TRIES, grub_archive,
};

/// The script's code, without comments.
fn code() -> impl Iterator<Item = &'static str> {
    let lines = GRUB_SCRIPT.lines().map(str::trim);
    lines.filter(|line| !line.starts_with('#') && !line.is_empty())
}

/// The words behind the record's blocks in the command `command`.
fn variables_of(command: &str) -> Vec<&'static str> {
    let mut lines = code().filter(|line| line.contains(command));
    let line = lines.next().expect("the script has the command");
    assert!(lines.next().is_none(), "one {command}");
    let (_, words) = line.split_once("\"${alknet_state}\" ").expect("the record");
    words.trim_end_matches("; then").split(' ').collect()
}

#[test]
fn the_script_reads_and_writes_variables_of_the_record() {
    let text = String::from_utf8(BootRecord::FALLBACK.encode().to_vec()).expect("ASCII");
    let names: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    let read = variables_of("load_env");
    let written = variables_of("save_env");
    assert_eq!(read, ["good", "trial", "tries", "booted", "failed"]);
    assert_eq!(
        written,
        ["trial", "tries", "booted", "failed"],
        "never the good slot"
    );
    for name in read {
        assert!(names.contains(name), "{name} is no variable of the record");
        // What an earlier call or a configuration left would count otherwise.
        assert!(code().any(|line| line == format!("set {name}=")), "{name}");
    }
}

#[test]
fn the_script_counts_from_the_first_try_to_the_last() {
    for tries in 1..=TRIES {
        let asked = format!("\"${{tries}}\" = \"{tries}\"");
        let left = format!("set alknet_left={}", tries - 1);
        let pairs: Vec<&str> = code().collect();
        let at = pairs.iter().position(|line| line.contains(&asked));
        let at = at.unwrap_or_else(|| panic!("no {asked}"));
        assert_eq!(pairs[at + 1], left);
    }
    let more = format!("\"{}\"", TRIES + 1);
    assert!(!GRUB_SCRIPT.contains(&more));
    let over = code().skip_while(|line| {
        !line.contains("\"${tries}\" = \"0\" ]; then") || !line.starts_with("elif")
    });
    assert_eq!(over.take(2).last(), Some("set alknet_left=over"));
}

#[test]
fn the_script_knows_both_slots_and_prefers_the_fallback() {
    for slot in BootSlot::ALL {
        assert!(GRUB_SCRIPT.contains(&format!("\"${{good}}\" = \"{slot}\"")));
        assert!(GRUB_SCRIPT.contains(&format!("set alknet_has_good=\"${{alknet_{slot}}}\"")));
    }
    let good = BootRecord::FALLBACK.good();
    let damaged = code().skip_while(|line| !line.contains("cannot be read"));
    let first = damaged.skip(1).take(2).collect::<Vec<_>>();
    assert_eq!(
        first,
        [
            format!("if [ \"${{alknet_{good}}}\" = \"1\" ]; then"),
            format!("set alknet_slot={good}")
        ]
    );
}

/// GRUB's parser has no other arithmetic and no other nesting than this.
#[test]
fn each_block_of_the_script_is_closed() {
    let count = |word: &str| {
        code()
            .filter(|line| line.split(' ').next() == Some(word))
            .count()
    };
    assert_eq!(count("if"), count("fi"));
    assert_eq!((count("function"), count("}")), (1, 1));
    assert!(!GRUB_SCRIPT.contains("$(("));
}

/// What tar says of the partition `alk-bios`, which it reads as its input.
fn tar(partition: &[u8], arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    let piped = command.args(arguments).stdin(Stdio::piped());
    let piped = piped.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("tar is on every machine");
    let mut input = child.stdin.take().expect("it was asked for above");
    let output = thread::scope(|scope| {
        // tar may end before it has read all, which its output shows.
        scope.spawn(move || drop(input.write_all(partition)));
        child.wait_with_output().expect("it is our child")
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    output.stdout
}

/// GRUB writes the record where the file system says that the file is.
#[test]
fn the_partition_is_a_tar_archive_that_ends_with_the_record() {
    let sector = SECTOR_BYTES as u64;
    let first = GRUB_CORE_LBA - 1;
    let at = |byte: u64| usize::try_from(byte - first * sector).expect("below a MiB");
    let record = BootRecord::FALLBACK.encode();
    let mut partition = vec![0; at(1 << 20)];
    for (lba, header) in grub_archive() {
        let at = at(lba * sector);
        partition[at..at + SECTOR_BYTES].copy_from_slice(&header);
    }
    let core = at(GRUB_CORE_LBA * sector);
    partition[core..core + 4].copy_from_slice(b"core");
    let config = at(GRUB_CONFIG_LBA * sector);
    partition[config..config + 6].copy_from_slice(b"config");
    let note = at(NOTE_OFFSET);
    partition[note..note + 4].copy_from_slice(b"note");
    partition[at(RECORD_OFFSET)..].copy_from_slice(&record);

    let names = tar(&partition, &["--list", "--file=-"]);
    assert_eq!(names, b"core.img\ngrub.cfg\nnote\nstate\n");
    let extracted = |name| tar(&partition, &["--extract", "--to-stdout", "--file=-", name]);
    let named = |file: &'static str| {
        let (_, name) = file.split_once('/').expect("a file of a partition");
        extracted(name)
    };
    assert_eq!(named(GRUB_STATE_FILE), record);
    for (content, bytes, begins) in [
        (extracted("core.img"), GRUB_CORE_BYTES_MAX, &b"core"[..]),
        (named(GRUB_CONFIG_FILE), GRUB_CONFIG_BYTES, b"config"),
        (extracted("note"), NOTE_BYTES as u64, b"note"),
    ] {
        assert_eq!(content.len() as u64, bytes);
        assert!(content.starts_with(begins));
    }
}
