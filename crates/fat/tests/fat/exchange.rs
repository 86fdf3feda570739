//! Files go onto volumes by one program and come back by another.

use std::os::unix::fs::FileExt;

use alknet_fat::{
    FatKind, FatNode, FatVolume, FilePartition, NewFatVolume, RepairRules, ShortName, create,
};

use crate::support::{VolumeFixture, content};

/// Names as people give them: long, outside ASCII, in lower case, and as they are on a floppy disk.
const NAMES: [&str; 6] = [
    "A long name with spaces and more than one part of it.txt",
    "Grüße aus dem Süden.md",
    "lower.txt",
    "UPPER.TXT",
    "Mixed.Case",
    "noextension",
];

const SLOT: &str = r"\EFI\ALKNET\A.EFI";

/// Volumes of each kind, and of sectors of each size that disks have: KiB, and options of `mkfs.vfat`.
const VOLUMES: [(FatKind, u64, &[&str]); 4] = [
    (FatKind::Fat12, 1440, &["-F", "12", "-n", "A LABEL"]),
    (FatKind::Fat16, 16 << 10, &["-F", "16", "-n", "A LABEL"]),
    (
        FatKind::Fat32,
        40 << 10,
        &["-F", "32", "-s", "1", "-n", "A LABEL"],
    ),
    (
        FatKind::Fat32,
        300 << 10,
        &["-F", "32", "-S", "4096", "-s", "1", "-n", "A LABEL"],
    ),
];

#[test]
fn what_mtools_puts_onto_volumes_of_mkfs_reads_back_equal() {
    for (kind, kib, options) in VOLUMES {
        let fixture = VolumeFixture::by_mkfs(kib, options);
        fixture.make_folder("/A long folder");
        for (number, name) in NAMES.iter().enumerate() {
            fixture.copy_in("/A long folder/", name, &content(number, number * 3000));
        }
        let volume = fixture.open();
        assert_eq!(volume.geometry().kind(), kind);
        let label = volume.label().expect("a root");
        assert_eq!(label.as_deref(), Some("A LABEL"), "{kind:?}");
        let listed = volume.list("/a LONG folder").expect("a folder");
        let names: Vec<&str> = listed.iter().map(|entry| entry.name()).collect();
        assert_eq!(names, NAMES, "{kind:?}");
        for (number, entry) in listed.iter().enumerate() {
            let path = format!(r"\A LONG FOLDER\{}", entry.name().to_uppercase());
            let read = volume.read_file(&path, 1 << 20);
            assert!(
                read.expect("whole") == content(number, number * 3000),
                "{path}"
            );
            let path = format!("/A long folder/{}", entry.short_name());
            let size = volume.open_file(&path).map(|file| file.size());
            // A short name has characters that only the writer's code page knows.
            let is_ascii = entry.short_name().is_ascii();
            assert_eq!(size.ok(), is_ascii.then(|| entry.size()), "{path}");
        }
        let report = volume.check(&[]).expect("within the limits");
        assert!(report.findings.is_empty(), "{kind:?}: {report:?}");
        assert_eq!((report.foreign_files, report.folders), (6, 1));
    }
}

#[test]
fn what_is_written_here_mtools_reads_and_fsck_accepts() {
    let (_, kib, options) = VOLUMES[2];
    let (_, large_kib, large_options) = VOLUMES[3];
    for fixture in [
        VolumeFixture::by_mkfs(kib, options),
        VolumeFixture::by_mkfs(large_kib, large_options),
        created(),
    ] {
        fixture.copy_in("/", NAMES[0], &content(1, 5000));
        let mut volume = fixture.open();
        for (seed, bytes) in [(2, 300_000), (3, 1), (4, 0), (5, 200_001)] {
            let new = content(seed, bytes);
            let mut taken = 0;
            let length = bytes as u64;
            let written =
                volume.replace_file(SLOT, length, &mut new.as_slice(), &mut |now| taken = now);
            written.expect("room");
            assert_eq!(taken, length, "the progress ends with the file");
            fixture.assert_fsck_is_content();
            assert!(
                fixture.copy_out("/EFI/ALKNET/A.EFI") == new,
                "{bytes} bytes"
            );
            assert!(from_extents(&fixture, &volume) == new, "{bytes} bytes");
        }
        volume.remove_file(SLOT).expect("it is there");
        fixture.assert_fsck_is_content();
        assert!(fixture.copy_out(&format!("/{}", NAMES[0])) == content(1, 5000));
    }
}

/// A volume that this crate makes.
fn created() -> VolumeFixture {
    let fixture = VolumeFixture::blank(160 << 10);
    let new = NewFatVolume {
        hidden_sectors: 2048,
        sectors: 320 << 10,
        cluster_sectors: 4,
        id: 0x1234_5678,
        label: *b"ALKESP     ",
    };
    let mut device = FilePartition::whole(fixture.file()).expect("a size");
    let folder = ShortName::new("EFI").expect("a short name");
    let root = [FatNode::Folder(folder, Vec::new())];
    create(&mut device, &new, &root).expect("room");
    fixture
}

/// The bytes of the slot as a reader finds them who knows no FAT.
fn from_extents<D: alknet_fat::BlockDevice>(
    fixture: &VolumeFixture,
    volume: &FatVolume<D>,
) -> Vec<u8> {
    let file = fixture.file();
    let mut content = Vec::new();
    let slot = volume.open_file(SLOT).expect("whole");
    for extent in slot.extents() {
        let mut bytes = vec![0; usize::try_from(extent.bytes).expect("a small file")];
        file.read_exact_at(&mut bytes, extent.at)
            .expect("on the device");
        content.extend(bytes);
    }
    content
}

#[test]
fn a_long_name_of_another_system_stays_with_the_file_that_replaces_its_own() {
    let (_, kib, options) = VOLUMES[2];
    let fixture = VolumeFixture::by_mkfs(kib, options);
    fixture.make_folder("/efi");
    fixture.make_folder("/efi/Alknet");
    fixture.copy_in("/efi/Alknet/", "a.Efi", &content(1, 700));
    let mut volume = fixture.open();
    let new = content(2, 1300);
    let written = volume.replace_file(SLOT, 1300, &mut new.as_slice(), &mut |_| {});
    written.expect("room");
    let listed = volume.list("/EFI/ALKNET").expect("a folder");
    let names: Vec<&str> = listed.iter().map(|entry| entry.name()).collect();
    assert_eq!(names, ["a.Efi"]);
    assert!(fixture.copy_out("/efi/Alknet/a.Efi") == new);
    fixture.assert_fsck_is_content();
    volume.remove_file(SLOT).expect("it is there");
    fixture.assert_fsck_is_content();
    let rules = RepairRules {
        own: &[SLOT],
        needed: 0,
        choose: &RepairRules::keep_own,
    };
    let report = volume.repair(&rules).expect("FAT32");
    assert!(report.left.findings.is_empty(), "{report:?}");
}
