//! Deltas beside programs: signed, never chosen as programs, and checked while they are read.

use std::io::{self, Read};

use alknet_update::limits::DELTA_BLOCK_BYTES;
use alknet_update::{
    BundleReader, DeltaInfo, DowngradeConsent, UpdateClock, UpdateError, UpdateTarget, UpdateTrust,
    VerifiedTargets, write_bundle,
};

use crate::support::{NOW, PROGRAM, Publisher, machine, release, target};

pub(crate) const DELTA: &[u8] = b"how to make a kernel image from another one";

fn info() -> DeltaInfo {
    DeltaInfo {
        target: "alknet.efi".to_owned(),
        base: "ab".repeat(32),
        library: 10_507,
        blocks: Vec::new(),
    }
}

pub(crate) fn delta() -> UpdateTarget {
    UpdateTarget::describe_delta("alknet.delta", info(), &mut &*DELTA).expect("a delta")
}

/// A bundle of a release with a program and a delta that has these of its files.
fn bundle(publisher: &Publisher, files: &[UpdateTarget]) -> Vec<u8> {
    let plan = Publisher::plan(1, vec![target("1.1.0"), delta()]);
    let documents = publisher.sign(&plan);
    let mut bundle = Vec::new();
    let open = |file: &UpdateTarget| Ok(if file.delta.is_some() { DELTA } else { PROGRAM });
    write_bundle(&mut bundle, &publisher.roots, &documents, files, open).expect("written");
    bundle
}

fn opened<'a>(
    publisher: &Publisher,
    bundle: &'a [u8],
) -> (BundleReader<&'a [u8]>, VerifiedTargets) {
    let mut reader = BundleReader::open(bundle).expect("a bundle");
    let trust = UpdateTrust::new(publisher.anchor());
    let (_, verified) = trust.refresh(UpdateClock::Known(NOW)).run(&mut reader);
    (reader, verified.expect("good documents"))
}

/// A client that knows no deltas takes the program, as before.
#[test]
fn a_delta_is_no_program() {
    let publisher = Publisher::new(1);
    let bundle = bundle(&publisher, &[target("1.1.0"), delta()]);
    let (mut reader, verified) = opened(&publisher, &bundle);
    let running = "1.0.0".parse().expect("a version");
    let chosen = verified.choose(&machine(), &running, None, DowngradeConsent::NotGiven);
    assert_eq!(chosen.expect("a program").target, &target("1.1.0"));
    // The delta comes first in the archive, by its name.
    let first = reader.next_target(&verified).expect("signed");
    assert_eq!(first, Some(&delta()));
    reader.skip_target().expect("whole");
    let mut slot = Vec::new();
    reader.copy_target(&verified, &mut slot).expect("whole");
    assert_eq!(slot, PROGRAM);
}

#[test]
fn a_bundle_may_have_the_delta_alone() {
    let publisher = Publisher::new(1);
    let bundle = bundle(&publisher, &[delta()]);
    let (mut reader, verified) = opened(&publisher, &bundle);
    let mut read = Vec::new();
    let done = reader.read_delta(&verified, |input| input.read_to_end(&mut read));
    assert_eq!(done.expect("signed").expect("whole"), DELTA.len());
    assert_eq!(read, DELTA);
    assert_eq!(reader.next_target(&verified).expect("the end"), None);
    assert_eq!(
        verified.target("alknet.efi").expect("named"),
        &target("1.1.0")
    );
}

/// Also where the reader of the delta stops early.
#[test]
fn a_delta_with_other_bytes_is_refused() {
    let publisher = Publisher::new(1);
    let bundle = bundle(&publisher, &[delta()]);
    let at = bundle
        .windows(DELTA.len())
        .position(|bytes| bytes == DELTA)
        .expect("it has the delta");
    let mut changed = bundle.clone();
    changed[at + DELTA.len() - 1] ^= 1;
    let cut = bundle[..at + 5].to_vec();
    for reads in [0, 3, DELTA.len() as u64] {
        let refused = |bundle: &[u8]| {
            let (mut reader, verified) = opened(&publisher, bundle);
            let done = reader.read_delta(&verified, |input| {
                io::copy(&mut input.take(reads), &mut io::sink())
            });
            done.expect_err("refused")
        };
        let hash = refused(&changed);
        assert!(matches!(hash, UpdateError::Hash { .. }), "{hash}");
        let length = refused(&cut);
        assert!(matches!(length, UpdateError::Length { .. }), "{length}");
    }
}

/// A decompressor reads the delta while it arrives.
#[test]
fn no_byte_of_a_changed_block_reaches_the_reader_of_a_delta() {
    let publisher = Publisher::new(1);
    let long: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
    let delta = UpdateTarget::describe_delta("alknet.delta", info(), &mut &*long);
    let delta = delta.expect("a delta");
    let plan = Publisher::plan(1, vec![target("1.1.0"), delta.clone()]);
    let documents = publisher.sign(&plan);
    let mut bundle = Vec::new();
    let open = |_: &UpdateTarget| Ok(&*long);
    write_bundle(&mut bundle, &publisher.roots, &documents, &[delta], open).expect("written");
    let begin = bundle.windows(1000).position(|it| it == &long[..1000]);
    let begin = begin.expect("it has the delta");
    for (changed, handed_on) in [
        (0, 0),
        (DELTA_BLOCK_BYTES - 1, 0),
        (DELTA_BLOCK_BYTES, DELTA_BLOCK_BYTES),
        (long.len() - 1, 2 * DELTA_BLOCK_BYTES),
    ] {
        let mut bundle = bundle.clone();
        bundle[begin + changed] ^= 1;
        let (mut reader, verified) = opened(&publisher, &bundle);
        let mut read = Vec::new();
        let done = reader.read_delta(&verified, |input| input.read_to_end(&mut read));
        let refused = done.expect_err("refused");
        assert!(matches!(refused, UpdateError::Hash { .. }), "{refused}");
        assert!(read == long[..handed_on], "{changed}: {} bytes", read.len());
    }
}

/// A later version may describe deltas in another way. Its programs are taken all the same.
#[test]
fn a_description_that_is_not_understood_is_none() {
    let publisher = Publisher::new(1);
    // The bundle has the same bytes for all of its files.
    let mut odd =
        UpdateTarget::describe_delta("alknet.delta", info(), &mut &*PROGRAM).expect("a delta");
    odd.delta = Some(DeltaInfo {
        base: "another kind of base".to_owned(),
        ..info()
    });
    let plan = Publisher::plan(1, vec![target("1.1.0"), odd]);
    let bundle = publisher.bundle_of(&plan);
    let (_, verified) = opened(&publisher, &bundle);
    let odd = verified.target("alknet.delta").expect("named");
    assert_eq!((&odd.delta, &odd.release), (&None, &None));
}

#[test]
fn a_publisher_describes_no_delta_without_a_base() {
    let wrong = DeltaInfo {
        base: "AB".repeat(32),
        ..info()
    };
    let described = UpdateTarget::describe_delta("alknet.delta", wrong, &mut &*DELTA);
    let text = described.expect_err("refused").to_string();
    assert!(text.contains("its base is no SHA-256 in hex"), "{text}");
    let mut other = delta();
    other.delta.as_mut().expect("it was described").blocks.pop();
    let checked = other.delta.as_ref().expect("described").check(other.bytes);
    let text = checked.expect_err("refused").to_string();
    assert!(text.contains("for each of its blocks"), "{text}");
    let described = UpdateTarget::describe("alknet.efi", Some(release("1.1.0")), &mut &*PROGRAM);
    assert_eq!(described.expect("a program").delta, None);
}
