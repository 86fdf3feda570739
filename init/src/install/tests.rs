//! Orders on machines whose disks are files.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use alknet_fat::{FatNode, FilePartition, NewFatVolume, create};
use alknet_image::EspVolume;
use tempfile::TempDir;

use super::*;

/// The EFI system partition of the layout: its first byte, and its bytes.
const ESP: (u64, u64) = (1 << 20, 256 << 20);
const MARK_TEXT: &str = "0123\n";

/// A machine with these disks: name, bytes, serial number.
fn disks(listed: &[(&str, u64, &str)]) -> (TempDir, Vec<DiskFacts>) {
    let sys = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes, serial) in listed {
        let folder = sys.path().join("block").join(name);
        fs::create_dir_all(&folder).expect("creatable");
        fs::write(folder.join("size"), format!("{}\n", bytes / 512)).expect("writable");
        fs::write(folder.join("serial"), serial).expect("writable");
    }
    let folders = SystemFolders {
        sys: sys.path().to_owned(),
        proc: sys.path().to_owned(),
    };
    let all = DiskFacts::all(&folders).expect("readable");
    (sys, all)
}

fn request(document: &str) -> InstallRequest {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let entry = folder.path().join("fw_cfg/node");
    fs::create_dir_all(&entry).expect("creatable");
    fs::write(entry.join("raw"), document).expect("writable");
    let mut paths = SourcePaths::system();
    paths.fw_cfg = folder.path().join("fw_cfg");
    for path in [&mut paths.block_class, &mut paths.dmi, &mut paths.efi] {
        *path = folder.path().join("nothing");
    }
    paths.command_line = folder.path().join("nothing");
    paths.metadata = folder.path().join("nothing");
    install_request(&paths, &KernelMounter).expect("an order")
}

fn order(disk: &str) -> InstallOrder {
    let document = format!("[install]\ndisk = \"{disk}\"\n");
    request(&document).order.expect("no mistake")
}

/// The text of a refusal, and its code.
fn refused(result: Result<&DiskFacts, InstallError>) -> (String, String) {
    let error = result.expect_err("it is refused");
    (error.to_string(), error.diagnostic().code)
}

#[test]
fn the_disk_is_the_one_with_the_serial_number() {
    let (_sys, all) = disks(&[
        ("vda", DRIVE_BYTES_MIN, "first"),
        ("vdb", DRIVE_BYTES_MIN, "second"),
    ]);
    let disk = chosen(&all, &order("second"), "sr0").expect("it is there");
    assert_eq!(disk.name, "vdb");
}

#[test]
fn each_disk_that_is_not_meant_is_refused_by_name() {
    let (_sys, all) = disks(&[
        ("sda", DRIVE_BYTES_MIN, "twin"),
        ("sdb", DRIVE_BYTES_MIN, "twin"),
        ("sdc", DRIVE_BYTES_MIN - 512, "small"),
        ("sdd", DRIVE_BYTES_MIN, "stick"),
    ]);
    let small = format!(
        "sdc has {} bytes, and a machine needs",
        DRIVE_BYTES_MIN - 512
    );
    for (serial, expected) in [
        (
            "twin",
            "several disks have the serial number 'twin': sda, sdb",
        ),
        ("small", &small),
        ("stick", "sdd is the medium"),
        (
            "vda",
            "no disk has the serial number 'vda'; this machine has sda",
        ),
    ] {
        let (text, code) = refused(chosen(&all, &order(serial), "sdd"));
        assert!(text.starts_with(expected), "{serial}: {text}");
        assert_eq!(code, "install-refused", "{serial}");
    }
    let (text, _) = refused(chosen(&[], &order("vda"), "sr0"));
    assert!(text.ends_with("this machine has no disk"), "{text}");
}

#[test]
fn an_order_with_a_mistake_is_refused_with_every_line() {
    let request = request("[node]\nnmae = \"a\"\n[install]\ndisk = \"a\"\nthen = \"halt\"\n");
    let job = InstallJob {
        medium: "sr0".to_owned(),
        request,
    };
    let error = job.order().expect_err("two mistakes");
    let text = error.to_string();
    for part in ["fw_cfg: ", "line 5, install.then", "line 2, node.nmae"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(error.diagnostic().code, "install-refused");
}

#[test]
fn the_disk_gets_the_document_without_order_and_secrets() {
    let document = "[node]\nname = \"a\"\n[install]\ndisk = \"b\"\n[secrets]\nwords = \"c\"\n";
    let job = |document: &str| InstallJob {
        medium: "sr0".to_owned(),
        request: request(document),
    };
    let files = job(document).files();
    let paths: Vec<_> = files.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, [MARK, DOCUMENT]);
    let text = String::from_utf8_lossy(&files[1].content).into_owned();
    assert_eq!(text.trim_end(), "[node]\nname = \"a\"");
    // Another order has another mark, and the words of a medium, which are erased later, change nothing.
    let other = document.replace("\"b\"", "\"d\"");
    assert_ne!(job(&other).mark(), job(document).mark());
    let erased = document.replace("[secrets]\nwords = \"c\"\n", "         \n           \n");
    assert_eq!(job(&erased).mark(), job(document).mark());
    // A document with nothing but the order.
    let files = job("[install]\ndisk = \"b\"\n").files();
    assert_eq!(files.len(), 1);
}

/// The beginning of an image: a partition table, and code behind it.
fn head() -> Vec<u8> {
    let mut head = vec![0; HEAD_BYTES];
    head[..2048].fill(7);
    head[17_000..90_000].fill(9);
    head
}

/// A sparse disk of the least size.
fn disk() -> File {
    let disk = tempfile::tempfile().expect("a temporary file");
    disk.set_len(DRIVE_BYTES_MIN).expect("writable");
    disk
}

fn judged(disk: &File) -> DiskUse {
    content::judge(disk, DRIVE_BYTES_MIN, &head(), MARK_TEXT).expect("readable")
}

#[test]
fn only_a_disk_without_content_is_blank() {
    let blank = disk();
    blank
        .write_all_at(b"data of a wiped disk", 2 << 20)
        .expect("writable");
    assert_eq!(judged(&blank), DiskUse::Blank);
    // A table, the mark of a file system without a table, and the copy of a table at the end.
    for at in [446, 0x438, DRIVE_BYTES_MIN - 512] {
        let used = disk();
        used.write_all_at(&[0x53], at).expect("writable");
        assert_eq!(judged(&used), DiskUse::Used, "{at}");
    }
}

/// The beginning is written from its second block on, and then the first one.
#[test]
fn an_installation_that_was_interrupted_begins_again() {
    let head = head();
    for written in [512, 1024, 1536, 20_480, HEAD_BYTES] {
        let disk = disk();
        disk.write_all_at(&head[512..written], 512)
            .expect("writable");
        assert_eq!(judged(&disk), DiskUse::Blank, "{written}");
        // Bytes that are not of the image belong to the owner of the disk.
        disk.write_all_at(&[8], 1024).expect("writable");
        assert_eq!(judged(&disk), DiskUse::Used, "{written}");
    }
}

#[test]
fn a_disk_that_the_same_order_wrote_is_not_written_again() {
    for (mark, expected) in [
        (MARK_TEXT, DiskUse::Installed),
        ("4567\n", DiskUse::Used),
        ("0123", DiskUse::Used),
    ] {
        let disk = disk();
        let volume = NewFatVolume {
            hidden_sectors: 2048,
            sectors: u32::try_from(ESP.1 / 512).expect("it is small"),
            cluster_sectors: 4,
            id: 1,
            label: *b"ALKESP     ",
        };
        let mut partition = FilePartition::new(&disk, ESP.0, ESP.1);
        let nodes: [FatNode<'_>; 0] = [];
        create(&mut partition, &volume, &nodes).expect("writable");
        let mut volume = EspVolume::open(&disk).expect("it was made");
        volume.add(MARK, mark.as_bytes()).expect("it has room");
        disk.write_all_at(&head(), 0).expect("writable");
        assert_eq!(judged(&disk), expected, "{mark}");
        // The disk failed when its beginning was read back: the installer wipes that, which the disk may not keep either.
        for kept in [0, HEAD_BYTES - 512] {
            let mut left = vec![0; HEAD_BYTES];
            left[512..512 + kept].fill(3);
            disk.write_all_at(&left, 0).expect("writable");
            let expected = if kept == 0 {
                DiskUse::Blank
            } else {
                DiskUse::Used
            };
            assert_eq!(judged(&disk), expected, "{mark} {kept}");
        }
    }
}

#[test]
fn progress_changes_a_few_times() {
    let total = 272 << 20;
    let mut lines: Vec<_> = (0..=272)
        .flat_map(|mib| {
            progress(
                FlashStep::Writing {
                    bytes: mib << 20,
                    total: None,
                },
                total,
            )
        })
        .collect();
    lines.dedup();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert_eq!(lines[1], "64 of 272 MiB are written");
}
