//! A boot partition on which the programs are damaged: which of them stays, and when the caller is asked.

use std::cell::Cell;

use crate::repair_tests::{A, B, CHAIN_END, FOREIGN, chain, image};
use crate::testing::{content, contents, first_cluster, set_link, slot_at};
use crate::{BootFiles, FatVolume, RepairReport};

/// The program that runs, the one that is written, and the loader.
const FILES: BootFiles<'static> = BootFiles {
    loader: FOREIGN,
    running: A,
    written: B,
};

/// Repairs, where the caller gives this answer. Returns how often it was asked as well.
fn repair(image: &[u8], may_run_written: bool) -> (Vec<u8>, RepairReport, usize) {
    let mut volume = FatVolume::open(image.to_vec()).expect("a volume");
    let asked = Cell::new(0);
    let repaired = volume.repair_boot_files(&FILES, |_| {
        asked.set(asked.get() + 1);
        may_run_written
    });
    let report = repaired.expect("memory can be written");
    (volume.into_device(), report, asked.get())
}

/// An image in which the chain of one file leads into that of the other, so that each has the clusters of its size.
fn crossed(from: &str, into: &str) -> Vec<u8> {
    let mut damaged = image();
    let (from, into) = (chain(&damaged, from), chain(&damaged, into));
    set_link(&mut damaged, from[0], into[1]);
    damaged
}

#[test]
fn of_two_programs_that_cross_and_fit_the_one_stays_that_the_caller_knows() {
    let before = contents(&image());
    for (from, into) in [(A, B), (B, A)] {
        let damaged = crossed(from, into);
        for (may_run_written, stays, goes) in [(true, B, A), (false, A, B)] {
            let (repaired, report, asked) = repair(&damaged, may_run_written);
            assert_eq!(asked, 1, "{from} into {into}");
            assert_eq!(report.dropped_files, [goes], "{from} into {into}");
            assert!(report.left.findings.is_empty(), "{report:?}");
            assert_eq!(chain(&repaired, stays), chain(&damaged, stays));
            let files = contents(&repaired);
            assert_eq!(files[FOREIGN], content(3, 1300));
            // The file into which the other one leads has all of its bytes.
            if stays == into {
                assert_eq!(files[into], before[into], "{from} into {into}");
            } else {
                assert!(files.contains_key(from), "{from} into {into}");
            }
            // A second start has nothing to repair, and asks nothing.
            let (again, _, asked) = repair(&repaired, may_run_written);
            assert!(again == repaired && asked == 0, "{from} into {into}");
        }
    }
}

/// The entries of both programs lead to the chain of the one that is written.
#[test]
fn of_two_programs_on_one_chain_the_one_stays_that_the_caller_knows() {
    let mut damaged = image();
    let (from, to) = (slot_at(&damaged, B), slot_at(&damaged, A));
    // The lower half of the number. The upper one is zero in both.
    damaged.copy_within(from + 26..from + 28, to + 26);
    let shared = first_cluster(&damaged, B);
    for (may_run_written, stays, goes) in [(true, B, A), (false, A, B)] {
        let (repaired, report, asked) = repair(&damaged, may_run_written);
        assert_eq!(
            (asked, &report.dropped_names[..]),
            (1, &[goes.to_owned()][..])
        );
        assert!(report.left.findings.is_empty(), "{report:?}");
        assert_eq!(first_cluster(&repaired, stays), shared);
    }
}

#[test]
fn a_damaged_program_that_runs_goes_only_by_the_answer_of_the_caller() {
    let mut damaged = image();
    let second = chain(&damaged, A)[1];
    set_link(&mut damaged, second, CHAIN_END);
    let (_, report, asked) = repair(&damaged, false);
    assert_eq!((asked, report.dropped_files.len()), (1, 0));
    assert!(!report.left.findings.is_empty(), "{report:?}");
    let (repaired, report, asked) = repair(&damaged, true);
    assert_eq!((asked, &report.dropped_files[..]), (1, &[A.to_owned()][..]));
    assert!(report.left.findings.is_empty(), "{report:?}");
    assert_eq!(contents(&repaired)[B], content(2, 1400));
}

/// The answer costs a start the time to read both programs.
#[test]
fn the_caller_is_asked_only_where_the_answer_decides() {
    let (repaired, _, asked) = repair(&image(), true);
    assert!(repaired == image() && asked == 0, "a volume in order");
    let mut lost = image();
    set_link(&mut lost, 300, CHAIN_END);
    let (_, report, asked) = repair(&lost, true);
    assert_eq!((report.freed_clusters, asked), (1, 0));
    let mut both = image();
    for path in [A, B] {
        let second = chain(&both, path)[1];
        set_link(&mut both, second, CHAIN_END);
    }
    let (_, report, asked) = repair(&both, true);
    assert_eq!((asked, &report.dropped_files[..]), (0, &[B.to_owned()][..]));
}
