//! A bundle as a file: written, read as a stream, cut off and damaged.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::process::Command;

use alknet_update::{
    BundleReader, BundleWriter, UpdateClock, UpdateError, UpdateTarget, UpdateTrust, limits,
    write_bundle,
};
use proptest::prelude::*;

use crate::support::{NOW, PROGRAM, Publisher, read, target};

/// What a machine writes into a slot: the program of the bundle, or the refusal.
fn installed(publisher: &Publisher, bundle: &[u8]) -> Result<Vec<u8>, UpdateError> {
    let mut reader = BundleReader::open(bundle)?;
    let trust = UpdateTrust::new(publisher.anchor());
    let (_, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut reader);
    let mut slot = Vec::new();
    reader.copy_target(&verified?, &mut slot)?;
    Ok(slot)
}

#[test]
fn the_same_release_becomes_the_same_bytes() {
    let publisher = Publisher::new(1);
    let bundle = publisher.bundle(1, "1.1.0");
    assert!(bundle == publisher.bundle(1, "1.1.0"), "the bytes differ");
    assert!(bundle != publisher.bundle(1, "1.1.1"), "another release");
}

#[test]
fn every_byte_of_metadata_comes_before_the_first_target() {
    let publisher = Publisher::new(1);
    let bundle = publisher.bundle(1, "1.1.0");
    let reader = BundleReader::open(&*bundle).expect("a bundle");
    let names: Vec<_> = reader.metadata_names().collect();
    let expected = [
        "1.root.json",
        "1.snapshot.json",
        "1.targets.json",
        "root.json",
        "timestamp.json",
    ];
    assert_eq!(names, expected);
    let mut writer = BundleWriter::new(Vec::new());
    writer.target("a.efi", 0, &mut &b""[..]).expect("written");
    let late = writer.metadata("timestamp.json", b"{}");
    let late = late.expect_err("the order is fixed").to_string();
    assert_eq!(late, "metadata comes before the targets");
}

/// A target behind another one is reached without a check of the one before.
#[test]
fn a_target_is_left_out() {
    let publisher = Publisher::new(1);
    let other = UpdateTarget::describe("a-notice.txt", None, &mut &*PROGRAM).expect("a target");
    let plan = Publisher::plan(1, vec![target("1.1.0"), other]);
    let bundle = publisher.bundle_of(&plan);
    let mut reader = BundleReader::open(&*bundle).expect("a bundle");
    let trust = UpdateTrust::new(publisher.anchor());
    let (_, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut reader);
    let verified = verified.expect("a good bundle");
    let next = |reader: &BundleReader<&[u8]>| {
        let next = reader.next_target(&verified).expect("signed");
        next.map(|target| target.name.clone())
    };
    assert_eq!(next(&reader).as_deref(), Some("a-notice.txt"));
    reader.skip_target().expect("skipped");
    assert_eq!(next(&reader).as_deref(), Some("alknet.efi"));
    reader
        .copy_target(&verified, &mut io::sink())
        .expect("checked");
    assert_eq!(next(&reader), None);
}

#[test]
fn a_file_that_changes_while_it_is_written_ends_in_no_bundle() {
    let publisher = Publisher::new(1);
    let plan = Publisher::plan(1, vec![target("1.1.0")]);
    let release = publisher.sign(&plan);
    for content in [
        &b"shorter"[..],
        b"a unified kernel imagE",
        b"a unified kernel image that grew",
    ] {
        let open = |_: &UpdateTarget| Ok(content);
        let written = write_bundle(io::sink(), &publisher.roots, &release, &plan.targets, open);
        let error = written
            .expect_err("the file is not the described one")
            .to_string();
        assert!(
            error.starts_with("the bundle cannot be written: "),
            "{error}"
        );
    }
}

/// GNU tar writes `metadata/NAME` into one field, and has owners and times.
#[test]
fn a_bundle_that_gnu_tar_made_is_read() {
    let publisher = Publisher::new(1);
    let plan = Publisher::plan(1, vec![target("1.1.0")]);
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["metadata", "targets"] {
        fs::create_dir(folder.path().join(name)).expect("made");
    }
    let mut paths = Vec::new();
    for (name, document) in publisher.files(&plan).0 {
        paths.push(format!("metadata/{name}"));
        fs::write(folder.path().join("metadata").join(name), document).expect("written");
    }
    let name = plan.targets[0].file_name(true);
    fs::write(folder.path().join("targets").join(&name), PROGRAM).expect("written");
    paths.push(format!("targets/{name}"));
    let packed = Command::new("tar")
        .args(["--format=ustar", "--create", "--file=-", "--directory"])
        .arg(folder.path())
        .args(paths)
        .output()
        .expect("tar is part of every Debian");
    assert!(packed.status.success(), "{packed:?}");
    let slot = installed(&publisher, &packed.stdout).expect("a good bundle");
    assert_eq!(slot, PROGRAM);
}

#[test]
fn a_bundle_that_was_cut_off_is_refused_at_every_length() {
    let publisher = Publisher::new(1);
    let bundle = publisher.bundle(1, "1.1.0");
    // The last two blocks end the archive, of which a reader needs the first.
    let whole = bundle.len() - 512;
    for end in (0..whole).step_by(13).chain([whole - 1]) {
        assert!(installed(&publisher, &bundle[..end]).is_err(), "{end}");
    }
    assert_eq!(
        installed(&publisher, &bundle[..whole]).ok(),
        Some(PROGRAM.to_vec())
    );
    let cut = installed(&publisher, &bundle[..700]).expect_err("cut off");
    assert_eq!(
        cut.to_string(),
        "the bundle cannot be read: it was cut off. Get the bundle again from its publisher"
    );
}

#[test]
fn what_is_no_bundle_is_refused() {
    let mut bundle = Publisher::new(1).bundle(1, "1.1.0");
    let refused = |bundle: &[u8], why: &str| {
        let error = BundleReader::open(bundle).expect_err("refused").to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(&[7; 4096], "it is no tar archive in the ustar format");
    bundle[0] ^= 1;
    refused(&bundle, "a header has a wrong checksum");
    let header = |change: &dyn Fn(&mut [u8])| {
        let mut block = Publisher::new(1).bundle(1, "1.1.0")[..512].to_vec();
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.resize(8192, 0);
        block
    };
    refused(
        &header(&|it| it[156] = b'2'),
        "it has other entries than plain files",
    );
    refused(&header(&|it| it[124] = b'9'), "a length is no octal number");
    refused(
        &header(&|it| it[345] = b'M'),
        "it has files outside of 'metadata' and 'targets'",
    );
    refused(&header(&|it| it[0] = b'.'), "a file has a path that is not");
    refused(&header(&|it| it[1] = b'/'), "a file has a path that is not");
    refused(
        &header(&|it| it[345..353].fill(0)),
        "a file is in no folder",
    );
    refused(&header(&|it| it[345] = 0xff), "a name is not UTF-8");
}

#[test]
fn a_document_that_is_there_twice_is_refused() {
    let mut writer = BundleWriter::new(Vec::new());
    for _ in 0..2 {
        writer.metadata("timestamp.json", b"{}").expect("written");
    }
    let bundle = writer.finish().expect("written");
    let error = BundleReader::open(&*bundle)
        .expect_err("refused")
        .to_string();
    assert!(
        error.contains("metadata/timestamp.json is there twice"),
        "{error}"
    );
}

/// Counts what a reader takes of an endless bundle.
struct Counted<'a>(&'a mut u64);

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        *self.0 += buffer.len() as u64;
        buffer.fill(b' ');
        Ok(buffer.len())
    }
}

#[test]
fn endless_metadata_is_refused_by_its_header() {
    let max = limits::BUNDLE_METADATA_BYTES_MAX;
    let mut writer = BundleWriter::new(Vec::new());
    let most = vec![b' '; usize::try_from(max).expect("memory has room for it")];
    writer.metadata("a.json", &most).expect("written");
    let bundle = writer.finish().expect("written");
    BundleReader::open(&*bundle).expect("the most that a reader takes");
    let mut writer = BundleWriter::new(Vec::new());
    writer
        .metadata("a.json", &[&most[..], b" "].concat())
        .expect("written");
    let header = writer.finish().expect("written")[..512].to_vec();
    let mut taken = 0;
    let opened = BundleReader::open(header.as_slice().chain(Counted(&mut taken)));
    assert_eq!(
        opened.expect_err("too long").to_string(),
        "the metadata of the bundle has more than 2097152 bytes, the most that this program reads. Get the bundle again from \
         its publisher"
    );
    assert_eq!(taken, 0, "nothing behind the header was read");
}

#[test]
fn more_documents_than_a_reader_takes_are_refused() {
    let bundle = |number: usize| {
        let mut writer = BundleWriter::new(Vec::new());
        for at in 0..number {
            writer
                .metadata(&format!("{at}.json"), b"")
                .expect("written");
        }
        writer.finish().expect("written")
    };
    let max = limits::BUNDLE_METADATA_FILES_MAX;
    BundleReader::open(&*bundle(max)).expect("the most that a reader takes");
    assert!(BundleReader::open(&*bundle(max + 1)).is_err());
}

/// Where the program lies in a bundle.
fn program_in(bundle: &[u8]) -> Range<usize> {
    let mut places = bundle.windows(PROGRAM.len());
    let at = places.position(|bytes| bytes == PROGRAM);
    let at = at.expect("the bundle has the program");
    at..at + PROGRAM.len()
}

proptest! {
    /// Whatever is changed, a machine installs the signed program or nothing. Every second change is one of the program,
    /// which is a few hundredths of a bundle with so short a program.
    #[test]
    fn a_changed_bundle_installs_nothing_else(
        at in any::<prop::sample::Index>(),
        in_program in any::<bool>(),
        flipped in 1..=u8::MAX,
    ) {
        let publisher = Publisher::new(1);
        let mut bundle = publisher.bundle(1, "1.1.0");
        let places = match in_program {
            true => program_in(&bundle),
            false => 0..bundle.len(),
        };
        bundle[places.start + at.index(places.len())] ^= flipped;
        let slot = installed(&publisher, &bundle).ok();
        prop_assert!(slot.is_none_or(|slot| slot == PROGRAM));
        let (_, verified) = read(UpdateTrust::new(publisher.anchor()), &bundle);
        let expected = target("1.1.0");
        prop_assert!(verified.ok().is_none_or(|it| it.target("alknet.efi").ok() == Some(&expected)));
    }
}
