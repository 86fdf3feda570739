//! Damage to files by which a machine was started: a repair drops none of them, and cuts none of their bytes.

use crate::repair_tests::{A, B, CHAIN_END, FOREIGN, chain, image};
use crate::testing::{content, contents, link, set_link, slot_at};
use crate::{
    ChainDamage, FatFinding, FatVolume, NameChoice, NamedChain, RepairReport, RepairRules,
};

/// Marks that no chain ends with: of a free cluster, of a cluster that does not exist, of a bad one, and a number
/// outside of the volume.
const WRONG_ENDS: [u32; 4] = [0, 1, 0x0fff_fff7, 100_000];

fn repair_own(image: &[u8], own: &[&str], needed: usize) -> (Vec<u8>, RepairReport) {
    repair_by(image, own, needed, &RepairRules::keep_own)
}

fn repair_by(
    image: &[u8],
    own: &[&str],
    needed: usize,
    choose: &dyn Fn(&NamedChain<'_>, &NamedChain<'_>) -> NameChoice,
) -> (Vec<u8>, RepairReport) {
    let mut volume = FatVolume::open(image.to_vec()).expect("a volume");
    let rules = RepairRules {
        own,
        needed,
        choose,
    };
    let report = volume.repair(&rules).expect("memory can be written");
    (volume.into_device(), report)
}

/// Asserts that a repair drops nothing, leaves no finding, and leaves all files as they were in `before`.
fn assert_all_stay(before: &[u8], (repaired, report): (Vec<u8>, RepairReport)) {
    assert!(report.left.findings.is_empty(), "{report:?}");
    assert_eq!(report.dropped_files, [""; 0]);
    assert_eq!(report.dropped_names, [""; 0]);
    assert_eq!(contents(&repaired), contents(before));
}

/// A machine runs the needed file, which its loader could read.
#[test]
fn a_needed_file_with_a_broken_chain_stays_and_is_found() {
    let mut damaged = image();
    for path in [A, B] {
        let second = chain(&damaged, path)[1];
        set_link(&mut damaged, second, CHAIN_END);
    }
    let (_, report) = repair_own(&damaged, &[A, B], 1);
    assert_eq!(report.dropped_files, [B]);
    let found = FatFinding::Chain {
        path: A.into(),
        damage: ChainDamage::TooShort,
    };
    assert_eq!(report.left.findings, [found]);
}

#[test]
fn of_two_needed_files_that_cross_none_goes() {
    let mut damaged = image();
    let (first, second) = (chain(&damaged, A), chain(&damaged, B));
    set_link(&mut damaged, second[0], first[1]);
    let (_, report) = repair_own(&damaged, &[A, B], 2);
    assert!(report.dropped_files.is_empty(), "{report:?}");
    assert!(!report.left.findings.is_empty(), "{report:?}");
}

/// Loaders read as many clusters as the size needs, so the file started the machine.
#[test]
fn a_chain_that_is_broken_behind_its_file_ends_there() {
    for value in WRONG_ENDS {
        for needed in [0, 1] {
            let mut damaged = image();
            let last = chain(&damaged, A)[2];
            set_link(&mut damaged, last, value);
            let (repaired, report) = repair_own(&damaged, &[A, B], needed);
            assert_eq!(report.cut_chains, [A], "{value:x}");
            assert_eq!(link(&repaired, last), CHAIN_END, "{value:x}");
            assert_all_stay(&image(), (repaired, report));
        }
    }
    // The files of other systems stay as they are.
    let mut damaged = image();
    let last = chain(&damaged, FOREIGN)[2];
    set_link(&mut damaged, last, 1);
    let (repaired, report) = repair_own(&damaged, &[A, B], 1);
    assert_eq!(report.cut_chains, [""; 0]);
    assert_eq!(link(&repaired, last), 1);
}

#[test]
fn a_file_that_leads_into_another_behind_its_end_takes_no_file_with_it() {
    for (from, into) in [(B, A), (A, B)] {
        let mut damaged = image();
        let (last, middle) = (chain(&damaged, from)[2], chain(&damaged, into)[1]);
        set_link(&mut damaged, last, middle);
        for own in [[FOREIGN, from, into], [FOREIGN, into, from]] {
            assert_all_stay(&image(), repair_own(&damaged, &own, 2));
        }
    }
}

/// The needed file is damaged, and it is the other one that can start the machine.
#[test]
fn a_needed_file_that_does_not_fit_its_size_takes_no_whole_file_with_it() {
    let mut damaged = image();
    let (needed, whole) = (chain(&damaged, B), chain(&damaged, A));
    set_link(&mut damaged, needed[0], whole[2]);
    let (repaired, report) = repair_own(&damaged, &[FOREIGN, B, A], 2);
    assert!(report.dropped_files.is_empty(), "{report:?}");
    let crossed = FatFinding::CrossedChains {
        path: B.into(),
        into: A.into(),
    };
    assert!(report.left.findings.contains(&crossed), "{report:?}");
    // Once the caller does not need it, it goes.
    let (repaired, report) = repair_own(&repaired, &[FOREIGN, B, A], 1);
    assert_eq!(report.dropped_files, [B]);
    assert!(report.left.findings.is_empty(), "{report:?}");
    assert_eq!(contents(&repaired)[A], content(1, 1500));
}

/// The entry of a needed file gets the first cluster of another needed file.
#[test]
fn no_choice_between_names_drops_a_needed_file() {
    for choice in [NameChoice::First, NameChoice::Second] {
        let mut damaged = image();
        let (from, to) = (slot_at(&damaged, FOREIGN), slot_at(&damaged, B));
        // The lower half of the number. The upper one is zero in both.
        damaged.copy_within(from + 26..from + 28, to + 26);
        let (repaired, report) = repair_by(&damaged, &[FOREIGN, B, A], 2, &|_, _| choice);
        assert_eq!(report.dropped_names, [""; 0], "{choice:?}");
        assert_eq!(report.dropped_files, [""; 0], "{choice:?}");
        let shared = FatFinding::SharedChain {
            first: B.into(),
            second: FOREIGN.into(),
        };
        assert_eq!(report.left.findings, [shared], "{choice:?}");
        assert_eq!(contents(&repaired)[A], content(1, 1500), "{choice:?}");
    }
}

/// The folder has the needed file twice, and the entry that systems find first is damaged.
#[test]
fn of_two_needed_entries_with_one_name_the_one_that_fits_stays() {
    let doubled = |broken: &[&str]| {
        let mut damaged = image();
        for path in broken {
            let second = chain(&damaged, path)[1];
            set_link(&mut damaged, second, CHAIN_END);
        }
        let slot = slot_at(&damaged, A);
        damaged[slot] = b'B';
        repair_own(&damaged, &[FOREIGN, B], 2)
    };
    for (broken, kept) in [(&[][..], content(1, 1500)), (&[A][..], content(2, 1400))] {
        let (repaired, report) = doubled(broken);
        assert_eq!(report.dropped_names, [B], "{broken:?}");
        assert!(report.left.findings.is_empty(), "{report:?}");
        assert_eq!(contents(&repaired)[B], kept, "{broken:?}");
    }
    let (_, report) = doubled(&[A, B]);
    assert_eq!(report.dropped_names, [""; 0], "none of them fits");
    assert_eq!(report.dropped_files, [""; 0]);
}
