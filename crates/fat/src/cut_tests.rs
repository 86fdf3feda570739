//! A power cut at every write: the file of before or the new one is there whole, and each other file as it was.

use proptest::prelude::*;

use crate::testing::{RecordingDevice, content, contents, small_image, states_after_cuts};
use crate::{FatError, FatNode, FatVolume, RepairRules, ShortName};

const TARGET: &str = r"\EFI\ALKNET\A.EFI";
const OTHER: &str = r"\EFI\ALKNET\B.EFI";
const FOREIGN: &str = r"\EFI\BOOT\BOOTX64.EFI";

fn name(text: &str) -> ShortName {
    ShortName::new(text).expect("a short name")
}

fn small_path(number: usize) -> String {
    format!("\\EFI\\ALKNET\\F{number}")
}

fn rules() -> RepairRules<'static> {
    RepairRules {
        own: &[TARGET, OTHER],
        needed: 0,
        choose: &RepairRules::keep_own,
    }
}

/// A volume before something happens to it.
#[derive(Clone, Debug)]
struct CutScenario {
    /// Bytes of foreign files in our folder. It is missing without any file.
    small_files: Vec<usize>,
    /// Whether every second of them is removed before, so that the free clusters are in pieces.
    are_removed: bool,
    /// Bytes of our other file.
    other: Option<usize>,
    /// Bytes of the file of before.
    old: Option<usize>,
    /// Bytes of the new file.
    new: usize,
}

impl CutScenario {
    fn image(&self) -> Vec<u8> {
        let foreign = content(7, 900);
        let boot = FatNode::Folder(
            name("BOOT"),
            vec![FatNode::File(name("BOOTX64.EFI"), &foreign)],
        );
        let image = small_image(&[FatNode::Folder(name("EFI"), vec![boot])]);
        let mut volume = FatVolume::open(image).expect("a volume");
        let mut write = |path: &str, bytes: &[u8]| {
            let length = bytes.len() as u64;
            volume
                .replace_file(path, length, &mut &*bytes, &mut |_| {})
                .expect("room");
        };
        let small = self.small_files.iter().enumerate();
        for (number, bytes) in small.clone() {
            write(&small_path(number), &content(number, *bytes));
        }
        if let Some(bytes) = self.other {
            write(OTHER, &content(50, bytes));
        }
        if let Some(bytes) = self.old {
            write(TARGET, &content(51, bytes));
        }
        for (number, _) in small.filter(|(number, _)| self.are_removed && number % 2 == 1) {
            let removed = volume.remove_file(&small_path(number));
            removed.expect("it is there");
        }
        volume.into_device()
    }

    fn new_content(&self) -> Vec<u8> {
        content(52, self.new)
    }
}

/// Repairs a volume after a cut, and asserts that nothing is left to find.
fn repaired(state: Vec<u8>) -> Vec<u8> {
    let mut volume = FatVolume::open(state).expect("the boot sector stays");
    let report = volume.repair(&rules()).expect("memory can be written");
    assert!(report.left.findings.is_empty(), "{report:?}");
    assert_eq!(report.dropped_files, [""; 0], "no file is lost");
    assert_eq!(report.dropped_names, [""; 0], "no name is lost");
    volume.into_device()
}

/// Asserts that a cut during `change` leaves the target as one of `outcomes`, and all other files as they were. Returns
/// how many cuts were tried.
fn try_cuts(
    base: &[u8],
    change: &dyn Fn(&mut FatVolume<RecordingDevice>),
    outcomes: [Option<&[u8]>; 2],
) -> usize {
    let before = contents(base);
    let mut volume = FatVolume::open(RecordingDevice::new(base.to_vec())).expect("a volume");
    change(&mut volume);
    let device = volume.into_device();
    let last = contents(&device.bytes);
    assert_eq!(
        last.get(TARGET).map(Vec::as_slice),
        outcomes[1],
        "without a cut"
    );
    let mut count = 0;
    states_after_cuts(base, &device.steps, &mut |state| {
        count += 1;
        let image = repaired(state);
        let mut after = contents(&image);
        let target = after.remove(TARGET);
        assert!(outcomes.contains(&target.as_deref()), "cut {count}");
        let mut others = before.clone();
        others.remove(TARGET);
        assert!(after == others, "cut {count}: {:?}", after.keys());
        // The volume can be written again, with all of the room that no file has.
        let mut volume = FatVolume::open(image).expect("a volume");
        let again = content(53, 3000);
        volume
            .replace_file(TARGET, 3000, &mut &*again, &mut |_| {})
            .expect("room");
        assert_eq!(volume.read_file(TARGET, 3000).expect("written"), again);
        let report = volume.check(&[TARGET]).expect("a volume");
        assert!(report.findings.is_empty(), "cut {count}: {report:?}");
    });
    count
}

fn replace(volume: &mut FatVolume<RecordingDevice>, new: &[u8]) {
    let length = new.len() as u64;
    volume
        .replace_file(TARGET, length, &mut &*new, &mut |_| {})
        .expect("room");
}

/// Sizes at which the number of clusters changes, and others.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0_usize),
        Just(1),
        Just(511),
        Just(512),
        Just(513),
        1024_usize..6000,
    ]
}

fn scenarios() -> impl Strategy<Value = CutScenario> {
    let some = proptest::collection::vec(1_usize..2500, 1..20);
    let small_files = prop_oneof![Just(Vec::new()), some];
    let optional = || proptest::option::of(sizes());
    let parts = (small_files, any::<bool>(), optional(), optional(), sizes());
    parts.prop_map(|(small_files, are_removed, other, old, new)| CutScenario {
        small_files,
        are_removed,
        other,
        old,
        new,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_cut_while_a_file_is_replaced_leaves_the_old_or_the_new_one(scenario in scenarios()) {
        let base = scenario.image();
        let old = contents(&base).remove(TARGET);
        let new = scenario.new_content();
        let outcomes = [old.as_deref(), Some(new.as_slice())];
        let cuts = try_cuts(&base, &|volume| replace(volume, &new), outcomes);
        prop_assert!(cuts > 2, "{} cuts", cuts);
    }

    #[test]
    fn a_cut_while_a_file_is_removed_leaves_it_or_nothing(scenario in scenarios()) {
        let scenario = CutScenario { old: scenario.old.or(Some(1)), ..scenario };
        let base = scenario.image();
        let old = contents(&base).remove(TARGET);
        let remove = |volume: &mut FatVolume<RecordingDevice>| {
            volume.remove_file(TARGET).expect("it is there");
        };
        let cuts = try_cuts(&base, &remove, [old.as_deref(), None]);
        prop_assert!(cuts > 2, "{} cuts", cuts);
    }
}

#[test]
fn a_cut_during_the_repair_of_a_cut_is_repaired_as_well() {
    let scenario = CutScenario {
        small_files: vec![600, 700, 800],
        are_removed: true,
        other: Some(700),
        old: Some(1500),
        new: 1200,
    };
    let base = scenario.image();
    let new = scenario.new_content();
    let mut volume = FatVolume::open(RecordingDevice::new(base.clone())).expect("a volume");
    replace(&mut volume, &new);
    let mut cuts = 0;
    states_after_cuts(&base, &volume.into_device().steps, &mut |state| {
        let expected = contents(&repaired(state.clone()));
        let device = RecordingDevice::new(state.clone());
        let mut volume = FatVolume::open(device).expect("a volume");
        volume.repair(&rules()).expect("memory can be written");
        let steps = volume.into_device().steps;
        states_after_cuts(&state, &steps, &mut |state| {
            cuts += 1;
            assert_eq!(contents(&repaired(state)), expected);
        });
    });
    assert!(cuts > 40, "{cuts} cuts");
}

#[test]
fn a_cut_while_a_full_folder_gets_another_cluster_loses_no_file() {
    // With `.` and `..` they are the sixteen slots of a cluster.
    let scenario = CutScenario {
        small_files: vec![100; 14],
        are_removed: false,
        other: None,
        old: None,
        new: 700,
    };
    let base = scenario.image();
    let new = scenario.new_content();
    let cuts = try_cuts(&base, &|volume| replace(volume, &new), [None, Some(&new)]);
    assert!(cuts > 20, "{cuts} cuts");
}

#[test]
fn a_volume_in_order_is_not_written_by_a_repair() {
    let scenario = CutScenario {
        small_files: vec![1, 2],
        are_removed: true,
        other: Some(3),
        old: Some(4),
        new: 0,
    };
    let mut volume = FatVolume::open(RecordingDevice::new(scenario.image())).expect("a volume");
    let report = volume.repair(&rules()).expect("in order");
    assert_eq!(report.left.foreign_files, 2, "{report:?}");
    assert!(!report.wrote_info && !report.was_dirty && report.freed_clusters == 0);
    assert!(
        volume.device().steps.is_empty(),
        "{:?}",
        volume.device().steps
    );
}

#[test]
fn a_file_that_does_not_fit_is_refused_before_anything_is_written() {
    let scenario = CutScenario {
        small_files: Vec::new(),
        are_removed: false,
        other: None,
        old: None,
        new: 0,
    };
    let device = RecordingDevice::new(scenario.image());
    let mut volume = FatVolume::open(device).expect("a volume");
    let free = volume.check(&[]).expect("a volume").free_clusters;
    // The folder `\EFI\ALKNET` takes one more.
    let most = u64::from(free - 1) * 512;
    let refused = volume.write_file(TARGET, most + 1).map(drop);
    match refused.expect_err("one cluster too many") {
        FatError::Full { needed, free: room } => {
            assert_eq!((needed, room), (most + 1024, most + 512));
        }
        other => panic!("{other}"),
    }
    assert!(volume.device().steps.is_empty());
    let new = content(1, most as usize);
    replace(&mut volume, &new);
    assert_eq!(volume.read_file(TARGET, u32::MAX).expect("written"), new);
    assert_eq!(volume.check(&[TARGET]).expect("full").free_clusters, 0);
    assert_eq!(
        volume.read_file(FOREIGN, 900).expect("foreign"),
        content(7, 900)
    );
}
