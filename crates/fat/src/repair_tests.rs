//! Damage made by hand, what a check says of it, and what a repair makes of it.

use proptest::prelude::*;

use crate::folder::FREE_MARK;
use crate::testing::{
    content, contents, first_cluster, geometry, link, set_link, set_link_in, slot_at, small_image,
};
use crate::{
    ChainDamage, EntryDamage, FatError, FatFinding, FatNode, FatReport, FatVolume, NameChoice,
    RepairReport, RepairRules, ShortName,
};

pub(crate) const A: &str = r"\EFI\A.EFI";
pub(crate) const B: &str = r"\EFI\B.EFI";
pub(crate) const FOREIGN: &str = r"\EFI\X.EFI";
pub(crate) const CHAIN_END: u32 = 0x0fff_ffff;

fn name(text: &str) -> ShortName {
    ShortName::new(text).expect("a short name")
}

/// Two own files of three clusters each, and a foreign one.
pub(crate) fn image() -> Vec<u8> {
    let files = [content(1, 1500), content(2, 1400), content(3, 1300)];
    let names = ["A.EFI", "B.EFI", "X.EFI"];
    let nodes = names.iter().zip(&files);
    let nodes = nodes.map(|(it, bytes)| FatNode::File(name(it), bytes));
    small_image(&[FatNode::Folder(name("EFI"), nodes.collect())])
}

fn check(image: &[u8]) -> FatReport {
    let volume = FatVolume::open(image.to_vec()).expect("a volume");
    volume.check(&[A, B]).expect("within the limits")
}

fn repair(image: &[u8]) -> (Vec<u8>, RepairReport) {
    repair_by(image, &RepairRules::keep_own)
}

fn repair_by(
    image: &[u8],
    choose: &dyn Fn(&crate::NamedChain<'_>, &crate::NamedChain<'_>) -> NameChoice,
) -> (Vec<u8>, RepairReport) {
    let mut volume = FatVolume::open(image.to_vec()).expect("a volume");
    let rules = RepairRules {
        own: &[A, B],
        needed: 0,
        choose,
    };
    let report = volume.repair(&rules).expect("memory can be written");
    (volume.into_device(), report)
}

/// Asserts what a check finds, and that a repair leaves nothing of it. Returns the volume.
fn assert_repairs(image: &[u8], findings: &[FatFinding]) -> (Vec<u8>, RepairReport) {
    assert_eq!(check(image).findings, findings);
    let (image, report) = repair(image);
    assert!(report.left.findings.is_empty(), "{report:?}");
    (image, report)
}

/// Writes a second name for the file at `path` into the slot after the last one.
fn add_name(image: &mut [u8], path: &str, name: &[u8; 11]) {
    let from = slot_at(image, path);
    let mut slot = image[from..from + 32].to_vec();
    slot[..11].copy_from_slice(name);
    let mut to = slot_at(image, FOREIGN) + 32;
    while image[to] != 0 {
        to += 32;
    }
    image[to..to + 32].copy_from_slice(&slot);
}

/// The clusters of a file, by the first table.
pub(crate) fn chain(image: &[u8], path: &str) -> Vec<u32> {
    let mut clusters = vec![first_cluster(image, path)];
    while let Some(last) = clusters
        .last()
        .copied()
        .filter(|it| link(image, *it) != CHAIN_END)
    {
        clusters.push(link(image, last));
    }
    clusters
}

#[test]
fn a_volume_in_order_has_no_findings() {
    let report = check(&image());
    assert!(report.findings.is_empty(), "{report:?}");
    assert_eq!((report.files, report.folders), (3, 1));
    assert_eq!((report.foreign_files, report.foreign_bytes), (1, 1300));
    // The root and the folder have one cluster each.
    assert_eq!(report.free_clusters, report.clusters - 11);
}

#[test]
fn of_two_names_on_one_chain_the_own_one_stays() {
    let mut image = image();
    let before = contents(&image);
    add_name(&mut image, A, b"A       NEW");
    let finding = FatFinding::SharedChain {
        first: A.into(),
        second: r"\EFI\A.NEW".into(),
    };
    let (image, report) = assert_repairs(&image, &[finding]);
    assert_eq!(report.dropped_names, [r"\EFI\A.NEW"]);
    assert_eq!(
        report.freed_clusters, 0,
        "the chain is that of the other name"
    );
    assert_eq!(contents(&image), before);
}

#[test]
fn which_of_two_names_stays_is_the_choice_of_the_caller() {
    let mut damaged = image();
    add_name(&mut damaged, FOREIGN, b"NEW     EFI");
    let new = r"\EFI\NEW.EFI";
    for (choice, dropped) in [
        (NameChoice::First, vec![new]),
        (NameChoice::Second, vec![FOREIGN]),
        (NameChoice::Both, vec![]),
    ] {
        let (image, report) = repair_by(&damaged, &|first, second| {
            assert_eq!((first.path, second.path), (FOREIGN, new));
            assert!(!first.is_own && first.fits && second.size == 1300);
            choice
        });
        assert_eq!(report.dropped_names, dropped);
        for path in [FOREIGN, new] {
            let volume = FatVolume::open(image.clone()).expect("a volume");
            let read = volume.read_file(path, 2000).ok();
            let kept = (!dropped.contains(&path)).then(|| content(3, 1300));
            assert_eq!(read, kept, "{path}");
        }
    }
}

#[test]
fn the_files_of_a_folder_that_a_file_hides_keep_their_clusters() {
    let kept = content(4, 700);
    let folder = FatNode::Folder(name("SUB"), vec![FatNode::File(name("KEPT"), &kept)]);
    let mut image = small_image(&[FatNode::File(name("FILE"), &kept[..300]), folder]);
    let (slot, cluster) = (slot_at(&image, "FILE"), first_cluster(&image, "SUB"));
    // The file comes first, and leads to the cluster of the folder.
    image[slot + 26..slot + 28].copy_from_slice(&(cluster as u16).to_le_bytes());
    let (image, report) = repair(&image);
    let shared = FatFinding::SharedChain {
        first: r"\FILE".into(),
        second: r"\SUB".into(),
    };
    assert_eq!(report.left.findings, [shared]);
    assert_eq!(report.freed_clusters, 1, "the cluster that the file had");
    let volume = FatVolume::open(image).expect("a volume");
    assert_eq!(volume.read_file(r"\SUB\KEPT", 700).expect("whole"), kept);
}

#[test]
fn three_names_on_one_chain_become_one() {
    let mut image = image();
    add_name(&mut image, A, b"ONE        ");
    add_name(&mut image, A, b"TWO        ");
    let (image, report) = repair(&image);
    assert_eq!(report.dropped_names, [r"\EFI\ONE", r"\EFI\TWO"]);
    assert!(report.left.findings.is_empty(), "{report:?}");
    assert!(contents(&image).contains_key(A));
}

#[test]
fn lost_chains_become_free() {
    let mut image = image();
    let slot = slot_at(&image, FOREIGN);
    image[slot] = FREE_MARK;
    let lost = FatFinding::LostClusters {
        chains: 1,
        clusters: 3,
    };
    let free = check(&image).free_clusters;
    let (image, report) = assert_repairs(&image, &[lost]);
    assert_eq!(report.freed_clusters, 3);
    assert_eq!(check(&image).free_clusters, free + 3);
    assert_eq!(contents(&image).len(), 2);
}

#[test]
fn the_second_table_is_copied_from_the_first() {
    let mut image = image();
    let cluster = first_cluster(&image, A);
    set_link_in(&mut image, 1, cluster, 0);
    set_link_in(&mut image, 1, 300, 5);
    let before = contents(&image);
    let differ = FatFinding::TablesDiffer { entries: 2 };
    let (image, report) = assert_repairs(&image, &[differ]);
    assert_eq!(report.copied_entries, 2);
    let at = |copy| geometry(&image).table_at(copy) as usize;
    let bytes = geometry(&image).table_bytes() as usize;
    assert!(image[at(0)..at(0) + bytes] == image[at(1)..at(1) + bytes]);
    assert_eq!(contents(&image), before);
}

#[test]
fn fsinfo_says_what_the_table_says() {
    let mut wrong = image();
    let free = check(&wrong).free_clusters;
    wrong[512 + 488..512 + 492].copy_from_slice(&7_u32.to_le_bytes());
    wrong[512 + 492..512 + 496].copy_from_slice(&9999_u32.to_le_bytes());
    let findings = [
        FatFinding::InfoFree {
            recorded: 7,
            counted: free,
        },
        FatFinding::InfoNext { cluster: 9999 },
    ];
    let (repaired, report) = assert_repairs(&wrong, &findings);
    assert!(report.wrote_info);
    assert_eq!(repaired[1000..1004], free.to_le_bytes());
    let mut other = image();
    other[512..1024].fill(0xaa);
    let (repaired, _) = assert_repairs(&other, &[FatFinding::InfoSignature]);
    assert_eq!(repaired[1000..1004], free.to_le_bytes());
}

#[test]
fn the_marks_of_a_volume_in_use_are_cleared() {
    let mut linux = image();
    linux[65] = 1;
    let (repaired, report) = assert_repairs(&linux, &[FatFinding::Dirty]);
    assert!(report.was_dirty && repaired == image());
    let mut windows = image();
    set_link(&mut windows, 1, 0x07ff_ffff);
    let (repaired, report) = assert_repairs(&windows, &[FatFinding::Dirty]);
    assert!(report.was_dirty && repaired == image());
    // What a system says of its device stays.
    let mut errors = image();
    set_link(&mut errors, 1, 0x0bff_ffff);
    let (_, report) = repair(&errors);
    assert_eq!(report.left.findings, [FatFinding::DeviceErrors]);
}

#[test]
fn own_files_with_broken_chains_go_and_foreign_ones_stay() {
    for (value, damage) in [
        (0, ChainDamage::Free),
        (0x0fff_fff7, ChainDamage::Bad),
        (100_000, ChainDamage::Outside),
        (CHAIN_END, ChainDamage::TooShort),
    ] {
        for (path, is_own) in [(A, true), (FOREIGN, false)] {
            let mut image = image();
            let second = chain(&image, path)[1];
            set_link(&mut image, second, value);
            let finding = FatFinding::Chain {
                path: path.into(),
                damage,
            };
            assert!(check(&image).findings.contains(&finding), "{path} {damage}");
            let refused = FatVolume::open(image.clone())
                .expect("a volume")
                .read_file(path, 2000);
            assert!(
                matches!(refused, Err(FatError::Damaged { .. })),
                "{path} {damage}"
            );
            let (repaired, report) = repair(&image);
            if is_own {
                assert_eq!(report.dropped_files, [path], "{damage}");
                assert!(report.left.findings.is_empty(), "{report:?}");
            } else {
                assert_eq!(report.left.findings, [finding], "{damage}");
                assert_eq!(link(&repaired, second), value, "it stays as it is");
            }
        }
    }
}

#[test]
fn a_loop_ends_and_is_found() {
    let finding = FatFinding::Chain {
        path: A.into(),
        damage: ChainDamage::Loop,
    };
    let mut image = image();
    let clusters = chain(&image, A);
    set_link(&mut image, clusters[1], clusters[0]);
    let lost = FatFinding::LostClusters {
        chains: 1,
        clusters: 1,
    };
    let (_, report) = assert_repairs(&image, &[lost, finding.clone()]);
    assert_eq!(report.dropped_files, [A]);
    // Behind the last cluster that the file needs.
    let mut image = self::image();
    let before = contents(&image);
    set_link(&mut image, clusters[2], clusters[1]);
    let (repaired, report) = assert_repairs(&image, &[finding]);
    assert_eq!(report.cut_chains, [A]);
    assert_eq!(contents(&repaired), before);
}

#[test]
fn chains_longer_than_their_file_are_cut_where_they_are_own() {
    let mut image = image();
    let before = contents(&image);
    for (path, more) in [(A, 200), (FOREIGN, 210)] {
        let last = chain(&image, path)[2];
        set_link(&mut image, last, more);
        set_link(&mut image, more, CHAIN_END);
    }
    let (repaired, report) = repair(&image);
    assert_eq!(
        (&report.cut_chains[..], report.freed_clusters),
        (&[A.to_owned()][..], 1)
    );
    let left = FatFinding::Chain {
        path: FOREIGN.into(),
        damage: ChainDamage::TooLong,
    };
    assert_eq!(report.left.findings, [left]);
    let volume = FatVolume::open(repaired).expect("a volume");
    assert_eq!(volume.read_file(A, 2000).ok(), before.get(A).cloned());
}

#[test]
fn an_empty_file_has_no_chain() {
    let mut image = image();
    let slot = slot_at(&image, A);
    image[slot + 28..slot + 32].fill(0);
    let (repaired, report) = repair(&image);
    assert_eq!(report.cut_chains, [A]);
    assert_eq!(report.freed_clusters, 3);
    assert!(report.left.findings.is_empty(), "{report:?}");
    assert_eq!(first_cluster(&repaired, A), 0);
}

#[test]
fn of_two_own_files_that_cross_the_more_valued_one_stays() {
    let mut image = image();
    let (a, b) = (chain(&image, A), chain(&image, B));
    // Both end with the last two clusters of B, and fit.
    set_link(&mut image, a[0], b[1]);
    let crossed = FatFinding::CrossedChains {
        path: B.into(),
        into: A.into(),
    };
    assert!(
        check(&image).findings.contains(&crossed),
        "{:?}",
        check(&image)
    );
    let (repaired, report) = repair(&image);
    assert_eq!(report.dropped_files, [B]);
    assert!(report.left.findings.is_empty(), "{report:?}");
    assert_eq!(chain(&repaired, A), [a[0], b[1], b[2]]);
}

#[test]
fn a_foreign_file_that_an_own_one_crosses_keeps_its_clusters() {
    let mut image = image();
    let (a, x) = (chain(&image, A), chain(&image, FOREIGN));
    set_link(&mut image, a[0], x[1]);
    let (repaired, report) = repair(&image);
    let crossed = FatFinding::CrossedChains {
        path: FOREIGN.into(),
        into: A.into(),
    };
    assert_eq!(report.left.findings, [crossed]);
    let mut volume = FatVolume::open(repaired).expect("a volume");
    let before = volume.read_file(FOREIGN, 2000).expect("whole");
    let new = content(9, 2000);
    let replaced = volume.replace_file(A, 2000, &mut &*new, &mut |_| {});
    replaced.expect("room");
    assert_eq!(volume.read_file(FOREIGN, 2000).expect("whole"), before);
    assert_eq!(volume.read_file(A, 2000).expect("written"), new);
    let report = volume.check(&[A, B]).expect("a volume");
    assert!(report.findings.is_empty(), "{report:?}");
}

#[test]
fn a_folder_on_the_way_ends_where_it_is_whole() {
    let mut image = image();
    let folder = first_cluster(&image, r"\EFI");
    set_link(&mut image, folder, 300);
    let before = contents(&self::image());
    let finding = FatFinding::Chain {
        path: r"\EFI".into(),
        damage: ChainDamage::Free,
    };
    let (repaired, report) = assert_repairs(&image, &[finding]);
    assert_eq!(report.cut_chains, [r"\EFI"]);
    assert_eq!(contents(&repaired), before);
}

#[test]
fn of_two_own_entries_with_one_name_the_first_stays() {
    let mut image = image();
    let slot = slot_at(&image, B);
    image[slot] = b'A';
    let finding = FatFinding::SameName { path: A.into() };
    let (repaired, report) = assert_repairs(&image, &[finding]);
    assert_eq!((report.dropped_names.len(), report.freed_clusters), (1, 3));
    assert_eq!(contents(&repaired)[A], content(1, 1500));
}

#[test]
fn entries_that_contradict_themselves_are_found() {
    let mut image = image();
    let folder = slot_at(&image, r"\EFI");
    image[folder + 28] = 1;
    let slot = slot_at(&image, FOREIGN);
    image[slot + 1] = b'"';
    let report = check(&image);
    let sized = FatFinding::Entry {
        path: r"\EFI".into(),
        damage: EntryDamage::FolderSize,
    };
    assert!(report.findings.contains(&sized), "{report:?}");
    let named = |it: &FatFinding| {
        matches!(
            it,
            FatFinding::Entry {
                damage: EntryDamage::Name,
                ..
            }
        )
    };
    assert!(report.findings.iter().any(named), "{report:?}");
    let volume = FatVolume::open(image.clone()).expect("a volume");
    assert_eq!(
        volume.list(r"\EFI").expect("a folder").len(),
        2,
        "it is left out"
    );
    let mut dots = self::image();
    let cluster = first_cluster(&dots, r"\EFI");
    let at = geometry(&dots).cluster_at(cluster) as usize;
    dots[at + 32 + 26] = 9;
    let finding = FatFinding::Entry {
        path: r"\EFI".into(),
        damage: EntryDamage::Dots,
    };
    assert_eq!(check(&dots).findings, [finding]);
}

#[test]
fn a_folder_within_itself_ends() {
    let mut image = image();
    let (folder, slot) = (first_cluster(&image, r"\EFI"), slot_at(&image, FOREIGN));
    // The foreign file becomes the folder in which it is.
    image[slot + 11] = 0x10;
    image[slot + 26..slot + 28].copy_from_slice(&(folder as u16).to_le_bytes());
    image[slot + 28..slot + 32].fill(0);
    let shared = FatFinding::SharedChain {
        first: r"\EFI".into(),
        second: FOREIGN.into(),
    };
    let report = check(&image);
    assert!(report.findings.contains(&shared), "{report:?}");
    let volume = FatVolume::open(image).expect("a volume");
    let path = format!(r"\EFI{}", r"\X.EFI".repeat(14));
    assert_eq!(volume.list(&path).expect("the folder again").len(), 3);
    let deeper = volume.list(&format!(r"{path}\X.EFI\X.EFI"));
    assert!(matches!(deeper, Err(FatError::Limit { .. })), "{deeper:?}");
}

#[test]
fn a_volume_with_one_table_in_use_is_read_only() {
    let mut image = image();
    image[40] = 0x80;
    let mut volume = FatVolume::open(image).expect("a volume");
    assert_eq!(volume.read_file(A, 2000).expect("whole"), content(1, 1500));
    let rules = RepairRules {
        own: &[A],
        needed: 0,
        choose: &RepairRules::keep_own,
    };
    assert!(matches!(
        volume.repair(&rules),
        Err(FatError::Unsupported(_))
    ));
    assert!(matches!(
        volume.remove_file(A),
        Err(FatError::Unsupported(_))
    ));
}

#[test]
fn paths_that_cannot_be_written_are_refused() {
    let mut volume = FatVolume::open(image()).expect("a volume");
    let mut write = |path: &str| {
        let written = volume.replace_file(path, 1, &mut &b"x"[..], &mut |_| {});
        written.expect_err("refused")
    };
    assert!(matches!(
        write(r"\EFI\a long name"),
        FatError::LongPath { .. }
    ));
    assert!(matches!(write(""), FatError::LongPath { .. }));
    assert!(matches!(write(r"\EFI"), FatError::NotAFile { .. }));
    assert!(matches!(
        write(r"\EFI\A.EFI\C"),
        FatError::NotAFolder { .. }
    ));
    assert!(matches!(
        volume.remove_file(r"\EFI\C"),
        Err(FatError::NotFound { .. })
    ));
    let huge = volume.write_file(A, 1 << 32).map(drop);
    assert!(matches!(huge, Err(FatError::TooLarge { .. })));
    assert!(volume.into_device() == image(), "nothing was written");
}

#[test]
fn more_or_fewer_bytes_than_announced_leave_the_file_of_before() {
    let mut volume = FatVolume::open(image()).expect("a volume");
    for length in [2, 4] {
        let written = volume.replace_file(A, length, &mut &b"new"[..], &mut |_| {});
        assert!(matches!(written, Err(FatError::Length { .. })), "{length}");
        assert_eq!(volume.read_file(A, 2000).expect("whole"), content(1, 1500));
    }
    assert!(check(&volume.into_device()).findings.is_empty());
}

/// Bytes that mean something to a volume, wherever they come.
fn bytes() -> impl Strategy<Value = u8> {
    prop_oneof![
        any::<u8>(),
        Just(0),
        Just(0xff),
        Just(0xe5),
        Just(0x0f),
        Just(0x10),
        1_u8..20
    ]
}

proptest! {
    #[test]
    fn no_change_of_a_volume_makes_it_panic_or_need_a_second_repair(
        boot in proptest::collection::vec((0_usize..90, bytes()), 0..3),
        table in proptest::collection::vec((0_usize..80, bytes()), 0..8),
        folders in proptest::collection::vec((0_usize..1536, bytes()), 0..12),
    ) {
        let mut image = image();
        let table_at = geometry(&image).table_at(0) as usize;
        let data_at = geometry(&image).cluster_at(2) as usize;
        for (start, changes) in [(0, boot), (table_at, table), (data_at, folders)] {
            for (at, byte) in changes {
                image[start + at] = byte;
            }
        }
        if let Ok(mut volume) = FatVolume::open(image) {
            let rules = RepairRules { own: &[A, B], needed: 0, choose: &RepairRules::keep_own };
            let checked = volume.check(&[A, B]);
            let repaired = volume.repair(&rules).ok();
            let is_repaired = repaired.is_some();
            let first = volume.device().clone();
            let again = volume.repair(&rules).ok();
            prop_assert_eq!(again.map(|it| it.left), repaired.map(|it| it.left));
            prop_assert!(*volume.device() == first, "a second repair wrote");
            prop_assert!(checked.is_ok() || !is_repaired);
            let written = volume.replace_file(A, 3, &mut &b"new"[..], &mut |_| {});
            if written.is_ok() {
                prop_assert_eq!(volume.read_file(A, 3).expect("written"), b"new");
            }
        }
    }
}
